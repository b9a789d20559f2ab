"""bench.accelerator: rows that outlive what fails, shares of the time, verdicts, report."""

import json
import os
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import pytest

from bench import (
    accelerator,
    accelerator_generation,
    accelerator_kernels,
    accelerator_report,
    accelerator_resume,
    accelerator_rows,
    accelerator_trace,
    accelerator_train,
)
from gptjax.config import count

FACTS = {"card": "C", "device": "gpu", "jax": "1.2", "command": "python -m bench.accelerator"}
FACTS |= {"call": "2026-12-01T00:00:00Z", "job": "kernels"}


def recorder(tmp_path, seconds=60.0):
    return accelerator_rows.Recorder("a", tmp_path, tmp_path, FACTS, seconds)


def raises(error):
    raise error


def test_a_case_that_fails_leaves_a_row_and_the_next_begins(tmp_path):
    recorder(tmp_path).measure(
        [
            ("first", lambda: {"ms": 1.5}),
            ("large", lambda: raises(RuntimeError("RESOURCE_EXHAUSTED: 1 GiB"))),
            ("broken", lambda: raises(KeyError("x"))),
            ("last", lambda: {"ms": 2.5}),
        ]
    )
    rows = accelerator_rows.read(tmp_path)
    assert [(r["what"], r.get("verdict"), r.get("ms")) for r in rows] == [
        ("first", None, 1.5),
        ("large", "out of memory", None),
        ("broken", "failed", None),
        ("last", None, 2.5),
    ]
    assert rows[2]["note"] == "KeyError: 'x'"
    assert all(row.items() >= {"part": "a", **FACTS}.items() and row["date"] for row in rows)


def test_no_case_begins_that_would_not_end_in_time(tmp_path, monkeypatch):
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(accelerator_rows, "time", clock)
    one = recorder(tmp_path, 10)
    one.measure((name, lambda: now.__setitem__(0, now[0] + 6)) for name in "abc")
    rows = accelerator_rows.read(tmp_path)
    expected = [("b", "out of time", "not begun"), ("c", "out of time", "not begun")]
    assert [(row["what"], row["verdict"], row["note"]) for row in rows] == expected


def test_the_best_is_of_this_call(tmp_path):
    """Code may have changed since an earlier one."""
    earlier = FACTS | {"call": "2026-11-30T00:00:00Z"}
    accelerator_rows.Recorder("a", tmp_path, tmp_path, earlier, 9).add("x 1", tokens_per_s=9)
    one = recorder(tmp_path)
    assert one.best("x") is None
    for what, speed in {"x 1": 1, "x 2": 2, "y": 3}.items():
        one.add(what, tokens_per_s=speed)
    assert (one.best("x") or {})["what"] == "x 2"


def test_a_line_that_is_not_complete_is_left_out(tmp_path):
    recorder(tmp_path).add("x", ms=1)
    with open(tmp_path / accelerator_rows.FILE_NAME, "a") as file:
        file.write('{"what": "y"')
    assert [row["what"] for row in accelerator_rows.read(tmp_path)] == ["x"]


