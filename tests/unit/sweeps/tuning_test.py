"""Further points where the results ask for them."""

import json

import pytest

from gptjax.config import sweep
from gptjax.sweeps import tuning
from tests.outcomes import expand

PEAK = "train.schedule.peak_lr"


def sweep_of(*peaks, layers=(2,), extra=()):
    axes = sweep.grid(
        sweep.each("model.n_layers", *layers), sweep.each(PEAK, *peaks), sweep.each("seed", 0)
    )
    return sweep.Sweep(description="?", recipe="smoke", points=sweep.chain(axes, extra))


def finish(tmp_path, points, loss_of):
    for point in points:
        run, loss = tmp_path / point.name, loss_of(point.config)
        run.mkdir(parents=True, exist_ok=True)
        record = {"step": 40, "tokens": 10240, "validation_loss": loss}
        if loss is None:
            record = {"step": 30, "tokens": 7680, "skipped_in_row": 10}
        else:
            (run / "checkpoints/40").mkdir(parents=True, exist_ok=True)
        (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")


def best_at(peak):
    return lambda config: 3 + abs(config.train.schedule.peak_lr - peak)


def further(tmp_path, asked, n_seeds=2):
    return tuning.further_points(expand(asked), tmp_path, n_seeds)


def test_an_inner_best_peak_gets_more_seeds(tmp_path):
    asked = sweep_of(1e-3, 3e-3, 9e-3)
    finish(tmp_path, expand(asked), best_at(3e-3))
    new = further(tmp_path, asked)
    assert new == (
        ("model.n_layers=2", f"{PEAK}=0.003", "seed=1"),
        ("model.n_layers=2", f"{PEAK}=0.003", "seed=2"),
    )
    longer = sweep_of(1e-3, 3e-3, 9e-3, extra=new)
    assert further(tmp_path, longer, n_seeds=3) == ()  # they have not ended
    finish(tmp_path, expand(longer), best_at(3e-3))
    assert further(tmp_path, longer) == ()
    assert len(further(tmp_path, longer, n_seeds=3)) == 1


@pytest.mark.parametrize("best, beyond", [(9e-3, "0.027"), (1e-3, "0.000333")])
def test_a_best_peak_at_an_edge_gets_a_peak_beyond_it_and_no_seeds_yet(best, beyond, tmp_path):
    asked = sweep_of(1e-3, 3e-3, 9e-3)
    finish(tmp_path, expand(asked), best_at(best))
    assert further(tmp_path, asked) == (("model.n_layers=2", f"{PEAK}={beyond}", "seed=0"),)


def test_models_are_tuned_apart_and_wait_for_their_own_runs_alone(tmp_path):
    asked = sweep_of(1e-3, 3e-3, 9e-3, layers=(2, 4))
    points = expand(asked)
    finish(tmp_path, points[:4], best_at(3e-3))  # two of the second model are not finished
    assert {own[0] for own in further(tmp_path, asked)} == {"model.n_layers=2"}


def test_a_run_that_gave_up_is_the_worst(tmp_path):
    asked = sweep_of(1e-3, 3e-3, 9e-3)
    losses = {1e-3: 3.2, 3e-3: 3.0, 9e-3: None}
    finish(tmp_path, expand(asked), lambda config: losses[config.train.schedule.peak_lr])
    assert {own[1] for own in further(tmp_path, asked)} == {f"{PEAK}=0.003"}


def test_a_peak_that_was_lucky_with_its_first_seed_gives_way_to_the_next(tmp_path):
    asked = sweep_of(
        1e-3, 3e-3, 6e-3, 9e-3, extra=(("model.n_layers=2", f"{PEAK}=0.003", "seed=1"),)
    )
    unlucky = {(3e-3, 1): 9.0}

    def loss(config):
        key = config.train.schedule.peak_lr, config.seed
        return unlucky[key] if key in unlucky else 3 + abs(key[0] - 3.1e-3)

    finish(tmp_path, expand(asked), loss)
    assert further(tmp_path, asked) == (  # 1e-3, the next, is at the edge
        ("model.n_layers=2", f"{PEAK}=0.000333", "seed=0"),
    )
    unlucky[1e-3, 0] = 4.0
    finish(tmp_path, expand(asked), loss)
    assert further(tmp_path, asked) == tuple(
        ("model.n_layers=2", f"{PEAK}=0.006", f"seed={seed}") for seed in (1, 2)
    )


def test_a_single_peak_has_no_edge_and_a_search_ends(tmp_path):
    asked = sweep_of(1e-3)
    finish(tmp_path, expand(asked), best_at(1e-3))
    assert len(further(tmp_path, asked)) == 2
    peaks = [1e-4 * 2**n for n in range(tuning.MAX_PEAKS)]
    asked = sweep_of(*peaks)
    finish(tmp_path, expand(asked), best_at(peaks[-1]))
    assert {own[2] for own in further(tmp_path, asked)} == {"seed=1", "seed=2"}
