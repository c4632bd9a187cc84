"""Generic faults: every place of the twins where an operator of cosmic-ray can change the program, one change at a time.

mutants.py has the mistakes that people make; these are those that a machine makes, without a thought. The operators are
cosmic-ray's (extra `mutants`), the runner is mutate.py's. What changes no behaviour by construction is left out: types in
annotations, documentation, and the text of error messages.

    python -m parity_tests.generic [--count N]      (or make generic-mutants): judges N more, goes on where it stopped
"""

import argparse
import ast
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from parity_tests import mutate
from parity_tests.mutants import ROOT, SPEC, TWIN

BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Mul", "Pow_Mul", "BitOr_BitAnd", "BitAnd_BitOr")
COMPARISON = (
    *("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt"),
    *("Is_IsNot", "IsNot_Is"),
)
UNARY = ("USub_UAdd", "Delete_Not", "Delete_Invert")
OTHER = (
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop", "RemoveDecorator"),
)
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{name}" for name in BINARY),
    *(f"core/ReplaceComparisonOperator_{name}" for name in COMPARISON),
    *(f"core/ReplaceUnaryOperator_{name}" for name in UNARY),
    *(f"core/{name}" for name in OTHER),
)


class Reason(NamedTuple):
    """Why a fault cannot or need not be noticed: one whose file, line and changed line have these parts."""

    file: str
    line: str
    changed: str
    why: str


REASONS = (
    Reason("", "@lru_cache(maxsize=", "", "The size of a cache changes no result."),
    Reason("", "@lru_cache", "", "Without the cache the same table is made anew."),
)


class Generic(NamedTuple):
    """One change of one line: the name says where and what, `line` is the text before, `changed` the text after."""

    name: str
    file: str
    line: str
    changed: str
    text: str


def generic_faults(root: Path = ROOT, packages: tuple[str, ...] = (SPEC, TWIN)) -> Iterator[Generic]:
    """Every fault of every room. Raises ImportError without the extra `mutants`."""
    for package in packages:
        for path in sorted((root / package).glob("*.py")):
            file = path.relative_to(root).as_posix()
            yield from faults_in(file, path.read_text(encoding="utf-8"))


def faults_in(file: str, text: str) -> Iterator[Generic]:
    """The faults of one file, without two that are the same program and without those that change nothing that runs."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    tree = get_ast(text)
    seen = {_program(text)}
    for name in OPERATORS:
        operator = get_operator(name)()
        places = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        for occurrence in range(len(places)):
            changed = mutate_code(text, operator, occurrence)
            if changed is None:
                continue
            program = _program(changed)
            if program not in seen:
                seen.add(program)
                yield _named(file, name.split("/")[1], text, changed)


def _named(file: str, operator: str, text: str, changed: str) -> Generic:
    before, after = text.splitlines(), changed.splitlines()
    first = next(i for i, (a, b) in enumerate(zip([*before, ""], [*after, ""], strict=False)) if a != b)
    old, new = before[first].strip(), after[first].strip()
    return Generic(f"{file}:{first + 1} {old} -> {new} [{operator}]", file, old, new, changed)


@cache
def _program(text: str) -> str:
    """What of a text runs: its syntax tree without annotations, documentation and messages; the text if it is no Python."""
    try:
        return ast.dump(_Bare().visit(ast.parse(text)))
    except SyntaxError:
        return text


class _Bare(ast.NodeTransformer):
    """Takes out what changes no result: annotations, strings that stand alone, and what is said when something is raised."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        self.generic_visit(node)
        node.annotation = ast.Constant(value=None)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_Expr(self, node: ast.Expr) -> Any:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node


# ---- judging them

REPORT, RECORD = ROOT / "parity_tests" / "GENERIC_MUTANTS.md", ROOT / "parity_tests" / "generic_mutants.json"
ORDER = 0  # seed of the one random order in which they are judged: those judged so far are a fair sample of all


def key_of(fault: Generic) -> tuple[str, str, str]:
    """What stays the same when lines above move."""
    return fault.file, fault.line, fault.changed


def judged(faults: Sequence[Generic], jobs: int, limit: int) -> Iterator[dict[str, Any]]:
    """The verdicts as they come, with what was changed."""
    changes = [mutate.Change(fault.name, {fault.file: fault.text}) for fault in faults]
    for fault, verdict in zip(faults, mutate.judge_all(changes, jobs=jobs, limit=limit), strict=True):
        row = verdict._asdict() | {"file": fault.file, "line": fault.line, "changed": fault.changed}
        print(f"{verdict.outcome:9s}{verdict.seconds:6.1f} s  {fault.name}: {verdict.killer}", flush=True)
        yield row


