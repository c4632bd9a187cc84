"""Mutation testing: make one fault at a time and see which test notices.

    python -m parity_tests.mutate [--only NAME ...] [--jobs 2]      (or make mutants ARGS="--only NAME")

A worker owns a copy of the repository's packages in a temporary folder. For each mutant it changes the text there, starts a
process in which pytest runs the suite until the first failure, and puts the text back. The tests of the changed room come
first, then those of the rooms that use it: nearly every fault dies within seconds. A kill counts only because the unchanged
copy passes: a full run shows that first, a run with --only shows it for the tests that killed. The verdicts are kept in
mutants.json, and MUTANTS.md is written from it; --only replaces the named ones.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from parity_tests.mutants import BY_NAME, MUTANTS, ROOT, TWICE, Mutant, mutated_files

PACKAGES = ("reference_numpy", "torch_impl", "parity_tests", "train")
DEPENDENTS = ("attention", "decode", "optimizer", "parameters", "model", "block")  # rooms that use others, fast ones first
NOT_RUN = ("test_mutants", "test_bounds")  # one compares the faults with the text; one runs nothing of the twins
PRELOADED = ["numpy", "torch", "pytest", "hypothesis.extra.numpy"]  # slow to import, and not ours
LIMIT = 900  # seconds of work for one mutant: a fault can make a loop endless
MEMORY = 6 * 2**30  # bytes for one mutant, far above what the suite needs: an endless loop can fill a list
PATIENCE = 10  # times as long by the clock, for a busy machine, and for a process that waits for ever
REPORT, RECORD = ROOT / "parity_tests" / "MUTANTS.md", ROOT / "parity_tests" / "mutants.json"


SIGXCPU = getattr(signal, "SIGXCPU", 0)
JUDGED = {0: "survived", 1: "killed", 2: "killed"}  # by pytest's exit status; 2: the tests could not even be imported


class Change(NamedTuple):
    """What the runner needs to know of a mutant, wherever it comes from: its name, and the new text of each file."""

    name: str
    files: dict[str, str]
    tests: tuple[str, ...] = ()
    """Run these alone; empty: all, in a good order."""
    parts: int = 1
    """Try every property on this part of its examples alone: 3 for a third."""


class Verdict(NamedTuple):
    """What happened to a mutant. `killer` is the test that failed first, `message` the first line of its failure."""

    name: str
    outcome: str
    """killed, survived, or timeout."""
    killer: str
    message: str
    seconds: float


# ---- in the process of one mutant


class Witness:
    """A plugin of pytest that remembers the first failure."""

    def __init__(self) -> None:
        self.killer = self.message = ""

    def pytest_collectreport(self, report: Any) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed and not self.killer:
            self.killer = report.nodeid or "collection"
            crash = getattr(report.longrepr, "reprcrash", None)
            text = str(report.longrepr) if crash is None else crash.message
            errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")] if crash is None else []
            self.message = (errors[-1] if errors else text).strip().split("\n")[0]


def examine(copy: str, packages: Sequence[str], tests: Sequence[str], parts: int, limit: int, answer: Connection) -> None:
    """Run the tests in the copy until one fails; send exit status, killer and message, or what went wrong."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 10))  # then SIGXCPU
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))  # then MemoryError
    try:
        answer.send(run_pytest(copy, packages, tests, parts))
    except BaseException:
        answer.send((None, "", traceback.format_exc()))


