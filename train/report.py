"""`twinformer train`: the loop, and what is shown of it afterwards: a curve, a picture of the heads, a sample."""

from __future__ import annotations

import contextlib
import math
import statistics
from typing import Any

from train import run_folder
from train.attention import draw, page_of_run
from train.checkpoint import write_atomically
from train.configuration import TrainConfig
from train.flops import gpu_name, peak_flops, peak_memory, training_flops_per_token
from train.looking import Reading, look, pair_reading
from train.loop import Outcome, Trainer, prepare
from train.parallel import connected
from train.plots import loss_text, plot_loss, training_has
from train.trained import Trained

EXCERPT_LINES = 12


def train_and_report(config: TrainConfig) -> Outcome:
    """Trains, fills the run folder with figures and a sample, prints where they are. Raises: as `prepare` and `run`."""
    with contextlib.ExitStack() as stack:  # it holds the folder until all is written
        with connected(config) as processes:
            folder = stack.enter_context(run_folder.claimed(config)) if processes.writes else None
            trainer = prepare(config, processes, processes.agreed(folder))
            if processes.writes:
                with trainer.or_as_it_was():
                    print(trainer.describe(), flush=True)
                    if trainer.step == config.steps:
                        print(
                            f"all {config.steps:,} steps were done before: nothing is trained; --steps N goes on", flush=True
                        )
            outcome = trainer.run()
        if processes.writes:
            _draw_loss(trainer, outcome)
            if config.model.attention == "softmax":  # linear attention forms no weights
                _draw_attention(trainer)
            print(_summary(trainer, outcome, _write_sample(trainer)))
    return outcome


def _write_sample(trainer: Trainer) -> str:
    """The stream of a sample is in the checkpoint, so a resumed run writes the same one."""
    sample = trainer.task.sample(trainer.backend, trainer.streams["sample"])
    write_atomically(trainer.folder / run_folder.SAMPLE, sample.encode())
    return sample


def _draw_loss(trainer: Trainer, outcome: Outcome) -> None:
    config, unit = trainer.config, trainer.task.unit
    name = config.corpus if config.task == "language_model" else config.task.replace("_", " ")
    title = f"{name}: exact validation loss {loss_text(outcome.validation_loss)} nats per {unit}"
    folder = trainer.folder
    has = training_has(config.model.dropout, config.label_smoothing, config.input_noise)
    plot_loss(run_folder.read_log(folder), folder / run_folder.LOSS, title, run_folder.references(folder), unit, has)


def _draw_attention(trainer: Trainer) -> None:
    """Every head of every layer on the task's example; the page too, where snapshots show how they formed."""
    config, vocabulary, (source, text) = trainer.config, trainer.task.vocabulary, trainer.task.example()
    tokens = vocabulary.encode(text)[: config.model.context - (source is not None)]  # the mark at the start takes one
    reading = Reading(tokens) if source is None else pair_reading(vocabulary, vocabulary.encode(source), tokens)
    draw(look(trainer.backend, vocabulary, reading), trainer.folder / run_folder.ATTENTION)
    if config.snapshots:
        trained = Trained(trainer.backend, vocabulary, config.model, config)
        page = page_of_run(trainer.folder, trained, reading, config.backend, config.device)
        write_atomically(trainer.folder / run_folder.PAGE, page.encode())


def _summary(trainer: Trainer, outcome: Outcome, sample: str) -> str:
    unit = trainer.task.unit
    lines = sample.strip("\n").splitlines()[:EXCERPT_LINES]
    return "\n".join(
        [
            f"exact validation loss {outcome.validation_loss:.4f} nats per {unit}, "
            f"{outcome.validation_loss / math.log(2):.4f} bits per {unit}",
            *_of_which(trainer),
            *(
                f"{name}: {value:.5g}" if isinstance(value, float) else f"{name}: {value}"
                for name, value in outcome.scores.items()
                if not isinstance(value, list)
            ),
            f"{outcome.training_seconds:.1f} s of training, {outcome.evaluation_seconds:.1f} s of evaluation",
            *_of_the_machine(trainer),
            f"in {outcome.folder}: {', '.join(path.name for path in run_folder.own_files(outcome.folder))}",
            "",
            *(f"    {line}" for line in lines),
        ]
    )


def _of_which(trainer: Trainer) -> list[str]:
    """A line on where the finished model comes from, if it is not that after the last step."""
    if trainer.config.keep_best:
        step, _ = run_folder.best(trainer.folder)[-1]
        return [f"of the model after step {step:,}, whose estimate was the lowest"]
    if trainer.config.average < 2:
        return []
    steps = [f"{step:,}" for step, _ in run_folder.kept(trainer.folder)]
    return [f"of the mean of the models after {', '.join(steps)} steps"]


def _of_the_machine(trainer: Trainer) -> list[str]:
    """A line on memory and, on a GPU that flops.py knows, on the share of its arithmetic."""
    records, devices = run_folder.read_log(trainer.folder), trainer.processes.count
    memory, share = peak_memory(), utilisation(trainer.config, records, devices)
    parts = [] if memory is None else [f"{memory / 1e9:.2f} GB of memory at most"]
    if share is not None:
        parts.append(f"{100 * share:.1f} % of what the {gpu_name()} can do (model FLOPs utilisation)")
    return [", ".join(parts)] if parts else []


def utilisation(config: TrainConfig, records: list[dict[str, Any]], devices: int = 1) -> float | None:
    """The model FLOPs utilisation of the median record after the first; None for an unknown device or kind of model."""
    speeds = [record["tokens_per_second"] for record in records if "tokens_per_second" in record][1:]
    peak = peak_flops(gpu_name() or "", config.dtype, config.tf32)
    if not speeds or peak is None or config.task != "language_model":
        return None
    return statistics.median(speeds) * training_flops_per_token(config.model, config.model.context) / (peak * devices)
