"""The spec in two processes: the same losses to rounding, the same masks, one thread of BLAS each, and no process left."""

import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from reference_numpy.dropout import dropout_mask
from train import run_folder
from train.cores import Cores, Memory, RowsOf, blas_threads, groups, shares
from train.data import Batch
from train.tests.runs import envelope, exact_loss, losses, options, run

TWO = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": os.getcwd()}


class Worker:
    """What the processes of these tests do."""

    def __init__(self, rank, memory):
        self.rank, self.rows = rank, memory.rows()

    def where(self, add):
        self.rows[self.rank] += add
        blas = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
        return self.rank, os.getpid(), blas

    def divide(self, by):
        return 1 // by

    def sleep(self, seconds):
        time.sleep(seconds)


@pytest.fixture
def two():
    """BLAS has two threads, whatever the environment says."""
    with threadpool_limits(2, user_api="blas"):
        yield


@pytest.fixture
def cores(two):
    made = Cores(2, Worker, Memory(2, 3, np.dtype(np.float32), shared=True))
    yield made
    made.close()


def process_of(cores):
    return cores.call("where", [(0,), (0,)])[1][1]


def gone(process):
    """Whether no process has this number, or only one that is to be waited for, within ten seconds."""
    for _ in range(100):
        try:
            os.kill(process, 0)
            with open(f"/proc/{process}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


def test_each_process_has_one_thread_of_blas_and_the_same_memory(cores):
    assert blas_threads() == 2
    for _ in range(2):
        (first, one, its), (second, other, others) = cores.call("where", [(1.5,), (2.5,)])
        assert (first, second) == (0, 1)
        assert one == os.getpid() != other
        assert its == others == {1}
    assert blas_threads() == 2
    assert [row.tolist() for row in cores.own.rows] == [[3.0] * 3, [5.0] * 3]


def test_one_process_is_the_caller():
    with threadpool_limits(1, user_api="blas"):
        assert blas_threads() == 1
    cores = Cores(1, Worker, Memory(1, 3, np.dtype(np.float64), shared=False))
    assert cores.call("where", [(1,)])[0][:2] == (0, os.getpid())
    assert not active_children()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shared", [True, False])
def test_rows_are_apart_and_begin_at_a_line_of_the_cache(dtype, shared):
    rows = Memory(3, 5, np.dtype(dtype), shared).rows()
    for number, row in enumerate(rows):
        assert (row == 0).all()
        assert row.ctypes.data % 64 == 0
        row += number + 1
    assert [row.tolist() for row in rows] == [[1.0] * 5, [2.0] * 5, [3.0] * 5]


def test_an_error_in_either_process_is_the_callers(cores):
    for bad in (0, 1):
        with pytest.raises(ZeroDivisionError):
            cores.call("divide", [(int(rank != bad),) for rank in range(2)])
        assert blas_threads() == 2
        assert cores.call("divide", [(1,), (-1,)]) == [1, -1]  # no answer of before


def test_a_process_that_was_ended_is_named_and_another_started(cores):
    process = process_of(cores)
    os.kill(process, signal.SIGTERM)  # as a cluster sends it to all: the first process decides when to end
    assert process_of(cores) == process
    os.kill(process, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="threads: expected 2 processes that share a step, got one that was ended"):
        process_of(cores)
    assert process_of(cores) != process


def test_a_process_ends_with_what_it_is_for(two):
    cores = Cores(2, Worker, Memory(2, 3, np.dtype(np.float32), shared=True))
    process, before = process_of(cores), os.times()
    del cores
    gc.collect()
    assert gone(process)
    assert os.times().children_user > before.children_user  # what scores.json tells as the processor's time


SCRIPT = """
import os, signal, sys, numpy as np
from train.cores import Cores, Memory
from train.tests.test_cores import Worker, process_of
cores = Cores(2, Worker, Memory(2, 3, np.dtype("f4"), shared=True))
print(process_of(cores), flush=True)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("", 0), ("cores._others[0][1].send(('sleep', (60,)))", 0), ("os.kill(os.getpid(), signal.SIGKILL)", -9)],
    ids=["idle", "at-work", "killed"],
)
def test_a_process_ends_with_the_one_that_started_it(end, status):
    done = subprocess.run([sys.executable, "-c", SCRIPT + end], env=TWO, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (status, "")
    assert gone(int(done.stdout))


def ended(folder, end):
    """Exit status and last line of a long training in two processes, to which `end` is done after some steps."""
    run(options(folder, backend="numpy", steps=1))
    arguments = ["--resume", str(folder), "--steps", "1000000", "--log-every", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "train", "train", *arguments],
        env=TWO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        while len(run_folder.read_log(folder)) < 20 and process.poll() is None:
            time.sleep(0.05)
        end(process.pid)
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    return process.returncode, errors.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_ends_a_run_in_order(tmp_path, number):
    """As a terminal's Ctrl-C or the end of a job: the step is finished, and the run can be resumed."""
    status, told = ended(tmp_path / "run", lambda process: os.killpg(process, number))
    assert status == 130
    assert told.startswith("twinformer: stopped after step")
    assert run_folder.read_log(tmp_path / "run")[-1]["step"] > 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a system without /proc")
def test_a_run_that_loses_a_process_says_so(tmp_path):
    def kill_the_other(process):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    status, told = ended(tmp_path / "run", kill_the_other)
    assert status == 2
    assert told.startswith("twinformer: error: threads: expected 2 processes that share a step, got one that was ended")


def test_shares_are_the_batch_and_groups_the_parameters():
    for B in (1, 2, 5):
        batch = Batch(np.arange(3 * B).reshape(B, 3), np.zeros((B, 3), dtype=int))
        parts = shares(batch, 2)
        assert len(parts) == min(B, 2)
        assert (np.concatenate([part.tokens for part, _ in parts]) == batch.tokens).all()
        assert all((batch.tokens[rows] == part.tokens).all() for part, rows in parts)
    arrays = {"a": np.zeros(3), "b": np.zeros((2, 4)), "c": np.zeros(0), "d": np.zeros(5)}
    assert groups(arrays, 2) == [["b", "c"], ["d", "a"]]


def test_rows_of_a_mask_are_those_of_the_whole():
    generator, after = np.random.default_rng(3), np.random.default_rng(3)
    before = generator.bit_generator.state
    streams = [RowsOf(generator, rows, 5) for rows in (slice(0, 2), slice(2, 5))]
    assert generator.bit_generator.state == before
    for shape in ((5, 3, 2), (5, 7)):  # one after the other
        parts = [dropout_mask((rows, *shape[1:]), 0.4, stream) for rows, stream in zip((2, 3), streams, strict=True)]
        assert (np.concatenate(parts) == dropout_mask(shape, 0.4, after)).all()
    assert all(stream.bit_generator.state == after.bit_generator.state for stream in streams)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "muon", "learning_rate": 5e-3},
        {"task": "copy", "context": 17, "position": "sinusoidal", "batch": 1},
    ],
    ids=["adamw", "muon", "one-row"],
)
def test_two_processes_train_as_one(tmp_path, monkeypatch, two, changes):
    """With dropout, clipping, smoothing and accumulation, over micro-batches of three rows, so that the parts are uneven."""
    monkeypatch.setattr("train.generated.HELD_OUT", 20)
    config = options(tmp_path / "two", backend="numpy", steps=12, schedule="constant", **changes)
    run(config)
    with threadpool_limits(1, user_api="blas"):
        bound = envelope(tmp_path, config)
        one = run(replace(config, output=str(tmp_path / "one")))
        wrong = run(replace(config, learning_rate=config.learning_rate * (1 + 1e-9), output=str(tmp_path / "canary")))
    assert (np.abs(losses(tmp_path / "two") - losses(one)) <= bound).all()
    assert abs(exact_loss(tmp_path / "two") - exact_loss(one)) <= 2 * bound[-1]  # of the parameters one step further
    assert not (np.abs(losses(wrong) - losses(one)) <= bound).all()
