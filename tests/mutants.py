"""Do the tests notice wrong programs? Makes each fault of tests/mutants.toml in a copy of the tree
and runs tests until one fails.

    python -m tests.mutants [FAULT or AREA ...] [--jobs=1] [--tests=named|folder|suite]
                            [--timeout=600] [--out=mutants.jsonl]

For each fault run the tests that it names, then the folder of tests nearest to its file, then the
whole suite (without tests/meta, which is about how code is written); --tests says how far. A test
that fails must pass on the tree as it is. Results are lines of --out; what has a line there is not
run again: after a change of the tree begin another file, or delete lines.

    killed          a test, which is named, fails
    timed out       a run took longer than --timeout seconds; it counts as killed
    survived        every test passes: one is missing, or the edit is no fault
    fails anyway    the test that fails does so without the fault: mend it, and run again
    not applicable  the old code is not in the file exactly once
    no tests        pytest found none (a name that is no more), or ended before it could tell

A copy holds what git tracks or would; `../shared` of the tree lies beside it. Exit status 1: not
all were killed. A run of pytest ends with this program, even if that is killed.
"""

import argparse
import ast
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence

from gptjax.report import console
from gptjax.runtime import child

ROOT = pathlib.Path(__file__).parents[1]
KILLED = ("killed", "timed out")
STAGES = ("named", "folder", "suite")


@dataclasses.dataclass(frozen=True)
class Edit:
    file: str
    old: str
    new: str


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault of the list: `name` in `area`, its edits, and pytest's arguments for the tests
    that should notice it."""

    area: str
    name: str
    fault: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def load(text: str) -> list[Mutant]:
    """The list in TOML -> its mutants; TypeError or KeyError if it is not what its first lines
    say."""
    mutants = []
    for area, entries in tomllib.loads(text).items():
        for name, entry in entries.items():
            edits = entry.get("edits") or [{key: entry[key] for key in ("file", "old", "new")}]
            mutants.append(
                Mutant(
                    area=area,
                    name=name,
                    fault=entry["fault"],
                    edits=tuple(Edit(**edit) for edit in edits),
                    tests=tuple(entry["tests"]),
                )
            )
    return mutants


def pattern(code: str) -> re.Pattern[str]:
    """Matches `code` however it is broken into lines, with or without a comma before a closing
    bracket."""
    tokens = re.findall(r"\w+|[^\w\s]", code)
    parts = []
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        if token == "," and following and following in ")]}":
            continue
        parts.append((r"(?:,\s*)?" if token in ")]}" else "") + re.escape(token))
    words = [
        r"(?!\w)" if tokens[-1][-1].isalnum() else "",
        r"(?<!\w)" if tokens[0].isalnum() else "",
    ]
    return re.compile(words[1] + r"\s*".join(parts) + words[0])


def apply(root: pathlib.Path, mutant: Mutant) -> dict[str, str]:
    """The files that the mutant changes, as they are then. ValueError if an edit does not
    apply, or if the result does not parse."""
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        if edit.file not in texts:
            path = root / edit.file
            texts[edit.file] = path.read_text() if path.exists() else ""
        text = texts[edit.file]
        matches = list(pattern(edit.old).finditer(text))
        if len(matches) != 1:
            raise ValueError(f"{edit.file} has {len(matches)} times: {edit.old}")
        start, end = matches[0].span()
        line = text[text.rfind("\n", 0, start) + 1 :]
        indent = line[: len(line) - len(line.lstrip(" "))]
        texts[edit.file] = text[:start] + edit.new.replace("\n", "\n" + indent) + text[end:]
    for file, text in texts.items():
        try:
            ast.parse(text)
        except SyntaxError as error:
            raise ValueError(f"{file} does not parse then: {error}") from None
    return texts


def stages(root: pathlib.Path, mutant: Mutant, last: str) -> list[list[str]]:
    """pytest's arguments of each stage up to `last`: the named tests, the nearest folder of
    tests/unit, everything."""
    folder = pathlib.Path(mutant.edits[0].file).parent
    names = [*mutant.edits[0].file.split("/")[1:-1]] if folder.parts[0] == "gptjax" else ["config"]
    nearest = pathlib.Path("tests/unit", *names)
    while not (root / nearest).is_dir():
        nearest = nearest.parent
    found = [list(mutant.tests), [str(nearest)], ["tests", "--ignore=tests/meta"]]
    return found[: STAGES.index(last) + 1]


def copy_tree(place: pathlib.Path) -> pathlib.Path:
    """Copies the tree into `place`, its bytecode checked by hashes: an edit may be of the same
    size and in the same second."""
    tree = place / ROOT.name
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    if (ROOT.parent / "shared").exists():
        (place / "shared").symlink_to((ROOT.parent / "shared").resolve())
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode=checked-hash", "."]
    subprocess.run(command, cwd=tree, check=True)
    return tree


def run_pytest(
    tree: pathlib.Path, arguments: Sequence[str], timeout: float | None = None
) -> tuple[int | None, str]:
    """Runs pytest in `tree` -> (exit status, output); the status is None if it took longer than
    `timeout` seconds."""
    command = child.command(["-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--tb=no"])
    if any("::" in argument for argument in arguments):
        command += ["-m", "slow or not slow"]  # a test that is named may be slow
    with subprocess.Popen(
        [*command, *arguments],
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        start_new_session=True,
        text=True,
    ) as run:
        try:
            output, _ = run.communicate(timeout=timeout)
            return run.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)  # what it left behind, or all of it


def tests_with(outcome: str, output: str) -> list[str]:
    """The tests that pytest's summary gives this outcome: PASSED, FAILED or ERROR."""
    end = "$" if outcome == "PASSED" else "(?: - |$)"
    return re.findall(rf"^{outcome} (.+?){end}", output, re.MULTILINE)


