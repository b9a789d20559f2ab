"""What the KV cache that a conversation keeps saves: tokens read and seconds to the first token of
each answer, with the cache and with one that is forgotten after every turn, interleaved.

    python -m bench.chat --model=SmolLM2-135M-Instruct.Q4_1.gguf [--rounds=3]

Answers are greedy and must be equal both ways. Both conversations are held once before, so that
nothing is compiled while it is timed; of the rounds the medians are shown.
"""

import argparse
import statistics
import time

import gptjax
from gptjax.config import parse
from gptjax.generate.conversation import Conversation

MESSAGES = (
    "Hello, who are you?",
    "Explain in a paragraph why the sky is blue.",
    "And why is it red in the evening?",
    "Now write a short poem about it.",
    "Give the poem a title.",
    "Thank you. What did we talk about?",
)
MAX_NEW_TOKENS = 120


def first_seconds(conversation: Conversation, message: str) -> float:
    """Adds a turn; returns the seconds to the first piece of the answer."""
    start = time.perf_counter()
    pieces = conversation.reply(message)
    next(pieces)
    seconds = time.perf_counter() - start
    for _ in pieces:
        pass
    return seconds


def main() -> None:
    """Prints a line for each turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model with a chat template")
    parser.add_argument("--rounds", type=parse.int_argument(), default=3)
    args = parser.parse_args()
    model = gptjax.load(args.model)
    seconds: dict[tuple[int, bool], list[float]] = {}
    n_read: dict[tuple[int, bool], int] = {}
    for _ in range(args.rounds + 1):
        both = {
            is_kept: model.conversation(temperature=0, max_new_tokens=MAX_NEW_TOKENS)
            for is_kept in (True, False)
        }
        for turn, message in enumerate(MESSAGES):
            for is_kept, conversation in both.items():
                if not is_kept:
                    conversation.forget_cache()
                found = first_seconds(conversation, message)
                seconds.setdefault((turn, is_kept), []).append(found)
                n_read[turn, is_kept] = conversation.n_read
        assert both[True].turns == both[False].turns, "the answers differ"
    print("turn  tokens read: kept, afresh   seconds to the first token: kept, afresh   ratio")
    for turn in range(len(MESSAGES)):
        kept, afresh = (statistics.median(seconds[turn, way][1:]) for way in (True, False))
        print(
            f"{turn + 1:4}  {n_read[turn, True]:17,}, {n_read[turn, False]:6,}   "
            f"{kept:32.3f}, {afresh:6.3f}   {afresh / kept:5.1f}"
        )


if __name__ == "__main__":
    main()
