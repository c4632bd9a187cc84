"""LayerNorm and RMSNorm over the last axis."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_numpy.config import ModelConfig


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """weight * (x - mean) / sqrt(variance + epsilon) + bias, with the biased variance. Shapes: x (..., D), the rest (D,).

    torch's backward for a CPU sums d x and d and subtracts afterwards: where the mean is far above the deviation, digits
    cancel. From rows that are centred already nothing is left to cancel.
    """
    if x.device.type == "cpu" and x.requires_grad:
        x = x - x.mean(dim=-1, keepdim=True)
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-5) -> Tensor:
    """weight * x / sqrt(mean(x^2) + epsilon)."""
    return F.rms_norm(x, weight.shape, weight, epsilon)


class Norm(nn.Module):
    """The norm that the config names, over `width` numbers, not initialised."""

    def __init__(self, config: ModelConfig, width: int, norm: str | None = None) -> None:
        super().__init__()
        self.norm = config.norm if norm is None else norm
        self.epsilon = config.norm_epsilon
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if config.bias and self.norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.norm == "rms":
            return rms_norm(x, self.weight, self.epsilon)
        return layer_norm(x, self.weight, self.bias, self.epsilon)
