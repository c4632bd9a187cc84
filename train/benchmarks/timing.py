"""Timing, by torch.utils.benchmark, of functions that take turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.benchmark import Timer


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each function, `rounds` times; all take turns, and every other round runs backwards, so that a
    drift of the machine's speed and what one leaves in the caches for the next meet all alike.

    In each turn a Timer makes two calls that do not count before the one that does."""
    timers = {name: _timer(function) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        for name in _order(list(functions), number):
            seconds[name].append(timers[name].timeit(1).median)
    return seconds


def median(seconds: list[float]) -> float:
    """The median, in seconds."""
    return float(np.median(seconds))


def spread(seconds: list[float]) -> float:
    """Half the distance between the quartiles, in seconds."""
    low, high = np.percentile(seconds, (25, 75))
    return float(high - low) / 2


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Between which of the ratios their true median lies with at least 95 %, whatever their distribution: by how often so
    many of them would fall on one side of it. From fewer than 6 the lowest and the highest, which say less."""
    ordered, n = sorted(ratios), len(ratios)
    outside = 0  # so many at either end can be left out
    while sum(math.comb(n, k) for k in range(outside + 1)) / 2**n <= 0.025:
        outside += 1
    outside = max(outside, 1)
    return ordered[outside - 1], ordered[n - outside]


def _timer(function: Callable[[], object]) -> Timer:
    # By default a Timer sets torch to one thread; a user's torch has all of them, as NumPy has.
    return Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())


def _order(names: list[str], number: int) -> Iterator[str]:
    return iter(names if number % 2 == 0 else reversed(names))
