"""From an item to what the model reads: a description, demonstrations drawn for that item, the item; as many as fit. GPT-3 section 2.4.

Chosen where the paper is silent: the demonstrations of a smaller K are the first of those of a larger one; where they do not fit, the last
drawn go; a text begins with end-of-text only if it is empty otherwise, as in lm-evaluation-harness."""

import dataclasses
import random
from collections.abc import Sequence

from gptjax.config import protocol
from gptjax.data.tokenizer import Tokenizer
from gptjax.tasks.incontext.task import Item


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """An item as it is put. contexts: with description and demonstrations before them; shown: ids of the demonstrations, in order.
    context_tokens and completion_tokens: a pair for each completion; of a task that writes, one context and no completion.
    cut: tokens of the contexts' begin (of one with a hint, of what stands before the hint the end) that have no room, even without
    demonstrations."""

    item: Item
    contexts: tuple[str, ...]
    shown: tuple[str, ...]
    context_tokens: tuple[tuple[int, ...], ...]
    completion_tokens: tuple[tuple[int, ...], ...]
    cut: int = 0


def drawn(task: str, item: Item, pool: Sequence[Item], shots: int, seed: int, fixed: bool) -> list[Item]:
    """`shots` demonstrations from `pool`, without repetition: never the item itself nor another of its group, nor one whose answer is not
    known, nor two of a group. fixed: the same for all items (but for an item among them). ValueError if the pool has too few."""
    draw = random.Random(f"{seed} {task}" if fixed else f"{seed} {task} {item.id}")
    found, seen, taken = [], {_key(item)}, set()
    while len(found) < shots:
        if len(taken) == len(pool):
            raise ValueError(f"{task}: {shots} demonstrations were asked for, and there are {len(found)} to draw from; give fewer --shots")
        number = draw.randrange(len(pool))
        if number in taken:
            continue
        taken.add(number)
        other = pool[number]
        if (other.right or other.demonstration) and _key(other) not in seen:
            seen.add(_key(other))
            found.append(other)
    return found


def _key(item: Item) -> str:
    return item.group or item.id


def put(item: Item, shown: Sequence[Item], how: protocol.Protocol) -> tuple[str, ...]:
    """The item's contexts after the description and these demonstrations."""
    described = [how.description] if how.description and len(shown) >= how.described_from else []
    before = "".join(part + how.separator for part in described + [one.shown for one in shown])
    return tuple(before + context for context in item.contexts)


def fitted(item: Item, candidates: Sequence[Item], how: protocol.Protocol, text: Tokenizer, n_ctx: int) -> Prompt:
    """The item after as many of the demonstrations as a text of n_ctx tokens has room for. ValueError for a completion without tokens, or
    with more than the context has."""
    if isinstance(how.method, protocol.Windows):  # it is read in parts
        return _prompt(item, [], how, text)[0]
    limit = n_ctx + (0 if isinstance(how.method, protocol.Writing) else 1)  # the last token of a completion is not read
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


def _cut(prompt: Prompt, how: protocol.Protocol, text: Tokenizer, limit: int) -> Prompt:
    """Without the contexts' begin: of all as many tokens, so that they still tell of the same. Of an item with a hint, without the end of
    what stands before it."""
    contexts = prompt.context_tokens
    if isinstance(how.method, protocol.Writing):
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


def _prompt(item: Item, shown: Sequence[Item], how: protocol.Protocol, text: Tokenizer) -> tuple[Prompt, int]:
    """The prompt, and the tokens of its longest text."""
    contexts = put(item, shown, how)
    ids = tuple(one.id for one in shown)
    if isinstance(how.method, protocol.Writing):
        tokens = tuple(_begun(text, context) for context in contexts)
        prompt = Prompt(item=item, contexts=contexts, shown=ids, context_tokens=tokens, completion_tokens=())
        return prompt, len(tokens[0]) + how.method.n_tokens
    pairs = paired(text, dataclasses.replace(item, contexts=contexts).pairs, item.id)
    prompt = Prompt(
        item=item,
        contexts=contexts,
        shown=ids,
        context_tokens=tuple(context for context, _ in pairs),
        completion_tokens=tuple(completion for _, completion in pairs),
    )
    return prompt, max(len(context) + len(completion) for context, completion in pairs)


def paired(text: Tokenizer, pairs: Sequence[tuple[str, str]], item: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """For each (context, completion) its (tokens of the context, tokens of the completion after it), as lm-evaluation-harness makes them:
    spaces at the context's end are the completion's, and its tokens are what follows the context's in the tokens of both. ValueError for a
    completion that has none."""
    before = {context: tuple(text.encode(context.rstrip())) for context in dict.fromkeys(context for context, _ in pairs)}
    found = []
    for context, completion in pairs:
        after = tuple(text.encode(context + completion)[len(before[context]) :])
        if not after:
            raise ValueError(f"item {item}: the completion {completion!r} has no tokens after its context: give it at least one character")
        found.append((before[context] or _empty(text), after))
    return found


def _begun(text: Tokenizer, context: str) -> tuple[int, ...]:
    return tuple(text.encode(context)) or _empty(text)


def _empty(text: Tokenizer) -> tuple[int, ...]:
    """What stands for a text without tokens: the model cannot be asked without one."""
    return (text.end_of_text,) if text.end_of_text is not None else tuple(text.encode("\n"))
