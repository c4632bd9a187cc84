"""Runs side by side: the figures are those of their logs, and what differs is named."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from train.checkpoint import write_json
from train.cli import main
from train.commands import RunsConfig
from train.plots import plot_runs
from train.report import train_and_report
from train.run_folder import read_log
from train.runs import runs
from train.tests.runs import options, write_text


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "runs"
    folder.mkdir()
    for name, changes in (("run-2", {}), ("run-10", {"learning_rate": 3e-2, "steps": 30, "norm": "rms"})):
        train_and_report(options(folder / name, **changes))
    return folder


def rows(text):
    """Cells of all rows of tables, by the first of them."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in cells if first != "---"}


def test_figures_are_those_of_the_logs(two):
    folders = [str(two / "run-2"), str(two / "run-10")]
    found = rows(runs(RunsConfig(run=tuple(folders))))
    for folder, steps in zip(folders, (20, 30), strict=True):
        log = read_log(two / folder)
        speeds = [record["tokens_per_second"] for record in log if "tokens_per_second" in record]
        step, count, loss, seconds, speed = found[folder]
        assert (step, loss) == (str(steps), f"{log[-1]['validation_loss']:.4f}")
        assert count == f"{sum(array.size for array in load_file(two / folder / 'model.safetensors').values()):,}"
        assert (seconds, speed) == (f"{log[-1]['training_seconds']:,.0f}", f"{np.median(speeds):,.0f}")


def test_what_differs_is_named_and_nothing_else(two):
    text = runs(RunsConfig(run=(str(two / "run-10"), str(two / "run-2"))))
    differing = rows(text.partition("| option |")[2])
    assert differing == {"norm": ["rms", "layer"], "steps": ["30", "20"], "learning_rate": ["0.03", "0.01"]}
    assert "estimate" not in text
    assert "compared" not in text
    same = runs(RunsConfig(run=(str(two / "run-2"), str(two / "run-2"))))
    assert same.endswith("All options are the same.")
    assert "option" not in runs(RunsConfig(run=(str(two / "run-2"),)))


def test_versions_that_differ_are_named(two, tmp_path):
    other = shutil.copytree(two / "run-2", tmp_path / "other")
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    config["environment"]["torch"] = "9.9"
    write_json(other / "config.json", config)
    differing = rows(runs(RunsConfig(run=(str(two / "run-2"), str(other)))).partition("| option |")[2])
    assert list(differing) == ["torch"]
    assert differing["torch"][1] == "9.9"


def test_a_run_that_has_not_ended_shows_an_estimate(two, tmp_path):
    folder = shutil.copytree(two / "run-2", tmp_path / "stopped")
    records = [record for record in read_log(folder) if not record.get("exact", False)][:-1]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    last = [record for record in records if "validation_loss" in record][-1]
    text = runs(RunsConfig(run=(str(folder),)))
    assert rows(text)[str(folder)][2] == f"≈ {last['validation_loss']:.4f}"
    assert "≈: an estimate" in text
    (folder / "log.jsonl").unlink()
    assert rows(runs(RunsConfig(run=(str(folder),))))[str(folder)] == ["0", rows(text)[str(folder)][1], "", "", ""]


def test_losses_on_different_texts_are_not_compared(two, tmp_path):
    train_and_report(options(tmp_path / "other", steps=2, corpus=str(write_text(tmp_path / "other.txt", 900))))
    assert "cannot be compared" in runs(RunsConfig(run=(str(two / "run-2"), str(tmp_path / "other"))))


def test_all_runs_of_the_folder_are_shown_by_number(two, monkeypatch, capsys):
    monkeypatch.chdir(two.parent)
    (two / "no-run").mkdir()
    (two / "no-run" / "config.json").write_text('{"model_type": "another"}', encoding="utf-8")
    assert main(["runs"]) == 0
    assert [name for name in rows(capsys.readouterr().out) if "/" in name] == ["runs/run-2", "runs/run-10"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run: expected the folders of runs, or some in 'runs', got none"),
        (["--run", "nowhere"], "run: expected the folder of a run, with its config.json, got 'nowhere'"),
        (["--plot", "x.jpg"], "plot: expected a name that ends in .png, got 'x.jpg'"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["runs", *arguments]) == 2
    assert capsys.readouterr().err == f"twinformer: error: {message}\n"


def test_the_picture_shows_every_loss_after_a_step(two, tmp_path, figures, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [str(two / "run-2"), str(two / "run-10")]
    assert main(["runs", "--run", *folders, "--plot", "runs.png"]) == 0
    assert capsys.readouterr().out.endswith("\nruns.png\n")
    by_step, by_second = figures[0].axes
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == folders
    for folder, curve, diamond, timed in zip(
        folders, by_step.lines[::2], by_step.lines[1::2], by_second.lines[::2], strict=True
    ):
        log = read_log(two / folder)
        losses = [(record["step"], record["validation_loss"]) for record in log if "validation_loss" in record]
        np.testing.assert_array_equal(curve.get_xydata(), losses[1:])  # the first is of before the first step
        np.testing.assert_array_equal(diamond.get_xydata(), losses[-1:])
        clock = {record["step"]: record["training_seconds"] for record in log if "training_seconds" in record}
        np.testing.assert_array_equal(timed.get_xdata(), [clock[step] for step, _ in losses[1:]])


def test_names_are_no_formulas_and_no_loss_is_an_error(tmp_path):
    losses = [{"step": 0, "validation_loss": 4.0}, {"step": 5, "validation_loss": 3.0, "exact": True}]
    plot_runs({f"$x^{number}": losses for number in range(12)}, tmp_path / "many.png")
    with pytest.raises(ValueError, match="plot: expected a run with a finite validation loss after a step, got none"):
        plot_runs({"a": losses[:1], "b": []}, tmp_path / "none.png")
