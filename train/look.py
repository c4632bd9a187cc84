"""A look inside a training run: gradient norms and attention entropy now and then, the curve and a sample at the end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from reference_numpy.loss import IGNORE
from train import run_folder, streams
from train.data import Batch
from train.looking import entropy
from train.loop import Trainer

SEQUENCES = 4  # whose attention is averaged
KEPT = ("step", "train_loss", "validation_loss", "exact", "gradient_norm")


class Look:
    """Called after every step with the number of steps done."""

    def __init__(self, trainer: Trainer, every: int) -> None:
        self._trainer, self._every = trainer, every
        generator = streams.stream(trainer.config.seed, "look")  # another stream: looking changes nothing
        self._batch: Batch = trainer.task.training_batch(0, generator)
        self._looks: list[dict[str, Any]] = []

    def __call__(self, step: int) -> None:
        if self._every and (step % self._every == 0 or step in (1, self._trainer.config.steps)):
            backend, batch = self._trainer.backend, self._batch
            gradients = backend.gradients(batch)
            forward = {name: gradients[name] for name in backend.parameters() if name in gradients}
            look = {"step": step, "gradient_norm": norms(forward)}
            if self._trainer.config.model.attention == "softmax":
                look["entropy"] = entropies(backend, batch)
            self._looks.append(look)

    def report(self, finished: bool) -> dict[str, Any]:
        """Parameters in arrays that the loss reaches, and the log; with looks, also these and a finished run's sample."""
        trainer = self._trainer
        reached = trainer.backend.gradients(self._batch)
        log = [
            {key: record[key] for key in KEPT if record.get(key) is not None}
            for record in run_folder.read_log(trainer.folder)
        ]
        parameters = sum(part.size for part in reached.values() if part.any())
        report: dict[str, Any] = {"parameters": parameters, "log": log}
        if self._every:
            report |= {"looks": self._looks, "sample": self._sample() if finished else None}
        return report

    def _sample(self) -> str | None:
        """What the model writes; None where its logits are not finite, as they may be with a fault in decoding alone."""
        try:
            return self._trainer.task.sample(self._trainer.backend, self._trainer.streams["sample"])
        except ValueError:
            return None


def norms(gradients: dict[str, np.ndarray]) -> dict[str, float]:
    """Norm of the gradient of every layer: "token_embedding", "blocks.0", "encoder.blocks.1", "final_norm"."""
    squares: dict[str, float] = {}
    for name, gradient in gradients.items():
        squares[layer_of(name)] = squares.get(layer_of(name), 0.0) + float((gradient.astype(np.float64) ** 2).sum())
    return {layer: math.sqrt(square) for layer, square in squares.items()}


def layer_of(name: str) -> str:
    """blocks.0.attention.query.weight -> blocks.0."""
    parts = name.split(".")
    return ".".join(parts[: parts.index("blocks") + 2] if "blocks" in parts else parts[:-1])


def entropies(backend: Any, batch: Batch) -> dict[str, list[float]]:
    """Mean entropy of the attention weights of every head (nats), over the rows of a few sequences, by layer.

    Filler is left out: behind the last target that counts, and in the source."""
    found: dict[str, list[np.ndarray]] = {}
    for row in range(min(SEQUENCES, len(batch.tokens))):
        tokens, source = batch.tokens[row], None
        if batch.source is not None and batch.source_padding is not None:
            tokens, source = tokens[batch.targets[row] != IGNORE], batch.source[row][batch.source_padding[row]]
        for name, weights in backend.attention(tokens, source).items():
            found.setdefault(name, []).append(entropy(weights.astype(np.float64)).mean(axis=-1))
    return {name: np.mean(heads, axis=0).tolist() for name, heads in found.items()}
