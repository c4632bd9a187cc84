"""The spec in two threads: the same losses to rounding, the same masks, and BLAS with one thread in each."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from reference_numpy.dropout import dropout_mask
from train.data import Batch
from train.tests.runs import envelope, exact_loss, losses, options, run
from train.threads import RowsOf, Threads


@pytest.fixture
def two():
    """BLAS has two threads, whatever the environment says."""
    with threadpool_limits(2, user_api="blas"):
        yield


def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_each_thread_has_one_of_blas(two):
    threads = Threads()
    assert threads.count == 2
    both = threading.Barrier(2)

    def work(item):
        both.wait(10)  # so they run side by side
        return item, threading.get_ident(), blas_threads()

    (first, one, its), (second, other, others) = threads.map(work, ["a", "b"])
    assert (first, second) == ("a", "b")
    assert one == threading.get_ident() != other
    assert its == others == {1}
    assert blas_threads() == {2}


def test_an_error_in_either_thread_is_the_callers(two):
    for bad in (0, 1):
        with pytest.raises(ZeroDivisionError):
            Threads().map(lambda item, bad=bad: 1 // (item != bad), [0, 1])
        assert blas_threads() == {2}


def test_one_thread_is_the_caller():
    with threadpool_limits(1, user_api="blas"):
        threads = Threads()
    assert threads.count == 1
    assert threads.map(lambda item: (item, threading.get_ident()), [7]) == [(7, threading.get_ident())]


def test_shares_are_the_batch_and_groups_the_parameters(two):
    threads = Threads()
    for B in (1, 2, 5):
        batch = Batch(np.arange(3 * B).reshape(B, 3), np.zeros((B, 3), dtype=int))
        shares = threads.shares(batch)
        assert len(shares) == min(B, 2)
        assert (np.concatenate([part.tokens for part, _ in shares]) == batch.tokens).all()
        assert all((batch.tokens[rows] == part.tokens).all() for part, rows in shares)
    arrays = {"a": np.zeros(3), "b": np.zeros((2, 4)), "c": np.zeros(0), "d": np.zeros(5)}
    assert threads.groups(arrays) == [["b", "c"], ["d", "a"]]


def test_rows_of_a_mask_are_those_of_the_whole():
    generator, after = np.random.default_rng(3), np.random.default_rng(3)
    before = generator.bit_generator.state
    shares = [RowsOf(generator, rows, 5) for rows in (slice(0, 2), slice(2, 5))]
    assert generator.bit_generator.state == before
    for shape in ((5, 3, 2), (5, 7)):  # one after the other
        parts = [dropout_mask((rows, *shape[1:]), 0.4, share) for rows, share in zip((2, 3), shares, strict=True)]
        assert (np.concatenate(parts) == dropout_mask(shape, 0.4, after)).all()
    assert all(share.bit_generator.state == after.bit_generator.state for share in shares)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "muon", "learning_rate": 5e-3},
        {"task": "copy", "context": 17, "position": "sinusoidal", "batch": 1},
    ],
    ids=["adamw", "muon", "one-row"],
)
def test_two_threads_train_as_one(tmp_path, monkeypatch, two, changes):
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
