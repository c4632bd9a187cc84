"""The training loop, one for both twins, from the options to the folder that a run leaves."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from reference_numpy.parameters import initialize, parameter_count
from train import run_folder, schedule, streams
from train.backend import Twin, create_backend
from train.checkpoint import save_arrays, save_model
from train.configuration import TrainConfig, read_run_config, with_vocabulary
from train.corpus import load_corpus
from train.data import Batch, Split, covering_batches, random_batch, sampled_batches, split_tokens
from train.vocabulary import Vocabulary

# A checkpoint belongs to these; going on with others would be another experiment.
FIXED = ("model", "corpus", "validation_fraction", "seed", "dtype")


class Interrupted(KeyboardInterrupt):
    """The user stopped training; a checkpoint was saved, and the text says how to go on."""


class Text(NamedTuple):
    """What there is to learn; `facts` are its identity and size, for config.json."""

    vocabulary: Vocabulary
    split: Split
    facts: dict[str, Any]


class Outcome(NamedTuple):
    """What a finished run reports: the exact mean loss over the validation split (nats per character), and seconds."""

    folder: Path
    validation_loss: float
    training_seconds: float
    evaluation_seconds: float


def prepare(config: TrainConfig) -> Trainer:
    """All that can fail before training: the folder, the text, the model, the checkpoint to go on from.

    Afterwards the run folder exists and has its config.json. Raises: ValueError or OSError for what a user can mend."""
    folder = run_folder.choose(config)
    text = read_text(config)
    config = with_vocabulary(config, len(text.vocabulary))
    trainer = Trainer(config, text, folder)
    if config.resume is not None:
        trainer.restore()
    run_folder.open_for(config, folder, text.facts)
    return trainer


def read_text(config: TrainConfig) -> Text:
    """Loads and cuts the corpus. Raises: as load_corpus, or ValueError when the context does not fit into a split."""
    corpus = load_corpus(config.corpus)
    vocabulary = Vocabulary.from_text(corpus.text)
    split = split_tokens(vocabulary.encode(corpus.text), config.validation_fraction, config.model.context)
    facts = {
        "sha256": corpus.sha256,
        "characters": len(corpus.text),
        "training": len(split.training),
        "validation": len(split.validation),
        "symbols": len(vocabulary),
    }
    return Text(vocabulary, split, facts)


def mean_loss(twin: Twin, batches: Iterable[Batch]) -> float:
    """Mean loss over all targets of the batches, nats per token; sums in float64, so that batching does not matter."""
    total, count = 0.0, 0
    for batch in batches:
        total += twin.evaluate_loss(batch)
        count += batch.targets.size
    return total / count


class Trainer:
    """One run in progress: a twin, its random streams, its log, and how far it is."""

    def __init__(self, config: TrainConfig, text: Text, folder: Path) -> None:
        self.config, self.text, self.folder = config, text, folder
        self.streams = streams.streams(config.seed)
        dtype = np.float64 if config.dtype == "float64" else np.float32  # for bfloat16 these are the masters
        parameters = initialize(config.model, self.streams["initialization"], dtype)
        self.twin = create_backend(config.model, parameters, config, self.streams["dropout"])
        self._estimate = sampled_batches(
            text.split.validation,
            config.model.context,
            config.evaluation_batch,
            config.evaluation_characters,
            self.streams["evaluation"],
        )
        self.step = 0  # updates done
        self.training_seconds = self.evaluation_seconds = 0.0

    def run(self, on_step: Callable[[int], None] | None = None) -> Outcome:
        """Trains to the last step and evaluates; leaves weights, state and log in the run folder.

        `on_step` is called after every step with the number of steps done, for experiments that look inside.
        Raises: Interrupted after Ctrl-C, with a checkpoint saved; ValueError when the loss is not finite."""
        config = self.config
        with _Interrupts() as interrupts, tqdm(total=config.steps, initial=self.step, unit="step", disable=None) as bar:
            if self.step == 0:
                self._evaluate(bar)
            while self.step < config.steps:
                self._advance(bar)
                if on_step is not None:
                    on_step(self.step)
                if _due(self.step, config.evaluate_every) and self.step < config.steps:
                    self._evaluate(bar)
                if _due(self.step, config.checkpoint_every) or self.step == config.steps or interrupts.seen:
                    self.save()
                if interrupts.seen and self.step < config.steps:
                    raise Interrupted(f"stopped after step {self.step}; to go on: twinformer train --resume {self.folder}")
        return self._finish()

    def describe(self) -> str:
        """One line on what is about to be trained."""
        config, model = self.config, self.config.model
        return (
            f"{parameter_count(model):,} parameters ({model.layers} layers, {model.heads} heads, width {model.width}, "
            f"context {model.context}), {len(self.text.split.training):,} characters to learn from, "
            f"{config.backend}, {config.dtype}"
        )

    def save(self) -> None:
        """Writes both checkpoints; the state comes first, since resuming asks for nothing else."""
        arrays, extra = self.twin.export_state()
        extra = {
            "step": self.step,
            "training_seconds": self.training_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "streams": streams.export_state(self.streams),
            "twin": extra,
        }
        save_arrays(self.folder / run_folder.STATE, "state", arrays, extra)
        model, vocabulary = self.config.model, self.text.vocabulary
        save_model(self.folder / run_folder.MODEL, self.twin.parameters(), model, vocabulary, self.step)

    def restore(self) -> None:
        """Goes on from the run's checkpoint. Raises: ValueError when its model, text, seed or dtype is another."""
        _check_same_experiment(self.config, self.folder, self.text)
        arrays, extra = run_folder.load_state(self.folder)
        try:
            step, twin, stream_states = int(extra["step"]), dict(extra["twin"]), dict(extra["streams"])
            self.training_seconds = float(extra["training_seconds"])
            self.evaluation_seconds = float(extra["evaluation_seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: expected a checkpoint with all of a run's state, got one without: {error}"
            ) from error
        if step > self.config.steps:
            raise ValueError(f"steps: expected at least the {step} that the run has done, got {self.config.steps}")
        self.twin.import_state(arrays, twin)
        streams.import_state(self.streams, stream_states)
        self.step = step
        run_folder.trim_log(self.folder, self.step)

    def _advance(self, bar: tqdm) -> None:
        """One step, timed and, when its turn comes, logged."""
        config, start = self.config, time.perf_counter()
        rate = schedule.learning_rate(config, self.step)
        batches = [
            random_batch(self.text.split.training, config.model.context, config.batch, self.streams["data"])
            for _ in range(config.accumulate)
        ]
        result = self.twin.gradient_step(batches, rate)
        self.step += 1
        logged = _due(self.step, config.log_every) or self.step in (1, config.steps)
        # float() waits for the device, so it stands inside the measured time and only where a record is due.
        loss, norm = (float(result.loss), float(result.gradient_norm)) if logged else (0.0, 0.0)
        seconds = time.perf_counter() - start
        self.training_seconds += seconds
        bar.update()
        if logged:
            bar.set_postfix_str(f"loss {loss:.3f} nats")
            self._log(
                train_loss=loss,
                learning_rate=rate,
                gradient_norm=norm,
                tokens_per_second=sum(batch.tokens.size for batch in batches) / seconds,
                training_seconds=self.training_seconds,
            )
            if not math.isfinite(loss):
                raise ValueError(
                    f"learning_rate: the loss became {loss} at step {self.step}; a lower rate may help, got {rate}"
                )

    def _evaluate(self, bar: tqdm) -> None:
        """The estimate of the validation loss on the run's fixed sample of windows."""
        loss, characters = self._measure(self._estimate), sum(batch.targets.size for batch in self._estimate)
        self._log(validation_loss=loss, exact=False, characters=characters, evaluation_seconds=self.evaluation_seconds)
        bar.write(f"step {self.step:6d}  validation loss about {loss:.4f} nats/character")

    def _finish(self) -> Outcome:
        """The exact validation loss: every character of the split but the first, predicted once."""
        validation, config = self.text.split.validation, self.config
        loss = self._measure(covering_batches(validation, config.model.context, config.evaluation_batch))
        self._log(
            validation_loss=loss,
            exact=True,
            characters=len(validation) - 1,
            bits_per_character=loss / math.log(2),
            training_seconds=self.training_seconds,
            evaluation_seconds=self.evaluation_seconds,
        )
        return Outcome(self.folder, loss, self.training_seconds, self.evaluation_seconds)

    def _measure(self, batches: Iterable[Batch]) -> float:
        start = time.perf_counter()
        loss = mean_loss(self.twin, batches)
        self.evaluation_seconds += time.perf_counter() - start
        return loss

    def _log(self, **record: Any) -> None:
        """Appends one record; the file is opened anew each time, so that nothing waits in a buffer of ours."""
        with (self.folder / run_folder.LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **record}) + "\n")


class _Interrupts:
    """While it is open, the first Ctrl-C sets `seen`, so that no step is cut in half; a second one raises at once."""

    def __enter__(self) -> _Interrupts:
        self.seen = False
        self._main = threading.current_thread() is threading.main_thread()  # Python allows handlers only there
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True


def _check_same_experiment(config: TrainConfig, folder: Path, text: Text) -> None:
    saved = read_run_config(folder)
    for name in FIXED:
        if getattr(saved, name) != getattr(config, name):
            raise ValueError(f"{name}: expected {getattr(saved, name)} as in the run to resume, got {getattr(config, name)}")
    if run_folder.text_of(folder).get("sha256") != text.facts["sha256"]:
        raise ValueError(f"corpus: expected the text that the run in {str(folder)!r} learnt from, got another one")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
