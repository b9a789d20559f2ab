"""docs/reference/ names what a run writes: every key of metrics.jsonl, every file."""

import json
import re
import typing
from pathlib import Path

from gptjax.config.classification import ClassificationTask
from gptjax.report import events
from gptjax.training import checkpoint

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_every_key_of_the_metrics_is_explained(finished):
    page = (REFERENCE / "metrics.md").read_text()
    explained = {
        key
        for row in re.findall(r"^\| (`.*?) \|", page, re.M)
        for key in re.findall(r"`(\w+)`", row)
    }
    written = {key for line in events.read(finished) for key in line}
    assert {"loss", "validation_loss", "grad_norm"} <= written
    written |= set(typing.get_args(typing.get_type_hints(ClassificationTask)["metric"]))
    assert written - explained == set()


def test_every_file_of_a_run_is_named(finished):
    page = (REFERENCE / "file-formats.md").read_text().partition("\n## Shards")[0]
    named = re.findall(r"^\| `([\w.]+)", page, re.M)
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= names
    assert names - set(named) == set()
    listing = json.loads((finished / "checkpoints" / "9" / "files.json").read_text())
    assert "state/_METADATA" in listing and "`files.json`" in page
    about = checkpoint.CheckpointReader(finished / "checkpoints", print).metadata(9)
    assert [name for name in about if f"`about.{name}`" not in page] == []
