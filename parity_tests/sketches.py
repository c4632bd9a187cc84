"""Signed draws of rounding errors: how many an element carries, what signs they have, and how far their spread reaches.

bounds.py has the derivation.
"""

import math

import numpy as np

HALF = 32  # signed error draws per element of either kind; at most 64, the bits of one hash
SKETCHES = 2 * HALF  # first those in which equal values round equally, then those in which every place rounds on its own
FAILURE_PROBABILITY = 1e-9  # per compared element, two-sided

QUIET = np.errstate(all="ignore")  # as a decorator; inf - inf and 0 / 0 are answers here, not accidents
_BITS = np.arange(HALF, dtype=np.uint64)


def student_tail(t: float, degrees: int) -> float:
    """P(|T| > t) of Student's t with an even number of degrees of freedom (Abramowitz and Stegun, 26.7.4)."""
    theta = math.atan2(t, math.sqrt(degrees))
    term = total = 1.0
    for k in range(1, degrees // 2):
        term *= (2 * k - 1) / (2 * k) * math.cos(theta) ** 2
        total += term
    return 1.0 - math.sin(theta) * total


def student_quantile(probability: float, degrees: int) -> float:
    """The t with P(|T| > t) = probability, by bisection."""
    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees) > probability else (low, middle)
    return high


CONFIDENCE = student_quantile(FAILURE_PROBABILITY, HALF)


class Ledger:
    """What one run of the analysis counts: rounding operations, which salt the signs."""

    operations = 0

    @classmethod
    def reset(cls) -> None:
        """Start a run: makes its signs independent of what ran before."""
        cls.operations = 0


def _hash(bits: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@QUIET
def signs(value: np.ndarray) -> np.ndarray:
    """+-1, shape value.shape + (SKETCHES,): a hash of operation and mantissa, odd in the value; then of the place, too."""
    Ledger.operations += 1
    mantissa = np.frexp(np.abs(value))[0].astype(np.float64)
    bits = np.atleast_1d(mantissa).view(np.uint64).reshape(value.shape)
    alike = _hash(bits + np.uint64(Ledger.operations * 0x9E3779B97F4A7C15 % 2**64))
    apart = _hash(alike + np.arange(value.size, dtype=np.uint64).reshape(value.shape))
    drawn = np.concatenate([(bits[..., None] >> _BITS) & np.uint64(1) for bits in (alike, apart)], axis=-1)
    return np.where(value < 0, -1.0, 1.0)[..., None] * (1.0 - 2.0 * drawn.astype(np.float64))


def larger_half(statistic: np.ndarray) -> np.ndarray:
    """The larger mean of either kind of sketches, the last axis, of what was computed from each sketch."""
    return np.maximum(statistic[..., :HALF].mean(axis=-1), statistic[..., HALF:].mean(axis=-1))
