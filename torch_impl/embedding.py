"""The embedding: token numbers to rows of a table."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """Shapes: tokens (...) int32 or int64 in 0..V-1, weight (V, D); output (..., D).

    On a CPU a token out of range is torch's IndexError, on CUDA a failed assertion on the device; tokens of another format
    are torch's RuntimeError.
    """
    return F.embedding(tokens, weight)


class Embedding(nn.Module):
    """A table with V rows of D, not initialised."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return embedding(tokens, self.weight)
