"""FlashAttention-2 in NumPy: exact attention, tile by tile, in memory that grows with T and not with T^2.

Dao 2023, 'FlashAttention-2', algorithms 1 and 2, here both with queries in the outer loop. Only one tile of scores exists at
a time. The forward keeps, per query, the log of its softmax denominator; with it the backward computes each tile of weights
again instead of reading it back.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from reference_numpy.mask import allowed_pairs, check_attention_shapes, only_seen
from reference_numpy.position import alibi_bias

TILE = 128  # queries and keys per tile: the tile of scores of a few heads stays in the processor's cache


class Options(NamedTuple):
    """Everything that shapes the scores besides query and key; see scaled_dot_product_attention_forward."""

    mask: np.ndarray | None
    causal: bool
    window: int | None
    slopes: np.ndarray | None
    softcap: float | None


class FlashAttentionCache(NamedTuple):
    """Inputs, output, and log sum exp of each query's scores (B, H, T, 1): all linear in T."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    output: np.ndarray
    log_total: np.ndarray
    seen: np.ndarray | None
    options: Options


def flash_attention_forward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    slopes: np.ndarray | None = None,
    softcap: float | None = None,
) -> tuple[np.ndarray, FlashAttentionCache]:
    """The same function as scaled_dot_product_attention_forward, with the same arguments, to rounding.

    Online softmax (Milakov & Gimelshein 2018): for each query keep the largest score m so far, and with it the sum l of
    exp(score - m) and the sum a of exp(score - m) value. A tile with a larger maximum m' first shrinks both by exp(m - m').
    At the end the output is a / l, and log sum exp = m + log l. Neither depends on m, which therefore is a constant, and
    real even where a complex step differentiates.
    """
    check_attention_shapes(query, key, value, mask)
    T, S = query.shape[2], key.shape[2]
    options = Options(mask, causal, window, slopes, softcap)
    seen = _seen(T, S, options)
    key, value = only_seen(key, seen), only_seen(value, seen)

    output, log_total = np.zeros_like(query), np.zeros_like(query[..., :1])
    for rows in _tiles(T):
        query_tile = query[:, :, rows]
        total_value = np.zeros_like(query_tile)  # a
        total = np.zeros_like(query_tile[..., :1])  # l
        largest = np.full_like(total, -np.inf)  # m
        for columns in _columns(rows, T, S, options):
            scores, _ = _scores(query_tile, key[:, :, columns], rows, columns, T, S, options)
            new_largest = np.maximum(largest, scores.real.max(axis=-1, keepdims=True))
            shift = np.where(new_largest == -np.inf, 0, new_largest)
            exponential = np.exp(scores - shift)
            shrink = np.exp(largest - shift)
            total = total * shrink + exponential.sum(axis=-1, keepdims=True)
            total_value = total_value * shrink + exponential @ value[:, :, columns]
            largest = new_largest
        empty = total == 0
        safe_total = np.where(empty, 1, total)
        output[:, :, rows] = total_value / safe_total
        log_total[:, :, rows] = np.where(empty, np.inf, largest + np.log(safe_total))  # exp(score - inf) = 0: an empty row
    return output, FlashAttentionCache(query, key, value, output, log_total, seen, options)


