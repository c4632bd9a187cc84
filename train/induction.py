"""`twinformer induction`: the moment when a head learns to look back for what came next the last time.

The text is a random sequence that repeats itself with a period that the model has to find: abcdef abcdef ab... A model of
attention alone (no feed-forward layers) learns it. What an induction head does takes two steps: a head of the first layer
writes into every token what stood before it, and one of the second looks for the token that has the present symbol written
into it (Elhage et al. 2021; Olsson et al. 2022). A single layer cannot, and is trained beside it as a control.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from train.checkpoint import output_folder, write_json
from train.commands import InductionConfig
from train.configuration import TrainConfig, train_config
from train.data import Batch
from train.experiment_plots import plot_induction
from train.faults import install
from train.jobs import in_a_process
from train.run_folder import environment
from train.schedule import learning_rate
from train.streams import streams

SYMBOLS, LENGTH = 32, 32
PERIODS = (4, 12)  # shortest and longest
PROBES = 32  # sequences on which losses and heads are measured
LAYERS = (2, 1)
RESULT, PLOT = "induction.json", "induction.png"


def induction(config: InductionConfig) -> str:
    """Trains both models, writes induction.json and induction.png, and returns a summary."""
    folder = output_folder(config.output)
    histories = {layers: in_a_process(f"{layers} layers", learn, (config, layers)) for layers in LAYERS}
    chance = float(np.log(SYMBOLS))
    result = {
        "symbols": SYMBOLS,
        "length": LENGTH,
        "periods": PERIODS,
        "options": {"steps": config.steps, "seed": config.seed, "model": "attention alone, no feed-forward layers"},
        "chance": chance,
        "drop": drop(histories[LAYERS[0]], chance),
        "layers": {str(layers): history for layers, history in histories.items()},
        "environment": environment(),
    }
    write_json(folder / RESULT, result)
    plot_induction(histories, chance, folder / PLOT)
    return summary(result) + f"\nin {folder}: {RESULT}, {PLOT}"


def learn(job: tuple[InductionConfig, int]) -> list[dict[str, Any]]:
    """Trains a model of so many layers; what was measured now and then. To be called in a process of its own."""
    config, layers = job
    install(["twin_without_feed_forward"])
    from reference_numpy.parameters import initialize
    from train.create import create_backend

    options = _options(config, layers)
    random = streams(config.seed)
    backend = create_backend(options.model, initialize(options.model, random["initialization"]), options, random["dropout"])
    probe, periods = repeated(PROBES, random["evaluation"])
    history = []
    for step in range(config.steps + 1):
        if step % config.measure_every == 0 or step == config.steps:
            history.append({"step": step, **measure(backend, probe, periods)})
        if step < config.steps:
            batch, _ = repeated(config.batch, random["data"])
            backend.gradient_step([batch], learning_rate(options, step))
    return history


def repeated(count: int, generator: np.random.Generator) -> tuple[Batch, np.ndarray]:
    """Sequences (B, LENGTH) that repeat a random segment of different symbols, and their periods (B,)."""
    periods = generator.integers(PERIODS[0], PERIODS[1] + 1, count)
    rows = [generator.permutation(SYMBOLS)[:period][np.arange(LENGTH + 1) % period] for period in periods]
    tokens = np.stack(rows)
    return Batch(tokens[:, :-1], tokens[:, 1:]), periods


def measure(backend: Any, batch: Batch, periods: np.ndarray) -> dict[str, Any]:
    """Mean loss where the symbol is new and where it has been seen (nats), and two scores of every head, by layer.

    The score "induction" is the mean weight on the token after the last occurrence of the present symbol, "previous" that on
    the token before the present one."""
    seen = np.arange(LENGTH) >= periods[:, None]  # (B, T): the symbol at t stood at t - period, too
    previous: list[np.ndarray] = []
    following: list[np.ndarray] = []
    for tokens, period in zip(batch.tokens, periods, strict=True):
        weights = np.stack(list(backend.attention(tokens).values()))  # (L, H, T, T)
        later, rest = np.arange(period, LENGTH), np.arange(1, LENGTH)
        following.append(weights[:, :, later, later - period + 1].mean(axis=-1))
        previous.append(weights[:, :, rest, rest - 1].mean(axis=-1))
    return {
        "loss_new": _loss(backend, batch, ~seen),
        "loss_seen": _loss(backend, batch, seen),
        "induction": np.mean(following, axis=0).tolist(),
        "previous": np.mean(previous, axis=0).tolist(),
    }


def drop(history: list[dict[str, Any]], chance: float) -> dict[str, Any]:
    """When the loss on seen symbols first was below three quarters and below one quarter of chance; None for never."""
    below = {share: [r["step"] for r in history if r["loss_seen"] < share * chance] for share in (0.75, 0.25)}
    return {"from": min(below[0.75], default=None), "to": min(below[0.25], default=None)}


def summary(result: dict[str, Any]) -> str:
    """Three lines: the loss at the end, when it fell, and the best heads."""
    two, one = (result["layers"][str(layers)][-1] for layers in LAYERS)
    fall = result["drop"]
    lines = [
        f"loss on seen symbols at the end: {two['loss_seen']:.3f} nats with two layers, {one['loss_seen']:.3f} with one "
        f"(chance {result['chance']:.3f})",
        f"it was first found below three quarters of chance at step {fall['from']}, below one quarter at step {fall['to']}"
        if fall["to"] is not None
        else "it has not fallen to one quarter of chance",
    ]
    for name in ("previous", "induction"):
        scores = np.array(two[name])
        layer, head = np.unravel_index(scores.argmax(), scores.shape)
        lines.append(f"score {name}: highest {scores.max():.3f}, in layer {layer}, head {head}")
    return "\n".join(lines)


def _loss(backend: Any, batch: Batch, where: np.ndarray) -> float:
    part = Batch(batch.tokens, np.where(where, batch.targets, -1))
    loss = float(backend.evaluate_loss(part) / part.counted)
    if not math.isfinite(loss):
        raise ValueError(f"learning_rate: the loss became {loss}; a lower rate may help")
    return loss


def _options(config: InductionConfig, layers: int) -> TrainConfig:
    options = {
        "layers": layers,
        "heads": 2,
        "width": 32,
        "context": LENGTH,
        "position": "rotary",
        "initial_deviation": 0.15,  # about 1 / sqrt(width): with small weights the heads would be even for long
        "vocabulary": SYMBOLS,
        "batch": config.batch,
        "steps": config.steps,
        "learning_rate": config.learning_rate,
        "schedule": "constant",
        "warmup": 50,
        "weight_decay": 0.01,
        "seed": config.seed,
        "device": "cpu",
        "threads": 1,
    }
    return train_config(options, "induction")
