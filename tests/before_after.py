"""Do two trees of this project compute the same, bit for bit? For changes that move and rename.

    python -P tests/before_after.py OLD_TREE NEW_TREE [--work=/tmp/before_after]

Runs the programs of both trees on the CPU with the same arguments and seeds: training, fine-tuning,
evaluation by every method, sampling, conversion, tokenization, a sweep (also vmapped), a plan; and
lets the new tree resume a run of the old one. Prints a table of what was compared. Exit status 1:
something differs. Some two minutes for each tree, which is a checkout of its own: `git worktree add
../before COMMIT`.

Left out are times and speeds; seals, which are made of them; and names of files that are made of a
protocol's words. EARLIER has the words of arguments that the old tree has in place of the new
one's; old names in stored configs are those that gptjax/config/legacy.py of the new tree
translates.
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
import re
import shutil
import subprocess
import sys
from typing import Any

EARLIER = {
    "train.schedule.peak_lr": "train.schedule.peak",
    "task.peak_lr": "task.peak",
    "LastWord(": "Word(",
    "--run_dir=": "--run=",
    "--model=": "--run=",
    "--num_samples=": "--n=",
    "--max_new_tokens=": "--tokens=",
    "--num_beams=": "--beams=",
    "--num_fewshot=": "--shots=",
    "--task_data=": "--data=",
    "--vmap=": "--together=",
}
VOLATILE = ("seconds", "tokens_per_s", "mfu", "time", "seal", "outcomes")
SMALL = ("model.n_ctx=64", "train.batch_tokens=512", "train.steps=6", "loop.every_sample=None")
CHOICES = ("PerToken()", "Total()", "PerByte()", "Unconditional()", "Calibrated()")  # methods
WRITTEN = ("Greedy(n_tokens=4)", "Beam(n_tokens=4,width=3)", "TopK(n_tokens=4)") * 2
LAST_WORD = ("LastWord()", "LastToken()", "LastWord(stop_words=True)") * 2


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

    def question(n: int) -> dict:
        return {"context": f"Q: {n}\nA:", "completion": f" {n}"}

    def taste(n: int) -> dict:
        return {"context": f"{n} is", "completions": [" sweet", " sour"], "label": n % 2}

    folder.mkdir()
    for split, count in (("train", 160), ("dev", 40), ("test", 20)):
        write(split, map(example, range(count)))
    write("copy_test", map(question, range(12)))
    write("copy_train", map(question, range(20, 30)))
    write("taste", map(taste, range(8)))
    write("lambada", [{"text": f"It is {n} and {n + 1}, said the {n % 3}"} for n in range(10)])
    words = [str(draw.randrange(10**6)) for _ in range(3000)]
    write("texts", [{"text": " ".join(words[n : n + 30])} for n in range(0, 3000, 30)])
    for path in folder.iterdir():
        os.utime(path, (0, 0))  # a fingerprint is of times, too


def scenario() -> list[tuple[str, str, list[str]]]:
    """(name, program, arguments) of what each tree runs, in this order."""
    smoke, sample = ["--config=smoke"], ["--model=smoke"]
    dropout = sets(*SMALL, "train.microbatch_rows=2", "model.dropout.residual=0.1")
    task = [f"task.{split}=data/{split}.jsonl" for split in ("train", "dev", "test")]
    task += ["task.fields=sentence", "task.peak_lr=1e-2"]
    task += ["task.batch_examples=16", "task.epochs=3"]
    ask = ["--model=pre", "--task_data=data", "--tasks=copy,taste,lambada", "--num_fewshot=0,2"]
    grid = [*smoke, "--grid", "train.schedule.peak_lr=1e-3|3e-3", "--seeds=2"]
    grid += sets("train.steps=8")
    nucleus = ["--prompt=x", "--top_k=20", "--top_p=0.9", "--temperature=0.7", "--num_samples=2"]
    text = ["--text=data/texts.jsonl"]
    steps = [
        ("training", "train", [*smoke, "--run_dir=smoke"]),
        (
            "the first half of a training",
            "train",
            [*smoke, "--run_dir=half", *sets("train.steps=20")],
        ),
        ("training with dropout and microbatches", "train", [*smoke, "--run_dir=pre", *dropout]),
        (
            "sampling",
            "sample",
            [*sample, "--prompt=The", "--num_samples=3", "--max_new_tokens=40", "--seed=1"],
        ),
        ("sampling by top-k and top-p", "sample", [*sample, *nucleus]),
        ("sampling greedily", "sample", [*sample, "--prompt=def ", "--temperature=0"]),
        ("beam search", "sample", [*sample, "--prompt=a", "--num_beams=3", "--max_new_tokens=12"]),
        (
            "fine-tuning",
            "finetune",
            ["--config=own", "--init=pre", "--run_dir=tuned", *sets(*task)],
        ),
        ("tokenization", "prepare", [*smoke, *text, "--out=shards", "--workers=1"]),
        ("conversion", "convert", ["--from=smoke", "--to=exported"]),
        ("perplexity", "evaluate", ["--model=pre", *text, "--stride=16", "--out=text"]),
        ("sweep", "sweep", [*grid, "--dir=swept"]),
        ("vmapped sweep", "sweep", [*grid, "--dir=vmapped", "--vmap=4"]),
        ("plan", "plan", ["--config=gpt3_175b"]),
        ("plan of a small model", "plan", [*smoke, "--json"]),
    ]
    for choice, written, last in zip(CHOICES, WRITTEN, LAST_WORD, strict=False):
        methods = (f"taste.method={choice}", f"copy.method={written}", f"lambada.method={last}")
        arguments = [*ask, f"--out=evaluated/{choice[:-2]}", *sets(*methods)]
        steps.append((f"evaluation by {choice}, {written}, {last}", "evaluate", arguments))
    return steps


def defines(sources: str, word: str) -> bool:
    """Whether a tree has a flag, `--name=`, a record, `Name(`, or a config's field, `path.name`."""
    if word.startswith("--"):
        return f'"{word[:-1]}"' in sources
    name = word.rpartition(".")[2]
    return f"class {name[:-1]}:" in sources if name.endswith("(") else f" {name}:" in sources


