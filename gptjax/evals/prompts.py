"""From an item to what the model reads: a description, demonstrations drawn for that item, the item; as many as fit. GPT-3 section 2.4.

Chosen where the paper is silent: the demonstrations of a smaller K are the first of those of a larger one; where they do not fit, the last
drawn go; a text begins with end-of-text only if it is empty otherwise, as in lm-evaluation-harness."""

import dataclasses
import random
from collections.abc import Sequence

from gptjax.config import evaluation, parse
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals.task import Item

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a context, tokens of a completion after it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """An item as it is put. contexts: with description and demonstrations before them; shown: ids of the demonstrations, in order.
    context_tokens and completion_tokens: a pair for each completion; of a task that writes, one context and no completion.
    cut: tokens of the contexts' begin (of one with a hint, of what stands before the hint the end) that have no room, even without
    demonstrations. without: the same completions where the item is not there, for methods that compare with that: the pairs of each such
    context."""

    item: Item
    contexts: tuple[str, ...]
    shown: tuple[str, ...]
    context_tokens: tuple[tuple[int, ...], ...]
    completion_tokens: tuple[tuple[int, ...], ...]
    cut: int = 0
    without: tuple[list[Pair], ...] = ()


def drawn(task: str, item: Item, pool: Sequence[Item], shots: int, seed: int, fixed: bool) -> list[Item]:
    """At most `shots` demonstrations from `pool`, without repetition: never the item itself, under this id or another, nor another of its
    group, nor one whose answer is not known, nor two that are alike. Fewer where the pool has no more. fixed: the same for all items (but
    for those that are like an item among them)."""
    draw = random.Random(f"{seed} {task}" if fixed else f"{seed} {task} {item.id}")
    found: list[Item] = []
    taken: set[int] = set()
    exclusion = _Exclusion(item)
    while len(found) < shots and len(taken) < len(pool):
        number = draw.randrange(len(pool))
        if number in taken:
            continue
        taken.add(number)
        other = pool[number]
        if (other.right or other.demonstration) and exclusion.add(other):
            found.append(other)
    return found


class _Exclusion:
    """An item and its demonstrations so far, kept so that the next one is compared with all of them at once."""

    def __init__(self, item: Item):
        contexts, completions, text = item.content_key
        self._groups = {item.group or item.id}
        self._completions = {contexts: [completions]}  # of all that have these contexts
        self._texts = (text,) if text else ()

    def add(self, other: Item) -> bool:
        """Add a demonstration, unless it would tell the answer of one of these (then False): it is the same item or of the same group; or
        asks the same under another id: the same contexts, followed by a text of any kind or, where there is a choice, by one of the same;
        or it begins with the whole of one, as later questions about a story do."""
        contexts, completions, text = other.content_key
        group = other.group or other.id
        if group in self._groups or text.startswith(self._texts):
            return False
        if contexts not in self._completions:
            self._completions[contexts] = [completions]
        elif any(completions & those or (len(those) < 2 and any(contexts)) for those in self._completions[contexts]):
            return False
        else:
            self._completions[contexts].append(completions)
        self._groups.add(group)
        self._texts += (text,) if text else ()
        return True


def put(item: Item, shown: Sequence[Item], how: evaluation.Protocol) -> tuple[str, ...]:
    """The item's contexts after the description and these demonstrations."""
    described = [how.description] if how.description and len(shown) >= how.described_from else []
    before = "".join(part + how.separator for part in described + [one.shown for one in shown])
    return tuple(before + context for context in item.contexts)


