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
from gptjax.data.tokenizers import gguf_file

FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
# The names of end-of-text, where no tokenizer_config.json names it.
END_NAMES = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|im_end|>")
START_NAMES = ("<|begin_of_text|>", "<s>", "<bos>")


class JsonTokenizer:
    """The tokenizer of a tokenizer.json. Encoding adds no special tokens (`text_prefix` has those
    before a prompt), and text that spells one is encoded as ordinary text, so that text cannot end
    a document.

    content, config: bytes of the two files (config None if there is none).
    """

    def __init__(self, content: bytes, config: bytes | None, where: str):
        """where: the file, for errors. Raises ValueError if it is damaged."""
        import tokenizers

        try:
            self.rust = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises a bare Exception
            line = parse.one_line(str(error), 200)
            raise ValueError(f"{where} is no tokenizer.json: {line}; fetch it again") from None
        self.content, self.config, self.where = content, config, where
        self.rust.encode_special_tokens = True
        self.rust.no_truncation()
        self.rust.no_padding()
        vocabulary = self.rust.get_vocab()
        if not vocabulary:
            raise ValueError(f"{where} has no token: fetch it again")
        self.n_vocab: int = max(vocabulary.values()) + 1
        place = f"{CONFIG_FILE} of {where}"
        settings = parse.json_object(config, place) if config is not None else {}
        self.end_of_text: int | None = _named_id(settings, "eos_token", END_NAMES, vocabulary)
        start = _named_id(settings, "bos_token", START_NAMES, vocabulary)
        candidates = (start, self.end_of_text, vocabulary.get("\n"), 0)
        self.start_of_text: int = next(i for i in candidates if i is not None)
        self.text_prefix = self._find_prefix(settings, start)
        parsed = json.loads(content)
        unknown = parsed["model"].get("unk_token")
        self.unknown: int | None = vocabulary.get(unknown) if isinstance(unknown, str) else None
        self._byte_ids = _byte_ids(parsed, vocabulary)
        self._bytes = {number: byte for byte, number in enumerate(self._byte_ids)}
        self.digest = hashlib.sha256(
            b"tokenizer.json " + content + repr((self.end_of_text, self.text_prefix)).encode()
        ).hexdigest()

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


def _named_id(
    settings: dict[str, Any], key: str, names: Sequence[str], vocabulary: dict[str, int]
) -> int | None:
    """The id of a special token that the settings name, else of the first name in the
    vocabulary."""
    token = settings.get(key)
    if isinstance(token, dict):  # of versions of transformers before 5
        token = token.get("content")
    if isinstance(token, str):
        names = (token, *names)
    return next((vocabulary[name] for name in names if name in vocabulary), None)


def load(path: pathlib.Path) -> JsonTokenizer:
    """Returns the tokenizer of a file, or of tokenizer.json in a folder; tokenizer_config.json in
    the same folder says which token ends a text. A .gguf file has both. Raises ValueError if it is
    missing or damaged."""
    if path.suffix == gguf_file.SUFFIX:
        return JsonTokenizer(*gguf_file.tokenizer_files(path), str(path))
    file = path / FILE if path.is_dir() else path
    content = parse.read_bytes(file)
    config = file.parent / CONFIG_FILE
    return JsonTokenizer(content, parse.read_bytes(config) if config.exists() else None, str(file))