def run_inside(tree: str) -> None:
    """Runs the scenario in this process with the tree's modules, in the working directory;
    printed.json is what the programs printed."""
    sources = "".join(path.read_text() for path in pathlib.Path(tree, "gptjax").rglob("*.py"))
    words = {word: earlier for word, earlier in EARLIER.items() if not defines(sources, word)}
    printed = {}
    for name, program, arguments in scenario():
        for word, earlier in words.items():
            arguments = [argument.replace(word, earlier) for argument in arguments]
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            status = importlib.import_module(f"gptjax.{program}").main(arguments)
        if status:
            sys.exit(f"{name}: status {status}\n{stream.getvalue()}")
        printed[name] = stream.getvalue()
        print(f"  {name}", flush=True)
    pathlib.Path("printed.json").write_text(json.dumps(printed, indent=1))


def run_in(tree: pathlib.Path, work: pathlib.Path, *command: str) -> None:
    """Runs python with the tree's modules and no others of this project, in `work`."""
    fixed = {"PYTHONPATH": f"{tree}", "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-P", *command], cwd=work, env=os.environ | fixed, check=True)


def translate(value: Any) -> Any:
    """A JSON value in the new tree's words, without what is volatile."""
    from gptjax.config import legacy

    if isinstance(value, dict):
        kept = {key: translate(item) for key, item in value.items() if key not in VOLATILE}
        return legacy.translate(kept) if "model.n_ctx" in kept else kept
    if isinstance(value, str) and "(" in value:
        return legacy.translate_record(value)
    return [translate(item) for item in value] if isinstance(value, list) else value


def checkpoints(run: pathlib.Path) -> dict:
    """Of each checkpoint of a run: digests of all arrays, and what was saved beside them."""
    import jax
    from orbax.checkpoint import v1 as ocp

    found = {}
    for directory in sorted((run / "checkpoints").iterdir()):
        if not directory.name.isdecimal():
            continue
        leaves, _ = jax.tree_util.tree_flatten_with_path(ocp.load(str(directory)))
        for path, leaf in leaves:
            array = jax.device_get(leaf)
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            found[f"{directory.name} {jax.tree_util.keystr(path)}"] = (
                f"{array.dtype}{array.shape} {digest}"
            )
        record = ocp.checkpointables_metadata(str(directory)).custom_metadata["record"]
        for key, value in record["about"].items():
            if key != "record":  # a seal made of measurements, times among them
                found[f"{directory.name} {key}"] = translate(value)
    return found


