"""Do two trees of this project compute the same, bit for bit? For changes that move and rename alone.

    python -P tests/before_after.py OLD_TREE NEW_TREE [--work=/tmp/before_after]

Runs the programs of both trees on the CPU with the same arguments and seeds: training, fine-tuning, evaluation by
every method, sampling, conversion, tokenization, a sweep (also vmapped), a plan; and lets the new tree resume a run of
the old one. Prints a table of what was compared. Exit status 1: something differs. Some three minutes for each tree.

What may differ is in RENAMED (an option or a config field that has another name in the new tree) and VOLATILE (times,
speeds). Commit both trees first, each in a worktree of its own: `git worktree add ../before COMMIT`.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

RENAMED = {  # the old tree's words -> the new tree's, in arguments and in configs that are stored
    "train.schedule.peak": "train.schedule.peak_lr",
    "task.peak": "task.peak_lr",
}
VOLATILE = ("seconds", "tokens_per_s", "mfu", "time")
SMALL = ("model.n_ctx=64", "train.batch_tokens=512", "train.steps=6", "loop.every_sample=None")
CHOICES = ("PerToken()", "Total()", "PerByte()", "Unconditional()", "Calibrated()")
WRITTEN = (
    "Greedy(n_tokens=4)",
    "Beam(n_tokens=4,width=3)",
    "TopK(n_tokens=4)",
    "Word()",
    "LastToken()",
)


def sets(*assignments: str) -> list[str]:
    return [part for assignment in assignments for part in ("--set", assignment)]


def write_data(folder: pathlib.Path) -> None:
    """The texts and tasks that the programs read."""
    draw = random.Random(0)

    def write(name: str, rows) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def example(n: int) -> dict:
        word = draw.choice(["RRR", "SSS"])
        text = " ".join([draw.choice(["up", "do"]), word, draw.choice(["it", "a"])])
        return {"idx": n, "sentence": text, "label": "positive" if word == "RRR" else "negative"}

    folder.mkdir()
    for split, count in (("train", 160), ("dev", 40), ("test", 20)):
        write(split, [example(n) for n in range(count)])
    write("copy_test", [{"context": f"Q: {n}\nA:", "completion": f" {n}"} for n in range(12)])
    write("copy_train", [{"context": f"Q: {n}\nA:", "completion": f" {n}"} for n in range(20, 30)])
    tastes = [" sweet", " sour"]
    write(
        "taste", [{"context": f"{n} is", "completions": tastes, "label": n % 2} for n in range(8)]
    )
    words = [str(draw.randrange(10**6)) for _ in range(3000)]
    write("texts", [{"text": " ".join(words[n : n + 30])} for n in range(0, 3000, 30)])


def scenario() -> list[tuple[str, str, list[str]]]:
    """(name, program, arguments) of what each tree runs, in this order."""
    smoke = ["--config=smoke"]
    task = [f"task.{split}=data/{split}.jsonl" for split in ("train", "dev", "test")]
    task += ["task.fields=sentence", "task.peak=1e-2", "task.batch_examples=16", "task.epochs=3"]
    ask = ["--run=pre", "--data=data", "--tasks=copy,taste"]
    grid = [*smoke, "--grid", "train.schedule.peak=1e-3|3e-3", "--seeds=2", *sets("train.steps=8")]
    steps = [
        ("training", "train", [*smoke, "--run=smoke"]),
        ("training, its first half", "train", [*smoke, "--run=half", *sets("train.steps=20")]),
        ("training, dropout and accumulation", "train",
         [*smoke, "--run=pre", *sets(*SMALL, "train.microbatch_rows=2", "model.dropout.residual=0.1")]),
        ("sampling", "sample", ["--run=smoke", "--prompt=The", "--n=3", "--tokens=40", "--seed=1"]),
        ("sampling, top-k and top-p", "sample",
         ["--run=smoke", "--prompt=x", "--top_k=20", "--top_p=0.9", "--temperature=0.7", "--n=2"]),
        ("sampling, greedy", "sample", ["--run=smoke", "--prompt=def ", "--temperature=0"]),
        ("beam search", "sample", ["--run=smoke", "--prompt=a", "--beams=3", "--tokens=12"]),
        ("fine-tuning", "finetune", ["--config=own", "--init=pre", "--run=tuned", *sets(*task)]),
        ("tokenization", "prepare", [*smoke, "--text=data/texts.jsonl", "--out=shards", "--workers=1"]),
        ("conversion", "convert", ["--from=smoke", "--to=exported"]),
        ("conversion back", "convert", ["--from=exported", "--to=exported_again"]),
        ("perplexity of a text", "evaluate", ["--run=pre", "--text=data/texts.jsonl", "--stride=16", "--out=text"]),
        ("sweep", "sweep", [*grid, "--dir=swept"]),
        ("sweep, vmapped", "sweep", [*grid, "--dir=vmapped", "--together=4"]),
        ("plan", "plan", ["--config=gpt3_175b", "--json"]),
        ("plan of a small model", "plan", [*smoke, "--json"]),
    ]  # fmt: skip
    for number, (choice, written) in enumerate(zip(CHOICES, WRITTEN, strict=True)):
        methods = sets(f"taste.method={choice}", f"copy.method={written}")
        arguments = [*ask, "--shots=0,2", f"--out=evaluated_{number}", *methods]
        steps.append((f"evaluation, {choice} and {written}", "evaluate", arguments))
    return steps


def run_inside(tree: str) -> None:
    """Runs the scenario in this process with the tree's modules, in the working directory; stdout.json is what was printed."""
    sources = "".join(path.read_text() for path in pathlib.Path(tree, "gptjax").rglob("*.py"))
    words = {old: new for old, new in RENAMED.items() if new.split(".")[-1] in sources}
    printed = {}
    for name, program, arguments in scenario():
        for old, new in words.items():
            arguments = [argument.replace(f"{old}=", f"{new}=") for argument in arguments]
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            status = importlib.import_module(f"gptjax.{program}").main(arguments)
        if status:
            sys.exit(f"{name}: status {status}\n{stream.getvalue()}")
        printed[name] = stream.getvalue()
        print(f"  {name}", flush=True)
    pathlib.Path("stdout.json").write_text(json.dumps(printed, indent=1))


