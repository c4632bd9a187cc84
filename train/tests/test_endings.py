"""How a run ends, and what goes on from it: signals, averages, overwriting, divergence, damaged files."""

import io
import json
import multiprocessing
import re
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from train import jobs, run_folder, schedule
from train.checkpoint import load_model, save_arrays
from train.cli import main
from train.configuration import read_run_config
from train.generated import GeneratedPairs
from train.jobs import Job
from train.loop import Interrupted, _Interrupts, prepare
from train.parallel import Processes
from train.report import train_and_report
from train.streams import stream
from train.tests.runs import options, records, resumed, run, snapshot, state
from train.tests.test_cli import refused

# Signals


def test_signals_are_handled_as_before_afterwards_and_a_second_one_raises(monkeypatch):
    before = [signal.getsignal(number) for number in _Interrupts.SIGNALS]
    monkeypatch.setattr(_Interrupts, "ECHO", 0.0)
    with _Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.seen
        with pytest.raises(KeyboardInterrupt) as told:
            signal.raise_signal(signal.SIGINT)
    assert not isinstance(told.value, Interrupted)
    assert [signal.getsignal(number) for number in _Interrupts.SIGNALS] == before


def test_ctrl_c_in_the_last_step_lets_the_run_end(tmp_path):
    def stop(trainer):
        if trainer.step == 3:
            signal.raise_signal(signal.SIGINT)

    try:
        folder = run(options(tmp_path / "run", steps=3), stop)
    except Interrupted:  # which would end pytest
        pytest.fail("all steps were done")
    assert records(folder)[-1]["exact"] is True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_evaluation_says_how_to_go_on(tmp_path, capsys, monkeypatch, number):
    monkeypatch.setattr("train.loop.mean_loss", lambda backend, batches: signal.raise_signal(number))
    text = options(tmp_path / "run").corpus
    arguments = ["--corpus", text, "--output", str(tmp_path / "run"), "--steps", "2", "--evaluate-every", "0"]
    monkeypatch.setattr("train.loop.Trainer._evaluate", lambda trainer, bar: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["train", "--preset", "tiny", "--device", "cpu", *arguments]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert f"stopped after training; to go on: twinformer train --resume {tmp_path / 'run'}" in capsys.readouterr().err


@pytest.mark.parametrize(("others", "said"), [(0, False), (1, True), (2, True)])
def test_any_is_one_of_them_and_agreed_is_the_first(monkeypatch, others, said):
    import torch.distributed as dist

    monkeypatch.setattr(dist, "all_reduce", lambda value: value.add_(others))
    monkeypatch.setattr(dist, "broadcast_object_list", lambda values: values.__setitem__(0, "zero"))
    processes = Processes(2, 3)
    assert processes.any(False) is said
    assert processes.agreed("mine") == "zero"


def test_a_signal_to_any_process_stops_all_and_saves(tmp_path):
    class AnotherHasHeard(Processes):
        def any(self, flag):
            return True

    trainer = prepare(options(tmp_path / "run"), AnotherHasHeard())
    with pytest.raises(Interrupted, match="stopped after step 1;"):
        trainer.run()
    assert state(tmp_path / "run")[1]["step"] == 1


@pytest.mark.parametrize("writes", [True, False])
def test_one_process_shows_its_progress(tmp_path, monkeypatch, writes):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(Processes, "writes", writes)
    monkeypatch.setattr("sys.stderr", Terminal())
    prepare(options(tmp_path / "run", steps=2), Processes()).run()
    assert ("2/2" in sys.stderr.getvalue()) is writes


# Two at once


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    config = options(tmp_path / "run", steps=2)
    train_and_report(config)
    before = snapshot(tmp_path / "run")
    again = replace(resumed(read_run_config(tmp_path / "run"), tmp_path / "run"), steps=4)
    message = "resume: expected a run that no other process trains"
    with run_folder.held(tmp_path / "run", "output"):
        with pytest.raises(ValueError, match=message):
            train_and_report(again)
        with pytest.raises(ValueError, match="output: expected a run that no other process trains"):
            train_and_report(replace(config, overwrite=True))
    assert snapshot(tmp_path / "run") == before
    assert train_and_report(again).folder == tmp_path / "run"


# Averages


def test_what_ctrl_c_leaves_is_not_averaged(tmp_path):
    config = options(tmp_path / "unbroken", steps=12, checkpoint_every=4, average=2, schedule="constant")
    unbroken = run(config)

    def stop(trainer):
        if trainer.step == 9:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        run(replace(config, output=str(tmp_path / "broken")), stop)
    assert [step for step, _ in run_folder.kept(tmp_path / "broken")] == [4, 8]
    folder = run(resumed(config, tmp_path / "broken"))
    assert (folder / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()


def test_an_overwritten_run_leaves_nothing_to_average(tmp_path):
    config = options(tmp_path / "run", steps=12, checkpoint_every=4, average=3)
    run(config)
    (tmp_path / "run" / ".model.safetensors.1.part").write_bytes(b"of a process that was killed")
    folder = run(replace(config, steps=6, checkpoint_every=3, average=2, overwrite=True))
    assert [step for step, _ in run_folder.kept(folder)] == [3, 6]
    assert not list(folder.glob(".*.part"))
    assert not {"output", "overwrite", "resume"} & set(json.loads((folder / "config.json").read_text())["options"])


def test_scores_are_of_the_mean_that_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("train.generated.HELD_OUT", 10)
    scored = []
    monkeypatch.setattr(GeneratedPairs, "scores", lambda self, backend: scored.append(backend.parameters()) or {"x": 1})
    folder = run(options(tmp_path / "run", task="copy", context=17, steps=6, checkpoint_every=2, average=3))
    saved, _, _ = load_model(folder / "model.safetensors")
    assert all((scored[-1][name] == array).all() for name, array in saved.items())


def test_what_is_not_finite_is_not_kept_to_be_averaged(tmp_path):
    config = options(tmp_path / "run", steps=4, checkpoint_every=2, log_every=100, evaluate_every=0, average=2)
    folder = run(config)

    def models():
        return {name: content for name, content in snapshot(folder).items() if name.endswith("safetensors")}

    before = models()
    with pytest.raises(ValueError, match="learning_rate: a parameter or what"), np.errstate(all="ignore"):
        run(replace(resumed(config, folder), steps=12, learning_rate=1e200, clip_norm=0.0))
    assert models() == before


def test_fewer_models_are_averaged_when_a_finished_run_is_told_so(tmp_path):
    config = options(tmp_path / "run", steps=6, checkpoint_every=2, average=3)
    folder = run(config)
    run(replace(resumed(config, folder), average=2))
    assert [step for step, _ in run_folder.kept(folder)] == [4, 6]


def test_a_finished_run_that_has_kept_no_models_has_no_mean(tmp_path):
    config = options(tmp_path / "run", steps=4)
    folder = run(config)
    before = snapshot(folder)
    with pytest.raises(
        ValueError, match="average: expected at most 0, the models that this run has kept and will keep, got 2"
    ):
        run(replace(resumed(config, folder), average=2, checkpoint_every=2))
    assert snapshot(folder) == before


def test_the_state_is_written_before_the_model(tmp_path, monkeypatch):
    trainer, written = prepare(options(tmp_path / "run", average=2, checkpoint_every=1)), []
    for name in ("save_arrays", "save_model"):
        monkeypatch.setattr(f"train.loop.{name}", lambda path, *rest: written.append(path.name))
    trainer.save()
    assert written == ["checkpoint-00000000.safetensors", "state.safetensors", "model.safetensors"]


def test_what_a_state_is_made_from_stays_as_it_is(tmp_path):
    """A run goes on from arrays that it was given, and leaves them as they were."""
    trainer = prepare(options(tmp_path / "run", dropout=0.0, optimizer="muon", learning_rate=5e-3))
    batch = [trainer.task.training_batch(0, stream(0, "t"))]
    trainer.backend.gradient_step(batch, 1e-2)
    arrays, extra = trainer.backend.export_state()
    before = {name: array.copy() for name, array in arrays.items()}
    trainer.backend.import_state(arrays, extra)
    trainer.backend.gradient_step(batch, 1e-2)
    assert all((arrays[name] == array).all() for name, array in before.items())


# Divergence


def test_the_rate_that_was_too_high_is_that_of_the_step(tmp_path):
    config = options(tmp_path / "run", learning_rate=1e200, warmup=0, clip_norm=0.0, schedule="cosine", steps=9)
    with pytest.raises(ValueError, match="learning_rate: the loss became") as told, np.errstate(all="ignore"):
        run(config)
    step = int(re.search(r"at step (\d+)", str(told.value))[1])
    assert str(told.value).endswith(f"got {schedule.learning_rate(config, step - 1)}")


SMALL_JOB = {"layers": 1, "width": 8, "heads": 1, "context": 13, "batch": 2, "steps": 3, "log_every": 1}


def test_a_training_that_diverged_has_no_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "install", lambda faults: None)
    wild = {"warmup": 0, "clip_norm": 0.0, "learning_rate": 1e200, "dtype": "float64", "device": "cpu"}
    with np.errstate(all="ignore"):
        record = jobs.perform(tmp_path, Job("x", {"corpus": options(tmp_path / "x").corpus, **SMALL_JOB, **wild}))
    assert record["loss"] is None
    assert "learning_rate" in record["failure"]


# Jobs


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ValueError("x"), ValueError), (FileNotFoundError("x"), ValueError), (ZeroDivisionError("x"), RuntimeError)],
)
def test_what_a_user_can_mend_is_told_in_one_line(error, kind):
    def fails(argument):
        raise error

    sent = []
    jobs._child(fails, None, SimpleNamespace(send=sent.append))
    assert sent[0][2] is kind
    assert ("Traceback" in sent[0][1]) == (kind is RuntimeError)


