"""Which folder a run takes, what a run that goes on may change, and what is left when that fails; the best model."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train import jobs, run_folder
from train.checkpoint import load_model
from train.cli import main
from train.configuration import TrainConfig, read_run_config
from train.loop import _Interrupts, snapshot_steps
from train.report import train_and_report
from train.run_folder import claimed
from train.tests.runs import estimates, options, overfitting, resumed, run, snapshot, state, with_estimates_of_0, write_text
from train.tests.test_cli import TINY, refused

# The folder


def test_two_that_begin_together_leave_one_run(tmp_path):
    """The second is told before it has written anything, also where it was to overwrite, and where the folder is new."""
    pytest.importorskip("fcntl")
    config = options(tmp_path / "run", steps=2)
    with claimed(config) as folder:
        before = snapshot(folder)
        for other in (config, replace(config, overwrite=True, seed=1)):
            with pytest.raises(ValueError, match="output: expected a run that no other process trains"):
                train_and_report(other)
        assert snapshot(folder) == before
    assert not (tmp_path / "run").exists()


def test_without_an_output_each_takes_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(options(tmp_path / "run"), output=None, preset="tiny")
    with claimed(config) as first, claimed(config) as second:
        assert [first, second] == [Path("runs/tiny-1"), Path("runs/tiny-2")]
        (second / "something").touch()
    assert [path.name for path in Path("runs").iterdir()] == ["tiny-2"]
    free = iter((Path("runs/tiny-2"), Path("runs/tiny-3")))
    monkeypatch.setattr(run_folder, "_first_free", lambda name: next(free))
    monkeypatch.setattr(run_folder, "choose", lambda config: run_folder._first_free("tiny"))
    real = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: path != Path("runs/tiny-2") and real(path))  # as it was a moment ago
    with claimed(config) as third:
        assert third == Path("runs/tiny-3")


# Going on


@pytest.fixture
def finished(tmp_path):
    config = options(tmp_path / "run", steps=8, checkpoint_every=2, average=2)
    train_and_report(config)
    return replace(resumed(read_run_config(tmp_path / "run"), tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 5.0}, "learning_rate: expected 0.01 as in the run, which has done all of its steps, got 5.0"),
        ({"batch": 9}, "batch: expected 3 as in the run, which has done all"),
        ({"checkpoint_every": 4}, "checkpoint_every: expected 2 as for the models that it has kept, got 4"),
        ({"steps": 11, "checkpoint_every": 3}, "checkpoint_every: expected 2 as for the models that it has kept, got 3"),
        ({"steps": 20, "checkpoint_every": 5}, "checkpoint_every: expected 2 as for the models that it has kept, got 5"),
        ({"steps": 10, "average": 4}, "average: expected at most 3, the models that this run has kept and will keep, got 4"),
        ({"average": 3}, "average: expected at most 2, the models"),
    ],
)
def test_what_would_be_a_false_claim_is_refused_and_loses_nothing(finished, changes, message):
    before = snapshot(Path(finished.resume))
    with pytest.raises(ValueError, match=message):
        train_and_report(replace(finished, **changes))
    assert snapshot(Path(finished.resume)) == before


def test_what_diverges_before_it_saves_keeps_all_models(finished):
    """Also those that its new options would not average."""
    before = snapshot(Path(finished.resume))
    with pytest.raises(ValueError, match="the loss became"), np.errstate(all="ignore"):
        train_and_report(replace(finished, steps=40, average=1, checkpoint_every=0, learning_rate=1e200, clip_norm=0.0))
    assert snapshot(Path(finished.resume)) == before


def test_an_average_of_kept_models_and_of_those_to_come(finished):
    folder = train_and_report(replace(finished, steps=14, average=3)).folder
    assert [step for step, _ in run_folder.kept(folder)] == [10, 12, 14]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"learning_rate": 1e200, "clip_norm": 0.0}, ValueError, "learning_rate: "),
        (
            {"batch": 10**9},
            MemoryError,
            r"batch: not enough memory for a step .* a smaller batch with more accumulate takes less",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_fails_before_it_has_saved_changes_nothing(tmp_path, changes, kind, message):
    config = options(tmp_path / "run", steps=4)
    folder = run(config)
    before = snapshot(folder)
    with pytest.raises(kind, match=message), np.errstate(all="ignore"):
        run(replace(resumed(config, folder), steps=12, **changes))
    assert snapshot(folder) == before


@pytest.mark.parametrize("text", ["[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", ""])
def test_too_little_memory_is_one_line(tmp_path, monkeypatch, capsys, text):
    """torch on a CPU has no kind of error for it; on a GPU it has one."""
    error = RuntimeError(text) if text else type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried 1 GiB")
    monkeypatch.setattr("train.torch_backend.TorchBackend.gradient_step", lambda *_: (_ for _ in ()).throw(error))
    assert main([*TINY, "--corpus", str(write_text(tmp_path / "t.txt")), "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("twinformer: error: batch: not enough memory for a step (")
    assert message.endswith("so does --checkpoint-activations\n")


def test_another_runtime_error_is_a_defect(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "train.torch_backend.TorchBackend.gradient_step", lambda *_: (_ for _ in ()).throw(RuntimeError("no"))
    )
    with pytest.raises(RuntimeError, match=r"^no$"):
        run(options(tmp_path / "run"))


def test_options_that_change_on_the_way_are_noted(tmp_path):
    config = options(tmp_path / "run", steps=4, schedule="constant")
    folder = run(config)
    run(replace(resumed(config, folder), steps=6, learning_rate=1e-3))
    run(replace(resumed(read_run_config(folder), folder), batch=2, steps=8))
    run(resumed(read_run_config(folder), folder))
    content = json.loads((folder / "config.json").read_text())
    assert content["options"]["learning_rate"] == 1e-3
    assert content["changes"] == [
        {"after_step": 4, "options": {"steps": 6, "learning_rate": 1e-3}},
        {"after_step": 6, "options": {"batch": 2, "steps": 8}},
    ]


def test_a_run_goes_on_from_anywhere(tmp_path, monkeypatch):
    write_text(tmp_path / "text.txt")
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--corpus", "text.txt", "--output", "run", "--steps", "3"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "5"]) == 0


def test_overwrite_is_for_another_run(capsys, tmp_path):
    folder = run(options(tmp_path / "run", steps=2))
    capsys.readouterr()
    message = refused(capsys, "train", "--resume", str(folder), "--overwrite")
    assert "overwrite: expected none together with resume, got True" in message


# The best model


@pytest.fixture
def judged(tmp_path):
    return overfitting(tmp_path / "run")


def test_the_finished_model_is_the_best(judged):
    """And only the best is left of those that were it on the way; every estimate lies there, or earlier ones are worse."""
    folder = run(judged)
    found = estimates(folder)
    assert 60 in found
    lowest = min(found, key=lambda step: found[step])
    assert 0 < lowest < 60, "the text is to be read too often"
    ((step, path),) = run_folder.best(folder)
    assert step == lowest
    best, finished = load_model(path)[0], load_model(folder / "model.safetensors")[0]
    assert all((best[name] == finished[name]).all() for name in best)
    assert any((state(folder)[0][f"parameters/{name}"] != array).any() for name, array in best.items())


@pytest.mark.parametrize("at", [17, 33, 50])
def test_the_best_model_survives_an_interruption(judged, tmp_path, at):
    unbroken = run(judged)

    def stop(trainer):
        if trainer.step == at:
            raise MemoryError

    broken = replace(judged, output=str(tmp_path / "broken"))
    with pytest.raises(MemoryError):
        run(broken, stop)
    folder = run(resumed(broken, tmp_path / "broken"))
    assert (folder / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert [path.name for _, path in run_folder.best(folder)] == [path.name for _, path in run_folder.best(unbroken)]


def test_who_asks_for_the_best_later_gets_the_best_from_then_on(judged):
    """Models of before are not there to go back to, however good their estimates; after the last step there is none."""
    folder = run(replace(judged, keep_best=False, steps=40))
    with pytest.raises(
        ValueError, match="keep_best: expected none for a finished run that has kept no best model, got True"
    ):
        run(replace(resumed(judged, folder), steps=40))
    with_estimates_of_0(folder)
    run(resumed(judged, folder))
    found = estimates(folder)
    ((step, _),) = run_folder.best(folder)
    assert step == min((step for step in found if step > 40), key=lambda step: found[step])


def test_the_report_says_which_model_it_is_of(tmp_path, capsys):
    text = str(write_text(tmp_path / "text.txt"))
    arguments = ["--corpus", text, "--output", str(tmp_path / "run"), "--steps", "4", "--evaluate-every", "2", "--keep-best"]
    assert main([*TINY, *arguments]) == 0
    assert "of the model after step 4, whose estimate was the lowest" in capsys.readouterr().out


# Signals, snapshots, logs


def test_an_echo_of_a_signal_is_not_a_second_one(monkeypatch):
    with _Interrupts() as interrupts:
        for number in _Interrupts.SIGNALS:
            signal.raise_signal(number)
        assert interrupts.seen
        monkeypatch.setattr(_Interrupts, "ECHO", 0.0)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a system without SIGHUP")
def test_a_lost_terminal_saves_and_nohup_is_left_alone():
    before = signal.getsignal(signal.SIGHUP)  # which nohup may have set for these tests
    try:
        for start, seen in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
            signal.signal(signal.SIGHUP, start)
            with _Interrupts() as interrupts:
                signal.raise_signal(signal.SIGHUP)
                assert interrupts.seen == seen
    finally:
        signal.signal(signal.SIGHUP, before)


def test_there_are_no_more_snapshots_than_steps():
    assert snapshot_steps(10**9, 5) == {0, 1, 2, 3, 4}


def test_a_log_is_json_where_the_loss_is_not_finite(tmp_path):
    with pytest.raises(ValueError, match="learning_rate: the loss became "), np.errstate(all="ignore"):
        run(options(tmp_path / "run", learning_rate=1e200, clip_norm=0.0, warmup=0))
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines]
    assert parsed[-1]["train_loss"] is None
    assert all(math.isfinite(r["train_loss"]) for r in parsed[1:-1])


# Studies


def test_a_job_without_memory_is_one_line(capsys):
    assert "layers: Unable to allocate" in refused(capsys, "induction", "--steps", "1", "--batch", str(10**10))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the child in /proc")
def test_a_child_ends_with_its_parent(tmp_path):
    """Killed, a parent cannot stop it, and nobody reads what it finds."""
    code = (
        "import os, time, train.jobs as jobs\n"
        "def wait(path):\n"
        "    open(path, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "waiting.py").write_text(code)
    start = f"import waiting\nwaiting.jobs.in_a_process('x', waiting.wait, {str(tmp_path / 'pid')!r})\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(jobs.__file__).parents[1])])}
    parent = subprocess.Popen([sys.executable, "-c", start], env=environment, cwd=tmp_path)
    for _ in range(600):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        time.sleep(0.1)
    child = Path("/proc") / (tmp_path / "pid").read_text()
    assert child.exists()
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not child.exists():
            return
        time.sleep(0.1)
    pytest.fail("it goes on")


def test_a_schedule_that_never_falls_is_not_called_so():
    with pytest.raises(ValueError, match="decay: expected at least 1 for stable_decay, which else is constant, got 0"):
        TrainConfig(schedule="stable_decay")
