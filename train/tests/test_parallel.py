"""Two processes are one: the same losses to rounding, checkpoints that either takes up, one writer, one voice."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from train import parallel
from train.configuration import TrainConfig, flat_options
from train.data import Batch
from train.tests.runs import envelope, exact_loss, losses, options, records, resumed, run, snapshot

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(folder, *arguments):
    """torchrun with two processes in `folder`."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*TORCHRUN, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_end_of_another_process_is_told_in_one_line(monkeypatch):
    """As gloo tells it; any other error of that kind is a defect, and keeps its traceback."""
    monkeypatch.setattr(parallel, "_place", lambda: (0, 2))
    monkeypatch.setattr(parallel, "_connect", lambda options: None)
    monkeypatch.setattr(parallel, "reports_error", lambda: True)
    found = {}
    for message in ("[third_party/gloo/pair.cc] Connection closed by peer", "a defect"):
        with pytest.raises((ConnectionError, RuntimeError), match="e") as raised, parallel.connected(TrainConfig()):
            raise RuntimeError(message)
        found[type(raised.value)] = str(raised.value)
    assert found.keys() == {ConnectionError, RuntimeError}
    assert found[ConnectionError].startswith("another process has ended; what was saved last can be resumed")


def test_two_processes_train_as_one(tmp_path, monkeypatch):
    """With dropout, clipping, smoothing and accumulation, over micro-batches of three rows, so that the parts are uneven."""
    monkeypatch.setattr("train.generated.HELD_OUT", 20)
    pairs = {"task": "copy", "context": 17, "position": "sinusoidal", "batch": 1}
    best = {"keep_best": True, "evaluate_every": 4}
    variants = {
        "ddp": {"parallel": "ddp", "average": 2, "checkpoint_every": 4},
        "fsdp": {"parallel": "fsdp", "optimizer": "muon", "learning_rate": 5e-3},
        "recomputed": {"parallel": "fsdp", "checkpoint_activations": True, "norm": "rms", "position": "rotary", **best},
        "one-row": {"parallel": "ddp", **pairs},
    }
    one = {n: options(tmp_path / f"one-{n}", steps=12, schedule="constant", **v) for n, v in variants.items()}
    two = [replace(config, output=str(tmp_path / name)) for name, config in one.items()]
    run(replace(one["fsdp"], output=str(tmp_path / "from-one"), steps=6))
    two.append(resumed(one["fsdp"], tmp_path / "from-one"))
    two.append(replace(one["fsdp"], output=str(tmp_path / "from-two"), steps=6))
    (tmp_path / "runs.json").write_text(json.dumps([flat_options(config) for config in two]))
    done = launch(tmp_path, "-m", "train.tests.many", tmp_path / "runs.json")
    assert done.returncode == 0, done.stderr
    run(resumed(one["fsdp"], tmp_path / "from-two"))

    for name, config in one.items():
        wanted = losses(run(config))
        bound = 2 * envelope(tmp_path / f"envelope-{name}", config)
        for other in [name, "from-one", "from-two"] if name == "fsdp" else [name]:
            assert (np.abs(losses(tmp_path / other) - wanted) <= bound).all(), other
            assert len(records(tmp_path / other)) == len(records(tmp_path / f"one-{name}"))
            # The validation loss is of the parameters after the last step, so one step further than the last bound.
            assert abs(exact_loss(tmp_path / other) - exact_loss(tmp_path / f"one-{name}")) <= 2 * bound[-1], other
            assert snapshot(tmp_path / other).keys() == snapshot(tmp_path / f"one-{name}").keys()
        # The canary: after so few steps a learning rate that differs in the ninth digit.
        wrong = replace(config, learning_rate=config.learning_rate * (1 + 1e-9), output=str(tmp_path / f"canary-{name}"))
        assert not (np.abs(losses(run(wrong)) - wanted) <= bound).all()


def test_an_error_in_one_process_ends_all_and_is_told_once(tmp_path):
    """From the command line: options that all refuse, and a loss that no process can go on from."""
    text = options(tmp_path / "unused").corpus
    train = ["-m", "train", "train", "--preset", "tiny", "--corpus", text, "--device", "cpu"]
    for arguments, message in (
        (["--backend", "numpy"], "backend: expected torch for several processes, got numpy"),
        (["--steps", "0"], "steps: expected at least 1, got 0"),
        (["--learning-rate", "1e30", "--clip-norm", "0"], "learning_rate: the loss became"),
    ):
        done = launch(tmp_path, *train, *arguments)
        assert done.returncode != 0
        lines = [line for line in done.stderr.splitlines() if line.startswith("twinformer: error: ")]
        assert len(lines) == 1, done.stderr
        assert message in lines[0]
        assert 'train/cli.py"' not in done.stderr  # torchrun's own report follows, but no traceback of ours
    assert not (tmp_path / "runs" / "tiny-2").exists()


LATE = """
import os, sys, time
from train import cli

def slowly(reports_error=cli.reports_error):
    first = reports_error()
    time.sleep(2 * first)
    return first

cli.reports_error = slowly
time.sleep(os.environ["RANK"] == "0")
sys.exit(cli.main(sys.argv[1:]))
"""


def test_an_error_is_told_whoever_comes_first(tmp_path):
    """Process 0 arrives when the other has failed already, and who tells takes its time: torchrun must not end it before."""
    (tmp_path / "late.py").write_text(LATE)
    done = launch(tmp_path, tmp_path / "late.py", "train", "--preset", "tiny", "--steps", 0)
    assert done.returncode != 0
    assert done.stderr.count("twinformer: error: steps: expected at least 1, got 0") == 1, done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_without_a_store_to_ask_the_first_process_tells(monkeypatch, rank):
    for name, value in {"RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(parallel, "PATIENCE", timedelta(0))
    monkeypatch.setattr("signal.signal", lambda *_: None)  # it is the tests' own
    assert parallel.reports_error() is (rank == 0)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, MemoryError])
def test_an_error_for_the_user_is_left_to_the_command_line(monkeypatch, error):
    """Which asks who is to tell: a process that has asked once already would not be the first, and nobody told."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "_connect", lambda options: None)
    monkeypatch.setattr(parallel, "reports_error", lambda: pytest.fail("asked"))
    with pytest.raises(error), parallel.connected(TrainConfig()):
        raise error


@pytest.mark.parametrize("B", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_row_is_somebodys(B, count):
    generator = np.random.default_rng(0)
    batch = Batch(generator.integers(0, 9, (B, 3)), generator.integers(-1, 9, (B, 3)), source=np.ones((B, 2), np.int64))
    shares = [batch.share(rank, count) for rank in range(count)]
    asked = [part for part, _ in shares if part.counted]
    assert sum(part.counted for part, _ in shares) == batch.counted
    assert sum(len(part.tokens) for part in asked) <= B
    for part, rows in shares:
        assert len(part.tokens) >= 1
        assert (part.tokens == batch.tokens[rows]).all()
        assert part.source.shape == (len(part.tokens), 2)
        assert part.padding is None
