"""Fine-tuning: a run that begins with the model of another."""

import os
import shutil

import numpy as np
import pytest

from train.checkpoint import load_model, save_model
from train.cli import main
from train.configuration import read_run_config
from train.loop import prepare
from train.run_folder import MODEL
from train.tests.runs import exact_loss, records, resumed, run, snapshot, write_text
from train.tests.runs import options as run_options
from train.tests.test_cli import TINY, refused
from train.tests.test_gpt2 import write_weights

ESTIMATE = {"evaluation_characters": 10**6}  # of the whole validation split: but for its last, shorter window


def options(folder, **changes):
    return run_options(folder, **{"steps": 6, **ESTIMATE, **changes})


@pytest.fixture
def first(tmp_path):
    return run(options(tmp_path / "first"))


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_it_begins_where_the_other_ended(tmp_path, first, backend):
    """Parameters and vocabulary; the optimizer, the schedule and the random streams are new."""
    config = options(tmp_path / "second", init_from=str(first), backend=backend, dropout=0.1, seed=3)
    trainer = prepare(config)
    begun = trainer.backend.parameters()
    for name, value in load_model(first / MODEL)[0].items():
        assert np.array_equal(begun[name], value), name
    trainer.run()
    at_first, *_ = (record["validation_loss"] for record in records(tmp_path / "second") if "validation_loss" in record)
    assert at_first == pytest.approx(exact_loss(first), abs=0.05)
    assert exact_loss(tmp_path / "second") < at_first
    assert read_run_config(tmp_path / "second").init_from == str(first.resolve())


def test_the_command_takes_the_shape_of_the_model(tmp_path, first):
    """And of what it trains on what is given, or the preset's."""
    text, output = write_text(tmp_path / "text.txt"), tmp_path / "second"
    assert main([*TINY, "--corpus", str(text), "--output", str(output), "--init-from", str(first), "--dropout", "0.2"]) == 0
    old, new = read_run_config(first), read_run_config(output)
    assert new.model.width == old.model.width
    assert new.model.dropout == 0.2
    assert new.preset == "tiny"


def test_none_is_the_number_that_it_stands_for(tmp_path, first):
    model = read_run_config(first).model
    written_out = {"key_value_heads": model.heads, "feed_forward": 4 * model.width}
    assert vars(model).items() >= dict.fromkeys(written_out).items()
    prepare(options(tmp_path / "second", init_from=str(first), **written_out))
    with pytest.raises(ValueError, match=f"key_value_heads: expected {model.heads}, as in the run to begin with, got 1"):
        prepare(options(tmp_path / "third", init_from=str(first), key_value_heads=1))


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_shorter_context(tmp_path, position):
    first = run(options(tmp_path / "first", position=position))
    context = read_run_config(first).model.context
    trainer = prepare(options(tmp_path / "second", position=position, init_from=str(first), context=context // 2))
    begun, own = trainer.backend.parameters(), load_model(first / MODEL)[0]
    assert begun.keys() == own.keys()
    for name, value in begun.items():
        assert np.array_equal(value, own[name][: context // 2] if name == "position_embedding.weight" else own[name])
    longer = options(tmp_path / "third", position=position, init_from=str(first), context=2 * context)
    if position == "rotary":  # which is computed for any length
        assert prepare(longer).config.model.context == 2 * context
    else:
        with pytest.raises(ValueError, match=f"context: expected at most {context}, as in the run to begin with, got"):
            prepare(longer)


def test_a_stopped_run_goes_on_where_the_other_is_gone(tmp_path, first):
    """Bit for bit as if it had not been stopped: its own model has the vocabulary."""
    whole = run(options(tmp_path / "whole", init_from=str(first)))
    half = run(options(tmp_path / "half", init_from=str(first), steps=3))
    shutil.rmtree(first)
    run(resumed(options(half, init_from=str(first)), half))
    assert (half / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def test_subwords_come_with_their_model(tmp_path, capsys):
    """GPT-2 on a text of one's own, as nanoGPT's finetune_shakespeare does; a loss is then per token."""
    assert main(["gpt2", "--weights", str(write_weights(tmp_path / "weights")), "--output", str(tmp_path / "gpt2")]) == 0
    text, run_of_it = write_text(tmp_path / "text.txt"), tmp_path / "run"
    arguments = ["--corpus", str(text), "--output", str(run_of_it), "--init-from", str(tmp_path / "gpt2")]
    assert main([*TINY, *arguments, "--context", "8", "--learning-rate", "0.01", "--minimum-learning-rate", "0"]) == 0
    assert "nats per token" in capsys.readouterr().out
    last = records(run_of_it)[-1]
    assert last["tokens"] > 0
    assert last["bits_per_token"] == pytest.approx(last["validation_loss"] / np.log(2))
    before = next(record["validation_loss"] for record in records(run_of_it) if "validation_loss" in record)
    assert last["validation_loss"] < before
    assert main([*TINY[:1], "--resume", str(run_of_it), "--steps", "55"]) == 0
    assert main(["generate", "--run", str(run_of_it), "--length", "5"]) == 0


def test_a_run_that_was_stopped_before_its_first_model_goes_on(tmp_path, first):
    """Its state came first; the vocabulary is still where it came from. The folder may be named as it was."""
    half = run(options(tmp_path / "half", init_from=str(first), steps=3))
    (half / MODEL).unlink()
    run(resumed(options(half, init_from=os.path.relpath(first)), half))
    assert (half / MODEL).exists()


def test_numbers_that_are_not_finite_are_not_begun_with(tmp_path, first):
    parameters, model, vocabulary = load_model(first / MODEL)
    parameters["final_norm.weight"][0] = np.nan
    save_model(first / MODEL, parameters, model, vocabulary, 0)
    with pytest.raises(ValueError, match=r"init_from: final_norm\.weight: expected finite numbers, got NaN or inf"):
        prepare(options(tmp_path / "second", init_from=str(first)))
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 12}, "width: expected 16, as in the run to begin with, got 12"),
        ({"position": "rotary"}, "position: expected learned, as in the run to begin with, got rotary"),
        ({"task": "masked_language_model"}, "init_from: expected a run that trained a model of kind encoder, as this task"),
        ({"task": "copy", "context": 17}, "init_from: expected a run whose vocabulary is that of this task, got another"),
        ({"init_from": "nowhere"}, "nowhere/model.safetensors: expected a checkpoint, found no such file"),
    ],
)
def test_what_does_not_fit(tmp_path, first, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare(options(tmp_path / "second", **{"init_from": str(first), **changes}))
    assert not (tmp_path / "second").exists()


def test_mistakes_of_the_command(tmp_path, first, capsys):
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("φιλοσοφία " * 100, encoding="utf-8")
    begin = ["--init-from", str(first)]
    message = refused(capsys, *TINY, "--corpus", foreign, "--output", tmp_path / "second", *begin)
    assert message.startswith("corpus: character 'φ' (U+03C6) at position 0 is not in the vocabulary")
    before = snapshot(first)
    for same in (first, f"{first}/../{first.name}"):
        message = refused(capsys, *TINY, "--corpus", foreign, "--output", same, "--overwrite", *begin)
        assert message.startswith("init_from: expected another run than the one that is overwritten")
        assert snapshot(first) == before
    message = refused(capsys, *TINY, "--init_from", tmp_path / "nowhere")
    assert message.startswith("init_from: expected the folder of a run, with its config.json, got")
