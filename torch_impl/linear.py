"""The linear layer, y = x W^T + b."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Shapes: x (..., I), weight (O, I), bias (O,) or None; output (..., O)."""
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: expected a last axis of {weight.shape[1]}, the weight's input width, got {x.shape[-1]}")
    return F.linear(x, weight, bias)


class Linear(nn.Module):
    """A linear layer with its parameters, not initialised: the spec's `initialize` gives the values."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
