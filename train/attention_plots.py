"""Pictures of attention beyond the maps of `train.plots.plot_attention`: rollout, statistics, and one head step by step.

They take arrays, so that they can be drawn from anything that has attention."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reference_numpy.attention import AttentionCache, CausalCache, MultiHeadCache
from train.looking import distance, entropy, from_score_to_weight
from train.plots import attention_colors, new_figure, plot_attention, plot_style, save_figure, signed_colors
from train.vocabulary import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Path = str | os.PathLike[str]
MOST_TRACED = 24  # tokens in the picture of one head; each has a row in ten maps
MOST_NUMBERS = 12  # rows and columns of a map that has its numbers written in


class Trace(NamedTuple):
    """One head's way from its inputs to what it adds to the stream; every array is one that the model computed with."""

    x: np.ndarray
    """(T, D), who attends, after norm and token shift."""
    memory: np.ndarray
    """(S, D), what is attended to; x itself in self-attention."""
    query_weight: np.ndarray
    """(K, D), and so are those of key and value."""
    key_weight: np.ndarray
    value_weight: np.ndarray
    query: np.ndarray
    """(T, K), after bias, norm and rotation, where the model has them."""
    key: np.ndarray
    """(S, K), likewise."""
    value: np.ndarray
    """(S, K)."""
    scores: np.ndarray
    """(T, S), query key^T / sqrt(K)."""
    weights: np.ndarray
    """(T, S)."""
    output: np.ndarray
    """(T, K), weights value."""
    output_weight: np.ndarray
    """(D, K)."""
    added: np.ndarray
    """(T, D), output output_weight^T: this head's part of what the layer adds."""
    also: str
    """What else the model does to queries and keys after the product."""
    then: str
    """What it does to the scores, to make them weights."""
    shifted: bool = False
    """Whether the second half of each row of x is the token before's."""


def trace(cache: MultiHeadCache, head: int) -> Trace:
    """One head of an attention that the spec has run on one sequence.

    Raises: ValueError for a head that the model lacks."""
    config, attended = cache.config, cache.attention
    if not 0 <= head < config.heads:
        raise ValueError(f"head: expected 0 to {config.heads - 1}, got {head}")
    assert isinstance(attended, AttentionCache | CausalCache)
    assert cache.key_linear is not None and cache.value_linear is not None
    also = {"bias": cache.query_linear.has_bias, "norm": cache.query_norm, "rotation": cache.query_rotary}
    K = config.head_width
    own, group = head * K, head * config.key_heads // config.heads * K
    x, memory = cache.query_linear.x[0], cache.key_linear.x[0]
    of_one = cache.key_linear.x is cache.query_linear.x
    query, key, value = (array[0, head] for array in (attended.query, attended.key, attended.value))
    weights = attended.weights[0, head]
    output_weight = cache.output_linear.weight[:, own : own + K]
    output = weights @ value
    return Trace(
        x,
        x if of_one else memory,
        cache.query_linear.weight[own : own + K],
        cache.key_linear.weight[group : group + K],
        cache.value_linear.weight[group : group + K],
        query,
        key,
        value,
        query @ key.T / np.sqrt(K),
        weights,
        output,
        output_weight,
        output @ output_weight.T,
        ", ".join(name for name, done in also.items() if done),
        from_score_to_weight(config),
        config.token_shift and of_one,  # not in cross-attention
    )


def plot_trace(traced: Trace, row_labels: Sequence[str], column_labels: Sequence[str], path: Path, title: str) -> None:
    """The whiteboard picture of one head: inputs, the three projections, scores, weights, output, step by step.

    Of more than MOST_TRACED tokens the last ones are shown, and the title says so. Scores are white where the mask is."""
    rows, columns = ([label(symbol) for symbol in labels] for labels in (row_labels, column_labels))
    T, S = len(rows), len(columns)
    title += " (blue above 0, orange below)"
    if max(T, S) > MOST_TRACED:
        title += f"\n(the last {MOST_TRACED} of {max(T, S)} tokens; sums are over all)"
    t, s = slice(-MOST_TRACED, None), slice(-MOST_TRACED, None)
    rows, columns = rows[t], columns[s]
    height = max(1.0, 0.11 * max(len(rows), len(columns)))
    with plot_style():
        figure = new_figure(10, 4 * (height + 0.72) + 0.5)
        figure.suptitle(title)
        grid, of_one = figure.add_gridspec(4, 1), traced.x is traced.memory
        read = "input, right half: the token before" if traced.shifted else "input"
        own = read if of_one else "memory"
        also = f" ({traced.also})" if traced.also else ""
        projections = (
            ("Q", read, traced.x[t], traced.query_weight, traced.query[t], rows),
            ("K", own, traced.memory[s], traced.key_weight, traced.key[s], columns),
            ("V", own, traced.memory[s], traced.value_weight, traced.value[s], columns),
        )
        for line, (name, of, inputs, weight, result, labels) in enumerate(projections):
            parts = grid[line, 0].subgridspec(1, 3, width_ratios=(3, 2, 2))
            _map(figure.add_subplot(parts[0]), inputs, f"{of}, {inputs.shape[1]} channels", rows=labels)
            _map(figure.add_subplot(parts[1]), weight.T, f"$\\times\\ W_{name}^\\top$", ylabel="channels")
            _map(
                figure.add_subplot(parts[2]), result, f"$\\rightarrow\\ {name}$" + (also if name != "V" else ""), rows=labels
            )
        parts = grid[3, 0].subgridspec(1, 4, width_ratios=(2, 2, 1.6, 2.4))
        weights = traced.weights[t, s]
        masked = np.ma.masked_where(weights == 0, traced.scores[t, s])
        _map(figure.add_subplot(parts[0]), masked, "scores $Q K^\\top / \\sqrt{d}$", rows=rows, columns=columns)
        axes = figure.add_subplot(parts[1])
        _map(
            axes,
            np.ma.masked_equal(weights, 0),
            f"$\\rightarrow$ {traced.then}: weights $P$",
            rows=rows,
            columns=columns,
            of_weights=True,
        )
        _map(figure.add_subplot(parts[2]), traced.output[t], "$\\times\\ V \\rightarrow$ output $P V$", rows=rows)
        _map(
            figure.add_subplot(parts[3]),
            traced.added[t],
            "$\\times\\ W_O^\\top \\rightarrow$ added to the stream",
            rows=rows,
        )
        save_figure(figure, path)


