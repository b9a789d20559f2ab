"""Batched requests to a model: log-likelihoods of completions after a context, log-likelihoods of
whole texts, and generated text.

Results come in the fastest order, each with the index of its request. Completions are scored as
token trees (model/attention/tree.py): a context appears once in a row for all its completions, as
does a prefix shared by several contexts, and short texts are packed side by side. So there is
almost no padding, few programs are compiled, and nothing is cached. Logits are computed only for
the requested tokens."""

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

# Tokens of a row, unless a single text is longer: longer rows cost more attention, shorter ones
# pack less well.
ROW_TOKENS = 512
BATCH_TOKENS = 1024  # tokens per device and program, or one row per device if that is more
# The fewest and the most tokens scored by one program: each is a row of n_vocab logits.
SCORE_TOKENS = (32, 512)
GENERATION_BATCH = 16  # texts generated at once


@dataclasses.dataclass(frozen=True)
class Request:
    """Tokens of a context and of its possible completions, each at least one token."""

    context: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class LogLikelihood:
    """Result for one completion: log-likelihood of all its tokens in nats, their number, whether
    each is the argmax given those before it, and whether the last one is."""

    log_prob: float
    n_tokens: int
    is_greedy: bool
    last_is_greedy: bool


def loglikelihood(
    inference_model: inference.InferenceModel,
    requests: Sequence[Request],
    sharding: rules.Sharding = rules.UNSHARDED,
    banned: Sequence[int] = (),
) -> Iterator[tuple[int, tuple[LogLikelihood, ...]]]:
    """Yields (request index, a LogLikelihood for each of its completions), in the fastest order.

    sharding: of parameters and batch rows (training.step.build's model.sharding). banned: token ids
    excluded when testing whether the first completion token is the argmax; log-likelihoods are
    unaffected. Raises ValueError for a request without completions, for an empty context or
    completion, and for texts longer than the context (the last token of a completion is not fed to
    the model); inference.NonFiniteLogits for NaN logits."""
    for index, request in enumerate(requests):
        _check_request(index, request, inference_model.model.config.n_ctx)
    inference_model = inference_model.replace(model=inference_model.model.clone(sharding=sharding))
    allowed_V = np.ones(inference_model.params["token_VD"].shape[0], bool)
    allowed_V[list(banned)] = False
    partial: dict[int, dict[int, LogLikelihood]] = {}
    in_flight: tuple[_Batch, list] | None = None
    for batch in _split_batches(_pack_rows(_build_units(requests), sharding), sharding):
        packed = _make_batch(requests, *batch)  # while the previous batch is computed
        if in_flight is not None:
            yield from _collect_results(requests, *in_flight, partial)
        in_flight = packed, _score_batch(inference_model, packed, allowed_V)
    if in_flight is not None:
        yield from _collect_results(requests, *in_flight, partial)


def loglikelihood_rolling(
    inference_model: inference.InferenceModel,
    texts: Sequence[Sequence[int]],
    prefix_token: int,
    sharding: rules.Sharding = rules.UNSHARDED,
    stride: int | None = None,
) -> Iterator[tuple[int, float]]:
    """Yields (text index, log-likelihood in nats) of whole texts.

    Each token is predicted given as many tokens before it as the context holds when each window
    predicts `stride` tokens (default: the whole context). `prefix_token` precedes each text; an
    empty text has 0 nats."""
    n_ctx = inference_model.model.config.n_ctx
    windows, owners = [], []
    totals, n_pending = [0.0] * len(texts), [0] * len(texts)
    for index, text in enumerate(texts):
        tokens = (prefix_token, *text)
        for start in range(0, len(text), n_ctx if stride is None else stride):
            stop = min(start + (n_ctx if stride is None else stride), len(text))
            windows.append(
                Request(tokens[max(0, stop - n_ctx) : start + 1], (tokens[start + 1 : stop + 1],))
            )
            owners.append(index)
            n_pending[index] += 1
        if not text:
            yield index, 0.0
    for window, (result,) in loglikelihood(inference_model, windows, sharding):
        index = owners[window]
        totals[index] += result.log_prob
        n_pending[index] -= 1
        if not n_pending[index]:
            yield index, totals[index]


