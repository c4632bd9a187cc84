"""Snippets and line numbers of the repository's own Python files, looked up by name, so that no quotation can drift."""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
Definition = ast.FunctionDef | ast.ClassDef


class Symbol(NamedTuple):
    """A function or class of a module: where it starts and ends, and where its docstring does (0, 0 without one)."""

    name: str
    first: int
    last: int
    docstring: tuple[int, int]
    text: str
    """The docstring, without its indentation; empty without one."""

    @property
    def is_public(self) -> bool:
        """Whether the name is meant for other modules."""
        return not self.name.startswith("_")


@cache
def read(path: str) -> str:
    """A file of the repository. Raises ValueError where there is none."""
    if not (ROOT / path).is_file():
        raise ValueError(f"source: expected a file of the repository, got {path!r}")
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def symbols(path: str) -> dict[str, Symbol]:
    """Functions and classes at the top of a module, in order; methods of its classes as Class.method after them."""
    found: dict[str, Symbol] = {}
    for node in ast.parse(read(path)).body:
        if isinstance(node, Definition):
            found[node.name] = _symbol(node, node.name)
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef):
                    found[f"{node.name}.{inner.name}"] = _symbol(inner, f"{node.name}.{inner.name}")
    return found


def symbol(path: str, name: str) -> Symbol:
    """A function, class or method by name. Raises ValueError where the module has none of that name."""
    if name not in symbols(path):
        raise ValueError(f"source: expected a function or class of {path}, got {name!r}")
    return symbols(path)[name]


def code(path: str, name: str) -> str:
    """The text of a function or class, without its docstring."""
    found = symbol(path, name)
    lines = read(path).splitlines()
    kept = [
        line
        for number, line in enumerate(lines[found.first - 1 : found.last], found.first)
        if not found.docstring[0] <= number <= found.docstring[1]
    ]
    return textwrap.dedent("\n".join(kept))


def line_of(path: str, fragment: str, name: str | None = None) -> int:
    """The number of the one line that holds the fragment, in the whole file or in one of its functions.

    Raises ValueError unless exactly one line of code (a docstring is none) holds it."""
    lines = read(path).splitlines()
    first, last, skipped = 1, len(lines), range(0)
    if name is not None:
        found = symbol(path, name)
        first, last, skipped = found.first, found.last, range(found.docstring[0], found.docstring[1] + 1)
    places = [n for n in range(first, last + 1) if fragment in lines[n - 1] and n not in skipped]
    if len(places) != 1:
        where = f"{path}, {name}" if name else path
        raise ValueError(f"source: expected exactly one line of {where} with {fragment!r}, got {len(places)}")
    return places[0]


def line(path: str, fragment: str, name: str | None = None) -> str:
    """The line that holds the fragment, without indentation."""
    return read(path).splitlines()[line_of(path, fragment, name) - 1].strip()


def module_docstring(path: str) -> str:
    """What the module says of itself."""
    return ast.get_docstring(ast.parse(read(path))) or ""


def _symbol(node: Definition, name: str) -> Symbol:
    assert node.end_lineno is not None
    text = ast.get_docstring(node) or ""
    docstring = (0, 0)
    if text:
        assert node.body[0].end_lineno is not None
        docstring = (node.body[0].lineno, node.body[0].end_lineno)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return Symbol(name, first, node.end_lineno, docstring, text)
