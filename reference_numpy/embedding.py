"""The embedding: token numbers to rows of a table."""

from typing import NamedTuple

import numpy as np


class EmbeddingCache(NamedTuple):
    """Which rows were read. The table itself is kept only for its shape and dtype."""

    tokens: np.ndarray
    weight: np.ndarray


def embedding_forward(tokens: np.ndarray, weight: np.ndarray, name: str = "tokens") -> tuple[np.ndarray, EmbeddingCache]:
    """Look up y[..., :] = weight[token].

    Shapes: tokens (...) integers in 0..V-1, weight (V, D); output (..., D). Raises ValueError for a token out of range, and
    for what is no integer; it calls them `name`.
    """
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers, got {tokens.dtype}")
    vocabulary = weight.shape[0]
    if tokens.size and not (0 <= tokens.min() and tokens.max() < vocabulary):
        raise ValueError(f"{name}: expected 0 to {vocabulary - 1}, got {tokens.min()} to {tokens.max()}")
    return weight[tokens], EmbeddingCache(tokens, weight)


def embedding_backward(d_y: np.ndarray, cache: EmbeddingCache) -> np.ndarray:
    """Gradient of the table; integers have none.

    y[n] = W[token[n]], so dL/dW[v] = sum of d_y[n] over the places n that read row v. Sorted by token, equal tokens are
    neighbours and each sum is over one run of rows: `np.add.at` gives the same sum, up to several times slower.
    """
    tokens, weight = cache
    d_weight = np.zeros_like(weight)
    order = np.argsort(tokens, axis=None, kind="stable")
    rows_read, first = np.unique(tokens.reshape(-1)[order], return_index=True)
    d_weight[rows_read] = np.add.reduceat(d_y.reshape(tokens.size, d_y.shape[-1])[order], first, axis=0)
    return d_weight
