"""Softmax over the last axis."""

import torch
from torch import Tensor


def softmax(x: Tensor) -> Tensor:
    """p_i = exp(x_i) / sum_j exp(x_j); a row of nothing but -inf gives 0 and gradient 0, where torch.softmax gives NaN."""
    empty = (x == -torch.inf).all(dim=-1, keepdim=True)
    return torch.where(empty, 0, torch.softmax(torch.where(empty, 0, x), dim=-1))