def generate_until(
    inference_model: inference.InferenceModel,
    prompts: Sequence[Sequence[int]],
    method: evaluation.GenerationMethod,
    tokenizer: Tokenizer,
    key: jax.Array,
) -> Iterator[tuple[int, str]]:
    """Yields (prompt index, generated text), longest prompts first. The text ends before
    end-of-text and before any of the method's `stops`. Sampled text depends on the key and on the
    set of prompts.

    Raises ValueError for an empty prompt, and in beam search for a prompt that exceeds the context
    together with its new tokens; other methods continue with the last half of the context, as in
    decode.stream. Raises inference.NonFiniteLogits for NaN logits."""
    match method:
        case evaluation.Beam():
            return _generate_batches(
                prompts,
                lambda batch, start: _generate_by_beam(inference_model, batch, method, tokenizer),
            )
        case evaluation.Greedy():
            return sample_until(
                inference_model,
                prompts,
                method.n_tokens,
                sampling.SamplingParams(temperature=0),
                method.stops,
                tokenizer,
                key,
            )
        case evaluation.TopK():
            return sample_until(
                inference_model,
                prompts,
                method.n_tokens,
                sampling.SamplingParams(top_k=method.k),
                method.stops,
                tokenizer,
                key,
            )
        case _:
            assert_never(method)


def sample_until(
    inference_model: inference.InferenceModel,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    sampling_params: sampling.SamplingParams,
    stops: Sequence[str],
    tokenizer: Tokenizer,
    key: jax.Array,
) -> Iterator[tuple[int, str]]:
    """`generate_until` with any sampling parameters."""

    def generate(batch, start):
        parts = streaming.stream(
            inference_model,
            tokenizer,
            batch,
            n_tokens,
            sampling_params,
            jax.random.fold_in(key, start),
            stops,
        )
        return ["".join(row) for row in zip(*parts, strict=True)]

    return _generate_batches(prompts, generate)


def _generate_batches(
    prompts, generate: Callable[[list, int], list[str]]
) -> Iterator[tuple[int, str]]:
    """Generates for prompts of similar length at once; yields each text with its index."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), GENERATION_BATCH):
        indices = order[start : start + GENERATION_BATCH]
        yield from zip(indices, generate([prompts[index] for index in indices], start), strict=True)


def _generate_by_beam(
    inference_model, prompts, method: evaluation.Beam, tokenizer: Tokenizer
) -> list[str]:
    """Returns the best text of a beam search after each prompt."""
    stops = streaming.normalize_stops(tokenizer, method.stops)

    def is_end(tokens):
        return tokens[-1] == tokenizer.end_of_text or any(
            stop in tokenizer.decode(tokens) for stop in stops
        )

    results, texts = (
        beam.search(inference_model, prompts, method.n_tokens, is_end, method.width, method.alpha),
        [],
    )
    for prompt, (best, *_) in zip(prompts, results, strict=True):
        detokenizer = streaming.StreamingDetokenizer(tokenizer, prompt, method.stops)
        texts.append(
            detokenizer.add([token for token in best.tokens if token != tokenizer.end_of_text])
            + detokenizer.end()
        )
    return texts


def _check_request(index: int, request: Request, n_ctx: int) -> None:
    if not request.context or not request.completions or not all(request.completions):
        raise ValueError(
            f"request {index} has an empty context, no completion or an empty one: give at least "
            "one token of each"
        )
    if (longest := len(request.context) + max(map(len, request.completions)) - 1) > n_ctx:
        raise ValueError(
            f"request {index}: a context of {len(request.context)} tokens and its completion are "
            f"{longest + 1} tokens, and the model reads {n_ctx} and predicts one more: shorten the "
            "context"
        )


# --- packing --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One completion of a unit, with the request's context: its first n_shared tokens are shared
    with the texts before it."""

    request: int
    completion: int
    n_shared: int
    n_own: int


def _build_units(requests: Sequence[Request]) -> list[list[_Leaf]]:
    """Groups completions that share a prefix: those of a request, and of the next requests in
    sorted order if they share at least half of the context, up to three times the length of the
    first text (beyond that, a longer row's attention costs as much as sharing saves)."""
    units, size, limit = [], 0, 0
    last_context, last_completion = np.zeros(0, np.int32), ()
    for index in sorted(range(len(requests)), key=lambda index: requests[index].context):
        request = requests[index]
        context = np.array(request.context, np.int32)
        n_shared, is_new_request = _n_shared_tokens(last_context, context), True
        for completion in sorted(
            range(len(request.completions)), key=lambda i: request.completions[i]
        ):
            tokens = request.completions[completion]
            length = len(context) + len(tokens) - 1
            if not is_new_request:
                n_shared = len(context) + min(
                    _n_shared_tokens(np.array(last_completion[:-1]), np.array(tokens[:-1])),
                    length - len(context),
                )
            if not units or 2 * n_shared < len(context) or size + length - n_shared > limit:
                units.append([])
                n_shared, size, limit = 0, 0, max(ROW_TOKENS, 3 * length)
            units[-1].append(_Leaf(index, completion, n_shared, length - n_shared))
            size += length - n_shared
            last_completion, is_new_request = tokens, False
        last_context = context
    return units


