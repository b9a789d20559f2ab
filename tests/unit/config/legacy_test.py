"""config.json files of earlier versions, as version 69b0a80 wrote them, read as today's configs."""

import json
from pathlib import Path

import pytest

from gptjax.config import legacy
from gptjax.config.data import Tail, Text
from gptjax.config.evaluation import LastWord, Protocol
from gptjax.config.overrides import flatten, override, unflatten
from gptjax.config.schema import Cosine, Linear, Ramp
from gptjax.configs import registry

ROOT = Path(__file__).parents[3]
EARLIER = json.loads((ROOT / "tests/golden/earlier_configs.json").read_text())


def test_configs_of_an_earlier_version_are_read():
    config = unflatten(EARLIER["pretraining"])
    assert config.train.schedule == Cosine(
        peak_lr=6e-4, warmup_tokens=375_000_000, decay_tokens=260_000_000_000, final_fraction=0.2
    )
    assert config.train.batch_ramp == Ramp(start_tokens=32768, over_tokens=4_000_000_000)
    assert config.train.max_nonfinite_steps == 3
    assert config.data.validation == Tail(fraction=0.2)
    assert config.data.document_attention == "mask"
    assert config.data.sources == (Text(path="peak=1.txt"),)
    assert (config.compute.attention_kernel, config.compute.scan_layers) == ("blocks", True)
    assert unflatten(flatten(config)) == config
    for layers, scan_layers in [("auto", None), ("unroll", False)]:
        leaves = EARLIER["pretraining"] | {"compute.layers": layers}
        assert unflatten(leaves).compute.scan_layers is scan_layers


def test_a_fine_tuning_of_an_earlier_version_is_read():
    config = unflatten(EARLIER["finetuning"])
    assert config.train.schedule == Linear(
        peak_lr=6.25e-5, warmup_tokens=int(0.01 * 93 * 32 * 64), decay_tokens=93 * 32 * 64
    )
    assert config.task is not None
    assert (config.task.peak_lr, config.task.warmup_fraction) == (6.25e-5, 0.01)
    assert config.task.train == "peak=3.tsv"


@pytest.mark.parametrize("text", ["Cosine(peak=", "(" * 9999, "Task(" * 2000 + ")" * 2000, "peak"])
def test_a_damaged_config_of_an_earlier_version_is_refused_in_a_line(text):
    for path in ("task", "train.schedule"):
        with pytest.raises(ValueError, match=f"^{path}"):
            unflatten(EARLIER["finetuning"] | {path: text})


def test_a_config_without_a_later_field_means_what_runs_did_then():
    leaves = flatten(registry.config("smoke"))
    del leaves["train.optimizer.bias_correction"]
    assert unflatten(leaves).train.optimizer.bias_correction == "moments"
    leaves = flatten(override(registry.config("smoke"), "train.optimizer.bias_correction=rate"))
    assert unflatten(leaves).train.optimizer.bias_correction == "rate"


def test_the_protocol_of_an_earlier_evaluation_is_read():
    text = (
        "Protocol(shots=15, method=Word(stop_words=True), metric='accuracy', "
        "description='Word(a=1)', described_from=1, "
        "separator='\\n\\n', wording='plain', words=None, fixed_shots=False)"
    )
    expected = Protocol(
        shots=15,
        method=LastWord(stop_words=True),
        metric="accuracy",
        description="Word(a=1)",
        description_min_shots=1,
        prompt_variant="plain",
    )
    assert (
        eval(legacy.translate_record(text), {"Protocol": Protocol, "LastWord": LastWord})
        == expected
    )
    assert legacy.translate_record(repr(expected)) == repr(expected)