def _map(
    axes: Axes,
    values: np.ndarray,
    title: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    ylabel: str = "",
    of_weights: bool = False,
) -> None:
    """Numbers as colours: weights from 0 to 1 in blue; others blue above 0, vermilion below, its range under it."""
    most = 1.0 if of_weights else max(float(np.abs(values).max()), 1e-30)
    colors = attention_colors() if of_weights else signed_colors()
    axes.imshow(values, cmap=colors, vmin=0 if of_weights else -most, vmax=most, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.grid(False)
    axes.tick_params(length=0, pad=1.5, labelsize=7)
    axes.set_yticks(range(len(rows or ())), rows or (), parse_math=False)
    axes.set_xticks(range(len(columns or ())), columns or (), parse_math=False)
    axes.set_xlabel("colours: 0 to 1" if of_weights else f"colours: −{most:.2g} to {most:.2g}", fontsize=7, labelpad=2)
    axes.set_ylabel(ylabel, fontsize=7)
    if columns and max(values.shape) <= MOST_NUMBERS:
        _write_numbers(axes, np.ma.masked_array(values), 2 if of_weights else 1, 0.4 if of_weights else 0.75 * most, 6)


def _write_numbers(axes: Axes, values: np.ma.MaskedArray, digits: int, dark: float, size: float) -> None:
    """Writes the numbers that are not masked into a map whose colours are dark from `dark` on."""
    for (row, column), value in np.ndenumerate(values.filled(np.nan)):
        if not np.isnan(value):
            color = "white" if abs(value) > dark else "black"
            axes.text(
                column, row, f"{round(value, digits) + 0.0:.{digits}f}", ha="center", va="center", fontsize=size, color=color
            )


def plot_rollout(rolled: np.ndarray, labels: Sequence[str], path: Path, title: str) -> None:
    """Attention rollout (L, T, T) as `train.looking.rollout` gives it: a map after every layer."""
    plot_attention(
        {"rollout": rolled},
        labels,
        labels,
        path,
        title,
        [f"after layer {layer}" for layer in range(len(rolled))],
        "share, by rollout",
    )


def plot_statistics(layers: Mapping[str, np.ndarray], same: bool, path: Path, title: str) -> None:
    """Mean entropy of every head's rows, and, where rows and columns are one text (`same`), how far it looks on average.

    `layers`: name to (H, T, S). The entropy's scale ends at what even attention to all that may be seen would have."""
    arrays = list(layers.values())
    seen = np.maximum((arrays[0] > 0).any(axis=0).sum(axis=-1), 1)  # (T,), tokens that a row may attend to
    panels: list[tuple[str, Any, float]] = [
        (f"mean entropy (nats); even attention has {np.log(seen).mean():.2f}", entropy, float(np.log(seen).mean()))
    ]
    if same:
        panels.append(("mean distance (tokens)", distance, 0.0))
    with plot_style():
        heads, count = max(len(array) for array in arrays), len(arrays)
        figure = new_figure(min(12.0, max(4.2, 0.62 * heads + 1.4)) * len(panels), max(2.4, 0.5 * count + 1.5))
        figure.suptitle(title)
        for axes, (name, measure, top) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            values = np.stack([measure(array).mean(axis=-1) for array in arrays])  # (L, H)
            top = top or float(values.max())
            axes.imshow(values, cmap=attention_colors(), vmin=0, vmax=top or 1, aspect="auto")
            _write_numbers(axes, np.ma.masked_array(values), 2, 0.45 * top, 8)
            axes.set_xticks(range(heads))
            axes.set_yticks(range(count), list(layers))
            axes.tick_params(length=0)
            axes.set(xlabel="head", title=name)
            axes.grid(False)
        save_figure(figure, path)
