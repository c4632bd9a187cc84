"""Scaled dot-product attention and multi-head attention (Vaswani et al. 2017, section 3.2)."""

import math
from typing import Any, NamedTuple

import numpy as np

from reference_numpy.config import ModelConfig
from reference_numpy.linear import LinearCache, named_linear_backward, named_linear_forward
from reference_numpy.linear_attention import LinearAttentionCache, linear_attention_backward, linear_attention_forward
from reference_numpy.mask import allowed_pairs, check_attention_shapes, only_seen
from reference_numpy.normalization import NormCache, rms_norm_backward, rms_norm_forward
from reference_numpy.parameters import Parameters
from reference_numpy.position import RotaryCache, alibi_bias, alibi_slopes, rotary_backward, rotary_forward
from reference_numpy.softmax import softmax_backward, softmax_forward


class AttentionCache(NamedTuple):
    """Inputs and weights. The scores are not kept: softmax needs only its output, the soft cap only its own tanh."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    weights: np.ndarray
    capped: np.ndarray | None
    seen: np.ndarray | None


def scaled_dot_product_attention_forward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    slopes: np.ndarray | None = None,
    softcap: float | None = None,
) -> tuple[np.ndarray, AttentionCache]:
    """output = softmax(query key^T / sqrt(K)) value (Vaswani et al. 2017, equation 1).

    Shapes: query (B, H, T, K), key and value (B, H, S, K), mask bool, broadcastable to (B, H, T, S), True = may attend;
    output (B, H, T, K). Queries and keys are aligned at the end (see mask.py).
    The scale keeps the scores' variance at 1: a sum of K products of independent numbers of mean 0 and variance 1
    has variance K.
    Options: causal and window, see allowed_pairs; slopes (H,), ALiBi; softcap c turns scores into c tanh(score / c) (Gemma
    Team 2024, section 2). A query that may attend to nothing gets 0, and so do its gradients. A key that no query may attend
    to is read as 0, so that NaN or inf in it reaches neither output nor gradient.
    Raises ValueError for shapes that do not fit.
    """
    check_attention_shapes(query, key, value, mask)
    T, S, K = query.shape[2], key.shape[2], query.shape[3]
    rows, columns = np.arange(S - T, S), np.arange(S)
    allowed = allowed_pairs(rows, columns, mask, causal and T > 1, window)  # one query is the last: it sees every key
    seen = None
    if allowed is not None and not (anyone := np.any(allowed, axis=-2)).all():
        seen = anyone[..., None]  # (B, H, S, 1)
    key, value = only_seen(key, seen), only_seen(value, seen)

    scores = (query * (1 / math.sqrt(K))) @ key.mT  # (B, H, T, S)
    capped = None
    if softcap is not None:
        capped = np.tanh(scores / softcap)
        scores = capped * softcap
    if slopes is not None:
        scores = scores + alibi_bias(slopes, rows, columns)
    if allowed is not None:
        np.copyto(scores, -np.inf, where=~allowed)
    weights, _ = softmax_forward(scores)
    output = weights @ value  # (B, H, T, K)
    return output, AttentionCache(query, key, value, weights, capped, seen)


def scaled_dot_product_attention_backward(
    d_output: np.ndarray, cache: AttentionCache
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of query, key and value; each line inverts one line of the forward, from the last to the first.

    output  = weights value:        d_value = weights^T d_output,  d_weights = d_output value^T
    weights = softmax(scores):      d_scores_j = p_j (d_j - sum_i d_i p_i), p of weights, d of d_weights; masked: 0, as p
    scores  = c tanh(s / c):        d_s = d_scores (1 - tanh^2); the bias of ALiBi is a constant
    s       = query key^T/sqrt(K):  d_query = d_s key / sqrt(K),  d_key = d_s^T query / sqrt(K)
    key     = only_seen(key):       a key that nobody sees gets 0
    """
    query, key, value, weights, capped, seen = cache
    scale = 1 / math.sqrt(query.shape[-1])
    d_value = weights.mT @ d_output
    d_weights = d_output @ value.mT
    d_scores = softmax_backward(d_weights, weights)
    if capped is not None:
        d_scores = d_scores * (1 - capped * capped)
    d_query = (d_scores @ key) * scale
    d_key = d_scores.mT @ (query * scale)
    return d_query, only_seen(d_key, seen), only_seen(d_value, seen)


ROWS = 64  # queries of a block of _causal_attention_forward, scored against the keys up to its last one; fewer are slower


