"""Any tokenizer.json, by the `tokenizers` library that wrote it: those of Llama 3, Gemma, Phi-3,
Qwen, SmolLM2."""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from gptjax.config import parse
from gptjax.data import unicode
from gptjax.data.tokenizers import control_tokens, gguf_file

FILE, CONFIG_FILE, TEMPLATE_FILE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class JsonTokenizer:
    """The tokenizer of a tokenizer.json. Encoding adds no special tokens (`text_prefix` has those
    before a prompt), and text that spells a control token (control_tokens.py) is encoded as
    ordinary text, so that text cannot end a document.

    content, config: bytes of the two files (config None if there is none). settings: what config
    says. control: the names of the control tokens. n_needed_ids: n_vocab without the last control
    tokens, those that neither begin nor end a text.
    """

    def __init__(self, content: bytes, config: bytes | None, where: str):
        """where: the file, for errors. Raises ValueError if it is damaged, or names neither a
        token that texts begin with nor one that ends them."""
        self.content, self.config, self.where = content, config, where
        rust, parsed = _parse(content, where), json.loads(content)
        if not all(token["content"] for token in control_tokens.added_tokens(parsed)):
            raise ValueError(f"{where}: an added token has no text: fetch it again, or remove it")
        place = f"{CONFIG_FILE} of {where}"
        self.settings: dict[str, Any] = (
            parse.json_object(config, place) if config is not None else {}
        )
        self.control = control_tokens.find(parsed, self.settings)
        changed = control_tokens.spelled_as_text(parsed, self.control)
        self.rust = rust if changed == parsed else _parse(json.dumps(changed).encode(), where)
        vocabulary = self.rust.get_vocab()
        if not vocabulary:
            raise ValueError(f"{where} has no token: fetch it again")
        self.n_vocab: int = max(vocabulary.values()) + 1
        unknown = parsed["model"].get("unk_token")
        self.unknown: int | None = vocabulary.get(unknown) if isinstance(unknown, str) else None
        known = (name for name in self.control if vocabulary[name] != self.unknown)
        control_tokens.check_text(self.encode_batch, vocabulary, known, where)
        names = control_tokens.named_tokens(self.settings)
        ends, starts = control_tokens.END_NAMES, control_tokens.START_NAMES
        self.end_of_text: int | None = _named_id(names.get("eos_token"), ends, vocabulary)
        start = _named_id(names.get("bos_token"), starts, vocabulary)
        self.start_of_text: int = self._find_start(start)
        self.text_prefix = self._find_prefix(self.settings, start)
        needed = (i for name, i in vocabulary.items() if name not in self.control)
        roles = (self.start_of_text, self.end_of_text or 0, *self.text_prefix)
        self.n_needed_ids: int = max((*needed, *roles)) + 1
        self._byte_ids = _byte_ids(parsed, vocabulary)
        self._bytes = {number: byte for byte, number in enumerate(self._byte_ids)}
        rules = repr((self.end_of_text, self.text_prefix))
        if changed["added_tokens"] != control_tokens.added_tokens(parsed):
            rules += repr(sorted(self.control))
        self.digest = hashlib.sha256(b"tokenizer.json " + content + rules.encode()).hexdigest()

    def _find_start(self, start: int | None) -> int:
        """The id from which an empty prompt is continued: begin-of-text, else end-of-text, else the
        newline."""
        if start is None:
            start = self.end_of_text
        if start is not None:
            return start
        newline = self.encode("\n")
        if not newline or newline[-1] == self.unknown:
            raise ValueError(
                f"{self.where} has neither a begin-of-text nor an end-of-text, and no newline, so "
                f"that no text can begin: add a {CONFIG_FILE} with bos_token or eos_token"
            )
        return newline[-1]

    def _find_prefix(self, settings: dict[str, Any], start: int | None) -> tuple[int, ...]:
        """The special tokens that the file's post-processor puts before a text; the settings'
        add_bos_token goes before it, as in transformers."""
        adds_start = settings.get("add_bos_token")
        if adds_start is False:
            return ()
        if adds_start is True and start is not None:
            return (start,)
        encoding = self.rust.encode("a", add_special_tokens=True)
        pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return tuple(i for i, _ in itertools.takewhile(lambda pair: pair[1], pairs))

    def __reduce__(self):  # the Rust object cannot be pickled for worker processes
        return JsonTokenizer, (self.content, self.config, self.where)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Returns the ids of each text, computed by the threads of the Rust library."""
        valid = [unicode.replace_surrogates(text) for text in texts]
        encodings = self.rust.encode_batch_fast(valid, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def marked_encoder(self, names: frozenset[str]) -> control_tokens.MarkedEncoder:
        """An encoder for which `names` in a text are tokens unless they are marked as text: the
        control tokens, and other added tokens."""
        parsed = json.loads(self.content)
        return control_tokens.MarkedEncoder(
            parsed, names, lambda changed: _parse(json.dumps(changed).encode(), self.where)
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, special tokens by their names; bytes that are not UTF-8 become
        U+FFFD."""
        return self.rust.decode(self._with_whole_characters(ids), skip_special_tokens=False)

    def _with_whole_characters(self, ids: Sequence[int]) -> list[int]:
        """`ids`, in which tokens of single bytes that are no character are those of U+FFFD: the
        library would lose the characters next to them too, as when a text is decoded from the
        middle of one on."""
        whole: list[int] = []
        for is_byte, run in itertools.groupby(ids, self._bytes.__contains__):
            if is_byte:
                text = bytes(self._bytes[i] for i in run).decode(errors="replace")
                whole += [self._byte_ids[byte] for byte in text.encode()]
            else:
                whole += run
        return whole


