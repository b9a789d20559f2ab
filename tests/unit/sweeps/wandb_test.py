"""What is sent to Weights & Biases, by a stand-in for its package."""

import json
import sys

import pytest

from gptjax import sweep as program
from gptjax.config import sweep
from gptjax.sweeps import run_status
from tests.outcomes import SMOKE, expand

STAND_IN = """
import json, pathlib

def init(**given):
    return Run(given)

class Run:
    step = 2  # are there already

    def __init__(self, given):
        self.file = pathlib.Path(given["dir"]) / f"{given['name']}.json"
        self.told = {key: given[key] for key in ("project", "group", "id", "resume")} | {"seed": given["config"]["seed"], "steps": {}}
        self.summary = {}

    def log(self, values, step):
        self.told["steps"][step] = values

    def finish(self):
        self.file.write_text(json.dumps(self.told | self.summary))
"""  # noqa: E501


@pytest.fixture
def directory(tmp_path):
    asked = sweep.Sweep(description="a?", recipe="smoke", points=sweep.seeds(3))
    run_status.write_sweep(tmp_path, "mine", asked, SMOKE, expand(asked))
    for point in expand(asked)[:2]:
        records = [{"step": step, "loss": 3.0, "lr": "NaN"} for step in (1, 2, 3)] + [
            {"step": 3, "validation_loss": 4.0}
        ]
        (tmp_path / point.name).mkdir()
        (tmp_path / point.name / "metrics.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )
    return tmp_path


def test_each_run_is_sent_from_where_it_stands_there(directory, monkeypatch, capsys):
    packages = directory / "packages"
    packages.mkdir()
    (packages / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(packages)
    try:
        assert program.main(["send", str(directory), "--project=theirs"]) == 0
    finally:
        sys.modules.pop("wandb", None)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "seed=0: steps 2 to 3",
        "seed=1: steps 2 to 3",
        "seed=2: nothing to send",
        "2 of 3 runs sent to theirs",
    ]
    first, second = (json.loads((directory / f"seed={seed}.json").read_text()) for seed in (0, 1))
    assert (first["project"], first["group"], first["resume"], first["seed"]) == (
        "theirs",
        "mine",
        "allow",
        0,
    )
    assert (
        first["steps"] == {"2": {"loss": 3.0}, "3": {"loss": 3.0, "validation_loss": 4.0}}
        and first["state"] == "begun"
    )
    assert first["id"] != second["id"]


def test_without_the_package_one_line_says_how_to_get_it(directory, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"needs the package wandb: pip install -r requirements-cloud\.txt"
    ):
        program.main(["send", str(directory)])