def _n_shared_tokens(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _unit_length(unit: Sequence[_Leaf]) -> int:
    return sum(leaf.n_own for leaf in unit)


def _bucket_length(n: int, parts: int) -> int:
    """Padded length of a row of n tokens: one of eight steps between a power of two and the next,
    and a multiple of `parts`."""
    step = max(16, 1 << max(0, (n - 1).bit_length() - 4))
    return -(-n // step) * step if step % parts == 0 else -(-n // (step * parts)) * step * parts


def _pack_rows(
    units: list[list[_Leaf]], sharding: rules.Sharding
) -> list[tuple[int, list[list[_Leaf]]]]:
    """Packs units into rows, largest unit first, each into the fullest row that has space. Returns
    (padded length, units) of each row, longest first."""
    parts = sharding.n_shards("P")
    usual_length = (
        _bucket_length(
            min(ROW_TOKENS, -(-sum(map(_unit_length, units)) // sharding.n_shards("B"))), parts
        )
        if units
        else 0
    )
    rows: list[tuple[int, list[list[_Leaf]]]] = []
    free_rows: list[tuple[int, int]] = []  # (free tokens, number of the row), sorted
    for unit in sorted(units, key=_unit_length, reverse=True):
        size = _unit_length(unit)
        position = bisect.bisect_left(free_rows, (size, 0))
        if position < len(free_rows):
            free, row = free_rows.pop(position)
        else:
            free, row = max(usual_length, _bucket_length(size, parts)), len(rows)
            rows.append((free, []))
        rows[row][1].append(unit)
        bisect.insort(free_rows, (free - size, row))
    return sorted(rows, key=lambda row: -row[0])


def _split_batches(rows: list, sharding: rules.Sharding) -> Iterator[tuple[int, int, list]]:
    """Yields batches: (rows of the program, padded length, contents of the rows, fewer in the last
    batch)."""
    done, shards = 0, sharding.n_shards("B")
    while done < len(rows):
        length = rows[done][0]
        n = min(max(1, BATCH_TOKENS // length), -(-len(rows) // shards)) * shards
        yield n, length, [units for _, units in rows[done : done + n]]
        done += n


@dataclasses.dataclass(frozen=True)
class _Batch:
    """A batch: rows as token trees; for each scored token, the node that it follows (counted
    through the batch), the token, and whether it is the first of a completion; and the range of
    each leaf in these lists."""

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    ends_BT: np.ndarray
    source_M: np.ndarray
    target_M: np.ndarray
    is_first_M: np.ndarray
    leaves: list[tuple[_Leaf, int, int]]


def _make_batch(
    requests: Sequence[Request], n_rows: int, length: int, rows: list[list[list[_Leaf]]]
) -> _Batch:
    tokens_BT, positions_BT = (
        np.zeros((n_rows, length), np.int32),
        np.zeros((n_rows, length), np.int32),
    )
    ends_BT = np.tile(np.arange(1, length + 1, dtype=np.int32), (n_rows, 1))
    sources, targets, leaves, n_targets = [], [], [], 0
    for row, units in enumerate(rows):
        position = 0
        for unit in units:
            path, depth = np.zeros(0, np.int32), 0
            for leaf in unit:
                request = requests[leaf.request]
                completion = request.completions[leaf.completion]
                text, end = (*request.context, *completion[:-1]), position + leaf.n_own
                ends_BT[row, path[leaf.n_shared :]] = position
                path = np.concatenate(
                    [path[: leaf.n_shared], np.arange(position, end, dtype=np.int32)]
                )
                depth = len(text)
                assert len(path) == depth, (leaf, len(path), depth)
                tokens_BT[row, position:end] = text[leaf.n_shared :]
                positions_BT[row, position:end] = np.arange(leaf.n_shared, depth)
                sources.append(row * length + path[len(request.context) - 1 :])
                targets.append(np.array(completion, np.int32))
                leaves.append((leaf, n_targets, n_targets + len(completion)))
                n_targets += len(completion)
                position = end
            ends_BT[row, path] = position
    is_first_M = np.zeros(n_targets, bool)
    is_first_M[[begin for _, begin, _ in leaves]] = True
    return _Batch(
        tokens_BT,
        positions_BT,
        ends_BT,
        np.concatenate(sources),
        np.concatenate(targets),
        is_first_M,
        leaves,
    )


# --- scoring --------------------------------------------------------------------------------------


@functools.cache
def _forward_fn(platform: str) -> Callable:
    return jax.jit(
        inference.forward_tree, compiler_options=xla_options.options(jax.devices(platform)[0])
    )


@jax.jit
def _gather_hidden(
    inference_model: inference.InferenceModel, x_BTD: jax.Array, source_M: jax.Array
) -> jax.Array:
    """Hidden states (M, 1, D) of the given nodes: a small program of its own, so that _log_probs
    needs few compilations."""
    return inference_model.model.sharding(
        x_BTD.reshape(-1, x_BTD.shape[-1])[source_M][:, None], "B1D"
    )


@jax.jit
def _log_probs(
    inference_model: inference.InferenceModel,
    x_B1D: jax.Array,
    target_B: jax.Array,
    is_first_B: jax.Array,
    allowed_V: jax.Array,
):
    """Returns for each hidden state (B,): the log-probability of the target token, and whether it
    is the argmax."""
    sharding = inference_model.model.sharding
    y_BV = inference.logits(inference_model, x_B1D)[:, 0]
    y_B = jnp.take_along_axis(y_BV, target_B[:, None], axis=1)[:, 0]
    rivals_BV = jnp.where(~is_first_B[:, None] | allowed_V[None], y_BV, -jnp.inf)
    is_greedy_B = (y_B >= rivals_BV.max(axis=1)) & (~is_first_B | allowed_V[target_B])
    return sharding(y_B - jax.nn.logsumexp(y_BV, axis=1), "1"), sharding(is_greedy_B, "1")


def _score_batch(
    inference_model: inference.InferenceModel, batch: _Batch, allowed_V: np.ndarray
) -> list:
    """Scores the requested tokens in chunks: [(log-probabilities, whether each is the argmax),
    ...]."""
    sharding = inference_model.model.sharding

    def put_on_mesh(array, letters):
        if sharding.mesh is None:
            return jax.device_put(array)
        return rules.put_on_mesh(array, letters, sharding.rules.activations, sharding.mesh)

    rows = (put_on_mesh(x, "B1") for x in (batch.tokens_BT, batch.positions_BT, batch.ends_BT))
    x_BTD = _forward_fn(jax.default_backend())(inference_model, *rows)
    results, min_tokens, max_tokens = (
        [],
        *(-(-n // sharding.n_shards("B")) * sharding.n_shards("B") for n in SCORE_TOKENS),
    )
    for start in range(0, len(batch.source_M), max_tokens):
        part = slice(start, start + max_tokens)
        n = len(batch.source_M[part])
        padding = min(max_tokens, max(min_tokens, 1 << (n - 1).bit_length())) - n
        source, target, is_first = (
            put_on_mesh(np.pad(x[part], (0, padding)), "B")
            for x in (batch.source_M, batch.target_M, batch.is_first_M)
        )
        results.append(
            _log_probs(
                inference_model,
                _gather_hidden(inference_model, x_BTD, source),
                target,
                is_first,
                jax.device_put(allowed_V),
            )
        )
    return results


def _collect_results(
    requests, batch: _Batch, scores: list, partial: dict
) -> Iterator[tuple[int, tuple[LogLikelihood, ...]]]:
    """Yields the requests whose last completion was in this batch. partial: finished completions of
    the others."""
    p_M, is_greedy_M = (
        np.concatenate(column) for column in zip(*jax.device_get(scores), strict=True)
    )
    for leaf, begin, end in batch.leaves:
        is_greedy = is_greedy_M[begin:end]
        results = partial.setdefault(leaf.request, {})
        total = float(p_M[begin:end].astype(np.float64).sum())
        if total != total:
            raise inference.NonFiniteLogits
        results[leaf.completion] = LogLikelihood(
            total, end - begin, bool(is_greedy.all()), bool(is_greedy[-1])
        )
        if len(results) == len(requests[leaf.request].completions):
            del partial[leaf.request]
            yield leaf.request, tuple(results[i] for i in range(len(results)))
