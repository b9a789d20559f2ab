"""Prompts: a description, demonstrations sampled for the item, and the item, as many as fit (GPT-3
section 2.4).

Chosen where the paper is silent: the demonstrations for a smaller K are the first of those for a
larger one; if they do not fit, the last sampled are dropped; a text starts with end-of-text only if
it would be empty otherwise, as in lm-evaluation-harness; begin-of-text stands before each where the
model's tokenizer puts it there (Llama 3, Gemma).
"""

import dataclasses
import random
from collections.abc import Sequence

from gptjax.config import evaluation, parse
from gptjax.data.tokenizers import build
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals.task import Item

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a context, of a completion after it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """The prompt of an item.

    contexts: with description and demonstrations. demonstration_ids: in their order. context_tokens
    and completion_tokens: a pair per completion; for generation tasks, one context and no
    completion. n_cut: tokens removed from the beginning of the contexts that do not fit even
    without demonstrations (with a hint, from the end of the text before the hint). baseline_pairs:
    for methods that compare with contexts without the item, the pairs of each such context.
    """

    item: Item
    contexts: tuple[str, ...]
    demonstration_ids: tuple[str, ...]
    context_tokens: tuple[tuple[int, ...], ...]
    completion_tokens: tuple[tuple[int, ...], ...]
    n_cut: int = 0
    baseline_pairs: tuple[list[Pair], ...] = ()


def sample_fewshot(
    task: str, item: Item, pool: Sequence[Item], shots: int, seed: int, same_for_all: bool
) -> list[Item]:
    """Samples up to `shots` demonstrations from `pool` without replacement; fewer if the pool has
    no more.

    Excluded are the item itself, under any id, others of its group, items whose answer is unknown,
    and duplicates. same_for_all: use the same demonstrations for all items (except those similar to
    an item among them).
    """
    rng = random.Random(f"{seed} {task}" if same_for_all else f"{seed} {task} {item.id}")
    demonstrations: list[Item] = []
    tried: set[int] = set()
    exclusion = _Exclusion(item)
    while len(demonstrations) < shots and len(tried) < len(pool):
        number = rng.randrange(len(pool))
        if number in tried:
            continue
        tried.add(number)
        other = pool[number]
        if (other.right or other.demonstration) and exclusion.add(other):
            demonstrations.append(other)
    return demonstrations


class _Exclusion:
    """An item and its demonstrations so far, indexed so that the next candidate is compared with
    all of them at once.
    """

    def __init__(self, item: Item):
        contexts, completions, text = item.content_key
        self._groups = {item.group or item.id}
        self._completions = {contexts: [completions]}  # of all items with these contexts
        self._texts = (text,) if text else ()

    def add(self, other: Item) -> bool:
        """Adds a demonstration and returns True, unless it would reveal the answer to the item or
        repeat one.

        It would if it is the same item or in the same group; if it has the same contexts under
        another id, followed by any text or, for choices, by a shared completion; or if it starts
        with the whole text of one of them, as later questions about a story do.
        """
        contexts, completions, text = other.content_key
        group = other.group or other.id
        if group in self._groups or text.startswith(self._texts):
            return False
        if contexts not in self._completions:
            self._completions[contexts] = [completions]
        elif any(
            completions & those or (len(those) < 2 and any(contexts))
            for those in self._completions[contexts]
        ):
            return False
        else:
            self._completions[contexts].append(completions)
        self._groups.add(group)
        self._texts += (text,) if text else ()
        return True


def render(
    item: Item, demonstrations: Sequence[Item], protocol: evaluation.Protocol
) -> tuple[str, ...]:
    """Returns the item's contexts, each after the description and these demonstrations."""
    description = (
        [protocol.description]
        if protocol.description and len(demonstrations) >= protocol.description_min_shots
        else []
    )
    prefix = "".join(
        part + protocol.separator
        for part in description
        + [demonstration.as_demonstration for demonstration in demonstrations]
    )
    return tuple(prefix + context for context in item.contexts)