class CausalCache(NamedTuple):
    """One cache per block of queries, each with the keys up to its last query."""

    blocks: list[AttentionCache]

    @property
    def query(self) -> np.ndarray:
        """(B, H, T, K)."""
        return np.concatenate([block.query for block in self.blocks], axis=2)

    @property
    def key(self) -> np.ndarray:
        """(B, H, T, K): the last block has all of them."""
        return self.blocks[-1].key

    @property
    def value(self) -> np.ndarray:
        """(B, H, T, K)."""
        return self.blocks[-1].value

    @property
    def weights(self) -> np.ndarray:
        """(B, H, T, T), with the zeros that were never computed."""
        every = [block.weights for block in self.blocks]
        S = every[-1].shape[3]
        unseen = [np.zeros_like(weights, shape=(*weights.shape[:3], S - weights.shape[3])) for weights in every]
        return np.concatenate([np.concatenate(row, axis=3) for row in zip(every, unseen, strict=True)], axis=2)


def _causal_attention_forward(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, **options: Any
) -> tuple[np.ndarray, CausalCache]:
    """scaled_dot_product_attention_forward with causal=True and no mask, T queries and T keys, ROWS queries at a time.

    No block looks beyond its last query, so of many scores nearly half are never formed. Queries and keys are aligned at
    the end, so a block and the keys before its end are attention like any other.
    """
    blocks = []
    for start in range(0, query.shape[2], ROWS):
        stop = start + ROWS
        rows = query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop]
        blocks.append(scaled_dot_product_attention_forward(*rows, causal=True, **options))
    return np.concatenate([output for output, _ in blocks], axis=2), CausalCache([cache for _, cache in blocks])


