"""Blocks: attention and feed-forward, each inside a residual connection with a norm (Vaswani et al. 2017, section 3.1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from reference_numpy.attention import (
    KeyValue,
    MultiHeadCache,
    multi_head_attention_backward,
    multi_head_attention_forward,
)
from reference_numpy.config import ModelConfig
from reference_numpy.dropout import DropoutCache, dropout_backward, dropout_forward, dropout_mask
from reference_numpy.feed_forward import FeedForwardCache, feed_forward_backward, feed_forward_forward
from reference_numpy.normalization import NormCache, norm_backward, norm_forward
from reference_numpy.parameters import Parameters, parts, prefixed
from reference_numpy.token_shift import LastToken, TokenShiftCache, token_shift_backward, token_shift_forward

Sublayer = Callable[[np.ndarray], tuple[np.ndarray, Any]]


def draw_dropout(x: np.ndarray, config: ModelConfig, generator: np.random.Generator | None) -> np.ndarray | None:
    """Which units of x to keep: None in evaluation (no generator) and where the rate is 0."""
    return None if generator is None or config.dropout == 0 else dropout_mask(x.shape, config.dropout, generator)


class ResidualCache(NamedTuple):
    """The caches of norm, sub-layer and dropout."""

    norm: NormCache
    sublayer: Any
    dropout: DropoutCache


def pre_norm_forward(
    x: np.ndarray, sublayer: Sublayer, norm: Parameters, config: ModelConfig, generator: np.random.Generator | None
) -> tuple[np.ndarray, ResidualCache]:
    """y = x + Dropout(f(Norm(x))): the residual stream itself is never normalised (Xiong et al. 2020)."""
    normed, norm_cache = norm_forward(x, norm, config)
    update, sublayer_cache = sublayer(normed)
    update, dropout_cache = dropout_forward(update, config.dropout, draw_dropout(update, config, generator))
    return x + update, ResidualCache(norm_cache, sublayer_cache, dropout_cache)


def pre_norm_backward(
    d_y: np.ndarray, sublayer_backward: Sublayer, cache: ResidualCache, config: ModelConfig
) -> tuple[np.ndarray, Parameters, Any]:
    """y = x + u: d_y goes on to x unchanged, and through the sub-layer and the norm; x sums both. Also the parameters'
    gradients: the norm's, and whatever the sub-layer's backward returned."""
    d_normed, d_sublayer = sublayer_backward(dropout_backward(d_y, cache.dropout))
    d_x, d_norm = norm_backward(d_normed, cache.norm, config)
    return d_y + d_x, d_norm, d_sublayer


def post_norm_forward(
    x: np.ndarray, sublayer: Sublayer, norm: Parameters, config: ModelConfig, generator: np.random.Generator | None
) -> tuple[np.ndarray, ResidualCache]:
    """y = Norm(x + Dropout(f(x))), as in the 2017 paper, sections 3.1 and 5.4."""
    update, sublayer_cache = sublayer(x)
    update, dropout_cache = dropout_forward(update, config.dropout, draw_dropout(update, config, generator))
    y, norm_cache = norm_forward(x + update, norm, config)
    return y, ResidualCache(norm_cache, sublayer_cache, dropout_cache)


def post_norm_backward(
    d_y: np.ndarray, sublayer_backward: Sublayer, cache: ResidualCache, config: ModelConfig
) -> tuple[np.ndarray, Parameters, Any]:
    """y = Norm(x + u): through the norm first; then, as above, one path straight to x and one through the sub-layer."""
    d_sum, d_norm = norm_backward(d_y, cache.norm, config)
    d_x, d_sublayer = sublayer_backward(dropout_backward(d_sum, cache.dropout))
    return d_sum + d_x, d_norm, d_sublayer


RESIDUAL = {"pre": (pre_norm_forward, pre_norm_backward), "post": (post_norm_forward, post_norm_backward)}


class BlockPast:
    """What decoding keeps for one block: keys and values, `memory` for the cross-attention's, and for the token shift what
    attention and feed-forward read last."""

    def __init__(self) -> None:
        self.own = KeyValue()
        self.memory = KeyValue()
        self.attention_last = LastToken()
        self.feed_forward_last = LastToken()

    def select(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch."""
        for part in (self.own, self.memory, self.attention_last, self.feed_forward_last):
            part.select(rows)


