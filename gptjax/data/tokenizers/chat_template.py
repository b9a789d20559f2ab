"""Chat templates: a conversation -> the text, or the token ids, that a model was trained on.

A template is a program in jinja that comes with a model, from anywhere. It runs in jinja's sandbox,
sees nothing but the messages and the names of special tokens, and ends after MAX_STEPS steps. It
has the variables and filters that transformers gives it (utils/chat_template_utils.py there), so
that the text is the same.
"""

import datetime
import functools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptjax.config import parse
from gptjax.data.tokenizers import chat_tokens, control_tokens, json_tokenizer
from gptjax.data.tokenizers.build import Tokenizer

Messages = Sequence[Mapping[str, Any]]
MAX_STEPS = 3_000_000  # lines of the compiled template; a conversation takes some 20 a message
MAX_CHARS = 1 << 26  # characters of a rendered conversation, and of a product of texts in it
MANY = 1_000_000  # items of what has no length, for a limit
GROWING = ("replace", "indent", "join")  # put one text in many places of another
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """The chat template of a tokenizer's model. source: the template. where: its file, for
    errors."""

    def __init__(self, source: str, tokenizer: json_tokenizer.JsonTokenizer):
        """Raises ValueError for a template that is not valid jinja."""
        import jinja2

        self.source, self.where, self._tokenizer = source, tokenizer.where, tokenizer
        named = control_tokens.named_tokens(tokenizer.settings)
        self._special = {name: named[name] for name in NAMES if name in named}
        try:
            self._compiled = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"{self.where}: its chat template is not valid jinja: line {error.lineno}: "
                f"{parse.one_line(str(error.message), 200)}"
            ) from None
        except (RecursionError, OverflowError, MemoryError) as error:
            raise self._error(error) from None

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """Returns the text of a conversation, as transformers' apply_chat_template with
        tokenize=False.

        messages: {"role": "user", "content": "Hello"} and so on. add_generation_prompt: end with
        what stands before the next answer. Raises ValueError, in one line, for a message without
        role or content, and for a template that refuses the conversation, does what the sandbox
        forbids, or takes too long.
        """
        return self._render(check_messages(messages), add_generation_prompt)

    def encode(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """Returns the ids of a conversation: control tokens that the template writes are tokens,
        those that a message spells are text, so that a message cannot end its own turn.

        For messages that spell none these are the ids of transformers' apply_chat_template. A name
        of which the template writes one part and a message the other, as Phi-4's <|role|>, is a
        token. Errors: those of `render`.
        """
        marked = control_tokens.mark(check_messages(messages), self._encoder.pattern)
        return self._encoder.encode(self._render(marked, add_generation_prompt))

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of a rendered conversation in which every name of a control token is this
        token, whoever wrote it: those of transformers' apply_chat_template."""
        control_tokens.mark(text, self._encoder.pattern)  # raises
        return self._encoder.encode(text)

    @functools.cached_property
    def end_of_turn(self) -> str | None:
        """The control token that the template writes after an answer, at which a chat model stops:
        None if there is none."""
        answer = "answer"
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
        try:
            text = self.render(turns, add_generation_prompt=False)
        except ValueError:  # it has no such conversation
            return None
        found = self._encoder.pattern.search(text, text.rfind(answer))
        return found[0] if found else None

    @property
    def end_of_turn_id(self) -> int | None:
        """The id of `end_of_turn`."""
        return None if self.end_of_turn is None else self._encoder.encode(self.end_of_turn)[0]

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids at which an answer ends: the token that ends a turn, the tokenizer's end-of-text,
        and the control tokens that end texts by their usual names."""
        vocabulary = self._tokenizer.rust.get_vocab()
        usual = self._tokenizer.control.intersection(control_tokens.END_NAMES)
        names = usual | ({self.end_of_turn} if self.end_of_turn else set())
        end = self._tokenizer.end_of_text
        return frozenset(vocabulary[name] for name in names) | ({end} if end is not None else set())

    @functools.cached_property
    def _encoder(self) -> control_tokens.MarkedEncoder:
        """Its names: the control tokens, and the added tokens that the template spells, such as
        Qwen's <tool_call>; white space is spelled for the template's own layout."""
        content = json.loads(self._tokenizer.content)
        names = {token["content"] for token in control_tokens.added_tokens(content)}
        spelled = {name for name in names if name.split() == [name] and name in self.source}
        return self._tokenizer.marked_encoder(frozenset(spelled | self._tokenizer.control))

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        variables = self._special | {"tools": None, "documents": None, "messages": messages}
        pieces = self._compiled.generate(variables, add_generation_prompt=add_generation_prompt)
        try:
            return "".join(_limit(pieces))
        except Exception as error:  # whatever a template does
            raise self._error(error) from None

    def _error(self, error: BaseException) -> ValueError:
        import jinja2
        from jinja2 import sandbox

        reason = parse.one_line(str(error) or type(error).__name__, 300).rstrip(".")
        if isinstance(error, sandbox.SecurityError):
            return ValueError(
                f"{self.where}: its chat template does what is not allowed: {reason}; use another "
                "one that you trust"
            )
        kind = "" if isinstance(error, jinja2.TemplateError | _TooLong) else type(error).__name__
        return ValueError(
            f"{self.where}: its chat template does not take this conversation: "
            f"{kind}{': ' * bool(kind)}{reason}"
        )


class TurnTemplate:
    """The template of tokenizers.chat_tokens.ChatTokens:
    <|user|>question<|end|><|assistant|>answer<|end|>."""

    end_of_turn = chat_tokens.NAMES[-1]

    def __init__(self, tokenizer: chat_tokens.ChatTokens):
        self._tokenizer = tokenizer
        self.end_of_turn_id = tokenizer.id(self.end_of_turn)
        ends = (self.end_of_turn_id, tokenizer.end_of_text)
        self.end_ids = frozenset(end for end in ends if end is not None)

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """As ChatTemplate.render."""
        return "".join(
            f"{name}{text}" for name, text in self._parts(messages, add_generation_prompt)
        )

    def encode(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """As ChatTemplate.encode."""
        ids: list[int] = [*self._tokenizer.text_prefix]
        for name, text in self._parts(messages, add_generation_prompt):
            ids += [self._tokenizer.id(name), *self._tokenizer.encode(text)]
        return ids

    def _parts(self, messages: Messages, add_generation_prompt: bool) -> Iterator[tuple[str, str]]:
        """(a control token, the text after it) of a conversation."""
        for number, message in enumerate(check_messages(messages)):
            if message["role"] not in chat_tokens.ROLES:
                raise ValueError(
                    f"message {number} of the conversation is of {parse.quote(message['role'])}: "
                    f"this model knows {', '.join(chat_tokens.ROLES)}"
                )
            yield f"<|{message['role']}|>", message["content"]
            yield self.end_of_turn, ""
        if add_generation_prompt:
            yield "<|assistant|>", ""


def of(tokenizer: Tokenizer) -> ChatTemplate | TurnTemplate:
    """Returns the chat template of a tokenizer's model: tokenizer_config.json's `chat_template`,
    the file chat_template.jinja, or a GGUF's; that of ChatTokens. Of several named ones that named
    "default". Raises ValueError if there is none."""
    if isinstance(tokenizer, chat_tokens.ChatTokens):
        return TurnTemplate(tokenizer)
    if not isinstance(tokenizer, json_tokenizer.JsonTokenizer):
        raise ValueError(
            "this model has no chat template: it continues text; one that chats has a "
            "tokenizer.json and a chat_template.jinja, is a GGUF file, or was fine-tuned on "
            "conversations by gptjax.sft"
        )
    source = tokenizer.settings.get("chat_template")
    if isinstance(source, list):
        named = {}
        for entry in source:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                named[entry["name"]] = entry.get("template")
        if "default" not in named:
            raise ValueError(
                f"{tokenizer.where}: of its chat templates none is named default: "
                f"{', '.join(map(parse.quote, named)) or 'they have no names'}"
            )
        source = named["default"]
    if source is None:
        raise ValueError(
            f"{tokenizer.where}: this model has no chat template: it continues text; put its "
            f"{json_tokenizer.TEMPLATE_FILE} next to it if it was trained to chat"
        )
    if not isinstance(source, str):
        raise ValueError(
            f"{tokenizer.where}: its chat template is {parse.quote(source)}, not text; fetch it "
            "again"
        )
    return ChatTemplate(source, tokenizer)


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Returns a copy of a conversation in plain types, as a template may see it. Raises ValueError
    for anything else, and for a message without role and content."""
    advice = 'give {"role": "user", "content": "Hello"}'
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"messages={parse.quote(messages)}: give a list of at least one message")
    for number, message in enumerate(messages):
        where = f"message {number} of the conversation"
        if not isinstance(message, Mapping):
            raise ValueError(f"{where} is {parse.quote(message)}: {advice}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                given = parse.quote(message[key]) if key in message else "missing"
                raise ValueError(f"{where}: its {key} is {given}: {advice}")
    try:
        return json.loads(json.dumps([dict(message) for message in messages]))
    except (TypeError, ValueError, RecursionError) as error:
        line = parse.one_line(str(error), 200)
        raise ValueError(f"a message has what JSON has not: {line}; {advice}") from None


class _TooLong(Exception):
    """A template that does not end, or writes too much."""


def _limit(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of a rendered template. Raises _TooLong after MAX_STEPS lines of Python or
    MAX_CHARS characters.

    Lines are counted by a trace function, which sees loops that write nothing and macros that call
    each other. One operation, such as a filter on a long text, counts as one.
    """
    steps = n_chars = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        for value in frame.f_locals.values():
            _check_length(value)
        if steps > MAX_STEPS:
            raise _TooLong(f"it takes more than {MAX_STEPS:,} steps: does it loop?")
        return trace

    while True:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            piece = next(pieces, None)
        finally:
            sys.settrace(before)
        if piece is None:
            return
        n_chars += len(piece)
        if n_chars > MAX_CHARS:
            raise _TooLong(f"its text is longer than {MAX_CHARS:,} characters")
        yield piece


def _check_length(value: Any) -> Any:
    """The value. Raises _TooLong for a text that is too long: at each step a text becomes longer
    by a factor at most, so that none fills the memory before it is seen."""
    if isinstance(value, str) and len(value) > MAX_CHARS:
        raise _TooLong(f"it makes a text of more than {MAX_CHARS:,} characters")
    return value


def _check_growth(name: str, arguments: Sequence[Any]) -> None:
    """Raises OverflowError for arguments with which a method or filter of texts would make a very
    long one in a single step: a width, or a text put in many places."""
    texts = [a for a in arguments if isinstance(a, str)]
    is_wide = any(isinstance(a, int) and abs(a) > MAX_CHARS for a in arguments)
    if name in ("format", "format_map"):
        is_wide |= any(len(number) > 6 for text in texts for number in re.findall(r"\d+", text))
        is_wide |= any("*" in text for text in texts[:1])
    sizes = [len(a) if hasattr(a, "__len__") else MANY for a in arguments if _is_iterable(a)]
    if is_wide or name in GROWING and math.prod(sizes) > MAX_CHARS:
        raise OverflowError("a text of too many characters")


def _is_iterable(value: Any) -> bool:
    return hasattr(value, "__iter__")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _limit_growth(name: str, function: Any) -> Any:
    """The filter, which refuses to make a very long text."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _check_growth(name, (*args, *kwargs.values()))
        return _check_length(function(*args, **kwargs))

    return wrapper


@functools.cache
def _environment() -> Any:
    """jinja's sandbox with what transformers adds to it."""
    import jinja2
    from jinja2 import nodes, sandbox
    from jinja2.ext import Extension

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}, which marks answers for a loss: its body."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "+", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """Refuses what would fill the memory in a single step."""
            if operator == "**":
                if abs(left) > 2**64 or abs(right) > 64:
                    raise OverflowError("a power of large numbers")
            elif operator == "*":
                if any(
                    hasattr(a, "__len__") and isinstance(b, int) and len(a) * b > MAX_CHARS
                    for a, b in ((left, right), (right, left))
                ):
                    raise OverflowError("a text or list repeated too often")
            elif operator == "%" and isinstance(left, str):
                _check_growth("format", (left, right))
            return _check_length(super().call_binop(context, operator, left, right))

        def call(self, context: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
            """Calls a function of a template, such as a method of a text."""
            method = getattr(fn, "__wrapped__", fn)  # the sandbox wraps format
            text = getattr(method, "__self__", None)
            if isinstance(text, str):
                _check_growth(method.__name__, (text, *args, *kwargs.values()))
            return _check_length(super().call(context, fn, *args, **kwargs))

    class Namespace(jinja2.utils.Namespace):
        def __init__(*args: Any, **kwargs: Any):
            for name in dict(*args[1:], **kwargs):
                check_name(name)
            jinja2.utils.Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            _check_length(value)
            jinja2.utils.Namespace.__setitem__(self, name, value)

    def check_name(name: Any) -> None:
        if str(name).startswith("_"):
            raise sandbox.SecurityError(f"an attribute {name!r} of a namespace")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    for name, function in environment.filters.items():
        environment.filters[name] = _limit_growth(name, function)
    environment.globals["namespace"] = Namespace
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment
