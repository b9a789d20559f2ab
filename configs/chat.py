"""Recipes of learning from conversations: `sft`, those of InstructGPT (Ouyang et al. 2203.02155,
section 3.5 and appendix C.1), and `dpo`, from preferences (Rafailov et al. 2305.18290).

InstructGPT trains for 16 epochs with a residual dropout of 0.2 and a cosine to a tenth of the
learning rate, without a warm-up: 9.65e-6 and batches of 32 for 1.3B and 6B parameters, 5.03e-6 and
8 for 175B. Its validation loss rises after the first epoch; the checkpoint was chosen by the reward
model's score (task.choose=BestScore(...); here by the loss until a reward is named). The paper's
batches count demonstrations, one a row.

DPO's paper trains with RMSprop, batches of 64 pairs, beta 0.1 and a learning rate of 1e-6 after a
linear warm-up of 150 steps; here the optimizer is Adam without its first moment (b1=0), which is
RMSprop with a bias correction, and the warm-up is a tenth of the steps [chosen].

`reward` and its like train reward models. InstructGPT's has one epoch over the prompts of 4 to 9
ranked completions, batches of 64 prompts, a learning rate of 9e-6 with a cosine to a tenth, betas
0.9 and 0.95, and a bias that gives demonstrations a mean score of 0 (appendix C.2); the warm-up,
of which the paper says nothing, is none [chosen]. OpenAI's 2019 code (openai/lm-human-preferences,
launch.py) has the best of four continuations as label, one pass in batches of 32, Adam with eps
1e-5 and without weight decay or clipping, and a learning rate of 5e-5 that falls linearly to 0."""

from gptjax.config.chat import BeforeAndAfter, Conversations, Demonstrations, Preferences, Rankings
from gptjax.config.chat_recipe import ChatRecipe
from gptjax.config.schema import AdamW, Dropout

TRAIN, RANKINGS = "conversations.jsonl", "rankings.jsonl"


def sft() -> ChatRecipe:
    """Any conversations: 3 epochs, packed rows."""
    return ChatRecipe(name="sft", task=Conversations(train=TRAIN))


def instructgpt_sft() -> ChatRecipe:
    """InstructGPT's 1.3B and 6B models."""
    return _instructgpt("instructgpt_sft", 9.65e-6, 32)


def instructgpt_sft_175b() -> ChatRecipe:
    """InstructGPT's 175B model."""
    return _instructgpt("instructgpt_sft_175b", 5.03e-6, 8)


def _instructgpt(name: str, peak_lr: float, batch_rows: int) -> ChatRecipe:
    return ChatRecipe(
        name=name,
        task=Conversations(
            train=TRAIN, rows="single", epochs=16, batch_rows=batch_rows, peak_lr=peak_lr
        ),
        dropout=Dropout(residual=0.2),
    )


SFT = {recipe.__name__: recipe for recipe in (sft, instructgpt_sft, instructgpt_sft_175b)}


def dpo() -> ChatRecipe:
    """Any preferences, as in DPO's paper."""
    return ChatRecipe(
        name="dpo",
        task=Preferences(train="preferences.jsonl"),
        optimizer=AdamW(b1=0.0, b2=0.99, weight_decay=0.0),
    )


DPO = {recipe.__name__: recipe for recipe in (dpo,)}


def reward() -> ChatRecipe:
    """A reward model of any rankings."""
    return ChatRecipe(name="reward", task=Rankings(train=RANKINGS))


def instructgpt_reward() -> ChatRecipe:
    """InstructGPT's reward model of 6B parameters."""
    return ChatRecipe(
        name="instructgpt_reward",
        task=Rankings(
            train=RANKINGS,
            batch_rows=64,
            peak_lr=9e-6,
            normalize=Demonstrations(path="demonstrations.jsonl"),
        ),
    )


def lm_human_preferences_reward() -> ChatRecipe:
    """The reward models of OpenAI's 2019 code for the tasks sentiment and descriptiveness."""
    return ChatRecipe(
        name="lm_human_preferences_reward",
        task=Rankings(
            train=RANKINGS,
            text="plain",
            loss="best_of",
            peak_lr=5e-5,
            decay="linear",
            normalize=BeforeAndAfter(),
        ),
        optimizer=AdamW(
            b2=0.999, eps=1e-5, weight_decay=0.0, clip_norm=None, bias_correction="rate"
        ),
    )


REWARD = {
    recipe.__name__: recipe for recipe in (reward, instructgpt_reward, lm_human_preferences_reward)
}
