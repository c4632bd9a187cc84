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
from train.trained import Trained, load_trained
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
    context = trained.model.context
    if source is None:
        tokens = _text(trained, text, context)
        draw(trained.twin, trained.vocabulary, tokens, Path(config.output))
        return [Path(config.output)]
    read, longest = source_tokens(trained.vocabulary, source, context), context - 1  # the mark at the start takes one
    written = trained.vocabulary.encode(answer(trained, source))[:longest] if text is None else _text(trained, text, longest)
    return draw_pair(trained.twin, trained.vocabulary, read, written, Path(config.output))


def _text(trained: Trained, text: str | None, longest: int) -> np.ndarray:
    """Tokens of a text. Raises: ValueError for none, and for more than `longest`."""
    if text is None:
        raise ValueError("text: expected a text to read, got none")
    tokens = trained.vocabulary.encode(text)
    if len(tokens) > longest:
        unit = "characters" if isinstance(trained.vocabulary, Vocabulary) else "tokens"
        raise ValueError(f"text: expected at most {longest} {unit}, the model's context, got {len(tokens)}")
    return tokens


def draw(twin: Twin, vocabulary: Symbols, tokens: np.ndarray, path: Path) -> None:
    """Draws every head of every layer for tokens (T,), which must fit into the context."""
    labels = vocabulary.labels(tokens)
    plot_attention(twin.attention(tokens), labels, labels, path, "Who (down) attends to whom (across)")


def draw_pair(twin: Twin, vocabulary: Symbols, read: np.ndarray, written: np.ndarray, path: Path) -> list[Path]:
    """Draws the three attentions of an encoder-decoder that reads and writes such tokens; the paths of the pictures.

    The decoder's rows are what it has just read; those of the cross-attention are what it writes next."""
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
