"""Masks: which key a query may attend to. True means it may.

Queries and keys are aligned at the end: with T queries and S keys, query t stands at position S - T + t.
"""

import torch
from torch import Tensor


def causal_mask(T: int, S: int, device: torch.device | None = None) -> Tensor:
    """(T, S): a query attends to its own position and earlier ones."""
    mask = allowed_pairs(T, S, causal=True, device=device)
    assert mask is not None
    return mask


def window_mask(T: int, S: int, window: int, device: torch.device | None = None) -> Tensor:
    """(T, S): a query attends to positions at a distance below `window`, on either side."""
    mask = allowed_pairs(T, S, window=window, device=device)
    assert mask is not None
    return mask


def padding_mask(lengths: Tensor, S: int) -> Tensor:
    """(B, S): True for the first lengths[b] tokens of each sequence, False for the padding behind them."""
    return torch.arange(S, device=lengths.device) < lengths[:, None]


def only_seen(x: Tensor, seen: Tensor) -> Tensor:
    """x (B, H, S, K) where `seen` (B, H, S, 1), 0 elsewhere: for keys and values that no query may attend to."""
    return torch.where(seen, x, 0)


def allowed_pairs(
    T: int,
    S: int,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    device: torch.device | None = None,
) -> Tensor | None:
    """Which of T queries may attend to which of S keys: bool, broadcasts to (B, H, T, S); None where all pairs are."""
    mask = None if mask is None else torch.atleast_2d(mask)
    if not causal and window is None:
        return mask
    ahead = torch.arange(S, device=device) - torch.arange(S - T, S, device=device)[:, None]  # (T, S)
    if causal:
        mask = ahead <= 0 if mask is None else mask & (ahead <= 0)
    if window is not None:
        near = ahead.abs() < window
        mask = near if mask is None else mask & near
    return mask
