"""Whole runs in this process, on its 8 simulated devices: accumulation, the batch ramp, dropout,
sampling, a finished run."""

import json
import time

import numpy as np
import pytest

from gptjax import sample, train
from gptjax.config import count
from gptjax.distributed import processes
from gptjax.generate import beam, sampling
from gptjax.report import events
from gptjax.runtime import run_dir
from gptjax.training import checkpoint, metrics, one_run


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}. " for n in range(2000)))
    return path


def trained(text, directory, *changes):
    """The record of a run of `smoke` with changes."""
    usual = [
        f"data.sources=Text(path='{text}')",
        "data.validation=Tail(fraction=0.1)",
        "train.batch_tokens=1024",
        "train.steps=6",
        "model.n_layers=1",
    ]
    assert (
        train.main(
            [
                "--config=smoke",
                f"--run_dir={directory}",
                *[p for c in (*usual, *changes) for p in ("--set", c)],
            ]
        )
        == 0
    )
    return events.read(directory)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, trained(text, directory)


def losses(lines):
    return [line["loss"] for line in lines if "loss" in line]


def test_accumulation_gives_the_same_curve_and_a_noise_scale(text, whole, tmp_path):
    lines = trained(text, tmp_path / "run", "train.microbatch_rows=8")
    np.testing.assert_allclose(losses(lines), losses(whole[1]), rtol=1e-4)
    assert all(np.isfinite(line["noise_scale"]) for line in lines if "loss" in line)
    assert "noise_scale" not in whole[1][1]


def test_the_batch_ramp_reads_more_rows_step_by_step(text, tmp_path, monkeypatch):
    """Linear from 256 to 1,024 tokens over 3,000: rows 8, 8, 16, 16 ... in one run, resumed in the
    middle without a change; the full batch's microbatches may be larger."""
    ramp = (
        "train.batch_ramp=Ramp(start_tokens=256, over_tokens=3000)",
        "train.microbatch_rows=32",
        "loop.every_save=4",
        "loop.every_eval=100",
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            metrics, "mfu", lambda flops_per_token, tokens_per_s, devices: flops_per_token
        )
        lines = trained(text, tmp_path / "run", *ramp, "train.steps=9")
    assert {line["mfu"] for line in lines if "loss" in line} == {
        count.train_flops_per_token(run_dir.load_config(tmp_path / "run").model)
    }
    rows = np.diff([0] + [line["rows"] for line in lines if "loss" in line])
    assert (
        rows[0] == 8 and rows[-1] == 32 and all(np.diff(rows) >= 0) and set(rows) >= {8, 16, 24, 32}
    )
    assert [line["tokens"] for line in lines if "loss" in line] == [32 * n for n in np.cumsum(rows)]
    assert [line["tokens"] for line in lines if "validation_loss" in line] == [32 * rows.sum()]
    np.testing.assert_allclose(
        [line["tokens_per_s"] * line["seconds"] for line in lines if "loss" in line], 32 * rows
    )
    trained(text, tmp_path / "again", *ramp, "train.steps=5")
    again = trained(text, tmp_path / "again", *ramp, "train.steps=9")
    assert losses(again) == losses(lines)


def test_a_run_goes_on_when_only_its_length_changes_and_its_mesh(text, whole, tmp_path):
    trained(text, tmp_path / "run", "train.steps=3", "mesh.fsdp=4", "mesh.data=2")
    lines = trained(
        text,
        tmp_path / "run",
        "mesh.fsdp=2",
        "mesh.tensor=2",
        "mesh.data=2",
        "mesh.sharding=fsdp_tensor",
    )
    np.testing.assert_allclose(losses(lines), losses(whole[1]), rtol=1e-4)
    assert run_dir.load_config(tmp_path / "run").mesh.tensor == 2


def test_no_step_is_said_to_be_quicker_than_it_was(text, tmp_path, monkeypatch):
    """Also where an evaluation stands between the step and its report."""

    def slow(session, put):
        advance = driver(session, put)

        def slower(*arguments):
            result = advance(*arguments)
            time.sleep(0.05)
            return result

        return slower

    driver = one_run.make_step_fn
    monkeypatch.setattr(one_run, "make_step_fn", slow)
    lines = trained(text, tmp_path / "run", "loop.every_eval=2", "train.steps=5")
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4, 5]
    assert all(line["seconds"] >= 0.05 for line in lines if "loss" in line)


