"""The attention page for weights of any model, from Python: in a notebook, or as a file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.attention_page import Moment, attention_page
from train.checkpoint import write_atomically
from train.looking import TITLES, Stack
from train.run_folder import output_file


class Page(NamedTuple):
    """One HTML file, which needs no network; a notebook shows it."""

    text: str

    def save(self, path: str) -> None:
        """Writes the file. Raises: ValueError where none can be written."""
        output_file("path", path)
        write_atomically(Path(path), self.text.encode())

    def _repr_html_(self) -> str:
        """A frame, so that the page's style stays inside of it."""
        return f'<iframe srcdoc="{html.escape(self.text)}" style="border: 0; width: 100%; height: 56em"></iframe>'


def show(
    attention: Sequence[Any], tokens: Sequence[str], keys: Sequence[str] | None = None, title: str = "Attention"
) -> Page:
    """The page on what every head of every layer attends to.

    `attention` has the softmax weights of each layer, (H, T, S) or (1, H, T, S), NumPy arrays or torch tensors: what
    Hugging Face's models return as `attentions`, or the values of `attention_weights` here. `tokens` are the T labels of the
    rows, the queries; `keys` the S labels of the columns, where those are another text. Raises: ValueError for arrays that
    are no such weights, labels that do not fit, and more than a page can hold."""
    if len(attention) == 0:
        raise ValueError("attention: expected the weights of at least one layer, got none")
    columns = tokens if keys is None else keys
    if not len(tokens) or not len(columns):
        raise ValueError(f"{'keys' if len(tokens) else 'tokens'}: expected at least one label, got none")
    layers = {f"layer {layer}": _weights(array, len(tokens), len(columns), layer) for layer, array in enumerate(attention)}
    if len({len(weights) for weights in layers.values()}) > 1:
        raise ValueError("attention: expected as many heads in every layer")
    name = "own" if keys is None else "cross"
    stack = Stack(name, TITLES[name], layers, list(map(str, tokens)), list(map(str, columns)))
    heads = len(layers["layer 0"])
    return Page(attention_page([Moment(0, None, [stack])], title, f"{len(layers)} layers, {heads} heads"))


def _weights(array: Any, T: int, S: int, layer: int) -> np.ndarray:
    """The weights of one layer, (H, T, S)."""
    weights = np.asarray(array.detach().float().cpu() if hasattr(array, "detach") else array, np.float64)
    weights = weights[0] if weights.ndim == 4 and len(weights) == 1 else weights
    if weights.ndim != 3 or weights.shape[1:] != (T, S):
        raise ValueError(f"attention: expected (H, {T}, {S}) for layer {layer} and these labels, got {np.shape(array)}")
    if not (weights >= 0).all() or weights.sum(axis=-1).max(initial=0) > 1.01:  # 1 but for the rounding of bfloat16
        raise ValueError(f"attention: expected weights of at least 0 that add up to at most 1 in layer {layer}, got others")
    return weights
