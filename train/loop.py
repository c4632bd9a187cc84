"""The training loop, one for both twins, from the options to the folder that a run leaves."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import numpy as np

from reference_numpy.parameters import Parameters, initialize, parameter_count
from train import run_folder, schedule, streams
from train.backend import PARAMETERS, Arrays, Backend, out_of_memory
from train.checkpoint import mean_parameters, save_arrays, save_model, write_atomically, writing
from train.configuration import ModelOptions, TrainConfig, flat_options, read_run_config, with_vocabulary
from train.create import create_backend, with_dtype
from train.data import Batch
from train.parallel import ALONE, Processes
from train.progress import discard_output, tqdm
from train.start import parameters_to_begin_with
from train.task import Task, create_task

# A checkpoint belongs to these; going on with others would be another experiment.
MODEL_OPTIONS = tuple(option.name for option in fields(ModelOptions))
# Of a run that has done all of its steps these would be a claim about what it has done.
OF_STEPS = (
    *("batch", "batch_tokens", "accumulate", "schedule", "learning_rate", "adamw_learning_rate", "minimum_learning_rate"),
    *("warmup", "decay", "momentum", "beta1", "beta2", "epsilon", "weight_decay", "clip_norm", "input_noise"),
    "label_smoothing",
)
FIXED = ("task", "init_from", "validation_fraction", "subwords", "optimizer", "seed", "dtype", *MODEL_OPTIONS)


class Interrupted(KeyboardInterrupt):
    """Training was stopped; a checkpoint was saved, and the text says how to go on."""


class Outcome(NamedTuple):
    """What a finished run reports: the exact mean loss over the validation set (nats per target), scores, and seconds."""

    folder: Path
    validation_loss: float
    training_seconds: float
    evaluation_seconds: float
    scores: dict[str, Any]


def prepare(config: TrainConfig, processes: Processes = ALONE, folder: Path | None = None) -> Trainer:
    """All that can fail before training: the folder, the task and its data, the model, the checkpoint to go on from.

    `folder` is one that `run_folder.claimed` gave; None chooses one. Afterwards it exists and has its config.json. Raises:
    ValueError or OSError for what a user can mend."""
    folder = processes.agreed(run_folder.choose(config)) if folder is None else folder
    if config.init_from is not None:  # the run may be resumed from anywhere
        config = replace(config, init_from=str(Path(config.init_from).resolve()))
    with processes.one_after_the_other():
        task = create_task(config)
        start = None if config.resume is not None else parameters_to_begin_with(config, task.kind, task.vocabulary)
    config = with_dtype(with_vocabulary(config, len(task.vocabulary), task.kind))
    trainer = Trainer(config, task, folder, processes, start)
    if config.resume is not None:
        trainer.restore()
    if processes.writes:
        with trainer.or_as_it_was():
            run_folder.open_for(config, folder, task.facts, task.files, trainer.step)
            if config.resume is not None:
                run_folder.trim_log(folder, trainer.step)
    return trainer


def snapshot_steps(count: int, steps: int) -> set[int]:
    """Steps after which to keep a model: 0, and from a hundredth of `steps` on evenly on a logarithmic scale.

    The finished model stands for the last step. Short runs have fewer, since two cannot share a step."""
    if count == 0:
        return set()
    return {0, *map(round, np.geomspace(max(1.0, steps / 100), steps, min(count, steps + 1))[:-1])} - {steps}


def mean_loss(backend: Backend, batches: Iterable[Batch]) -> float:
    """Mean loss over all targets that count, nats per token; sums in float64, so that batching does not matter."""
    total, count = 0.0, 0
    for batch in batches:
        total += backend.evaluate_loss(batch)
        count += batch.counted
    return total / count


class Trainer:
    """One run in progress: a backend, its random streams, its log, and how far it is."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        folder: Path,
        processes: Processes = ALONE,
        start: Parameters | None = None,
    ) -> None:
        """`start` are the parameters to begin with; None draws them."""
        self.config, self.task, self.folder, self.processes = config, task, folder, processes
        self.streams = streams.streams(config.seed)
        dtype = np.float64 if config.dtype == "float64" else np.float32  # for bfloat16 these are the masters
        drawn = initialize(config.model, self.streams["initialization"], dtype) if start is None else start
        parameters = {name: array.astype(dtype, copy=False) for name, array in drawn.items()}
        self.backend = create_backend(config.model, parameters, config, self.streams["dropout"], processes)
        self._estimate = task.estimate_batches(self.streams["evaluation"])
        self._snapshots = snapshot_steps(config.snapshots, config.steps)
        self._since_record = (0, 0.0)  # targets and seconds
        self.step = 0  # updates done
        self._unheard = False  # whether whoever read our output has gone
        self._lowest = math.inf  # estimate of the validation loss, nats per target
        self._undo: dict[Path, bytes] = {}  # files of a resumed run as they were, until it has saved
        self._unwanted: list[Path] = []  # models that a resumed run kept and no longer averages, until it saves
        self.training_seconds = self.evaluation_seconds = 0.0

    def run(self, on_step: Callable[[int], None] | None = None) -> Outcome:
        """Trains to the last step and evaluates; leaves weights, state and log in the run folder.

        `on_step` is called after every step with the number of steps done, for experiments that look inside.
        Raises: Interrupted after Ctrl-C or another signal to end, with a checkpoint saved; ValueError when the loss is not
        finite; MemoryError. What fails before it has saved leaves a resumed run as it was, but for models that are later
        than its state."""
        try:
            with self.or_as_it_was():
                self._train(on_step)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            what, _, _ = str(error).partition("\n")
            advice = "a smaller batch with more accumulate takes less, and so does --checkpoint-activations"
            raise MemoryError(f"batch: not enough memory for a step ({what}); {advice}") from error
        try:
            with self.or_as_it_was():
                return self._finish()
        except KeyboardInterrupt as interrupt:
            raise Interrupted(f"stopped after training; to go on: twinformer train --resume {self.folder}") from interrupt

    @contextlib.contextmanager
    def or_as_it_was(self) -> Iterator[None]:
        """What ends with an error leaves a resumed run that has saved nothing yet as it was."""
        try:
            yield
        except BaseException:
            for path, content in self._undo.items():
                try:
                    write_atomically(path, content)
                except OSError:  # a full disk has no room for two, but for the old one where the new one was
                    path.write_bytes(content)
            raise

    def _train(self, on_step: Callable[[int], None] | None) -> None:
        """All steps that are left, with estimates and checkpoints."""
        config, hidden = self.config, None if self.processes.writes else True  # None: where nobody looks
        with _Interrupts() as interrupts, tqdm(total=config.steps, initial=self.step, unit="step", disable=hidden) as bar:
            if self.step == 0:
                self._evaluate(bar)
                self._take_snapshot()
            while self.step < config.steps:
                self._advance(bar)
                if on_step is not None:
                    on_step(self.step)
                self._take_snapshot()
                last = self.step == config.steps  # then all is measured anyway: an estimate is for the choice of the best
                if config.keep_best if last else _due(self.step, config.evaluate_every):
                    self._evaluate(bar)
                stop = self.processes.any(interrupts.seen or self._unheard)
                if _due(self.step, config.checkpoint_every) or self.step == config.steps or stop:
                    self.save()
                if stop and self.step < config.steps:
                    raise Interrupted(f"stopped after step {self.step}; to go on: twinformer train --resume {self.folder}")

    def describe(self) -> str:
        """One line on what is about to be trained."""
        config, model = self.config, self.config.model
        return (
            f"{parameter_count(model):,} parameters ({model.layers} layers, {model.heads} heads, width {model.width}, "
            f"context {model.context}), {self.task.size}, "
            f"{config.backend}, {config.dtype}"
        )

    def save(self) -> None:
        """Writes both checkpoints; the state comes first, since resuming asks for little else.

        Raises: ValueError when a number in it is not finite: what is on the disk stays."""
        arrays, extra = self.backend.export_state()
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise self._diverged(f"a parameter or what the optimizer keeps became NaN or inf by step {self.step}")
        parameters = {n.removeprefix(PARAMETERS): array for n, array in arrays.items() if n.startswith(PARAMETERS)}
        if self.config.average > 1 and self._is_kept(self.step):
            self._save_model(run_folder.KEPT.format(step=self.step), parameters)
            self._remove(path for _, path in run_folder.kept(self.folder)[: -self.config.average])
        extra = {
            "step": self.step,
            "training_seconds": self.training_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "streams": streams.export_state(self.streams),
            "twin": extra,
        }
        if self.processes.writes:
            save_arrays(self.folder / run_folder.STATE, "state", arrays, extra)
        self._undo = {}
        self._remove_unwanted()
        self._save_model(run_folder.MODEL, parameters)
        self._remove(path for _, path in run_folder.best(self.folder)[:-1])

    def restore(self) -> None:
        """Goes on from the run's checkpoint. Raises: ValueError when its task, data, model, seed or dtype is another."""
        _check_same_experiment(self.config, self.folder, self.task)
        arrays, extra = run_folder.load_state(self.folder)
        try:
            step, own, stream_states = int(extra["step"]), dict(extra["twin"]), dict(extra["streams"])
            self.training_seconds = float(extra["training_seconds"])
            self.evaluation_seconds = float(extra["evaluation_seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._incomplete(error) from error
        if step > self.config.steps:
            raise ValueError(f"steps: expected at least the {step} that the run has done, got {self.config.steps}")
        if step == self.config.steps:
            _check_same_options(self.config, self.folder, OF_STEPS, "as in the run, which has done all of its steps")
        kept, later = run_folder.kept(self.folder), [*run_folder.best(self.folder), *run_folder.snapshots(self.folder)]
        best = [number for number, _ in run_folder.best(self.folder) if number <= step]
        if self.config.keep_best and step == self.config.steps and not best:
            raise ValueError("keep_best: expected none for a finished run that has kept no best model, got True")
        if self.config.keep_best and best:
            measured = ("evaluation_characters", "evaluation_batch")
            _check_same_options(self.config, self.folder, measured, "as for the best model that it has kept")
        wanted = [number for number, _ in kept if number <= step and self._is_kept(number)]
        if self.config.average > 1:
            if kept:  # else some of them would not be among those to average
                _check_same_options(self.config, self.folder, ("checkpoint_every",), "as for the models that it has kept")
            to_come = sum(self._is_kept(number) for number in range(step + 1, self.config.steps + 1))
            if self.config.average > len(wanted) + to_come:
                raise ValueError(
                    f"average: expected at most {len(wanted) + to_come}, the models that this run has kept and will keep, "
                    f"got {self.config.average}"
                )
            wanted = wanted[-self.config.average :]
        elif step < self.config.steps:  # a gap would follow them
            wanted = []
        try:
            self.backend.import_state(arrays, own)
        except KeyError as error:
            raise self._incomplete(error) from error
        streams.import_state(self.streams, stream_states)
        self.step = step
        if self.processes.writes:
            changing = [self.folder / name for name in (run_folder.LOG, run_folder.CONFIG)]
            if step == self.config.steps:  # its model is replaced, and nothing is saved any more
                changing.append(self.folder / run_folder.MODEL)
            self._undo = {path: path.read_bytes() for path in changing if path.exists()}
        estimates = {r["step"]: r["validation_loss"] for r in run_folder.read_log(self.folder) if r.get("exact") is False}
        self._lowest = self.processes.agreed(min((estimates.get(number, math.inf) for number in best), default=math.inf))
        self._remove(path for number, path in later if number > step)
        self._unwanted = [path for number, path in kept if number not in wanted]
        if not self.config.keep_best and step < self.config.steps:
            self._unwanted += [path for number, path in run_folder.best(self.folder) if number <= step]

    def _incomplete(self, error: Exception) -> ValueError:
        return ValueError(f"{self.folder}: expected a checkpoint with all of a run's state, got one without: {error}")

    def _is_kept(self, step: int) -> bool:
        """Whether the checkpoint after `step` is one to average; what Ctrl-C leaves in between is not."""
        return step == self.config.steps or _due(step, self.config.checkpoint_every)

    def _take_snapshot(self) -> None:
        """Keeps the model where its turn has come. Half precision is enough for pictures, and half the size."""
        if self.step in self._snapshots:
            half = {name: array.astype(np.float16) for name, array in self.backend.parameters().items()}
            self._save_model(run_folder.SNAPSHOT.format(step=self.step), half)

    def _save_model(self, name: str, parameters: Arrays, step: int | None = None) -> None:
        """`step` is the number of updates that they have seen; None for all so far."""
        if self.processes.writes:
            count = self.step if step is None else step
            save_model(self.folder / name, parameters, self.config.model, self.task.vocabulary, count)

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths if self.processes.writes else ():
            path.unlink(missing_ok=True)

    def _remove_unwanted(self) -> None:
        self._remove(self._unwanted)
        self._unwanted = []

    def _advance(self, bar: tqdm) -> None:
        """One step, timed and, when its turn comes, logged."""
        config, start = self.config, time.perf_counter()
        rate = schedule.learning_rate(config, self.step)
        batches = [
            self.task.training_batch(self.step * config.accumulate + part, self.streams["data"])
            for part in range(config.accumulate)
        ]
        result = self.backend.gradient_step(batches, rate)
        self.step += 1
        logged = _due(self.step, config.log_every) or self.step in (1, config.steps)
        # float() waits for the device, so it stands inside the measured time and only where the figures are wanted, or where
        # something is next whose time is not of training. The time of a step that is not waited for falls to a later one.
        apart = _due(self.step, config.evaluate_every) or _due(self.step, config.checkpoint_every)
        waits = logged or apart or self.step in self._snapshots
        loss, norm = (float(result.loss), float(result.gradient_norm)) if waits else (0.0, 0.0)
        seconds = time.perf_counter() - start
        self.training_seconds += seconds
        targets, since = self._since_record
        self._since_record = targets, since = targets + sum(batch.counted for batch in batches), since + seconds
        bar.update()
        if logged:
            bar.set_postfix_str(f"loss {loss:.3f} nats")
            self._log(
                train_loss=loss,
                learning_rate=rate,
                gradient_norm=norm,
                tokens_per_second=targets / since,
                training_seconds=self.training_seconds,
            )
            self._since_record = (0, 0.0)
            if not math.isfinite(loss):
                raise self._diverged(f"the loss became {loss} at step {self.step}")

    def _diverged(self, what: str) -> ValueError:
        rate = schedule.learning_rate(self.config, self.step - 1)
        return ValueError(f"learning_rate: {what}; a lower rate may help, got {rate}")

    def _evaluate(self, bar: tqdm) -> None:
        """The estimate of the validation loss on the run's fixed part of the validation set."""
        loss = self._measure(self._estimate)
        if self.config.keep_best and self.processes.agreed(loss < self._lowest):
            self._lowest = loss
            self._save_model(run_folder.BEST.format(step=self.step), self.backend.parameters())
        counted = {self._units: sum(batch.counted for batch in self._estimate)}
        self._log(validation_loss=loss, exact=False, **counted, evaluation_seconds=self.evaluation_seconds)
        if self.processes.writes and not self._unheard:
            try:
                bar.write(f"step {self.step:6d}  validation loss about {loss:.4f} nats/{self.task.unit}")
            except BrokenPipeError:  # as in `twinformer train | head`: stop as after Ctrl-C
                self._unheard = True
                discard_output()

    def _finish(self) -> Outcome:
        """The exact validation loss, of every target of the validation set, and the scores of the task.

        Of several processes, the one that writes takes the finished model and goes on by itself."""
        self.processes.any(False)  # all files are written, and the old ones gone
        step = self.step
        if self.config.average > 1:
            self._take_the_mean([path for _, path in run_folder.kept(self.folder) if path not in self._unwanted])
        elif self.config.keep_best:
            step, best = run_folder.best(self.folder)[-1]
            self._take_the_mean([best])
        # The mean's; else those of the last step again, in case that a crash came between state and model.
        self._save_model(run_folder.MODEL, self.backend.parameters(), step)
        batches = list(self.task.validation_batches())
        loss = self._measure(batches)
        if not math.isfinite(loss):
            raise self._diverged(f"the exact validation loss became {loss} at step {self.step}")
        start = time.perf_counter()
        self.backend = self.backend.alone()
        scores = self.task.scores(self.backend) if self.processes.writes else {}
        self.evaluation_seconds += time.perf_counter() - start
        seconds = {"training_seconds": self.training_seconds, "evaluation_seconds": self.evaluation_seconds}
        figures = {self._units: sum(batch.counted for batch in batches), f"bits_per_{self._units[:-1]}": loss / math.log(2)}
        self._log(validation_loss=loss, exact=True, **figures, **seconds)
        self._undo = {}
        self._remove_unwanted()
        if scores:  # only where it is to be written
            # The processor's time is that of all threads of this call of the command, and of its processes that have ended.
            content = {**scores, "validation_loss": loss, "step": self.step, **seconds, "cpu_seconds": sum(os.times()[:4])}
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            write_atomically(self.folder / run_folder.SCORES, text.encode())
        return Outcome(self.folder, loss, **seconds, scores=scores)

    def _take_the_mean(self, paths: Sequence[Path]) -> None:
        """Goes over to the mean of the models in these files; the state on disk stays that of training."""
        arrays, extra = self.backend.export_state()
        mean = {PARAMETERS + name: array for name, array in mean_parameters(paths).items()}
        self.backend.import_state(arrays | mean, extra)

    @property
    def _units(self) -> str:
        return self.task.unit.replace(" ", "_") + "s"

    def _measure(self, batches: Iterable[Batch]) -> float:
        start = time.perf_counter()
        loss = mean_loss(self.backend, batches)
        self.evaluation_seconds += time.perf_counter() - start
        return loss

    def _log(self, **record: Any) -> None:
        """Appends one record; the file is opened anew each time, so that nothing waits in a buffer of ours."""
        if not self.processes.writes:
            return
        path = self.folder / run_folder.LOG
        with writing(path), path.open("a", encoding="utf-8") as file:
            finite = {name: value if math.isfinite(value) else None for name, value in record.items()}  # JSON has no NaN
            file.write(json.dumps({"step": self.step, **finite}) + "\n")


class _Interrupts:
    """While it is open, the first Ctrl-C, or another signal by which a cluster or a terminal announces the end, sets `seen`,
    so that no step is cut in half. A second one raises at once; one that comes within a second is an echo of the first."""

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
    ECHO = 1.0  # seconds

    def __enter__(self) -> _Interrupts:
        self.seen, self._first = False, 0.0
        self._main = threading.current_thread() is threading.main_thread()  # Python allows handlers only there
        if self._main:
            heard = [number for number in self.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
            self._previous = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.seen and now > self._first + self.ECHO:
            raise KeyboardInterrupt
        if not self.seen:
            self.seen, self._first = True, now


def _check_same_experiment(config: TrainConfig, folder: Path, task: Task) -> None:
    saved, given = (flat_options(one) for one in (read_run_config(folder), config))
    if saved["task"] == given["task"] and run_folder.text_of(folder).get("sha256") != task.facts["sha256"]:
        raise ValueError(f"corpus: expected the data that the run in {str(folder)!r} learned from, got another one")
    _check_same_options(config, folder, FIXED, "as in the run to resume")


def _check_same_options(config: TrainConfig, folder: Path, names: Sequence[str], why: str) -> None:
    saved, given = (flat_options(one) for one in (read_run_config(folder), config))
    for name in names:
        if saved[name] != given[name]:
            raise ValueError(f"{name}: expected {saved[name]} {why}, got {given[name]}")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