def test_a_finished_run_stays_as_it_is_and_its_data_must_be_those_of_all_hosts(
    text, whole, monkeypatch
):
    directory, lines = whole
    compared = []
    monkeypatch.setattr(
        processes.ProcessGroup,
        "assert_equal",
        lambda party, topics, advice: compared.append(topics),
    )
    assert trained(text, directory) == lines
    assert {
        "text": checkpoint.CheckpointReader(directory / "checkpoints", print).metadata()["text"]
    } in compared


def test_what_a_run_leaves(whole):
    directory, lines = whole
    assert [line["step"] for line in lines if "validation_loss" in line] == [6]
    assert losses(lines)[0] == pytest.approx(np.log(257), abs=0.1) and losses(lines)[-1] < 5.4
    data = json.loads((directory / "data.json").read_text())
    assert data["validation"]["tokens"] > 0 and len(data["tokenizer"]["digest"]) == 64
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((directory / "tensorboard").glob("events.out.tfevents*"))


def test_sample_speaks_the_same_from_the_same_seed(whole, capsys):
    directory, _ = whole
    said = []
    for seed in (1, 1, 2):
        sample.main(
            [
                f"--model={directory}",
                "--prompt=7 and",
                "--num_samples=2",
                "--max_new_tokens=8",
                f"--seed={seed}",
            ]
        )
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    assert "smoke, step 6" in said[0] and said[0].count("7 and") == 2


def test_one_sample_streams_what_several_show_and_stops(whole, capsys):
    directory, _ = whole

    def said(*flags):
        sample.main([f"--model={directory}", "--prompt=7 and", "--max_new_tokens=8", *flags])
        return capsys.readouterr().out

    greedy = said("--temperature=0")
    assert greedy.startswith("smoke, step 6\n7 and") and greedy.endswith("\n")
    new = greedy.removeprefix("smoke, step 6\n7 and").removesuffix("\n")
    assert (
        said("--temperature=0", f"--stop={new[2:4]}", "--stop=7 and")
        == f"smoke, step 6\n7 and{new[: new.index(new[2:4])]}\n"
    )
    assert (
        "score -" in said("--num_beams=2", "--num_samples=2")
        and said("--num_beams=1").split() != []
    )


def test_without_flags_sample_has_what_its_help_says(whole, monkeypatch):
    seen, real, search = [], sampling.SamplingParams, beam.search
    monkeypatch.setattr(sampling, "SamplingParams", lambda **how: seen.append(how) or real(**how))
    monkeypatch.setattr(
        beam,
        "search",
        lambda *given, **more: seen.append(more.get("alpha", given[-1])) or search(*given, **more),
    )
    for flags in ([], ["--num_beams=2"]):
        sample.main([f"--model={whole[0]}", "--prompt=7 and", "--max_new_tokens=2", *flags])
    assert seen[0] == {"temperature": 1.0, "top_k": None, "top_p": None} and seen[-1] == 0.6


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--stop="], "--stop= is in every text"),
        (["--num_beams=2", "--top_k=3", "--seed=1"], "does not sample: leave out --top_k, --seed"),
        (["--length_penalty=0.6"], "--length_penalty is for a beam search: give --num_beams too"),
        (
            ["--num_beams=2", "--num_samples=3"],
            "--num_beams=2 finds 2 texts and not --num_samples=3",
        ),
    ],
)
def test_sample_refuses_what_does_not_go_together(whole, flags, message):
    with pytest.raises(ValueError, match=message):
        sample.main([f"--model={whole[0]}", *flags])


def test_sample_refuses_another_tokenizer(whole, tmp_path):
    directory, _ = whole
    (tmp_path / "checkpoints").symlink_to(directory / "checkpoints")
    config = json.loads((directory / "config.json").read_text())
    config["data.tokenizer"] = "SentencePiece(n_pieces=300, path='tokenizer.model')"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="tokenizer.model"):
        sample.main([f"--model={tmp_path}"])
