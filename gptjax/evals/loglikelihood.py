"""A model is asked: how likely are these completions after this context, how likely is this text, what do you write?

Answers come in the order that is quickest, each with its question's number. Completions are read as forests (model/attention/tree.py): a
context is in a row once for all its completions, and so is a beginning that several contexts share; what is short stands side by side in
one row. So nearly nothing that is computed is padding, few programs are compiled, and nothing is cached. Logits are of the tokens that
are asked for alone."""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import assert_never

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import evaluation
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.generate import beam, sampling, streaming
from gptjax.model import inference
from gptjax.sharding import rules, xla_options

ROW = 512  # tokens of a row, if what it holds is not longer: in longer ones attention costs more, in shorter ones less fits together
AT_ONCE = 1024  # tokens that a program reads on each device, or a row of each if that is more
SCORED = 32, 512  # tokens whose probability one program computes, at least and at most: each is a row of n_vocab logits
WRITING = 16  # texts that are written at once


@dataclasses.dataclass(frozen=True)
class Question:
    """Tokens: what stands before (at least one), and what may follow, each at least one."""

    context: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Of one completion: nats, all its tokens together; how many they are; is each of them the likeliest after those before it; is the
    last one."""

    log_probability: float
    n_tokens: int
    greedy: bool
    last_greedy: bool


def likelihoods(
    reader: inference.Reader, questions: Sequence[Question], place: rules.Placement = rules.NOWHERE, banned: Sequence[int] = ()
) -> Iterator[tuple[int, tuple[Likelihood, ...]]]:
    """(number of the question, a Likelihood for each of its completions), in the order that is quickest. place: where the parameters lie,
    and rows shall (training.step.build's model.place). banned: tokens that do not count as what the model would say first; the
    log-probability is not changed by it.

    ValueError for a question without a completion, for an empty context or completion, and for what the model's context does not hold:
    all tokens but a completion's last are read. reading.NonFiniteLogits where the model says NaN."""
    for number, question in enumerate(questions):
        _checked(number, question, reader.model.config.n_ctx)
    reader = reader.replace(model=reader.model.clone(place=place))
    allowed_V = np.ones(reader.params["token_VD"].shape[0], bool)
    allowed_V[list(banned)] = False
    found: dict[int, dict[int, Likelihood]] = {}
    running: tuple[_Asked, list] | None = None
    for batch in _batches(_rows(_units(questions), place), place):
        asked = _asked(questions, *batch)  # laid out while the batch before it is read
        if running is not None:
            yield from _answers(questions, *running, found)
        running = asked, _scores(reader, asked, allowed_V)
    if running is not None:
        yield from _answers(questions, *running, found)


def texts(
    reader: inference.Reader, texts: Sequence[Sequence[int]], first: int, place: rules.Placement = rules.NOWHERE, stride: int | None = None
) -> Iterator[tuple[int, float]]:
    """(number of the text, its log-probability in nats) of whole texts: each token after as many before it as the model's context holds
    when `stride` tokens are predicted in each window (default: the whole context). The token `first` stands before each text; an empty one
    has 0 nats."""
    n_ctx = reader.model.config.n_ctx
    windows, of = [], []
    totals, missing = [0.0] * len(texts), [0] * len(texts)
    for number, text in enumerate(texts):
        x = (first, *text)
        for start in range(0, len(text), n_ctx if stride is None else stride):
            stop = min(start + (n_ctx if stride is None else stride), len(text))
            windows.append(Question(x[max(0, stop - n_ctx) : start + 1], (x[start + 1 : stop + 1],)))
            of.append(number)
            missing[number] += 1
        if not text:
            yield number, 0.0
    for window, (answer,) in likelihoods(reader, windows, place):
        number = of[window]
        totals[number] += answer.log_probability
        missing[number] -= 1
        if not missing[number]:
            yield number, totals[number]


def written(
    reader: inference.Reader, prompts: Sequence[Sequence[int]], method: evaluation.Writing, text: Tokenizer, key: jax.Array
) -> Iterator[tuple[int, str]]:
    """(number of the prompt, what the model writes after it), longest prompts first. It ends before end-of-text and before any of the
    method's `stops`. What is sampled depends on the key and on which prompts are there.

    ValueError for an empty prompt; and for a prompt that is with its new tokens longer than the model's context allows a beam search. Else
    the model reads on from the text's last half, as in decode.stream. reading.NonFiniteLogits where the model says NaN."""
    match method:
        case evaluation.Beam():
            return _batched(prompts, lambda asked, start: _sought(reader, asked, method, text))
        case evaluation.Greedy():
            return said(reader, prompts, method.n_tokens, sampling.Sampling(temperature=0), method.stops, text, key)
        case evaluation.TopK():
            return said(reader, prompts, method.n_tokens, sampling.Sampling(top_k=method.k), method.stops, text, key)
        case _:
            assert_never(method)


def said(
    reader: inference.Reader,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    sampling: sampling.Sampling,
    stops: Sequence[str],
    text: Tokenizer,
    key: jax.Array,
) -> Iterator[tuple[int, str]]:
    """`written` by any sampling."""

    def new(asked, start):
        parts = streaming.stream(reader, text, asked, n_tokens, sampling, jax.random.fold_in(key, start), stops)
        return ["".join(row) for row in zip(*parts, strict=True)]

    return _batched(prompts, new)


def _batched(prompts, new: Callable[[list, int], list[str]]) -> Iterator[tuple[int, str]]:
    """The new texts of some prompts of like length at once, each with its number."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    for start in range(0, len(order), WRITING):
        numbers = order[start : start + WRITING]
        yield from zip(numbers, new([prompts[number] for number in numbers], start), strict=True)


def _sought(reader, prompts, method: evaluation.Beam, text: Tokenizer) -> list[str]:
    """The best text of a beam search after each prompt."""
    stops = streaming.normalize_stops(text, method.stops)

    def ends(tokens):
        return tokens[-1] == text.end_of_text or any(stop in text.decode(tokens) for stop in stops)

    found, new = beam.search(reader, prompts, method.n_tokens, ends, method.width, method.alpha), []
    for prompt, (best, *_) in zip(prompts, found, strict=True):
        told = streaming.Telling(text, prompt, method.stops)
        new.append(told.add([token for token in best.tokens if token != text.end_of_text]) + told.end())
    return new


def _checked(number: int, question: Question, n_ctx: int) -> None:
    if not question.context or not question.completions or not all(question.completions):
        raise ValueError(f"question {number} has an empty context, no completion or an empty one: give at least one token of each")
    if (longest := len(question.context) + max(map(len, question.completions)) - 1) > n_ctx:
        raise ValueError(
            f"question {number}: a context of {len(question.context)} tokens with its completion is {longest + 1}, and the model reads "
            f"{n_ctx} and predicts one more: cut the context"
        )


# --- laying out ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One completion, read after those before it in its unit: the first n_shared tokens of its text are theirs too."""

    number: int
    completion: int
    n_shared: int
    n_new: int


def _units(questions: Sequence[Question]) -> list[list[_Leaf]]:
    """Completions that are read together: those of a question, and of the next ones by alphabet where at least half of the context is the
    same, as long as the unit is not three times its first text (a longer row's attention then costs as much as sharing saves)."""
    units, size, limit = [], 0, 0
    before, before_completion = np.zeros(0, np.int32), ()
    for number in sorted(range(len(questions)), key=lambda number: questions[number].context):
        question = questions[number]
        context = np.array(question.context, np.int32)
        n_shared, new_question = _shared(before, context), True
        for completion in sorted(range(len(question.completions)), key=lambda i: question.completions[i]):
            tokens = question.completions[completion]
            length = len(context) + len(tokens) - 1
            if not new_question:
                n_shared = len(context) + min(_shared(np.array(before_completion[:-1]), np.array(tokens[:-1])), length - len(context))
            if not units or 2 * n_shared < len(context) or size + length - n_shared > limit:
                units.append([])
                n_shared, size, limit = 0, 0, max(ROW, 3 * length)
            units[-1].append(_Leaf(number, completion, n_shared, length - n_shared))
            size += length - n_shared
            before_completion, new_question = tokens, False
        before = context
    return units


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _size(unit: Sequence[_Leaf]) -> int:
    return sum(leaf.n_new for leaf in unit)


def _bucket(n: int, parts: int) -> int:
    """The padded length of a row of n tokens: one of eight between a power of two and the next, and a multiple of `parts`."""
    step = max(16, 1 << max(0, (n - 1).bit_length() - 4))
    return -(-n // step) * step if step % parts == 0 else -(-n // (step * parts)) * step * parts


def _rows(units: list[list[_Leaf]], place: rules.Placement) -> list[tuple[int, list[list[_Leaf]]]]:
    """(padded length, units) of each row, longest first: each unit lies in the fullest row that has room for it, the largest unit first."""
    parts = place.parts("P")
    usual = _bucket(min(ROW, -(-sum(map(_size, units)) // place.parts("B"))), parts) if units else 0
    rows: list[tuple[int, list[list[_Leaf]]]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, number of the row), sorted
    for unit in sorted(units, key=_size, reverse=True):
        size = _size(unit)
        at = bisect.bisect_left(rooms, (size, 0))
        if at < len(rooms):
            free, row = rooms.pop(at)
        else:
            free, row = max(usual, _bucket(size, parts)), len(rows)
            rows.append((free, []))
        rows[row][1].append(unit)
        bisect.insort(rooms, (free - size, row))
    return sorted(rows, key=lambda row: -row[0])


def _batches(rows: list, place: rules.Placement) -> Iterator[tuple[int, int, list]]:
    """(rows of a program, their padded length, what they hold: fewer in the last)."""
    done, shards = 0, place.parts("B")
    while done < len(rows):
        length = rows[done][0]
        n = min(max(1, AT_ONCE // length), -(-len(rows) // shards)) * shards
        yield n, length, [units for _, units in rows[done : done + n]]
        done += n


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A batch: rows as forests; of all tokens whose probability is asked for, the node they follow (counted through the batch), the token,
    and whether it is a completion's first; and where in these lists each completion is: (its leaf, begin, end)."""

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    ends_BT: np.ndarray
    after_M: np.ndarray
    wanted_M: np.ndarray
    first_M: np.ndarray
    leaves: list[tuple[_Leaf, int, int]]


def _asked(questions: Sequence[Question], n_rows: int, length: int, rows: list[list[list[_Leaf]]]) -> _Asked:
    tokens_BT, positions_BT = np.zeros((n_rows, length), np.int32), np.zeros((n_rows, length), np.int32)
    ends_BT = np.tile(np.arange(1, length + 1, dtype=np.int32), (n_rows, 1))
    after, wanted, leaves, n_asked = [], [], [], 0
    for row, units in enumerate(rows):
        at = 0
        for unit in units:
            path, depth = np.zeros(0, np.int32), 0
            for leaf in unit:
                question = questions[leaf.number]
                completion = question.completions[leaf.completion]
                text, end = (*question.context, *completion[:-1]), at + leaf.n_new
                ends_BT[row, path[leaf.n_shared :]] = at
                path = np.concatenate([path[: leaf.n_shared], np.arange(at, end, dtype=np.int32)])
                depth = len(text)
                assert len(path) == depth, (leaf, len(path), depth)
                tokens_BT[row, at:end] = text[leaf.n_shared :]
                positions_BT[row, at:end] = np.arange(leaf.n_shared, depth)
                after.append(row * length + path[len(question.context) - 1 :])
                wanted.append(np.array(completion, np.int32))
                leaves.append((leaf, n_asked, n_asked + len(completion)))
                n_asked += len(completion)
                at = end
            ends_BT[row, path] = at
    first_M = np.zeros(n_asked, bool)
    first_M[[begin for _, begin, _ in leaves]] = True
    return _Asked(tokens_BT, positions_BT, ends_BT, np.concatenate(after), np.concatenate(wanted), first_M, leaves)


# --- reading ---------------------------------------------------------------------------------------------------------------


@functools.cache
def _read(platform: str) -> Callable:
    return jax.jit(inference.branches, compiler_options=xla_options.options(jax.devices(platform)[0]))


@jax.jit
def _taken(reader: inference.Reader, x_BTD: jax.Array, after_M: jax.Array) -> jax.Array:
    """(M, 1, D): the hidden states of these nodes. A small program of its own, so that _probabilities needs few compilations."""
    return reader.model.place(x_BTD.reshape(-1, x_BTD.shape[-1])[after_M][:, None], "B1D")


@jax.jit
def _probabilities(reader: inference.Reader, x_B1D: jax.Array, wanted_B: jax.Array, first_B: jax.Array, allowed_V: jax.Array):
    """(B,) each: the log-probability of the wanted token after each hidden state; is none likelier."""
    place = reader.model.place
    y_BV = inference.predictions(reader, x_B1D)[:, 0]
    y_B = jnp.take_along_axis(y_BV, wanted_B[:, None], axis=1)[:, 0]
    rivals_BV = jnp.where(~first_B[:, None] | allowed_V[None], y_BV, -jnp.inf)
    said_B = (y_B >= rivals_BV.max(axis=1)) & (~first_B | allowed_V[wanted_B])
    return place(y_B - jax.nn.logsumexp(y_BV, axis=1), "1"), place(said_B, "1")


def _scores(reader: inference.Reader, asked: _Asked, allowed_V: np.ndarray) -> list:
    """[(log-probabilities, is it the likeliest), ...] of the tokens that are asked for, some at a time."""
    place = reader.model.place

    def put(array, letters):
        if place.mesh is None:
            return jax.device_put(array)
        return rules.placed(array, letters, place.rules.activations, place.mesh)

    rows = (put(x, "B1") for x in (asked.tokens_BT, asked.positions_BT, asked.ends_BT))
    x_BTD = _read(jax.default_backend())(reader, *rows)
    found, least, most = [], *(-(-n // place.parts("B")) * place.parts("B") for n in SCORED)
    for start in range(0, len(asked.after_M), most):
        part = slice(start, start + most)
        n = len(asked.after_M[part])
        more = min(most, max(least, 1 << (n - 1).bit_length())) - n
        after, wanted, first = (put(np.pad(x[part], (0, more)), "B") for x in (asked.after_M, asked.wanted_M, asked.first_M))
        found.append(_probabilities(reader, _taken(reader, x_BTD, after), wanted, first, jax.device_put(allowed_V)))
    return found


def _answers(questions, asked: _Asked, scores: list, found: dict) -> Iterator[tuple[int, tuple[Likelihood, ...]]]:
    """The questions of which the last completion was in this batch. found: completions of the others."""
    p_M, said_M = (np.concatenate(column) for column in zip(*jax.device_get(scores), strict=True))
    for leaf, begin, end in asked.leaves:
        said = said_M[begin:end]
        answers = found.setdefault(leaf.number, {})
        total = float(p_M[begin:end].astype(np.float64).sum())
        if total != total:
            raise inference.NonFiniteLogits
        answers[leaf.completion] = Likelihood(total, end - begin, bool(said.all()), bool(said[-1]))
        if len(answers) == len(questions[leaf.number].completions):
            del found[leaf.number]
            yield leaf.number, tuple(answers[i] for i in range(len(answers)))
