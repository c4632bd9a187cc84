"""The linear layer, y = x W^T + b."""

import math
from typing import NamedTuple

import numpy as np

from reference_numpy.parameters import Parameters, prefixed


class LinearCache(NamedTuple):
    """Both factors of the product: each is the other's derivative. The output is not needed."""

    x: np.ndarray
    weight: np.ndarray
    has_bias: bool


def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, LinearCache]:
    """Apply y = x W^T + b to the last axis.

    Shapes: x (..., I), weight (O, I) as in torch.nn.Linear, bias (O,) or None; output (..., O).
    Raises ValueError if the widths do not fit, or a bias has another shape.
    """
    outputs, inputs = weight.shape
    if x.shape[-1] != inputs:
        raise ValueError(f"x: expected a last axis of {inputs}, the weight's input width, got {x.shape[-1]}")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias: expected shape ({outputs},), the weight's output width, got {bias.shape}")
    rows = _rows(x)  # (N, I): one large product instead of one per sequence
    y = _one_row_product(rows, weight) if len(rows) == 1 else rows @ weight.T  # (N, O); of one row (O,)
    if bias is not None:
        y += bias  # y is new: nobody else has it
    return y.reshape(*x.shape[:-1], outputs), LinearCache(x, weight, bias is not None)


def linear_backward(d_y: np.ndarray, cache: LinearCache) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Gradients of x, weight and bias.

    y[n, o] = sum_i x[n, i] W[o, i] + b[o], so with d = dL/dy:
      dL/dx[n, i] = sum_o d[n, o] W[o, i]    each input reaches every output through its column of W
      dL/dW[o, i] = sum_n d[n, o] x[n, i]    each weight is used once by every row
      dL/db[o]    = sum_n d[n, o]            broadcasting forward is summing backward
    """
    x, weight, has_bias = cache
    d_rows = _rows(d_y)
    d_x = (d_rows @ weight).reshape(x.shape)
    d_weight = d_rows.T @ _rows(x)
    d_bias = d_rows.sum(axis=0) if has_bias else None
    return d_x, d_weight, d_bias


def named_linear_forward(x: np.ndarray, parameters: Parameters, name: str) -> tuple[np.ndarray, LinearCache]:
    """The linear layer whose parameters are `name`.weight and, if there is one, `name`.bias."""
    return linear_forward(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))


def named_linear_backward(d_y: np.ndarray, cache: LinearCache, name: str) -> tuple[np.ndarray, Parameters]:
    """Gradient of x, and those of the parameters under their names."""
    d_x, d_weight, d_bias = linear_backward(d_y, cache)
    return d_x, prefixed(name, {"weight": d_weight} if d_bias is None else {"weight": d_weight, "bias": d_bias})


def _rows(x: np.ndarray) -> np.ndarray:
    """All axes but the last merged into one: (..., I) -> (N, I)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _one_row_product(row: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x W^T for one row (1, I), as when decoding a token: (O,). Reading the weight is the work, and fastest row by row."""
    return np.vecdot(np.conj(row), weight)  # vecdot conjugates its first factor: here back again
