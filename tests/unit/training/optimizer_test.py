import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.training import optimizer
from tests import tiny


def test_decay_spares_biases_and_gains_alone():
    _, _, state = tiny.make_step(tiny.config())
    mask = {
        jax.tree_util.keystr(k): v
        for k, v in jax.tree_util.tree_leaves_with_path(optimizer.weight_decay_mask(state.params))
    }
    spared = {path.split("'")[-2] for path, decays in mask.items() if not decays}
    assert spared == {"bias_D", "gain_D", "bias_QNH", "bias_F"}
    assert {path.split("'")[-2] for path, decays in mask.items() if decays} == {
        "token_VD",
        "position_TD",
        "weight_DQNH",
        "weight_DNH",
        "weight_DF",
    }


def test_an_unknown_role_is_an_error():
    with pytest.raises(
        ValueError, match="'scale' is not one of weight, token, position, output, bias, gain, sink"
    ):
        optimizer.weight_decay_mask({"scale_D": jnp.zeros(3)})


def algorithm_2(p, m, v, t, lr, eps, decay):
    """Adam (1412.6980, algorithm 1) with the decay of AdamW (1711.05101, algorithm 2)."""
    return p - lr * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + eps) + decay * p)


def opt_py(p, m, v, t, lr, eps, decay):
    """GPT-1's released opt.py."""
    lr_t = lr * np.sqrt(1 - 0.95**t) / (1 - 0.9**t)
    return p - lr_t * (m / (np.sqrt(v) + eps) + decay * p)


@pytest.mark.parametrize("correction,plain", [("moments", algorithm_2), ("rate", opt_py)])
@pytest.mark.parametrize("clip, eps", [(None, 1e-8), (0.5, 0.1)])
def test_it_is_adam_with_decoupled_decay(clip, eps, correction, plain):
    """Against the formulas, three steps, in float64 numpy; the larger eps tells where it is
    added."""
    spec = schema.AdamW(
        b1=0.9, b2=0.95, eps=eps, weight_decay=0.1, clip_norm=clip, bias_correction=correction
    )
    tx = optimizer.adamw(spec)
    rng = np.random.default_rng(0)
    p = {"weight_DF": rng.normal(size=(4, 3)), "bias_F": rng.normal(size=3)}
    found = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p)
    state = tx.init(found)
    m, v = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
    with jax.numpy_dtype_promotion("standard"):
        for t in range(1, 4):
            g = {k: rng.normal(size=x.shape) for k, x in p.items()}
            updates, state = tx.update(
                jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g), state, found
            )
            found = jax.tree.map(lambda x, u: x - 0.01 * u, found, updates)
            norm = np.sqrt(sum((x**2).sum() for x in g.values()))
            g = {k: x * min(1, clip / norm) if clip else x for k, x in g.items()}
            for k in p:
                m[k], v[k] = 0.9 * m[k] + 0.1 * g[k], 0.95 * v[k] + 0.05 * g[k] ** 2
                p[k] = plain(p[k], m[k], v[k], t, 0.01, eps, 0.1 if k == "weight_DF" else 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, p)