def lines(path: pathlib.Path) -> dict[int, Any]:
    return dict(enumerate(translate(json.loads(line)) for line in path.read_text().splitlines()))


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Digests of all files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def results(work: pathlib.Path) -> dict[str, dict]:
    """What is compared: name -> {part: value}."""
    found: dict[str, dict] = {}
    for run in ("smoke", "half", "pre", "tuned"):
        found[f"measurements of {run}"] = lines(work / run / "metrics.jsonl")
        found[f"checkpoints of {run}"] = checkpoints(work / run)
    for path in sorted(work.glob("[sv]*/*=*/metrics.jsonl")):
        point = path.parent.relative_to(work).as_posix()
        for word, earlier in EARLIER.items():
            old, new = (f"{name.rpartition('.')[2]}=" for name in (earlier, word))
            point = point.replace(f"/{old}", f"/{new}")
        found[f"measurements of {point}"] = lines(path)
    found["predictions"] = contents(work / "tuned" / "predictions")
    found["result of fine-tuning"] = translate(
        json.loads((work / "tuned" / "result.json").read_text())
    )
    for folder in ("shards", "exported"):
        found[f"files of {folder}"] = contents(work / folder)
    for path in sorted((work / "evaluated").rglob("*.json*")):
        name = re.sub("-[0-9a-f]{16}", "", path.relative_to(work).as_posix())  # of the words
        jsonl = path.suffix == ".jsonl"
        found[name] = lines(path) if jsonl else translate(json.loads(path.read_text()))
    printed = json.loads((work / "printed.json").read_text())
    for name, text in printed.items():
        if name.startswith(("sampling", "beam", "plan", "perplexity")):
            found[f"what {name} printed"] = dict(enumerate(text.splitlines()))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/before_after"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        run_inside(str(args.new))
        return 0
    trees = {"old": args.old.resolve(), "new": args.new.resolve()}
    sys.path.insert(0, str(trees["new"]))
    script, work, found = str(pathlib.Path(__file__).resolve()), args.work / "work", {}
    shutil.rmtree(args.work, ignore_errors=True)
    for name, tree in trees.items():
        print(f"{name}: {tree}", flush=True)
        work.mkdir(parents=True)  # the same path for both
        write_data(work / "data")
        run_in(tree, work, script, "-", str(tree), "--inside")
        found[name] = results(work)
        work.rename(args.work / name)
    print("the new tree resumes the old one's run", flush=True)
    work.mkdir()
    shutil.copytree(args.work / "old" / "half", work / "half")
    resume = "from gptjax import train; train.main(['--config=smoke', '--run_dir=half'])"
    run_in(trees["new"], work, "-c", resume)
    resumed = {"measurements": lines(work / "half" / "metrics.jsonl")}
    resumed["checkpoints"] = checkpoints(work / "half")
    for part, value in resumed.items():
        name = f"{part} of the old half, resumed, and of smoke"
        for tree, values in (("old", found["old"][f"{part} of smoke"]), ("new", value)):
            shorter = ("10 config", "20 config")  # those of the half
            found[tree][name] = {key: values[key] for key in values if key not in shorter}
    return report(found["old"], found["new"])


def report(old: dict[str, dict], new: dict[str, dict]) -> int:
    """Prints the table and what differs. Returns the exit status."""
    missing, n_different = "(missing)", 0
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name, {}), new.get(name, {})
        parts = [
            part for part in dict.fromkeys([*a, *b]) if a.get(part, missing) != b.get(part, missing)
        ]
        result = f"{len(parts)} differ" if parts else "equal"
        print(f"{name:<70} {len(a):>5} parts  {result}")
        n_different += bool(parts)
        for part in parts[:4]:
            for tree, values in (("old", a), ("new", b)):
                print(f"    {part}, {tree}: {str(values.get(part, missing))[:400]}")
    print(f"{len(old)} things compared, {n_different} differ")
    return 1 if n_different else 0


if __name__ == "__main__":
    sys.exit(main())
