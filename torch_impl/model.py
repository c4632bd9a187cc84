"""The whole model: decoder-only language model, encoder, or encoder-decoder."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import Parameters
from torch_impl.block import Block, BlockPast, drop, recomputed
from torch_impl.dropout import Generator
from torch_impl.embedding import Embedding
from torch_impl.linear import Linear, linear
from torch_impl.mask import over_keys
from torch_impl.normalization import Norm
from torch_impl.parameters import initialize, load_parameters, parameters_as_numpy
from torch_impl.position import sinusoidal_table


class Stack(nn.Module):
    """L blocks, and the final norm that pre-norm needs. An encoder-decoder has two; other models are one themselves."""

    blocks: nn.ModuleList
    final_norm: Norm | None
    recompute: bool = False
    """Keep only the input of each block for the backward pass, and compute the rest again there."""

    def _build(self, config: ModelConfig, cross: bool) -> None:
        self.blocks = nn.ModuleList(Block(config, cross) for _ in range(config.layers))
        self.final_norm = Norm(config, config.width) if config.norm_position == "pre" else None

    def _run(
        self,
        x: Tensor,
        mask: Tensor | None,
        causal: bool,
        memory: Tensor | None,
        memory_mask: Tensor | None,
        generator: Generator | None,
        past: list[BlockPast] | None,
        keep: list[Tensor] | None,
    ) -> Tensor:
        padding = None if mask is None else mask[:, 0, 0, mask.shape[3] - x.shape[1] :]  # of the tokens that are new
        for layer, block in enumerate(self.blocks):
            own_past = None if past is None else past[layer]
            arguments = (x, mask, causal, memory, memory_mask, generator, own_past, keep, padding)
            again = self.recompute and torch.is_grad_enabled() and own_past is None and keep is None
            x = recomputed(block, generator, *arguments) if again else block(*arguments)
        return x if self.final_norm is None else self.final_norm(x)


class Encoder(Stack):
    """The encoder of an encoder-decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._build(config, cross=False)


class Decoder(Stack):
    """The decoder of an encoder-decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._build(config, cross=True)


class Transformer(Stack):
    """The twin of the spec's model. `state_dict()` has the spec's flat names and layouts; a tied head has no entry.

    It starts with parameters that torch draws as the spec does; `load_parameters` takes the spec's own. A `generator`, not
    train(), switches dropout on. Before torch.compile of your own call `torch_impl.position.make_tables_constant`.
    """

    residual_dtype: torch.dtype | None = None
    """Inside autocast, the format of the residual stream; None leaves it that of the parameters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocabulary, config.width)
        self.position_embedding = Embedding(config.context, config.width) if config.position == "learned" else None
        if config.kind == "encoder_decoder":
            self.encoder, self.decoder = Encoder(config), Decoder(config)
        else:
            self._build(config, cross=False)
        self.head = None if config.tied else Linear(config.width, config.vocabulary, bias=False)
        initialize(self, config)

    def forward(
        self,
        tokens: Tensor,
        *,
        padding: Tensor | None = None,
        source: Tensor | None = None,
        source_padding: Tensor | None = None,
        generator: Generator | None = None,
        past: list[BlockPast] | None = None,
        keep: list[Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, T, V) for the next token (decoders) or for each token (encoder).

        Shapes: tokens (B, T), source (B, S) integers; padding (B, T), source_padding (B, S) bool, True for a real token.
        `generator` switches dropout on: a NumPy one draws the spec's masks, a torch one draws on its device. `past`, one
        empty BlockPast per block at first, makes the call continue earlier tokens. `keep` receives attention weights.
        With linear attention, which forms no weights, it receives none. Raises ValueError as the spec does, but for tokens
        that are out of range or no integers: see embedding.py.
        """
        config = self.config
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
        memory = None
        if source is not None:
            embedded = self._embed(source, 0, generator, "source")
            memory = self.encoder._run(embedded, source_mask, False, None, None, generator, None, keep)
        x = self._embed(tokens, start, generator)
        stack = self.decoder if config.kind == "encoder_decoder" else self
        x = stack._run(x, mask, config.kind != "encoder", memory, source_mask, generator, past, keep)
        return linear(x, self.token_embedding.weight) if self.head is None else self.head(x)

    def _embed(self, tokens: Tensor, start: int, generator: Generator | None, name: str = "tokens") -> Tensor:
        """Dropout(scale * token embedding + position), positions from `start` on."""
        stop = start + tokens.shape[1]
        x = self.token_embedding(tokens)
        if self.config.scale_embedding:
            x = x * math.sqrt(self.config.width)
        if self.position_embedding is not None:
            if stop > self.config.context:
                raise ValueError(f"{name}: expected at most {self.config.context}, the learned positions, got {stop}")
            x = x + self.position_embedding.weight[start:stop]
        elif self.config.position == "sinusoidal":
            x = x + sinusoidal_table(start, stop, self.config.width, x.dtype, x.device)
        if self.residual_dtype is not None and torch.is_autocast_enabled(x.device.type):
            x = x.to(self.residual_dtype)
        return drop(x, self.config, generator)

    @torch.no_grad()
    def attention_weights(
        self,
        tokens: Tensor,
        *,
        padding: Tensor | None = None,
        source: Tensor | None = None,
        source_padding: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Softmax weights (B, H, T, S) of every attention, by name: "blocks.0.attention", in evaluation."""
        if self.config.attention != "softmax":
            raise ValueError("attention: expected softmax attention to look at, got linear, which forms no weights")
        keep: list[Tensor] = []
        self(tokens, padding=padding, source=source, source_padding=source_padding, keep=keep)
        names = [f"blocks.{layer}.attention" for layer in range(self.config.layers)]
        if self.config.kind == "encoder_decoder":
            own = [f"decoder.blocks.{layer}.{part}" for layer in range(self.config.layers) for part in PARTS]
            names = [f"encoder.{name}" for name in names] + own
        return dict(zip(names, keep, strict=True))

    def load_parameters(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Copy the spec's parameters in. Raises ValueError for a name or shape that does not fit."""
        load_parameters(self, parameters)

    def parameters_as_numpy(self) -> Parameters:
        """Copies of all parameters under the spec's names."""
        return parameters_as_numpy(self)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.token_embedding.weight.device


PARTS = ("attention", "cross_attention")
