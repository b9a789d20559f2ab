"""A language model in Python: generate text, score it, and look inside. `gptjax.load` opens one.

The examples below run in the tests, on a model that was trained for a moment."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import arguments
from gptjax.arguments import GenerateOptions
from gptjax.config import count, evaluation, parse
from gptjax.data.tokenizers import chat_template
from gptjax.evals import generation, loglikelihood, perplexity, prompts, tree_batches
from gptjax.evals.loglikelihood import LogLikelihood
from gptjax.evals.perplexity import TextScore
from gptjax.generate import conversation, decode, sampling, streaming
from gptjax.model import activations, inference
from gptjax.weights import open_model

Ids = Sequence[int] | np.ndarray | jax.Array
Prompt = str | Ids
Tokens = Ids | Sequence[Sequence[int]]
MAX_NEW_TOKENS, MAX_SEED = 1_000_000, 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel(open_model.LoadedModel):
    """A trained model, as `gptjax.load` returns it.

    config: the whole gptjax.config.schema.Config, whose `config.model` has the sizes. tokenizer:
    has encode(text) -> ids, decode(ids) -> text, n_vocab, end_of_text. params: the parameters as a
    pytree of float32 arrays, on `mesh`; layers are stacked along the first dimension, so
    params["periods"]["block_0"]["mlp"]["up"]["weight_DF"] has one matrix for each period of layers.
    For a model with other parameters: dataclasses.replace(model, params=changed).

    >>> model = gptjax.load("runs/smoke")
    >>> model
    LanguageModel(smoke, 34,720 parameters, a run of gptjax, step 2)
    >>> model.config.model.n_layers, model.params["token_VD"].shape
    (2, (384, 32))
    >>> model.tokenizer.encode("def")
    [100, 101, 102]
    """

    def __repr__(self) -> str:
        n = count.parameters(self.config.model)
        source = ", ".join(dict.fromkeys((self.kind, self.description)))
        return f"LanguageModel({self.config.name}, {n:,} parameters, {source})"

    # --- text -------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> list[str]: ...

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> Iterator[str]: ...

    @overload
    def generate(
        self, prompt: Sequence[str], *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> Iterator[list[str]]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int = 0,
        stream: bool = False,
        num_beams: int | None = None,
        length_penalty: float = 0.6,
    ) -> Any:
        """What the model writes after a prompt, without the prompt; of a list of prompts a list. A
        prompt is text, or the ids of one.

        max_new_tokens: the most tokens; fewer if end-of-text comes. temperature: 0 is greedy.
        top_k, top_p: sample among the k likeliest tokens, or the likeliest that make up probability
        p; None: among all. stop: end before this string, or any of these. seed: the same seed gives
        the same text after the same prompts in the same order. stream: return an iterator of pieces
        of text as they come (of a list of prompts: a list each time, a piece for each). num_beams:
        do not sample, but search for the likeliest text with a beam of this width, whose scores
        length_penalty (Wu et al., 1609.08144, equation 14) divides.

        Options and defaults are those of python -m gptjax.sample. An empty prompt begins as texts
        do, with end-of-text. Where prompt and text outgrow the model's context, it reads on from
        their last half.

        ValueError for an option out of bounds, a stop that the tokenizer cannot write, and a beam
        search with options of sampling. inference.NonFiniteLogits, a ValueError, where the model
        says NaN.

        >>> model = gptjax.load("runs/smoke")
        >>> text = model.generate("def ", max_new_tokens=20, temperature=0.8)
        >>> pieces = model.generate("def ", max_new_tokens=20, temperature=0.8, stream=True)
        >>> "".join(pieces) == text
        True
        >>> len(model.generate(["def ", "class "], max_new_tokens=5, temperature=0, stop="\\n"))
        2
        """
        ids, is_single = arguments.as_prompts(prompt, self.tokenizer, self.config.model.n_vocab)
        stops = arguments.as_stops(stop)
        arguments.check_int("max_new_tokens", max_new_tokens, 1, MAX_NEW_TOKENS)
        arguments.check_int("seed", seed, 0, MAX_SEED)
        streaming.normalize_stops(self.tokenizer, stops)
        sampling_params = sampling.SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
        key = sampling.random_key(seed)
        if num_beams is not None:
            if stream or sampling_params != sampling.SamplingParams() or seed:
                raise ValueError(
                    f"num_beams={num_beams} searches for the likeliest text and neither samples "
                    "nor streams: leave out temperature, top_k, top_p, seed and stream"
                )
            method = evaluation.Beam(
                width=num_beams, alpha=length_penalty, n_tokens=max_new_tokens, stops=tuple(stops)
            )
            found = dict(
                generation.generate_until(self.inference_model, ids, method, self.tokenizer, key)
            )
            return found[0] if is_single else [found[i] for i in range(len(ids))]
        parts = streaming.stream(
            self.inference_model,
            self.tokenizer,
            ids,
            max_new_tokens,
            sampling_params,
            key,
            stops,
            1 if stream and len(ids) == 1 else decode.STEPS_PER_CALL,
        )
        if stream:
            return (new[0] for new in parts if new[0]) if is_single else parts
        outputs = ["".join(row) for row in zip(*parts, strict=True)]
        return outputs[0] if is_single else outputs

    def apply_chat_template(
        self, messages: chat_template.Messages, *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of a conversation, such as [{"role": "user", "content": "Hello"}], by the model's
        chat template; they end with what stands before an answer if add_generation_prompt.

        They are those of transformers' apply_chat_template, except that a control token which a
        message spells stays text; self.chat_template.render gives the text. ValueError for a model
        without template, a message without role or content, a template that refuses or loops.

        >>> model = gptjax.load("runs/smoke")  # which was trained on text
        >>> model.apply_chat_template([])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: this model has no chat template: it continues text; ...
        """
        ids = self.chat_template.encode(messages, add_generation_prompt)
        return arguments.as_ids(ids, self.config.model.n_vocab).tolist()

    def chat(
        self, messages: str | chat_template.Messages, *, stop: Any = None, **options: Any
    ) -> Any:
        """The model's answer to a conversation, or to a text as a user's only message: `generate`
        after `apply_chat_template`, with its options, up to the control token that ends a turn.

        >>> gptjax.load("runs/smoke").chat("Hello")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: this model has no chat template: ...
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids, end = self.apply_chat_template(messages), self.chat_template.end_of_turn
        stops = [*arguments.as_stops(stop), *([end] if end else [])]
        return self.generate(ids, stop=stops, **options)

    def conversation(
        self,
        system: str | None = None,
        *,
        max_new_tokens: int = 512,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int = 0,
    ) -> conversation.Conversation:
        """A conversation of several turns, between which its KV cache is kept: `reply(message)`
        returns an iterator over the text of an answer.

        system: what stands before all messages; options: those of `generate`. ValueError for a
        model without chat template, or a template that takes no system message.

        >>> gptjax.load("runs/smoke").conversation()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: this model has no chat template: ...
        """
        arguments.check_int("max_new_tokens", max_new_tokens, 1, MAX_NEW_TOKENS)
        arguments.check_int("seed", seed, 0, MAX_SEED)
        params = sampling.SamplingParams(top_p=top_p, top_k=top_k, temperature=temperature)
        stops = arguments.as_stops(stop)
        options = conversation.AnswerOptions(
            max_new_tokens=max_new_tokens, sampling_params=params, stops=stops, seed=seed
        )
        return conversation.Conversation(
            self.chat_template, self.tokenizer, self.inference_model, options, system
        )

    @overload
    def loglikelihood(self, context: str, completion: str) -> LogLikelihood: ...

    @overload
    def loglikelihood(
        self, context: str | Sequence[str], completion: Sequence[str]
    ) -> list[LogLikelihood]: ...

    def loglikelihood(self, context: str | Sequence[str], completion: str | Sequence[str]) -> Any:
        """How likely a completion is after a context; of lists, of each pair; of one context and a
        list of completions, of each completion.

        Returns gptjax.evals.loglikelihood.LogLikelihood: log_prob, the sum over the completion's
        tokens of log p(token | what stands before), in nats; n_tokens, how many they are;
        is_greedy, whether each of them is the likeliest. So lm-evaluation-harness defines its
        request "loglikelihood", and as there spaces at the context's end are counted to the
        completion. An empty context stands for the beginning of a text.

        ValueError for a completion without tokens, lists of other lengths, and a pair that is
        longer than the model's context.

        >>> model = gptjax.load("runs/smoke")
        >>> answer = model.loglikelihood("import", " os")
        >>> answer.log_prob < 0, answer.n_tokens, answer.is_greedy
        (True, 3, False)
        >>> first, second = model.loglikelihood("import", [" os", " the"])
        >>> abs(first.log_prob - answer.log_prob) < 1e-4, second.n_tokens
        (True, 4)
        """
        completions = arguments.as_texts(completion, "completion")
        if isinstance(context, str):
            contexts = [context] * len(completions)
        else:
            contexts = arguments.as_texts(context, "context")
        if len(contexts) != len(completions):
            raise ValueError(
                f"{len(contexts)} contexts and {len(completions)} completions: give as many of "
                "both, or one context"
            )
        requests = []
        for pair in zip(contexts, completions, strict=True):
            ((before, after),) = prompts.encode_pairs(
                self.tokenizer, [pair], parse.quote(pair[0][-30:])
            )
            requests.append(tree_batches.Request(before, (after,)))
        found = dict(
            loglikelihood.loglikelihood(
                self.inference_model, requests, self.train_step.model.sharding
            )
        )
        answers = [found[i][0] for i in range(len(requests))]
        return answers[0] if isinstance(context, str) and isinstance(completion, str) else answers

    @overload
    def score(self, text: str, *, stride: int | None = None) -> TextScore: ...

    @overload
    def score(self, text: Sequence[str], *, stride: int | None = None) -> list[TextScore]: ...

    def score(self, text: str | Sequence[str], *, stride: int | None = None) -> Any:
        """How well the model predicts a whole text: every token once, the first after what texts
        begin with (end-of-text). Of a list of texts a list.

        A text that is longer than the context is read in windows of n_ctx tokens, of which each
        predicts `stride` (default: n_ctx, so that windows do not overlap; a smaller one gives every
        token more context, costs more, and lowers the loss). As python -m gptjax.evaluate --text.

        ValueError for a text without tokens and a stride beyond the context.

        >>> model = gptjax.load("runs/smoke")
        >>> score = model.score("import os\\n")
        >>> score.n_tokens, score.n_bytes, score.log_likelihood < 0 < score.loss
        (10, 10, True)
        """
        texts = arguments.as_texts(text, "text")
        n_ctx = self.config.model.n_ctx
        if stride is not None:
            arguments.check_int("stride", stride, 1, n_ctx)
        ids = [self.tokenizer.encode(item) for item in texts]
        for item, tokens in zip(texts, ids, strict=True):
            if not tokens:
                raise ValueError(f"the text {parse.quote(item)} has no tokens: give at least one")
        found = dict(
            loglikelihood.loglikelihood_rolling(
                self.inference_model,
                ids,
                self.tokenizer.start_of_text,
                self.train_step.model.sharding,
                stride,
            )
        )
        scores = [
            perplexity.score_text(found[i], len(ids[i]), item) for i, item in enumerate(texts)
        ]
        return scores[0] if isinstance(text, str) else scores

    # --- inside -----------------------------------------------------------------------------------

    def logits(self, tokens: Tokens) -> jax.Array:
        """float32 (T, n_vocab): the logits of the token after each of T tokens; of (B, T) tokens
        (B, T, n_vocab). Each row's softmax is the distribution that `generate` samples from at
        temperature 1.

        tokens: ids, as model.tokenizer.encode gives them: at most n_ctx, of any integer type.
        ValueError for others, as for all methods that take tokens.

        >>> model = gptjax.load("runs/smoke")
        >>> tokens = model.tokenizer.encode("import os")
        >>> model.logits(tokens).shape
        (9, 257)
        """
        tokens_BT = self._check_tokens(tokens)
        y_BTV = _logits(self.inference_model, self._pad(tokens_BT))
        y_BTV = y_BTV[:, : tokens_BT.shape[1], : self.config.model.n_vocab]
        return y_BTV if np.ndim(tokens) == 2 else y_BTV[0]

    def hidden_states(self, tokens: Tokens) -> jax.Array:
        """(n_layers + 1, T, d_model): what enters the first layer, then what each layer leaves; of
        (B, T) tokens (n_layers + 1, B, T, d_model). In the type of computation.

        The order is that of transformers' output_hidden_states: [0] are the embeddings, and the
        last one has passed the final layer norm (of GPT-2 and GPT-3; GPT-1 has none), so that
        hidden_states[-1] @ token_table.T are the logits.

        >>> model = gptjax.load("runs/smoke")
        >>> model.hidden_states([1, 2, 3]).shape
        (3, 3, 32)
        """
        tokens_BT = self._check_tokens(tokens)
        states = _hidden_states(self.inference_model, self._pad(tokens_BT))
        states = states[:, :, : tokens_BT.shape[1]]
        return states if np.ndim(tokens) == 2 else states[:, 0]

    def attention_weights(self, tokens: Tokens, layer: int) -> jax.Array:
        """float32 (n_heads, T, T): how much each head of a layer (from 0; -1 is the last) weighs
        key [.., .., s] for query [.., t, ..]; of (B, T) tokens (B, n_heads, T, T).

        Each row sums to 1 and is exactly 0 outside the layer's attention pattern. They are computed
        by the reference implementation (gptjax/model/attention/reference.py) from the layer's own
        queries and keys; the kernels that the model runs with keep none. ValueError for a layer
        that there is not.

        >>> model = gptjax.load("runs/smoke")
        >>> weights = model.attention_weights([1, 2, 3], layer=0)
        >>> weights.shape, weights[0, 0].tolist()
        ((2, 3, 3), [1.0, 0.0, 0.0])
        """
        n = self.config.model.n_layers
        arguments.check_int("layer", layer, -n, n - 1)
        tokens_BT = self._check_tokens(tokens)
        length = tokens_BT.shape[1]
        layer, lm = layer % n, self.inference_model
        x_BTD = _hidden_states(lm, self._pad(tokens_BT))[layer]  # one program for all layers
        weights = _attention_weights(lm, x_BTD, layer)
        weights = weights[:, :, :length, :length]
        return weights if np.ndim(tokens) == 2 else weights[0]

    def _check_tokens(self, tokens: Tokens) -> np.ndarray:
        """int32 (B, T) of what a user gave. ValueError if they are none of this model's."""
        return arguments.as_rows(tokens, self.config.model.n_vocab, self.config.model.n_ctx)

    def _pad(self, tokens_BT: np.ndarray) -> np.ndarray:
        """The tokens in rows of a length of which few are compiled: what comes after a token
        changes nothing of it."""
        length = decode.bucket_length(tokens_BT.shape[1], self.config.model.n_ctx)
        return np.pad(tokens_BT, ((0, 0), (0, length - tokens_BT.shape[1])))


@jax.jit
def _logits(lm: inference.InferenceModel, tokens_BT: jax.Array) -> jax.Array:
    return inference.logits(lm, activations.hidden_states(lm, tokens_BT)[-1])


@jax.jit
def _hidden_states(lm: inference.InferenceModel, tokens_BT: jax.Array) -> jax.Array:
    return jnp.stack(activations.hidden_states(lm, tokens_BT))


_attention_weights = jax.jit(activations.attention_weights, static_argnames="layer")
