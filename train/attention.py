"""`twinformer attention`: what every head of every layer attends to in a text, as a picture."""

from __future__ import annotations

from pathlib import Path

from train.backend import Twin
from train.configuration import AttentionConfig
from train.plots import plot_attention
from train.trained import load_trained
from train.vocabulary import Vocabulary


def attention(config: AttentionConfig) -> Path:
    """Draws the picture and returns its path.

    Raises: ValueError when the run has no usable model, the text is too long, or a character is not in the vocabulary."""
    trained = load_trained(config.run, config.backend, config.device)
    if len(config.text) > trained.context:
        raise ValueError(f"text: expected at most {trained.context} characters, the model's context, got {len(config.text)}")
    path = Path(config.output)
    draw(trained.twin, trained.vocabulary, config.text, path)
    return path


def draw(twin: Twin, vocabulary: Vocabulary, text: str, path: Path) -> None:
    """Draws every head of every layer for `text`, which must fit into the context."""
    plot_attention(twin.attention(vocabulary.encode(text)), text, text, path, "Who (down) attends to whom (across)")
