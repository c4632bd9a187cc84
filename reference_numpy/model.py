"""The whole model: decoder-only language model, encoder, or encoder-decoder (Vaswani et al. 2017, figure 1)."""

import math
from typing import NamedTuple

import numpy as np

from reference_numpy.block import BlockCache, BlockPast, block_backward, block_forward, draw_dropout
from reference_numpy.config import ModelConfig
from reference_numpy.dropout import DropoutCache, dropout_backward, dropout_forward
from reference_numpy.embedding import EmbeddingCache, embedding_backward, embedding_forward
from reference_numpy.linear import LinearCache, linear_backward, linear_forward
from reference_numpy.loss import cross_entropy_backward, cross_entropy_forward
from reference_numpy.mask import over_keys
from reference_numpy.normalization import NormCache, norm_backward, norm_forward
from reference_numpy.parameters import Parameters, parts, prefixed, scope
from reference_numpy.position import sinusoidal_table


class EmbedCache(NamedTuple):
    """Caches of the token and position tables and of dropout."""

    token: EmbeddingCache
    position: EmbeddingCache | None
    dropout: DropoutCache
    scale: float


class StackCache(NamedTuple):
    """Caches of the embedding, of every block, and of the final norm (pre-norm only)."""

    embed: EmbedCache
    blocks: list[BlockCache]
    final_norm: NormCache | None


class ModelCache(NamedTuple):
    """Caches of the encoder (encoder-decoder only), of the stack that gives the logits, and of the head."""

    encoder: StackCache | None
    stack: StackCache
    head: LinearCache
    config: ModelConfig


def model_forward(
    parameters: Parameters,
    config: ModelConfig,
    tokens: np.ndarray,
    *,
    padding: np.ndarray | None = None,
    source: np.ndarray | None = None,
    source_padding: np.ndarray | None = None,
    generator: np.random.Generator | None = None,
    past: list[BlockPast] | None = None,
) -> tuple[np.ndarray, ModelCache]:
    """Logits (B, T, V) for the next token (decoders) or for each token (encoder).

    Shapes: tokens (B, T) integers; source (B, S) integers, for an encoder-decoder; padding (B, T) and source_padding (B, S)
    bool, True for a real token. `generator` switches dropout on and is its random stream. `past`, one empty BlockPast per
    block at first, makes the call continue earlier tokens: then only the new ones are given, padding covers all of them,
    and an encoder-decoder needs no source, but its source_padding again. There is no backward pass then.
    Raises ValueError for a source where none belongs or none where one does, for padding of another shape, for a token out
    of range, and for a length beyond learned positions.
    """
    start, S = (0, 0) if past is None else (past[0].own.length, past[0].memory.length)
    started = start > 0
    wants_source = config.kind == "encoder_decoder" and not started
    if wants_source != (source is not None):
        expected, got = ("one", "none") if wants_source else ("none", "one")
        goes_on = " that goes on from a past" if started else ""
        raise ValueError(f"source: expected {expected} for kind {config.kind}{goes_on}, got {got}")
    B, T = tokens.shape
    mask = over_keys(padding, "padding", B, start + T)
    S = S if source is None else source.shape[1]
    source_mask = over_keys(source_padding, "source_padding", B, S)
    encoder_cache = memory = None
    if source is not None:
        memory, encoder_cache = _stack_forward(
            source, parameters, "encoder.", config, source_mask,
            causal=False, memory=None, memory_mask=None, generator=generator, past=None,
        )  # fmt: skip
    prefix, causal = ("decoder." if config.kind == "encoder_decoder" else ""), config.kind != "encoder"
    hidden, stack_cache = _stack_forward(
        tokens, parameters, prefix, config, mask, causal, memory, source_mask, generator, past
    )
    head = parameters["token_embedding.weight"] if config.tied else parameters["head.weight"]
    logits, head_cache = linear_forward(hidden, head)  # (B, T, V)
    return logits, ModelCache(encoder_cache, stack_cache, head_cache, config)


def model_backward(d_logits: np.ndarray, cache: ModelCache) -> Parameters:
    """Gradients of all parameters, under their names.

    The token table was used up to three times: by the decoder, by the encoder, and transposed as the head. Its gradient is
    the sum over its uses; so is that of the position table.
    """
    config = cache.config
    d_hidden, d_head, _ = linear_backward(d_logits, cache.head)
    prefix = "decoder." if config.kind == "encoder_decoder" else ""
    d_parameters, d_memory = _stack_backward(d_hidden, cache.stack, prefix, config)
    if cache.encoder is not None:
        assert d_memory is not None
        d_encoder, _ = _stack_backward(d_memory, cache.encoder, "encoder.", config)
        d_parameters = _add(d_parameters, d_encoder)
    return _add(d_parameters, {"token_embedding.weight" if config.tied else "head.weight": d_head})


def loss_and_gradients(
    parameters: Parameters,
    config: ModelConfig,
    tokens: np.ndarray,
    targets: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    count: int | None = None,
    padding: np.ndarray | None = None,
    source: np.ndarray | None = None,
    source_padding: np.ndarray | None = None,
    generator: np.random.Generator | None = None,
) -> tuple[np.ndarray, Parameters]:
    """Mean cross-entropy in nats per token that counts, and its gradients: one training step's worth of work.

    Shapes: targets (B, T), -1 for one that does not count; all else as in model_forward and cross_entropy_forward. The loss
    has shape (), a gradient name and shape of its parameter.
    """
    logits, cache = model_forward(
        parameters, config, tokens, padding=padding, source=source, source_padding=source_padding, generator=generator
    )
    loss, loss_cache = cross_entropy_forward(logits, targets, label_smoothing, count)
    return loss, model_backward(cross_entropy_backward(1.0, loss_cache), cache)


