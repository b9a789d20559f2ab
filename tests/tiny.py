"""A tiny config and its pieces, for tests."""

import dataclasses

import jax
import numpy as np

from gptjax.config import data, schema
from gptjax.model import inference
from gptjax.sharding import device_mesh
from gptjax.training import state, step

PATTERNS = (
    schema.Dense(),
    schema.Banded(window=3),
    schema.Strided(stride=4),
    schema.Fixed(block=4, summary=1),
)
MAKE_MESH = device_mesh.make_mesh
GPT3 = (schema.Banded(window=3), schema.Dense())
EVERY_PATTERN = {type(p).__name__: p for p in PATTERNS}


def config(rows: int = 8, **changes) -> schema.Config:
    """2 layers, banded and dense as in GPT-3, 4 heads, 16 wide, 64 ids, context 12, batches of
    `rows`; `changes` go to the model."""
    model = schema.Model(
        **(
            {
                "n_layers": 2,
                "n_heads": 4,
                "d_model": 16,
                "n_vocab": 61,
                "n_ctx": 12,
                "attention": GPT3,
            }
            | changes
        )
    )
    train = schema.Train(
        total_tokens=20 * rows * model.n_ctx,
        batch_tokens=rows * model.n_ctx,
        schedule=schema.Cosine(
            peak_lr=1e-2,
            warmup_tokens=2 * rows * model.n_ctx,
            decay_tokens=20 * rows * model.n_ctx,
            final_fraction=0.1,
        ),
    )
    return schema.Config(
        name="tiny", model=model, data=data.Data(tokenizer=data.Bytes()), train=train
    )


def make_step(
    c: schema.Config, n_devices: int = 1, end_of_text: int | None = None, platform: str = "cpu"
):
    """(mesh, step, initial state) of a config on some of the simulated devices. platform: whose
    kernels, which must be interpreted."""
    mesh = device_mesh.make_mesh(c.mesh, jax.devices()[:n_devices])
    train_step = step.build(c, platform, mesh, end_of_text)
    with jax.set_mesh(mesh):
        return mesh, train_step, state.init_sharded(c, train_step.model, train_step.tx, mesh)


def random_tokens(c: schema.Config, *shape: int, seed: int = 0) -> np.ndarray:
    """Random ids of `shape` rows, each n_ctx + 1 long."""
    return np.random.default_rng(seed).integers(
        0, c.model.n_vocab, (*shape, c.model.n_ctx + 1), dtype=np.int32
    )


def assert_near(params, expected):
    """Each leaf's error is at most 1e-3 of its size, by norms. Element by element would ask too
    much: Adam divides each gradient by its own size, so the rounding of a single tiny one shows
    in its parameter."""
    jax.tree_util.tree_map_with_path(_assert_near, params, expected)


def _assert_near(path, x, y):
    error = np.linalg.norm(x - y) / (np.linalg.norm(y) + 1e-2)
    assert error < 1e-3, f"{jax.tree_util.keystr(path)}: {error:.1e}"


def replace_parts(c: schema.Config, **parts) -> schema.Config:
    """`c` with fields of its parts replaced: replace_parts(c, compute={"remat": "full"})."""
    return dataclasses.replace(
        c,
        **{
            k: dataclasses.replace(getattr(c, k), **v) if isinstance(v, dict) else v
            for k, v in parts.items()
        },
    )


def limit_devices(patch, n: int):
    """From here on this machine has n devices. patch: pytest's monkeypatch."""
    patch.setattr(
        device_mesh,
        "make_mesh",
        lambda sizes, there=None: MAKE_MESH(sizes, there or jax.devices()[:n]),
    )


def make_peaked_model(n_devices: int = 1, parts: dict | None = None, **changes):
    """An inference.InferenceModel of `config(**changes)` with random weights, whose logits are far
    from uniform. parts: further changes, as replace_parts takes them."""
    _, built, initial = make_step(replace_parts(config(**changes), **(parts or {})), n_devices)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 * np.random.default_rng(x.size).normal(size=x.shape).astype(x.dtype)
        * (path[-1].key != "gain_D"),
        initial.params,
    )  # fmt: skip
    return inference.prepare(built.model, params)
