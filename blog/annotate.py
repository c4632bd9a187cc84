"""The annotated source: every room of the spec with its docstrings beside the code, the formulas set as formulas.

equations.toml says how a formula of a docstring looks in LaTeX, which line computes it, where the twin does the same, and
which test proves it; whatever it says is looked up, and what is not found is an error.
"""

from __future__ import annotations

import ast
import html
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from blog import papers, source
from blog.facts import QUOTIENT, TWINS, bounds, worst_of
from blog.markup import code_lines, math
from blog.source import Symbol

EQUATIONS = Path(__file__).with_name("equations.toml")
SPEC, TWIN, PROOF = "reference_numpy", "torch_impl", "parity_tests"
SUFFIXES = ("_forward", "_backward")


class Link(NamedTuple):
    """A line of a file of the repository, and what to call it."""

    path: str
    line: int
    text: str


class Equation(NamedTuple):
    """A formula of a docstring: as it stands there, and in LaTeX; the lines that compute it."""

    text: str
    tex: str
    spec: Link | None
    twin: Link | None


class Note(NamedTuple):
    """All that stands beside a function besides its docstring."""

    equations: list[Equation]
    twin: Link | None
    tests: list[Link]
    worst: dict[str, float]
    """Error/bound by witness: of outputs for a forward, of gradients for a backward, of both for what returns both."""


class Part(NamedTuple):
    """A stretch of a module: what is said about it, its lines, and those of them that are its docstring."""

    first: int
    last: int
    symbol: Symbol | None
    docstring: tuple[int, int]


def rooms() -> list[str]:
    """The modules of the spec in the order in which README tells to read them, then the others."""
    read_first = ["linear", "softmax", "normalization", "mask", "position", "attention", "feed_forward", "block"]
    read_first += ["embedding", "loss", "model"]
    found = [path.stem for path in (source.ROOT / SPEC).glob("*.py") if path.stem != "__init__"]
    return [*read_first, *sorted(set(found) - set(read_first))]


@cache
def table() -> dict[str, Any]:
    """equations.toml."""
    return tomllib.loads(EQUATIONS.read_text(encoding="utf-8"))


def note_of(room: str, name: str) -> Note:
    """What equations.toml says about a function, or what its name does. Raises ValueError for what does not exist."""
    entry = table().get(room, {}).get(name, {})
    if unknown := entry.keys() - {"twin", "tests", "bound", "equations"}:
        raise ValueError(f"equations: expected twin, tests, bound or equations of {room}.{name}, got {unknown}")
    twin_name = entry.get("twin", _twin_name(room, name))
    twin = _link(f"{TWIN}/{room}.py", twin_name) if twin_name else None
    return Note(
        [_equation(room, name, row, twin_name) for row in entry.get("equations", [])],
        twin,
        list(_tests(room, entry.get("tests"), bool(entry))),
        _worst(room, name, entry.get("bound", [])),
    )


def page(room: str) -> str:
    """The body of the page of one room: rows of two columns, note and code."""
    path = f"{SPEC}/{room}.py"
    lines = code_lines(source.read(path))
    rows = [f'<section class="part intro"><div class="note"><h1>{path}</h1>{_siblings(room)}</div></section>']
    for part in parts(path):
        shown = [n for n in range(part.first, part.last + 1) if not part.docstring[0] <= n <= part.docstring[1]]
        blank = {n for n in shown if not source.read(path).splitlines()[n - 1].strip()}
        shown = [n for n in shown if n != part.docstring[1] + 1 or n not in blank]  # nothing is left to be set off from
        while shown and shown[0] in blank:
            shown.pop(0)
        while shown and shown[-1] in blank:
            shown.pop()
        rows.append(
            f'<section class="part"><div class="note">{_note_html(room, path, part)}</div>'
            f'<pre class="code">{"".join(_line_html(n, lines[n - 1]) for n in shown)}</pre></section>'
        )
    return "\n".join(rows)


def plain_page(path: str) -> str:
    """The body of a page with one file and its line numbers."""
    lines = code_lines(source.read(path))
    numbered = "".join(_line_html(number, line) for number, line in enumerate(lines, 1))
    return f'<h1>{path}</h1>{_siblings(Path(path).stem.removeprefix("test_"))}<pre class="code">{numbered}</pre>'


