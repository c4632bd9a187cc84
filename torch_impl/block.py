"""Blocks: attention and feed-forward, each inside a residual connection with a norm."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reference_numpy.config import ModelConfig
from torch_impl.attention import KeyValue, MultiHeadAttention
from torch_impl.dropout import Generator, Share, dropout, dropout_mask
from torch_impl.feed_forward import FeedForward
from torch_impl.normalization import Norm
from torch_impl.token_shift import LastToken, token_shift


def drop(x: Tensor, config: ModelConfig, generator: Generator | None) -> Tensor:
    """Dropout at the config's rate; nothing in evaluation (no generator) and where the rate is 0."""
    if generator is None or config.dropout == 0:
        return x
    return dropout(x, config.dropout, dropout_mask(tuple(x.shape), config.dropout, generator, x.device))


class BlockPast:
    """What decoding keeps for one block: keys and values, `memory` for the cross-attention's, and for the token shift what
    attention and feed-forward read last."""

    def __init__(self, room: int = 0) -> None:
        self.own = KeyValue(room)
        self.memory = KeyValue()
        self.attention_last = LastToken()
        self.feed_forward_last = LastToken()

    def select(self, rows: Tensor) -> None:
        """Go on with these rows of the batch."""
        for part in (self.own, self.memory, self.attention_last, self.feed_forward_last):
            part.select(rows)


class Block(nn.Module):
    """Self-attention, cross-attention over the memory if `cross`, feed-forward; each with its residual and norm."""

    def __init__(self, config: ModelConfig, cross: bool = False) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = Norm(config, config.width)
        self.attention = MultiHeadAttention(config)
        if cross:
            self.cross_attention_norm = Norm(config, config.width)
            self.cross_attention = MultiHeadAttention(config, cross=True)
        self.cross = cross
        self.feed_forward_norm = Norm(config, config.width)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        generator: Generator | None = None,
        past: BlockPast | None = None,
        keep: list[Tensor] | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Shapes: x (B, T, D), mask broadcastable to (B, H, T, S), memory (B, S', D) and its mask to (B, H, T, S').

        `padding` (B, T) bool, True for a real token, is for the token shift."""
        own_past, memory_past = (None, None) if past is None else (past.own, past.memory)
        attention_last, feed_forward_last = (None, None) if past is None else (past.attention_last, past.feed_forward_last)

        def shifted(h: Tensor, last: LastToken | None) -> Tensor:
            return token_shift(h, padding, last) if self.config.token_shift else h

        def attention(h: Tensor) -> Tensor:
            h = shifted(h, attention_last)
            return self.attention(h, None, mask, causal, own_past, keep)

        def cross_attention(h: Tensor) -> Tensor:
            return self.cross_attention(h, memory, memory_mask, past=memory_past, keep=keep)

        def feed_forward(h: Tensor) -> Tensor:
            updated: Tensor = self.feed_forward(shifted(h, feed_forward_last))
            return updated

        x = self._residual(x, attention, self.attention_norm, generator)
        if self.cross:
            x = self._residual(x, cross_attention, self.cross_attention_norm, generator)
        return self._residual(x, feed_forward, self.feed_forward_norm, generator)

    def _residual(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: Norm, generator: Generator | None) -> Tensor:
        """pre: x + Dropout(f(Norm(x))); post: Norm(x + Dropout(f(x)))."""
        if self.config.norm_position == "pre":
            return x + drop(sublayer(norm(x)), self.config, generator)
        return norm(x + drop(sublayer(x), self.config, generator))


def recomputed(block: nn.Module, generator: Generator | None, *arguments: Any) -> Tensor:
    """block(*arguments), whose inside is not kept for the backward pass but computed again there (Chen et al. 2016).

    The second time it must drop the same units, so the stream is rewound for it; torch rewinds a device's own."""
    assert isinstance(block, Block)
    stream = generator.generator if isinstance(generator, Share) else generator
    if stream is None or isinstance(stream, torch.device) or block.config.dropout == 0:
        return checkpoint(block, *arguments, use_reentrant=False)
    contexts = contextlib.nullcontext(), _Rewound(stream)
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts)


class _Rewound:
    """Inside, the stream is where it was when this was made; afterwards where it was before. Used in the backward pass."""

    def __init__(self, stream: np.random.Generator | torch.Generator) -> None:
        self._stream, self._start = stream, _state(stream)

    def __enter__(self) -> None:
        self._then = _state(self._stream)
        _set_state(self._stream, self._start)

    def __exit__(self, *_: object) -> None:
        _set_state(self._stream, self._then)


def _state(stream: np.random.Generator | torch.Generator) -> Any:
    return stream.bit_generator.state if isinstance(stream, np.random.Generator) else stream.get_state()


def _set_state(stream: np.random.Generator | torch.Generator, state: Any) -> None:
    if isinstance(stream, np.random.Generator):
        stream.bit_generator.state = state
    else:
        stream.set_state(state)
