"""Positions: sinusoidal, rotary, ALiBi. The tables are the spec's, since they are constants of the model."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_numpy import position as spec
from torch_impl.derivative import in_torch_func, own_backward

LENGTH = 1024  # positions in a table at least; a longer one has twice as many, and so on: few tables serve all lengths
Tables = Callable[..., tuple[Tensor, ...]]


def _remembered(make: Tables) -> Tables:
    """`make`, which gives the same arguments the same tensors again; not those of a trace, which have no numbers, nor those
    of torch.func, which serve one transform."""
    known: dict[Any, tuple[Tensor, ...]] = {}

    @wraps(make)
    def get(*arguments: Any) -> tuple[Tensor, ...]:
        tables = known.get(arguments) or make(*arguments)
        if all(type(table) is Tensor for table in tables) and not in_torch_func():
            known[arguments] = tables
        return tables

    return get


def sinusoidal_table(start: int, stop: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(stop - start, D): the rows for positions start to stop - 1."""
    (table,) = _sinusoidal(_length(stop), width, dtype, device)
    return table.narrow(0, start, stop - start)  # as a slice the compiler would take the length for a constant


def rotary_tables(start: int, stop: int, head_width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (stop - start, K) each, for positions start to stop - 1: one for every channel, the sine with the
    sign with which the other channel of its pair comes in."""
    cosine, sine = _rotary(_length(stop), head_width, dtype, device)
    return cosine.narrow(0, start, stop - start), sine.narrow(0, start, stop - start)


def _length(stop: int) -> int:
    """Of the table that holds positions up to `stop`."""
    length = LENGTH
    while length < stop:
        length *= 2
    return length


@_remembered
def _sinusoidal(length: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return (_constant(spec.sinusoidal_table(np.arange(length), width, np.dtype(np.float64)), dtype, device),)


@_remembered
def _rotary(length: int, head_width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    cosine, sine = spec.rotary_tables(np.arange(length), head_width, np.dtype(np.float64))
    pairs = np.concatenate((cosine, cosine), axis=-1), np.concatenate((-sine, sine), axis=-1)
    return tuple(_constant(table, dtype, device) for table in pairs)


def rotary(x: Tensor, start: int) -> Tensor:
    """Turn the channel pairs (i, i + K/2) of x (B, H, T, K), at positions from `start` on, counter-clockwise.

    Raises ValueError for integers and for an odd K."""
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"x: expected floating-point numbers, got {x.dtype}")
    if x.shape[-1] % 2:
        raise ValueError(f"x: expected an even last axis, whose channels are turned in pairs, got {x.shape[-1]}")
    cosine, sine = rotary_tables(start, start + x.shape[2], x.shape[3], x.dtype, x.device)
    return _Rotary.apply(x, cosine, sine) if own_backward() else _rotate(x, cosine, sine)


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
    """(a, b) cos + (-b, a) sin, in three passes; half by half it takes seven."""
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cosine, torch.cat((b, a), dim=-1), sine)


def alibi_slopes(heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(H,): how fast each head forgets with distance."""
    (slopes,) = _alibi(heads, dtype, device)
    return slopes


@_remembered
def _alibi(heads: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return (_constant(spec.alibi_slopes(heads, np.dtype(np.float64)), dtype, device),)


def alibi_bias(slopes: Tensor, T: int, S: int) -> Tensor:
    """(H, T, S): -slope |t - s|, added to the scores; queries and keys are aligned at the end."""
    rows, columns = torch.arange(S - T, S, device=slopes.device), torch.arange(S, device=slopes.device)
    return -slopes[:, None, None] * (rows[:, None] - columns).abs().to(slopes.dtype)


@torch.inference_mode(False)  # a table first used while generating must serve training as well
def _constant(table: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(table).to(dtype).to(device)  # rounded before it moves: not every device has float64


def make_tables_constant() -> None:
    """For torch.compile, which would otherwise make the tables anew in every step, on the CPU: call it before."""
    for tables in (_sinusoidal, _rotary, _alibi):
        torch.compiler.assume_constant_result(tables)
