"""What evaluations keep is believed only as it was written."""

import json
import random

import pytest

from gptjax.evals import outcomes
from gptjax.runtime import checksums

ONES = [
    {
        "id": str(n),
        "right": (n, 1),
        "log_probabilities": [-0.1 * n, float("-inf")],
        "written": "\u00e9\ud800\n",
    }
    for n in range(6)
]


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "task-0-abc.jsonl"
    path.write_text("".join(outcomes.encode_line(one, path.stem) for one in ONES))
    return path


def test_outcomes_are_read_back(kept):
    found = outcomes.read(kept, pytest.fail)
    assert list(found) == [one["id"] for one in ONES] and found["3"] == json.loads(
        json.dumps(ONES[3])
    )
    assert outcomes.read(kept.with_name("none.jsonl"), pytest.fail) == {}


def test_an_incomplete_last_line_is_dropped_silently(kept):
    kept.write_bytes(kept.read_bytes()[:-5])
    assert list(outcomes.read(kept, pytest.fail)) == list("01234")
    assert list(outcomes.read(kept, pytest.fail)) == list("01234")


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b'"right": [2', b'"right": [1'),
        lambda line: line.replace(b"-0.2", b"-0.3"),
        lambda line: line.replace(b'"seal": "', b'"seal": "0'),
        lambda line: line.partition(b', "seal"')[0] + b"}",
        lambda line: line[:20],
        lambda line: b"\xff" + line,
        lambda line: b"[" * 100_000,
        lambda line: b"3",
        lambda line: b"",
        lambda line: line.replace(b'"id": "2"', b'"id": "9"'),
    ],
)
def test_a_damaged_line_is_reported_and_dropped(kept, damage):
    lines, said = kept.read_bytes().split(b"\n"), []
    lines[2] = damage(lines[2])
    kept.write_bytes(b"\n".join(lines))
    assert list(outcomes.read(kept, said.append)) == list("01345")
    assert said == [
        f"{kept}: line 3 of 6 are damaged or were edited; those items are evaluated again"
    ]
    assert list(outcomes.read(kept, pytest.fail)) == list("01345")  # the rest is whole again


def test_any_flipped_byte_is_noticed(kept):
    whole, draw = kept.read_bytes(), random.Random(0)
    for _ in range(60):
        at = draw.randrange(len(whole))
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        found = outcomes.read(kept, lambda line: None)
        assert all(
            found[name] == json.loads(json.dumps(ONES[int(name)])) for name in found
        )  # nothing but what was written


def test_outcomes_of_another_evaluation_are_rejected(kept):
    other, said = kept.with_name("task-0-def.jsonl"), []
    other.write_bytes(kept.read_bytes())
    assert outcomes.read(other, said.append) == {} and "lines 1, 2, 3, 4, 5 ... of 6" in said[0]


def test_records(tmp_path):
    path, said = tmp_path / "a.json", []
    outcomes.save_record(path, {"task": "x", "scores": {"f1": 0.1}, "pair": (1, 2)}, pytest.fail)
    assert checksums.read(path)["pair"] == [1, 2]
    outcomes.save_record(path, {"task": "x", "scores": {"f1": 0.2}}, pytest.fail)
    for content, why in [
        (path.read_text().replace("0.2", "0.3"), "its seal is wrong"),
        ("{}", "its seal is missing, as in those of earlier versions"),
        ("", "is not JSON"),
        ("[1]", "holds a JSON list"),
    ]:
        path.write_text(content)
        with pytest.raises(ValueError, match=why):
            checksums.read(path)
    outcomes.save_record(path, {"task": "y"}, said.append)
    assert "it is written again" in said[0] and checksums.read(path)["task"] == "y"
