"""The spec on several cores: each process takes some rows of a batch, or some of the parameters.

NumPy runs a product on all cores and everything else on one. In processes with one core each, all of a training step is on
all of them, and the spec need not know of it. Threads would need no shared memory, but they share one interpreter, for which
they wait between one operation and the next (train/benchmarks/NOTES.md).
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import ctypes
import multiprocessing
import signal
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from train.allocator import keep_freed_memory
from train.data import Batch

ALIGNED = 64  # bytes: a line of the cache, and as much as the widest instruction reads


class Memory:
    """So many rows of numbers, zeros at first; if `shared`, in memory that a process shares with those that it starts."""

    def __init__(self, rows: int, numbers: int, dtype: np.dtype, shared: bool) -> None:
        self._shape, self._dtype = (rows, numbers), dtype
        self._row = -(-numbers * dtype.itemsize // ALIGNED) * ALIGNED  # bytes
        size = rows * self._row + ALIGNED
        self._memory: Any = RawArray(ctypes.c_byte, size) if shared else (ctypes.c_byte * size)()

    def rows(self) -> list[np.ndarray]:
        """The rows, (N,) each, to be written in place."""
        rows, numbers = self._shape
        start = -ctypes.addressof(self._memory) % ALIGNED  # the same in every process: shared memory begins with a page
        return [np.frombuffer(self._memory, self._dtype, numbers, start + row * self._row) for row in range(rows)]


def blas_threads() -> int:
    """How many NumPy's BLAS has: the user's choice or the number of cores; 1 where it cannot be told to take one, as with
    Accelerate."""
    return max((library["num_threads"] for library in _blas().info()), default=1)


def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


class Cores:
    """`count` processes, each with one thread of BLAS and a worker, `make(rank, *arguments)`, whose methods can be called.

    This process is the first; the others start when they are first needed, and end with this."""

    def __init__(self, count: int, make: Callable[..., Any], *arguments: Any) -> None:
        self.count, self._make, self._arguments = count, make, arguments
        self.own = make(0, *arguments)
        self._blas, self._others = _blas(), list[tuple[BaseProcess, Connection]]()
        # At the end of this process, too, and before multiprocessing, which registered itself earlier, waits for the others.
        atexit.register(weakref.finalize(self, _end, self._others))

    def call(self, method: str, items: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What the method answers to each of `items`, its arguments: the first in this process, the others in theirs.

        Raises: what the method raises; ChildProcessError when a process has been ended from outside."""
        if self.count == 1:  # with as many threads of BLAS as it likes
            return [getattr(self.own, method)(*item) for item in items]
        try:
            for rank in range(1 + len(self._others), len(items)):
                self._start(rank)
            asked = [connection for _, connection in self._others[: len(items) - 1]]
            with self._blas.limit(limits=1):
                for other, item in zip(asked, items[1:], strict=True):
                    other.send((method, item))
                answers = [getattr(self.own, method)(*items[0]), *(other.recv() for other in asked)]
        except (EOFError, ConnectionError) as error:
            self.close()
            expected = f"{self.count} processes that share a step"
            raise ChildProcessError(
                f"threads: expected {expected}, got one that was ended, as when memory is short; --threads 1 needs no other"
            ) from error
        except BaseException:  # what the others still answer must not be taken for the next answer
            self.close()
            raise
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def close(self) -> None:
        """Ends the other processes; another call would start them again, with what is in the shared memory."""
        _end(self._others)

    def _start(self, rank: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's locks without the threads that hold them
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self._make, rank, *self._arguments), daemon=True)
        main = threading.current_thread() is threading.main_thread()  # Python allows handlers only there
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None  # it inherits this; Ctrl-C is for us
        try:
            process.start()
        finally:
            if main:
                signal.signal(signal.SIGINT, previous)
        self._others.append((process, here))
        there.close()  # so that the end of either process is seen by the other


def _end(others: list[tuple[BaseProcess, Connection]]) -> None:
    while others:
        process, connection = others.pop()
        connection.close()
        process.kill()
        process.join()


def _serve(connection: Connection, make: Callable[..., Any], *arguments: Any) -> None:
    """Answers one call after the other, until the process that asks has gone."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):  # sent to all of a job; the one that asks decides when to end
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    keep_freed_memory()
    worker = make(*arguments)
    with _blas().limit(limits=1), contextlib.suppress(EOFError, ConnectionError):
        while True:
            method, item = connection.recv()
            try:
                answer = getattr(worker, method)(*item)
            except Exception as error:
                answer = error
            connection.send(answer)


def shares(batch: Batch, processes: int) -> list[tuple[Batch, slice]]:
    """The batch in as many parts as there are processes, but none without a row; with each which rows it has."""
    count = min(processes, len(batch.tokens))
    return [batch.share(rank, count) for rank in range(count)]


def groups(arrays: Mapping[str, np.ndarray], processes: int) -> list[list[str]]:
    """The names of the arrays in as many groups as there are processes, each of about as many numbers."""
    groups: list[list[str]] = [[] for _ in range(processes)]
    sizes = [0] * processes
    for name in sorted(arrays, key=lambda name: -arrays[name].size):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(name)
        sizes[smallest] += arrays[name].size
    return groups


class RowsOf(np.random.Generator):
    """The stream of a process that computes some rows of a batch: it draws for all rows and gives out those.

    It goes on from where `generator` is, which itself stays there."""

    def __init__(self, generator: np.random.Generator, rows: slice, batch: int) -> None:
        super().__init__(copy.deepcopy(generator.bit_generator))
        self._rows, self._batch = rows, batch

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """Uniform numbers in [0, 1) of shape `size`, whose first axis is the rows."""
        return super().random((self._batch, *size[1:]), dtype, out)[self._rows]
