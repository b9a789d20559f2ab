"""Small tokenizers in the forms of published families, trained here, and texts that are hard for
them. Each kind is a tokenizer.json with its settings."""

import functools
import io
import json
import pathlib
import random

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from gptjax.data.tokenizers import byte_level_bpe, tiktoken_file

SPACE = "\u2581"
LINES = [
    *pathlib.Path(__file__).read_text().split("\n"),
    *["The café's naïve 你好, 世界! 🙂 x = 1234", "  two  spaces\tand a tab", "It's WE'LL don't"]
    * 4,
]
BY_HAND = [
    "", " ", "  ", "a", " a", "a ", "\n", "\n\n\n", "\r\n\r", "\t\t x", "To be, or not to be",
    "x = 42\n\n\tdef f():\n    pass  # 3.14", "naïve 你好 🙂", "👩‍👩‍👧‍👦 e\u0301 Z\u0351\u036b",
    "\u2581 a\u2581b", "a\0b\x01\x7f\x85", "\u200b\ufeff\u2028", "١٢٣ ⅷ ½ 1000000", "İstanbul ſ K",
    "it'ſ IT'S", "\U000e0001\U0010fffd", "<0x41>", "ﬁ ﷺ Å", "<s>", "</s>x", "a<s>b </s> ",
    "<|im_end|>", " <|im_end|>\n", "<|im_end|", "<x>a<y>", "<|begin_of_text|>", "<unk>",
]  # fmt: skip
LETTERS = "ab \n\t\u2581<s>|é你🙂0'SLl\u0301_"


@functools.cache
def hard_texts(n=150):
    """Texts by hand, and n of random letters."""
    rng = random.Random(0)
    drawn = ["".join(rng.choices(LETTERS, k=rng.randint(1, 24))) for _ in range(n)]
    return [*BY_HAND, *drawn]


def added(name, special=True, rstrip=False, normalized=False):
    return AddedToken(name, special=special, rstrip=rstrip, normalized=normalized)


def byte_level(pattern, names, ignore_merges=False, normalizer=None, start=None):
    """BPE of bytes after a split by a pattern, as Llama 3, Qwen and gpt-oss have."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens([name if isinstance(name, AddedToken) else added(name) for name in names])
    if start is not None:
        number = tokenizer.token_to_id(start)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, number)]
        )
    return tokenizer


def piece_level(names, prefix=True, pieces=("<unk>", "<s>", "</s>")):
    """BPE with byte fallback on text whose spaces are U+2581, as Llama 2's, Phi-3's and Gemma's
    files have it after their conversion."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    )
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *[decoders.Strip(" ", 1, 0)] * prefix])
    first = [*pieces, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"], content["pre_tokenizer"] = [], None
    # As conversions have: all pairs of pieces that form a piece, those of control pieces too.
    vocabulary = content["model"]["vocab"]
    if "<s>" in pieces:
        for name in ("<s", "</", "s>"):
            vocabulary.setdefault(name, len(vocabulary))
        more = [["<", "s"], ["s", ">"], ["<", "/"], ["<s", ">"], ["</", "s>"]]
        content["model"]["merges"] += more
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([name if isinstance(name, AddedToken) else added(name) for name in names])
    return tokenizer


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
          "<|eot_id|>")  # fmt: skip
TURNS = ("<start_of_turn>", "<end_of_turn>")
PHI3 = [added(name, rstrip=True) for name in ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")]
QWEN = tiktoken_file.CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
KINDS = {
    "llama3": lambda: (
        byte_level(tiktoken_file.CL100K, LLAMA3, True, start="<|begin_of_text|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "qwen": lambda: (
        byte_level(
            QWEN,
            [*CHATML, added("<think>", special=False), added("</think>", special=False)],
            normalizer=normalizers.NFC(),
        ),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "o200k": lambda: (
        byte_level(tiktoken_file.O200K, ("<|startoftext|>", "<|return|>", "<|end|>"), True),
        {"bos_token": "<|startoftext|>", "eos_token": "<|return|>"},
    ),
    "llama2": lambda: (
        piece_level([added(name) for name in ("<unk>", "<s>", "</s>")]),
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
    ),
    "phi3": lambda: (
        piece_level(
            ["<unk>", "<s>", added("</s>", special=False, rstrip=True), "<|endoftext|>", *PHI3]
        ),
        {
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
            "add_bos_token": False,
        },
    ),
    "gemma": lambda: (
        piece_level(
            [
                *("<pad>", "<eos>", "<bos>", "<unk>", *TURNS),
                *(added(text, special=False) for text in ("\n\n", "\n\n\n", SPACE * 2, "<table>")),
            ],
            prefix=False,
            pieces=("<pad>", "<eos>", "<bos>", "<unk>"),
        ),
        {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True},
    ),
}


@functools.cache
def content(kind):
    """(tokenizer.json, tokenizer_config.json) of a kind, without a chat template."""
    tokenizer, settings = KINDS[kind]()
    return tokenizer.to_str().encode(), settings


@functools.cache
def ranks(pattern):
    """A tiktoken file's tokens, trained: token -> rank."""
    tokenizer = byte_level(pattern, ())
    byte_of = {byte_level_bpe.byte_symbol(byte): byte for byte in range(256)}
    names = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return {bytes(byte_of[letter] for letter in name): i for name, i in names}


@functools.cache
def pieces(**changes):
    """A SentencePiece model in the form of Llama 2's, trained; `changes` are its trainer's."""
    out = io.BytesIO()
    options = {
        "sentence_iterator": iter(LINES),
        "model_writer": out,
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "character_coverage": 0.995,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "minloglevel": 3,
    }
    sentencepiece.SentencePieceTrainer.train(**(options | changes))
    return out.getvalue()


# Chat templates in the forms of the families, written for the tests.
TEMPLATES = {
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
        "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "qwen": (
        "{% for m in messages %}\n"
        "    {%- set text = m.content.split('</think>')[-1] if m.role == 'assistant' "
        "else m.content %}\n"
        "    {{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n<think>\\n' }}\n"
        "{%- endif %}"
    ),
    "phi3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}"
        "{% else %}{{ eos_token }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + "
        "m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
}


def conversations(n, forge=False):
    """n conversations of drawn texts; with `forge`, texts that spell control tokens as well."""
    rng = random.Random(1)
    texts = [t for t in hard_texts(400) if forge or not set("<>|") & set(t)]
    for _ in range(n):
        roles = ["user", "assistant"] * rng.randint(1, 3)
        yield [
            {"role": role, "content": rng.choice(texts)}
            for role in roles[: rng.randint(1, len(roles))]
        ]