def parts(path: str) -> Iterator[Part]:
    """The module in order: its head, then a part for every function and class, and for what stands between them.

    Together they hold every line that is not empty once."""
    tree, total = ast.parse(source.read(path)), len(source.read(path).splitlines())
    own = [symbol for symbol in source.symbols(path).values() if "." not in symbol.name]
    docstring = (0, 0)
    if ast.get_docstring(tree) is not None:
        docstring = (1, tree.body[0].end_lineno or 1)
    start = 1
    for number, symbol in enumerate(own):
        if number == 0:
            head = symbol.first - 1
            yield Part(1, head, None, docstring)
            start = head + 1
        end = own[number + 1].first - 1 if number + 1 < len(own) else total
        between = min(symbol.last, end)
        yield Part(start, between, symbol, symbol.docstring)
        if any(line.strip() for line in source.read(path).splitlines()[between:end]):
            yield Part(between + 1, end, None, (0, 0))
        start = end + 1
    if not own:
        yield Part(1, total, None, docstring)


def docstring_html(text: str, equations: list[Equation], note: Note | None = None, up: str = "../../") -> str:
    """A docstring as paragraphs; lines that are indented or aligned stay lines. Formulas are set, with links behind them;
    citations lead to the page of papers, which stands `up` from here.

    Raises ValueError unless each formula stands in the text exactly once."""
    marked = text
    for number, equation in enumerate(equations):
        pattern = r"\s+".join(re.escape(word) for word in equation.text.split())
        # A longer formula may hold a shorter one: what is marked already cannot be found again.
        if len(re.findall(pattern, marked)) != 1:
            raise ValueError(f"equations: expected {equation.text!r} once in a docstring, got another number of times")
        marked = re.sub(pattern, f"\x00{number}\x00", marked)
    blocks: list[list[str]] = [[]]
    formula = False
    for line in marked.splitlines():
        is_formula = line.startswith("  ") or bool(re.search(r"\S {2,}\S", line))
        if not line.strip() or is_formula != formula:
            blocks.append([])
        formula = is_formula
        if line.strip():
            blocks[-1].append(f'<span class="formula">{_escaped(line.strip())}</span>' if is_formula else _escaped(line))
    text = papers.linked("\n".join(f"<p>{chr(10).join(block)}</p>" for block in blocks if block), up + papers.PAGE)
    return re.sub("\x00(\\d+)\x00", lambda found: _equation_html(equations[int(found[1])], note), text)


def summary(room: str) -> str:
    """What the module's docstring begins with, as HTML."""
    first = source.module_docstring(f"{SPEC}/{room}.py").split("\n\n")[0]
    return docstring_html(first, [equation for equation in _of_module(room) if equation.text in first], up="../")


def href(link: Link) -> str:
    """Where the line stands in the site, seen from a page of the annotated source."""
    return f"../{link.path.removesuffix('.py')}.html#L{link.line}"


def _note_html(room: str, path: str, part: Part) -> str:
    if part.symbol is None:
        return docstring_html(source.module_docstring(path), _of_module(room)) if part.docstring[0] else ""
    note = note_of(room, part.symbol.name)
    pieces = [f'<h2 id="{part.symbol.name}"><a href="#{part.symbol.name}">{part.symbol.name}</a></h2>']
    pieces.append(docstring_html(part.symbol.text, note.equations, note))
    facts = []
    if note.twin:
        facts.append(f'twin: <a href="{href(note.twin)}">{note.twin.text}</a>')
    if note.tests:
        facts.append("proof: " + ", ".join(f'<a href="{href(test)}">{test.text}</a>' for test in note.tests))
    if note.worst:
        worst = ", ".join(f"{witness} {_shown(ratio)}" for witness, ratio in note.worst.items())
        facts.append(f'worst <a href="../../bounds.html">error/bound</a>: {worst}')
    if facts:
        pieces.append("<ul class='facts'>" + "".join(f"<li>{fact}</li>" for fact in facts) + "</ul>")
    return "".join(pieces)


