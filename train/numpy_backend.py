"""The spec behind the interface of train/backend.py."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reference_numpy.config import ModelConfig
from reference_numpy.decode import CachedDecoder, Decoder, generate
from reference_numpy.loss import cross_entropy_forward
from reference_numpy.model import attention_weights, loss_and_gradients, model_forward
from reference_numpy.optimizer import AdamWState, MuonState, adamw_step, clip_gradients, is_hidden_matrix, muon_step
from train.backend import Arrays, Backend, Sampling, Step, adamw_options, adamw_rate, counted, pack, unpack
from train.bundles import Bundles
from train.configuration import TrainConfig
from train.cores import Cores, Memory, RowsOf, blas_threads, groups, shares
from train.data import Batch

PARAMETERS, FIRST, SECOND, GRADIENTS = range(4)  # rows of the memory; below, the other processes' gradients


class Share:
    """What each process does of a training step: forward and backward pass of some rows, the update of some parameters."""

    def __init__(self, rank: int, model: ModelConfig, options: TrainConfig, bundles: Bundles, memory: Memory) -> None:
        self.memory = memory.rows()
        self.parameters = bundles.arrays(self.memory[PARAMETERS])
        self._model, self._options, self._own = model, options, bundles.arrays(self.memory[GRADIENTS + rank])
        self._bundled = [bundles.bundles(row) for row in self.memory[: GRADIENTS + 1]]

    def gradients(
        self,
        part: Batch,
        rows: slice,
        add: bool,
        batch: int,
        count: int,
        label_smoothing: float,
        dropout: np.random.Generator | None,
    ) -> tuple[Any, Any]:
        """The sum of the loss over `count`, and where the stream is then; the gradients are left in the process's row, or
        added to it."""
        generator = None if dropout is None else RowsOf(dropout, rows, batch)
        loss, gradients = loss_and_gradients(
            self.parameters,
            self._model,
            part.tokens,
            part.targets,
            label_smoothing=label_smoothing,
            count=count,
            **part.inputs(),
            generator=generator,
        )
        for name, own in self._own.items():
            own[...] = own + gradients[name] if add else gradients[name]
        return loss, None if generator is None else generator.bit_generator.state

    def loss(self, part: Batch) -> float:
        loss, _ = cross_entropy_forward(
            _logits(self.parameters, self._model, part).astype(np.float64), part.targets, count=1
        )
        return float(loss)

    def update(self, names: Sequence[str], updates: int, learning_rate: float) -> None:
        """The optimizer's step for these bundles, after so many updates; it takes each by itself."""
        options, own = self._options, adamw_options(self._options)
        parameters, first, second, gradients = ({name: rows[name] for name in names} for rows in self._bundled)
        if options.optimizer == "muon":
            momentum = {name: first.pop(name) for name, array in parameters.items() if is_hidden_matrix(name, array)}
            state = MuonState(momentum, AdamWState(updates, first, second))
            rates = (learning_rate, adamw_rate(options, learning_rate))
            new, after = muon_step(parameters, gradients, state, *rates, momentum=options.momentum, **own)
            _write(after.momentum, momentum)
            adamw = after.adamw
        else:
            new, adamw = adamw_step(parameters, gradients, AdamWState(updates, first, second), learning_rate, **own)
        _write(new, parameters)
        _write(adamw.first, first)
        _write(adamw.second, second)


class NumpyBackend:
    """Trains and runs the spec."""

    def __init__(self, model: ModelConfig, parameters: Arrays, options: TrainConfig, dropout: np.random.Generator) -> None:
        self._model, self._options, self._dropout, self._updates = model, options, dropout, 0
        self._parameters = dict(parameters)
        self._processes = min(blas_threads(), options.batch)  # others would have no row
        self._hidden = {n for n, array in parameters.items() if options.optimizer == "muon" and is_hidden_matrix(n, array)}
        self._bundles = Bundles(parameters, alone=self._hidden)

    @functools.cached_property
    def _cores(self) -> Cores:
        """The processes that train, and from now on the parameters in the memory that they share."""
        dtype = np.result_type(*self._parameters.values())
        memory = Memory(GRADIENTS + self._processes, self._bundles.size, dtype, shared=self._processes > 1)
        cores = Cores(self._processes, Share, self._model, self._options, self._bundles, memory)
        _write(self._parameters, cores.own.parameters)
        self._parameters = cores.own.parameters
        return cores

    @property
    def _memory(self) -> list[np.ndarray]:
        rows: list[np.ndarray] = self._cores.own.memory
        return rows

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        options, dropout = self._options, self._dropout if self._model.dropout > 0 else None
        loss, processes = self._gradients(batches, options.label_smoothing, dropout)
        total = self._bundles.bundles(self._memory[GRADIENTS])
        clipped, norm = clip_gradients(total, options.clip_norm or np.inf)
        if clipped is not total:
            _write(clipped, total)
        self._cores.call("update", [(group, self._updates, learning_rate) for group in groups(total, processes)])
        self._updates += 1
        return Step(loss, norm)

    def _gradients(
        self, batches: Sequence[Batch], label_smoothing: float, dropout: np.random.Generator | None
    ) -> tuple[Any, int]:
        """The mean loss, and how many processes had rows. The gradients, sums over all rows, are in the memory."""
        memory, loss, used = self._memory, 0.0, 0
        for batch in batches:
            parts = shares(batch, self._processes)
            rest = (len(batch.tokens), counted(batches), label_smoothing, dropout)
            items = [(*share, rank < used, *rest) for rank, share in enumerate(parts)]
            answers = self._cores.call("gradients", items)
            loss += sum(part for part, _ in answers)
            used = max(used, len(parts))
            if dropout is not None:  # all have drawn the same
                dropout.bit_generator.state = answers[0][1]
        for other in memory[GRADIENTS + 1 : GRADIENTS + used]:
            memory[GRADIENTS] += other
        return loss, used

    def evaluate_loss(self, batch: Batch) -> float:
        return sum(self._cores.call("loss", [(part,) for part, _ in shares(batch, self._processes)]))

    def gradients(self, batch: Batch) -> Arrays:
        self._gradients([batch], 0.0, None)
        return _copied(self._bundles.arrays(self._memory[GRADIENTS]))

    def predict(self, batch: Batch) -> np.ndarray:
        return _logits(self._parameters, self._model, batch).argmax(axis=-1)

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
        return _copied(self._parameters)

    def export_state(self) -> tuple[Arrays, dict[str, Any]]:
        return _copied(pack(self._parts())), {"updates": self._updates}

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        parts = self._parts()
        for part, named in unpack(arrays, parts).items():
            _write(named, parts[part])
        self._updates = int(extra["updates"])

    def alone(self) -> Backend:
        self._cores.close()
        return self

    def _parts(self) -> dict[str, Arrays]:
        """The shared numbers by part and name: in the row of first moments a hidden matrix of muon's has its momentum."""
        parameters, first, second = (self._bundles.arrays(self._memory[row]) for row in (PARAMETERS, FIRST, SECOND))
        momentum = {name: first.pop(name) for name in parameters if name in self._hidden}
        second = {name: array for name, array in second.items() if name not in self._hidden}
        parts = {"parameters": parameters, "first": first, "second": second}
        return parts | {"momentum": momentum} if self._options.optimizer == "muon" else parts


def _logits(parameters: Arrays, model: ModelConfig, batch: Batch) -> np.ndarray:
    logits, _ = model_forward(parameters, model, batch.tokens, **batch.inputs())
    return logits


def _write(arrays: Mapping[str, np.ndarray], into: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        into[name][...] = array


def _copied(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array.copy() for name, array in arrays.items()}