def fit_context(
    item: Item,
    candidates: Sequence[Item],
    protocol: evaluation.Protocol,
    tokenizer: Tokenizer,
    n_ctx: int,
) -> Prompt:
    """Returns the prompt with as many of the demonstrations as fit in n_ctx tokens.

    Raises ValueError for a completion that has no tokens or exceeds the context, and for a correct
    one with the same tokens as a wrong one.
    """
    if isinstance(protocol.method, evaluation.Windows):  # scored in parts, so any length fits
        return _build_prompt(item, [], protocol, tokenizer)[0]
    # The last token of a completion is never fed to the model.
    limit = n_ctx + (0 if isinstance(protocol.method, evaluation.GenerationMethod) else 1)
    k = len(candidates)
    prompt, length = _build_prompt(item, candidates, protocol, tokenizer)
    if length > limit and k:  # estimate, then adjust one by one: encoding takes most of the time
        k = min(k - 1, k * limit // length)
        prompt, length = _build_prompt(item, candidates[:k], protocol, tokenizer)
        while length > limit and k:
            k -= 1
            prompt, length = _build_prompt(item, candidates[:k], protocol, tokenizer)
        while length <= limit and k + 1 < len(candidates):
            more, n = _build_prompt(item, candidates[: k + 1], protocol, tokenizer)
            if n > limit:
                break
            k, prompt, length = k + 1, more, n
    return prompt if length <= limit else _truncate(prompt, protocol, tokenizer, limit)


def _truncate(
    prompt: Prompt, protocol: evaluation.Protocol, tokenizer: Tokenizer, limit: int
) -> Prompt:
    """Removes the beginning of the contexts, the same number of tokens from each so that they stay
    comparable; for an item with a hint, the end of the text before the hint.
    """
    contexts, prefix = prompt.context_tokens, tokenizer.text_prefix  # which stays
    if isinstance(protocol.method, evaluation.GenerationMethod):
        n_free = limit - protocol.method.n_tokens
    else:
        n_free = limit - max(map(len, prompt.completion_tokens))
    n_free -= len(prefix)
    if n_free < 1:
        raise ValueError(
            f"item {prompt.item.id}: a completion leaves no space in the model's context for the "
            "item itself; use a model with a larger context"
        )
    texts = [tokens[len(prefix) :] for tokens in contexts]
    n_cut = max(map(len, texts)) - n_free
    hint = prompt.item.facts["hint"] if "hint" in prompt.item.facts else ""
    if hint:
        last = tokenizer.encode(hint)[-n_free:]
        leads = (
            tokenizer.encode(context.removesuffix(hint))[: n_free - len(last)]
            for context in prompt.contexts
        )
        return dataclasses.replace(
            prompt, context_tokens=tuple((*prefix, *lead, *last) for lead in leads), n_cut=n_cut
        )
    return dataclasses.replace(
        prompt,
        context_tokens=tuple(
            (*prefix, *text[max(0, min(n_cut, len(text) - 1)) :]) for text in texts
        ),
        n_cut=n_cut,
    )


def _build_prompt(
    item: Item, demonstrations: Sequence[Item], protocol: evaluation.Protocol, tokenizer: Tokenizer
) -> tuple[Prompt, int]:
    """Returns the prompt and the number of tokens of its longest text."""
    contexts = render(item, demonstrations, protocol)
    ids = tuple(demonstration.id for demonstration in demonstrations)
    if isinstance(protocol.method, evaluation.GenerationMethod):
        tokens = tuple(_encode_context(tokenizer, context) for context in contexts)
        prompt = Prompt(
            item=item,
            contexts=contexts,
            demonstration_ids=ids,
            context_tokens=tokens,
            completion_tokens=(),
        )
        return prompt, len(tokens[0]) + protocol.method.n_tokens
    pairs = encode_pairs(tokenizer, dataclasses.replace(item, contexts=contexts).pairs, item.id)
    right = {pair for number, pair in enumerate(pairs) if number in item.right}
    if right & {pair for number, pair in enumerate(pairs) if number not in item.right}:
        raise ValueError(
            f"item {item.id}: a correct completion and a wrong one have the same tokens in this "
            "tokenizer: they cannot be distinguished"
        )
    prompt = Prompt(
        item=item,
        contexts=contexts,
        demonstration_ids=ids,
        context_tokens=tuple(context for context, _ in pairs),
        completion_tokens=tuple(completion for _, completion in pairs),
    )
    return prompt, max(len(context) + len(completion) for context, completion in pairs)


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], item_id: str
) -> list[Pair]:
    """Encodes each (context, completion) as tokens that together decode to the same text as the two
    joined.

    Spaces at the end of the context belong to the completion, as in lm-evaluation-harness. If the
    context's tokens are a prefix of those of the joined text, the completion's are the rest. If a
    token spans the boundary ("dog" and "s" make "dogs"), the completion is encoded separately. If
    that changes the text (GPT-1 ends every word; some SentencePiece models start every text with a
    space), the pairs of the context are split after the last token that all joined texts share with
    it, so the context's last word is compared together with the completion. Raises ValueError for a
    completion without tokens.
    """
    encoded: dict[tuple[str, str], Pair] = {}
    for context in dict.fromkeys(context for context, _ in pairs):
        stripped = context.rstrip()
        context_ids, completions = (
            tuple(tokenizer.encode(stripped)),
            [completion for other, completion in pairs if other == context],
        )
        all_full_ids = [tuple(tokenizer.encode(context + completion)) for completion in completions]
        for completion, full_ids in zip(completions, all_full_ids, strict=True):
            if full_ids == context_ids or not full_ids:
                raise ValueError(
                    f"item {item_id}: the completion {parse.quote(completion)} has no tokens in "
                    "this tokenizer: give it other text"
                )
        completion_ids = [
            _encode_completion(
                tokenizer, context_ids, full_ids, (context + completion)[len(stripped) :]
            )
            for completion, full_ids in zip(completions, all_full_ids, strict=True)
        ]
        if not all(completion_ids):
            n_shared = min(_n_shared_tokens(context_ids, full_ids) for full_ids in all_full_ids)
            context_ids, completion_ids = (
                context_ids[:n_shared],
                [full_ids[n_shared:] for full_ids in all_full_ids],
            )
        start_ids = (*tokenizer.text_prefix, *context_ids) or (tokenizer.start_of_text,)
        encoded |= {
            (context, completion): (start_ids, ids)
            for completion, ids in zip(completions, completion_ids, strict=True)
        }
    return [encoded[pair] for pair in pairs]


