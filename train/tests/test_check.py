"""`twinformer check`: every kind of model, source and batch is within bounds; each witness rejects what is wrong."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from matplotlib.image import imread

from parity_tests.bounds import LONGDOUBLE_IS_WIDER, run_tracked
from parity_tests.compare import NARROW_LONGDOUBLE
from train import check
from train.cli import main
from train.commands import CheckConfig
from train.subject import VOCABULARY, Subject, create_subject, random_batch
from train.tests.runs import options, run, write_text

pytestmark = pytest.mark.skipif(not LONGDOUBLE_IS_WIDER, reason=NARROW_LONGDOUBLE)
SMALL = {"width": 4, "layers": 1, "heads": 2, "context": 5, "vocabulary": 7, "feed_forward": 3}
KINDS = {
    "decoder": {"kind": "decoder", "position": "rotary", "norm": "rms", "activation": "swiglu"},
    "encoder": {"kind": "encoder", "tied": False, "norm_position": "post"},
    "encoder-decoder": {"kind": "encoder_decoder", "dropout": 0.3, "label_smoothing": 0.1},
    "relu": {"activation": "relu", "zero_projections": True},
    "linear": {"kind": "encoder_decoder", "attention": "linear", "activation": "relu_squared"},
}
TENSOR = "blocks.0.attention.value.weight"


def write_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(SMALL | changes))
    return str(path)


def verdict(capsys):
    """The last line of what was printed."""
    return capsys.readouterr().out.strip().splitlines()[-1]


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_every_kind_of_model_is_within_bounds(tmp_path, capsys, changes):
    """By all witnesses, with all that the kind brings: padding, ignored targets, dropout, smoothing, kinks.

    And not far within, so that the bounds are those of the proof and not a multiple of them."""
    report = tmp_path / "check.json"
    assert main(["check", "--config", write_config(tmp_path, **changes), "--length", "3", "--json", str(report)]) == 0
    found = [row["witnesses"] for row in json.loads(report.read_text())["tensors"]]
    worst = {witness: max(row[witness]["error_over_bound"] for row in found) for witness in ("spec", "twin")}
    assert min(worst.values()) > 0.01
    assert "tensors within bounds" in verdict(capsys)


@pytest.mark.parametrize("name", ["tiny", "copy", "number-words", "multi30k", "masked", "default"])
def test_a_preset_gives_a_model_and_a_random_batch(name):
    """No data is read; the batch has what this task's batches have."""
    subject = create_subject(CheckConfig(preset=name, sequences=3))
    model, batch = subject.model, subject.batch
    kinds = {"tiny": "decoder", "default": "decoder", "masked": "encoder"}
    assert model.kind == kinds.get(name, "encoder_decoder")
    assert batch.tokens.shape == (3, 5)
    assert (batch.source is not None) == (batch.padding is not None) == (model.kind == "encoder_decoder")
    assert (batch.targets < 0).any() == (model.kind != "decoder")
    assert subject.parameters["token_embedding.weight"].shape == (VOCABULARY, model.width)
    assert all((value != 0).all() for value in subject.parameters.values()), "nothing is hidden behind a 0"
    assert subject.label_smoothing == (0.1 if name == "multi30k" else 0)


@pytest.mark.parametrize("name", ["copy", "number-words"])
def test_a_preset_of_pairs_can_have_a_batch_of_its_data(name):
    subject = create_subject(CheckConfig(preset=name, sequences=3, length=4, batch="data"))
    assert subject.batch.tokens.shape[0] == len(subject.batch.source) == 3
    assert subject.batch.tokens.shape[1] <= 4
    assert subject.batch.source.shape[1] <= 4


def test_a_run_its_checkpoint_and_its_config(tmp_path, monkeypatch, capsys):
    """The run has its own data and its saved parameters; the file alone the parameters; config.json neither."""
    folder = run(options(tmp_path / "run", steps=3, width=8, layers=1))
    sources = {"run": folder, "checkpoint": folder / "model.safetensors", "config": folder / "config.json"}
    subjects = {name: create_subject(CheckConfig(**{name: str(path)})) for name, path in sources.items()}
    of_run, of_file, of_config = subjects.values()
    assert asdict(of_run.model) == asdict(of_file.model) == asdict(of_config.model)
    assert of_run.label_smoothing == of_config.label_smoothing == 0.1
    for name, value in of_run.parameters.items():
        assert value.tobytes() == of_file.parameters[name].tobytes() != of_config.parameters[name].tobytes()
    assert (of_run.batch.tokens[:, 1:] == of_run.batch.targets[:, :-1]).all(), "a text, where targets follow tokens"
    for name, path in sources.items():
        assert main(["check", f"--{name}", str(path), "--against", "twin"]) == 0
        assert f"{name} {path}, 2 sequences of 5 tokens" in verdict(capsys)