def _byte_ids(parsed: dict[str, Any], vocabulary: dict[str, int]) -> list[int]:
    """The ids of the 256 tokens of single bytes, of a tokenizer.json that decodes them as such; []
    of another."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    if "ByteFallback" not in json.dumps(parsed.get("decoder")):
        return []
    return [vocabulary[name] for name in names] if all(map(vocabulary.__contains__, names)) else []


def _named_id(name: str | None, usual: Sequence[str], vocabulary: dict[str, int]) -> int | None:
    """The id of a special token that the settings name, else of the first usual name in the
    vocabulary."""
    names = usual if name is None else (name, *usual)
    return next((vocabulary[name] for name in names if name in vocabulary), None)


def _parse(content: bytes, where: str) -> Any:
    """tokenizers.Tokenizer of a file, which reads special tokens as text. Raises ValueError if it
    is damaged."""
    import tokenizers

    try:
        rust = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises a bare Exception
        line = parse.one_line(str(error), 200)
        raise ValueError(f"{where} is no tokenizer.json: {line}; fetch it again") from None
    rust.encode_special_tokens = True
    rust.no_truncation()
    rust.no_padding()
    return rust


def load(path: pathlib.Path) -> JsonTokenizer:
    """Returns the tokenizer of a file, or of tokenizer.json in a folder; tokenizer_config.json in
    the same folder says which token ends a text, chat_template.jinja there how a conversation is
    written. A .gguf file has all of them. Raises ValueError if it is missing or damaged."""
    if path.suffix == gguf_file.SUFFIX:
        return JsonTokenizer(*gguf_file.tokenizer_files(path), str(path))
    file = path / FILE if path.is_dir() else path
    content = parse.read_bytes(file)
    place, template = file.parent / CONFIG_FILE, file.parent / TEMPLATE_FILE
    config = parse.read_bytes(place) if place.exists() else None
    if template.exists():  # which wins over that of the settings, as in transformers
        settings = parse.json_object(config, str(place)) if config is not None else {}
        settings["chat_template"] = parse.read_text(template)
        config = json.dumps(settings).encode()
    return JsonTokenizer(content, config, str(file))
