"""What a run that goes on, is stopped or is replaced may claim: of which models its mean is, which one was the best, what it
has done; and that nothing is lost on the way."""

import contextlib
import errno
import gzip
import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from train import run_folder
from train.checkpoint import load_arrays, write_atomically
from train.cli import main
from train.configuration import read_run_config
from train.loop import Trainer, _Interrupts, prepare
from train.parallel import Processes
from train.report import train_and_report
from train.tests import test_translation
from train.tests.runs import (
    estimates,
    options,
    overfitting,
    records,
    resumed,
    run,
    snapshot,
    state,
    with_estimates_of_0,
    write_text,
)
from train.tests.test_cli import TINY, refused
from train.translation import Multi30k


@pytest.fixture
def averaged(tmp_path):
    """A finished run that has averaged the models after steps 4, 6 and 8, to go on from."""
    folder = run(options(tmp_path / "run", steps=8, checkpoint_every=2, average=3))
    return resumed(read_run_config(folder), folder)


@pytest.fixture
def judged(tmp_path):
    """A run whose best model is one on the way."""
    return overfitting(tmp_path / "run")


def kept(folder):
    return [step for step, _ in run_folder.kept(folder)]


# Of which models


def test_no_gap_lies_between_the_models_that_are_averaged(averaged):
    """Without an average between, those of before are gone by the first save, and by the second nothing is amiss."""
    folder = run(replace(averaged, average=0, steps=14))
    assert kept(folder) == []
    with pytest.raises(ValueError, match="average: expected at most 0, the models that this run has kept and will keep"):
        run(replace(averaged, average=2, steps=14))


def test_the_last_step_has_a_model_to_average_whatever_the_interval(tmp_path):
    folder = run(options(tmp_path / "run", steps=9, checkpoint_every=2, average=5))
    assert kept(folder) == [2, 4, 6, 8, 9]


def test_a_finished_run_that_is_reported_anew_averages_fewer(averaged):
    folder = run(replace(averaged, average=2))
    assert kept(folder) == [6, 8]
    run(replace(averaged, average=0))
    assert kept(folder) == [6, 8], "no step was done since"


def test_a_model_of_a_future_that_did_not_happen_is_not_averaged(averaged):
    folder = Path(averaged.resume)
    before = (folder / run_folder.MODEL).read_bytes()
    (folder / run_folder.KEPT.format(step=10)).write_bytes((folder / run_folder.KEPT.format(step=8)).read_bytes())
    run(averaged)
    assert kept(folder) == [4, 6, 8]
    assert (folder / run_folder.MODEL).read_bytes() == before


def test_no_estimates_are_missing_between_the_best_model_and_the_last(judged):
    folder = run(replace(judged, steps=12))
    assert run_folder.best(folder)
    run(replace(resumed(judged, folder), keep_best=False, steps=24))
    assert not run_folder.best(folder)
    with pytest.raises(ValueError, match="keep_best: expected none for a finished run that has kept no best model"):
        run(replace(resumed(judged, folder), steps=24))


@pytest.mark.parametrize(("option", "value"), [("evaluation_characters", 16), ("evaluation_batch", 2)])
def test_estimates_are_compared_on_the_same_text(judged, option, value):
    folder = run(replace(judged, steps=12))
    with pytest.raises(ValueError, match=f"{option}: expected .* as for the best model that it has kept, got {value}"):
        run(replace(resumed(judged, folder), **{option: value}))


def test_a_run_that_goes_on_knows_the_estimate_of_its_best_model(judged):
    folder = run(replace(judged, steps=12))
    before = run_folder.best(folder)
    with_estimates_of_0(folder)
    run(replace(resumed(judged, folder), steps=24))
    assert run_folder.best(folder) == before


def test_the_last_model_is_always_one_to_choose_from(judged):
    folder = run(replace(judged, steps=8, evaluate_every=250))
    found = estimates(folder)
    assert list(found) == [0, 8]
    ((step, _),) = run_folder.best(folder)
    assert step == min(found, key=lambda at: found[at]) == 8


def test_the_best_model_says_after_which_step_it_was(judged):
    folder = run(judged)
    ((step, _),) = run_folder.best(folder)
    assert 0 < step < 60
    assert load_arrays(folder / "model.safetensors", "model")[1]["step"] == step
    assert state(folder)[1]["step"] == 60


def test_process_0_says_which_model_is_the_best(judged, monkeypatch):
    monkeypatch.setattr(Processes, "agreed", lambda self, value: False if isinstance(value, bool | np.bool_) else value)
    trainer = prepare(judged)
    trainer._evaluate(SimpleNamespace(write=print))
    assert not run_folder.best(trainer.folder)


