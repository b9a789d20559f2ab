"""Converts tokenizers to tokenizer.json, which the `tokenizers` library and transformers load, with
the same ids and the same text.

Bytes are symbols of GPT-2's byte-level alphabet. SentencePiece's pieces are written with real
spaces instead of U+2581, so that a literal U+2581 is not a space; its merges are all pairs of
pieces that form a piece, in order of descending score.
"""

from typing import Any

from gptjax.data.tokenizers import byte_level_bpe, gpt1_bpe, sentencepiece_tokenizer
from gptjax.data.tokenizers.build import ByteTokenizer, Tokenizer
from gptjax.weights import protobuf

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"
BPE = 2  # TrainerSpec.ModelType of sentencepiece_model.proto


def convert(tokenizer: Tokenizer) -> tuple[Any, str]:
    """Returns (a tokenizers.Tokenizer that encodes and decodes like `tokenizer`, how it differs or
    ""). The first is None if there is no equivalent.
    """
    from tokenizers import AddedToken, Tokenizer, decoders

    difference = ""
    match tokenizer:
        case ByteTokenizer():
            fast_tokenizer = _convert_bytes()
        case byte_level_bpe.ByteLevelTokenizer():
            fast_tokenizer = Tokenizer.from_str(tokenizer.rust.to_str())
        case gpt1_bpe.Gpt1Tokenizer(spacy=None):
            fast_tokenizer = Tokenizer.from_str(tokenizer.rust.to_str())
            fast_tokenizer.decoder = decoders.Sequence(
                [decoders.Replace("</w>", " "), decoders.Fuse()]
            )
        case gpt1_bpe.Gpt1Tokenizer(init_args=(path, _)):
            fast_tokenizer = convert(gpt1_bpe.Gpt1Tokenizer(path, "basic"))[0]
            difference = "words are split by BERT's rules there, not by spaCy's"
        case sentencepiece_tokenizer.SentencePieceTokenizer():
            difference = _difference(tokenizer)
            fast_tokenizer = None if difference else _convert_sentencepiece(tokenizer)
        case _:
            fast_tokenizer, difference = None, f"{type(tokenizer).__name__} has no equivalent"
    if fast_tokenizer is not None and tokenizer.end_of_text is not None:
        fast_tokenizer.add_special_tokens(
            [AddedToken(_end_of_text_token(tokenizer), normalized=False)]
        )
    return fast_tokenizer, difference


def tokenizer_config(tokenizer: Tokenizer, n_ctx: int) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json. As in gptjax, the names of special tokens in a
    text are encoded as text.
    """
    ends = (
        {}
        if tokenizer.end_of_text is None
        else {
            "bos_token": _end_of_text_token(tokenizer),
            "eos_token": _end_of_text_token(tokenizer),
        }
    )
    if isinstance(tokenizer, sentencepiece_tokenizer.SentencePieceTokenizer):
        starts = [tokenizer.processor.id_to_piece(i) for i in tokenizer.text_prefix]
        ends |= {"bos_token": starts[0], "add_bos_token": True} if starts else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_ctx,
        "split_special_tokens": True,
    } | ends


def _end_of_text_token(tokenizer: Tokenizer) -> str:
    """The symbol of end-of-text."""
    if isinstance(tokenizer, sentencepiece_tokenizer.SentencePieceTokenizer):
        return tokenizer.processor.id_to_piece(tokenizer.end_of_text)  # type: ignore[call-overload]
    return END_OF_TEXT


def _convert_bytes() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {byte_level_bpe.byte_symbol(byte): byte for byte in range(256)} | {END_OF_TEXT: 256}
    fast_tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    fast_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast_tokenizer.decoder = decoders.ByteLevel()
    return fast_tokenizer


def _convert_sentencepiece(tokenizer: sentencepiece_tokenizer.SentencePieceTokenizer) -> Any:
    from tokenizers import Tokenizer, decoders, models

    ids = range(tokenizer.n_vocab)
    ordinary = {
        i
        for i in ids
        if not (
            tokenizer.processor.is_byte(i)
            or tokenizer.processor.is_control(i)
            or tokenizer.processor.is_unknown(i)
        )
    }
    pieces = [
        tokenizer.processor.id_to_piece(i).replace(sentencepiece_tokenizer.SPACE, " ")
        if i in ordinary
        else tokenizer.processor.id_to_piece(i)
        for i in ids
    ]
    known_pieces = {pieces[i] for i in ordinary}
    merges = []
    for i in sorted(ordinary, key=lambda i: (-tokenizer.processor.get_score(i), i)):
        piece = pieces[i]
        merges += [
            (piece[:split], piece[split:])
            for split in range(1, len(piece))
            if piece[:split] in known_pieces and piece[split:] in known_pieces
        ]
    vocab = {symbol: i for i, symbol in enumerate(pieces)}
    fast_tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=pieces[tokenizer.processor.unk_id()],
            byte_fallback=True,
        )
    )
    fast_tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return fast_tokenizer


def _difference(tokenizer: sentencepiece_tokenizer.SentencePieceTokenizer) -> str:
    """How a SentencePiece model differs from BPE with byte fallback on unchanged text; "" if it
    does not.
    """
    model_proto = protobuf.Message(tokenizer.model)
    trainer, normalizer = (
        protobuf.Message(model_proto.content(2)),
        protobuf.Message(model_proto.content(3)),
    )
    processor, ids = tokenizer.processor, range(tokenizer.n_vocab)
    checks = {
        "is not BPE": trainer.integer(3, 1) != BPE,
        "normalizes text": bool(normalizer.content(2)),
        "adds a space before a text": bool(normalizer.integer(3, 1)),
        "removes spaces": bool(normalizer.integer(4, 1)),
        "does not escape spaces": not normalizer.integer(5, 1),
        "treats spaces as suffixes": bool(trainer.integer(24)),
        "lacks pieces for some bytes": sum(processor.is_byte(i) for i in ids) != 256,
        "has user-defined pieces": any(
            processor.is_unused(i) or protobuf.Message(piece).integer(3, 1) == 4
            for i, piece in enumerate(model_proto.contents(1))
        ),
    }
    return next(
        (
            f"its SentencePiece model {description}"
            for description, applies in checks.items()
            if applies
        ),
        "",
    )
