"""Token shift: a part of what a sub-layer reads of a token is the token before's."""

from typing import Any

import torch
from torch import Tensor

from torch_impl.derivative import own_backward


class LastToken:
    """What decoding keeps of the last token for the next one: its second half, (B, 1, D//2)."""

    def __init__(self) -> None:
        self.half: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Go on with these rows of the batch."""
        self.half = None if self.half is None else self.half[rows]


def token_shift(x: Tensor, padding: Tensor | None = None, past: LastToken | None = None) -> Tensor:
    """The first half of each token's channels, and the second half of the token before's; padding passes nothing on.

    Shapes: x (B, T, D), padding (B, T) bool, True for a real token; output like x. `past` has the token before the first and
    takes the last one in.
    """
    if past is None and own_backward():
        return _TokenShift.apply(x, padding)
    half = x.shape[2] // 2
    own, passed = x.split((x.shape[2] - half, half), dim=2)
    if padding is not None:
        passed = torch.where(padding[:, :, None], passed, 0)
    first = x.new_zeros((x.shape[0], 1, half)) if past is None or past.half is None else past.half
    passed = torch.cat((first, passed), dim=1)  # (B, T+1, D/2)
    if past is not None:
        past.half = passed[:, -1:].clone(memory_format=torch.contiguous_format)  # of one layout: no second graph for it
    return torch.cat((own, passed[:, :-1]), dim=2)


class _TokenShift(torch.autograd.Function):
    """The shift and, backward, the opposite one, each as two copies; for its parts and their joining torch needs seven."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: Tensor | None) -> Tensor:
        ctx.save_for_backward(padding)
        y, passed = x.clone(), _second_half(x)[:, :-1]
        _second_half(y)[:, :1] = 0
        _second_half(y)[:, 1:] = passed if padding is None else torch.where(padding[:, :-1, None], passed, 0)
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None]:
        (padding,) = ctx.saved_tensors
        d_x, d_passed = d_y.clone(), _second_half(d_y)[:, 1:]
        _second_half(d_x)[:, -1:] = 0
        _second_half(d_x)[:, :-1] = d_passed if padding is None else torch.where(padding[:, :-1, None], d_passed, 0)
        return d_x, None


def _second_half(x: Tensor) -> Tensor:
    return x[:, :, x.shape[2] - x.shape[2] // 2 :]
