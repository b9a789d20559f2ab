"""Log-likelihoods of completions after a context, and of whole texts, many requests together.

Results come in the fastest order, each with the index of its request. Completions are scored in
batches of token trees (tree_batches.py), in which a shared prefix is read once: there is almost no
padding, few programs are compiled, and nothing is cached. Logits are computed only for the
requested tokens."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.evals import tree_batches
from gptjax.evals.tree_batches import Request
from gptjax.model import inference
from gptjax.sharding import rules, xla_options

# The fewest and the most tokens scored by one program: each is a row of n_vocab logits.
SCORE_TOKENS = (32, 512)


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
    in_flight: tuple[tree_batches.Batch, list] | None = None
    for batch in tree_batches.plan_batches(requests, sharding):
        packed = tree_batches.make_batch(requests, *batch)  # while the previous batch is computed
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
    inference_model: inference.InferenceModel, batch: tree_batches.Batch, allowed_V: np.ndarray
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
    shards, results = sharding.n_shards("B"), []
    min_tokens, max_tokens = (-(-n // shards) * shards for n in SCORE_TOKENS)
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
    requests, batch: tree_batches.Batch, scores: list, partial: dict
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
