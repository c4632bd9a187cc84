"""Every committed figure is what its data and the plotting code make of it today."""

from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

from blog.figures import figures, texts
from blog.source import ROOT

ANTIALIASING = (
    48  # of 255 levels: rounding may shade an edge otherwise on another processor, a changed digit is black on white
)
FIGURES = {figure.path.relative_to(ROOT).as_posix(): figure for figure in figures()}


def pinned(package):
    """The version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=int)


def is_as(path, other):
    ours, theirs = pixels(path), pixels(other)
    return ours.shape == theirs.shape and bool((np.abs(ours - theirs) <= ANTIALIASING).all())


@pytest.mark.skipif(version("matplotlib") != pinned("matplotlib"), reason="another matplotlib draws otherwise")
@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_is_stale(name, tmp_path):
    again = tmp_path / FIGURES[name].path.name
    FIGURES[name].draw(again)
    assert is_as(ROOT / name, again), "run: make figures"


def test_no_page_and_no_report_is_stale():
    found = dict(texts())
    assert {path.name for path in found} == {"attention.html", "ablation.md", "ladder.md", "pitfalls.md", "BENCHMARKS.md"}
    for path, text in found.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.relative_to(ROOT)}: run: make figures"


def test_a_changed_digit_would_be_noticed(tmp_path):
    from train.plots import plot_loss

    for name, loss in (("one", 1.653), ("other", 1.658)):
        plot_loss([{"step": 1, "validation_loss": loss, "exact": True}], tmp_path / f"{name}.png", "loss")
    assert not is_as(tmp_path / "one.png", tmp_path / "other.png")