def test_a_job_has_one_thread(tmp_path, monkeypatch):
    """Whatever its options say: as many jobs as are asked for run beside it."""
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(jobs, "install", lambda faults: None)
    corpus = options(tmp_path / "x").corpus
    jobs.perform(tmp_path, Job("x", {"corpus": corpus, "device": "cpu", "threads": 2, **SMALL_JOB}))
    assert told == [1]


def test_ctrl_c_ends_the_trainings_that_run_and_one_that_is_just_starting(tmp_path, monkeypatch):
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))

    def work(name, *_):
        if name == "interrupted":
            raise KeyboardInterrupt
        time.sleep(0.2)
        child.start()
        child.join()
        raise RuntimeError("killed")

    monkeypatch.setattr(jobs, "in_a_process", work)
    monkeypatch.setattr(jobs, "start_method", lambda: None)
    both = [Job("interrupted", {"seed": 0}), Job("late", {"seed": 1})]
    with pytest.raises(KeyboardInterrupt, match=r"stopped; the same command goes on from what is in .*runs\.jsonl"):
        jobs.run_all(both, tmp_path / "runs.jsonl", 2)
    assert child.exitcode not in (None, 0)


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="a system without forks")
def test_ctrl_c_is_for_the_command_alone(monkeypatch):
    """The server of the children, and so each of them, is born deaf to it; the command is not."""
    seen, before = [], signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(jobs.forkserver, "ensure_running", lambda: seen.append(signal.getsignal(signal.SIGINT)))
    try:
        jobs.start_method()
        assert (seen, signal.getsignal(signal.SIGINT)) == ([signal.SIG_IGN], signal.default_int_handler)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_job_without_looks_is_another():
    assert Job("x", {}, look_every=5).key != Job("x", {}).key


