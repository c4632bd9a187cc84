"""Generic faults: every place of the twins where an operator of cosmic-ray can change the program, one change at a time.

mutants.toml has the mistakes that people make; these are those that a machine makes, without a thought. The operators are
cosmic-ray's (extra `mutants`), the runner is mutate.py's. What changes no behaviour by construction is left out: types in
annotations, documentation, the text of error messages, assertions and `strict=`, which only a bug could trip, the sizes of
caches, and `staticmethod`, without which a class gives the same function.

    python -m parity_tests.generic [--count N]      (or make generic-mutants): judges N more, goes on where it stopped
    python -m parity_tests.generic --again          judges the unexplained survivors by all examples

A survivor takes as long as the whole suite, so the first judgement tries every property on a third of its examples.
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
from parity_tests.mutate import Verdict

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
    """Why faults cannot or need not be noticed: those whose file and line have these parts, and whose changed line has one
    of the parts in `changed`. A fault that a reason covers is not judged: it counts as one that survived."""

    file: str
    line: str
    changed: tuple[str, ...]
    why: str

    def covers(self, file: str, line: str, changed: str) -> bool:
        return file.endswith(self.file) and self.line in line and any(part in changed for part in self.changed)


COMPILED = "For torch.compile alone: the tests of train/."
SPEED = "Another route to the same numbers: only time is lost."
TILES = "Tiles of another size give the same sums in another order."
LAST = "Of two axes the last is also number 1."
ONLY = "The first of one is also the last."
BOTH = "Both are there or neither."
BLOCKS = "All blocks have seen as many tokens."
EMPTY = "Nothing was summed up here: 0 divided by 2 is 0 as well."
UNREAD = "What the other branch would give here is not read."
FILLER = "What fills up the beams can never win, whatever its tokens."
WHOLE = "At the maximum itself the factor is 1."
NEGATIVE = "NumPy takes any negative length as the one to be found."
BIAS = "Without it torch broadcasts the bias itself."
TERMS = "More terms than it takes, or without the last, which is below the precision."
LEVELS = "More levels than twice those that it takes, or nearly those."

REASONS = (
    # ---- the same numbers: no test can notice
    Reason("activation.py", "SPLIT, series", ("<= SPLIT", ">= -SPLIT"), "At 2.5 both expansions hold."),
    Reason(
        "activation.py", "SPLIT = 2.5", ("SPLIT = 3.5", "SPLIT = 1.5"), "Terms and levels are as many as it takes there."
    ),
    Reason("activation.py", "while c[-1] * SPLIT", ("- 1) >", "- 3) >", "+ 2) >", "3 * len", ">= np"), TERMS),
    Reason("activation.py", "(math.log(np.finfo", ("(2 / SPLIT", "* (2", "( 1 * SPLIT", "( 3 * SPLIT", "** 3"), LEVELS),
    Reason("attention.py", "ROWS = 64", ("ROWS = 63", "ROWS = 65"), TILES),
    Reason("attention.py", "cache.query_rotary is not None and", ("is not None or",), BOTH),
    Reason("attention.py", "cache.query_norm is not None and", ("is not None or",), BOTH),
    Reason("reference_numpy/attention.py", "mask is None and ROWS <", ("ROWS <=",), SPEED),
    Reason("attention.py", "start = 0 if past is None", ("= -1 if", "= 1 if"), "Turned scores know distances only."),
    Reason("decode.py", "axis=-1", ("axis=+1",), LAST),
    Reason("decode.py", "axis=-1)[:, 0]", ("axis=-1)[:, -1]",), ONLY),
    Reason("decode.py", "top_p)[0]", ("top_p)[ -1]",), ONLY),
    Reason("reference_numpy/decode.py", "else batch[0]", ("else batch[ -1]",), ONLY),
    Reason("decode.py", "scores[:, 0] = 0.0", ("scores[:, -1]",), "All beams start equal: any one may branch."),
    Reason("decode.py", "> best[row].score", (">= best[row].score",), "Log p only falls: what is equal now cannot win."),
    Reason("decode.py", "kept.append((0, kept[0]", ("(( -1, kept", "kept[ -1]", "kept[0][ 0]", "kept[0][ 2]"), FILLER),
    Reason("embedding.py", "tokens.reshape(-1)", ("tokens.reshape(- 2)",), NEGATIVE),
    Reason("feed_forward.py", "cache.gate is None or", ("is None and",), BOTH),
    Reason("flash_attention.py", "TILE = 128", ("129", "127"), TILES),
    Reason("flash_attention.py", "new_largest == -np.inf", ("-np.inf, 1", "-np.inf, -1"), "exp(-inf - 1) is 0 as well."),
    Reason("flash_attention.py", "safe_total = ", ("empty, 2, total",), EMPTY),
    Reason("linear_attention.py", "CHUNK = 64", ("65", "63"), TILES),
    Reason("linear_attention.py", ".real > 0", (".real >= 0",), "At 0 both branches are 1."),
    Reason("linear_attention.py", "np.where(positive, 0, x)", ("positive, 1, x", "positive, -1, x"), UNREAD),
    Reason("attention.py", "self.key is None or self.value", ("self.key is None and",), BOTH),
    Reason("linear_attention.py", "== 0, 1, ", ("== 0, 2, ",), EMPTY),
    Reason("linear_attention.py", "x.clamp(max=0)", ("max= 1", "max=1"), UNREAD),
    Reason("loss.py", "[..., 0]", ("[..., -1]",), ONLY),
    Reason("loss.py", "if label_smoothing > 0", (">= 0", "> -1"), "With 0 the longer formula is the shorter one."),
    Reason("loss.py", "np.where(counted, targets, 0)", ("targets, -1)",), UNREAD),
    Reason("reference_numpy/model.py", "past[0].own.length", ("past[ -1].own",), BLOCKS),
    Reason("normalization.py", "weight, False)", ("weight, True)",), "Only LayerNorm's backward asks for a bias."),
    Reason("optimizer.py", "norm <= maximum", ("norm < maximum",), WHOLE),
    Reason("optimizer.py", "tall = ", (">=",), "A square matrix and its transpose cost the same."),
    Reason("optimizer.py", "norm == 0, 1, norm", ("norm == 0, 2, norm",), EMPTY),
    Reason("torch_impl/optimizer.py", "first, second, step = ", ("{}, -1",), "No parameter is at a step below 0."),
    Reason("softmax.py", "largest == -np.inf", ("-np.inf, 1", "-np.inf, -1"), "exp(-inf - 1) is 0 as well."),
    Reason("softmax.py", "total == 0, 1, total", ("total == 0, 2, total",), EMPTY),
    Reason("torch_impl/softmax.py", "if own_backward():", ("if not own",), "Torch's own does as well, with more memory."),
    Reason("torch_impl/attention.py", "if self.key is None or self.value", ("self.key is None and",), BOTH),
    Reason("torch_impl/model.py", "past[0].own.length", ("past[ -1]",), BLOCKS),
    # ---- speed and memory: no test should notice
    Reason("torch_impl/attention.py", "apart = self.together is None", ("is_grad_enabled() or all",), SPEED),
    Reason(
        "torch_impl/block.py", "*arguments, use_reentrant=False)", ("=True)",), "torch's older way to the same gradients."
    ),
    Reason("torch_impl/block.py", "preserve_rng_state=False", ("state=True",), "torch's own stream is not used here."),
    Reason("torch_impl/decode.py", "", ("def select(",), "Inference mode is for speed, and selecting is no work."),
    Reason("torch_impl/flash_attention.py", "(not causal or T == S)", ("causal and T == S",), SPEED),
    Reason("torch_impl/flash_attention.py", "if bias is not None:", ("if bias is None", "if not bias"), BIAS),
    Reason("torch_impl/linear.py", "if a.shape[1] <= b.shape[1] else", ("] < b.shape[",), SPEED),
    Reason("torch_impl/linear.py", "if torch.compiler.is_compiling()", ("",), SPEED),
    Reason("torch_impl/linear.py", "x.shape[:-1].numel() == 1", ("",), SPEED),
    Reason("torch_impl/attention.py", "return torch.compiler.is_compiling() and", ("",), SPEED),
    Reason("torch_impl/attention.py", "FEW_SCORES = ", ("",), SPEED),
    Reason("torch_impl/dropout.py", "device=generator) >= rate", ("> rate",), "A draw equals the rate once in 2^24."),
    Reason("torch_impl/decode.py", "goes_on = ", ("new.shape[1] != 1", "new.shape[1] == 2", "new.shape[1] == 0"), COMPILED),
    Reason("torch_impl/linear.py", "register_fake(", ("",), COMPILED),
    Reason("torch_impl/position.py", "for tables in ", ("in []",), COMPILED),
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
    """What of a text runs: its syntax tree without all that changes no behaviour; the text if it is no Python."""
    try:
        return ast.dump(_Bare().visit(ast.parse(text)))
    except SyntaxError:
        return text


class _Bare(ast.NodeTransformer):
    """Takes out what changes no behaviour; the module's docstring says what that is."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        self.generic_visit(node)
        node.annotation = ast.Constant(value=None)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        node.decorator_list = [decorator for decorator in node.decorator_list if ast.unparse(decorator) != "staticmethod"]
        self.generic_visit(node)
        return node

    def visit_Expr(self, node: ast.Expr) -> Any:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        return None

    def visit_keyword(self, node: ast.keyword) -> Any:
        return None if node.arg in ("strict", "maxsize") else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node


