"""Fine-tuning: the model of one run as what another begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from reference_numpy.config import Kind, ModelConfig
from reference_numpy.parameters import Parameters
from train import run_folder
from train.checkpoint import load_model, model_header
from train.configuration import TrainConfig
from train.vocabulary import Symbols

FREE = ("dropout", "initial_deviation", "zero_projections")  # options of a model that say nothing about its parameters


def vocabulary_to_keep(config: TrainConfig, kind: Kind) -> Symbols | None:
    """The vocabulary of the model to begin with, a `kind`; None where a run begins afresh.

    A run that goes on has it in a model of its own, if it has saved one. Raises: ValueError for another kind, and as
    `load_model`."""
    if config.init_from is None:
        return None
    path = run_folder.model_of(Path(config.resume or config.init_from))
    model, vocabulary = model_header(path if path.exists() else run_folder.model_of(Path(config.init_from)))
    if model.kind != kind:
        raise ValueError(
            f"init_from: expected a run that trained a model of kind {kind}, as this task does, got {model.kind}"
        )
    return vocabulary


def parameters_to_begin_with(config: TrainConfig, kind: Kind, symbols: Symbols) -> Parameters | None:
    """Those of the model in the run that `init_from` names, of an unfinished one the last that it has kept.

    Learned positions beyond a shorter context are left out. Raises: ValueError for a model of another shape, kind or
    vocabulary than is asked for, for numbers that are not finite, and as `load_model`."""
    if config.init_from is None:
        return None
    parameters, theirs, vocabulary = load_model(run_folder.model_of(Path(config.init_from)))
    for name, array in parameters.items():
        if not np.isfinite(array).all():
            raise ValueError(f"init_from: {name}: expected finite numbers, got NaN or inf")
    ours = replace(config.model, kind=kind, vocabulary=len(symbols))
    if vocabulary.to_json() != symbols.to_json():
        raise ValueError("init_from: expected a run whose vocabulary is that of this task, got another")
    free = {name: getattr(ours, name) for name in FREE}
    if ours.position != "learned" or ours.context <= theirs.context:
        free["context"] = ours.context
    if "context" in free and "position_embedding.weight" in parameters:
        parameters["position_embedding.weight"] = parameters["position_embedding.weight"][: ours.context]
    wanted = vars(_filled_in(ours))
    for name, value in vars(_filled_in(replace(theirs, **free))).items():
        if wanted[name] != value:
            most = "at most " if name == "context" else ""
            raise ValueError(f"{name}: expected {most}{value}, as in the run to begin with, got {wanted[name]}")
    return parameters


def _filled_in(model: ModelConfig) -> ModelConfig:
    """The same model with numbers in the place of None where None stands for a number."""
    return replace(model, key_value_heads=model.key_heads, feed_forward=model.inner_width)
