"""`twinformer train`: the loop, and what is shown of it afterwards: a curve, a picture of the heads, a sample."""

from __future__ import annotations

import math

from train import run_folder
from train.attention import draw
from train.checkpoint import write_atomically
from train.configuration import TrainConfig
from train.looking import Reading, look, pair_reading
from train.loop import Outcome, Trainer, prepare
from train.parallel import connected
from train.plots import plot_loss

EXCERPT_LINES = 12


def train_and_report(config: TrainConfig) -> Outcome:
    """Trains, fills the run folder with figures and a sample, prints where they are. Raises: as `prepare` and `run`."""
    with connected(config) as processes:
        trainer = prepare(config, processes)
        if processes.writes:
            print(trainer.describe(), flush=True)
        outcome = trainer.run()
    if not processes.writes:
        return outcome
    _draw_loss(trainer, outcome)
    if config.model.attention == "softmax":  # linear attention forms no weights
        _draw_attention(trainer)
    print(_summary(trainer, outcome, _write_sample(trainer)))
    return outcome


def _write_sample(trainer: Trainer) -> str:
    """The stream of a sample is in the checkpoint, so a resumed run writes the same one."""
    sample = trainer.task.sample(trainer.twin, trainer.streams["sample"])
    write_atomically(trainer.folder / run_folder.SAMPLE, sample.encode())
    return sample


def _draw_loss(trainer: Trainer, outcome: Outcome) -> None:
    config, unit = trainer.config, trainer.task.unit
    name = config.corpus if config.task == "language_model" else config.task.replace("_", " ")
    title = f"{name}: exact validation loss {outcome.validation_loss:.4f} nats per {unit}"
    folder = trainer.folder
    plot_loss(run_folder.read_log(folder), folder / run_folder.LOSS, title, run_folder.references(folder), unit)


def _draw_attention(trainer: Trainer) -> None:
    """Every head of every layer on the task's example."""
    vocabulary, (source, text) = trainer.task.vocabulary, trainer.task.example()
    tokens = vocabulary.encode(text)
    reading = Reading(tokens) if source is None else pair_reading(vocabulary, vocabulary.encode(source), tokens)
    draw(look(trainer.twin, vocabulary, reading), trainer.folder / run_folder.ATTENTION)


def _summary(trainer: Trainer, outcome: Outcome, sample: str) -> str:
    unit = trainer.task.unit
    lines = sample.strip("\n").splitlines()[:EXCERPT_LINES]
    return "\n".join(
        [
            f"exact validation loss {outcome.validation_loss:.4f} nats per {unit}, "
            f"{outcome.validation_loss / math.log(2):.4f} bits per {unit}",
            *(f"{name}: {value}" for name, value in outcome.scores.items() if not isinstance(value, list)),
            f"{outcome.training_seconds:.1f} s of training, {outcome.evaluation_seconds:.1f} s of evaluation",
            f"in {outcome.folder}: {', '.join(path.name for path in run_folder.own_files(outcome.folder))}",
            "",
            *(f"    {line}" for line in lines),
        ]
    )