def _encode_completion(
    tokenizer: Tokenizer, context_ids: tuple[int, ...], full_ids: tuple[int, ...], completion: str
) -> tuple[int, ...]:
    """Tokens of the completion after those of its context; () if they would decode to another text
    than `full_ids`.
    """
    if full_ids[: len(context_ids)] == context_ids:
        return full_ids[len(context_ids) :]
    own_ids = tuple(tokenizer.encode(completion))
    return (
        own_ids if tokenizer.decode([*context_ids, *own_ids]) == tokenizer.decode(full_ids) else ()
    )


def _n_shared_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix, at most len(b) - 1, so that a token is left to compare."""
    limit = min(len(a), len(b) - 1)
    return next((n for n in range(limit) if a[n] != b[n]), limit)


def _encode_context(tokenizer: Tokenizer, context: str) -> tuple[int, ...]:
    """Tokens of a context to be continued. GPT-1's tokenizer drops newlines at the end of a text;
    they are added back, because otherwise the model would generate one first, where most methods
    stop.
    """
    tokens = tuple(build.encode_prompt(tokenizer, context))
    drops_newline = (
        context.rstrip(" ").endswith("\n")
        and tokenizer.start_of_text in tokenizer.encode("a\na")
        and tokens[-1] != tokenizer.start_of_text
    )
    return (*tokens, tokenizer.start_of_text) if drops_newline else tokens
