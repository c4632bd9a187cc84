"""Positions: sinusoidal, rotary, ALiBi. The tables are the spec's, since they are constants of the model."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_numpy import position as spec


@lru_cache(maxsize=64)
def sinusoidal_table(start: int, stop: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(stop - start, D): the rows for positions start to stop - 1."""
    return _constant(spec.sinusoidal_table(np.arange(start, stop), width, np.dtype(np.float64)), dtype, device)


@lru_cache(maxsize=64)
def rotary_tables(start: int, stop: int, head_width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (stop - start, K/2) each, for positions start to stop - 1."""
    tables = spec.rotary_tables(np.arange(start, stop), head_width, np.dtype(np.float64))
    return _constant(tables.cosine, dtype, device), _constant(tables.sine, dtype, device)


def rotary(x: Tensor, start: int) -> Tensor:
    """Turn the channel pairs (i, i + K/2) of x (B, H, T, K), at positions from `start` on, counter-clockwise.

    Raises ValueError for an odd K."""
    if x.shape[-1] % 2:
        raise ValueError(f"x: expected an even last axis, whose channels are turned in pairs, got {x.shape[-1]}")
    cosine, sine = rotary_tables(start, start + x.shape[2], x.shape[3], x.dtype, x.device)
    return _Rotary.apply(x, cosine, sine)


class _Rotary(torch.autograd.Function):
    """With the spec's backward, the opposite rotation: without it torch goes back through every half and product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotate(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotate(d_y, cosine, -sine), None, None


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)


@lru_cache(maxsize=64)
def alibi_slopes(heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(H,): how fast each head forgets with distance."""
    return _constant(spec.alibi_slopes(heads, np.dtype(np.float64)), dtype, device)


def alibi_bias(slopes: Tensor, T: int, S: int) -> Tensor:
    """(H, T, S): -slope |t - s|, added to the scores; queries and keys are aligned at the end."""
    rows, columns = torch.arange(S - T, S, device=slopes.device), torch.arange(S, device=slopes.device)
    return -slopes[:, None, None] * (rows[:, None] - columns).abs().to(slopes.dtype)


@torch.inference_mode(False)  # a table first used while generating must serve training as well
def _constant(table: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(table).to(dtype).to(device)  # rounded before it moves: not every device has float64


def make_tables_constant() -> None:
    """For torch.compile, which would otherwise make the tables anew in every step, on the CPU."""
    for table in (sinusoidal_table, rotary_tables, alibi_slopes):
        torch.compiler.assume_constant_result(table.__wrapped__)
