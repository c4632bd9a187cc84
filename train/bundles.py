"""Arrays of many names as parts of one row of numbers, and as a few larger arrays for work that treats all numbers alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Set

import numpy as np

from train.backend import Arrays

# Numbers in a bundle, about: few calls, and arrays that fit into a cache. train/benchmarks/NOTES.md has what was measured.
SIZE = 1 << 17


class Bundles:
    """Which arrays go together: matrices with matrices, as (1, N), and vectors with vectors, as (N,), since AdamW tells the
    two apart. One that is `alone` keeps its shape. A bundle has the name of its first array."""

    def __init__(self, arrays: Mapping[str, np.ndarray], alone: Set[str]) -> None:
        own = [name for name in arrays if name in alone]  # in order, as sums over bundles are
        others = {name: array for name, array in arrays.items() if name not in own}
        matrices = {name: array.size for name, array in others.items() if array.ndim >= 2}
        vectors = {name: array.size for name, array in others.items() if array.ndim < 2}
        places, self._bundles, self.size = {}, {}, 0
        for names in [[name] for name in own] + [*_groups(matrices), *_groups(vectors)]:
            start = self.size
            for name in names:
                places[name] = (slice(self.size, self.size + arrays[name].size), arrays[name].shape)
                self.size += arrays[name].size
            numbers = self.size - start
            shape = arrays[names[0]].shape if names[0] in own else (1, numbers) if names[0] in matrices else (numbers,)
            self._bundles[names[0]] = (slice(start, self.size), shape)
        self._arrays = {name: places[name] for name in arrays}

    def arrays(self, row: np.ndarray) -> Arrays:
        """The arrays by name, as views of (N,) numbers."""
        return {name: row[where].reshape(shape) for name, (where, shape) in self._arrays.items()}

    def bundles(self, row: np.ndarray) -> Arrays:
        """The bundles by name, as views of (N,) numbers."""
        return {name: row[where].reshape(shape) for name, (where, shape) in self._bundles.items()}


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Neighbouring names of about SIZE numbers together."""
    ends = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
    for _, names in itertools.groupby(sizes, key=lambda name: (ends[name] - 1) // SIZE):
        yield list(names)