@pytest.mark.parametrize("line", ["{", "[]", '{"part": "a"}'])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    recorder(tmp_path).add("x", ms=1)
    with open(tmp_path / accelerator_rows.FILE_NAME, "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match="rows.jsonl:2 is no row of bench.accelerator: delete it"):
        accelerator_rows.read(tmp_path)


# --- processes ------------------------------------------------------------------------------------

HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
open({path!r}, "w").write(str(child.pid))
print("compiling", flush=True)
time.sleep(1000)
"""
MEASURES = """
from bench import accelerator_rows
def measure(recorder, names):
    for name in names:
        recorder.add("x", verdict=name)
accelerator_rows.run_part(measure)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that processes can run by its name."""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the process in /proc")
def test_a_part_that_hangs_is_killed_with_its_processes_and_leaves_a_row(tmp_path, module, capsys):
    module("hangs", HANGS.format(path=str(tmp_path / "pid")))
    module("measures", MEASURES)
    one = accelerator.Bench(tmp_path, tmp_path, FACTS, time.monotonic() + 30)
    jobs = [
        accelerator.Job("a", "a", "hangs", (), 4),
        accelerator.Job("b", "b", "measures", ("ok",), 26),
    ]
    one.run(jobs)
    hung, measured = accelerator_rows.read(tmp_path)
    assert (hung["verdict"], hung["part"], hung["card"]) == ("out of time", "a", "C")
    assert hung["note"] == "killed after 4 s, at: compiling"
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert (measured["what"], measured["verdict"]) == ("x", "ok")
    assert "compiling" in (tmp_path / "log.txt").read_text()
    assert "out of time" in capsys.readouterr().out


@pytest.mark.parametrize(
    "status, verdict", [(0, None), (None, "out of time"), (-9, "out of memory"), (-11, "failed")]
)
def test_end_of_a_process(status, verdict):
    row = accelerator.end_of_job(status, 10, "at work") or {}
    assert row.get("verdict") == verdict and ("at work" in row.get("note", "")) == bool(verdict)


def test_time_that_a_job_leaves_goes_to_those_after_it(tmp_path, monkeypatch):
    now, given = [0.0], []

    def run(command, log, seconds, poll):
        given.append(seconds)
        now[0] += 10
        return 0

    monkeypatch.setattr(accelerator, "run", run)
    monkeypatch.setattr(accelerator, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    jobs = [
        accelerator.Job("a", "a", "m", (), 1),
        accelerator.Job("b", "b", "m", (), 2),
        accelerator.Job("c", "c", "m", (), 8, missing="torch is not installed"),
        accelerator.Job("d", "d", "m", (), 1),
    ]
    accelerator.Bench(tmp_path, tmp_path, FACTS, 100.0).run(jobs)
    assert given == [25, 60, 80]
    (row,) = accelerator_rows.read(tmp_path)
    assert (row["verdict"], row["note"]) == ("not measured", "torch is not installed")


@pytest.mark.parametrize(
    "verdicts, status",
    [("ok", 0), ("WRONG", 1), ("failed", 1), ("out of memory", 0), ("failed,ok", 0)],
)
def test_exit_status(verdicts, status, tmp_path, module, monkeypatch, capsys):
    """The last verdict of a case counts: another kernel may have broken it before."""
    module("measures", MEASURES)
    *_, verdict = names = verdicts.split(",")
    job = accelerator.Job("a", "a", "measures", tuple(names), 1)
    monkeypatch.setattr(accelerator, "probe", lambda work: dict(FACTS))
    monkeypatch.setattr(accelerator, "jobs", lambda parts, nanogpt, is_toy: [job])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    for name in accelerator.ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    assert accelerator.main([f"--out={tmp_path}", "--parts=a"]) == status
    assert f"1 rows: 1 {verdict}" in capsys.readouterr().out
    *_, row = accelerator_rows.read(tmp_path)
    assert row["command"] == f"python -m bench.accelerator --out={tmp_path} --parts=a"
    (tmp_path / "report.md").unlink()
    assert accelerator.main([f"--out={tmp_path}", "--report"]) == 0
    assert f"| x |  | {verdict} |" in (tmp_path / "report.md").read_text()


def test_jobs_of_the_parts():
    found = accelerator.jobs(["c", "f"], "/nanogpt", False)
    named = [" ".join((job.module.rpartition("_")[2], *job.names)) for job in found]
    assert named == [
        *("train 350m", "torch 350m /nanogpt", "train 124m", "torch 124m /nanogpt"),
        *("train 1.3b", "torch 1.3b /nanogpt", "trace 350m"),
    ]
    titles = [job.title for job in accelerator.jobs([*accelerator_report.PARTS], "x", False)]
    assert len(set(titles)) == len(titles)  # rows are known by them
    without = accelerator.jobs(["c"], None, True)
    assert [job.module for job in without if not job.missing] == ["bench.accelerator_train"]


def test_what_cannot_be_measured_is_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        accelerator.read_arguments(["--parts=a,g"])
    with pytest.raises(SystemExit):
        accelerator.read_arguments([f"--nanogpt={tmp_path}"])
    assert "model.py with `class GPT` is not there: give a clone" in capsys.readouterr().err
    (tmp_path / "model.py").write_text("class GPT(nn.Module):")
    assert accelerator.read_arguments([f"--nanogpt={tmp_path}"]).nanogpt == str(tmp_path)
    with pytest.raises(SystemExit):
        accelerator.main([f"--out={tmp_path}", "--report"])
    assert f"--report: {tmp_path} has no rows.jsonl" in capsys.readouterr().err
    assert accelerator.main([f"--out={tmp_path / 'model.py'}"]) == 2
    assert capsys.readouterr().err.startswith("error: --out: ")
    for name in (*accelerator.ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(accelerator, "nvidia_gpu", lambda: "GPU 0: H100")
    monkeypatch.setattr(
        *(accelerator, "subprocess"),
        types.SimpleNamespace(run=lambda *_, stdout, stderr, timeout: write_facts(stdout)),
    )
    assert accelerator.main([f"--out={tmp_path}"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: nvidia-smi lists GPU 0: H100, but jax sees the CPU alone")
    assert printed.err.count("\n") == 1 and not printed.out
    assert not accelerator_rows.read(tmp_path) and not (tmp_path / "report.md").exists()


def write_facts(stdout):
    """A probe that finds no accelerator."""
    stdout.write(json.dumps(FACTS | {"device": "cpu"}).encode())
    return types.SimpleNamespace(returncode=0)


# --- report ---------------------------------------------------------------------------------------

ROWS = [
    {"part": "a", "what": "cudnn Dense, 2048 x 64", "error": 3e-3, "verdict": "ok"},
    {"part": "a", "what": "flash Fixed 128/8, 2048 x 64", "error": 0.7, "verdict": "WRONG"},
    {"part": "c", "what": "350m dense", "tokens_per_s": 1e5},
    {
        "part": "c",
        "what": "350m dense",
        "tokens_per_s": 123456.7,
        "mfu": 0.4567,
        "ms": 265.4,
        "target": "MFU of 45%",
        "met": True,
    },
    {"part": "e", "what": "decoding", "to_floor": 2.5, "target": "within 2 x", "met": False},
]
ROWS = [row | FACTS | {"date": f"2026-12-0{i + 1}T00:00:00Z"} for i, row in enumerate(ROWS)]


def test_a_later_call_replaces_what_it_has_measured():
    """And what it had no time for stays as it was found, first of all what is WRONG."""
    row, later = ROWS[0], {"call": "2026-12-02T00:00:00Z"}
    killed = row | {"what": "kernels", "verdict": "failed"}  # of the job as a whole
    wrong, left_out = (row | {"what": "x", "verdict": v} for v in ("WRONG", "out of time"))
    other = row | {"job": "other"}
    first = [killed, wrong, row | {"verdict": "WRONG"}, other, left_out | {"what": "y"}]
    assert accelerator_report.newest(first) == first
    second = [row | later, left_out | later]
    assert accelerator_report.newest([*first, *second]) == [wrong, row | later, other]
    page = accelerator_report.page([*first, *second])
    failed = page.partition("## Wrong or failed")[2].partition("##")[0]
    assert "| x | relative error 3.0e-03, of 2026-12-01T00:00:00Z | WRONG |" in failed
    assert failed.count("WRONG") == 1


def test_rows_of_a_cpu_are_said_to_mean_nothing():
    assert "Toy sizes" not in accelerator_report.page(ROWS)
    assert "**Toy sizes on a CPU" in accelerator_report.page([ROWS[0] | {"device": "cpu"}])


def test_the_page_has_targets_failures_and_the_newest_figures():
    page = accelerator_report.page(ROWS)
    assert page.startswith("# bench.accelerator on C\n\n- card C, jax 1.2\n- 2026-12-01T00")
    line = "| 350m dense | 123,457 tokens/s, MFU 45.7%, 265 ms | met: MFU of 45% |\n"
    assert page.count(line) == 2 and "100,000" not in page
    assert "| decoding | 2.50 x the floor | not met: within 2 x |" in page
    wrong = page.partition("## Wrong or failed")[2].partition("##")[0]
    assert "flash" in wrong and "cudnn" not in wrong
    assert accelerator_report.summary(ROWS) == "5 rows: 1 ok, 1 WRONG, 1 of 2 targets met"
    assert accelerator_report.summary(ROWS[2:3]) == "1 rows"


@pytest.mark.parametrize("width", [80, 160])
def test_lines_fit_the_terminal(width):
    long = ROWS[3] | {"what": f"350m {'word ' * 20}", "note": f"{'x' * 200} end"}
    text = accelerator_report.line(long, width)
    header = accelerator_report.header(FACTS | {"torch": "2.0" * 20}, width)
    assert max(map(len, [*text.splitlines(), *header.splitlines()])) <= width
    assert "".join(text.split()).count("x") == 200 and "met: MFU" in text


# --- parts ----------------------------------------------------------------------------------------


def test_a_wrong_kernel_is_noticed():
    x, dy = accelerator_kernels.random_normal(0, (8, 4), (8, 4))

    def square(x):
        return x * x

    fs = {
        "right": square,
        "wrong": lambda x: x * x + (jnp.arange(4) == 3).astype(x.dtype),
        "not finite": lambda x: x * jnp.nan,
        "crash": lambda x: raises(ValueError("no such kernel")),
    }
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = accelerator_kernels.compare(fs, square, [x], dy)
    assert [found[name]["verdict"] for name in fs] == ["ok", "WRONG", "WRONG", "failed"]


@pytest.mark.parametrize("names, again", [([], ["b", "c"]), (["b", "c"], ["c"]), (["c"], None)])
def test_what_fails_after_a_broken_kernel_is_computed_again(tmp_path, monkeypatch, names, again):
    """By a process of its own each."""
    monkeypatch.setattr(accelerator_kernels, "TOY_SHAPES", ((1, 1, False),))
    monkeypatch.setattr(accelerator_kernels, "TOY_GROUPED_SHAPES", ())
    monkeypatch.setattr(accelerator_kernels, "PATTERNS", "abc")
    monkeypatch.setattr(accelerator_kernels, "Case", lambda pattern, *shape: pattern)
    monkeypatch.setattr(accelerator_kernels.sys, "argv", ["x", "--part=a", *names])
    monkeypatch.setattr(accelerator_kernels.os, "cpu_count", lambda: 1)
    replaced = []
    monkeypatch.setattr(
        accelerator_kernels.os, "execv", lambda _, command: replaced.append(command)
    )

    def compare(case, platform):
        if case == "a":
            return {case: {"verdict": "ok"}}
        return {case: accelerator_rows.failure(RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS"))}

    monkeypatch.setattr(accelerator_kernels, "compare_attention", compare)
    facts = FACTS | {"device": "cpu"}
    one = accelerator_rows.Recorder("a", tmp_path, tmp_path, facts, 60)
    accelerator_kernels.measure(one, names)
    assert [row["what"] for row in accelerator_rows.read(tmp_path)] == (
        names[:1] or ["a", "b", "c"]
    )
    assert bool(replaced) == bool(again)
    for command in replaced:
        seconds = next(word for word in command if word.startswith("--seconds="))
        assert 50 < float(seconds.partition("=")[2]) <= 60
        assert command[command.index(seconds) + 1 :] == again and command.count("--part=a") == 1


def test_kernels_that_are_done_are_recorded_when_the_time_is_over(tmp_path, monkeypatch):
    """The first hangs."""
    done, ended = threading.Event(), []
    monkeypatch.setattr(accelerator_kernels.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(accelerator_kernels.os, "_exit", ended.append)
    work = [("slow", lambda: done.wait(60) and {}), ("quick", lambda: {"quick": {"verdict": "ok"}})]
    accelerator_kernels.compute_all(recorder(tmp_path, 0.5), work)
    done.set()
    rows = [(row["what"], row["verdict"]) for row in accelerator_rows.read(tmp_path)]
    assert rows == [("quick", "ok"), ("slow", "out of time")] and ended == [0]


@pytest.mark.parametrize("arm", ["alternating", "lengths"])
def test_a_loss_that_is_not_finite_is_wrong_wherever_it_is_found(tmp_path, monkeypatch, arm):
    one = accelerator_rows.Recorder("c", tmp_path, tmp_path, FACTS | {"device": "cpu"}, 60)
    wrong = {"verdict": "WRONG", "note": "the loss is nan"}
    if arm == "lengths":
        monkeypatch.setattr(accelerator_train, "time_step", lambda *_: dict(wrong))
        accelerator_train.measure_lengths(one, "toy")
    else:
        right = {"tokens_per_s": 1.0, "mfu": None, "ms": 1.0, "rows": 1}
        found = iter([right, wrong, *[wrong] * 9])
        monkeypatch.setattr(accelerator_train, "time_step", lambda *_: dict(next(found)))
        monkeypatch.setattr(accelerator_train, "MAX_TOY_ROWS", 1)
        accelerator_train.measure_model(one, "toy")
    verdicts = [
        r.get("verdict") for r in accelerator_rows.read(tmp_path) if "tokens_per_s" not in r
    ]
    assert len(verdicts) == (2 if arm == "alternating" else 6) and set(verdicts) == {"WRONG"}


def test_the_error_of_a_gradient_that_is_zero():
    zero, dy = jnp.zeros(4), jnp.full(4, 100.0)
    assert accelerator_kernels.relative_error([zero + 1e-6], [zero], dy) == [pytest.approx(1e-5)]
    assert accelerator_kernels.relative_error([zero + 1.0], [zero], dy) == [pytest.approx(10)]


@pytest.mark.parametrize(
    "speeds, most, rows",
    [
        ({8: 100.0}, None, 16),
        ({8: 100.0, 16: 150.0}, None, 32),
        ({8: 100.0, 16: 100.5}, None, None),  # no gain
        ({8: 100.0, 16: None}, None, None),  # memory's edge
        ({8: None}, None, 4),
        ({8: None, 4: 80.0}, None, None),
        ({1: None}, None, None),
        ({4: 100.0}, 4, None),
    ],
)
def test_next_batch_size(speeds, most, rows):
    assert accelerator_train.next_rows(speeds, most) == rows


@pytest.mark.parametrize("remat", accelerator_train.REMATS)
def test_first_batch_size_is_what_the_count_of_activations_allows(monkeypatch, remat):
    mesh, limit = accelerator_train.mesh_of_one(), 130 * 10**9
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": limit})
    monkeypatch.setattr(accelerator_train, "mesh_of_one", lambda: mesh)
    monkeypatch.setattr(accelerator_train.jax, "devices", lambda: [device])
    for name in accelerator_train.MODELS:
        config = accelerator_train.model_config(name, (accelerator_train.DENSE,))
        config = accelerator_train.at_batch(config, 1, remat)
        rows = accelerator_train.first_rows(config)
        free = limit - count.state_bytes(config.model)
        used = [count.activation_bytes(config, n, "bfloat16", False) for n in (rows, 4 * rows)]
        assert used[0] < free < used[1] and rows.bit_count() == 1, name


def test_time_of_decoding_is_what_more_tokens_cost(monkeypatch):
    now, seconds = [0.0], {1: 2.0, 17: 10.0}
    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(accelerator_generation, "time", clock)

    def generate(n):
        now[0] += seconds[n]

    found = accelerator_generation.time_generation(generate, 8, 100, 17)
    assert found["prefill"] == {"tokens_per_s": 400, "ms": 2000}
    assert (found["decoding"]["ms"], found["decoding"]["tokens_per_s"]) == (500, 16)
    seconds[17] = 1.9  # noise
    found = accelerator_generation.time_generation(generate, 8, 100, 17)
    assert found["decoding"]["verdict"] == "not measured" and "ms" not in found["decoding"]


@pytest.mark.parametrize(
    "found, verdict",
    [({1: 5.0, 2: 4.0}, "ok"), ({2: 4.2, 3: 1.0}, "WRONG"), ({2: float("nan")}, "WRONG")],
)
def test_losses_are_compared_where_both_have_them(found, verdict):
    assert accelerator_resume.compare(found, {1: 5.0, 2: 4.0})["verdict"] == verdict
    assert accelerator_resume.compare(found, {9: 5.0})["verdict"] == "failed"


@pytest.mark.parametrize(
    "name, kind",
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention kernels"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "matmuls"),
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f", "matmuls"),
        ("MemcpyD2D", "copies"),
        ("ncclDevKernel_AllReduce_Sum_f32", "communication"),
        ("loop_multiply_fusion_3", "elementwise and sums"),
        ("input_reduce_fusion", "elementwise and sums"),
        ("wrapped_scatter", "gather and scatter"),
        ("something", "other"),
    ],
)
def test_kinds_of_operations(name, kind):
    assert accelerator_trace.kind(name) == kind


def test_time_by_kind_of_a_step():
    op = accelerator_trace.Op
    ops = [op("dot.1", 0, 6e6), op("dot.2", 4e6, 4e6), op("loop_fusion", 10e6, 2e6)]
    rows = accelerator_trace.summarize(ops, 2)
    found = {row["what"]: (row["ms"], row["share"]) for row in rows}
    assert found["idle, of the whole time"] == (1, pytest.approx(1 / 6))
    assert found["matmuls"] == found["op dot"] == (5, pytest.approx(10 / 12))
    assert found["elementwise and sums"] == (1, pytest.approx(2 / 12))


def test_rows_are_json(tmp_path):
    recorder(tmp_path).add("x", errors=[1.0, float("nan")])
    (line,) = (tmp_path / accelerator_rows.FILE_NAME).read_text().splitlines()
    assert json.loads(line)["part"] == "a"
