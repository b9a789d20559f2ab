"""The objective of conversations: supervised fine-tuning on the assistant's turns (InstructGPT,
2203.02155, section 3.5)."""

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import chat, continuation
from gptjax.data import conversations, epochs, held_out, preferences
from gptjax.data.conversations import Encoded, Message
from gptjax.data.tokenizers import build
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.model import experts, gpt
from gptjax.report import events
from gptjax.runtime import atomic, run_dir
from gptjax.training import answer_score, pretraining, step
from gptjax.training.rlhf import rewards


def pack_rows(encoded: Sequence[Encoded], n_ctx: int, rows: str) -> np.ndarray:
    """Returns int32 (rows, 2 n_ctx + 1): n_ctx + 1 token ids, then a mark for each of the n_ctx
    predictions, 2 * segment + (1 if the next token is learned). Segments count a row's
    conversations from 1; 0 is padding.

    rows: "packed" puts each conversation, the longest first, into the row in which it leaves the
    least space (best-fit decreasing); "single" gives each its own row."""
    places = [[one] for one in encoded] if rows == "single" else _fit(encoded, n_ctx + 1)
    out = np.zeros((len(places), 2 * n_ctx + 1), np.int32)
    for row, parts in zip(out, places, strict=True):
        first = 0
        for segment, one in enumerate(parts, 1):
            stop = first + len(one.ids)
            row[first:stop] = one.ids
            marks = row[n_ctx + 1 :][first : min(stop, n_ctx)]
            marks[:] = 2 * segment
            marks[: len(one.ids) - 1] += np.array(one.learned[1:], np.int32)
            first = stop
    return out


def _fit(encoded: Sequence[Encoded], n_ids: int) -> list[list[Encoded]]:
    """The conversations of each packed row, which has n_ids ids."""
    places: list[list[Encoded]] = []
    spaces: list[tuple[int, int]] = []  # (space, row) of the rows, sorted
    for one in sorted(encoded, key=lambda e: -len(e.ids)):
        at = bisect.bisect_left(spaces, (len(one.ids), -1))
        space, row = spaces.pop(at) if at < len(spaces) else (n_ids, len(places))
        if row == len(places):
            places.append([])
        places[row].append(one)
        bisect.insort(spaces, (space - len(one.ids), row))
    return places


def split_row(rows_BT: Any, n_ctx: int) -> tuple[Any, Any, Any]:
    """Returns (tokens (B, n_ctx + 1), segments (B, n_ctx), learned (B, n_ctx) float32, 1 or 0) of
    rows of `pack_rows`."""
    marks_BT = rows_BT[:, n_ctx + 1 :]
    return rows_BT[:, : n_ctx + 1], marks_BT // 2, (marks_BT % 2).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class SftStep(step.TrainStep):
    """The training step of conversations, on rows of `pack_rows`: the loss is a mean over all
    learned tokens of a step, whatever its microbatches."""

    def row_nll(self, params, rows_BT, dropout_key=None):
        """Returns (sum of the negative log-likelihoods (nats) of the learned tokens of rows, their
        number, the statistics of the routers of experts)."""
        tokens_BT, segments_BT, learned_BT = split_row(rows_BT, self.config.model.n_ctx)
        positions_BT = gpt.segment_positions(segments_BT)
        total, router = self.segment_nll(
            params, tokens_BT, learned_BT, segments_BT, positions_BT, dropout_key
        )
        return total, jnp.sum(learned_BT), router

    def loss_fn(self, params, tokens_BT, dropout_key=None):
        """As TrainStep.loss_fn."""
        total, count, router = self.row_nll(params, tokens_BT, dropout_key)
        n_all = tokens_BT.shape[0] * self.config.model.n_ctx
        total, weight = total / n_all, count / n_all
        router_loss = weight * experts.loss(self.config.model.mlp, router)
        return total + router_loss, step.LossParts(total, weight, router)