def run_in(tree: pathlib.Path, work: pathlib.Path, *command: str) -> None:
    """Runs python with the tree's modules and no others of this project, in `work`."""
    environment = os.environ | {
        "PYTHONPATH": f"{tree}",
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "120",
        "PYTHONHASHSEED": "0",
    }
    subprocess.run([sys.executable, "-P", *command], cwd=work, env=environment, check=True)


def checkpoints(run: pathlib.Path) -> dict:
    """Of each checkpoint of a run: digests of all arrays, and what was saved beside them."""
    import jax
    import orbax.checkpoint.v1 as ocp

    found = {}
    for directory in sorted((run / "checkpoints").iterdir()):
        if not directory.name.isdecimal():
            continue
        leaves, _ = jax.tree_util.tree_flatten_with_path(ocp.load(str(directory)))
        for path, leaf in leaves:
            array = jax.device_get(leaf)
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            name = f"{directory.name} {jax.tree_util.keystr(path)}"
            found[name] = f"{array.dtype}{array.shape} {digest}"
        record = ocp.checkpointables_metadata(str(directory)).custom_metadata["record"]
        about = dict(record["about"])
        about.pop("record", None)  # the seal of the measurements, times among them
        found[f"{directory.name} beside"] = translate(about)
    return found


def translate(value):
    """A JSON value with the new tree's names of config fields, without what is volatile."""
    if isinstance(value, dict):
        return {
            RENAMED.get(key, key): translate(item)
            for key, item in value.items()
            if key not in VOLATILE
        }
    return [translate(item) for item in value] if isinstance(value, list) else value


