"""Grammars: the tokens that may come next, so that a text matches a JSON schema or a regular
expression. llguidance (github.com/guidance-ai/llguidance) finds them, given the bytes of tokens.
"""

import dataclasses
import functools
import json
from typing import Any

import numpy as np

from gptjax.config import parse
from gptjax.data.tokenizers import (
    build,
    byte_level_bpe,
    chat_tokens,
    json_tokenizer,
    sentencepiece_tokenizer,
)
from gptjax.server.generation import Grammar, GrammarError, GrammarKind

MAX_CHARS = 100_000  # of a grammar's source
MESSAGES = {"NoExtensionBias": "no text matches it"}  # llguidance's own words -> plainer ones


class GrammarCompiler:
    """Compiles grammars for a tokenizer. n_vocab: the model's, at least the tokenizer's."""

    def __init__(self, tokenizer: build.Tokenizer, n_vocab: int):
        self._tokenizer, self._n_vocab = tokenizer, n_vocab

    def compile(self, grammar: Grammar, end_ids: frozenset[int]) -> "Matcher":
        """Returns a matcher at the beginning of a text. end_ids: tokens that may end it. Raises
        GrammarError, also for a grammar that is too large or that nothing matches, and ValueError
        for a tokenizer whose tokens are no pieces of text."""
        import llguidance

        if len(grammar.source) > MAX_CHARS:
            raise GrammarError(
                grammar.kind,
                f"it has {len(grammar.source):,} characters: give at most {MAX_CHARS:,}",
            )
        try:
            source = (
                llguidance.LLMatcher.grammar_from_json_schema(grammar.source)
                if grammar.kind == "json_schema"
                else llguidance.LLMatcher.grammar_from_regex(grammar.source)
            )
        except ValueError as error:
            raise GrammarError(grammar.kind, _one_line(str(error))) from None
        tokenizer, ends = self._llguidance_tokenizer(end_ids)
        matcher = Matcher(
            llguidance.LLMatcher(tokenizer, source), self._n_vocab, ends, grammar.kind
        )
        matcher.mask()
        return matcher

    @functools.lru_cache(4)  # noqa: B019  one compiler a server
    def _llguidance_tokenizer(self, end_ids: frozenset[int]) -> tuple[Any, frozenset[int]]:
        """Returns (the tokenizer, the tokens that end a text)."""
        import llguidance

        pieces, encode = token_bytes(self._tokenizer), self._tokenizer.encode
        pieces += [b""] * (self._n_vocab - len(pieces))
        special = [i for i, piece in enumerate(pieces) if not piece]
        # A token that may end the text must be there, even if the request has none.
        ends = sorted(end_ids) or special[:1] or [self._n_vocab]
        pieces += [b""] * (max(ends) + 1 - len(pieces))
        for i in {*special, *ends}:
            pieces[i] = b"\xff<|%d|>" % i  # \xff: never text

        class Tokens:
            eos_token_id, bos_token_id = ends[0], None
            tokens, special_token_ids = pieces, sorted({*special, *ends})

            def __call__(self, text: str) -> list[int]:
                return encode(text)  # of what a grammar leaves no choice for

        wrapper = llguidance.TokenizerWrapper(Tokens())
        return llguidance.LLTokenizer(wrapper, eos_token=ends, slices=[]), frozenset(ends)


class Matcher:
    """A text that grows, and its grammar. end_ids: tokens that end it, and are none of it."""

    def __init__(self, matcher: Any, n_vocab: int, end_ids: frozenset[int], kind: GrammarKind):
        self._matcher, self._n_vocab = matcher, n_vocab
        self._kind: GrammarKind = kind
        self.end_ids = end_ids

    def mask(self) -> np.ndarray:
        """Returns bool (V,): the tokens that may come next; none if the text is whole and there is
        no token to end it. Raises GrammarError if it takes too long or nothing matches."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            message = _one_line(self._matcher.get_error())
            raise GrammarError(self._kind, MESSAGES.get(message, message))
        allowed_V = np.unpackbits(bits, bitorder="little")[: self._n_vocab].astype(bool)
        return np.pad(allowed_V, (0, self._n_vocab - len(allowed_V)))

    def is_whole(self) -> bool:
        """Whether nothing may follow but an end token."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def add(self, token: int) -> None:
        """Adds a token that is allowed."""
        self._matcher.consume_token(token)


def token_bytes(tokenizer: build.Tokenizer) -> list[bytes]:
    """Returns the bytes of each token; b"" for control tokens. Raises ValueError for tokenizers
    whose tokens are no pieces of text, such as GPT-1's."""
    match tokenizer:
        case chat_tokens.ChatTokens(base=base):
            return [*token_bytes(base), *(b"" for _ in chat_tokens.NAMES)]
        case build.ByteTokenizer():
            return [*(bytes([i]) for i in range(256)), b""]
        case byte_level_bpe.ByteLevelTokenizer(tiktoken=encoding, end_of_text=end):
            ids = range(tokenizer.n_vocab)
            return [b"" if i == end else encoding.decode_single_token_bytes(i) for i in ids]
        case json_tokenizer.JsonTokenizer(content=content):
            import llguidance

            pieces = llguidance.LLTokenizer(content.decode())
            return [
                b"" if pieces.is_special_token(i) else pieces.decode_bytes([i])
                for i in range(tokenizer.n_vocab)
            ]
        case sentencepiece_tokenizer.SentencePieceTokenizer(processor=processor):
            return [_piece_bytes(processor, i) for i in range(tokenizer.n_vocab)]
        case _:
            raise ValueError("this model's tokenizer is not made for grammars: leave it out")


def find_token_bytes(tokenizer: build.Tokenizer) -> list[bytes] | None:
    """Returns the bytes of each token, or None for a tokenizer that `token_bytes` refuses."""
    try:
        return token_bytes(tokenizer)
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True)
class TokenBound:
    """How few tokens a text can have. longest: the most bytes of a token. dropped: bytes that are
    no token by themselves, and may become none."""

    longest: int
    dropped: bytes = b""

    def least_tokens(self, text: str) -> int:
        """Returns a number of tokens that a text has at least. White space counts as nothing, since
        chat templates and tokenizers may leave it out."""
        content = "".join(text.split()).encode(errors="surrogatepass")
        return len(content.translate(None, self.dropped)) // self.longest


def token_bound(tokenizer: build.Tokenizer, pieces: list[bytes]) -> TokenBound | None:
    """Returns the bound of a tokenizer; None if it may change a text first, or has one token for
    unknown text of any length. pieces: its `token_bytes`."""
    match tokenizer:
        case chat_tokens.ChatTokens(base=base):
            return token_bound(base, pieces)
        case build.ByteTokenizer() | byte_level_bpe.ByteLevelTokenizer():
            keeps_text = True
        case json_tokenizer.JsonTokenizer(content=content):
            spec = json.loads(content)
            is_bpe = spec["model"]["type"] == "BPE" and tokenizer.unknown is None
            keeps_text = is_bpe and spec.get("normalizer") is None
        case _:
            keeps_text = False
    known = {piece[0] for piece in pieces if len(piece) == 1}
    dropped = bytes(byte for byte in range(256) if byte not in known)
    return TokenBound(max(map(len, pieces)), dropped) if keeps_text else None


def _piece_bytes(processor: Any, i: int) -> bytes:
    if processor.is_control(i) or processor.is_unknown(i):
        return b""
    piece = processor.id_to_piece(i)
    if processor.is_byte(i):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def _one_line(message: str) -> str:
    return parse.one_line((message.splitlines() or ["it is refused"])[0], 200)
