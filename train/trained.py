"""A trained model taken from a run folder, ready to write and to be looked at, with either twin."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from reference_numpy.config import ModelConfig
from train import run_folder, streams
from train.backend import Backend
from train.checkpoint import load_model
from train.configuration import BackendName, DecodingDtype, Device, TrainConfig, read_run_config
from train.create import create_backend, with_dtype
from train.vocabulary import Symbols


class Trained(NamedTuple):
    """A model, its vocabulary, its shape, and the options of the run that made it."""

    backend: Backend
    vocabulary: Symbols
    model: ModelConfig
    options: TrainConfig


def load_trained(run: str, backend: BackendName, device: Device, dtype: DecodingDtype = "float32") -> Trained:
    """The model of a run folder, of an unfinished run the last that it has kept; it writes in `dtype`.

    Raises: ValueError when `run` is not the folder of a run, or its model is missing, truncated or foreign."""
    folder = Path(run)
    options = read_run_config(folder)  # says clearly when this is some other folder
    parameters, model, vocabulary = load_model(run_folder.model_of(folder))
    here = with_dtype(TrainConfig(backend=backend, device=device, dtype=dtype))
    return Trained(create_backend(model, parameters, here, streams.stream(0, "dropout")), vocabulary, model, options)


def load_backend(path: Path, backend: BackendName, device: Device) -> Backend:
    """The model of one file. Raises: ValueError as `load_model`."""
    parameters, model, _ = load_model(path)
    return create_backend(model, parameters, TrainConfig(backend=backend, device=device), streams.stream(0, "dropout"))