def test_models_of_a_future_that_did_not_happen_are_gone(judged, tmp_path):
    def stop(trainer):
        if trainer.step == 17:
            raise MemoryError

    config = replace(judged, snapshots=3)
    unbroken = run(config)
    with pytest.raises(MemoryError):
        run(replace(config, output=str(tmp_path / "broken")), stop)
    folder = tmp_path / "broken"
    for name in (run_folder.BEST.format(step=99), run_folder.SNAPSHOT.format(step=33)):
        (folder / name).write_bytes(b"of a future that did not happen")
    run(resumed(config, folder))
    assert sorted(snapshot(folder)) == sorted(snapshot(unbroken))


# What it has done


OTHER = {
    "batch": 9, "accumulate": 5, "schedule": "constant", "learning_rate": 5.0, "warmup": 4, "beta1": 0.8, "beta2": 0.9,
    "epsilon": 1e-3, "weight_decay": 0.5, "clip_norm": 2.0, "input_noise": 0.1, "label_smoothing": 0.2,
    "minimum_learning_rate": 1e-5, "adamw_learning_rate": 0.1, "momentum": 0.5, "decay": 3, "batch_tokens": 77,
}  # fmt: skip
ALWAYS = {"init_from": "elsewhere", "validation_fraction": 0.3, "optimizer": "muon", "seed": 3, "subwords": 300, "width": 32}


@pytest.mark.parametrize("option", [*OTHER, *ALWAYS])
def test_no_option_becomes_a_false_claim(averaged, option):
    before = snapshot(Path(averaged.resume))
    value = (OTHER | ALWAYS)[option]
    changed = (
        replace(averaged, model=replace(averaged.model, width=value))
        if option == "width"
        else replace(averaged, **{option: value})
    )
    with pytest.raises(ValueError, match=f"{option}: expected .* as in the run"):
        prepare(changed)
    assert snapshot(Path(averaged.resume)) == before


def test_what_was_saved_is_not_put_back(averaged):
    """A resumed run that is stopped after it has saved keeps its own options and records."""

    def stop(trainer):
        if trainer.step == 13:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(replace(averaged, steps=14), stop)
    folder = Path(averaged.resume)
    assert state(folder)[1]["step"] == 12
    assert read_run_config(folder).steps == 14
    assert [r["step"] for r in records(folder) if "train_loss" in r][-1] == 13


def test_figures_of_the_end_have_their_own_time(tmp_path, monkeypatch):
    """The final test counts as evaluation, and the processor's time is that of all threads and processes."""
    monkeypatch.setattr("train.generated.HELD_OUT", 4)
    monkeypatch.setattr("train.generated.GeneratedPairs.scores", lambda *_: time.sleep(0.5) or {"exact": 1.0})
    monkeypatch.setattr(os, "times", lambda: (1000.0, 200.0, 30.0, 4.5, 6789.0))  # own, of children, by the clock
    trainer = prepare(options(tmp_path / "run", task="copy", context=17, steps=2))
    outcome = trainer.run()
    content = json.loads((trainer.folder / "scores.json").read_text())
    assert content["evaluation_seconds"] == outcome.evaluation_seconds >= 0.5
    assert content["cpu_seconds"] == 1234.5


def test_a_device_is_waited_for_before_anything_that_is_not_training(tmp_path, monkeypatch):
    asked = []

    class Later(float):
        def __float__(self):
            asked.append(trainer.step)
            return 1.0

    config = options(tmp_path / "run", steps=20, log_every=100, evaluate_every=7, checkpoint_every=5, snapshots=3)
    trainer = prepare(config)
    step = trainer.backend.gradient_step
    monkeypatch.setattr(trainer.backend, "gradient_step", lambda *given: step(*given)._replace(loss=Later()))
    trainer.run()
    assert sorted(set(asked)) == [1, 4, 5, 7, 10, 14, 15, 20]


# Nothing is lost


def test_a_report_that_is_stopped_leaves_a_finished_run_as_it_was(averaged, monkeypatch):
    before = snapshot(Path(averaged.resume))
    monkeypatch.setattr("train.loop.mean_loss", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt, match="stopped after training; to go on"):
        run(replace(averaged, average=2))
    assert snapshot(Path(averaged.resume)) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_a_stop_before_the_first_step_leaves_a_run_as_it_was(averaged, monkeypatch, error):
    before = snapshot(Path(averaged.resume))
    monkeypatch.setattr(Trainer, "describe", lambda self: (_ for _ in ()).throw(error))
    with pytest.raises(error):
        train_and_report(replace(averaged, steps=14))
    assert snapshot(Path(averaged.resume)) == before