def _equation_html(equation: Equation, note: Note | None) -> str:
    links = []
    if equation.spec:
        links.append(f'<a href="#L{equation.spec.line}" title="the line that computes it">{equation.spec.line}</a>')
    if equation.twin:
        links.append(f'<a href="{href(equation.twin)}" title="{equation.twin.path}">twin</a>')
    if equation.spec and note and note.tests:
        worst = [ratio for witness, ratio in note.worst.items() if witness != QUOTIENT]
        ratio = f" {_shown(max(worst))}" if worst else ""
        title = f"{note.tests[0].text}{', worst error/bound' + ratio if ratio else ''}"
        links.append(f'<a href="{href(note.tests[0])}" title="{title}">proof{ratio}</a>')
    badges = f'<span class="to">{" ".join(links)}</span>' if links else ""
    return f"{_set(equation.tex)}{badges}"


def _set(tex: str) -> str:
    """LaTeX as MathML; or, where it has dollars, text with LaTeX between them."""
    if "$" not in tex:
        return f'<span class="math">{math(tex)}</span>'
    return "".join(_set(part) if number % 2 else html.escape(part) for number, part in enumerate(tex.split("$")))


def _shown(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio else "exact"


def _siblings(room: str) -> str:
    """Links between the three views of one idea."""
    views = {
        "spec": f"{SPEC}/{room}",
        "twin": f"{TWIN}/{room}",
        "proof": f"{PROOF}/test_{room}",
    }
    found = [f'<a href="../{v}.html">{name}: {v}.py</a>' for name, v in views.items() if (source.ROOT / f"{v}.py").exists()]
    return f'<p class="siblings">{" ".join(found)}</p>'


def _line_html(number: int, line: str) -> str:
    return f'<span class="line" id="L{number}"><a href="#L{number}" tabindex="-1">{number}</a>{line or " "}</span>'


def _escaped(text: str) -> str:
    """Text of a docstring as HTML: only backticks mean anything in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _of_module(room: str) -> list[Equation]:
    """The formulas of the module's own docstring, which no single line computes."""
    return [Equation(text, tex, None, None) for text, tex in table().get(room, {}).get("module", {}).get("equations", [])]


def _equation(room: str, name: str, row: list[str], twin_name: str | None) -> Equation:
    text, tex, *places = row
    spec_path, twin_path = f"{SPEC}/{room}.py", f"{TWIN}/{room}.py"
    if not places:
        return Equation(text, tex, None, None)
    spec = Link(spec_path, source.line_of(spec_path, places[0], name), name)
    twin = _link(twin_path, twin_name) if twin_name else None
    if len(places) > 1:
        twin = Link(twin_path, source.line_of(twin_path, places[1], twin_name), twin_path)
    return Equation(text, tex, spec, twin)


def _twin_name(room: str, name: str) -> str | None:
    """The function of the twin that has the same name, less _forward or _backward."""
    path = f"{TWIN}/{room}.py"
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name if (source.ROOT / path).exists() and name in source.symbols(path) else None


def _link(path: str, name: str) -> Link:
    return Link(path, source.symbol(path, name).first, f"{path}, {name}")


def _tests(room: str, names: list[str] | None, has_entry: bool) -> Iterator[Link]:
    path = f"{PROOF}/test_{room}.py"
    if names is None:
        names = ["test_parity"] if has_entry else []
    for name in names:
        yield Link(path, source.symbol(path, name).first, name)


def _worst(room: str, name: str, patterns: list[str]) -> dict[str, float]:
    rows = [row for row in bounds() if any(fnmatchcase(row.operation, pattern) for pattern in patterns)]
    if patterns and not rows:
        raise ValueError(f"equations: expected operations of BOUNDS.md for {room}.{name}, got {patterns}")
    twins = {TWINS[pattern] for pattern in patterns if pattern in TWINS}
    rows += [row for row in bounds() if row.witness == "twin" and row.operation in twins]
    if not name.endswith("_and_gradients"):
        rows = [row for row in rows if row.is_gradient == name.endswith("_backward")]
    return worst_of(rows)
