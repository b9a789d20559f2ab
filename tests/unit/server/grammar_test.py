"""Tokens that a grammar allows are those with which the text still matches it."""

import json
import re

import numpy as np
import pytest
import tokenizers

from gptjax.data.tokenizers import build, byte_level_bpe, json_tokenizer
from gptjax.server import grammar
from gptjax.server.generation import Grammar, GrammarError
from tests import prose, tokenizer_kinds

RNG = np.random.default_rng(0)
END = 256


def write(matcher, tokenizer, n, rng=RNG, end=END):
    """A text of random tokens that are allowed, up to the end token or n tokens; whether it is
    whole."""
    ids = []
    for _ in range(n):
        if matcher.is_whole():
            return tokenizer.decode(ids), True
        choices = np.flatnonzero(matcher.mask())
        token = int(rng.choice(choices))
        if token == end:
            return tokenizer.decode(ids), True
        matcher.add(token)
        ids.append(token)
    return tokenizer.decode(ids), False


@pytest.mark.parametrize(
    "pattern", ["[a-c]{2,5}-[0-9]+x", "(yes|no|maybe)", "[0-9]{4}-[0-9]{2}-[0-9]{2}", "é+"]
)
def test_random_texts_match_the_expression(pattern):
    tokenizer = build.ByteTokenizer()
    compiler = grammar.GrammarCompiler(tokenizer, 257)
    whole = 0
    for _ in range(30):
        matcher = compiler.compile(Grammar("regex", pattern), frozenset({END}))
        text, is_whole = write(matcher, tokenizer, 60)
        assert not is_whole or re.fullmatch(pattern, text)
        whole += is_whole
    assert whole > 20


def test_random_texts_match_the_schema_with_tokens_of_several_bytes():
    tokenizer = byte_level_bpe.train(prose.read_paragraphs(), 400)
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Ann", "Bob"]}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    compiler = grammar.GrammarCompiler(tokenizer, tokenizer.n_vocab + 3)
    for _ in range(20):
        rule = Grammar("json_schema", json.dumps(schema))
        matcher = compiler.compile(rule, frozenset({tokenizer.end_of_text}))
        assert len(matcher.mask()) == tokenizer.n_vocab + 3
        text, is_whole = write(matcher, tokenizer, 200, end=tokenizer.end_of_text)
        if is_whole:
            value = json.loads(text)
            assert value["name"] in ("Ann", "Bob") and isinstance(value["age"], int)


def test_without_an_end_token_the_text_ends_where_nothing_may_follow():
    tokenizer = build.ByteTokenizer()
    matcher = grammar.GrammarCompiler(tokenizer, 257).compile(Grammar("regex", "ab"), frozenset())
    assert write(matcher, tokenizer, 9) == ("ab", True)


def token_bound(tokenizer):
    return grammar.token_bound(tokenizer, grammar.token_bytes(tokenizer))


def test_a_bound_is_of_the_longest_token():
    assert token_bound(build.ByteTokenizer()) == grammar.TokenBound(1)
    trained = byte_level_bpe.train(prose.read_paragraphs(), 400)
    longest = max(len(trained.decode([i]).encode()) for i in range(256, 400))
    assert token_bound(trained) == grammar.TokenBound(longest) and longest > 3


@pytest.mark.parametrize("kind", tokenizer_kinds.KINDS)
def test_no_text_has_fewer_tokens_than_its_bound(kind):
    """Also of a vocabulary without some bytes, whose characters become nothing."""
    content, settings = tokenizer_kinds.content(kind)
    spec = json.loads(content)
    spec["model"]["merges"] = [pair for pair in spec["model"]["merges"] if "q" not in str(pair)]
    vocabulary = spec["model"]["vocab"]
    spec["model"]["vocab"] = {x: i for x, i in vocabulary.items() if "q" not in x}
    for tokenizer_json in (content, json.dumps(spec).encode()):
        tokenizer = json_tokenizer.JsonTokenizer(tokenizer_json, json.dumps(settings).encode(), "")
        bound = token_bound(tokenizer)
        assert (bound is None) == (spec["normalizer"] is not None)
        for text in [*tokenizer_kinds.hard_texts(), "q" * 999, "abq " * 99] * (bound is not None):
            assert bound and len(tokenizer.encode(text)) >= bound.least_tokens(text), text


def test_a_text_of_unknown_words_may_have_one_token():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1}, "<unk>"))
    words.decoder = tokenizers.decoders.ByteLevel()
    settings = json.dumps({"eos_token": "a"}).encode()
    tokenizer = json_tokenizer.JsonTokenizer(words.to_str().encode(), settings, "x")
    assert len(tokenizer.encode("word" * 99)) == 1 and token_bound(tokenizer) is None


@pytest.mark.parametrize(
    "rule, message",
    [
        (Grammar("regex", "a("), "regex: .*"),
        (Grammar("json_schema", '{"type": "strang"}'), "json_schema: .*"),
        (Grammar("json_schema", "{"), "json_schema: .*"),
        (Grammar("regex", "a" * 100_001), "regex: it has 100,001 characters: give at most"),
        (Grammar("regex", r"[^\x00-\x{10FFFF}]"), "regex: no text matches it"),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_line(rule, message):
    with pytest.raises(GrammarError, match=message) as error:
        grammar.GrammarCompiler(build.ByteTokenizer(), 257).compile(rule, frozenset({END}))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
