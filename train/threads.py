"""The spec on several cores: each thread takes some rows of a batch, or some of the parameters.

NumPy runs a product on all cores and everything else on one. In threads, which it lets run side by side, all of a training
step is on all cores, and the spec need not know of it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from train.data import Batch

# Seconds after which a thread that waits for the interpreter asks for it. NumPy gives it back for every operation, some of
# which take microseconds: with Python's own 5 ms a small step had twice as many waits and took 2 % longer.
SWITCH = 1e-4

Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads:
    """As many threads as NumPy's BLAS has, which is the user's choice or the number of cores; each with one of BLAS.

    One where there is no telling BLAS how many to take, as with Accelerate."""

    def __init__(self) -> None:
        self._blas = ThreadpoolController().select(user_api="blas")
        self.count = max((library["num_threads"] for library in self._blas.info()), default=1)
        self._others = ThreadPoolExecutor(max(self.count - 1, 1))
        if self.count > 1:
            sys.setswitchinterval(SWITCH)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """[function(item) for item in items], the first of them in the thread that calls."""
        if self.count == 1:
            return [function(item) for item in items]
        with self._blas.limit(limits=1):
            others = [self._others.submit(function, item) for item in items[1:]]
            return [*map(function, items[:1]), *(other.result() for other in others)]

    def shares(self, batch: Batch) -> list[tuple[Batch, slice]]:
        """The batch in as many parts as there are threads, but none without a row; with each which rows it has."""
        count = min(self.count, len(batch.tokens))
        return [batch.share(rank, count) for rank in range(count)]

    def groups(self, arrays: Mapping[str, np.ndarray]) -> list[list[str]]:
        """The names of the arrays in as many groups as there are threads, each of about as many numbers."""
        groups: list[list[str]] = [[] for _ in range(self.count)]
        sizes = [0] * self.count
        for name in sorted(arrays, key=lambda name: -arrays[name].size):
            smallest = sizes.index(min(sizes))
            groups[smallest].append(name)
            sizes[smallest] += arrays[name].size
        return groups


class RowsOf(np.random.Generator):
    """The stream of a thread that computes some rows of a batch: it draws for all rows and gives out those.

    It goes on from where `generator` is, which itself stays there."""

    def __init__(self, generator: np.random.Generator, rows: slice, batch: int) -> None:
        super().__init__(copy.deepcopy(generator.bit_generator))
        self._rows, self._batch = rows, batch

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """Uniform numbers in [0, 1) of shape `size`, whose first axis is the rows."""
        return super().random((self._batch, *size[1:]), dtype, out)[self._rows]
