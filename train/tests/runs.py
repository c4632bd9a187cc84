"""Small runs for the tests: a text, options that train in a second, and what can be compared of two runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from train.checkpoint import load_arrays
from train.configuration import TrainConfig, train_config
from train.loop import Trainer, prepare

WORDS = ["the", "king", "and", "queen", "of", "night", "shall", "come,", "or", "not;", "what", "say", "you,", "my", "lord?"]


def write_text(path: Path, words: int = 1200) -> Path:
    """A text that is a little predictable, a few thousand characters long."""
    generator = np.random.default_rng(1)
    text = "".join(word + ("\n" if generator.random() < 0.1 else " ") for word in generator.choice(WORDS, words))
    path.write_text(text, encoding="utf-8")
    return path


def options(folder: Path, **changes: Any) -> TrainConfig:
    """A run with everything on (dropout, accumulation, clipping, smoothing, decay), in `folder`."""
    base = {
        "corpus": str(write_text(folder.parent / "text.txt")),
        "output": str(folder),
        "layers": 2,
        "heads": 2,
        "width": 16,
        "context": 13,
        "dropout": 0.2,
        "batch": 3,
        "accumulate": 2,
        "steps": 20,
        "learning_rate": 1e-2,
        "warmup": 3,
        "label_smoothing": 0.1,
        "weight_decay": 0.1,
        "clip_norm": 0.5,
        "dtype": "float64",
        "evaluate_every": 7,
        "evaluation_batch": 5,
        "evaluation_characters": 100,
        "checkpoint_every": 0,
        "log_every": 1,
        "sample_length": 40,
        "device": "cpu",
    }
    return train_config(base | changes, "test")


def overfitting(folder: Path) -> TrainConfig:
    """A run that reads a small text too often, so that its best model is one on the way."""
    return options(
        folder, steps=60, evaluate_every=6, checkpoint_every=16, keep_best=True, dropout=0.0, schedule="constant",
        learning_rate=3e-2, corpus=str(write_text(folder.parent / "small.txt", 60)), context=8,
    )  # fmt: skip


def run(config: TrainConfig, on_step: Callable[[Trainer], None] | None = None) -> Path:
    """Trains and returns the run folder; `on_step` is called after every step."""
    trainer = prepare(config)
    trainer.run(None if on_step is None else lambda step: on_step(trainer))
    return trainer.folder


def records(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock wrote."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


def losses(folder: Path) -> np.ndarray:
    """The training loss of every logged step, nats per token."""
    return np.array([record["train_loss"] for record in records(folder) if "train_loss" in record])


def exact_loss(folder: Path) -> float:
    """The exact validation loss at the end, nats per character."""
    return float(records(folder)[-1]["validation_loss"])


def estimates(folder: Path) -> dict[int, float]:
    """The estimated validation losses by their steps, nats per character."""
    return {record["step"]: record["validation_loss"] for record in records(folder) if record.get("exact") is False}


def with_estimates_of_0(folder: Path) -> None:
    """Writes into the log that no later estimate can be lower."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    lower = [line | ({"validation_loss": 0.0} if line.get("exact") is False else {}) for line in map(json.loads, lines)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lower), encoding="utf-8")


def state(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """All of a checkpoint that must be equal to the bit: arrays as bytes, streams, step."""
    arrays, extra = load_arrays(folder / "state.safetensors", "state")
    return {n: a.tobytes() for n, a in arrays.items()}, {k: v for k, v in extra.items() if "second" not in k}


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nudged(arrays: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Every number moved to its neighbour above or below: the smallest disturbance that the format knows."""
    return {
        name: np.nextafter(array, np.where(generator.random(array.shape) < 0.5, -np.inf, np.inf)).astype(array.dtype)
        for name, array in arrays.items()
    }


def nudge_parameters(generator: np.random.Generator) -> Callable[[Trainer], None]:
    """A step hook that moves every parameter to a neighbouring number after every update."""

    def nudge(trainer: Trainer) -> None:
        arrays, extra = trainer.backend.export_state()
        own = {name: array for name, array in arrays.items() if name.startswith("parameters/")}
        trainer.backend.import_state(arrays | nudged(own, generator), extra)

    return nudge


def resumed(config: TrainConfig, folder: Path) -> TrainConfig:
    """The same options, to go on from `folder`."""
    return replace(config, resume=str(folder), output=None)


# Between a parameter and the loss a number is rounded once per operation, and the twins round apart in each. A layer is at
# most 32 operations deep (norm 8, attention 10, feed-forward 8, two residuals and dropouts 6), the loss 8, and the backward
# pass repeats each of them twice. Every rounding is worth at most a nudge of one parameter to its neighbour, so the curves
# may differ by this many times what one nudge of every parameter after every step brings about. An encoder-decoder is two
# stacks deep, and its decoder has 12 operations more in each; Muon adds 5 iterations of 6 operations to every update.
LAYERS = 2
DEPTH = 3 * (32 * LAYERS + 8)


def envelope(folder: Path, config: TrainConfig) -> np.ndarray:
    """How far the loss at each step may be from that of `config`'s numpy run, by rounding alone: see DEPTH."""
    config = replace(config, compile=False, checkpoint_activations=False, backend="numpy")  # the spec has neither
    reference = losses(run(replace(config, output=str(folder / "reference"))))
    spread = np.zeros_like(reference)
    for seed in range(3):
        other = replace(config, output=str(folder / f"nudged-{seed}"))
        spread = np.maximum(spread, np.abs(losses(run(other, nudge_parameters(np.random.default_rng(seed)))) - reference))
    floor = np.finfo(np.float64).eps * reference[0]  # a nudge cannot show what is below the spacing of the loss itself
    return DEPTH * (np.maximum.accumulate(spread) + floor)
