"""A trained model taken from a run folder, ready to write and to be looked at, with either twin."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from train import run_folder, streams
from train.backend import Twin, create_backend
from train.checkpoint import load_model
from train.configuration import Backend, Device, TrainConfig, read_run_config
from train.vocabulary import Vocabulary


class Trained(NamedTuple):
    """A model, its vocabulary, and the longest text it can look at (characters)."""

    twin: Twin
    vocabulary: Vocabulary
    context: int


def load_trained(run: str, backend: Backend, device: Device) -> Trained:
    """The model of a run folder.

    Raises: ValueError when `run` is not the folder of a run, or its model is missing, truncated or foreign."""
    folder = Path(run)
    read_run_config(folder)  # says clearly when this is some other folder
    parameters, model, vocabulary = load_model(folder / run_folder.MODEL)
    options = TrainConfig(backend=backend, device=device)
    twin = create_backend(model, parameters, options, streams.stream(0, "dropout"))
    return Trained(twin, vocabulary, model.context)
