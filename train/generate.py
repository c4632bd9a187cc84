"""`twinformer generate`: text from a trained model."""

from __future__ import annotations

import numpy as np

from train.backend import Sampling, Twin
from train.configuration import GenerateConfig
from train.streams import stream
from train.trained import load_trained
from train.vocabulary import Vocabulary


def generate(config: GenerateConfig) -> str:
    """The prompt and what the model writes after it.

    Raises: ValueError when the run has no usable model, or the prompt a character that its vocabulary lacks."""
    trained = load_trained(config.run, config.backend, config.device)
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    return write(trained.twin, trained.vocabulary, config.prompt, config.length, stream(config.seed, "sample"), sampling)


def write(
    twin: Twin, vocabulary: Vocabulary, prompt: str, length: int, generator: np.random.Generator, sampling: Sampling
) -> str:
    """`prompt` and `length` characters more."""
    return vocabulary.decode(twin.generate(vocabulary.encode(prompt, "prompt"), length, generator, sampling))