def test_a_folder_of_a_killed_process_is_free(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.123.part").write_text("{")
    run(options(folder, steps=1))
    assert not list(folder.glob(".*"))


def test_what_is_replaced_is_a_run_at_every_moment(tmp_path, monkeypatch):
    folder = run(options(tmp_path / "run", steps=1))
    again = replace(options(tmp_path / "run", steps=2), overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_json", lambda *_: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            run(again)
    assert list(snapshot(folder)) == ["config.json"]
    run(again)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_whatever_announces_the_end_is_heard(name):
    with _Interrupts() as interrupts:
        signal.raise_signal(getattr(signal, name))
        assert interrupts.seen


def test_an_exact_loss_that_is_not_finite_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr("train.loop.mean_loss", lambda *_: math.nan)
    with pytest.raises(ValueError, match="learning_rate: the exact validation loss became nan at step 2"):
        run(options(tmp_path / "run", steps=2))
    assert not any(record.get("exact") for record in records(tmp_path / "run"))


def test_a_run_is_held_until_it_is_reported(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    config = options(tmp_path / "run", steps=1)
    seen = []

    def report(trainer):
        with pytest.raises(ValueError, match="output: expected a run that no other process trains"):
            train_and_report(replace(config, overwrite=True))
        seen.append(trainer)
        return ""

    monkeypatch.setattr("train.report._write_sample", report)
    train_and_report(config)
    assert len(seen) == 1


def test_a_run_that_was_made_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()

    @contextlib.contextmanager
    def held(folder, name):
        monkeypatch.undo()
        run(options(tmp_path / "run", steps=1))
        yield

    monkeypatch.setattr(run_folder, "held", held)
    with (
        pytest.raises(ValueError, match=r"output: .* holds a run already"),
        run_folder.claimed(options(tmp_path / "run", steps=2)),
    ):
        pytest.fail("it is another's")


def test_a_full_disk_says_which_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device: '.*model\.safetensors'"):
        write_atomically(tmp_path / "model.safetensors", b"weights")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("average", "name"), [(3, "checkpoint-00000010"), (0, "state")])
def test_on_a_full_disk_a_run_stays_as_it_was(averaged, monkeypatch, average, name):
    """Beside a file there is no room for another; in its place there is. Models no longer wanted stay, too."""
    before = snapshot(Path(averaged.resume))

    def stop(trainer):
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))

    with pytest.raises(OSError, match=rf"No space left on device: '.*{name}\.safetensors'"):
        run(replace(averaged, steps=14, average=average), stop)
    assert snapshot(Path(averaged.resume)) == before


def test_process_0_goes_first(monkeypatch):
    for rank, order in ((0, ["inside", "asked"]), (1, ["asked", "inside"])):
        seen: list[str] = []
        monkeypatch.setattr(Processes, "any", lambda self, flag, seen=seen: seen.append("asked") or flag)
        with Processes(rank, 2).one_after_the_other():
            seen.append("inside")
        assert seen == order


# Before training, not after it


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("line", "message"),
    [("word " * 60, "context: expected at least"), (" ", r"corpus: .*\.en\.gz: expected a sentence in line 8")],
)
def test_a_source_that_cannot_be_translated_is_told_before_training(tmp_path, split, line, message):
    corpus = test_translation.write_corpus(tmp_path / "corpus")
    for language, text in (("en", line), ("de", "ein Satz")):
        path = corpus / f"{test_translation.SPLITS[split]}.{language}.gz"
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + text.encode() + b"\n"))
    with pytest.raises(ValueError, match=message):
        Multi30k(test_translation.options(corpus, tmp_path / "run"))


def test_the_example_is_as_long_as_the_model_can_read(tmp_path, monkeypatch):
    monkeypatch.setattr("train.text.LanguageModel.example", lambda self: (None, "the king and queen of night " * 3))
    folder = train_and_report(options(tmp_path / "run", steps=1, position="learned")).folder
    assert (folder / run_folder.ATTENTION).exists()


def test_a_text_may_lie_at_home(tmp_path, monkeypatch, capsys):
    """In every command; and a file whose name only begins like a home is a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "~text.txt")
    write_text(tmp_path / "text.txt")
    arguments = ["--steps", "1", "--corpus", "~text.txt", "--output", "out"]
    assert main(["pitfalls", "--only", "unscaled-scores", *arguments]) == 0
    test_translation.write_corpus(tmp_path / "pairs")
    assert Multi30k(test_translation.options("~/pairs", tmp_path / "run")).facts["training"] == 60
    assert main([*TINY, "--corpus", "~/text.txt", "--output", "run", "--steps", "1"]) == 0
    assert read_run_config(tmp_path / "run").corpus == str(tmp_path / "text.txt")
    capsys.readouterr()
    message = refused(capsys, *TINY, "--corpus", "~/run/sample.txt", "--output", "run", "--overwrite")
    assert "corpus: expected a text outside of the run that is overwritten" in message
