"""The spec behind the interface of train/backend.py."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reference_numpy.config import ModelConfig
from reference_numpy.decode import CachedDecoder, Decoder, generate
from reference_numpy.loss import cross_entropy_forward
from reference_numpy.model import attention_weights, loss_and_gradients, model_forward
from reference_numpy.optimizer import (
    AdamWState,
    MuonState,
    adamw_initial,
    adamw_step,
    clip_gradients,
    is_hidden_matrix,
    muon_initial,
    muon_step,
)
from train.backend import Arrays, Backend, Sampling, Step, adamw_options, adamw_rate, counted, pack, unpack
from train.bundles import Bundles
from train.configuration import TrainConfig
from train.data import Batch
from train.threads import RowsOf, Threads


class NumpyBackend:
    """Trains and runs the spec."""

    def __init__(self, model: ModelConfig, parameters: Arrays, options: TrainConfig, dropout: np.random.Generator) -> None:
        self._model, self._options, self._dropout = model, options, dropout
        muon = options.optimizer == "muon"
        self._bundles = Bundles(parameters, alone=lambda name, array: muon and is_hidden_matrix(name, array))
        self._bundled = self._bundles.join(parameters)
        self._parameters = self._bundles.split(self._bundled)
        self._state: AdamWState | MuonState = (muon_initial if muon else adamw_initial)(self._bundled)
        self._threads = Threads()

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        options, count = self._options, counted(batches)
        dropout = self._dropout if self._model.dropout > 0 else None
        loss: Any = 0.0
        gradients: Arrays | None = None
        for batch in batches:
            part, new = self._gradients(batch, options.label_smoothing, count, dropout)
            loss = loss + part
            gradients = new if gradients is None else _add(gradients, new)
        assert gradients is not None
        gradients, norm = clip_gradients(gradients, options.clip_norm or np.inf)
        self._update(gradients, learning_rate)
        return Step(loss, norm)

    def _gradients(
        self, batch: Batch, label_smoothing: float, count: int, dropout: np.random.Generator | None
    ) -> tuple[Any, Arrays]:
        """The sum of the loss over `count`, and its gradients in bundles: both are sums over the rows of the batch."""

        def of_share(share: tuple[Batch, slice]) -> tuple[Any, Arrays, RowsOf | None]:
            part, rows = share
            generator = None if dropout is None else RowsOf(dropout, rows, len(batch.tokens))
            loss, gradients = loss_and_gradients(
                self._parameters,
                self._model,
                part.tokens,
                part.targets,
                label_smoothing=label_smoothing,
                count=count,
                **part.inputs(),
                generator=generator,
            )
            return loss, gradients, generator

        losses, gradients, generators = zip(*self._threads.map(of_share, self._threads.shares(batch)), strict=True)
        if dropout is not None:  # all have drawn the same
            dropout.bit_generator.state = generators[0].bit_generator.state

        def of_group(bundles: Sequence[str]) -> Arrays:
            return functools.reduce(_add, [self._bundles.join(part, bundles) for part in gradients])

        return sum(losses), functools.reduce(operator.or_, self._threads.map(of_group, self._groups()))

    def _update(self, gradients: Arrays, learning_rate: float) -> None:
        """The optimizer's step, by bundles; it takes each by itself, so every thread takes some."""
        options, state, own = self._options, self._state, adamw_options(self._options)

        def of_group(bundles: Sequence[str]) -> tuple[Arrays, AdamWState | MuonState]:
            parameters = {name: self._bundled[name] for name in bundles}
            if isinstance(state, AdamWState):
                return adamw_step(parameters, gradients, state, learning_rate, **own)
            rates = (learning_rate, adamw_rate(options, learning_rate))
            return muon_step(parameters, gradients, state, *rates, momentum=options.momentum, **own)

        parts, states = zip(*self._threads.map(of_group, self._groups()), strict=True)
        self._bundled = functools.reduce(operator.or_, parts)
        self._parameters = self._bundles.split(self._bundled)
        self._state = functools.reduce(_joined, states)

    def _groups(self) -> list[list[str]]:
        """Which bundles each thread takes."""
        return self._threads.groups(self._bundled)

    def evaluate_loss(self, batch: Batch) -> float:
        def of_share(share: tuple[Batch, slice]) -> float:
            part, _ = share
            loss, _ = cross_entropy_forward(self._logits(part).astype(np.float64), part.targets, count=1)
            return float(loss)

        return sum(self._threads.map(of_share, self._threads.shares(batch)))

    def gradients(self, batch: Batch) -> Arrays:
        _, gradients = self._gradients(batch, 0.0, batch.counted, None)
        return self._bundles.split(gradients)

    def predict(self, batch: Batch) -> np.ndarray:
        return self._logits(batch).argmax(axis=-1)

    def _logits(self, batch: Batch) -> np.ndarray:
        logits, _ = model_forward(self._parameters, self._model, batch.tokens, **batch.inputs())
        return logits

    def generate(
        self, tokens: np.ndarray, count: int, generator: np.random.Generator, sampling: Sampling, compiled: bool = False
    ) -> np.ndarray:
        return generate(self._parameters, self._model, tokens, count, generator, *sampling)

    def decoder(self, source: np.ndarray, source_padding: np.ndarray) -> Decoder:
        return CachedDecoder(self._parameters, self._model, source, source_padding)

    def attention(self, tokens: np.ndarray, source: np.ndarray | None = None) -> Arrays:
        read = None if source is None else source[None]
        _, cache = model_forward(self._parameters, self._model, tokens[None], source=read)
        return {name: weights[0] for name, weights in attention_weights(cache).items()}

    def parameters(self) -> Arrays:
        return dict(self._parameters)

    def export_state(self) -> tuple[Arrays, dict[str, Any]]:
        return pack(self._parts()), {"updates": int(self._adamw_state().step)}

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        parts = unpack(arrays, self._parts())
        bundled = {part: self._bundles.join(named) for part, named in parts.items()}
        self._bundled, momentum = bundled["parameters"], bundled.get("momentum")
        self._parameters = self._bundles.split(self._bundled)
        own = AdamWState(int(extra["updates"]), bundled["first"], bundled["second"])
        self._state = own if momentum is None else MuonState(momentum, own)

    def alone(self) -> Backend:
        return self

    def _parts(self) -> dict[str, Arrays]:
        own = self._adamw_state()
        bundled = {"parameters": self._bundled, "first": own.first, "second": own.second}
        bundled |= {"momentum": self._state.momentum} if isinstance(self._state, MuonState) else {}
        return {part: self._bundles.split(bundles) for part, bundles in bundled.items()}

    def _adamw_state(self) -> AdamWState:
        return self._state.adamw if isinstance(self._state, MuonState) else self._state


def _add(total: Arrays, more: Arrays) -> Arrays:
    """The sum, in the place of `total`."""
    for name in total:
        total[name] += more[name]
    return total


def _joined(state: Any, other: Any) -> Any:
    """The optimizer's state of two groups of parameters as one: AdamW's or Muon's."""
    if isinstance(state, MuonState):
        return MuonState(state.momentum | other.momentum, _joined(state.adamw, other.adamw))
    return AdamWState(state.step, state.first | other.first, state.second | other.second)
