"""What an elementwise operation does to the errors of its operands, one rule each; bounds.py has the derivation.

A rule takes the value and the operands, and returns the sketches of the result, its roundings in units of u |value|, and how
often it may underflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from parity_tests.tracked import Tracked

ELEMENTARY = 2.0  # an elementary function is off by at most about one ulp = 2 u


def narrow(value: np.ndarray) -> np.ndarray:
    """The value in float64 with an axis for the sketches: enough, since it only scales errors."""
    return np.asarray(value, dtype=np.float64)[..., None]


def may_be_something(a: Tracked) -> np.ndarray:
    """Where an element is not an exact 0: its product may underflow, even if its true value is 0 or the product's is."""
    return (a.value != 0) | a.sketches.any(axis=-1)


def _multiply(value: np.ndarray, a: Tracked, b: Tracked) -> tuple[np.ndarray, float, np.ndarray]:
    sketches = narrow(a.value) * b.sketches + a.sketches * (narrow(b.value) + b.sketches)
    return sketches, 1.0, may_be_something(a) & may_be_something(b)


def _divide(value: np.ndarray, a: Tracked, b: Tracked) -> tuple[np.ndarray, float, np.ndarray]:
    sketches = (a.sketches - narrow(value) * b.sketches) / (narrow(b.value) + b.sketches)
    return sketches, 1.0, may_be_something(a) & np.isfinite(value)


def _square_root(value: np.ndarray, a: Tracked) -> tuple[np.ndarray, float, int]:
    denominator = np.sqrt(np.maximum(narrow(a.value) + a.sketches, 0.0)) + narrow(value)
    return np.where(a.sketches == 0, 0.0, a.sketches / denominator), 1.0, 0


def _magnitude(value: np.ndarray, a: Tracked) -> tuple[np.ndarray, float, int]:
    """|a + da| - |a|: exact also where the error is larger than the number."""
    same_side = np.sign(narrow(a.value)) * a.sketches
    other_side = np.abs(a.sketches + narrow(a.value)) - narrow(value)
    return np.where(np.abs(a.sketches) < narrow(value), same_side, other_side), 0.0, 0


def _choose(ufunc: np.ufunc) -> Callable[..., tuple[np.ndarray, float, int]]:
    """max(a + da, b + db) - m, m = max(a, b), as max((a - m) + da, (b - m) + db): exact also near a tie."""

    def rule(value: np.ndarray, a: Tracked, b: Tracked) -> tuple[np.ndarray, float, int]:
        return ufunc(narrow(a.value - value) + a.sketches, narrow(b.value - value) + b.sketches), 0.0, 0

    return rule


def _linear(coefficient: Callable[..., Any], roundings: float, underflows: int) -> Callable[..., Any]:
    """The rule of a function of one argument with the derivative coefficient(value, argument)."""

    def rule(value: np.ndarray, a: Tracked) -> tuple[np.ndarray, float, int]:
        # 0 * inf: an exact argument keeps its zero error whatever the slope
        return np.where(a.sketches == 0, 0.0, narrow(coefficient(value, a.value)) * a.sketches), roundings, underflows

    return rule


RULES: dict[np.ufunc, Callable[..., tuple[np.ndarray, float, Any]]] = {
    np.add: lambda value, a, b: (a.sketches + b.sketches, 1.0, 0),
    np.subtract: lambda value, a, b: (a.sketches - b.sketches, 1.0, 0),
    np.multiply: _multiply,
    np.square: lambda value, a: _multiply(value, a, a),
    np.divide: _divide,
    np.negative: _linear(lambda y, x: -np.ones_like(x), 0.0, 0),
    np.positive: _linear(lambda y, x: np.ones_like(x), 0.0, 0),
    np.conjugate: _linear(lambda y, x: np.ones_like(x), 0.0, 0),
    np.absolute: _magnitude,
    np.sqrt: _square_root,
    np.exp: lambda value, a: (narrow(value) * np.expm1(a.sketches), ELEMENTARY, 1),
    np.log: lambda value, a: (np.log1p(a.sketches / narrow(a.value)), ELEMENTARY, 0),
    np.sin: _linear(lambda y, x: np.cos(x), ELEMENTARY, 1),
    np.cos: _linear(lambda y, x: -np.sin(x), ELEMENTARY, 0),
    np.tanh: _linear(lambda y, x: np.cosh(x) ** -2, ELEMENTARY, 1),
    np.maximum: _choose(np.maximum),
    np.minimum: _choose(np.minimum),
}