class BlockCache(NamedTuple):
    """One residual cache per sub-layer, cross-attention only in a decoder block of an encoder-decoder; one of the shift,
    which is the same for both that read shifted tokens."""

    attention: ResidualCache
    cross_attention: ResidualCache | None
    feed_forward: ResidualCache
    shift: TokenShiftCache
    config: ModelConfig


def block_forward(
    x: np.ndarray,
    parameters: Parameters,
    config: ModelConfig,
    mask: np.ndarray | None = None,
    causal: bool = False,
    memory: np.ndarray | None = None,
    memory_mask: np.ndarray | None = None,
    generator: np.random.Generator | None = None,
    past: BlockPast | None = None,
    padding: np.ndarray | None = None,
) -> tuple[np.ndarray, BlockCache]:
    """Self-attention, cross-attention in the decoder of an encoder-decoder, feed-forward; each with residual and norm.

    Shapes: x (B, T, D), mask broadcastable to (B, H, T, S), memory (B, S', D) and its mask to (B, H, T, S'); output
    (B, T, D). `generator` switches dropout on and is its random stream. `past` makes the block continue earlier tokens and
    takes the new ones in; it also stands for the memory. `padding` (B, T) bool, True for a real token, is for the token
    shift.
    """
    residual_forward, _ = RESIDUAL[config.norm_position]
    own = parts(parameters)
    own_past, memory_past = (None, None) if past is None else (past.own, past.memory)
    attention_last, feed_forward_last = (None, None) if past is None else (past.attention_last, past.feed_forward_last)

    def shifted(h: np.ndarray, last: LastToken | None) -> np.ndarray:
        return token_shift_forward(h, padding, last)[0] if config.token_shift else h

    def attention(h: np.ndarray) -> tuple[np.ndarray, MultiHeadCache]:
        h = shifted(h, attention_last)
        return multi_head_attention_forward(h, None, own["attention"], config, mask, causal, own_past)

    def cross_attention(h: np.ndarray) -> tuple[np.ndarray, MultiHeadCache]:
        return multi_head_attention_forward(
            h, memory, own["cross_attention"], config, memory_mask, past=memory_past, cross=True
        )

    def feed_forward(h: np.ndarray) -> tuple[np.ndarray, FeedForwardCache]:
        return feed_forward_forward(shifted(h, feed_forward_last), own["feed_forward"], config)

    x, attention_cache = residual_forward(x, attention, own["attention_norm"], config, generator)
    cross_cache = None
    if "cross_attention" in own:
        x, cross_cache = residual_forward(x, cross_attention, own["cross_attention_norm"], config, generator)
    x, feed_cache = residual_forward(x, feed_forward, own["feed_forward_norm"], config, generator)
    return x, BlockCache(attention_cache, cross_cache, feed_cache, TokenShiftCache(padding), config)


def block_backward(d_y: np.ndarray, cache: BlockCache) -> tuple[np.ndarray, np.ndarray | None, Parameters]:
    """Gradients of x, of the memory (None without one) and of the parameters: the sub-layers in reverse order."""
    config = cache.config
    _, residual_backward = RESIDUAL[config.norm_position]

    def unshifted(d: np.ndarray) -> np.ndarray:
        return token_shift_backward(d, cache.shift) if config.token_shift else d

    def feed_forward(d: np.ndarray) -> tuple[np.ndarray, Parameters]:
        d_x, d_own = feed_forward_backward(d, cache.feed_forward.sublayer)
        return unshifted(d_x), d_own

    def attention(d: np.ndarray) -> tuple[np.ndarray, Parameters]:
        d_x, d_memory, d_own = multi_head_attention_backward(d, cache.attention.sublayer)
        return unshifted(d_x + d_memory), d_own  # self-attention: x is its own memory

    d_y, d_norm, d_own = residual_backward(d_y, feed_forward, cache.feed_forward, config)
    d_parameters = prefixed("feed_forward_norm", d_norm) | prefixed("feed_forward", d_own)
    d_memory = None
    if (cross := cache.cross_attention) is not None:

        def cross_attention(d: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, Parameters]]:
            d_x, d_memory, d_own = multi_head_attention_backward(d, cross.sublayer)
            return d_x, (d_memory, d_own)

        d_y, d_norm, (d_memory, d_own) = residual_backward(d_y, cross_attention, cross, config)
        d_parameters |= prefixed("cross_attention_norm", d_norm) | prefixed("cross_attention", d_own)
    d_x, d_norm, d_own = residual_backward(d_y, attention, cache.attention, config)
    d_parameters |= prefixed("attention_norm", d_norm) | prefixed("attention", d_own)
    return d_x, d_memory, d_parameters
