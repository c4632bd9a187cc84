"""Elementwise nonlinearities: GELU (exact and tanh), ReLU, ReLU squared, SiLU."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_impl.derivative import first_derivative, own_backward


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), the exact form."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GPT-2."""
    return F.gelu(x, approximate="tanh")


def relu(x: Tensor) -> Tensor:
    """max(x, 0); the derivative at 0 is 0."""
    return F.relu(x)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2, whose derivative is 2 max(x, 0)."""
    return _ReLUSquared.apply(x) if own_backward() else F.relu(x).square()


class _ReLUSquared(torch.autograd.Function):
    """Its derivative as one product; to differentiate max and square one after the other takes torch five passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @first_derivative
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.addcmul(d_y.new_zeros(()), d_y, positive, value=2)  # 2 d_y p in one pass


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x))."""
    return F.silu(x)
