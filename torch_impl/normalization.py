"""LayerNorm and RMSNorm over the last axis."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_numpy.config import ModelConfig
from torch_impl.derivative import first_derivative, own_backward


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """weight * (x - mean) / sqrt(variance + epsilon) + bias, with the biased variance. Shapes: x (..., D), the rest (D,).

    torch's kernels for a CPU multiply and subtract afterwards: where the mean is far above the deviation, digits cancel.
    From rows that are centred already nothing is left to cancel: so it is done where the gradient of x is wanted. The mean
    counts as a constant there, since no derivative of LayerNorm changes when a constant is taken from its rows.
    """
    x = x.to(weight.dtype)  # see rms_norm
    if x.device.type == "cpu" and x.requires_grad:
        x = x - x.detach().mean(dim=-1, keepdim=True)
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-5) -> Tensor:
    """weight * x / sqrt(mean(x^2) + epsilon). Shapes: x (..., D), weight (D,)."""
    x = x.to(weight.dtype)  # with autocast some come in bfloat16, and torch has no kernel for both formats
    if x.device.type == "cpu" and x.requires_grad and own_backward():
        return _RMSNorm.apply(x, weight, epsilon)
    return F.rms_norm(x, weight.shape, weight, epsilon)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with the spec's backward: on a CPU torch has no kernel of its own for it, and takes twice as many passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = (x.square().mean(dim=-1, keepdim=True) + epsilon).rsqrt_()
        normalized = x * inverse
        ctx.save_for_backward(normalized, inverse, weight)
        return normalized * weight

    @staticmethod
    @first_derivative
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, None]:
        normalized, inverse, weight = ctx.saved_tensors
        d_normalized = d_y * weight
        along = (d_normalized * normalized).mean(dim=-1, keepdim=True)  # the part of d that changes the length of x
        d_x = torch.addcmul(d_normalized, normalized, along, value=-1).mul_(inverse)
        return d_x, (d_y * normalized).reshape(-1, weight.shape[0]).sum(dim=0), None


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