def report(contents: dict[str, Any]) -> str:
    """GENERIC_MUTANTS.md: the share that was killed, by room, and every survivor with its reason."""
    results = contents["results"]
    dead = [row for row in results if row["outcome"] != "survived"]
    survivors = [row for row in results if row["outcome"] == "survived"]
    survivors.sort(key=lambda row: (row["file"], row["line"]))
    rooms = Counter(row["file"] for row in results)
    killed = Counter(row["file"] for row in dead)
    share = len(dead) / max(len(results), 1)
    low, high = wilson(len(dead), len(results))
    sample = (
        "all of them"
        if len(results) == contents["faults"]
        else f"the first {len(results)} of {contents['faults']} in one random order; "
        f"of all, with 95 % confidence, {100 * low:.1f} to {100 * high:.1f} %"
    )
    lines = [
        "# What the proof notices of faults without thought",
        "",
        "Every operator, number, comparison, decision, loop and decorator of the twins, changed one at a time by the",
        "operators of cosmic-ray ([generic.py](generic.py) lists them). The mistakes of people: [MUTANTS.md](MUTANTS.md).",
        "",
        f"Written by `{contents['command']}`, last on {contents['date']}. Do not edit.",
        "",
        f"**{len(dead)} of {len(results)} killed, {100 * share:.1f} %** ({sample}). "
        f"{len(survivors)} survived; each has its reason below.",
        "",
        "## Survivors",
        "",
        "| file | line | became | why no test can or should notice |",
        "| --- | --- | --- | --- |",
        *(f"| {r['file']} | {_code(r['line'])} | {_code(r['changed'])} | {reason_of(r)} |" for r in survivors),
        "",
        "## By room",
        "",
        "| file | judged | killed |",
        "| --- | --- | --- |",
        *(f"| {file} | {rooms[file]} | {killed[file]} |" for file in sorted(rooms)),
    ]
    return "\n".join(lines) + "\n"


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927): 95 % confidence at z = 1.96."""
    if trials == 0:
        return 0.0, 1.0
    share, weight = successes / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return middle - half, middle + half


def reason_of(row: dict[str, Any]) -> str:
    """Why this survivor may live."""
    for reason in REASONS:
        if row["file"].endswith(reason.file) and reason.line in row["line"] and reason.changed in row["changed"]:
            return reason.why
    return "**not explained: a hole in the proof**"


def _code(text: str) -> str:
    return f"<code>{text.replace('&', '&amp;').replace('<', '&lt;').replace('|', '&#124;')}</code>"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parity_tests.generic", description="Judge generic faults.")
    parser.add_argument("--count", type=int, default=0, help="how many more of the random order; 0 for all")
    parser.add_argument("--again", action="store_true", help="instead, judge once more those that survived")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--limit", type=int, default=300, help="seconds of work for one fault")
    options = parser.parse_args(arguments)
    faults = list(generic_faults())
    random.Random(ORDER).shuffle(faults)
    now = {key_of(fault): fault for fault in faults}
    old = json.loads(RECORD.read_text(encoding="utf-8"))["results"] if RECORD.is_file() else []
    results = {(r["file"], r["line"], r["changed"]): r for r in old}
    results = {key: row for key, row in results.items() if key in now}
    waiting = [fault for key, fault in now.items() if key not in results]
    if options.again:
        waiting = [now[key] for key, row in results.items() if row["outcome"] == "survived"]
    elif options.count:
        waiting = waiting[: options.count]
    for row in judged(waiting, options.jobs, options.limit):
        results[row["file"], row["line"], row["changed"]] = row
        contents = {
            "command": "make generic-mutants",
            "date": date.today().isoformat(),
            "faults": len(now),
            "results": list(results.values()),
        }
        write_atomically(RECORD, json.dumps(contents, indent=1, ensure_ascii=False) + "\n")
        write_atomically(REPORT, report(contents))
    survivors = [row for row in results.values() if row["outcome"] == "survived"]
    print(f"{len(results)} judged of {len(now)}, {len(survivors)} survived")
    return 1 if any("not explained" in reason_of(row) for row in survivors) else 0


def write_atomically(path: Path, text: str) -> None:
    """Replace a file, whole or not at all: the run may be stopped at any time, and goes on from what is written."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
