"""Masks: which key a query may attend to. True means it may.

Queries and keys are aligned at the end: with T queries and S keys, query t stands at position S - T + t. So one rule serves
training (T = S) and decoding with a cache (T new tokens after S - T old ones).
"""

import numpy as np


def padding_mask(lengths: np.ndarray, S: int) -> np.ndarray:
    """(B, S): True for the first lengths[b] tokens of each sequence, False for the padding behind them."""
    return np.arange(S) < lengths[:, None]


def over_keys(padding: np.ndarray | None, name: str, B: int, S: int) -> np.ndarray | None:
    """(B, S), True for a real token -> (B, 1, 1, S): every head and query may attend to the real tokens; None stays None.

    Raises ValueError, naming the argument, for what is not bool or has another shape.
    """
    if padding is None:
        return None
    if padding.dtype != bool or padding.shape != (B, S):
        raise ValueError(f"{name}: expected bool of shape (B, S) = {(B, S)}, got {padding.dtype} {padding.shape}")
    return padding[:, None, None, :]


def only_seen(x: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    """x (B, H, S, K) where `seen`, (B, H, S, 1) or None for everywhere, and 0 elsewhere.

    For keys and values that no query may attend to, and for their gradients: NaN or inf in them goes nowhere.
    """
    return x if seen is None else np.where(seen, x, 0)


def allowed_pairs(
    rows: np.ndarray,
    columns: np.ndarray,
    mask: np.ndarray | None = None,
    causal: bool = False,
    window: int | None = None,
) -> np.ndarray | None:
    """Which of the queries at positions `rows` may attend to which of the keys at positions `columns`.

    Causal: those at its own position and earlier ones. A window: those at a distance below it, on either side. Shapes: rows
    (T,), columns (S,), mask (B, H, T, S) or anything that broadcasts to it; output broadcasts to (B, H, T, S), or is None
    where nothing limits them. The tiled algorithm asks for one tile at a time, the plain one for all.
    """
    mask = None if mask is None else np.atleast_2d(mask)
    ahead = columns[None, :] - rows[:, None]  # (T, S): by how much the key is later than the query
    if causal:
        mask = ahead <= 0 if mask is None else mask & (ahead <= 0)
    if window is not None:
        near = np.abs(ahead) < window
        mask = near if mask is None else mask & near
    return mask


def check_attention_shapes(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray | None) -> None:
    """Raise ValueError unless key and value fit the query (B, H, T, K) and the mask broadcasts to (B, H, T, S)."""
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim != 4:
            raise ValueError(f"{name}: expected 4 axes, batch, head, length and width, got shape {array.shape}")
    B, H, T, K = query.shape
    S = key.shape[2]
    for name, array in (("key", key), ("value", value)):
        if array.shape != (B, H, S, K):
            raise ValueError(f"{name}: expected shape (B, H, S, K) = {(B, H, S, K)}, got {array.shape}")
    if mask is None:
        return
    fits = mask.ndim <= 4 and all(m in (1, n) for m, n in zip(mask.shape[::-1], (S, T, H, B), strict=False))
    if mask.dtype != bool or not fits:
        raise ValueError(
            f"mask: expected bool that broadcasts to (B, H, T, S) = {(B, H, T, S)}, got {mask.dtype} {mask.shape}"
        )
