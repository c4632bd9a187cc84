"""Rounding-error bounds derived by running the text of the spec itself: a probabilistic running error analysis.

The spec is dtype-polymorphic, so it also runs on `Tracked`, an array type that carries beside each value what the
roundings of a given format would do to it (tracked.py; rules.py has what one operation does, sketches.py the draws,
formats.py the formats). What is chosen is how rarely rounding alone may exceed a bound, FAILURE_PROBABILITY, and
TWIN_FACTOR; the rest follows from the operations performed.

**One rounding.** In a format with unit roundoff u the result y of an operation is y (1 + d), |d| <= u (Higham 2002, eq.
2.4), plus at most one smallest subnormal where products, quotients or exponentials may underflow (eq. 2.8); in bfloat16
any subnormal result may be flushed to 0, see FORMATS. d is modelled as random with mean zero, uniform in +-u: its
standard deviation is u / sqrt(3). Elementary functions (exp, log, tanh, ...) of a library are granted twice that, an
error of one ulp.

**A contraction of n terms p_1 .. p_n**, in any order, blocking or tree, with or without FMA: every partial sum is the
sum of a subset of the terms, so none exceeds m = max(sum of positive terms, sum of negative terms)
= (sum |p_i| + |sum p_i|) / 2. There are n - 1 additions, each with variance at most u^2 m^2 / 3, and the n products
together have at most u^2 sum p_i^2 / 3 <= 2 u^2 m^2 / 3. Independent and of mean zero, their variances add:
deviation <= sqrt(n + 1) u m / sqrt(3). The growth with sqrt(n) instead of n is that of Higham & Mary 2019, theorem 2.4;
that later errors may depend on earlier ones, as in a martingale, is from Connolly et al. 2021.

**Propagation with all correlations.** Adding up variances elementwise would be wrong wherever one rounded quantity is
used twice: x * x, y = x + f(x), the one 1/sigma of a row of LayerNorm, a bias seen by every row. Adding up absolute
values (any correlation) is right and hopelessly slack after a few layers. So an element does not carry a variance but
`SKETCHES` signed first-order errors, each one consistent draw of all roundings: every rounding event of deviation s
adds +-s, with its own sign in every sketch, and the sketches propagate like any perturbation. Their mean square is an
unbiased sketch of the variance, correlations included, as in affine arithmetic with random projections
(Achlioptas 2003) or Monte Carlo arithmetic (Parker 1997).

**Equal values may round equally, or not.** The sign is a hash, not a random draw: the instrument is deterministic. In one
half of the sketches it is a hash of (operation, mantissa of the result): elements of one operation that are equal up to
a power of two round with the same relative error, as one kernel does with them. Constant rows, repeated tokens and
broadcast inputs are therefore not credited with an averaging that does not happen. In the other half the place of the
element goes into the hash, too: a kernel may sum the last rows of a product, or the tail of a vector, in another order
than the rest, and then the equal keys of a repeated token differ, and with them scores whose difference is 0 in truth.
The variance is the larger of the two.

**Confidence.** The true error and the K sketches of a half are draws of (nearly) one Gaussian, so error / rms(sketches)
follows Student's t with K degrees of freedom; the bound is the two-sided quantile for `FAILURE_PROBABILITY` per element
times the deviation. For a single rounding, where Gauss does not apply, that is above the worst case u |y|.

**Decisions.** `np.where(x <= 0, 0, d)` jumps by d where rounding turns the sign of x. A machine may turn it wherever the
bound of x reaches 0, however rarely, and a jump that comes once in a thousand draws would show in none of the few
sketches. So every sketch decides by x + CONFIDENCE times its error: it turns what the bound can turn, more often than a
machine does. All choices by one comparison turn together, so a function that does not jump there is not charged.

**Limits.** First order except in exp, log, sqrt, products, quotients, magnitudes and maxima, which are propagated
exactly; so relative deviations must stay well below 1. A rounding that is systematically biased is not covered beyond the
confidence factor (long sums of equal terms). The truth is itself computed in longdouble, 2^-11 of the float64 deviation;
constants of the functions, as the 2/sqrt(pi) of erf, are float64 numbers there, too. Overflow in the format, where the
truth does not overflow, is not modelled: it fails the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity_tests.formats import Format
from parity_tests.sketches import Ledger
from parity_tests.tracked import Tracked, track

TWIN_FACTOR = 2.0  # the twin may round up to 4 times where the spec rounds once (variances add: sqrt(4) = 2)
LONGDOUBLE_IS_WIDER = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


def map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree (tuples, NamedTuples, lists, dicts) with `function` applied to every leaf."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_arrays(function, x) for x in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_arrays(function, x) for x in tree)
    if isinstance(tree, Mapping):
        return {k: map_arrays(function, v) for k, v in tree.items()}
    return function(tree)


def track_tree(tree: Any, format: str | Format) -> Any:
    """Every floating-point array of the tree tracked; integers, masks and everything else as they are."""

    def leaf(x: Any) -> Any:
        return track(x, format) if isinstance(x, (np.ndarray, np.floating)) and x.dtype.kind == "f" else x

    return map_arrays(leaf, tree)


def run_tracked(function: Callable[..., Any], *arrays: Any, format: str | Format) -> Any:
    """function(*arrays) with every floating-point array tracked, from a fresh ledger."""
    Ledger.reset()
    return function(*track_tree(arrays, format))


def truth_of(tree: Any) -> Any:
    """The tree of true values (longdouble) of a tree of Tracked; other leaves as they are."""
    return map_arrays(lambda x: x.value if isinstance(x, Tracked) else x, tree)


def bounds_in(tree: Any, factor: float = 1.0) -> Any:
    """The tree of bounds of a tree of Tracked; None for other leaves: they have no rounding error to speak of."""
    return map_arrays(lambda x: x.bound(factor) if isinstance(x, Tracked) else None, tree)


def bound_of(function: Callable[..., Any], *arrays: Any, format: str | Format, factor: float = 1.0) -> tuple[Any, Any]:
    """(truth, bound) of function(*arrays): longdouble values and elementwise bounds of a run in `format`."""
    result = run_tracked(function, *arrays, format=format)
    return truth_of(result), bounds_in(result, factor)
