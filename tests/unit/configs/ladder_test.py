"""A config named after a paper is that paper: every value against its facts sheet, and a golden
line a model."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gptjax.config import count
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.data import Gpt1Bpe, Gpt2Bpe, Shards
from gptjax.config.overrides import flatten
from gptjax.config.schema import AdamW, Banded, Compute, Cosine, Dense, Dropout, Init, Ramp
from gptjax.configs import ladder, registry

GOLDEN = Path(__file__).parents[2] / "golden" / "ladder.txt"
# name: layers, width, heads, head width, batch, peak; misprints resolved: XL 16 heads not 24, 13B
# width 5120 not 5140
TABLE_2_1 = {
    "gpt3_small": (12, 768, 12, 64, 0.5e6, 6.0e-4),
    "gpt3_medium": (24, 1024, 16, 64, 0.5e6, 3.0e-4),
    "gpt3_large": (24, 1536, 16, 96, 0.5e6, 2.5e-4),
    "gpt3_xl": (24, 2048, 16, 128, 1e6, 2.0e-4),
    "gpt3_2b7": (32, 2560, 32, 80, 1e6, 1.6e-4),
    "gpt3_6b7": (32, 4096, 32, 128, 2e6, 1.2e-4),
    "gpt3_13b": (40, 5120, 40, 128, 2e6, 1.0e-4),
    "gpt3_175b": (96, 12288, 96, 128, 3.2e6, 0.6e-4),
}


def golden_line(name: str) -> str:
    config = registry.config(name)
    forward, train = (
        count.forward_flops_per_token(config.model),
        count.train_flops_per_token(config.model),
    )
    batches = BatchSchedule(config)
    return (
        f"{name:12}{count.parameters(config.model):>16,} parameters {forward:>18,.0f} forward "
        f"{train:>20,.0f} train FLOPs/token "
        f"{batches.n_steps:>9,} steps {config.train.total_tokens:>15,} tokens"
    )


def test_golden_ladder():
    lines = "\n".join(golden_line(name) for name in ladder.LADDER) + "\n"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(lines)
    assert lines == GOLDEN.read_text(), (
        "a model of the ladder no longer is what it was. Update the file (UPDATE_GOLDEN=1 pytest "
        "tests/unit/config/ladder_test.py) only if "
        "the paper's facts were misread before, and say in the commit which fact and where it "
        "stands"
    )


def test_gpt1_is_its_paper():
    config = registry.config("gpt1")
    model, train = config.model, config.train
    assert (
        model.n_layers,
        model.n_heads,
        model.d_model,
        model.d_ff,
        model.n_ctx,
        model.n_vocab,
    ) == (12, 12, 768, 3072, 512, 40_478)
    assert (model.norm, model.gelu, model.attention) == ("post", "tanh", (Dense(),))
    assert model.init == Init(weight=0.02, token=0.02, position=0.02, residual="flat")
    assert model.dropout == Dropout(embedding=0.1, attention=0.1, residual=0.1)
    assert (
        train.batch_tokens == 64 * 512
        and train.batch_ramp is None
        and BatchSchedule(config).n_steps == 1_000_000
    )
    assert train.schedule == Cosine(
        peak_lr=2.5e-4, warmup_tokens=2000 * 64 * 512, decay_tokens=train.total_tokens
    )
    assert train.optimizer == AdamW(
        b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0, bias_correction="rate"
    )
    assert config.data.tokenizer == Gpt1Bpe()


@pytest.mark.parametrize(
    "name,layers,width,heads",
    [
        ("124m", 12, 768, 12),
        ("355m", 24, 1024, 16),
        ("774m", 36, 1280, 20),
        ("1558m", 48, 1600, 25),
    ],
)
def test_gpt2_is_its_paper(name, layers, width, heads):
    config = registry.config(f"gpt2_{name}")
    model, train = config.model, config.train
    assert (model.n_layers, model.d_model, model.n_heads, model.d_head) == (
        layers,
        width,
        heads,
        64,
    )
    assert (model.n_ctx, model.n_vocab, model.norm, model.gelu, model.attention) == (
        1024,
        50_257,
        "pre",
        "tanh",
        (Dense(),),
    )
    assert model.init == Init(weight=0.02, token=0.02, position=0.01, residual="depth_scaled")
    assert model.dropout == Dropout(embedding=0.1, attention=0.1, residual=0.1)
    assert (
        train.batch_tokens == 512 * 1024
        and train.batch_ramp is None
        and BatchSchedule(config).n_steps == 250_000
    )
    rule = 0.003239 - 0.0001395 * math.log(
        count.non_embedding_parameters(model)
    )  # Kaplan et al. 2020, Appendix D.6
    assert isinstance(train.schedule, Cosine) and train.schedule.peak_lr == pytest.approx(
        rule, abs=5e-7
    )
    assert (
        train.schedule.warmup_tokens,
        train.schedule.decay_tokens,
        train.schedule.final_fraction,
    ) == (3000 * 2**19, train.total_tokens, 0)
    assert train.optimizer == AdamW(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.01, clip_norm=1.0)
    assert config.data.tokenizer == Gpt2Bpe()


@pytest.mark.parametrize("name", TABLE_2_1)
def test_gpt3_is_its_paper(name):
    config = registry.config(name)
    model, train = config.model, config.train
    layers, width, heads, d_head, batch, peak = TABLE_2_1[name]
    assert (model.n_layers, model.d_model, model.n_heads, model.d_head, model.d_ff) == (
        layers,
        width,
        heads,
        d_head,
        4 * width,
    )
    assert (model.n_ctx, model.n_vocab, model.norm, model.gelu) == (2048, 50_257, "pre", "tanh")
    assert model.attention == (Banded(window=256), Dense())
    assert (
        model.init == Init(weight=0.02, token=0.02, position=0.01, residual="depth_scaled")
        and model.dropout == Dropout()
    )
    assert train.batch_tokens == pytest.approx(batch, rel=0.05) and config.batch_rows % 64 == 0
    assert train.schedule == Cosine(
        peak_lr=peak, warmup_tokens=375 * 10**6, decay_tokens=260 * 10**9, final_fraction=0.1
    )
    assert train.total_tokens == 300 * 10**9
    assert train.optimizer == AdamW(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    assert train.batch_ramp == Ramp(
        start_tokens=2**15, over_tokens={0.5e6: 4, 1e6: 7, 2e6: 10, 3.2e6: 12}[batch] * 10**9
    )
    assert config.data.tokenizer == Gpt2Bpe() and config.data.document_attention == "attend"
    batches = BatchSchedule(config, shards=8)
    assert batches.rows(0) == 16 and batches.max_rows == config.batch_rows


def test_the_mixture_is_table_2_2():
    sources = ladder.gpt3_mixture("/data")
    assert sources[0] == Shards(path="/data/common_crawl", weight=0.60)
    assert [source.weight for source in sources] == [0.60, 0.22, 0.08, 0.08, 0.03]


@pytest.mark.parametrize(
    "alias,name",
    [
        ("117m", "gpt2_124m"),
        ("1542m", "gpt2_1558m"),
        ("125m", "gpt3_small"),
        ("1.3b", "gpt3_xl"),
        ("175b", "gpt3_175b"),
    ],
)
def test_papers_own_names(alias, name):
    assert registry.config(alias).name == name


def test_rows_with_large_activations_are_rematerialized():
    """The rule of the table's remat column: nothing up to 5 GiB a row, else all but what matmuls
    give."""
    for name in ladder.LADDER:
        config = registry.config(name)
        none = count.activation_bytes(replace(config, compute=Compute(remat="none")), 1)
        wanted = "none" if none < 5 * 2**30 else ladder.MATMULS
        assert config.compute.remat == wanted, (name, none / 2**30)


def test_names_and_aliases_do_not_clash():
    assert len({*registry.config_names(), *registry.aliases()}) == len(
        registry.config_names()
    ) + len(registry.aliases())
    assert set(registry.config_names()) >= set(ladder.LADDER) | {
        "nano",
        "shakespeare_char",
        "smoke",
    }
    assert registry.paper_figures("gpt3_small") == ("125M", 2.6) and registry.paper_figures(
        "nano"
    ) == (None, None)


def test_shakespeare_char_is_nanogpts_cpu_run():
    leaves = flatten(registry.config("shakespeare_char"))
    wanted = {"n_layers": 4, "n_heads": 4, "d_model": 128, "n_ctx": 64, "gelu": "erf"}
    assert {key: leaves[f"model.{key}"] for key in wanted} == wanted
    assert (
        leaves["train.batch_tokens"] == 12 * 64 and leaves["train.total_tokens"] == 2000 * 12 * 64
    )
    assert (
        leaves["train.schedule"]
        == "Cosine(peak_lr=0.001, warmup_tokens=76800, decay_tokens=1536000, final_fraction=0.1)"
    )
    assert leaves["train.optimizer.b2"] == 0.99 and leaves["train.optimizer.weight_decay"] == 0.1
