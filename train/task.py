"""What there is to learn. A task is a vocabulary, batches, and a way to judge and to show what was learnt.

`language_model` and `masked_language_model` are in text.py, tasks that make their own pairs in generated.py, translation in
translation.py; the loop knows none of them by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from reference_numpy.config import Kind
from train.backend import Backend
from train.configuration import TrainConfig
from train.data import Batch
from train.vocabulary import Symbols


class Task(Protocol):
    """What the loop, the report and the commands ask of a task."""

    @property
    def kind(self) -> Kind:
        """Kind of model that learns it."""

    @property
    def vocabulary(self) -> Symbols:
        """What its tokens stand for."""

    @property
    def unit(self) -> str:
        """What a target is, for figures: "character", "masked character", "token"."""

    @property
    def size(self) -> str:
        """How much there is to learn from, in words."""

    @property
    def facts(self) -> dict[str, Any]:
        """Identity (sha256) and size of its data, for config.json; a resumed run must find the same."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """What the run folder keeps besides, by file name."""

    def training_batch(self, number: int, generator: np.random.Generator) -> Batch:
        """Micro-batch `number` of the run, counted from 0, drawn from the stream `generator`."""

    def validation_batches(self) -> Iterable[Batch]:
        """The validation set, every target once."""

    def estimate_batches(self, generator: np.random.Generator) -> list[Batch]:
        """A part of the validation set for the curve, drawn once."""

    def scores(self, backend: Backend) -> dict[str, Any]:
        """Figures of the finished model besides the loss; {} where there are none."""

    def sample(self, backend: Backend, generator: np.random.Generator) -> str:
        """A text that shows what was learnt."""

    def example(self) -> tuple[str | None, str]:
        """Source (None unless the model is an encoder-decoder) and text of the pictures of attention."""


def create_task(config: TrainConfig) -> Task:
    """The task that the options name. Raises ValueError or OSError where its data or a package is missing."""
    match config.task:
        case "language_model":
            from train.text import LanguageModel

            return LanguageModel(config)
        case "masked_language_model":
            from train.text import MaskedLanguageModel

            return MaskedLanguageModel(config)
        case "multi30k":
            from train.translation import Multi30k

            return Multi30k(config)
        case name:
            from train.generated import GeneratedPairs

            return GeneratedPairs(config, name)