def run_pytest(copy: str, packages: Sequence[str], tests: Sequence[str], parts: int) -> tuple[int, str, str]:
    """pytest's exit status, the test that failed and its message, if one did."""
    os.chdir(copy)
    sys.path.insert(0, copy)
    sys.dont_write_bytecode = True  # Python tells versions of a file apart by second and size: a mutant may share both
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]
    import pytest
    from hypothesis import Phase, settings

    # the examples of the profile "ci", which is derandomised, without looking for a smaller one that fails, too
    ci = settings.get_profile("ci")
    phases = Phase.explicit, Phase.generate
    settings.register_profile(
        "mutants", ci, max_examples=max(1, ci.max_examples // parts), phases=phases, report_multiple_bugs=False
    )
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", "--rootdir", copy]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Hypothesis was imported ahead, on purpose
    witness = Witness()
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        status = pytest.main([*options, *tests], plugins=[witness])
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        assert name.split(".")[0] not in packages or file is None or Path(file).is_relative_to(copy), f"{name}: {file}"
    return int(status), witness.killer, witness.message


# ---- in the process that judges


def start_method() -> Any:
    """A way to start processes. Where it can, a server that has imported what is slow forks them in no time."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def judge(change: Change, copy: Path, packages: Sequence[str], tests: Sequence[str], limit: int, context: Any) -> Verdict:
    """Make the change in the copy, run the tests, and undo it."""
    start = time.monotonic()
    originals = {file: (copy / file).read_text(encoding="utf-8") for file in change.files}
    try:
        for file, text in change.files.items():
            (copy / file).write_text(text, encoding="utf-8")
        answer, end = context.Pipe(duplex=False)
        arguments = str(copy), packages, tests, change.parts, limit, end
        process = context.Process(target=examine, args=arguments, daemon=True)
        process.start()
        end.close()
        status, killer, message = 1, "", ""
        in_time = answer.poll(PATIENCE * limit)
        if in_time:
            try:
                status, killer, message = answer.recv()
            except EOFError:  # it died
                process.join()
                in_time = process.exitcode != -SIGXCPU
                message = f"the process ended without an answer, exit status {process.exitcode}"
        process.kill()
        process.join()
    finally:
        for file, text in originals.items():
            (copy / file).write_text(text, encoding="utf-8")
    if status not in JUDGED:
        raise RuntimeError(f"{change.name}: pytest could not run, exit status {status}: {message}")
    seconds = round(time.monotonic() - start, 1)
    if not in_time:
        return Verdict(change.name, "timeout", "", f"no verdict after {limit} s of work", seconds)
    return Verdict(change.name, JUDGED[status], killer, message, seconds)


def judge_all(
    changes: Sequence[Change],
    root: Path = ROOT,
    packages: Sequence[str] = PACKAGES,
    jobs: int = 1,
    limit: int = LIMIT,
) -> Iterator[Verdict]:
    """Verdicts in the order of the changes. Each job has its own copy of the packages below root."""
    context = start_method()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder, ThreadPoolExecutor(jobs) as threads:
        copies: queue.Queue[Path] = queue.Queue()
        for job in range(jobs):
            copies.put(copy_packages(root, Path(folder).resolve() / str(job), packages))
        stopped = threading.Event()

        def run(change: Change) -> Verdict | None:
            if stopped.is_set():
                return None
            copy = copies.get()
            try:
                return judge(change, copy, packages, change.tests or ordered_tests(copy, change.files), limit, context)
            finally:
                copies.put(copy)

        try:
            for verdict in threads.map(run, changes):
                assert verdict is not None
                yield verdict
        finally:
            stopped.set()


def copy_packages(root: Path, copy: Path, packages: Sequence[str]) -> Path:
    """A copy of the packages, without compiled files, of pytest's configuration and of the README, which tests read."""
    for package in packages:
        if (root / package).is_dir():
            shutil.copytree(root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        if (root / name).is_file():
            shutil.copy(root / name, copy)
    return copy


def ordered_tests(copy: Path, files: Iterable[str]) -> list[str]:
    """All test files of the proof: those of the changed rooms, those of their dependents, all others."""
    rooms = [Path(file).stem for file in files]
    everything = sorted(path.stem for path in (copy / "parity_tests").glob("test_*.py") if path.stem not in NOT_RUN)
    first = [f"test_{room}" for room in (*rooms, *DEPENDENTS)]
    order = dict.fromkeys(name for name in (*first, *everything) if name in everything)
    return [f"parity_tests/{name}.py" for name in order]


# ---- the report


def changes_of(names: Iterable[str]) -> list[Change]:
    """The named faults. Raises ValueError for a name that there is not, or a fault that cannot be made."""
    found = []
    for name in names:
        if name not in BY_NAME and name not in TWICE:
            raise ValueError(f"--only: expected the name of a fault in parity_tests/mutants.toml, got {name}")
        found.append(Change(name, mutated_files(faults_of(name))))
    return found


def faults_of(name: str) -> tuple[Mutant, ...]:
    """One fault, or the same mistake in both twins."""
    return (BY_NAME[name],) if name in BY_NAME else tuple(BY_NAME[part] for part in TWICE[name].parts)


def described(verdict: Verdict) -> dict[str, Any]:
    """The verdict with what was changed, for the record."""
    edits = [{"file": part.file, "before": part.before, "after": part.after} for part in faults_of(verdict.name)]
    fault = BY_NAME.get(verdict.name) or TWICE[verdict.name]
    return {**verdict._asdict(), "mistake": fault.mistake, "reason": fault.reason, "edits": edits}


def record(verdicts: Sequence[Verdict], seconds: float, jobs: int) -> dict[str, Any]:
    """Everything that MUTANTS.md shows."""
    libraries = {name: version(name) for name in ("numpy", "torch", "hypothesis", "pytest")}
    return {
        "command": "make mutants",
        "date": date.today().isoformat(),
        "again": "",
        "versions": {"python": platform.python_version()} | libraries,
        "jobs": jobs,
        "seconds": round(seconds),
        "results": [described(verdict) for verdict in verdicts],
    }


def amended(contents: dict[str, Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The record of a full run with these verdicts in place of theirs, in today's order, without faults that are gone."""
    results = {result["name"]: result for result in contents["results"]}
    results |= {verdict.name: described(verdict) for verdict in verdicts}
    kept = [results[name] for name in (*BY_NAME, *TWICE) if name in results]
    return contents | {"again": date.today().isoformat(), "results": kept}


def report(contents: dict[str, Any]) -> str:
    """MUTANTS.md, survivors first."""
    results = contents["results"]
    dead = [r for r in results if r["outcome"] != "survived"]
    survivors = [r for r in results if r["outcome"] == "survived"]
    lines = _head(contents)
    if survivors:
        lines += ["", "## Survivors", "", *_table(survivors, {"fault": _fault, "file": _file, "reason": _reason})]
    columns = {"fault": _fault, "killed by": _killer, "the test said": _said}
    for file in dict.fromkeys(_file(r) for r in dead if r["name"] in BY_NAME):
        lines += ["", f"## {file}", "", *_table([r for r in dead if _file(r) == file], columns)]
    lines += [
        "",
        "## The same mistake in both twins",
        "",
        "The twins agree with each other here. Only an outsider notices: another library, a definition, a property.",
        "",
        *_table([r for r in dead if r["name"] in TWICE], columns),
    ]
    return "\n".join(lines) + "\n"


def _head(contents: dict[str, Any]) -> list[str]:
    counts = Counter(result["outcome"] for result in contents["results"])
    versions = ", ".join(f"{name} {number}" for name, number in contents["versions"].items())
    again = f" Faults changed or added since were run again, the last on {contents['again']}." if contents["again"] else ""
    return [
        "# What the proof notices",
        "",
        "Each row is a classic mistake, made on purpose in one of the twins, with the test that failed first and what it",
        "said. `mutants.toml` beside it has the exact changes. Where the spec is wrong, the message may name the twin: the",
        "truth that both are measured against is the spec's own text in higher precision, and leaves the right twin alone.",
        "",
        f"Written by `{contents['command']}` on {contents['date']}, in {contents['seconds'] / 60:.0f} minutes, "
        f"{contents['jobs']} at a time ({versions}).{again} Do not edit.",
        "",
        f"**{len(contents['results'])} faults: {counts['killed']} killed by a test, {counts['timeout']} by the time limit, "
        f"{counts['survived']} survived.**",
    ]


def _table(rows: Sequence[dict[str, Any]], columns: dict[str, Any]) -> list[str]:
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return head + ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]


def _fault(row: dict[str, Any]) -> str:
    return f"`{row['name']}` {row['mistake']}"


def _file(row: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(edit["file"] for edit in row["edits"]))


def _reason(row: dict[str, Any]) -> str:
    return row["reason"] or "**not explained: a hole in the proof**"


def _killer(row: dict[str, Any]) -> str:
    return row["killer"].removeprefix("parity_tests/") or row["outcome"]


def _said(row: dict[str, Any]) -> str:
    message = row["message"].removeprefix("AssertionError: ")
    short = message if len(message) <= 160 else message[:159] + "…"
    return f"<code>{short.replace('&', '&amp;').replace('<', '&lt;').replace('|', '&#124;')}</code>"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.mutate", description="Make faults, see which test notices."
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults alone")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of work for one fault")
    options = parser.parse_args(arguments)
    try:
        changes = changes_of(options.only or [*(mutant.name for mutant in MUTANTS), *TWICE])
    except ValueError as error:
        parser.error(str(error))
    start = time.monotonic()
    if not options.only and not passes_unchanged((), options.limit):
        return 1
    verdicts = []
    for verdict in judge_all(changes, jobs=options.jobs, limit=options.limit):
        verdicts.append(verdict)
        print(
            f"{verdict.outcome:9s}{verdict.seconds:6.1f} s  {verdict.name}: {verdict.killer}: {verdict.message[:200]}",
            flush=True,
        )
    survivors = [verdict.name for verdict in verdicts if verdict.outcome == "survived"]
    print(f"{len(verdicts)} faults, {len(survivors)} survived{': ' if survivors else ''}{', '.join(survivors)}")
    if options.only:
        killers = dict.fromkeys(verdict.killer for verdict in verdicts if verdict.killer)
        if killers and not passes_unchanged(tuple(killers), options.limit):
            return 1
        write(amended(json.loads(RECORD.read_text(encoding="utf-8")), verdicts))
    else:
        write(record(verdicts, time.monotonic() - start, options.jobs))
    return 1 if survivors else 0


def passes_unchanged(tests: tuple[str, ...], limit: int) -> bool:
    """Whether the tests (none: all) pass without a fault; says so."""
    (verdict,) = judge_all([Change("unchanged", {}, tests)], limit=PATIENCE * limit)
    print(
        f"without a fault: {verdict.outcome}, {verdict.seconds:.0f} s {verdict.killer} {verdict.message}".strip(), flush=True
    )
    return verdict.outcome == "survived"


def write(contents: dict[str, Any]) -> None:
    """Keep the verdicts, and write the report."""
    RECORD.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    REPORT.write_text(report(contents), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
