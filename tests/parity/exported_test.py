"""Every folder that gptjax exports is opened by transformers as what it is: ids, text and logits
are ours."""

import dataclasses
import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import data, schema
from gptjax.data.tokenizers import build, byte_level_bpe, sentencepiece_tokenizer
from gptjax.model import gpt
from gptjax.sharding import device_mesh
from gptjax.training import state, step
from gptjax.weights import export_hf, load
from tests import tiny
from tests.unit.weights.tokenizer_json_test import HARD, TRAINED

NEEDED = (
    "needs torch and transformers, which make test installs for Python 3.11 (requirements-dev.txt)"
)
torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("transformers", reason=NEEDED)

KINDS = [
    "bytes",
    "gpt2",
    "sentencepiece",
    "trained",
    "neo",
    pytest.param("gpt1", marks=pytest.mark.shared),
]
KINDS += [pytest.param("spacy", marks=pytest.mark.shared)]


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("transformers")
        module.logging.set_verbosity_error()
        module.utils.logging.disable_progress_bar()
        yield module


def spoken(kind: str, shared, tmp_path) -> tuple[data.Tokenizer, build.Tokenizer]:
    gpt1 = str(shared / "data" / "tokenizers" / "gpt1")
    match kind:
        case "spacy":
            pytest.importorskip(
                "spacy", reason="spaCy is an extra: pip install -r requirements-eval.txt"
            )
            spec = data.Gpt1Bpe(path=gpt1)
        case "gpt1":
            spec = data.Gpt1Bpe(path=gpt1, words="basic")
        case "sentencepiece" | "neo":
            (tmp_path / "its.model").write_bytes(sentencepiece_tokenizer.train(TRAINED, 330).model)
            spec = data.SentencePiece(path=str(tmp_path / "its.model"))
        case "trained":
            (tmp_path / "its.json").write_bytes(byte_level_bpe.train(TRAINED, 290).content)
            spec = data.TrainedBpe(path=str(tmp_path / "its.json"))
        case "gpt2":
            spec = data.Gpt2Bpe()
        case _:
            spec = data.Bytes()
    return spec, build.build(spec)


def made(kind: str, n_vocab: int, spec: data.Tokenizer):
    """(config, step, parameters that are not the initial ones) of a model as small as can be."""
    attention = tiny.GPT3 if kind == "neo" else (schema.Dense(),)
    post = {"norm": "post"} if kind in ("gpt1", "spacy") else {}
    c = tiny.config(n_vocab=n_vocab, n_layers=2, attention=attention, **post)
    c = dataclasses.replace(c, data=data.Data(tokenizer=spec))
    mesh = device_mesh.make_mesh(c.mesh, jax.devices()[:1])
    built = step.build(c, "cpu", mesh, None)
    with jax.set_mesh(mesh):
        params = state.init_sharded(c, built.model, built.tx, mesh).params
    return c, built, jax.tree.map(lambda x: 4 * x, params)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_folder_opens_as_what_it_is(transformers, kind, shared, tmp_path):
    spec, text = spoken(kind, shared, tmp_path)
    c, built, params = made(kind, text.n_vocab, spec)
    folder, warned = tmp_path / "exported", []
    folder.mkdir()
    export_hf.save(folder, c, params, text, warn=warned.append)

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (
        len(theirs) == text.n_vocab
        and theirs.eos_token_id == text.end_of_text
        and theirs.model_max_length == c.model.n_ctx
    )
    if kind == "spacy":
        assert [
            line.startswith("transformers has no tokenizer like Gpt1Bpe") and "BERT's rules" in line
            for line in warned
        ] == [True]
    else:
        assert not warned
        for line in HARD:
            ids = text.encode(line)
            assert theirs(line)["input_ids"] == ids and theirs.decode(ids) == text.decode(ids), line

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.config.n_ctx == c.model.n_ctx
    tokens_BT = np.random.default_rng(0).integers(
        0, text.n_vocab, (1, c.model.n_ctx), dtype=np.int32
    )
    ours = gpt.logits(
        built.model.apply({"params": params}, jnp.asarray(tokens_BT)),
        params["token_VD"],
        text.n_vocab,
    )
    with torch.no_grad():
        expected = model(torch.tensor(tokens_BT.astype(np.int64))).logits.numpy()
        hidden = (
            transformers.AutoModel.from_pretrained(folder)
            .eval()(torch.tensor(tokens_BT.astype(np.int64)))
            .last_hidden_state
        )
    np.testing.assert_allclose(np.asarray(ours)[..., : text.n_vocab], expected, atol=1e-4, rtol=0)
    assert hidden.shape == (1, c.model.n_ctx, 16)

    again = load.load(folder, log=pytest.fail)  # and comes back as what it was
    its = build.build(again.config.data.tokenizer)
    again.check(again.config, its)
    assert its.digest == text.digest


def test_a_tokenizer_without_a_form_there_is_refused_there_not_taken_for_another(
    transformers, tmp_path
):
    from tests.unit.weights.tokenizer_json_test import model

    (tmp_path / "its.model").write_bytes(model(add_dummy_prefix=True).model)
    spec = data.SentencePiece(path=str(tmp_path / "its.model"))
    c, _, params = made("other", 320, spec)
    folder, warned, text = tmp_path / "exported", [], build.build(spec)
    folder.mkdir()
    export_hf.save(folder, c, params, text, warn=warned.append)
    assert len(warned) == 1 and "adds a space before a text; it cannot open one" in warned[0]
    with pytest.raises(ValueError, match="instantiate the backend tokenizer"):
        transformers.AutoTokenizer.from_pretrained(folder)
    again = load.load(folder, log=pytest.fail)
    again.check(again.config, text)
    assert build.build(again.config.data.tokenizer).digest == text.digest
