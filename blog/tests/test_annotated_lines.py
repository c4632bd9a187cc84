"""The annotated source shows each line under its own number, and beside it the figures of its own direction."""

import html
import re

import pytest

from blog import annotate, source
from blog.annotate import SPEC
from blog.facts import Bound

BOUNDS = [
    Bound("softmax", "float64", "spec", "output", 0.25),
    Bound("softmax, masked", "float32", "spec", "output", 0.375),
    Bound("softmax", "float64", "twin", "output", 0.125),
    Bound("softmax", "float64", "spec", "d_x", 0.5),
    Bound("softmax", "float32", "twin", "d_x", 0.625),
    Bound("softmax", "float64", "complex step", "", 0.75),
    Bound("linear", "float64", "spec", "output", 0.875),
    Bound("linear", "float64", "spec", "d_x", 0.9375),
]


def lines_of(page):
    """Number and text of every line of code, in order; the number of its anchor is that which is seen."""
    code = "".join(re.findall(r'<pre class="code">(.*?)</pre>', page, re.DOTALL))
    found = re.split(r'<span class="line" id="L(\d+)"><a href="#L(\d+)"[^>]*>(\d+)</a>', code)
    assert found[1::4] == found[2::4] == found[3::4]
    return [(int(n), html.unescape(re.sub(r"<[^>]*>", "", text))) for n, text in zip(found[1::4], found[4::4], strict=True)]


@pytest.mark.parametrize("room", annotate.rooms())
def test_every_line_stands_under_its_number(room):
    """All of the file but docstrings and what is empty around the parts."""
    path = f"{SPEC}/{room}.py"
    lines = source.read(path).splitlines()
    shown = lines_of(annotate.page(room))
    assert shown == [(number, lines[number - 1] or " ") for number, _ in shown]
    said = {n for part in annotate.parts(path) for n in range(part.docstring[0], part.docstring[1] + 1)}
    filled = [n for n, line in enumerate(lines, 1) if line.strip() and n not in said]
    assert [number for number, text in shown if text.strip()] == filled
    assert lines_of(annotate.plain_page(path)) == [(n, line or " ") for n, line in enumerate(lines, 1)]


@pytest.mark.parametrize(
    ("name", "worst"),
    [
        ("softmax_forward", {"spec": 0.375, "twin": 0.125}),
        ("softmax_backward", {"spec": 0.5, "twin": 0.625, "complex step": 0.75}),
    ],
)
def test_a_forward_has_the_figures_of_outputs_and_a_backward_those_of_gradients(monkeypatch, name, worst):
    monkeypatch.setattr(annotate, "bounds", lambda: BOUNDS)
    assert annotate.note_of("softmax", name).worst == worst
