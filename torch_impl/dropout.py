"""Dropout, inverted: what is kept is scaled up in training, nothing is done in evaluation."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reference_numpy import dropout as spec


class Share(NamedTuple):
    """The stream of a process that computes some rows of a batch: it draws the masks of all rows and keeps its own."""

    generator: np.random.Generator | torch.Generator | torch.device
    rows: slice
    batch: int
    """B of the whole batch."""


# NumPy's stream draws the spec's masks, torch's draws on its device. A device stands for its own default stream, the only
# one that compiled code and CUDA graphs can draw from.
Generator = np.random.Generator | torch.Generator | torch.device | Share


def dropout_mask(shape: tuple[int, ...], rate: float, generator: Generator, device: torch.device) -> Tensor:
    """Draw which units to keep: True with probability 1 - rate."""
    if isinstance(generator, Share):
        return dropout_mask((generator.batch, *shape[1:]), rate, generator.generator, device)[generator.rows]
    if isinstance(generator, np.random.Generator):
        return torch.from_numpy(spec.dropout_mask(shape, rate, generator)).to(device)
    if isinstance(generator, torch.device):
        return torch.rand(shape, device=generator) >= rate
    return torch.rand(shape, generator=generator, device=device) >= rate


def dropout(x: Tensor, rate: float, keep: Tensor | None) -> Tensor:
    """x / (1 - rate) where kept, 0 where dropped; without a mask, x."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate: expected at least 0 and below 1, got {rate}")
    return x if keep is None else torch.where(keep, x * (1 / (1 - rate)), 0)
