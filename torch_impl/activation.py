"""Elementwise nonlinearities: GELU (exact and tanh), ReLU, ReLU squared, SiLU."""

from torch import Tensor
from torch.nn import functional as F


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
    """max(x, 0)^2."""
    positive = F.relu(x)
    return positive * positive


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x))."""
    return F.silu(x)
