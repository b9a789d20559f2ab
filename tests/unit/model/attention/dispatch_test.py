import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import pytest

from gptjax.config import schema
from gptjax.configs import registry
from gptjax.model.attention import dispatch

DENSE, BANDED, STRIDED = schema.Dense(), schema.Banded(window=256), schema.Strided(stride=128)


def test_pallas_is_not_imported_before_it_is_used():
    """It takes 0.2 s of the time to a first step or token, and a CPU never needs it."""
    code = (
        "import sys; from gptjax.training import step; "
        "print([n for n in sys.modules if 'pallas' in n and n.endswith('lowering')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stderr


@pytest.mark.parametrize(
    "platform, name", [("cpu", "blocks"), ("tpu", "splash"), ("gpu", "cudnn"), ("cuda", "cudnn")]
)
def test_auto_is_the_platforms_default_kernel(platform, name):
    assert dispatch.resolve_name("auto", platform) == name == dispatch.resolve_name(name, platform)
    assert dispatch.resolve_name("reference", platform) == "reference"


@pytest.mark.parametrize(
    "asked, platform, allowed",
    [("splash", "cpu", "reference, blocks"), ("flash", "tpu", "reference, blocks, splash")],
)
def test_a_kernel_of_another_platform_is_refused(asked, platform, allowed):
    with pytest.raises(
        ValueError,
        match=(
            f"compute.attention_kernel={asked} does not run on {platform}; set it to auto, "
            f"{allowed}$"
        ),
    ):
        dispatch.resolve_name(asked, platform)


@pytest.mark.parametrize(
    "kernel, pattern, facts, name, why",
    [
        ("splash", STRIDED, {"has_segments": True, "is_aligned": False}, "splash", ""),
        ("splash", DENSE, {"has_dropout": True}, "reference", "attention dropout"),
        ("blocks", DENSE, {"has_dropout": True}, "blocks", ""),
        ("cudnn", BANDED, {}, "cudnn", ""),
        ("cudnn", BANDED, {"has_dropout": True}, "reference", "attention dropout"),
        (
            "cudnn",
            BANDED,
            {"dtype": jnp.float32},
            "flash",
            "cuDNN computes in 16 bits, not float32",
        ),
        (
            "cudnn",
            BANDED,
            {"d_head": 60},
            "flash",
            "cuDNN needs a head size that is a multiple of 8, at most 128, not 60",
        ),
        ("cudnn", BANDED, {"has_segments": True}, "flash", "cuDNN cannot keep documents apart"),
        (
            "cudnn",
            BANDED,
            {"is_aligned": False},
            "flash",
            "cuDNN aligns the first query with the first key",
        ),
        (
            "cudnn",
            DENSE,
            {"is_even": False},
            "flash",
            "jax has no cuDNN gradient for an odd number of tokens",
        ),
        ("cudnn", STRIDED, {}, "flash", "cuDNN has no such pattern"),
    ],
)
def test_each_case_selects_its_kernel(kernel, pattern, facts, name, why):
    facts = {"dtype": jnp.bfloat16, "d_head": 64} | facts
    assert dispatch.select(kernel, pattern, **facts) == (name, why)


def test_the_description_names_each_pattern_once():
    gpt3 = registry.config("gpt3_small").model
    assert (
        dispatch.describe("splash", gpt3, jnp.bfloat16, False)
        == "Banded(window=256) by splash, Dense() by splash"
    )
    dropping = dataclasses.replace(gpt3, dropout=schema.Dropout(attention=0.1))
    odd = dataclasses.replace(gpt3, n_ctx=2047, attention=(DENSE,))
    assert dispatch.describe("cudnn", odd, jnp.bfloat16, False).startswith(
        "Dense() by flash (jax has no cuDNN gradient"
    )
    assert dispatch.describe("splash", dropping, jnp.bfloat16, False).endswith(
        "Dense() by reference (attention dropout)"
    )
