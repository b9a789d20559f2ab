"""Does the suite notice wrong programs? Each wrong edit ("mutant") of a list is made in a copy of
the tree, and tests run until one fails.

    python -m tests.mutants LIST.py [--only=ID,ID or AREA] [--jobs=1] [--timeout=600]
    [--out=mutants.jsonl]

LIST.py defines MUTANTS, a list of dicts: `id`, `area`, `what` (a line), `edits` ([(file, old text,
new text)]; each old text must occur exactly once), `tiers` (pytest's arguments, run in order until
one run fails; `likely`, where it is there, comes first). The test that failed must pass on the tree
as it is, where it is run by itself. What a mutant came to is a line of --out, and is not tried
again: after a change of the tree, begin another file, or take lines out.

    noticed         by a test, which is named
    hangs           a run took longer than --timeout seconds; it counts as noticed
    fails anyway    the test that failed does so without the edit: mend it, and try again
    not noticed     every run passed: a test is missing, or the edit is no fault
    does not apply  an old text is not there exactly once
    no tests        a run found none (a name that is no more), or ended before it could tell: mend
    the list, or try again

A copy is of what git tracks or would; `../shared` of the tree lies beside it. Exit status 1: some
were not noticed, or told nothing. A run of pytest ends with this program, even if that is killed.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from gptjax.runtime import child

ROOT = pathlib.Path(__file__).parents[1]
CAUGHT = ("noticed", "hangs")


def copy_tree(place: pathlib.Path) -> pathlib.Path:
    """Copies the tree into `place`, its bytecode checked by hashes: an edit may be of the same
    size and in the same second."""
    tree = place / ROOT.name
    files = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    if (ROOT.parent / "shared").exists():
        (place / "shared").symlink_to((ROOT.parent / "shared").resolve())
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "--invalidation-mode=checked-hash", "."],
        cwd=tree,
        check=True,
    )
    return tree


def run_pytest(tree: pathlib.Path, arguments: list[str], timeout: float | None) -> tuple[str, str]:
    """Runs pytest in `tree`. Returns (result, which test); the result is noticed, not noticed,
    hangs or no tests."""
    command = child.command(
        ["-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "--tb=no", "-x", *arguments]
    )
    how = {
        "env": os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        "start_new_session": True,
        "text": True,
    }
    with subprocess.Popen(
        command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how
    ) as run:
        try:
            output, _ = run.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return "hangs", " ".join(arguments)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)  # what it left behind, or all of it
    if run.returncode == 0:
        return "not noticed", " ".join(arguments)
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", output, re.MULTILINE)
    return (
        ("noticed", failed[0])
        if failed
        else ("no tests", f"{' '.join(arguments)}: exit status {run.returncode}")
    )


def try_mutant(tree: pathlib.Path, mutant: dict, timeout: float) -> dict:
    """Makes one mutant's edits, runs its tests and takes the edits back. Returns what it came
    to: result, by, seconds."""
    began, before = time.monotonic(), {}
    result, by = "not noticed", ""
    try:
        for name, old, new in mutant["edits"]:
            file = tree / name
            text = file.read_text() if file.exists() else ""
            if text.count(old) != 1:
                return {
                    "result": "does not apply",
                    "by": f"{name}: {text.count(old)} times {old!r}",
                    "seconds": 0.0,
                }
            before.setdefault(file, text)
            file.write_text(text.replace(old, new))
        for arguments in filter(None, [mutant.get("likely"), *mutant["tiers"]]):
            result, by = run_pytest(tree, arguments, timeout)
            if result != "not noticed":
                break
    finally:
        for file, text in before.items():
            file.write_text(text)
    return {"result": result, "by": by, "seconds": round(time.monotonic() - began, 1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__.splitlines()[0]
    )
    parser.add_argument("list", type=pathlib.Path)
    parser.add_argument("--only", default="", help="identifiers or areas, separated by commas")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one run of pytest")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("mutants.jsonl"))
    args = parser.parse_args(argv)
    all_mutants = runpy.run_path(str(args.list))["MUTANTS"]
    only = set(filter(None, args.only.split(",")))
    if unknown := only - {m["id"] for m in all_mutants} - {m["area"] for m in all_mutants}:
        parser.error(
            f"--only: neither an identifier nor an area of {args.list}: "
            f"{', '.join(sorted(unknown))}"
        )
    selection = [m for m in all_mutants if not only or only & {m["id"], m["area"]}]
    lines = (
        [json.loads(line) for line in args.out.read_text().splitlines()]
        if args.out.exists()
        else []
    )
    done = {line["id"]: line for line in lines}
    remaining, known_passing = [m for m in selection if m["id"] not in done], set()

    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary, args.out.open("a") as out:
        os.environ.setdefault(
            "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(temporary) / "compiled")
        )
        trees = queue.SimpleQueue()
        for number in range(max(1, args.jobs) if remaining else 0):
            trees.put(copy_tree(pathlib.Path(temporary) / str(number)))

        def run_one(mutant: dict):
            tree = trees.get()
            try:
                line = {part: mutant[part] for part in ("id", "area", "what")} | try_mutant(
                    tree, mutant, args.timeout
                )
                if line["result"] == "noticed" and line["by"] not in known_passing:
                    if run_pytest(tree, [line["by"]], args.timeout)[0] == "not noticed":
                        known_passing.add(line["by"])
                    else:
                        line["result"] = "fails anyway"
            finally:
                trees.put(tree)
            done[mutant["id"]] = line
            out.write(json.dumps(line) + "\n")
            out.flush()
            print(*(line[part] for part in ("id", "result", "seconds", "by")), flush=True)

        with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
            list(pool.map(run_one, remaining))
    return summarize([done[m["id"]] for m in selection])


def summarize(lines: list[dict]) -> int:
    """Prints how many of each area came to what, what was not noticed, and the rate. Returns the
    exit status."""
    counts = collections.Counter((line["area"], line["result"]) for line in lines)
    results = sorted({line["result"] for line in lines})
    print(f"\n{'area':<16}" + "".join(f"{result:>16}" for result in results))
    for area in dict.fromkeys(line["area"] for line in lines):
        print(f"{area:<16}" + "".join(f"{counts[area, result]:>16}" for result in results))
    for line in (line for line in lines if line["result"] not in CAUGHT):
        print(
            f"{line['result']}: {line['id']} {line['what']}"
            + (f" ({line['by']})" if line["result"] != "not noticed" else "")
        )
    valid = [line for line in lines if line["result"] in (*CAUGHT, "not noticed")]
    noticed = sum(line["result"] in CAUGHT for line in valid)
    print(
        f"noticed: {noticed} of {len(valid)}" + (f", {noticed / len(valid):.1%}" if valid else "")
    )
    return 0 if noticed == len(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
