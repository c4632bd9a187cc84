"""What `twinformer check` compares: parameters, a model, a batch, and the loss of a training step on them."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reference_numpy.config import ModelConfig
from reference_numpy.loss import IGNORE, cross_entropy_forward
from reference_numpy.model import ModelCache, loss_and_gradients, model_forward
from reference_numpy.parameters import Parameters, initialize
from train import run_folder, streams
from train.checkpoint import load_model
from train.commands import CheckConfig
from train.configuration import ON_TEXT, TrainConfig, preset, read_config, read_run_config, with_vocabulary
from train.data import Batch
from train.task import Task, create_task
from train.vocabulary import Symbols

VOCABULARY = 61  # symbols of a random batch where the options name no number: a prime, so that no other axis has it
Saved = tuple[Parameters, ModelConfig, Symbols]


class Subject(NamedTuple):
    """A model with parameters in float64, and a batch: all that loss and gradients depend on."""

    name: str
    parameters: Parameters
    model: ModelConfig
    batch: Batch
    label_smoothing: float
    seed: int

    def dropout(self) -> np.random.Generator:
        """The stream of the dropout masks, from its start: every call, and both twins, drop the same units."""
        return streams.stream(self.seed, "dropout")

    def loss(self, parameters: Parameters) -> tuple[np.ndarray, ModelCache]:
        """The spec's loss in training, in nats per token that counts, and the cache of its model."""
        batch = self.batch
        logits, cache = model_forward(parameters, self.model, batch.tokens, **batch.inputs(), generator=self.dropout())
        return cross_entropy_forward(logits, batch.targets, self.label_smoothing)[0], cache

    def loss_and_gradients(self, parameters: Parameters) -> Parameters:
        """The spec's loss, as "loss", and its gradients under the names of the parameters."""
        batch = self.batch
        own = {"label_smoothing": self.label_smoothing, "generator": self.dropout(), **batch.inputs()}
        loss, gradients = loss_and_gradients(parameters, self.model, batch.tokens, batch.targets, **own)
        return {"loss": loss} | {name: gradients[name] for name in parameters}


def create_subject(config: CheckConfig) -> Subject:
    """What the options name. Raises: ValueError or OSError for what a user can mend."""
    name, options, saved = _source(config)
    wants_data = config.batch == "data" or (config.batch is None and config.run is not None)
    task = create_task(_small(options, config)) if wants_data else None
    if saved is None:
        model = _fresh_model(options, task)
        parameters = _fresh_parameters(model, config.seed)
    else:
        loaded, model, vocabulary = saved
        parameters = {name: value.astype(np.float64) for name, value in loaded.items()}
        if task is not None and not (_same_data(task, config) and vocabulary.to_json() == task.vocabulary.to_json()):
            raise ValueError(f"corpus: expected the data that the model of {name} learned from, got another one")
    if task is not None:
        batch = _batch_of_data(task, config)
    elif config.batch in (None, "random"):
        batch = random_batch(model, config.sequences, config.length, streams.stream(config.seed, "data"))
    else:
        batch = read_batch(Path(str(config.batch)), model)
    if (batch.targets == IGNORE).all():
        raise ValueError(f"batch: expected a target that counts, got none in {config.batch}")
    return Subject(name, parameters, model, batch, options.label_smoothing, config.seed)


def _same_data(task: Task, config: CheckConfig) -> bool:
    """Whether it is what the run noted, if there is one and it noted something."""
    return (
        config.run is None
        or run_folder.text_of(Path(config.run)).get("sha256", task.facts["sha256"]) == task.facts["sha256"]
    )


def _source(config: CheckConfig) -> tuple[str, TrainConfig, Saved | None]:
    """A name for it, the options of the run, and the model as it was saved; None for one to be made afresh."""
    if config.run is not None:
        options = replace(read_run_config(Path(config.run)), resume=config.run)
        return f"run {config.run}", options, load_model(run_folder.model_of(Path(config.run)))
    if config.checkpoint is not None:
        if config.batch == "data":
            raise ValueError("batch: expected random or an .npz file with --checkpoint, which names no data, got data")
        return f"checkpoint {config.checkpoint}", TrainConfig(), load_model(Path(config.checkpoint))
    if config.config is not None:
        return f"config {config.config}", read_config(Path(config.config)), None
    name = config.preset or "default"
    return f"preset {name}", preset(name), None


