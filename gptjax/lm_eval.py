"""Run lm-evaluation-harness with gptjax as its model.

    python -m gptjax.lm_eval --model gptjax --model_args pretrained=runs/gpt2 --tasks lambada_openai

All other flags are lm_eval's; its own command knows only the models that it brings. model_args:
pretrained, a run of gptjax or a folder of weights, and any field of its config, as in
pretrained=DIR,mesh.data=2. batch_size and device are ignored: evals/loglikelihood.py batches by
length, on all devices of the mesh. In a program, import this module, after which
lm_eval.simple_evaluate(model="gptjax", ...) works.
"""

import logging
from typing import Any

from gptjax import cli
from gptjax.config import parse
from gptjax.runtime import errors

try:
    from lm_eval.api import model, registry  # pyright: ignore[reportMissingImports]
    from lm_eval.models import utils  # pyright: ignore[reportMissingImports]
    from tqdm import tqdm
except ImportError as error:  # one line, also for --help
    if __name__ == "__main__":
        errors.exit_with_error(error)
    raise
from gptjax.data.tokenizers import build
from gptjax.evals import generation, loglikelihood, prompts, tree_batches
from gptjax.generate import sampling, streaming
from gptjax.weights import open_model

# Tokens that are generated where a task sets no number: that of lm_eval's Hugging Face model.
DEFAULT_MAX_TOKENS = 256
# What other models' settings are called, with the values that change nothing.
NEUTRAL_SETTINGS = {
    "num_beams": (1, None),
    "num_beam_groups": (1, None),
    "num_return_sequences": (1, None),
    "early_stopping": (False, None),
    "length_penalty": (1, None),
    "diversity_penalty": (0, None),
    "repetition_penalty": (1, None),
    "no_repeat_ngram_size": (0, None),
    "typical_p": (1, None),
    "min_length": (0, None),
    "use_cache": (True, False, None),
}
IGNORED_SETTINGS = ("batch_size", "max_batch_size", "device")


