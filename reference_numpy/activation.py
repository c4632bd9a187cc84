"""Elementwise nonlinearities: GELU (exact and tanh), ReLU, ReLU squared, SiLU.

`.real` decides where a number is on the real line: the spec also runs on complex numbers, which tests use to differentiate.
"""

import math
from typing import NamedTuple

import numpy as np

SQRT_HALF = math.sqrt(0.5)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715  # Hendrycks & Gimpel 2016, section 2


class GateCache(NamedTuple):
    """The input, and the factor between 0 and 1 that multiplied it (costly to compute again)."""

    x: np.ndarray
    gate: np.ndarray


def gelu_forward(x: np.ndarray) -> tuple[np.ndarray, GateCache]:
    """y = x Phi(x), Phi the standard normal distribution function: the exact form (Hendrycks & Gimpel 2016)."""
    gate = 0.5 * (1 + erf(x * SQRT_HALF))
    return x * gate, GateCache(x, gate)


def gelu_backward(d_y: np.ndarray, cache: GateCache) -> np.ndarray:
    """y = x Phi(x), so dy/dx = Phi(x) + x phi(x), with the density phi(x) = Phi'(x) = exp(-x^2/2) / sqrt(2 pi)."""
    x, gate = cache
    density = np.exp(-0.5 * (x * x)) * (0.5 * SQRT_2_OVER_PI)  # 1 / sqrt(2 pi) = sqrt(2/pi) / 2
    return d_y * (gate + x * density)


def gelu_tanh_forward(x: np.ndarray) -> tuple[np.ndarray, GateCache]:
    """y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): the approximation that GPT-2 uses.

    With the logistic function s, (1 + tanh u)/2 = s(2u).
    """
    gate = logistic(x * (2 * SQRT_2_OVER_PI + 2 * SQRT_2_OVER_PI * CUBIC * (x * x)))
    return x * gate, GateCache(x, gate)


def gelu_tanh_backward(d_y: np.ndarray, cache: GateCache) -> np.ndarray:
    """y = x g with g = (1 + tanh u)/2 and u = sqrt(2/pi) (x + c x^3).

    dg/du = (1 - tanh^2 u)/2, and tanh u = 2g - 1, so dg/du = 2 g (1 - g): the saved gate is enough.
    du/dx = sqrt(2/pi) (1 + 3 c x^2), and the product rule gives dy/dx = g + x dg/du du/dx.
    """
    x, gate = cache
    d_x = x * (2 * SQRT_2_OVER_PI + 6 * SQRT_2_OVER_PI * CUBIC * (x * x))  # 2 x du/dx
    d_x *= gate * (1 - gate)
    d_x += gate  # dy/dx; in place, which is quicker, as measured
    d_x *= d_y
    return d_x


def relu_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y = max(x, 0); NaN stays NaN. The cache is x: its sign is the derivative. At 0 the derivative is taken as 0."""
    return np.where(x.real <= 0, 0, x), x


def relu_backward(d_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """dy/dx is 0 where x <= 0 and 1 elsewhere."""
    return np.where(x.real <= 0, 0, d_y)


def relu_squared_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y = max(x, 0)^2 (So et al. 2021, Primer, section 3). The cache is max(x, 0).

    np.where, which also decides whose derivative counts at 0, would take several times as long; that of the square is 0."""
    positive = np.maximum(x, 0)
    return positive * positive, positive


def relu_squared_backward(d_y: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """dy/dx = 2 max(x, 0): continuous at 0, unlike ReLU's."""
    return d_y * (2 * positive)


def silu_forward(x: np.ndarray) -> tuple[np.ndarray, GateCache]:
    """y = x s(x), s(x) = 1 / (1 + exp(-x)), the logistic function (Elfwing et al. 2017)."""
    gate = logistic(x)
    return x * gate, GateCache(x, gate)


def silu_backward(d_y: np.ndarray, cache: GateCache) -> np.ndarray:
    """s' = s (1 - s), so dy/dx = s + x s (1 - s)."""
    x, gate = cache
    return d_y * (gate + x * (gate * (1 - gate)))


def logistic(x: np.ndarray) -> np.ndarray:
    """s(x) = 1 / (1 + exp(-x)) = 1 - 1 / (1 + exp(x)) = (1 + tanh(x/2)) / 2.

    Computed as the second, which rounds as the third does, by which torch has its approximate GELU: far to the left it is 0
    up to a rounding of 1. Without AVX-512 an exponential takes NumPy less time than a tanh. From 80 on s(x) rounds to 1 in
    every format, so that nothing need overflow.
    """
    return 1 - 1 / (1 + np.exp(np.minimum(x, 80)))


SPLIT = 2.5  # where the two expansions of erf meet


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, 2/sqrt(pi) int_0^x exp(-t^2) dt, in the precision of x; in longdouble its constants are float64's.

    Two expansions of Abramowitz & Stegun: the series 7.1.6 near zero, whose terms have one sign, and further out, of |x|,
    the continued fraction 7.1.14 of 1 - erf. NumPy has no erf, and a library's has neither longdouble nor complex step.
    """
    series = _erf_series(np.clip(x, -SPLIT, SPLIT))
    tail = 1 - _erfc_fraction(np.maximum(np.maximum(x, -x), SPLIT))
    return np.where(x.real < SPLIT, np.where(x.real > -SPLIT, series, -tail), tail)


def _erf_series(x: np.ndarray) -> np.ndarray:
    """erf(x) = 2/sqrt(pi) exp(-x^2) x sum_n c_n x^(2n), c_n = 2^n / (1 3 5 ... (2n+1)), for |x| <= SPLIT, by Horner's rule.

    The sum ends with the first term that is below the precision at SPLIT, where all are largest.
    """
    c = [1.0]
    while c[-1] * SPLIT ** (2 * len(c) - 2) > np.finfo(x.dtype).eps:
        c.append(c[-1] * 2 / (2 * len(c) + 1))
    square = x * x
    total = np.zeros_like(x)
    for coefficient in reversed(c):
        total *= square
        total += coefficient
    return x * total * np.exp(-square) * (2 / math.sqrt(math.pi))


def _erfc_fraction(x: np.ndarray) -> np.ndarray:
    """1 - erf(x) = exp(-x^2)/sqrt(pi) 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + ...)))), for x >= SPLIT, from the inside out.

    The error shrinks by a factor of about exp(-x sqrt(2/k)) at the k-th level, of exp(-x sqrt(8 K)) at the first K: these
    are twice as many as the precision takes at SPLIT.
    """
    levels = math.ceil((math.log(np.finfo(x.dtype).eps) / (2 * SPLIT)) ** 2)
    fraction = x
    for k in range(levels, 0, -1):
        fraction = x + (k / 2) / fraction
    return np.exp(-(x * x)) / fraction / math.sqrt(math.pi)
