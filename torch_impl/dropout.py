"""Dropout, inverted: what is kept is scaled up in training, nothing is done in evaluation."""

import numpy as np
import torch
from torch import Tensor

from reference_numpy import dropout as spec

Generator = np.random.Generator | torch.Generator  # NumPy's draws the spec's masks; torch's draws on its own device


def dropout_mask(shape: tuple[int, ...], rate: float, generator: Generator, device: torch.device) -> Tensor:
    """Draw which units to keep: True with probability 1 - rate."""
    if isinstance(generator, np.random.Generator):
        return torch.from_numpy(spec.dropout_mask(shape, rate, generator)).to(device)
    return torch.rand(shape, generator=generator, device=device) >= rate


def dropout(x: Tensor, rate: float, keep: Tensor | None) -> Tensor:
    """x / (1 - rate) where kept, 0 where dropped; without a mask, x."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate: expected at least 0 and below 1, got {rate}")
    return x if keep is None else torch.where(keep, x * (1 / (1 - rate)), 0)
