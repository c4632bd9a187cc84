"""Dropout (Srivastava et al. 2014), inverted: what is kept is scaled up in training, nothing is done in evaluation."""

from typing import NamedTuple

import numpy as np


class DropoutCache(NamedTuple):
    """Which units were kept; None if dropout was off."""

    keep: np.ndarray | None
    rate: float


def dropout_mask(shape: tuple[int, ...], rate: float, generator: np.random.Generator) -> np.ndarray:
    """Draw which units to keep: True with probability 1 - rate."""
    return generator.random(shape, dtype=np.float32) >= rate


def dropout_forward(x: np.ndarray, rate: float, keep: np.ndarray | None) -> tuple[np.ndarray, DropoutCache]:
    """y = x / (1 - rate) where kept, 0 where dropped, so that the mean of y is x; without a mask, y = x.

    Shapes: x (...), keep (...) bool. Raises ValueError unless 0 <= rate < 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate: expected at least 0 and below 1, got {rate}")
    y = x if keep is None else np.where(keep, x * (1 / (1 - rate)), 0)
    return y, DropoutCache(keep, rate)


def dropout_backward(d_y: np.ndarray, cache: DropoutCache) -> np.ndarray:
    """y is x times a constant, 1/(1 - rate) or 0, so dL/dx is d_y times the same constant: the same text again."""
    d_x, _ = dropout_forward(d_y, cache.rate, cache.keep)
    return d_x