@registry.register_model("gptjax")
class GptJaxLM(model.TemplateLM):
    """The model interface of lm_eval. A text follows the token that texts start with (end-of-text,
    or GPT-1's newline), as does an empty context.

    pretrained: a run, or a folder of weights; settings: fields of its config. Raises ValueError
    for weights that cannot be read, and without `pretrained`.
    """

    def __init__(self, pretrained: str = "", **settings: Any):
        super().__init__()
        if not pretrained:
            raise ValueError(
                "model_args names no model: give pretrained=DIR, a run of gptjax or a folder of "
                "weights"
            )
        assignments = [
            f"{path}={value}" for path, value in settings.items() if path not in IGNORED_SETTINGS
        ]
        loaded = open_model.open_model(pretrained, assignments)
        self._tokenizer, self.sharding, self.n_ctx = (
            loaded.tokenizer,
            loaded.train_step.model.sharding,
            loaded.config.model.n_ctx,
        )
        self.inference_model = loaded.inference_model

    @property
    def eot_token_id(self) -> int:
        """The token that precedes a text."""
        return self._tokenizer.start_of_text

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in lm_eval's cache."""
        return f"gptjax-{self._tokenizer.digest}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs
    ) -> list[int]:
        """Encodes a text."""
        return self._tokenizer.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encodes a context and its continuation. Where a token spans the boundary, lm_eval's own
        method would score a different text, or none (its pull request 4055).
        """
        ((before, after),) = prompts.encode_pairs(
            self._tokenizer, [(context, continuation)], parse.quote(context[-30:])
        )
        return list(before), list(after)

    def _loglikelihood_tokens(
        self, requests, disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        """Scores requests of (texts, context tokens, continuation tokens). Long contexts lose their
        beginning, as in the Hugging Face model.
        """
        by_context: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.n_ctx:
                raise ValueError(
                    f"a continuation of {len(continuation):,} tokens is longer than the model's "
                    f"context of {self.n_ctx:,}"
                )
            context = (tuple(context) or (self._tokenizer.start_of_text,))[
                max(0, len(context) + len(continuation) - self.n_ctx - 1) :
            ]
            by_context.setdefault(context, []).append(index)
        scoring_requests = [
            tree_batches.Request(context, tuple(tuple(requests[i][2]) for i in numbers))
            for context, numbers in by_context.items()
        ]
        numbers, results = list(by_context.values()), {}
        with tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm) as progress:
            for request_index, request_results in loglikelihood.loglikelihood(
                self.inference_model, scoring_requests, self.sharding
            ):
                for index, result in zip(numbers[request_index], request_results, strict=True):
                    results[index] = result.log_prob, result.is_greedy
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial(
                            "loglikelihood", requests[index][0], results[index]
                        )
                progress.update(len(request_results))
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Scores whole texts."""
        texts, results = [request.args[0] for request in requests], {}
        tokens = self._tokenizer.encode_batch(texts)
        with tqdm(total=len(texts), desc="whole texts", disable=disable_tqdm) as progress:
            for index, nats in loglikelihood.loglikelihood_rolling(
                self.inference_model, tokens, self.eot_token_id, self.sharding
            ):
                results[index] = nats
                self.cache_hook.add_partial("loglikelihood_rolling", (texts[index],), nats)
                progress.update(1)
        return [results[index] for index in range(len(texts))]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Generates greedily, or samples with temperature, top_k and top_p. Long prompts lose their
        beginning.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        results = {}
        with tqdm(total=len(requests), desc="writing", disable=disable_tqdm) as progress:
            for numbers in groups.values():
                max_tokens, stops, sampling_params = _parse_generation_settings(
                    requests[numbers[0]].args[1]
                )
                stops = [stop for stop in stops if self._can_write(stop)]
                if not 0 < max_tokens < self.n_ctx:
                    raise ValueError(
                        f"max_gen_toks={max_tokens} leaves no room for a prompt in a context of "
                        f"{self.n_ctx}: give fewer"
                    )
                prompts = [
                    build.encode_prompt(self._tokenizer, requests[i].args[0])[
                        -(self.n_ctx - max_tokens) :
                    ]
                    for i in numbers
                ]
                key = sampling.random_key(0)
                for i, new in generation.sample_until(
                    self.inference_model,
                    prompts,
                    max_tokens,
                    sampling_params,
                    stops,
                    self._tokenizer,
                    key,
                ):
                    results[numbers[i]] = new
                    self.cache_hook.add_partial("generate_until", requests[numbers[i]].args, new)
                    progress.update(1)
        return [results[index] for index in range(len(requests))]

    def _can_write(self, stop: str) -> bool:
        """Whether the tokenizer can write a stop string; if not, it is ignored with a warning."""
        try:
            return bool(streaming.normalize_stops(self._tokenizer, [stop]))
        except ValueError as error:
            logging.getLogger(__name__).warning(str(error))
            return False


def _parse_generation_settings(
    settings: dict[str, Any],
) -> tuple[int, list[str], sampling.SamplingParams]:
    """Returns (maximum tokens, stop strings, sampling parameters) of a task's gen_kwargs. Raises
    ValueError for unknown settings.
    """
    remaining: dict[str, Any] = dict(utils.normalize_gen_kwargs(settings, DEFAULT_MAX_TOKENS))
    max_tokens, until = (
        remaining.pop("max_gen_toks"),
        [stop for stop in remaining.pop("until", None) or [] if stop],
    )
    do_sample, temperature = remaining.pop("do_sample"), remaining.pop("temperature", 1.0)
    top_k, top_p = remaining.pop("top_k", None), remaining.pop("top_p", None)
    if unknown := [
        f"{name}={parse.quote(value)}"
        for name, value in remaining.items()
        if name not in NEUTRAL_SETTINGS or value not in NEUTRAL_SETTINGS[name]
    ]:
        raise ValueError(
            f"generation_kwargs {', '.join(unknown)}: gptjax knows until, max_gen_toks, do_sample, "
            "temperature, top_k and top_p"
        )
    top_k = None if top_k in (0, -1) else top_k  # transformers' and vLLM's words for all tokens
    return (
        max_tokens,
        until,
        sampling.SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
        if do_sample
        else sampling.SamplingParams(temperature=0),
    )


def main(arguments: list[str]) -> None:
    """Runs lm_eval's command line."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    cli.run(main)