# ---- judging them

REPORT, RECORD = ROOT / "parity_tests" / "GENERIC_MUTANTS.md", ROOT / "parity_tests" / "generic_mutants.json"
PARTS = 3  # of the examples of a property, how small a part the first judgement takes
ORDER = 0  # seed of the one random order in which they are judged: those judged so far are a fair sample of all


UNJUDGED = "not judged: a reason covers it"


def key_of(fault: Generic) -> tuple[str, str, str]:
    """What stays the same when lines above move."""
    return fault.file, fault.line, fault.changed


def judged(faults: Sequence[Generic], parts: int, jobs: int, limit: int) -> Iterator[dict[str, Any]]:
    """The verdicts as they come, with what was changed; a fault that a reason covers survives unjudged."""
    waiting = [fault for fault in faults if not why(*key_of(fault))]
    changes = [mutate.Change(fault.name, {fault.file: fault.text}, parts=parts) for fault in waiting]
    verdicts = mutate.judge_all(changes, jobs=jobs, limit=limit)
    for fault in faults:
        excused = why(*key_of(fault))
        verdict = Verdict(fault.name, "survived", "", UNJUDGED, 0.0) if excused else next(verdicts)
        row = verdict._asdict() | {"file": fault.file, "line": fault.line, "changed": fault.changed}
        print(f"{verdict.outcome:9s}{verdict.seconds:6.1f} s  {fault.name}: {verdict.killer or excused}", flush=True)
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
        else f"{len(results)} of {contents['faults']}, drawn at random; "
        f"of all, with 95 % confidence, {100 * low:.1f} to {100 * high:.1f} %"
    )
    lines = [
        "# Which random changes the tests notice",
        "",
        "Every operator, number, comparison, decision, loop and decorator of the twins, changed one at a time by the",
        "operators of cosmic-ray ([generic.py](generic.py) lists them). The mistakes of people: [MUTANTS.md](MUTANTS.md).",
        "",
        f"Written by `{contents['command']}`, last on {contents['date']}. Do not edit.",
        "",
        f"**{len(dead)} of {len(results)} killed, {100 * share:.1f} %** ({sample}). "
        f"{len(survivors)} survived; each has its reason below. "
        f"{sum(row['message'] == UNJUDGED for row in survivors)} of them were not run, since an earlier reason covers them; "
        "so the share is a lower estimate.",
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
        "| --- | ---: | ---: |",
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


def why(file: str, line: str, changed: str) -> str:
    """The reason that covers this fault, or nothing."""
    return next((reason.why for reason in REASONS if reason.covers(file, line, changed)), "")


def reason_of(row: dict[str, Any]) -> str:
    """Why this survivor may live."""
    return why(row["file"], row["line"], row["changed"]) or "**not explained: a hole in the proof**"


def _code(text: str) -> str:
    return f"<code>{text.replace('&', '&amp;').replace('<', '&lt;').replace('|', '&#124;')}</code>"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parity_tests.generic", description="Judge generic faults.")
    parser.add_argument("--count", type=int, default=0, help="judge so many more of the random order; 0 for all")
    parser.add_argument("--again", action="store_true", help="instead, judge survivors without a reason by all examples")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--limit", type=int, default=mutate.LIMIT, help="seconds of work for one fault")
    options = parser.parse_args(arguments)
    faults = list(generic_faults())
    random.Random(ORDER).shuffle(faults)
    now = {key_of(fault): fault for fault in faults}
    old = json.loads(RECORD.read_text(encoding="utf-8"))["results"] if RECORD.is_file() else []
    results = {(r["file"], r["line"], r["changed"]): r for r in old}
    results = {key: row for key, row in results.items() if key in now and (why(*key) or row["message"] != UNJUDGED)}
    waiting = [fault for key, fault in now.items() if key not in results]
    if options.again:
        waiting = [now[key] for key, row in results.items() if row["outcome"] == "survived" and not why(*key)]
    elif options.count > 0:
        to_judge = [place for place, fault in enumerate(waiting, 1) if not why(*key_of(fault))]
        waiting = waiting[: to_judge[options.count - 1]] if options.count < len(to_judge) else waiting
    for row in judged(waiting, 1 if options.again else PARTS, options.jobs, options.limit):
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
