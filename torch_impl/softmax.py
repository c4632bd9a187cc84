"""Softmax over the last axis, and its own backward pass, which keeps the output alone, as the spec's does."""

from typing import Any

import torch
from torch import Tensor

from torch_impl.derivative import first_derivative, own_backward


def softmax(x: Tensor, allowed: Tensor | None = None) -> Tensor:
    """p_i = exp(x_i) / sum_j exp(x_j) over the entries that are allowed: bool, broadcastable to x; None allows all.

    A row with nothing to choose from, or of nothing but -inf, gives 0 and gradient 0, where torch.softmax gives NaN.
    """
    if own_backward():
        p: Tensor = _Softmax.apply(x, allowed)
        return p
    return _forward(x, allowed)


def _forward(x: Tensor, allowed: Tensor | None) -> Tensor:
    x = x if allowed is None else torch.where(allowed, x, -torch.inf)
    empty = (x == -torch.inf).all(dim=-1, keepdim=True)
    p = torch.softmax(torch.where(empty, 0, x), dim=-1)  # of zeros where it is empty: torch.func finds no NaN to pass on
    return torch.where(empty, 0, p)


class _Softmax(torch.autograd.Function):
    """Differentiated by torch, every torch.where above would keep its mask, (B, H, T, S) in attention."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, allowed: Tensor | None) -> Tensor:
        p = _forward(x, allowed)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    @first_derivative
    def backward(ctx: Any, d_p: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(d_p, p, -1, p.dtype), None
