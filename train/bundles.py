"""Arrays of many names as a few larger ones, for work that treats all numbers alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from train.backend import Arrays

# Numbers in a bundle, about: few calls, since two threads wait for the interpreter between one and the next, and arrays
# that fit into a cache. train/benchmarks/NOTES.md has what was measured.
SIZE = 1 << 17


class Bundles:
    """Which arrays go together: matrices with matrices, joined to (1, N), and vectors with vectors, to (N,), since AdamW
    tells the two apart. One that is `alone` keeps its shape. A bundle has the name of its first array."""

    def __init__(self, arrays: Mapping[str, np.ndarray], alone: Callable[[str, np.ndarray], bool]) -> None:
        self._shapes = {name: array.shape for name, array in arrays.items()}
        self._alone = [name for name, array in arrays.items() if alone(name, array)]  # in order, as sums over bundles are
        others = {name: array for name, array in arrays.items() if name not in self._alone}
        matrices = {name: array.size for name, array in others.items() if array.ndim >= 2}
        vectors = {name: array.size for name, array in others.items() if array.ndim < 2}
        groups = [[name] for name in self._alone] + [*_groups(matrices), *_groups(vectors)]
        self._names = {names[0]: names for names in groups}

    def join(self, arrays: Mapping[str, np.ndarray], only: Iterable[str] | None = None) -> Arrays:
        """The bundles that these arrays make up, or `only` some of them, with numbers of their own."""
        bundles = [bundle for bundle in self._names if bundle in arrays] if only is None else only
        return {bundle: self._bundle(bundle, arrays) for bundle in bundles}

    def split(self, bundles: Mapping[str, np.ndarray]) -> Arrays:
        """The arrays by name; their numbers are those of the bundles."""
        named: Arrays = {}
        for bundle, joined in bundles.items():
            numbers, start = joined.reshape(-1), 0
            for name in self._names[bundle]:
                stop = start + math.prod(self._shapes[name])
                named[name] = numbers[start:stop].reshape(self._shapes[name])
                start = stop
        return {name: named[name] for name in self._shapes if name in named}

    def _bundle(self, bundle: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        if bundle in self._alone:
            return arrays[bundle].copy()
        joined = np.concatenate([arrays[name].reshape(-1) for name in self._names[bundle]])
        return joined[None] if len(self._shapes[bundle]) >= 2 else joined


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Neighbouring names of about SIZE numbers together."""
    ends = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
    for _, names in itertools.groupby(sizes, key=lambda name: (ends[name] - 1) // SIZE):
        yield list(names)
