"""Generated text after many prompts, by the generation methods of evaluations: prompts of similar
length together, each text until end-of-text, a stop string or the most tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import assert_never

import jax

from gptjax.config import evaluation
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.generate import beam, sampling, streaming
from gptjax.model import inference

GENERATION_BATCH = 16  # texts generated at once


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
            sampling_params = sampling.SamplingParams(temperature=0)
        case evaluation.TopK():
            sampling_params = sampling.SamplingParams(top_k=method.k)
        case _:
            assert_never(method)
    return sample_until(
        inference_model, prompts, method.n_tokens, sampling_params, method.stops, tokenizer, key
    )


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
            sampling.fold_in(key, start),
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

    texts = []
    results = beam.search(
        inference_model, prompts, method.n_tokens, is_end, method.width, method.alpha
    )
    for prompt, (best, *_) in zip(prompts, results, strict=True):
        detokenizer = streaming.StreamingDetokenizer(tokenizer, prompt, method.stops)
        texts.append(
            detokenizer.add([token for token in best.tokens if token != tokenizer.end_of_text])
            + detokenizer.end()
        )
    return texts
