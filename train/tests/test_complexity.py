"""The complexity command, at a tiny size: it never rots. Its figures are not asserted; its memory claims are."""

import json
from types import SimpleNamespace

import numpy as np

from train import complexity
from train.cli import main
from train.commands import ComplexityConfig


def test_command(tmp_path, capsys):
    arguments = ["--longest", "512", "--longest-plain", "256", "--heads", "1", "--head-width", "2", "--repeats", "1"]
    assert main(["complexity", "--output", str(tmp_path), *arguments]) == 0
    assert "fitted: tiled seconds" in capsys.readouterr().out
    result = json.loads((tmp_path / "complexity.json").read_text())
    assert [(r["form"], r["T"]) for r in result["records"] if r["form"] == "plain"] == [("plain", 256)]
    assert "plain seconds" not in result["slopes"]  # of one length there is no slope
    assert "tiled seconds" in result["slopes"]
    assert (tmp_path / "complexity.png").read_bytes().startswith(b"\x89PNG")


def test_memory_of_tiled_attention_is_linear():
    """Twice the length, at most twice the memory of tiled and linear attention; the (T, T) weights of plain: four times.

    The exact sizes: tiled holds a fixed number of arrays of T numbers per head and channel and one tile; plain at least one
    (T, T) array."""
    config = ComplexityConfig(heads=2, head_width=8, repeats=1)
    records = [r for T in (512, 1024, 2048) for r in complexity.measure(list(complexity.FORMS), T, config)]
    peak = {(r["form"], r["T"]): r["bytes"] for r in records}
    for form in ("tiled", "linear"):
        growth = [peak[form, 1024] - peak[form, 512], peak[form, 2048] - peak[form, 1024]]
        assert growth[1] <= 2.1 * growth[0], "twice the step in T, about twice the step in bytes: no quadratic part"
        assert peak[form, 2048] < 2 * 2048 * 2048 * 4, "less than one (H, T, T) array of float32"
    assert peak["plain", 2048] > 2 * 2048 * 2048 * 4


def test_slope():
    records = [{"form": "x", "T": T, "seconds": 3e-9 * T**2} for T in (256, 512, 1024, 2048, 4096)]
    assert abs(complexity.slope(records, "x", "seconds") - 2) <= 100 * np.finfo(np.float64).eps  # a few sums of a few terms


def test_short_lengths_have_no_say_in_the_exponent():
    records = [
        {"form": "x", "T": T, "seconds": seconds} for T, seconds in ((256, 9.0), (512, 7.0), (1024, 1.0), (2048, 3.0))
    ]
    assert complexity.slope(records, "x", "seconds") == complexity.slope(records[2:], "x", "seconds")


def test_seconds_are_the_median_of_the_runs(monkeypatch):
    clock = iter([0.0, 8.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(complexity, "time", SimpleNamespace(perf_counter=clock.__next__))
    (record,) = complexity.measure(["linear"], 8, ComplexityConfig(heads=1, head_width=2, repeats=3))
    assert record["seconds"] == 2
