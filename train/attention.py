"""`twinformer attention`: what every head of every layer attends to, as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from train.backend import Twin
from train.configuration import AttentionConfig
from train.generate import answer
from train.pairs import marks, source_tokens
from train.plots import plot_attention
from train.run_folder import attention_of
from train.trained import load_trained
from train.vocabulary import Symbols, Vocabulary


def attention(config: AttentionConfig) -> list[Path]:
    """Draws the picture, or the three of a sequence-to-sequence model, and returns the paths.

    Raises: ValueError when the run has no usable model, a text is too long or missing or one too many, or a character is not
    in the vocabulary."""
    trained = load_trained(config.run, config.backend, config.device)
    source, text = config.source, config.text
    pairs = trained.model.kind == "encoder_decoder"
    if (source is not None) != pairs:
        expected = "a text to answer" if pairs else "none for a model of one text"
        raise ValueError(f"source: expected {expected}, got {'none' if source is None else repr(source)}")
    if text is None:
        if source is None:
            raise ValueError("text: expected a text to read, got none")
        text = answer(trained, source)
    length, longest = len(trained.vocabulary.encode(text)), trained.model.context - pairs  # the mark at the start takes one
    if length > longest:
        unit = "characters" if isinstance(trained.vocabulary, Vocabulary) else "tokens"
        raise ValueError(f"text: expected at most {longest} {unit}, the model's context, got {length}")
    if source is None:
        draw(trained.twin, trained.vocabulary, text, Path(config.output))
        return [Path(config.output)]
    source_tokens(trained.vocabulary, source, trained.model.context)  # says what is wrong with it
    return draw_pair(trained.twin, trained.vocabulary, source, text, Path(config.output))


def draw(twin: Twin, vocabulary: Symbols, text: str, path: Path) -> None:
    """Draws every head of every layer for `text`, which must fit into the context."""
    tokens = vocabulary.encode(text)
    labels = vocabulary.labels(tokens)
    plot_attention(twin.attention(tokens), labels, labels, path, "Who (down) attends to whom (across)")


def draw_pair(twin: Twin, vocabulary: Symbols, source: str, text: str, path: Path) -> list[Path]:
    """Draws the three attentions of an encoder-decoder that reads `source` and writes `text`; the paths of the pictures.

    The decoder's rows are what it has just read; those of the cross-attention are what it writes next."""
    read, written = vocabulary.encode(source), vocabulary.encode(text)
    start, end = marks(vocabulary)
    inputs, outputs = np.concatenate(([start], written)), np.concatenate((written, [end]))
    weights = twin.attention(inputs, read)
    rows = {"encoder": (read, read), "decoder": (inputs, inputs), "cross": (outputs, read)}
    titles = {
        "encoder": "Encoder: who (down) attends to whom (across)",
        "decoder": "Decoder: who (down) attends to whom (across)",
        "cross": "Cross-attention: what is looked at (across) while each symbol (down) is written",
    }
    paths = []
    for stack, (down, across) in rows.items():
        paths.append(path.with_name(attention_of(stack, path.name)))
        arrays = {f"layer {name.split('.')[2]}": array for name, array in weights.items() if _stack(name) == stack}
        plot_attention(arrays, vocabulary.labels(down), vocabulary.labels(across), paths[-1], titles[stack])
    return paths


def _stack(name: str) -> str:
    """encoder.blocks.0.attention -> encoder; decoder.blocks.0.cross_attention -> cross."""
    return "cross" if name.endswith("cross_attention") else name.split(".")[0]
