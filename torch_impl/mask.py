"""Masks: which key a query may attend to. True means it may.

Queries and keys are aligned at the end: with T queries and S keys, query t stands at position S - T + t.
"""

import torch
from torch import Tensor


def padding_mask(lengths: Tensor, S: int) -> Tensor:
    """(B, S): True for the first lengths[b] tokens of each sequence, False for the padding behind them."""
    return torch.arange(S, device=lengths.device) < lengths[:, None]


def over_keys(padding: Tensor | None, name: str, B: int, S: int) -> Tensor | None:
    """(B, S), True for a real token -> (B, 1, 1, S): every head and query may attend to the real tokens; None stays None.

    Raises ValueError as the spec does.
    """
    if padding is None:
        return None
    if padding.dtype != torch.bool or padding.shape != (B, S):
        raise ValueError(f"{name}: expected bool of shape (B, S) = {(B, S)}, got {padding.dtype} {tuple(padding.shape)}")
    return padding[:, None, None, :]


def only_seen(x: Tensor, seen: Tensor | None) -> Tensor:
    """x (B, H, S, K) where `seen`, (B, H, S, 1) or None for everywhere, and 0 elsewhere: for keys and values that no query
    may attend to."""
    return x if seen is None else torch.where(seen, x, 0)


def allowed_pairs(
    T: int,
    S: int,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    device: torch.device | None = None,
) -> Tensor | None:
    """Which of T queries may attend to which of S keys: bool, broadcasts to (B, H, T, S); None where nothing limits them.

    Causal: those at its own position and earlier ones. A window: those at a distance below it, on either side."""
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


def check_attention_shapes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless key and value fit the query (B, H, T, K) and the mask broadcasts to (B, H, T, S)."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise ValueError(f"{name}: expected 4 axes, batch, head, length and width, got shape {tuple(tensor.shape)}")
    B, H, T, K = query.shape
    S = key.shape[2]
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != (B, H, S, K):
            raise ValueError(f"{name}: expected shape (B, H, S, K) = {(B, H, S, K)}, got {tuple(tensor.shape)}")
    if mask is None:
        return
    fits = mask.ndim <= 4 and all(m in (1, n) for m, n in zip(reversed(mask.shape), (S, T, H, B), strict=False))
    if mask.dtype != torch.bool or not fits:
        raise ValueError(
            f"mask: expected bool that broadcasts to (B, H, T, S) = {(B, H, T, S)}, got {mask.dtype} {tuple(mask.shape)}"
        )