def test_a_text_in_the_home_folder_is_known_by_what_stands_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = set()
    for text in ("one", "two"):
        (tmp_path / "mine.txt").write_text(text)
        keys.add(Job("x", {"corpus": "~/mine.txt"}).key)
    assert len(keys) == 2


def test_threads_of_torch_are_as_many_as_asked_for(tmp_path):
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            prepare(options(tmp_path / f"{count}", threads=count))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


# Damaged files


@pytest.mark.parametrize("line", ["[]", "3", '{"a": 1}', "\udcff"])
def test_lines_of_the_log_that_are_no_records_are_left_out(tmp_path, line):
    config = options(tmp_path / "run", steps=2)
    folder = run(config)
    expected = records(folder)
    with (folder / "log.jsonl").open("ab") as file:
        file.write(line.encode("utf-8", errors="surrogateescape") + b"\n")
    run(resumed(config, folder))
    assert records(folder) == expected


def test_a_state_that_is_damaged_costs_one_line(tmp_path, capsys):
    folder = run(options(tmp_path / "run", steps=2))
    arrays, extra = run_folder.load_state(folder)
    before = (folder / "log.jsonl").read_bytes()

    def damaged(message):
        capsys.readouterr()
        assert message in refused(capsys, "train", "--resume", folder)
        assert (folder / "log.jsonl").read_bytes() == before

    save_arrays(folder / "state.safetensors", "state", arrays, extra | {"twin": {}})
    damaged("expected a checkpoint with all of a run's state, got one without: 'updates'")
    name = next(iter(arrays))
    save_arrays(folder / "state.safetensors", "state", arrays | {name: np.full_like(arrays[name], np.nan)}, extra)
    damaged(f"{name}: expected finite numbers, got NaN or inf")
    save_file({"x": np.zeros(1)}, folder / "state.safetensors")
    damaged("state.safetensors: expected")
    (folder / "config.json").write_text("[" * 100_000)
    damaged("config.json: expected")
