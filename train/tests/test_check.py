"""`twinformer check` on every kind of model, with a batch of its own task; and on a twin that is wrong."""

import pytest

from train import check
from train.check import _subject
from train.cli import main
from train.configuration import CheckConfig
from train.tests.runs import options, run, write_text


@pytest.mark.parametrize("preset", ["copy", "addition", "number-words"])
def test_a_preset_of_pairs_gives_a_batch_with_sources(preset):
    parameters, model, batch = _subject(CheckConfig(preset=preset, batch=3))
    assert model.kind == "encoder_decoder"
    assert len(batch.tokens) == len(batch.source) == 3
    assert parameters["token_embedding.weight"].shape == (model.vocabulary, model.width)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "masked_language_model"},
        {"task": "reverse", "context": 17, "position": "sinusoidal"},
        {"optimizer": "muon"},
    ],
    ids=["masked", "reverse", "muon"],
)
def test_runs_of_every_kind_are_within_bounds(tmp_path, monkeypatch, capsys, changes):
    monkeypatch.setattr("train.generated.HELD_OUT", 20)
    folder = run(options(tmp_path / "run", steps=3, width=8, layers=1, **changes))
    assert main(["check", "--run", str(folder), "--length", "5"]) == 0
    assert "tensors within bounds" in capsys.readouterr().out


def test_a_run_whose_data_changed_is_refused(tmp_path, capsys):
    folder = run(options(tmp_path / "run", steps=3))
    write_text(tmp_path / "text.txt").write_text("other letters: XYZ. " * 300)
    assert main(["check", "--run", str(folder)]) == 2
    assert "corpus: expected the data that the run in" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [1 + 1e-9, float("nan")], ids=["off by 1e-9", "nan"])
def test_a_twin_that_is_wrong_is_out_of_bounds(tmp_path, monkeypatch, capsys, fault):
    """Exit status 1, and the table ends with a tensor that is out."""
    folder = run(options(tmp_path / "run", steps=3, width=8, layers=1))
    capsys.readouterr()

    def faulty(*arguments):
        found = honest(*arguments)
        name = "blocks.0.attention.value.weight"
        return found | {name: found[name] * fault}

    honest = check._twin
    monkeypatch.setattr(check, "_twin", faulty)
    assert main(["check", "--run", str(folder), "--length", "5"]) == 1
    table, verdict = capsys.readouterr().out.strip().split("\n\n")
    assert table.splitlines()[-1].startswith("blocks.0.attention.value.weight")
    assert "1 of " in verdict and "tensors out of bounds" in verdict