def _small(options: TrainConfig, config: CheckConfig) -> TrainConfig:
    """The options of the task with a small batch. Windows of a text may be short; pairs are as they are, and cut later."""
    length = min(config.length, options.model.context)
    small = replace(options, batch=config.sequences, batch_tokens=config.sequences * options.model.context)
    return replace(small, model=replace(options.model, context=length)) if options.task in ON_TEXT else small


def _fresh_model(options: TrainConfig, task: Task | None) -> ModelConfig:
    """The model that the options describe; what a task decides is guessed where there is no data to ask."""
    if task is not None:
        return with_vocabulary(options, len(task.vocabulary), task.kind).model
    kind, size = options.model.kind, options.model.vocabulary
    if kind == "decoder" and options.task != "language_model":
        kind = "encoder" if options.task in ON_TEXT else "encoder_decoder"
    return with_vocabulary(options, VOCABULARY if size == 1 else size, kind).model


def _fresh_parameters(model: ModelConfig, seed: int) -> Parameters:
    """Initial parameters, each moved by a normal draw of deviation 1/sqrt(length of the last axis), a matrix's fan-in.

    A bias of 0, a gain of 1 and above all a projection of 0 would hide faults: what is multiplied by them has gradient 0."""
    generator = streams.stream(seed, "initialization")
    initial = initialize(model, generator, np.float64)
    return {
        name: value + generator.standard_normal(value.shape) / np.sqrt(value.shape[-1]) for name, value in initial.items()
    }


def random_batch(model: ModelConfig, sequences: int, length: int, generator: np.random.Generator) -> Batch:
    """Random tokens in the form in which this kind of model gets them in training.

    Pairs are padded at the end; an encoder has targets at about half of its positions; a decoder has neither."""
    V, B, T = model.vocabulary, sequences, min(length, model.context)
    tokens, targets = generator.integers(0, V, (B, T)), generator.integers(0, V, (B, T))
    if model.kind == "decoder":
        return Batch(tokens, targets)
    if model.kind == "encoder":
        asked = generator.random((B, T)) < 0.5
        asked[0, 0] = True
        return Batch(tokens, np.where(asked, targets, IGNORE))
    S = min(length + 1, model.context)
    padding, source_padding = (np.arange(n) < generator.integers(1, n + 1, (B, 1)) for n in (T, S))
    padding[0], source_padding[0] = True, True
    return Batch(tokens, np.where(padding, targets, IGNORE), padding, generator.integers(0, V, (B, S)), source_padding)


def _batch_of_data(task: Task, config: CheckConfig) -> Batch:
    """The first training batch with a target that counts, cut to the size that the options allow."""
    generator, number = streams.stream(config.seed, "data"), 0
    cut = slice(config.sequences), slice(config.length)
    while True:
        whole = task.training_batch(number, generator)
        optional = (None if part is None else part[cut] for part in whole[2:])
        batch = Batch(whole.tokens[cut], whole.targets[cut], *optional)
        if batch.counted:
            return batch
        number += 1


def read_batch(path: Path, model: ModelConfig) -> Batch:
    """A batch from an .npz file with arrays named as the fields of Batch.

    Raises: ValueError for a file that is none, and for an array that is missing, unknown, or does not fit the model."""
    if not path.is_file():
        raise ValueError(f"batch: expected random, data, or an .npz file, got {str(path)!r}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # TypeError: a single array, .npy
        raise ValueError(f"batch: expected an .npz file of arrays, got {str(path)!r} ({error})") from error
    sources = ["source"] if model.kind == "encoder_decoder" else []
    needed = ["tokens", "targets", *sources]
    allowed = [*needed, "padding", *(f"{name}_padding" for name in sources)]
    for name in [*needed, *arrays]:
        if name not in arrays or name not in allowed:
            got = f"an array {name}" if name in arrays else f"none called {name}"
            raise ValueError(f"batch: expected {', '.join(needed)} and at most padding for kind {model.kind}, got {got}")
    for name in ["tokens", *sources]:
        if arrays[name].ndim != 2 or arrays[name].size == 0:
            raise ValueError(f"batch: {name}: expected shape (B, T), at least one token, got {arrays[name].shape}")
    for name, array in arrays.items():
        shape = (len(arrays["tokens"]), arrays["source" if name.startswith("source") else "tokens"].shape[1])
        what, kinds = ("bool", "b") if name.endswith("padding") else ("integers", "iu")
        if array.shape != shape or array.dtype.kind not in kinds:
            raise ValueError(f"batch: {name}: expected {what} of shape {shape}, got {array.dtype} {array.shape}")
    return Batch(**{name: array if array.dtype == bool else array.astype(np.int64) for name, array in arrays.items()})