def attention_weights(cache: ModelCache) -> dict[str, np.ndarray]:
    """Softmax weights (B, H, T, S) of every attention, by name: "blocks.0.attention", "decoder.blocks.1.cross_attention".

    Raises ValueError for linear attention, which forms no weights.
    """
    if cache.config.attention != "softmax":
        raise ValueError("attention: expected softmax attention to look at, got linear, which forms no weights")
    weights = {}
    own = "decoder." if cache.config.kind == "encoder_decoder" else ""
    for prefix, stack in (("encoder.", cache.encoder), (own, cache.stack)):
        for layer, block in enumerate([] if stack is None else stack.blocks):
            for name in ("attention", "cross_attention"):
                residual = getattr(block, name)
                if residual is not None:
                    weights[f"{prefix}blocks.{layer}.{name}"] = residual.sublayer.attention.weights
    return weights


def _stack_forward(
    tokens: np.ndarray,
    parameters: Parameters,
    prefix: str,
    config: ModelConfig,
    mask: np.ndarray | None,
    causal: bool,
    memory: np.ndarray | None,
    memory_mask: np.ndarray | None,
    generator: np.random.Generator | None,
    past: list[BlockPast] | None,
) -> tuple[np.ndarray, StackCache]:
    """Embedding, L blocks, and the final norm that pre-norm needs, since nothing else normalises its stream."""
    start = 0 if past is None else past[0].own.length
    name = "source" if prefix == "encoder." else "tokens"
    x, embed_cache = _embed_forward(tokens, parameters, config, start, generator, name)
    caches = []
    own = parts(scope(parameters, f"{prefix}blocks"))
    padding = None if mask is None else mask[:, 0, 0, start:]  # of the tokens that are new
    for layer in range(config.layers):
        block_own_past = None if past is None else past[layer]
        x, cache = block_forward(
            x, own[str(layer)], config, mask, causal, memory, memory_mask, generator, block_own_past, padding
        )
        caches.append(cache)
    final_norm = None
    if config.norm_position == "pre":
        x, final_norm = norm_forward(x, scope(parameters, f"{prefix}final_norm"), config)
    return x, StackCache(embed_cache, caches, final_norm)


def _stack_backward(
    d_x: np.ndarray, cache: StackCache, prefix: str, config: ModelConfig
) -> tuple[Parameters, np.ndarray | None]:
    """Gradients of the stack's parameters, and of the memory, which every block used: the sum over the blocks."""
    d_parameters: Parameters = {}
    if cache.final_norm is not None:
        d_x, d_norm = norm_backward(d_x, cache.final_norm, config)
        d_parameters |= prefixed(f"{prefix}final_norm", d_norm)
    d_memory: np.ndarray | None = None
    for layer in reversed(range(config.layers)):
        d_x, d_block_memory, d_block = block_backward(d_x, cache.blocks[layer])
        d_parameters |= prefixed(f"{prefix}blocks.{layer}", d_block)
        if d_block_memory is not None:
            d_memory = d_block_memory if d_memory is None else d_memory + d_block_memory
    return _add(d_parameters, _embed_backward(d_x, cache.embed)), d_memory


def _embed_forward(
    tokens: np.ndarray,
    parameters: Parameters,
    config: ModelConfig,
    start: int,
    generator: np.random.Generator | None,
    name: str,
) -> tuple[np.ndarray, EmbedCache]:
    """Dropout(scale * token embedding + position), positions from `start` on (paper: sections 3.4, 3.5, 5.4)."""
    T = tokens.shape[1]
    x, token_cache = embedding_forward(tokens, parameters["token_embedding.weight"], name)  # (B, T, D)
    scale = math.sqrt(config.width) if config.scale_embedding else 1.0
    if config.scale_embedding:
        x = x * scale
    positions = np.arange(start, start + T)
    position_cache = None
    if config.position == "learned":
        if start + T > config.context:
            raise ValueError(f"{name}: expected at most {config.context}, the learned positions, got {start + T}")
        learned, position_cache = embedding_forward(positions, parameters["position_embedding.weight"])
        x = x + learned
    elif config.position == "sinusoidal":
        x = x + sinusoidal_table(positions, config.width, x.dtype)
    x, dropout_cache = dropout_forward(x, config.dropout, draw_dropout(x, config, generator))
    return x, EmbedCache(token_cache, position_cache, dropout_cache, scale)


def _embed_backward(d_x: np.ndarray, cache: EmbedCache) -> Parameters:
    """The sum forward gives d_x to both tables; a position's row served every sequence of the batch."""
    d_x = dropout_backward(d_x, cache.dropout)
    d_parameters = {}
    if cache.position is not None:
        d_parameters["position_embedding.weight"] = embedding_backward(d_x.sum(axis=0), cache.position)
    return d_parameters | {"token_embedding.weight": embedding_backward(d_x * cache.scale, cache.token)}


def _add(total: Parameters, more: Parameters) -> Parameters:
    """Sum of two sets of gradients: a parameter in both was used twice."""
    return total | {name: total[name] + value if name in total else value for name, value in more.items()}