@pytest.mark.parametrize("changes", [{"task": "masked_language_model"}, {"task": "reverse", "context": 17}])
def test_runs_on_other_tasks_have_their_data(tmp_path, monkeypatch, capsys, changes):
    monkeypatch.setattr("train.generated.HELD_OUT", 20)
    folder = run(options(tmp_path / "run", steps=3, width=8, layers=1, **changes))
    batch = create_subject(CheckConfig(run=str(folder))).batch
    assert batch.counted > 0
    assert batch.counted < batch.targets.size or batch.source is not None
    assert main(["check", "--run", str(folder), "--against", "twin"]) == 0
    assert "tensors within bounds" in verdict(capsys)


def test_a_batch_from_a_file_is_the_batch(tmp_path, capsys):
    config = write_config(tmp_path, kind="encoder_decoder")
    subject = create_subject(CheckConfig(config=config))
    path = tmp_path / "batch.npz"
    np.savez(path, tokens=subject.batch.tokens, targets=subject.batch.targets.astype(np.int32), **subject.batch.inputs())
    printed = []
    for batch in ("random", str(path)):
        assert main(["check", "--config", config, "--batch", batch]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_seed_decides_everything(tmp_path):
    config = write_config(tmp_path, kind="encoder_decoder", dropout=0.3)
    first, again, other = (create_subject(CheckConfig(config=config, seed=seed)) for seed in (0, 0, 1))
    assert first.loss(first.parameters)[0] == again.loss(again.parameters)[0] == first.loss(first.parameters)[0]
    assert first.loss(first.parameters)[0] != other.loss(other.parameters)[0]
    without_dropout = first._replace(model=create_subject(CheckConfig(config=write_config(tmp_path))).model)
    assert first._replace(seed=1).loss(first.parameters)[0] != first.loss(first.parameters)[0], "other units are dropped"
    assert without_dropout.model.dropout == 0


@pytest.mark.parametrize("fault", [1 + 1e-9, float("nan")], ids=["off by 1e-9", "nan"])
def test_a_twin_that_is_wrong_is_out_of_bounds(tmp_path, monkeypatch, capsys, fault):
    """Exit status 1; the tensor stands last; only the twin is blamed, and who does not ask it hears nothing."""
    honest = check._twin
    monkeypatch.setattr(check, "_twin", lambda *arguments: scaled(honest(*arguments), fault))
    config = write_config(tmp_path)
    assert main(["check", "--config", config, "--json", str(tmp_path / "out.json")]) == 1
    table, _, last = capsys.readouterr().out.strip().split("\n\n")
    assert table.splitlines()[-1].startswith(TENSOR)
    assert "1 of 21 tensors out of bounds" in last
    assert f"({TENSOR}, twin)" in last
    assert blamed(tmp_path / "out.json") == {(TENSOR, "twin")}
    assert main(["check", "--config", config, "--against", "complex"]) == 0


@pytest.mark.parametrize(
    ("witness", "fault"),
    [("twin", 1 + 1e-9), ("complex", 1 + 1e-9), ("differences", 1 + 1e-4), ("differences", -1), ("complex", float("inf"))],
)
def test_each_witness_alone_rejects_a_spec_that_is_wrong(tmp_path, monkeypatch, witness, fault):
    """The fault is in the spec's backward, in every precision, so the spec agrees with itself."""
    honest = Subject.loss_and_gradients
    monkeypatch.setattr(Subject, "loss_and_gradients", lambda *arguments: scaled(honest(*arguments), fault))
    arguments = ["check", "--config", write_config(tmp_path), "--json", str(tmp_path / "out.json")]
    assert main([*arguments, "--against", witness]) == 1
    assert (TENSOR, witness) in blamed(tmp_path / "out.json")


def test_several_witnesses_against_the_spec_are_believed(tmp_path, monkeypatch, capsys):
    honest = Subject.loss_and_gradients
    monkeypatch.setattr(Subject, "loss_and_gradients", lambda *arguments: scaled(honest(*arguments), -1))
    assert main(["check", "--config", write_config(tmp_path)]) == 1
    assert "The others agree against the spec, whose code is the truth" in verdict(capsys)


def test_a_model_without_a_finite_loss_is_refused(tmp_path, capsys):
    config = write_config(tmp_path, initial_deviation=1e200)
    assert "expected a model with a finite loss, got" in refused(capsys, "--config", config)


def test_one_wrong_element_is_found_and_named(tmp_path, monkeypatch):
    honest = check._twin

    def faulty(*arguments):
        found = honest(*arguments)
        found[TENSOR][2, 1] += 1e-9
        return found

    monkeypatch.setattr(check, "_twin", faulty)
    path = tmp_path / "out.json"
    assert main(["check", "--config", write_config(tmp_path), "--against", "twin", "--json", str(path)]) == 1
    finding = next(row for row in json.loads(path.read_text())["tensors"] if row["name"] == TENSOR)["witnesses"]["twin"]
    assert finding["at"] == [2, 1]
    assert np.isclose(finding["error"], 1e-9)


def scaled(found, fault):
    return found | {TENSOR: found[TENSOR] * fault}


def blamed(path):
    """(tensor, witness) of all that the JSON calls out of bounds."""
    content = json.loads(path.read_text())
    assert content["within_bounds"] is False
    return {
        (row["name"], witness)
        for row in content["tensors"]
        for witness, found in row["witnesses"].items()
        if not found["within_bounds"]
    }


def test_a_unit_on_its_kink_has_no_difference(tmp_path):
    """ReLU at exactly 0: the step is shortened in vain, and the witness says nothing rather than something wrong."""
    subject = create_subject(CheckConfig(config=write_config(tmp_path, activation="relu")))
    for part in ("weight", "bias"):
        subject.parameters[f"blocks.0.feed_forward.up.{part}"][:] = 0
    rows = {row.name: row for row in check.compare(subject, ["differences"])}
    assert "differences" not in rows["blocks.0.feed_forward.up.bias"].findings
    assert "differences" in rows["token_embedding.weight"].findings
    assert "     -  " in check.table(list(rows.values()))


@pytest.mark.parametrize("elements", [0, 1, 99])
def test_elements_are_taken_singly_from_the_largest_gradient_on(tmp_path, elements):
    subject = create_subject(CheckConfig(config=write_config(tmp_path)))
    gradient = subject.loss_and_gradients(subject.parameters)[TENSOR]
    tracked = run_tracked(lambda x: x * 1.1, gradient, format="float64")
    probes = list(check._probes(gradient, tracked, elements, np.random.default_rng(0)))
    assert probes[0].place is None
    assert np.isclose(float(probes[0].slope), (gradient * probes[0].direction).sum())
    places = [probe.place for probe in probes[1:]]
    assert len(set(places)) == len(places) == min(elements, gradient.size)
    for probe in probes[1:]:
        assert probe.slope == (gradient * probe.direction).sum() == gradient[probe.place]
        assert abs(probe.slope) <= abs(probes[1].slope)


def test_json_and_plot(tmp_path, monkeypatch, capsys):
    figures = []
    save = check.plot_check.__globals__["save_figure"]
    monkeypatch.setitem(check.plot_check.__globals__, "save_figure", lambda *both: (figures.append(both[0]), save(*both)))
    config, path, plot = write_config(tmp_path), tmp_path / "out.json", tmp_path / "out.png"
    assert main(["check", "--config", config, "--seed", "3", "--json", str(path), "--plot", str(plot)]) == 0
    content = json.loads(path.read_text())
    assert content["subject"] == f"config {config}"
    assert (content["sequences"], content["tokens_per_sequence"], content["seed"]) == (2, 5, 3)
    assert content["within_bounds"] is True
    rows = {row["name"]: row for row in content["tensors"]}
    assert next(iter(rows)) == "loss"
    assert set(rows["loss"]["witnesses"]) == {"spec", "twin"}
    assert set(rows[TENSOR]["witnesses"]) == {"spec", "twin", "differences", "complex"}
    assert rows[TENSOR]["shape"] == [4, 4]
    for found in rows[TENSOR]["witnesses"].values():
        assert 0 < found["error"] < found["relative"], "the numbers of this tensor are below 1"
        assert found["at"] == "direction" or len(found["at"]) == 2
    worst = [found["error_over_bound"] for row in rows.values() for found in row["witnesses"].values()]
    assert 0 < content["worst_error_over_bound"] == max(worst) < 1
    assert f"{max(worst):.3f}" in verdict(capsys)

    height, width, _ = imread(plot).shape
    assert min(height, width) > 300
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["spec", "twin", "differences", "complex"]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(rows)


BAD_BATCHES = {
    "missing.npz": (None, "batch: expected random, data, or an .npz file, got"),
    "text.npz": (b"tokens", "batch: expected an .npz file of arrays, got"),
    "no-targets": (
        {"targets": None},
        "batch: expected tokens, targets and at most padding for kind decoder, got none called",
    ),
    "source": ({"source": np.ones((2, 3), int)}, "at most padding for kind decoder, got an array source"),
    "float": ({"tokens": np.ones((2, 3))}, "batch: tokens: expected integers of shape (2, 3), got float64 (2, 3)"),
    "flat": ({"tokens": np.ones(3, int)}, "batch: tokens: expected shape (B, T), at least one token, got (3,)"),
    "empty": ({"tokens": np.ones((0, 3), int)}, "batch: tokens: expected shape (B, T), at least one token, got (0, 3)"),
    "shape": ({"targets": np.ones((2, 4), int)}, "batch: targets: expected integers of shape (2, 3), got int64 (2, 4)"),
    "padding": ({"padding": np.ones((2, 3), int)}, "batch: padding: expected bool of shape (2, 3), got int64 (2, 3)"),
    "token": ({"tokens": np.full((2, 3), 7)}, "tokens: expected 0 to 6, got 7 to 7"),
    "target": ({"targets": np.full((2, 3), -2)}, "targets: expected -1 to 6, got -2 to -2"),
    "nothing": ({"targets": np.full((2, 3), -1)}, "batch: expected a target that counts, got none in"),
    "long": ({"tokens": np.ones((1, 6), int), "targets": np.ones((1, 6), int)}, "tokens: expected at most 5"),
}


@pytest.mark.parametrize(("content", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_batches_that_do_not_fit(tmp_path, capsys, content, message):
    path = tmp_path / "batch.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        arrays = {"tokens": np.ones((2, 3), int), "targets": np.ones((2, 3), int)} | content
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    assert message in refused(capsys, "--config", write_config(tmp_path), "--batch", str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--run", "a", "--preset", "tiny"],
            "check: expected at most one of preset, config, run, checkpoint, got preset and run",
        ),
        (["--preset", "huge"], "preset: expected one of default"),
        (["--config", "none.json"], "config: expected a JSON file, got 'none.json'"),
        (["--run", "none"], "run: expected the folder of a run"),
        (["--checkpoint", "none.safetensors"], "none.safetensors: expected a checkpoint, found no such file"),
        (["--checkpoint", "x", "--batch", "data"], "batch: expected random or an .npz file with --checkpoint"),
        (["--batch", "2"], "batch: expected random, data, or an .npz file, got '2'"),
        (["--against", "twin,autograd"], "against: expected names from twin, differences, complex with commas between"),
        (["--against", ""], "against: expected names from twin, differences, complex"),
        (["--elements", "-1"], "elements: expected at least 0, got -1"),
        (["--json", "no/such/folder.json"], "json: expected a file in an existing folder, got 'no/such/folder.json'"),
        (["--plot", "."], "plot: expected a file in an existing folder, got '.'"),
    ],
)
def test_options_that_make_no_sense(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[1]", '{"format": "another"}', '{"wdith": 3}', '{"width": "3"}', '{"heads": 3}'])
def test_configs_that_are_none(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    assert "config.json: " in refused(capsys, "--config", str(tmp_path / "config.json"))


def test_a_run_whose_data_changed_is_refused(tmp_path, capsys):
    folder = run(options(tmp_path / "run", steps=3))
    write_text(tmp_path / "text.txt").write_text("other letters: XYZ. " * 300)
    capsys.readouterr()
    assert "corpus: expected the data that the model of run" in refused(capsys, "--run", str(folder))
    assert main(["check", "--run", str(folder), "--batch", "random", "--against", "twin"]) == 0


def test_a_machine_without_a_truth(monkeypatch, capsys):
    monkeypatch.setattr(check, "LONGDOUBLE_IS_WIDER", False)
    assert "check: expected a machine whose longdouble is wider" in refused(capsys, "--preset", "tiny")


def refused(capsys, *arguments):
    """The one line that bad input costs, with exit status 2."""
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_random_batches_fit_a_context_of_one():
    """The shortest that there can be, with learned positions: lengths are cut to the context."""
    for kind in ("decoder", "encoder", "encoder_decoder"):
        model = create_subject(CheckConfig(preset="tiny")).model.__class__(kind=kind, context=1, width=4, heads=1)
        batch = random_batch(model, 2, 5, np.random.default_rng(0))
        assert batch.tokens.shape == (2, 1)
        assert batch.counted > 0


@pytest.mark.parametrize(
    ("name", "other"), [("json", "config"), ("json", "batch"), ("json", "checkpoint"), ("plot", "json")]
)
def test_what_is_read_is_not_written_over(tmp_path, capsys, name, other):
    """Told before anything is read."""
    path = tmp_path / "kept.png"
    path.write_text("mine")
    assert main(["check", f"--{other}", str(path), f"--{name}", str(tmp_path / "." / "kept.png")]) == 2
    assert f"{name}: expected another file than that of {other}, got" in capsys.readouterr().err
    assert path.read_text() == "mine"
