"""The annotated source: every function of the spec, every formula where the file says, every line once."""

import pytest

from blog import annotate, source
from blog.annotate import SPEC, Equation

ROOMS = annotate.rooms()


def functions(room):
    return [symbol for symbol in source.symbols(f"{SPEC}/{room}.py").values() if "." not in symbol.name]


@pytest.mark.parametrize("room", ROOMS)
def test_every_line_is_shown_once(room):
    path = f"{SPEC}/{room}.py"
    filled = [number for number, line in enumerate(source.read(path).splitlines(), 1) if line.strip()]
    shown = [number for part in annotate.parts(path) for number in range(part.first, part.last + 1)]
    assert [number for number in shown if number in set(filled)] == filled


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_said_of_a_room_exists(room):
    """Functions, formulas, lines, twins and tests that equations.toml names; a fault in it is a ValueError."""
    known = {symbol.name for symbol in functions(room)}
    assert annotate.table().get(room, {}).keys() - {"module"} <= known
    assert "<pre" in annotate.page(room)


def test_rooms_of_the_table():
    assert annotate.table().keys() <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_every_pair_has_a_twin_and_a_proof(room):
    for symbol in functions(room):
        if symbol.is_public and symbol.name.endswith(("_forward", "_backward")):
            note = annotate.note_of(room, symbol.name)
            assert note.twin and note.tests and note.worst, symbol.name


def test_a_formula_that_drifted_is_an_error():
    with pytest.raises(ValueError, match="expected 'y = x W' once in a docstring"):
        annotate.docstring_html("y = x V", [Equation("y = x W", "y = x W", None, None)])


def test_a_docstring():
    text = "First `code`, n < 3.\n\n  y = x W    and more\n\nEnd."
    page = annotate.docstring_html(text, [Equation("y = x W", "y = x W", None, None)])
    assert page.startswith("<p>First <code>code</code>, n &lt; 3.</p>")
    assert '<span class="formula"><span class="math"><math' in page
    assert page.endswith("<p>End.</p>")