def lines(path: pathlib.Path) -> list:
    return [translate(json.loads(line)) for line in path.read_text().splitlines()]


def contents(folder: pathlib.Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def results(work: pathlib.Path) -> dict[str, dict]:
    """What is compared: name -> {part: value}."""
    printed = json.loads((work / "stdout.json").read_text())
    found: dict[str, dict] = {}
    for run in ("smoke", "half", "pre", "tuned"):
        found[f"measurements of {run}"] = dict(enumerate(lines(work / run / "metrics.jsonl")))
        found[f"checkpoints of {run}"] = checkpoints(work / run)
    for sweep in ("swept", "vmapped"):
        for path in sorted((work / sweep).rglob("metrics.jsonl")):
            point = path.parent.relative_to(work).as_posix()
            found[f"measurements of {point}"] = dict(enumerate(lines(path)))
    found["predictions"] = contents(work / "tuned" / "predictions")
    found["result of fine-tuning"] = translate(
        json.loads((work / "tuned" / "result.json").read_text())
    )
    for folder in ("shards", "exported", "exported_again"):
        found[f"files of {folder}"] = contents(work / folder)
    for folder in sorted(work.glob("evaluated_*")):
        for path in sorted(folder.glob("*.jsonl")):
            found[f"items of {folder.name}/{path.stem}"] = dict(enumerate(lines(path)))
        for path in sorted(folder.glob("*.json")):
            record = translate(json.loads(path.read_text()))
            found[f"scores of {folder.name}/{path.stem}"] = record
    for name in printed:
        if name.startswith(("sampling", "beam", "plan", "perplexity")):
            found[f"printed by {name}"] = dict(enumerate(printed[name].splitlines()))
    return found


def compare(old: dict, new: dict) -> list[str]:
    """The parts that differ."""
    missing = object()
    names = list(dict.fromkeys([*old, *new]))
    return [name for name in names if old.get(name, missing) != new.get(name, missing)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/before_after"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        run_inside(str(args.new))
        return 0
    script, all_results = str(pathlib.Path(__file__).resolve()), {}
    shutil.rmtree(args.work, ignore_errors=True)
    for name, tree in (("old", args.old.resolve()), ("new", args.new.resolve())):
        print(f"{name}: {tree}", flush=True)
        work = args.work / "work"  # the same paths for both
        work.mkdir(parents=True)
        write_data(work / "data")
        run_in(tree, work, script, "-", str(tree), "--inside")
        all_results[name] = results(work)
        work.rename(args.work / name)
    print("the new tree resumes the old tree's run", flush=True)
    work = args.work / "work"
    work.mkdir()
    shutil.copytree(args.work / "old" / "half", work / "half")
    resume = (
        "from gptjax import train; raise SystemExit(train.main(['--config=smoke', '--run=half']))"
    )
    run_in(args.new.resolve(), work, "-c", resume)
    for kind, found in (
        ("measurements", dict(enumerate(lines(work / "half" / "metrics.jsonl")))),
        ("checkpoints", checkpoints(work / "half")),
    ):
        all_results["new"][f"{kind} of the old half, resumed"] = found
        all_results["old"][f"{kind} of the old half, resumed"] = all_results["old"][
            f"{kind} of smoke"
        ]
    return report(all_results["old"], all_results["new"])


def report(old: dict[str, dict], new: dict[str, dict]) -> int:
    """Prints the table and what differs. Returns the exit status."""
    differing = 0
    for name in dict.fromkeys([*old, *new]):
        parts = compare(old.get(name, {}), new.get(name, {}))
        count = len(old.get(name, {}))
        result = "equal" if not parts else f"{len(parts)} differ"
        print(f"{name:<70} {count:>5} parts  {result}")
        differing += bool(parts)
        for part in parts[:4]:
            print(
                f"    {part}:\n      old {old.get(name, {}).get(part)}\n      new {new.get(name, {}).get(part)}"
            )
    print(f"{len(old)} things compared, {differing} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