class Copy:
    """A copy of the tree. Knows which tests pass in it as it is."""

    def __init__(self, tree: pathlib.Path, passing: set[str]):
        self._tree, self._passing = tree, passing

    def note_passing(self, tests: Iterable[str]) -> None:
        """Runs these tests and remembers those that pass."""
        _, output = run_pytest(self._tree, list(tests))
        self._passing.update(tests_with("PASSED", output))

    def run(self, mutant: Mutant, last_stage: str, timeout: float) -> dict:
        """Makes the mutant's edits, runs its tests and takes the edits back -> result, by,
        seconds."""
        began = time.monotonic()
        try:
            texts = apply(self._tree, mutant)
        except ValueError as error:
            return {"result": "not applicable", "by": str(error), "seconds": 0.0}
        before = {file: (self._tree / file).read_text() for file in texts}
        try:
            for file, text in texts.items():
                (self._tree / file).write_text(text)
            result, by = self._run_stages(mutant, last_stage, timeout)
        finally:
            for file, text in before.items():
                (self._tree / file).write_text(text)
        if result == "killed" and by not in self._passing:
            self.note_passing([by])
            result = "killed" if by in self._passing else "fails anyway"
        return {"result": result, "by": by, "seconds": round(time.monotonic() - began, 1)}

    def _run_stages(self, mutant: Mutant, last: str, timeout: float) -> tuple[str, str]:
        by = ""
        for arguments in stages(self._tree, mutant, last):
            by = " ".join(arguments)
            status, output = run_pytest(self._tree, ["-x", *arguments], timeout)
            if status is None:
                return "timed out", by
            if status:
                failed = tests_with("FAILED", output) + tests_with("ERROR", output)
                return ("killed", failed[0]) if failed else ("no tests", f"{by}: status {status}")
        return "survived", by


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="FAULT or AREA", help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="faults at once")
    parser.add_argument("--tests", choices=STAGES, default="suite", help="which tests to run")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one run of pytest")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("mutants.jsonl"))
    args = parser.parse_args(argv)
    mutants = load((ROOT / "tests" / "mutants.toml").read_text())
    if unknown := set(args.names) - {part for m in mutants for part in (m.name, m.area)}:
        parser.error(f"no fault or area of tests/mutants.toml: {', '.join(sorted(unknown))}")
    chosen = [m for m in mutants if not args.names or {m.name, m.area} & set(args.names)]
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    results = {line["name"]: line for line in map(json.loads, lines)}
    remaining = [mutant for mutant in chosen if mutant.name not in results]
    if remaining:
        run_all(remaining, args, results)
    return report([results[mutant.name] for mutant in chosen])


def run_all(mutants: Sequence[Mutant], args: argparse.Namespace, results: dict[str, dict]) -> None:
    """Runs the mutants in args.jobs copies of the tree, into `results` and args.out."""
    screen = console.Console(quiet=False)
    with contextlib.ExitStack() as stack:
        temporary = pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants-"))
        )
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(temporary / "compiled"))
        passing: set[str] = set()
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for number in range(max(1, args.jobs)):
            copies.put(Copy(copy_tree(temporary / str(number)), passing))
        first = copies.get()
        with screen.status("running the named tests without a fault"):
            first.note_passing(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        copies.put(first)
        out = stack.enter_context(args.out.open("a"))
        progress = stack.enter_context(screen.progress_bar("faults"))

        def run_one(mutant: Mutant) -> None:
            copy = copies.get()
            try:
                line = {"name": mutant.name, "area": mutant.area, "fault": mutant.fault}
                line |= copy.run(mutant, args.tests, args.timeout)
            finally:
                copies.put(copy)
            results[mutant.name] = line
            out.write(json.dumps(line) + "\n")
            out.flush()
            screen.print(f"{line['name']} {line['result']} {line['seconds']} s {line['by']}")
            progress(sum(other.name in results for other in mutants) / len(mutants))

        with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
            list(pool.map(run_one, mutants))


def report(lines: Sequence[dict]) -> int:
    """Prints a table of results by area, what was not killed, and the rate. Returns the exit
    status."""
    counts = collections.Counter((line["area"], line["result"]) for line in lines)
    results = sorted({line["result"] for line in lines}, key=lambda result: result not in KILLED)
    print(f"\n{'area':<16}" + "".join(f"{result:>16}" for result in results))
    for area in dict.fromkeys(line["area"] for line in lines):
        print(f"{area:<16}" + "".join(f"{counts[area, result]:>16}" for result in results))
    for line in (line for line in lines if line["result"] not in KILLED):
        print(f"{line['result']}: {line['name']}: {line['fault']} ({line['by']})")
    told = [line for line in lines if line["result"] in (*KILLED, "survived")]
    n_killed = sum(line["result"] in KILLED for line in told)
    share = f", {n_killed / len(told):.1%}" if told else ""
    print(f"killed: {n_killed} of {len(told)}{share}")
    return 0 if n_killed == len(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
