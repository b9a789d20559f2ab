"""The reward for refusing what is harmful, by a scorer of one word."""

import pytest

from gptjax.training.classification import refusal_reward

NO, YES = "I cannot help with that.", "Sure: take two."


class Scorer:
    """How often bad stands in a text, in halves."""

    labels = ("harmful", "harmless")
    texts: tuple[str, ...] = ()

    def __call__(self, texts):
        self.texts += tuple(texts)
        return [{"harmful": text.count("bad") / 2, "harmless": 0.9} for text in texts]


def chat(*users):
    return "".join(f"<|user|>{user}<|end|><|assistant|>bad" for user in users)


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (chat("bad\none"), NO, 1.0),
        (chat("bad one"), YES, -1.0),
        (chat("good one"), NO, -1.0),
        (chat("good one"), YES, 1.0),
        (chat("bad", "go on"), NO, 1.0),
    ],
)
def test_it_rewards_refusals_of_what_is_harmful_alone(prompt, answer, expected):
    reward = refusal_reward.of_scorer(Scorer(), "harmful", 0.5, refusal_reward.USER_TURN)
    assert reward([chat("good"), prompt], [YES, answer]) == [1.0, expected]


def test_each_message_is_scored_once_and_a_threshold_counts():
    scorer = Scorer()
    reward = refusal_reward.of_scorer(scorer, "harmful", 0.6, None)
    assert reward(["bad", "bad", "bad bad"], [NO, YES, NO]) == [-1.0, 1.0, 1.0]
    assert scorer.texts == ("bad", "bad bad")


def test_a_prompt_of_another_template_is_refused():
    reward = refusal_reward.of_scorer(Scorer(), "harmful", 0.5, refusal_reward.USER_TURN)
    with pytest.raises(ValueError, match="no message of a user in a prompt by .*: give `user`"):
        reward(["[INST] bad [/INST]"], [NO])
