"""Decoding: the twin as a Decoder for the spec's searches, which only ask for logits."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_numpy.decode import decoding_context, sample
from torch_impl.attention import MultiHeadAttention
from torch_impl.block import BlockPast
from torch_impl.linear import PackedLinear, are_joinable, is_plain
from torch_impl.model import Transformer
from torch_impl.parameters import as_numpy
from torch_impl.position import make_tables_constant

LENGTHS = r"L\['past'\]\[\d+\]\.own\.length"  # what the compiler calls the number of tokens in the past of each block


class CachedDecoder:
    """The twin as a Decoder; see the spec's class for the arguments. Tokens go in and logits come out as NumPy arrays.

    Make a new one when the parameters change: it copies some of them and shares the others. `bfloat16` rounds the factors of
    the linear layers' products. `compiled` has torch.compile translate the step by one token, at the first of them: it takes
    some ten seconds, and on a CPU a token of a single sequence half of the time afterwards. Raises ValueError if that is
    wanted without a cache."""

    def __init__(
        self,
        model: Transformer,
        source: np.ndarray | None = None,
        source_padding: np.ndarray | None = None,
        cached: bool = True,
        extrapolate: bool = False,
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        if compiled and not cached:
            raise ValueError("compiled: expected False without a cache, got True")
        self.context = decoding_context(model.config, extrapolate)
        self._model, self._cached = _packed(model, bfloat16, compiled), cached
        # A buffer of another size would be translated anew, and so would one that is full.
        self._room = model.config.context + 1 if compiled else 0
        self._step = _translated(self._model) if compiled else self._model
        self._given = self._integers(source, "source"), self._tensor(source_padding)
        self.restart()

    def restart(self) -> None:
        self._source, self._source_padding = self._given  # in the order before any select
        self._tokens: np.ndarray | None = None
        layers = range(self._model.config.layers)
        self._past = [BlockPast(self._room) for _ in layers] if self._cached else None

    @torch.inference_mode()
    def append(self, tokens: np.ndarray) -> np.ndarray:
        if tokens.shape[1] == 0:
            raise ValueError("tokens: expected at least 1 to append, got 0")
        if not self._cached and self._tokens is not None:
            tokens = np.concatenate((self._tokens, tokens), axis=1)
        source = None if self._cached and self._tokens is not None else self._source
        new = self._integers(tokens, "tokens")
        assert new is not None
        goes_on = self._cached and self._tokens is not None and new.shape[1] == 1
        model = self._step if goes_on else self._model
        logits = model(new, source=source, source_padding=self._source_padding, past=self._past)
        self._tokens = tokens
        return as_numpy(logits[:, -1])

    @torch.inference_mode()
    def select(self, rows: np.ndarray) -> None:
        index = torch.as_tensor(rows, device=self._model.device)
        if self._tokens is not None:
            self._tokens = self._tokens[rows]
        for past in self._past or []:
            past.select(index)
        self._source = None if self._source is None else self._source[index]
        self._source_padding = None if self._source_padding is None else self._source_padding[index]

    def _integers(self, array: np.ndarray | None, name: str) -> Tensor | None:
        """On the device, integers of any kind as torch's embedding wants them. Raises ValueError for other numbers."""
        if array is not None and array.dtype.kind not in "iu":
            raise ValueError(f"{name}: expected integers, got {array.dtype}")
        return self._tensor(None if array is None else array.astype(np.int64))

    def _tensor(self, array: np.ndarray | None) -> Tensor | None:
        """A copy on the device."""
        return None if array is None else torch.tensor(array, device=self._model.device)


def generate(
    model: Transformer,
    tokens: np.ndarray,
    count: int,
    generator: np.random.Generator,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    cached: bool = True,
    extrapolate: bool = False,
    bfloat16: bool = False,
    compiled: bool = False,
) -> np.ndarray:
    """Tokens (T,) or (B, T) and `count` sampled ones behind them: (T + count,) or (B, T + count)."""
    decoder = CachedDecoder(model, cached=cached, extrapolate=extrapolate, bfloat16=bfloat16, compiled=compiled)
    return sample(decoder, tokens, count, generator, temperature, top_k, top_p)


def _translated(model: Transformer) -> Callable[..., Tensor]:
    """The model under torch.compile, told which number grows, so that it makes no graph for the first value alone."""
    make_tables_constant()
    compiled = torch.compile(model)

    def call(*arguments: Any, **named: Any) -> Tensor:
        with torch.compiler.config.patch(dynamic_sources=LENGTHS):  # type: ignore[attr-defined]
            logits: Tensor = compiled(*arguments, **named)
        return logits

    return call


def _packed(model: Transformer, bfloat16: bool, compiled: bool) -> Transformer:
    """A copy whose linear layers are packed; all else it shares with the model. The head, tied or not, stays as it is: its
    logits decide."""
    packed = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for module in list(packed.modules()):
        if isinstance(module, MultiHeadAttention) and not module.cross and are_joinable(module.projections):
            module.together = PackedLinear(module.projections, bfloat16, compiled)
            del module.query, module.key, module.value
        for name, child in module.named_children():
            if is_plain(child) and module is not packed:
                setattr(module, name, PackedLinear((child,), bfloat16, compiled))
    return packed