class ConversationRows:
    """The conversations of a task, read, split into train and dev, encoded and put into rows. A
    data.epochs.TaskRows.

    n_ctx: context. examples: the first conversations of train and dev, with their ids, to be
    shown. dev_messages: the conversations of dev. n_conversations: of both."""

    read = staticmethod(conversations.read)
    split_key = staticmethod(repr)

    def __init__(
        self,
        task: Any,
        tokenizer: Tokenizer,
        template: conversations.Template | None,
        n_ctx: int,
        print_line: Callable[[str], None],
    ):
        """task: a config.chat.Conversations. template: None for plain text. Raises ValueError, in
        one line, for anything wrong with the data."""
        self.task, self.tokenizer, self.template, self.n_ctx = task, tokenizer, template, n_ctx
        self.examples: dict[str, list[tuple[list[Message], Encoded]]] = {}
        self.n_conversations: dict[str, int] = {}
        self.dev_messages: list[list[Message]] = []
        parts = held_out.split_task(task, self.read, self.split_key)
        self.train, self.dev = (
            self.encode(parts[name], name, print_line) for name in ("train", "dev")
        )

    def encode(self, part: Iterator, name: str, print_line: Callable[[str], None]) -> np.ndarray:
        """Returns the rows of a split, and keeps its first conversations as `examples`."""
        assert self.template is not None  # which a PreferenceRows may lack
        encoded = conversations.encode_all(
            part, self.template, self.n_ctx, self.task.too_long, print_line, name
        )
        self.examples[name], self.n_conversations[name] = encoded[:3], len(encoded)
        if name == "dev":
            self.dev_messages = [messages for messages, _ in encoded]
        return pack_rows([one for _, one in encoded], self.n_ctx, self.task.rows)

    def digest(self) -> str:
        """Returns a digest of all rows and of the tokenizer."""
        hasher = hashlib.sha256(self.tokenizer.digest.encode())
        for rows in (self.train, self.dev):
            hasher.update(rows.tobytes())
        return hasher.hexdigest()

    def example(self) -> tuple[str, str]:
        """Returns (the text of the first conversation, what it shows)."""
        encoded = self.examples["train"][0][1]
        return (
            format_mask(self.tokenizer, encoded),
            "the first conversation; learned is what stands in ⟦ ⟧",
        )

    def summary(self) -> str:
        """Returns a line with the numbers of conversations, rows and learned tokens."""
        marks = self.train[:, self.n_ctx + 1 :]
        n_learned, n_tokens = int(np.sum(marks % 2)), int(np.sum(marks > 0))
        return (
            f"{self.n_conversations['train']:,} conversations in {len(self.train):,} rows, "
            f"{n_learned:,} learned of {n_tokens:,} tokens; {self.n_conversations['dev']:,} "
            "conversations to validate on"
        )

    def description(self) -> dict[str, Any]:
        """Returns what data.json records of the data."""
        return {
            "task": repr(self.task),
            "tokenizer": self.tokenizer.digest,
            "digest": self.digest(),
            "summary": self.summary(),
        }


def format_mask(tokenizer: Tokenizer, encoded: Encoded) -> str:
    """Returns the text of a conversation with ⟦ ⟧ around the parts that are learned."""
    pairs = zip(encoded.ids, encoded.learned, strict=True)
    return "".join(
        f"⟦{text}⟧" if is_learned else text
        for is_learned, part in itertools.groupby(pairs, lambda pair: pair[1])
        for text in [tokenizer.decode([i for i, _ in part])]
    )


