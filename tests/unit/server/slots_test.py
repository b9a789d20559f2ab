"""A slot's tokens are those of its text alone, to the last bit, whatever runs in other slots."""

import jax
import numpy as np
import pytest

from gptjax.config import layer, schema
from gptjax.generate import decode, sampling
from gptjax.model import inference
from gptjax.server import slots
from gptjax.server.generation import RowSampling
from tests import tiny

N_CTX, CHUNK, N_SLOTS, PLAIN = 96, 16, 5, RowSampling()
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 61, n).tolist() for n in (1, 15, 16, 17, 40, 64, 70)]
KINDS = {
    "dense": {"attention": (schema.Dense(),)},
    "a ring": {"attention": (schema.Banded(window=20), schema.Dense())},
    "grouped heads, rotary": {
        "attention": (schema.Dense(),),
        "heads": layer.AttentionHeads(n_kv_heads=2),
        "positions": (schema.Rotary(),),
    },
}


def make_model(changes) -> inference.InferenceModel:
    return tiny.make_peaked_model(n_ctx=N_CTX, **changes)


@pytest.fixture(scope="module", params=KINDS)
def lm(request):
    return make_model(KINDS[request.param])


def start(engine, slot, prompt, row=PLAIN, share=True):
    """The first token of a slot, and how many tokens of its prompt were there."""
    n = engine.insert(slot, prompt, row, share)
    tokens = None
    while tokens is None:
        tokens, _ = engine.prefill(slot)
    return int(tokens.token_B[0]), n


def test_greedy_tokens_are_those_of_the_decoder(lm):
    engine = slots.Slots(lm, N_SLOTS, N_CTX, CHUNK)
    for slot, prompt in enumerate(PROMPTS[2:7]):
        out = [start(engine, slot, prompt, RowSampling(temperature=0))[0]]
        out += [int(engine.generate([slot]).token_B[slot]) for _ in range(20)]
        greedy = sampling.SamplingParams(temperature=0)
        assert out == decode.generate(lm, [prompt], 21, greedy, jax.random.key(0))[0]


def test_tokens_depend_on_the_text_and_its_settings_alone(lm):
    """Alone in slot 0; then at once in other slots, in another order, with prompts that are read
    between steps."""
    settings = [
        RowSampling(temperature=0.9, top_k=(0, 9)[n % 2], presence_penalty=0.3 * n, seed=n)
        for n in range(len(PROMPTS))
    ]
    alone = []
    for prompt, row in zip(PROMPTS, settings, strict=True):
        engine = slots.Slots(lm, N_SLOTS, N_CTX, CHUNK)
        out = [start(engine, 0, prompt, row)[0]]
        out += [int(engine.generate([0]).token_B[0]) for _ in range(12)]
        alone.append(out)
    engine = slots.Slots(lm, N_SLOTS, N_CTX, CHUNK)
    running, waiting, found = {}, [6, 2, 5, 0, 4, 3, 1], {n: [] for n in range(len(PROMPTS))}
    reading = None
    while waiting or running or reading is not None:
        if reading is None and waiting and len(running) < N_SLOTS:
            slot = next(s for s in (3, 1, 4, 0, 2) if s not in running)
            reading = slot, waiting.pop()
            engine.insert(slot, PROMPTS[reading[1]], settings[reading[1]])
        if reading is not None:
            tokens, _ = engine.prefill(reading[0])
            if tokens is not None:
                running[reading[0]] = reading[1]
                found[reading[1]].append(int(tokens.token_B[0]))
                reading = None
        if running:
            tokens = engine.generate([*running]).token_B
            for slot, n in [*running.items()]:
                found[n].append(int(tokens[slot]))
                if len(found[n]) == 13:
                    del running[slot]
                    engine.free(slot)
    assert [found[n] for n in range(len(PROMPTS))] == alone


def test_a_prefix_is_read_once_and_changes_nothing(lm):
    """Prompts that begin alike: whole pieces are copied, from slots in use, free or the same."""
    long = PROMPTS[6]
    variants = [long, [*long[:50], 1, 2, 3], [*long[:33], 4], long[:32], [*long[:64], 5]]
    expected = []
    for prompt in variants:
        engine = slots.Slots(lm, N_SLOTS, N_CTX, CHUNK)
        out = [start(engine, 0, prompt, RowSampling(seed=3))[0]]
        expected.append(out + [int(engine.generate([0]).token_B[0]) for _ in range(6)])
    engine = slots.Slots(lm, N_SLOTS, N_CTX, CHUNK)
    n_shared = []
    for slot, (prompt, tokens) in enumerate(zip(variants, expected, strict=True)):
        first, n = start(engine, slot, prompt, RowSampling(seed=3))
        out = [first, *(int(engine.generate([slot]).token_B[slot]) for _ in range(6))]
        assert out == tokens
        n_shared.append(n)
    ring = any(isinstance(p, schema.Banded) for p in lm.model.config.attention)
    assert n_shared == ([0, 0, 0, 0, 0] if ring else [0, 48, 32, 16, 64])
    assert start(engine, 0, long, share=False)[1] == 0


