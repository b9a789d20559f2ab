"""The rows of ranked completions, of which a reward model is learned."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gptjax.config import parse
from gptjax.config.chat import BeforeAndAfter, Demonstrations, Rankings
from gptjax.data import conversations, held_out, preferences
from gptjax.data.conversations import Message, Unusable
from gptjax.data.preferences import Ranking
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.training import pair_accuracy, sft

NO_RANK = -1  # of a place without a completion
Encoded = tuple[list[list[int]], list[int]]  # the ids of a prompt's completions, and their ranks


def pack_texts(texts: Sequence[Sequence[int]], n_ctx: int) -> np.ndarray:
    """Returns int32 (texts, n_ctx + 1): the ids of each text, zeros, and the index of its last id.
    Raises ValueError for a text that is empty or longer than n_ctx."""
    rows = np.zeros((len(texts), n_ctx + 1), np.int32)
    for number, (row, ids) in enumerate(zip(rows, texts, strict=True)):
        if not 0 < len(ids) <= n_ctx:
            raise ValueError(
                f"text {number} has {len(ids):,} tokens: a reward model scores 1 to {n_ctx:,}"
            )
        row[: len(ids)], row[-1] = ids, len(ids) - 1
    return rows


def pack_rankings(encoded: Sequence[Encoded], n_ctx: int, n_places: int) -> np.ndarray:
    """Returns int32 (prompts, n_places (n_ctx + 2)): the rows of `pack_texts` of a prompt's
    completions, zeros for places without one, and the rank of each place, 0 for the best,
    NO_RANK for none."""
    rows = np.zeros((len(encoded), n_places * (n_ctx + 2)), np.int32)
    for row, (texts, ranks) in zip(rows, encoded, strict=True):
        row[: len(texts) * (n_ctx + 1)] = pack_texts(texts, n_ctx).ravel()
        row[-n_places:] = NO_RANK
        row[-n_places:][: len(ranks)] = ranks
    return rows


def ranks_of(rows_B: Any, n_places: int) -> Any:
    """Returns the ranks (B, n_places) of rows of `pack_rankings`."""
    return rows_B[:, -n_places:]


def encode_answer(
    tokenizer: Tokenizer,
    template: conversations.Template | None,
    n_ctx: int,
    messages: Sequence[Message],
    ended: bool,
) -> list[int]:
    """Returns the ids of preferences.encode_answer. Raises Unusable if they are longer than the
    context."""
    ids = preferences.encode_answer(tokenizer, template, messages, ended).ids
    if len(ids) > n_ctx:
        raise Unusable(f"longer than the context of {n_ctx:,} tokens")
    return ids


class RewardRows(sft.ConversationRows):
    """The rankings of a task, read, split into train and dev, encoded and put into rows; its task
    has the number of places for completions.

    texts: rows of `pack_texts` of the texts that the scores are normalized on, or none."""

    read = staticmethod(preferences.read)
    split_key = staticmethod(preferences.Ranking.prompt_text)

    def __init__(
        self,
        task: Rankings,
        tokenizer: Tokenizer,
        template: conversations.Template | None,
        n_ctx: int,
        print_line: Callable[[str], None],
    ):
        """template: None for plain text. Raises ValueError, in one line, for anything wrong with
        the data."""
        self.tokenizer, self.template, self.n_ctx, self.task = tokenizer, template, n_ctx, task
        parts = held_out.split_task(task, self.read, self.split_key)
        encoded = {name: self._encode(parts[name], name, print_line) for name in ("train", "dev")}
        longest = max(len(ranks) for part in encoded.values() for _, ranks in part)
        self.n_places = n_places = task.completions or longest
        self.task = dataclasses.replace(task, completions=n_places)
        self._example = encoded["train"][0]
        self.train, self.dev = (pack_rankings(part, n_ctx, n_places) for part in encoded.values())
        self.texts = pack_texts(self._texts(encoded["train"], print_line), n_ctx)

    def _encode(
        self, part: Iterator, name: str, print_line: Callable[[str], None]
    ) -> list[Encoded]:
        """Returns the prompts that can be learned from; what is dropped is counted and printed."""
        encoded, notes, ties = [], conversations.Notes(), conversations.Notes()
        for where, ranking in part:
            try:
                encoded.append(self._encode_ranking(ranking))
                ties.add(preferences.TIE_NOTE, where, ranking.n_ties)
            except ValueError as error:  # of the prompt, or of the template
                notes.add(f"dropped: {parse.one_line(str(error), 200)}", where)
        notes.print(name, "prompt", print_line)
        if not encoded:
            raise ValueError(f"{name}: no prompt is left to learn from{notes.reasons()}")
        ties.print(name, "pair", print_line)
        return encoded

    def _encode_ranking(self, ranking: Ranking) -> Encoded:
        """Raises ValueError if the ranking cannot be learned from."""
        preferences.check(ranking)
        if self.task.completions is not None and len(ranking.ranks) > self.task.completions:
            raise Unusable(f"more than task.completions={self.task.completions} answers")
        if self.task.loss == "best_of" and ranking.ranks.count(0) > 1:
            raise Unusable("several answers are the best, and task.loss=best_of learns one")
        texts = [
            self._encode_answer(messages, ended)
            for messages, ended in zip(ranking.answers, ranking.ended, strict=True)
        ]
        if any(texts[i] == texts[j] for i, j in ranking.pairs()):
            raise Unusable("two of the answers are the same")
        return texts, ranking.ranks

    def _encode_answer(self, messages: Sequence[Message], ended: bool) -> list[int]:
        return encode_answer(self.tokenizer, self.template, self.n_ctx, messages, ended)

    def _texts(self, train: list[Encoded], print_line: Callable[[str], None]) -> list[list[int]]:
        """The ids of the texts that the scores are normalized on."""
        match self.task.normalize:
            case None:
                return []
            case Demonstrations(path=path):
                return self._read_texts(path, "task.normalize.path", print_line)
            case BeforeAndAfter(path=None, n_samples=n):
                texts = [ids for answers, _ in train for ids in answers]
            case BeforeAndAfter(path=str(path), n_samples=n):
                texts = self._read_texts(path, "task.normalize.path", print_line)
        order = np.random.default_rng(0).permutation(len(texts))[:n]
        return [texts[i] for i in order]

    def _read_texts(
        self, path: str, name: str, print_line: Callable[[str], None]
    ) -> list[list[int]]:
        texts, notes = [], conversations.Notes()
        for where, messages in conversations.read(path, "auto"):
            try:
                texts.append(self._encode_answer(messages, False))
            except ValueError as error:
                notes.add(f"dropped: {parse.one_line(str(error), 200)}", where)
        notes.print(name, "text", print_line)
        if not texts:
            raise ValueError(f"{name}: no text of {path} is left{notes.reasons()}")
        return texts

    def example(self) -> tuple[str, str]:
        """Returns (the first prompt with its completions, what it shows)."""
        texts, ranks = self._example
        order = sorted(range(len(ranks)), key=ranks.__getitem__)
        lines = [f"{ranks[i] + 1}. {self.tokenizer.decode(texts[i])}" for i in order]
        return "\n".join(lines), "the first prompt with its completions, the best first"

    def digest(self) -> str:
        """Returns a digest of all rows, of the texts to normalize on, and of the tokenizer."""
        hasher = hashlib.sha256(super().digest().encode())
        hasher.update(self.texts.tobytes())
        return hasher.hexdigest()

    def summary(self) -> str:
        """Returns a line with the numbers of prompts, completions and pairs."""
        ranks = ranks_of(self.train, self.n_places)
        n_pairs = pair_accuracy.find_pairs(np.zeros(ranks.shape), ranks).margin.size
        return (
            f"{len(self.train):,} prompts with {int(np.sum(ranks >= 0)):,} completions, "
            f"{n_pairs:,} pairs; {len(self.dev):,} prompts to validate on"
        )