def padded_batches(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (`size` rows, of which the last may be zeros, how many are not)."""
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        yield np.pad(batch, ((0, size - len(batch)), (0, 0))), len(batch)


class SftObjective:
    """Learning from conversations. A training.context.Objective."""

    def __init__(
        self,
        init_weights: Any,
        rows: ConversationRows,
        load_reward: rewards.LoadReward | None = None,
    ):
        """init_weights: a weights.load.Weights. load_reward: weights.reward_model.load, for a task
        that chooses by BestScore."""
        self._init_weights, self._rows = init_weights, rows
        self._load_reward, self._score = load_reward, None

    def open_dataset(self, config, directory, log):
        return epochs.EpochDataset(self._rows, self._rows.task.batch_rows, config.seed)

    def build_step(self, config, platform, mesh, dataset):
        base = step.build(config, platform, mesh, dataset.tokenizer.end_of_text)
        match config.task.choose:
            case chat.BestScore() as spec:
                rows = self._rows
                assert rows.template is not None and self._load_reward is not None
                self._score = answer_score.AnswerScore(
                    spec,
                    config,
                    mesh,
                    rows.tokenizer,
                    rows.template,
                    rows.dev_messages,
                    self._load_reward,
                )
                dataset.model_digests |= {"reward": self._score.digest}
        return SftStep(base.config, base.model, base.tx, base.end_of_text)

    def init_state(self, config, step, mesh, dataset, out):
        from gptjax.training import state

        # Here, since it reads a checkpoint's record by Orbax, which must know all processes.
        weights = self._init_weights
        weights.check(weights.config, build.build(weights.config.data.tokenizer))
        init_state = state.init_sharded(config, step.model, step.tx, mesh)
        if self._score is not None:
            out.print(f"the reward: {self._score.description}")
        for line in continuation.changes(self._init_weights.config.model, config.model):
            out.print(line)
        return self._load_params(init_state, config.model)

    def _load_params(self, init_state, model):
        """The state with the parameters of init_weights."""
        return pretraining.load_params(init_state, self._init_weights, model, lambda *_: None)

    def make_program(self, context, put_on_mesh):
        from gptjax.training import one_run

        return one_run.OneRun(context, put_on_mesh, self.make_eval_fn(context, put_on_mesh))

    def make_eval_fn(self, context, put_on_mesh):
        from gptjax.sharding import xla_options

        nll = jax.jit(
            context.step.row_nll, compiler_options=xla_options.options(context.mesh.devices.flat[0])
        )

        score = None
        if self._score is not None:
            score = self._score.make_fn(context.step.model, context.microbatch_rows, put_on_mesh)

        def eval_fn(params):
            total = np.zeros(2)
            # Nothing is learned of the rows of padding.
            for batch, _ in padded_batches(self._rows.dev, context.microbatch_rows):
                *sums, _ = jax.device_get(nll(params, put_on_mesh(batch, "B1")))
                total += np.array(sums, np.float64)
            loss = float(total[0] / total[1])
            scores = {} if score is None else {"validation_score": score(params)}
            return scores | {"validation_loss": loss, "perplexity": float(np.exp(min(loss, 700)))}

        return eval_fn

    def generate_samples(self, context, state, step, is_last):
        """Greedy answers to the first conversations that are held out. At the end the epoch that
        is the result is chosen."""
        if is_last:
            self._choose(context)
        from gptjax.generate import decode, sampling
        from gptjax.model import inference

        rows, tokenizer = self._rows, self._rows.tokenizer
        n_tokens = context.config.loop.sample_tokens
        prompts = [
            preferences.encode_prompt(tokenizer, rows.template, messages[:-1])
            for messages, _ in rows.examples["dev"]
            if messages[-1]["role"] == "assistant"
        ]
        if not prompts:
            return []
        try:
            answers = decode.generate(
                inference.prepare(context.step.model, state.params),
                prompts,
                n_tokens,
                sampling.SamplingParams(temperature=0.0),
                sampling.random_key(0),
                preferences.end_token(tokenizer, rows.template),
            )
        except inference.NonFiniteLogits as error:  # the run goes on
            return [f"no sample: {error}"]
        return [
            tokenizer.decode([*prompt, *answer])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _choose(self, context) -> None:
        """Writes which checkpoint is the result of the run, where it is not the newest."""
        if context.processes.process_id != 0 or self._rows.task.choose == "last":
            return
        if (step := best_step(context)) is None:
            return
        atomic.save(context.directory / run_dir.CHOSEN, atomic.json_bytes({"step": step}))
        context.try_optional("chosen.json is not copied", context.bucket_sync.upload)


def best_step(context) -> int | None:
    """Returns the step of the checkpoint with the highest score of answers on dev, or where none
    has a finite one the lowest loss, and prints it; None if that is not finite either. For process
    0."""
    context.checkpoints.wait()
    saved = context.checkpoints.steps()
    records = [r for r in events.read(context.directory) if r["step"] in saved]
    for name, sign, what in (
        ("validation_score", -1, "highest score of answers"),
        ("validation_loss", 1, "lowest loss"),
    ):
        values = {r["step"]: r[name] for r in records if np.isfinite(r.get(name, np.nan))}
        if values:
            step = min(values, key=lambda step: (sign * values[step], step))
            context.out.print(
                f"step {step:,} has the {what} on dev, {values[step]:.4f}: it is read from now on"
            )
            return step
        if any(name in record for record in records):
            context.warn(f"no epoch has a finite {name}")
    return None
