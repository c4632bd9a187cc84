"""Linear attention: a feature map instead of the softmax, so that the cost grows with T, not with T^2.

Katharopoulos et al. 2020, 'Transformers are RNNs', with f(x) = elu(x) + 1. The sum over keys does not depend on the query:
it can be computed once, or carried along as a state of K (K + 1) numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reference_numpy.mask import check_attention_shapes, only_seen

Product = Callable[..., tuple[np.ndarray, np.ndarray]]
CHUNK = 64  # positions per tile: inside a tile products of pairs, between tiles the state


class LinearAttentionCache(NamedTuple):
    """Features, values with their column of ones, and the output with its normaliser; `state` is for decoding."""

    query_features: np.ndarray
    key_features: np.ndarray
    value_and_one: np.ndarray
    output: np.ndarray
    normalizer: np.ndarray
    seen: np.ndarray | None
    causal: bool
    continues: bool
    state: np.ndarray


def linear_attention_forward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    causal: bool = False,
    state: np.ndarray | None = None,
) -> tuple[np.ndarray, LinearAttentionCache]:
    """output[t] = sum_s (f(q_t) . f(k_s)) v_s / sum_s f(q_t) . f(k_s), over all s, or over s <= t if causal.

    Shapes: query (B, H, T, K), key and value (B, H, S, K), T = S if causal; mask broadcastable to (B, H, 1, S): keys can be
    masked, pairs cannot; output (B, H, T, K). Numerator and denominator are one product: the values get a column of ones.
    `state` (B, H, K, K + 1) is what earlier tokens summed to; the cache holds it with the new ones added, and then there is
    no backward pass. A query with nothing to attend to gets 0, and NaN in a masked key reaches nothing. Raises ValueError
    for a mask of pairs, and for shapes that do not fit.
    """
    check_attention_shapes(query, key, value, mask)
    if causal and query.shape[2] != key.shape[2]:
        raise ValueError(f"key: expected as many as there are queries, {query.shape[2]}, got {key.shape[2]}")
    seen = None
    if mask is not None:
        mask = np.atleast_2d(mask)
        if mask.shape[-2] != 1:
            raise ValueError(f"mask: expected one over keys, (B, H, 1, S), got {mask.shape}")
        seen = mask.mT  # (B, H, S, 1)
    key, value = only_seen(key, seen), only_seen(value, seen)
    query_features, key_features = _features(query), only_seen(_features(key), seen)
    value_and_one = np.concatenate((value, np.ones_like(value[..., :1])), axis=-1)  # (B, H, S, K + 1)

    product = causal_product if causal else full_product
    sums, total = product(query_features, key_features, value_and_one, state)  # (B, H, T, K + 1)
    normalizer = np.where(sums[..., -1:] == 0, 1, sums[..., -1:])
    output = sums[..., :-1] / normalizer
    return output, LinearAttentionCache(
        query_features, key_features, value_and_one, output, normalizer, seen, causal, state is not None, total
    )


def linear_attention_backward(
    d_output: np.ndarray, cache: LinearAttentionCache
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of query, key and value.

    o = n / z:    d_n = d_o / z,  d_z = -(d_o . o) / z: together the gradient d_u of u = (n, z)
    u_t = sum_{s <= t} (a_t . b_s) w_s, with a = f(q), b = f(k), w = (v, 1), is trilinear, so
      d_a_t = sum_{s <= t} (d_u_t . w_s) b_s      the same sum with the roles (d_u, w, b)
      d_b_s = sum_{t >= s} (w_s . d_u_t) a_t      the same sum backward in time, roles (w, d_u, a)
      d_w_s = sum_{t >= s} (b_s . a_t) d_u_t      backward in time, roles (b, a, d_u)
    f = elu + 1:  f'(x) = 1 for x > 0, where f(x) > 1, and exp(x) = f(x) below: min(f(x), 1)
    """
    assert not cache.continues, "a forward that continues a state has no backward"
    a, b, w = cache.query_features, cache.key_features, cache.value_and_one
    d_n = d_output / cache.normalizer
    d_u = np.concatenate((d_n, -(d_n * cache.output).sum(axis=-1, keepdims=True)), axis=-1)
    product = causal_product if cache.causal else full_product
    d_a, _ = product(d_u, w, b)
    d_b, _ = _backward_in_time(product, w, d_u, a)
    d_w, _ = _backward_in_time(product, b, a, d_u)
    d_query = d_a * np.minimum(a, 1)
    d_key = d_b * np.minimum(b, 1)
    d_value = d_w[..., :-1]
    return d_query, only_seen(d_key, cache.seen), only_seen(d_value, cache.seen)


def full_product(
    a: np.ndarray, b: np.ndarray, w: np.ndarray, state: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """sum over all s of (a_t . b_s) w_s = a_t (sum_s b_s w_s^T): (B, H, T, M), and the bracket, the state."""
    total = b.mT @ w  # (B, H, K, M)
    if state is not None:
        total = state + total
    return a @ total, total


def causal_product(
    a: np.ndarray, b: np.ndarray, w: np.ndarray, state: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """sum over s <= t of (a_t . b_s) w_s: (B, H, T, M), tile by tile, and the state after the last tile.

    Earlier tiles enter through the state, the tile itself through its lower triangle of pairs.
    """
    T = a.shape[2]
    if state is None:
        state = b[..., :0, :].mT @ w[..., :0, :]  # zeros, (B, H, K, M)
    tiles = []
    for start in range(0, T, CHUNK):
        a_tile, b_tile, w_tile = (array[..., start : start + CHUNK, :] for array in (a, b, w))
        pairs = np.tril(a_tile @ b_tile.mT)
        tiles.append(a_tile @ state + pairs @ w_tile)
        state = state + b_tile.mT @ w_tile
    return (np.concatenate(tiles, axis=2) if tiles else a @ state), state


def _backward_in_time(product: Product, a: np.ndarray, b: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`product` with time reversed: sums over t >= s."""
    sums, state = product(a[..., ::-1, :], b[..., ::-1, :], w[..., ::-1, :])
    return sums[..., ::-1, :], state


def _features(x: np.ndarray) -> np.ndarray:
    """f(x) = elu(x) + 1 = x + 1 for x > 0, exp(x) below: positive, until it underflows."""
    positive = x.real > 0
    return np.where(positive, x + 1, np.exp(np.where(positive, 0, x)))
