"""What training and the commands ask of the spec and of the twin, so that one loop drives either.

Arrays go in and out under the flat names of the spec; which of the two computed them cannot be seen from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from reference_numpy.decode import Decoder
from train.configuration import TrainConfig
from train.data import Batch

Arrays = dict[str, np.ndarray]
PARAMETERS = "parameters/"  # what their names begin with in an exported state


class Step(NamedTuple):
    """What one update reports; float() of either waits for the device, so ask only when it is wanted."""

    loss: Any
    """Mean training loss of the batch before the update, nats per token (with label smoothing and dropout)."""
    gradient_norm: Any
    """Norm over all parameters before clipping."""


class Sampling(NamedTuple):
    """How the next token is chosen; see `reference_numpy.decode.next_tokens`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Backend(Protocol):
    """A model with its parameters and its optimizer."""

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        """One update with the gradient of all `batches` together (gradient accumulation).

        `learning_rate` is that of the optimizer that the options name; under muon, adamw's keeps its ratio to it."""

    def evaluate_loss(self, batch: Batch) -> float:
        """The sum, in float64, of nats over all targets of the batch; no dropout, no label smoothing."""

    def gradients(self, batch: Batch) -> Arrays:
        """The gradient of the mean loss of a batch, without dropout, for all parameters that it depends on; no update."""

    def predict(self, batch: Batch) -> np.ndarray:
        """The likeliest symbol (B, T) at every position."""

    def generate(
        self, tokens: np.ndarray, count: int, generator: np.random.Generator, sampling: Sampling, compiled: bool = False
    ) -> np.ndarray:
        """Tokens (N,) or (B, N) and `count` more that the model chose; `compiled` is for torch alone."""

    def decoder(self, source: np.ndarray, source_padding: np.ndarray) -> Decoder:
        """For the searches of reference_numpy.decode over sources (B, S), with keys and values kept."""

    def attention(self, tokens: np.ndarray, source: np.ndarray | None = None) -> Arrays:
        """Attention weights for (T,) tokens, and a source (S,) if the model reads one: name of the layer to (H, T, S)."""

    def parameters(self) -> Arrays:
        """All parameters by flat name."""

    def export_state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and JSON values that `import_state` of either backend takes to go on from here."""

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        """Goes on from an exported state."""

    def alone(self) -> Backend:
        """A backend with these parameters that needs no other process: the others may end."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch means that there is not enough memory: on a CPU it has no kind of error of its own for that."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def counted(batches: Sequence[Batch]) -> int:
    """Targets that count in all micro-batches together; -1 marks one that does not."""
    return sum(batch.counted for batch in batches)


def adamw_options(options: TrainConfig) -> dict[str, float]:
    names = ("beta1", "beta2", "epsilon", "weight_decay")
    return {name: getattr(options, name) for name in names}


def adamw_rate(options: TrainConfig, learning_rate: float) -> float:
    """AdamW's learning rate beside muon's: both follow the schedule."""
    return learning_rate * (options.adamw_learning_rate / options.learning_rate)


def pack(parts: Mapping[str, Arrays]) -> Arrays:
    """Parameters and what the optimizer keeps in one dictionary: `parameters/blocks.0...`, `first/blocks.0...` and so on."""
    return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def unpack(arrays: Mapping[str, np.ndarray], like: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """The inverse of `pack`, for parts with the names, shapes and dtypes of `like`.

    Raises: ValueError naming the first array that is missing or does not fit."""
    for part, own in like.items():
        for name, array in own.items():
            got = arrays.get(f"{part}/{name}")
            if got is None or got.shape != array.shape or got.dtype != array.dtype:
                found = "none" if got is None else f"{got.dtype} {got.shape}"
                raise ValueError(f"checkpoint: {part}/{name}: expected {array.dtype} {array.shape}, got {found}")
    return {part: {name: arrays[f"{part}/{name}"] for name in own} for part, own in like.items()}
