"""Scaled dot-product attention and multi-head attention (Vaswani et al. 2017, section 3.2)."""

import math

import torch
from torch import Tensor, nn

from reference_numpy.config import ModelConfig
from torch_impl.derivative import in_torch_func
from torch_impl.flash_attention import flash_attention
from torch_impl.linear import Linear, PackedLinear, are_joinable, linear
from torch_impl.linear_attention import linear_attention
from torch_impl.mask import allowed_pairs, check_attention_shapes, only_seen
from torch_impl.normalization import Norm
from torch_impl.position import alibi_bias, alibi_slopes, rotary
from torch_impl.softmax import softmax


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    slopes: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(query key^T / sqrt(K)) value, step by step, and the weights: for looking, and for the soft cap.

    Shapes: query (B, H, T, K), key and value (B, H, S, K), mask bool, broadcastable to (B, H, T, S); output (B, H, T, K),
    weights (B, H, T, S). The edge cases are the spec's. Raises ValueError for shapes that do not fit.
    """
    check_attention_shapes(query, key, value, mask)
    T, S, K = query.shape[2], key.shape[2], query.shape[3]
    allowed = allowed_pairs(T, S, mask, causal, window, query.device)
    all_seen = mask is None and window is None  # by the last query
    if allowed is not None and not all_seen:
        seen = allowed.any(dim=-2)[..., None]  # (B, H, S, 1)
        key, value = only_seen(key, seen), only_seen(value, seen)
    scores = (query * (1 / math.sqrt(K))) @ key.mT  # (B, H, T, S)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if slopes is not None:
        scores = scores + alibi_bias(slopes, T, S)
    weights = softmax(scores, allowed)
    return weights @ value, weights


class KeyValue:
    """What decoding keeps of the tokens so far: keys (already turned) and values in buffers (B, G, room, K) that double
    when they are full, or linear attention's state. `length` counts the tokens; up to `room` of them need one buffer."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.state: Tensor | None = None
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, G, n, K) behind the old ones; all of them, (B, G, length, K)."""
        stop = self.length + key.shape[2]
        if self.key is None or self.value is None or stop > self.key.shape[2]:
            self.key, self.value = self._grown(self.key, key, stop), self._grown(self.value, value, stop)
        self.key[:, :, self.length : stop] = key
        self.value[:, :, self.length : stop] = value
        self.length = stop
        return self.key[:, :, :stop], self.value[:, :, :stop]

    def _grown(self, old: Tensor | None, new: Tensor, stop: int) -> Tensor:
        """A buffer with room for 2 `stop` tokens like the new ones, that begins with the old ones."""
        room = self.room if stop <= self.room else max(16, 2 * stop)
        buffer = new.new_empty((*new.shape[:2], room, new.shape[3]))
        if old is not None:
            buffer[:, :, : self.length] = old[:, :, : self.length]
        return buffer

    def select(self, rows: Tensor) -> None:
        """Go on with these rows of the batch."""
        for name in ("key", "value", "state"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor[rows])


class MultiHeadAttention(nn.Module):
    """concat(head_1, ..., head_H) W_output^T, each head attending with its own projections.

    `cross` switches off what belongs to self-attention alone: rotation, ALiBi, window.
    """

    def __init__(self, config: ModelConfig, cross: bool = False) -> None:
        super().__init__()
        self.config, self.cross = config, cross
        key_width = config.key_heads * config.head_width
        self.query = Linear(config.width, config.width, config.bias)
        self.key = Linear(config.width, key_width, config.bias)
        self.value = Linear(config.width, key_width, config.bias)
        self.together: PackedLinear | None = None  # the three as one: see torch_impl/decode.py
        if config.qk_norm:
            self.query_norm = Norm(config, config.head_width, "rms")
            self.key_norm = Norm(config, config.head_width, "rms")
        self.output = Linear(config.width, config.width, config.bias)

    @property
    def projections(self) -> tuple[Linear, Linear, Linear]:
        """Of queries, keys and values, unless they are packed into `together`."""
        return self.query, self.key, self.value

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        past: KeyValue | None = None,
        keep: list[Tensor] | None = None,
    ) -> Tensor:
        """Shapes: x (B, T, D); memory (B, S, D) or None for x itself; mask broadcastable to (B, H, T, S); output (B, T, D).

        `past` continues earlier tokens and takes the new ones in; in cross-attention it is filled by the first call and
        stands for the memory afterwards. A list `keep` receives the weights (B, H, T, S). Raises ValueError as the spec
        does.
        """
        config = self.config
        start = 0 if past is None or self.cross else past.length
        if memory is not None and not self.cross:
            raise ValueError("memory: expected none in self-attention, got one")
        if self.cross and (memory is None) != (past is not None and past.key is not None):
            got = "neither" if memory is None else "both"
            raise ValueError(f"memory: expected one for cross-attention, or a past that was filled by one, got {got}")
        if self.cross and memory is None:
            assert past is not None and past.key is not None and past.value is not None
            query = split_heads(self.query(x), config.heads)
            query = self.query_norm(query) if config.qk_norm else query
            key, value = past.key[:, :, : past.length], past.value[:, :, : past.length]
        else:
            query, key, value = self._project(x, memory)
            if config.qk_norm:
                query, key = self.query_norm(query), self.key_norm(key)
            if config.position == "rotary" and not self.cross:
                query, key = rotary(query, start), rotary(key, start)
            if past is not None and (self.cross or config.attention == "softmax"):
                key, value = past.append(key, value)
        attended = self._attend(query, key, value, mask, causal, past, keep)
        return self.output(merge_heads(attended))

    def _project(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), keys and values (B, G, S, K). In training one product makes all three of self-attention;
        in evaluation it would take longer to put the weights together."""
        apart = self.together is None and not (torch.is_grad_enabled() and are_joinable(self.projections))
        if memory is not None or apart:
            memory = x if memory is None else memory
            query, key, value = self.query(x), self.key(memory), self.value(memory)
        else:
            together = self._project_together(x)  # (B, T, (H + 2G) K)
            key_width = self.config.key_heads * self.config.head_width
            query, key, value = together.split((self.config.width, key_width, key_width), dim=-1)
        heads, groups = self.config.heads, self.config.key_heads
        return split_heads(query, heads), split_heads(key, groups), split_heads(value, groups)

    def _project_together(self, x: Tensor) -> Tensor:
        if self.together is not None:
            together: Tensor = self.together(x)
            return together
        weight = torch.cat([layer.weight for layer in self.projections])
        biases: list[Tensor] = [layer.bias for layer in self.projections if layer.bias is not None]
        return linear(x, weight, torch.cat(biases) if biases else None)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        past: KeyValue | None,
        keep: list[Tensor] | None,
    ) -> Tensor:
        """Run the form of attention that the config names."""
        config = self.config
        slopes = None
        if config.position == "alibi" and not self.cross:
            slopes = alibi_slopes(config.heads, query.dtype, query.device)
        window = None if self.cross else config.window
        alone = past is not None and query.shape[2] == 1 and slopes is None and keep is None
        if config.attention == "softmax" and alone and _for_all_heads(mask):
            return self._attend_last(query, key, value, mask, window)
        key, value = repeat_heads(key, config.heads), repeat_heads(value, config.heads)
        if config.attention == "linear":
            state = None if past is None or self.cross else past.state
            if mask is not None:  # of earlier tokens the state holds what was not masked
                mask = torch.atleast_1d(mask)
                mask = mask[..., mask.shape[-1] - key.shape[2] :]
            output, state = linear_attention(query, key, value, mask, causal=causal, state=state)
            if past is not None and not self.cross:
                past.state, past.length = state, past.length + key.shape[2]
            return output
        return self._softmax_attention(query, key, value, mask, causal, window, slopes, keep)

    def _attend_last(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int | None) -> Tensor:
        """Attention of one query, the last: query (B, H, 1, K), key and value (B, G, S, K).

        No key is copied: heads that share keys are rows of one query matrix, and beyond the window nothing is read."""
        B, H, _, K = query.shape
        first = 0 if window is None else -window
        key, value = key[:, :, first:], value[:, :, first:]
        mask = None if mask is None else torch.atleast_2d(mask)[..., first:]
        rows = query.reshape(B, key.shape[1], H // key.shape[1], K)  # (B, G, H/G, K)
        return self._softmax_attention(rows, key, value, mask).reshape(B, H, 1, K)

    def _softmax_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool = False,
        window: int | None = None,
        slopes: Tensor | None = None,
        keep: list[Tensor] | None = None,
    ) -> Tensor:
        """Softmax attention, the fused form unless its weights or its scores are wanted."""
        softcap = self.config.softcap
        explicit = keep is not None or softcap is not None or _compiler_fuses(query, key)
        if not explicit and not in_torch_func():  # the fused kernels have no rules for all of its transforms
            return flash_attention(query, key, value, mask, causal=causal, window=window, slopes=slopes)
        output, weights = scaled_dot_product_attention(
            query, key, value, mask, causal=causal, window=window, slopes=slopes, softcap=softcap
        )
        if keep is not None:
            keep.append(weights)
        return output


def _for_all_heads(mask: Tensor | None) -> bool:
    """Whether a mask (..., H, T, S) is the same for all heads."""
    return mask is None or mask.ndim < 3 or mask.shape[-3] == 1


def _compiler_fuses(query: Tensor, key: Tensor) -> bool:
    """Whether torch.compile, which fuses the steps of few scores, makes them quicker than the fused kernel for a CPU."""
    return torch.compiler.is_compiling() and query.device.type == "cpu" and query.shape[2] * key.shape[2] <= FEW_SCORES


FEW_SCORES = 256 * 256  # of a head; measured: up to so many a step takes no longer, and in bfloat16 0.85 of the time


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H K) -> (B, H, T, K)."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, K) -> (B, T, H K)."""
    return x.transpose(1, 2).flatten(2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """(B, G, S, K) -> (B, H, S, K): H/G neighbouring query heads share one key-value head."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