def flash_attention_backward(d_output: np.ndarray, cache: FlashAttentionCache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of query, key and value, tile by tile.

    The weights come back as p = exp(score - log sum exp), without a second softmax; the price is a relative error of
    u |log sum exp| in p, u the unit roundoff, where the plain algorithm keeps the maximum apart. Softmax's backward needs,
    per query,
      sum_s d_weight_s p_s = sum_s (d_output . value_s) p_s = d_output . sum_s p_s value_s = d_output . output
    which is a row of numbers known before the first tile. With it each tile stands alone:
      d_value += p^T d_output,  d_score = p (d_output value^T - d_output . output),  times 1 - tanh^2 under a soft cap,
      d_query += d_score key / sqrt(K),  d_key += d_score^T query / sqrt(K)
    """
    query, key, value, output, log_total, seen, options = cache
    T, S, scale = query.shape[2], key.shape[2], 1 / math.sqrt(query.shape[-1])
    row_sums = (d_output * output).sum(axis=-1, keepdims=True)  # (B, H, T, 1)
    d_query, d_key, d_value = np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    for rows in _tiles(T):
        query_tile, d_output_tile = query[:, :, rows], d_output[:, :, rows]
        for columns in _columns(rows, T, S, options):
            key_tile, value_tile = key[:, :, columns], value[:, :, columns]
            scores, capped = _scores(query_tile, key_tile, rows, columns, T, S, options)
            p = np.exp(scores - log_total[:, :, rows])
            d_value[:, :, columns] += p.mT @ d_output_tile
            d_scores = p * (d_output_tile @ value_tile.mT - row_sums[:, :, rows])
            if capped is not None:
                d_scores = d_scores * (1 - capped * capped)
            d_query[:, :, rows] += (d_scores @ key_tile) * scale
            d_key[:, :, columns] += d_scores.mT @ (query_tile * scale)
    return d_query, only_seen(d_key, seen), only_seen(d_value, seen)


def _scores(
    query: np.ndarray, key: np.ndarray, rows: slice, columns: slice, T: int, S: int, options: Options
) -> tuple[np.ndarray, np.ndarray | None]:
    """One tile of masked scores (B, H, t, s), and tanh(score / softcap) if there is a cap."""
    row_positions, column_positions = np.arange(S - T, S)[rows], np.arange(S)[columns]
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.mT
    capped = None
    if options.softcap is not None:
        capped = np.tanh(scores / options.softcap)
        scores = capped * options.softcap
    if options.slopes is not None:
        scores = scores + alibi_bias(options.slopes, row_positions, column_positions)
    tile = _mask_tile(options.mask, rows, columns)
    allowed = allowed_pairs(row_positions, column_positions, tile, options.causal, options.window)
    return (scores if allowed is None else np.where(allowed, scores, -np.inf)), capped


def _mask_tile(mask: np.ndarray | None, rows: slice, columns: slice) -> np.ndarray | None:
    """The tile of a mask that may have fewer axes, or axes of length 1, where it broadcasts."""
    if mask is None:
        return None
    if mask.ndim >= 1 and mask.shape[-1] != 1:
        mask = mask[..., columns]
    if mask.ndim >= 2 and mask.shape[-2] != 1:
        mask = mask[..., rows, :]
    return mask


def _tiles(length: int) -> Iterator[slice]:
    return (slice(start, min(start + TILE, length)) for start in range(0, length, TILE))


def _columns(rows: slice, T: int, S: int, options: Options) -> Iterator[slice]:
    """The tiles of keys that the queries of a tile can reach; causality and the window skip the others whole."""
    first, last = rows.start + S - T, rows.stop - 1 + S - T  # positions of the first and last query
    for columns in _tiles(S):
        too_late = options.causal and columns.start > last
        too_far = options.window is not None and (
            columns.stop - 1 <= first - options.window or columns.start >= last + options.window
        )
        if not (too_late or too_far):
            yield columns


def _seen(T: int, S: int, options: Options) -> np.ndarray | None:
    """Which keys any query may attend to, (B, H, S, 1), found without holding all pairs at once; None: all of them."""
    if options.mask is None and options.window is None:
        return None  # the last query sees every key
    parts = []
    for columns in _tiles(S):
        seen = np.zeros((1, 1, columns.stop - columns.start), dtype=bool)
        for rows in _tiles(T):
            tile = _mask_tile(options.mask, rows, columns)
            positions = np.arange(S - T, S)[rows], np.arange(S)[columns]
            allowed = allowed_pairs(*positions, tile, options.causal, options.window)
            assert allowed is not None
            seen = seen | allowed.any(axis=-2)
        parts.append(seen)
    if not parts:
        return None
    leading = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return np.concatenate([np.broadcast_to(part, (*leading, part.shape[-1])) for part in parts], axis=-1)[..., None]
