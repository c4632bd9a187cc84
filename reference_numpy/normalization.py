"""LayerNorm and RMSNorm over the last axis."""

from typing import NamedTuple

import numpy as np

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import Parameters


class NormCache(NamedTuple):
    """The normalised input and 1/deviation: with them the backward needs neither x nor its mean."""

    normalized: np.ndarray
    inverse: np.ndarray
    weight: np.ndarray
    has_bias: bool


def layer_norm_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, epsilon: float = 1e-5
) -> tuple[np.ndarray, NormCache]:
    """y = weight * (x - mean) / sqrt(variance + epsilon) + bias (Ba et al. 2016).

    Shapes: x (..., D), weight (D,), bias (D,) or None. The variance is the biased one (divided by D) and epsilon is inside
    the root, as in torch. A row of equal numbers gives the bias, and weight c / sqrt(c^2 + epsilon) besides where rounding
    of its mean leaves c.
    """
    centred = x - _mean(x)
    variance = _mean_product(centred, centred)
    inverse = 1 / np.sqrt(variance + epsilon)
    normalized = centred * inverse
    y = normalized * weight
    if bias is not None:
        y += bias
    return y, NormCache(normalized, inverse, weight, bias is not None)


def layer_norm_backward(d_y: np.ndarray, cache: NormCache) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Gradients of x, weight and bias.

    With n = c r, c = x - mean(x), r = v^(-1/2), v = mean(c^2) + eps, and d_n = d_y * weight:
      dr/dc_j = -r^3 c_j / D = -r^2 n_j / D                                              (from r = v^(-1/2))
      d_c_j = r d_n_j + (sum_i d_n_i c_i) dr/dc_j = r (d_n_j - n_j mean_i(d_n_i n_i))    (r appears in every n_i)
      d_x   = d_c - mean(d_c) = r (d_n - mean(d_n) - n mean(d_n n))                      (n has mean 0)
    y = n weight + bias in every row, so over all rows d_weight = sum d_y n, d_bias = sum d_y.
    """
    normalized, inverse, weight, has_bias = cache
    d_n = d_y * weight
    projection = _mean_product(d_n, normalized)
    d_x = inverse * (d_n - _mean(d_n) - normalized * projection)
    d_bias = _sum_rows(d_y) if has_bias else None
    return d_x, _sum_rows_product(d_y, normalized), d_bias


def rms_norm_forward(x: np.ndarray, weight: np.ndarray, epsilon: float = 1e-5) -> tuple[np.ndarray, NormCache]:
    """y = weight * x / sqrt(mean(x^2) + epsilon) (Zhang & Sennrich 2019): no mean is subtracted, no bias is added.

    Shapes: x (..., D), weight (D,).
    """
    inverse = 1 / np.sqrt(_mean_product(x, x) + epsilon)
    normalized = x * inverse
    return normalized * weight, NormCache(normalized, inverse, weight, False)


def rms_norm_backward(d_y: np.ndarray, cache: NormCache) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of x and weight: LayerNorm's derivation without the step that centres x."""
    normalized, inverse, weight, _ = cache
    d_n = d_y * weight
    projection = _mean_product(d_n, normalized)
    return inverse * (d_n - normalized * projection), _sum_rows_product(d_y, normalized)


def norm_forward(x: np.ndarray, parameters: Parameters, config: ModelConfig) -> tuple[np.ndarray, NormCache]:
    """The norm that the config names, over the last axis of x (B, T, D)."""
    if config.norm == "rms":
        return rms_norm_forward(x, parameters["weight"], config.norm_epsilon)
    return layer_norm_forward(x, parameters["weight"], parameters.get("bias"), config.norm_epsilon)


def norm_backward(d_y: np.ndarray, cache: NormCache, config: ModelConfig) -> tuple[np.ndarray, Parameters]:
    """Gradient of x, and those of the parameters under their names."""
    if config.norm == "rms":
        d_x, d_weight = rms_norm_backward(d_y, cache)
        return d_x, {"weight": d_weight}
    d_x, d_weight, d_bias = layer_norm_backward(d_y, cache)
    return d_x, {"weight": d_weight} if d_bias is None else {"weight": d_weight, "bias": d_bias}


def _mean(x: np.ndarray) -> np.ndarray:
    """mean_i(x_i) over the last axis, (..., 1); measured: in half of the time that x.mean takes."""
    return np.einsum("...i->...", x)[..., None] / x.shape[-1]


def _mean_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """mean_i(a_i b_i) over the last axis, (..., 1)."""
    return np.einsum("...i,...i->...", a, b)[..., None] / a.shape[-1]


def _sum_rows(x: np.ndarray) -> np.ndarray:
    """Sum over every axis but the last: what a parameter shared by all rows collects."""
    return x.sum(axis=tuple(range(x.ndim - 1)))


def _sum_rows_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """_sum_rows(a * b), whose product is never an array."""
    D = a.shape[-1]
    return np.einsum("ni,ni->i", a.reshape(-1, D), b.reshape(-1, D))