def fitted(item: Item, candidates: Sequence[Item], how: evaluation.Protocol, text: Tokenizer, n_ctx: int) -> Prompt:
    """The item after as many of the demonstrations as a text of n_ctx tokens has room for. ValueError for a completion without tokens, or
    with more than the context has, and for a right one that has the tokens of a wrong one."""
    if isinstance(how.method, evaluation.Windows):  # it is read in parts
        return _prompt(item, [], how, text)[0]
    limit = n_ctx + (0 if isinstance(how.method, evaluation.Writing) else 1)  # the last token of a completion is not read
    k = len(candidates)
    prompt, length = _prompt(item, candidates, how, text)
    if length > limit and k:  # by a guess, and then one by one: encoding is what takes time
        k = min(k - 1, k * limit // length)
        prompt, length = _prompt(item, candidates[:k], how, text)
        while length > limit and k:
            k -= 1
            prompt, length = _prompt(item, candidates[:k], how, text)
        while length <= limit and k + 1 < len(candidates):
            more, n = _prompt(item, candidates[: k + 1], how, text)
            if n > limit:
                break
            k, prompt, length = k + 1, more, n
    return prompt if length <= limit else _cut(prompt, how, text, limit)


def _cut(prompt: Prompt, how: evaluation.Protocol, text: Tokenizer, limit: int) -> Prompt:
    """Without the contexts' begin: of all as many tokens, so that they still tell of the same. Of an item with a hint, without the end of
    what stands before it."""
    contexts = prompt.context_tokens
    if isinstance(how.method, evaluation.Writing):
        room = limit - how.method.n_tokens
    else:
        room = limit - max(map(len, prompt.completion_tokens))
    if room < 1:
        raise ValueError(
            f"item {prompt.item.id}: a completion leaves no room in the model's context for the item itself; use a model with a larger one"
        )
    cut = max(map(len, contexts)) - room
    hint = prompt.item.facts["hint"] if "hint" in prompt.item.facts else ""
    if hint:
        last = text.encode(hint)[-room:]
        leads = (text.encode(context.removesuffix(hint))[: room - len(last)] for context in prompt.contexts)
        return dataclasses.replace(prompt, context_tokens=tuple((*lead, *last) for lead in leads), cut=cut)
    return dataclasses.replace(prompt, context_tokens=tuple(tokens[min(cut, len(tokens) - 1) :] for tokens in contexts), cut=cut)


def _prompt(item: Item, shown: Sequence[Item], how: evaluation.Protocol, text: Tokenizer) -> tuple[Prompt, int]:
    """The prompt, and the tokens of its longest text."""
    contexts = put(item, shown, how)
    ids = tuple(one.id for one in shown)
    if isinstance(how.method, evaluation.Writing):
        tokens = tuple(_begun(text, context) for context in contexts)
        prompt = Prompt(item=item, contexts=contexts, shown=ids, context_tokens=tokens, completion_tokens=())
        return prompt, len(tokens[0]) + how.method.n_tokens
    pairs = paired(text, dataclasses.replace(item, contexts=contexts).pairs, item.id)
    right = {pair for number, pair in enumerate(pairs) if number in item.right}
    if right & {pair for number, pair in enumerate(pairs) if number not in item.right}:
        raise ValueError(
            f"item {item.id}: a right completion and a wrong one have the same tokens in this tokenizer: they cannot be told apart"
        )
    prompt = Prompt(
        item=item,
        contexts=contexts,
        shown=ids,
        context_tokens=tuple(context for context, _ in pairs),
        completion_tokens=tuple(completion for _, completion in pairs),
    )
    return prompt, max(len(context) + len(completion) for context, completion in pairs)


def paired(text: Tokenizer, pairs: Sequence[tuple[str, str]], item: str) -> list[Pair]:
    """For each (context, completion) its (tokens of the context, tokens of the completion after it), which together decode to what the
    tokens of both texts do: never another text.

    Spaces at the context's end are the completion's, as in lm-evaluation-harness. Where the context's tokens begin those of both, the
    completion's are the rest. Where a token spans the join ("dog" and "s" are "dogs"), the completion is encoded apart. Where that gives
    another text (GPT-1 ends every word; some SentencePiece models begin every text with a space), all completions of the context are
    told from the last token on that they share with it: what is compared then is the context's last word with the completion. ValueError
    for a completion without tokens."""
    found: dict[tuple[str, str], Pair] = {}
    for context in dict.fromkeys(context for context, _ in pairs):
        stripped = context.rstrip()
        before, completions = tuple(text.encode(stripped)), [completion for other, completion in pairs if other == context]
        wholes = [tuple(text.encode(context + completion)) for completion in completions]
        for completion, whole in zip(completions, wholes, strict=True):
            if whole == before or not whole:
                raise ValueError(
                    f"item {item}: the completion {parse.quote(completion)} has no tokens in this tokenizer: give it other text"
                )
        afters = [
            _after(text, before, whole, (context + completion)[len(stripped) :])
            for completion, whole in zip(completions, wholes, strict=True)
        ]
        if not all(afters):
            shared = min(_shared(before, whole) for whole in wholes)
            before, afters = before[:shared], [whole[shared:] for whole in wholes]
        begun = before or (text.begin,)
        found |= {(context, completion): (begun, after) for completion, after in zip(completions, afters, strict=True)}
    return [found[pair] for pair in pairs]


def _after(text: Tokenizer, before: tuple[int, ...], whole: tuple[int, ...], completion: str) -> tuple[int, ...]:
    """The completion's tokens after those of its context; none if they would make another text than `whole`."""
    if whole[: len(before)] == before:
        return whole[len(before) :]
    apart = tuple(text.encode(completion))
    return apart if text.decode([*before, *apart]) == text.decode(whole) else ()


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with; fewer than either has, so that something is left to tell."""
    most = min(len(a), len(b) - 1)
    return next((n for n in range(most) if a[n] != b[n]), most)


def _begun(text: Tokenizer, context: str) -> tuple[int, ...]:
    """The tokens of what is to be continued. GPT-1's, which leave line ends at a text's end out, get theirs, or the model would write it
    first, where most methods stop."""
    tokens = tuple(text.encode(context)) or (text.begin,)
    leaves_out = context.rstrip(" ").endswith("\n") and text.begin in text.encode("a\na") and tokens[-1] != text.begin
    return (*tokens, text.begin) if leaves_out else tokens