def test_scores_of_a_prompt_are_those_of_a_forward_pass(lm):
    engine = slots.Slots(lm, 2, N_CTX, CHUNK)
    prompt = PROMPTS[4]
    engine.insert(1, prompt, RowSampling(), share=False)
    found, tokens = [], None
    while tokens is None:
        tokens, scores = engine.prefill(1, scores=True)
        assert scores.first == len(found) + 1
        found += scores.scores.token_B.tolist()
    ids_BT, counts_B = decode.pad([prompt], N_CTX)
    _, x_BTD = inference.prefill(lm, ids_BT, counts_B, N_CTX)
    expected_TV = jax.nn.log_softmax(inference.logits(lm, x_BTD)[0])
    assert len(found) == len(prompt) - 1
    np.testing.assert_allclose(
        found, [expected_TV[t, token] for t, token in enumerate(prompt[1:])], atol=1e-5
    )
    own = expected_TV[len(prompt) - 1, tokens.token_B[0]]
    np.testing.assert_allclose(tokens.scores.token_B[0], own, atol=1e-5)


def test_on_a_mesh_tokens_are_those_of_one_device():
    """Heads divide over its tensor axis."""
    parts = {"mesh": {"fsdp": 2, "tensor": 2, "sharding": "fsdp_tensor"}}
    lm = tiny.make_peaked_model(4, parts, n_ctx=N_CTX, **KINDS["a ring"])
    alone = slots.Slots(make_model(KINDS["a ring"]), N_SLOTS, N_CTX, CHUNK)
    engine = slots.Slots(lm, 2, N_CTX, CHUNK)
    found = []
    for one in (alone, engine):
        tokens = [start(one, 1, PROMPTS[4], RowSampling(temperature=0))[0]]
        found.append(tokens + [int(one.generate([1]).token_B[1]) for _ in range(9)])
    assert found[0] == found[1]
    assert "tensor" in engine._state.cache.layers[1].k_BKHS.sharding.spec


def test_the_slot_that_is_free_for_longest_is_given_first():
    engine = slots.Slots(make_model(KINDS["dense"]), 3, N_CTX, CHUNK)
    for slot in (1, 0, 2):
        start(engine, slot, PROMPTS[4])
    assert engine.free_slots == []
    for slot in (2, 1):
        engine.free(slot)
    assert engine.free_slots == [2, 1]
    assert start(engine, 2, PROMPTS[4])[1] == 32 and engine.free_slots == [1]


def test_no_setting_compiles_a_program():
    lm = make_model(KINDS["dense"])
    n_slots = 6  # no other test has as many: what one has compiled would not be counted here
    engine = slots.Slots(lm, n_slots, N_CTX, CHUNK)
    compiled = []

    def count(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    def use(row, n):
        start(engine, int(RNG.integers(n_slots)), RNG.integers(0, 61, n).tolist(), row)
        engine.generate([0, 1], scores=bool(RNG.integers(2)))

    jax.monitoring.register_event_duration_secs_listener(count)
    engine.compile()
    n_programs = len(compiled)
    for _ in range(200):
        row = RowSampling(
            temperature=float(RNG.choice([0, 0.1, 1, 50])),
            top_k=int(RNG.integers(0, 70)),
            top_p=float(RNG.uniform(0.01, 1)),
            min_p=float(RNG.uniform(0, 1)),
            presence_penalty=float(RNG.uniform(-2, 2)),
            frequency_penalty=float(RNG.uniform(-2, 2)),
            repetition_penalty=float(RNG.uniform(0.5, 2)),
            logit_bias={int(t): 1.0 for t in RNG.integers(0, 61, RNG.integers(0, 5))},
            seed=int(RNG.integers(0, 2**62)),
        )
        use(row, int(RNG.integers(1, 60)))
    jax.monitoring.unregister_event_duration_listener(count)
    assert len(compiled) == n_programs == 4  # insert, prefill of 16 tokens, generate, clear


def test_nan_logits_leave_nothing_behind():
    lm = make_model(KINDS["dense"])
    expected = start(slots.Slots(lm, 2, N_CTX, CHUNK), 0, PROMPTS[1])[0]
    engine = slots.Slots(lm, 2, N_CTX, CHUNK)
    engine._state = engine._state.replace(
        cache=jax.tree.map(lambda x: x.at[0].set(np.nan) if x.ndim == 4 else x, engine._state.cache)
    )
    engine.clear(0)
    assert start(engine, 0, PROMPTS[1])[0] == expected


def test_a_capacity_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="a context of 97 tokens: give 1 to 96, the model's"):
        slots.Slots(make_model(KINDS["dense"]), 2, 97)


def test_penalties_and_random_numbers_go_on_with_the_text():
    engine = slots.Slots(make_model(KINDS["dense"]), 2, N_CTX, CHUNK)

    def run(row, n=30, prompt=PROMPTS[4]):
        tokens = [start(engine, 1, prompt, row)[0]]
        return tokens + [int(engine.generate([1]).token_B[1]) for _ in range(n - 1)]

    assert len(set(run(RowSampling(temperature=0)))) < 20
    for penalty in ({"presence_penalty": 1e4}, {"frequency_penalty": 1e4}):
        assert len(set(run(RowSampling(temperature=0, **penalty)))) == 30
    assert len(set(run(RowSampling(temperature=1e6)))) > 15
    few = [1, 2, 3] * 5
    assert not {*run(RowSampling(temperature=0, repetition_penalty=1e6), 20, few)} & {1, 2, 3}
