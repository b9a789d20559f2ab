"""From an item to what the model reads: a description, demonstrations drawn for that item, the
item; as many as fit. GPT-3 section 2.4.

Chosen where the paper is silent: the demonstrations of a smaller K are the first of those of a
larger one; where they do not fit, the last drawn go; a text begins with end-of-text only if it
is empty otherwise, as in lm-evaluation-harness."""

import dataclasses
import random
from collections.abc import Sequence

from gptjax.config import evaluation, parse
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals.task import Item

Pair = tuple[
    tuple[int, ...], tuple[int, ...]
]  # tokens of a context, tokens of a completion after it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """An item as it is put. contexts: with description and demonstrations before them.
    demonstration_ids: in their order.
    context_tokens and completion_tokens: a pair for each completion; of a task that writes, one
    context and no completion.
    n_cut: tokens of the contexts' begin (of one with a hint, of what stands before the hint the
    end) that have no room, even without demonstrations. baseline_pairs: the same completions where
    the item is not there, for methods that compare with that: the pairs of each such context."""

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
    """At most `shots` demonstrations from `pool`, without repetition: never the item itself, under
    this id or another, nor another of its group, nor one whose answer is not known, nor two that
    are alike. Fewer where the pool has no more. same_for_all: the same for all items (but for
    those that are like an item among them)."""
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
    """An item and its demonstrations so far, kept so that the next one is compared with all of
    them at once."""

    def __init__(self, item: Item):
        contexts, completions, text = item.content_key
        self._groups = {item.group or item.id}
        self._completions = {contexts: [completions]}  # of all that have these contexts
        self._texts = (text,) if text else ()

    def add(self, other: Item) -> bool:
        """Add a demonstration, unless it would tell the answer of one of these (then False): it is
        the same item or of the same group; or asks the same under another id: the same contexts,
        followed by a text of any kind or, where there is a choice, by one of the same; or it
        begins with the whole of one, as later questions about a story do."""
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
    """The item's contexts after the description and these demonstrations."""
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
    """The item after as many of the demonstrations as a text of n_ctx tokens has room for.
    ValueError for a completion without tokens, or with more than the context has, and for a
    right one that has the tokens of a wrong one."""
    if isinstance(protocol.method, evaluation.Windows):  # it is read in parts
        return _build_prompt(item, [], protocol, tokenizer)[0]
    limit = n_ctx + (
        0 if isinstance(protocol.method, evaluation.GenerationMethod) else 1
    )  # the last token of a completion is not read
    k = len(candidates)
    prompt, length = _build_prompt(item, candidates, protocol, tokenizer)
    if length > limit and k:  # by a guess, and then one by one: encoding is what takes time
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
    """Without the contexts' begin: of all as many tokens, so that they still tell of the same. Of
    an item with a hint, without the end of what stands before it."""
    contexts = prompt.context_tokens
    if isinstance(protocol.method, evaluation.GenerationMethod):
        n_free = limit - protocol.method.n_tokens
    else:
        n_free = limit - max(map(len, prompt.completion_tokens))
    if n_free < 1:
        raise ValueError(
            f"item {prompt.item.id}: a completion leaves no room in the model's context for the "
            "item itself; use a model with a larger one"
        )
    n_cut = max(map(len, contexts)) - n_free
    hint = prompt.item.facts["hint"] if "hint" in prompt.item.facts else ""
    if hint:
        last = tokenizer.encode(hint)[-n_free:]
        leads = (
            tokenizer.encode(context.removesuffix(hint))[: n_free - len(last)]
            for context in prompt.contexts
        )
        return dataclasses.replace(
            prompt, context_tokens=tuple((*lead, *last) for lead in leads), n_cut=n_cut
        )
    return dataclasses.replace(
        prompt,
        context_tokens=tuple(tokens[min(n_cut, len(tokens) - 1) :] for tokens in contexts),
        n_cut=n_cut,
    )


def _build_prompt(
    item: Item, demonstrations: Sequence[Item], protocol: evaluation.Protocol, tokenizer: Tokenizer
) -> tuple[Prompt, int]:
    """The prompt, and the tokens of its longest text."""
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
            f"item {item.id}: a right completion and a wrong one have the same tokens in this "
            "tokenizer: they cannot be told apart"
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
    """For each (context, completion) its (tokens of the context, tokens of the completion after
    it), which together decode to what the tokens of both texts do: never another text.

    Spaces at the context's end are the completion's, as in lm-evaluation-harness. Where the
    context's tokens begin those of both, the completion's are the rest. Where a token spans the
    join ("dog" and "s" are "dogs"), the completion is encoded apart. Where that gives another text
    (GPT-1 ends every word; some SentencePiece models begin every text with a space), all
    completions of the context are told from the last token on that they share with it: what is
    compared then is the context's last word with the completion. ValueError for a completion
    without tokens."""
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
        start_ids = context_ids or (tokenizer.start_of_text,)
        encoded |= {
            (context, completion): (start_ids, ids)
            for completion, ids in zip(completions, completion_ids, strict=True)
        }
    return [encoded[pair] for pair in pairs]


def _encode_completion(
    tokenizer: Tokenizer, context_ids: tuple[int, ...], full_ids: tuple[int, ...], completion: str
) -> tuple[int, ...]:
    """The completion's tokens after those of its context; none if they would make another text
    than `full_ids`."""
    if full_ids[: len(context_ids)] == context_ids:
        return full_ids[len(context_ids) :]
    own_ids = tuple(tokenizer.encode(completion))
    return (
        own_ids if tokenizer.decode([*context_ids, *own_ids]) == tokenizer.decode(full_ids) else ()
    )


def _n_shared_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with; fewer than either has, so that something is left to tell."""
    limit = min(len(a), len(b) - 1)
    return next((n for n in range(limit) if a[n] != b[n]), limit)


def _encode_context(tokenizer: Tokenizer, context: str) -> tuple[int, ...]:
    """The tokens of what is to be continued. GPT-1's, which leave line ends at a text's end out,
    get theirs, or the model would write it first, where most methods stop."""
    tokens = tuple(tokenizer.encode(context)) or (tokenizer.start_of_text,)
    drops_newline = (
        context.rstrip(" ").endswith("\n")
        and tokenizer.start_of_text in tokenizer.encode("a\na")
        and tokens[-1] != tokenizer.start_of_text
    )
    return (*tokens, tokenizer.start_of_text) if drops_newline else tokens
