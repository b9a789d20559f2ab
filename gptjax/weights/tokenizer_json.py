"""A tokenizer as transformers opens it: tokenizer.json, which the `tokenizers` library reads, with the same ids and the same text.

A byte is a symbol of GPT-2's byte-level alphabet. SentencePiece's pieces are written with true spaces in place of U+2581, so that a literal
U+2581 is no space; its merges are all pairs of pieces that make a piece, the piece with the highest score first."""

from typing import Any

from gptjax.data.tokenizers import gpt1_bpe, gpt2_bpe, sentencepiece_tokenizer
from gptjax.data.tokenizers.build import Bytes, Tokenizer
from gptjax.weights import protobuf

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"
BPE = 2  # TrainerSpec.ModelType of sentencepiece_model.proto


def convert(text: Tokenizer) -> tuple[Any, str]:
    """(the tokenizers.Tokenizer that encodes and decodes as `text` does, what is other there: "" if nothing is). None if it has no form."""
    from tokenizers import AddedToken, Tokenizer, decoders

    other = ""
    match text:
        case Bytes():
            rust = _bytes()
        case gpt2_bpe.Gpt2():
            rust = Tokenizer.from_str(text.rust.to_str())
        case gpt1_bpe.Gpt1(spacy=None):
            rust = Tokenizer.from_str(text.rust.to_str())
            rust.decoder = decoders.Sequence([decoders.Replace("</w>", " "), decoders.Fuse()])
        case gpt1_bpe.Gpt1(remade=(path, _)):
            rust, other = convert(gpt1_bpe.Gpt1(path, "basic"))[0], "words are split by BERT's rules there, and not by spaCy's"
        case sentencepiece_tokenizer.Pieces():
            other = _difference(text)
            rust = None if other else _pieces(text)
        case _:
            rust, other = None, f"nothing there is like {type(text).__name__}"
    if rust is not None and text.end_of_text is not None:
        rust.add_special_tokens([AddedToken(_end(text), normalized=False)])
    return rust, other


def settings(text: Tokenizer, n_ctx: int) -> dict[str, Any]:
    """tokenizer_config.json. The texts of special tokens, typed, are text here as they are with us."""
    ends = {} if text.end_of_text is None else {"bos_token": _end(text), "eos_token": _end(text)}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_ctx,
        "split_special_tokens": True,
    } | ends


def _end(text: Tokenizer) -> str:
    """What stands for end-of-text."""
    return text.processor.id_to_piece(text.end_of_text) if isinstance(text, sentencepiece_tokenizer.Pieces) else END_OF_TEXT  # type: ignore[call-overload]


def _bytes() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = {_symbol(byte): byte for byte in range(256)} | {END_OF_TEXT: 256}
    rust = Tokenizer(models.BPE(vocab=symbols, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    return rust


def _symbol(byte: int) -> str:
    """GPT-2's character for a byte (src/encoder.py, bytes_to_unicode): its own where that is printable, else the next one from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte if byte in printable else 256 + byte - sum(other < byte for other in printable))


def _pieces(text: sentencepiece_tokenizer.Pieces) -> Any:
    from tokenizers import Tokenizer, decoders, models

    ids = range(text.n_vocab)
    plain = {i for i in ids if not (text.processor.is_byte(i) or text.processor.is_control(i) or text.processor.is_unknown(i))}
    written = [
        text.processor.id_to_piece(i).replace(sentencepiece_tokenizer.SPACE, " ") if i in plain else text.processor.id_to_piece(i)
        for i in ids
    ]
    known = {written[i] for i in plain}
    merges = []
    for i in sorted(plain, key=lambda i: (-text.processor.get_score(i), i)):
        whole = written[i]
        merges += [(whole[:at], whole[at:]) for at in range(1, len(whole)) if whole[:at] in known and whole[at:] in known]
    symbols = {symbol: i for i, symbol in enumerate(written)}
    rust = Tokenizer(models.BPE(vocab=symbols, merges=merges, unk_token=written[text.processor.unk_id()], byte_fallback=True))
    rust.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return rust


def _difference(text: sentencepiece_tokenizer.Pieces) -> str:
    """What of a model is other than BPE with byte fallback of text as it is; "" if nothing is."""
    whole = protobuf.Message(text.model)
    trainer, normalizer = protobuf.Message(whole.content(2)), protobuf.Message(whole.content(3))
    n, ids = text.processor, range(text.n_vocab)
    found = {
        "is no BPE": trainer.integer(3, 1) != BPE,
        "normalises text": bool(normalizer.content(2)),
        "adds a space before a text": bool(normalizer.integer(3, 1)),
        "removes spaces": bool(normalizer.integer(4, 1)),
        "keeps spaces apart": not normalizer.integer(5, 1),
        "writes spaces after words": bool(trainer.integer(24)),
        "has no pieces for all bytes": sum(n.is_byte(i) for i in ids) != 256,
        "has pieces of its user": any(n.is_unused(i) or protobuf.Message(p).integer(3, 1) == 4 for i, p in enumerate(whole.contents(1))),
    }
    return next((f"its SentencePiece model {what}" for what, so in found.items() if so), "")