def _causal_attention_backward(d_output: np.ndarray, cache: CausalCache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of query, key and value: a query is in one block; a key in its own and all later ones, so it sums them."""
    *others, last = cache.blocks  # the last reaches all keys
    d_rows, d_key, d_value = scaled_dot_product_attention_backward(d_output[:, :, -last.query.shape[2] :], last)
    d_queries = [d_rows]
    for block in reversed(others):
        T, stop = block.query.shape[2], block.key.shape[2]
        d_rows, d_block_key, d_block_value = scaled_dot_product_attention_backward(d_output[:, :, stop - T : stop], block)
        d_queries.insert(0, d_rows)
        d_key[:, :, :stop] += d_block_key
        d_value[:, :, :stop] += d_block_value
    return np.concatenate(d_queries, axis=2), d_key, d_value


class KeyValue:
    """What decoding keeps of the tokens so far: keys (already turned) and values in buffers (B, G, room, K) that double
    when they are full, or linear attention's state. `length` counts the tokens."""

    def __init__(self) -> None:
        self.key: np.ndarray | None = None
        self.value: np.ndarray | None = None
        self.state: np.ndarray | None = None
        self.length = 0

    def append(self, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write new keys and values (B, G, n, K) behind the old ones; all of them, (B, G, length, K)."""
        stop = self.length + key.shape[2]
        if self.key is None or self.value is None or stop > self.key.shape[2]:
            self.key, self.value = self._grown(self.key, key, stop), self._grown(self.value, value, stop)
        self.key[:, :, self.length : stop] = key
        self.value[:, :, self.length : stop] = value
        self.length = stop
        return self.key[:, :, :stop], self.value[:, :, :stop]

    def _grown(self, old: np.ndarray | None, new: np.ndarray, stop: int) -> np.ndarray:
        """A buffer with room for 2 `stop` tokens like the new ones, that begins with the old ones."""
        buffer = np.empty((*new.shape[:2], max(16, 2 * stop), new.shape[3]), new.dtype)
        if old is not None:
            buffer[:, :, : self.length] = old[:, :, : self.length]
        return buffer

    def select(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch."""
        for name in ("key", "value", "state"):
            array = getattr(self, name)
            if array is not None:
                setattr(self, name, array[rows])


class MultiHeadCache(NamedTuple):
    """The caches of the steps, in the order in which they ran."""

    query_linear: LinearCache
    key_linear: LinearCache | None
    value_linear: LinearCache | None
    query_norm: NormCache | None
    key_norm: NormCache | None
    query_rotary: RotaryCache | None
    key_rotary: RotaryCache | None
    attention: AttentionCache | CausalCache | LinearAttentionCache
    output_linear: LinearCache
    config: ModelConfig


def multi_head_attention_forward(
    x: np.ndarray,
    memory: np.ndarray | None,
    parameters: Parameters,
    config: ModelConfig,
    mask: np.ndarray | None = None,
    causal: bool = False,
    past: KeyValue | None = None,
    cross: bool = False,
) -> tuple[np.ndarray, MultiHeadCache]:
    """concat(head_1, ..., head_H) W_output^T, each head attending with its own projections (section 3.2.2 of the paper).

    Shapes: x (B, T, D), of which the queries are made; memory (B, S, D), of which keys and values are made: what an encoder
    has given, or None for x itself (self-attention);
    mask broadcastable to (B, H, T, S); output (B, T, D). Positions that turn or penalise (rotary, ALiBi) and the window
    belong to self-attention alone: `cross` switches them off. `past` continues earlier tokens and takes the new ones in; in
    cross-attention it is filled by the first call and stands for the memory afterwards. Then there is no backward. Raises
    ValueError for cross-attention over neither or both, and for a memory without `cross`.
    """
    if memory is not None and not cross:
        raise ValueError("memory: expected none in self-attention, got one")
    filled = cross and memory is None
    if cross and filled != (past is not None and past.key is not None):
        got = "neither" if filled else "both"
        raise ValueError(f"memory: expected one for cross-attention, or a past that was filled by one, got {got}")
    inputs = x if memory is None else memory
    query, query_linear = named_linear_forward(x, parameters, "query")
    query = split_heads(query, config.heads)  # (B, H, T, K)
    key_linear = value_linear = None
    if filled:
        assert past is not None and past.key is not None and past.value is not None
        key, value = past.key[:, :, : past.length], past.value[:, :, : past.length]  # (B, G, S, K)
    else:
        key, key_linear = named_linear_forward(inputs, parameters, "key")
        value, value_linear = named_linear_forward(inputs, parameters, "value")
        key, value = split_heads(key, config.key_heads), split_heads(value, config.key_heads)  # (B, G, S, K)

    query_norm = key_norm = None
    if config.qk_norm:
        query, query_norm = rms_norm_forward(query, parameters["query_norm.weight"], config.norm_epsilon)
        if not filled:
            key, key_norm = rms_norm_forward(key, parameters["key_norm.weight"], config.norm_epsilon)
    query_rotary = key_rotary = None
    if config.position == "rotary" and not cross:
        start = 0 if past is None else past.length
        query, query_rotary = rotary_forward(query, start + np.arange(query.shape[2]))
        key, key_rotary = rotary_forward(key, start + np.arange(key.shape[2]))
    if past is not None and not filled and (cross or config.attention == "softmax"):
        key, value = past.append(key, value)

    if past is not None:  # then there is no backward pass
        key_linear = value_linear = None
    attended, attention = _attend(query, key, value, config, mask, causal, past, cross)
    output, output_linear = named_linear_forward(merge_heads(attended), parameters, "output")  # (B, T, D)
    cache = MultiHeadCache(
        query_linear, key_linear, value_linear, query_norm, key_norm, query_rotary, key_rotary,
        attention, output_linear, config,
    )  # fmt: skip
    return output, cache


def multi_head_attention_backward(d_output: np.ndarray, cache: MultiHeadCache) -> tuple[np.ndarray, np.ndarray, Parameters]:
    """Gradients of x (through the queries), of the memory (through keys and values), and of the parameters. There are none
    of a forward with a `past`.

    In self-attention x is its own memory, and its gradient the sum of the two. Each line inverts one of the forward.
    """
    assert cache.key_linear is not None and cache.value_linear is not None, "a forward with a past has no backward"
    config = cache.config
    d_merged, d_parameters = named_linear_backward(d_output, cache.output_linear, "output")
    d_attended = split_heads(d_merged, config.heads)
    if isinstance(cache.attention, LinearAttentionCache):
        d_query, d_key, d_value = linear_attention_backward(d_attended, cache.attention)
    elif isinstance(cache.attention, CausalCache):
        d_query, d_key, d_value = _causal_attention_backward(d_attended, cache.attention)
    else:
        d_query, d_key, d_value = scaled_dot_product_attention_backward(d_attended, cache.attention)
    d_key, d_value = sum_groups(d_key, config.key_heads), sum_groups(d_value, config.key_heads)
    if cache.query_rotary is not None and cache.key_rotary is not None:
        d_query, d_key = rotary_backward(d_query, cache.query_rotary), rotary_backward(d_key, cache.key_rotary)
    if cache.query_norm is not None and cache.key_norm is not None:
        d_query, d_parameters["query_norm.weight"] = rms_norm_backward(d_query, cache.query_norm)
        d_key, d_parameters["key_norm.weight"] = rms_norm_backward(d_key, cache.key_norm)
    d_x, d_query_parameters = named_linear_backward(merge_heads(d_query), cache.query_linear, "query")
    d_from_key, d_key_parameters = named_linear_backward(merge_heads(d_key), cache.key_linear, "key")
    d_from_value, d_value_parameters = named_linear_backward(merge_heads(d_value), cache.value_linear, "value")
    d_parameters |= d_query_parameters | d_key_parameters | d_value_parameters
    return d_x, d_from_key + d_from_value, d_parameters


def _attend(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    config: ModelConfig,
    mask: np.ndarray | None,
    causal: bool,
    past: KeyValue | None,
    cross: bool,
) -> tuple[np.ndarray, AttentionCache | CausalCache | LinearAttentionCache]:
    """Run the form of attention that the config names."""
    slopes = alibi_slopes(config.heads, query.dtype) if config.position == "alibi" and not cross else None
    window = None if cross else config.window
    alone = past is not None and query.shape[2] == 1 and slopes is None
    if config.attention == "softmax" and alone and _for_all_heads(mask):
        return _attend_last(query, key, value, mask, window, config.softcap)
    every = query, repeat_heads(key, config.heads), repeat_heads(value, config.heads)
    if config.attention == "linear":
        own = None if cross else past
        if mask is not None:  # of earlier tokens the state holds what was not masked
            mask = np.atleast_1d(mask)
            mask = mask[..., mask.shape[-1] - key.shape[2] :]
        output, linear = linear_attention_forward(*every, mask, causal=causal, state=None if own is None else own.state)
        if own is not None:
            own.state, own.length = linear.state, own.length + key.shape[2]
        return output, linear
    options: dict[str, Any] = {"window": window, "slopes": slopes, "softcap": config.softcap}
    cache: AttentionCache | CausalCache
    if causal and mask is None and ROWS < query.shape[2] == key.shape[2]:
        output, cache = _causal_attention_forward(*every, **options)
    else:
        output, cache = scaled_dot_product_attention_forward(*every, mask, causal=causal, **options)
    return output, cache


def _attend_last(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None,
    window: int | None,
    softcap: float | None,
) -> tuple[np.ndarray, AttentionCache]:
    """Attention of one query, the last, without a backward pass: query (B, H, 1, K), key and value (B, G, S, K).

    No key is copied: heads that share keys are rows of one query matrix, and beyond the window nothing is read.
    """
    (B, H, _, K), S = query.shape, key.shape[2]
    first = 0 if window is None else -window
    key, value = key[:, :, first:], value[:, :, first:]
    mask = None if mask is None else np.atleast_2d(mask)[..., first:]
    rows = query.reshape(B, key.shape[1], H // key.shape[1], K)  # (B, G, H/G, K)
    output, cache = scaled_dot_product_attention_forward(rows, key, value, mask, softcap=softcap)
    weights = cache.weights.reshape(B, H, 1, key.shape[2])
    if unseen := S - key.shape[2]:
        weights = np.concatenate([np.zeros_like(weights, shape=(B, H, 1, unseen)), weights], axis=3)
    return output.reshape(B, H, 1, K), cache._replace(weights=weights)


def _for_all_heads(mask: np.ndarray | None) -> bool:
    """Whether a mask (..., H, T, S) is the same for all heads."""
    return mask is None or mask.ndim < 3 or mask.shape[-3] == 1


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(B, T, H K) -> (B, H, T, K): head h takes the channels hK to (h+1)K."""
    B, T, width = x.shape
    return x.reshape(B, T, heads, width // heads).swapaxes(1, 2)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(B, H, T, K) -> (B, T, H K), the inverse of split_heads."""
    B, H, T, K = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * K)


def repeat_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(B, G, S, K) -> (B, H, S, K): H/G neighbouring query heads share one key-value head (Ainslie et al. 2023)."""
    return x if x.shape[1] == heads else np.repeat(x, heads // x.shape[1], axis=1)


def sum_groups(d_x: np.ndarray, groups: int) -> np.ndarray:
    """The transpose of repeat_heads: a shared head collects the gradients of all that used it."""
    B, H, S, K = d_x.shape
    return d_x if groups == H else d_x.reshape(B, groups, H // groups, S, K).sum(axis=2)
