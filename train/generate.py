"""`twinformer generate`: text from a trained model."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from train.backend import Backend, Sampling
from train.commands import OF_WRITING, GenerateConfig
from train.data import Batch
from train.pairs import Search, answer_all
from train.streams import stream
from train.trained import Trained, load_trained
from train.vocabulary import LABELS, MASK, Symbols, Vocabulary

HIDDEN = LABELS[MASK]  # as pictures show it
BETWEEN = "\n" + "-" * 20 + "\n"  # of several texts


def generate(config: GenerateConfig) -> str:
    """What a sequence-to-sequence model answers to the source; the prompt with its hidden characters filled in by a masked
    language model; else the prompt and what the model writes after it, so often as is asked.

    Raises: ValueError when the run has no usable model or one of the other kind, or a text a character that the model's
    vocabulary lacks."""
    trained = load_trained(config.run, config.backend, config.device, config.dtype)
    kind = trained.model.kind
    if (config.source is not None) != (kind == "encoder_decoder"):
        expected = "a text to answer" if kind == "encoder_decoder" else "none for a language model"
        raise ValueError(f"source: expected {expected}, got {'none' if config.source is None else repr(config.source)}")
    if config.source is not None:
        return answer(trained, config.source, config.beams, config.length_penalty)
    if kind == "encoder":
        for option in fields(config):
            value = getattr(config, option.name)
            if option.name in OF_WRITING and value != option.default:
                raise ValueError(f"{option.name}: expected none for a masked language model, which fills in, got {value}")
        return fill_in(trained, config.prompt)
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    prompt = fresh_line(trained.vocabulary) if config.prompt is None else config.prompt
    generator = stream(config.seed, "sample")
    asked = trained.backend, trained.vocabulary, prompt, config.length, generator, sampling, config.samples, config.compile
    return BETWEEN.join(write(*asked))


def fresh_line(vocabulary: Symbols) -> str:
    """What stands before a fresh line; the first symbol where the model has seen one line only."""
    one_line = isinstance(vocabulary, Vocabulary) and "\n" not in vocabulary.symbols
    return vocabulary.decode(np.zeros(1, np.int64)) if one_line else "\n"


def answer(trained: Trained, source: str, beams: int | None = None, length_penalty: float | None = None) -> str:
    """What the model makes of a source; None takes the search of its run."""
    options = trained.options
    search = Search(
        options.beams if beams is None else beams, options.length_penalty if length_penalty is None else length_penalty
    )
    return answer_all(trained.backend, trained.vocabulary, [source], search, trained.model.context)[0]


def fill_in(trained: Trained, prompt: str | None) -> str:
    """The prompt with the likeliest character in the place of each HIDDEN, which stays where that is the mask itself.

    Raises: ValueError for a prompt without one, and for one longer than the context."""
    if prompt is None or HIDDEN not in prompt:
        raise ValueError(f"prompt: expected a text with {HIDDEN} for each character to fill in, got {prompt!r}")
    tokens = trained.vocabulary.encode(prompt.replace(HIDDEN, MASK), "prompt")
    if len(tokens) > trained.model.context:
        raise ValueError(f"prompt: expected at most {trained.model.context} characters, the context, got {len(tokens)}")
    hidden = tokens == trained.vocabulary.encode(MASK)
    likeliest = trained.backend.predict(Batch(tokens[None], tokens[None]))[0]
    return trained.vocabulary.decode(np.where(hidden, likeliest, tokens)).replace(MASK, HIDDEN)


def write(
    backend: Backend,
    vocabulary: Symbols,
    prompt: str,
    length: int,
    generator: np.random.Generator,
    sampling: Sampling,
    samples: int = 1,
    compiled: bool = False,
) -> list[str]:
    """So many texts, each of `prompt` and `length` characters or other tokens more."""
    tokens = np.tile(vocabulary.encode(prompt, "prompt"), (samples, 1))
    return [vocabulary.decode(row) for row in backend.generate(tokens, length, generator, sampling, compiled)]
