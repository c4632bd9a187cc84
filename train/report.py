"""`twinformer train`: the loop, and what is shown of it afterwards: a curve, a picture of the heads, a sample."""

from __future__ import annotations

import math

from train import run_folder
from train.attention import draw
from train.backend import Sampling
from train.checkpoint import write_atomically
from train.configuration import TrainConfig
from train.generate import write
from train.loop import Outcome, Trainer, prepare
from train.plots import plot_loss

SAMPLING = Sampling(temperature=0.8)  # a little below 1: what the model finds likely, with fewer slips
EXCERPT_LINES = 12
ATTENTION_CHARACTERS = 32  # more labels than this cannot be read in a grid of small pictures


def train_and_report(config: TrainConfig) -> Outcome:
    """Trains, fills the run folder with figures and a sample, prints where they are. Raises: as `prepare` and `run`."""
    trainer = prepare(config)
    print(trainer.describe(), flush=True)
    outcome = trainer.run()
    _draw_loss(trainer, outcome)
    if config.model.attention == "softmax":  # linear attention forms no weights
        _draw_attention(trainer)
    print(_summary(outcome, _write_sample(trainer)))
    return outcome


def _write_sample(trainer: Trainer) -> str:
    """A sample from a fresh line on; its stream is in the checkpoint, so a resumed run writes the same one."""
    vocabulary, stream = trainer.text.vocabulary, trainer.streams["sample"]
    prompt = "\n" if "\n" in vocabulary.symbols else vocabulary.symbols[0]
    sample = write(trainer.twin, vocabulary, prompt, trainer.config.sample_length, stream, SAMPLING)
    write_atomically(trainer.folder / run_folder.SAMPLE, sample.encode())
    return sample


def _draw_loss(trainer: Trainer, outcome: Outcome) -> None:
    title = f"{trainer.config.corpus}: exact validation loss {outcome.validation_loss:.4f} nats per character"
    plot_loss(run_folder.read_log(trainer.folder), trainer.folder / run_folder.LOSS, title)


def _draw_attention(trainer: Trainer) -> None:
    """Every head of every layer on a line of the validation split, which no step has seen."""
    text = trainer.text.vocabulary.decode(trainer.text.split.validation)
    line = text.find("\n") + 1  # the split begins anywhere, the first whole line behind a line end; 0 where there is none
    length = min(ATTENTION_CHARACTERS, trainer.config.model.context)
    shown = text[line : line + length] or text[:length]
    draw(trainer.twin, trainer.text.vocabulary, shown, trainer.folder / run_folder.ATTENTION)


def _summary(outcome: Outcome, sample: str) -> str:
    lines = sample.strip("\n").splitlines()[:EXCERPT_LINES]
    return "\n".join(
        [
            f"exact validation loss {outcome.validation_loss:.4f} nats per character, "
            f"{outcome.validation_loss / math.log(2):.4f} bits per character",
            f"{outcome.training_seconds:.1f} s of training, {outcome.evaluation_seconds:.1f} s of evaluation",
            f"in {outcome.folder}: {', '.join(run_folder.FILES)}",
            "",
            *(f"    {line}" for line in lines),
        ]
    )
