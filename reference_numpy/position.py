"""Positions: how a model learns the order of its tokens.

Sinusoidal and learned positions are added to the embedding; rotary positions turn queries and keys; ALiBi lowers the score
of distant keys. Tables are computed in float64 and rounded once: they are constants of the model, and both twins read them
from here.
"""

import math
from typing import NamedTuple

import numpy as np

BASE = 10000.0  # Vaswani et al. 2017, section 3.5


def sinusoidal_table(positions: np.ndarray, width: int, dtype: np.dtype) -> np.ndarray:
    """PE[t, 2i] = sin(t / 10000^(2i/D)), PE[t, 2i+1] = cos(t / 10000^(2i/D)) (Vaswani et al. 2017, section 3.5).

    Shapes: positions (T,) integers, output (T, D). Any position is allowed.
    """
    channel = np.arange(width)
    angle = positions[:, None] / BASE ** ((channel - channel % 2) / width)  # (T, D)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(dtype)


class RotaryCache(NamedTuple):
    """The angles' cosines and sines, (T, K/2) each. The input is not needed: the map is linear."""

    cosine: np.ndarray
    sine: np.ndarray


def rotary_tables(positions: np.ndarray, head_width: int, dtype: np.dtype) -> RotaryCache:
    """cos(t theta_i) and sin(t theta_i) with theta_i = 10000^(-2i/K), for i below K/2."""
    theta = BASE ** (-np.arange(0, head_width, 2) / head_width)
    angle = positions[:, None] * theta  # (T, K/2)
    return RotaryCache(np.cos(angle).astype(dtype), np.sin(angle).astype(dtype))


def rotary_forward(x: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, RotaryCache]:
    """Turn each pair of channels (a, b) at position t counter-clockwise by the angle t theta_i (Su et al. 2021, eq. 34):

      a' = a cos - b sin,    b' = b cos + a sin

    Shapes: x (B, H, T, K), K even; positions (T,) integers. The pair is (i, i + K/2), two contiguous halves, as in GPT-NeoX;
    the paper pairs (2i, 2i+1), the same up to a fixed order of the channels. A query turned by s times a key turned by t
    depends on s - t alone. Raises ValueError for an odd K, and for integers, which the tables would be rounded to.
    """
    if x.dtype.kind not in "fc":
        raise ValueError(f"x: expected floating-point numbers, got {x.dtype}")
    if x.shape[-1] % 2:
        raise ValueError(f"x: expected an even last axis, whose channels are turned in pairs, got {x.shape[-1]}")
    cache = rotary_tables(positions, x.shape[-1], x.dtype)
    return _rotate(x, cache.cosine, cache.sine), cache


def rotary_backward(d_y: np.ndarray, cache: RotaryCache) -> np.ndarray:
    """A rotation is orthogonal: its transpose, which carries gradients back, is the rotation by the opposite angle."""
    return _rotate(d_y, cache.cosine, -cache.sine)


def _rotate(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cosine - b * sine, b * cosine + a * sine), axis=-1)


def alibi_slopes(heads: int, dtype: np.dtype) -> np.ndarray:
    """(H,): how fast each head forgets with distance: 2^(-8h/H) for h = 1..H (Press et al. 2022, section 3).

    For H that is no power of two: the slopes of the power below, then every other slope of the power above.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * (heads - power), 2) / power)
    return np.concatenate((slopes, between)).astype(dtype)


def alibi_bias(slopes: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(H, T, S): -slope |t - s|, added to the scores; `rows` (T,) and `columns` (S,) are positions. It has no parameters."""
    distance = np.abs(rows[:, None] - columns[None, :]).astype(slopes.dtype)
    return -slopes[:, None, None] * distance
