"""Pictures of a run: its loss curve and its attention maps, in one house style, as PNG files.

Matplotlib is imported when a picture is drawn, not before: it takes longer to load than all the rest. The figures are made
without pyplot, so no backend is chosen, no window opened and no global state touched.
"""

import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.checkpoint import write_atomically
from train.vocabulary import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B37400"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
DOTS_PER_INCH = 150
MOST_PIXELS = 5000  # a side of a picture; many layers of many heads get fewer dots per inch
FAINTEST = -3  # log10(error/bound) at which a heat map of a check begins
MOST_TOKENS = 64  # rows or columns of one map; beyond it the labels cannot be read


def plot_loss(
    log_records: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    title: str,
    references: Mapping[str, float] | None = None,
    unit: str = "character",
    training_has: Sequence[str] = (),
) -> None:
    """Training and validation loss against steps, in nats per `unit`.

    `log_records` are the lines of log.jsonl: "step" with "train_loss" or "validation_loss"; records without either are
    passed over. The training loss is drawn as it is, light, and smoothed. A validation loss with "exact" false is an
    estimate, and is drawn and named as one. `references` are named horizontal lines. `training_has` names what the training
    loss has and the validation loss has not, such as dropout.
    Raises ValueError if there is no finite loss at all.
    """
    training = _series(log_records, "train_loss")
    estimates = _series([record for record in log_records if not record.get("exact", True)], "validation_loss")
    exact = _series([record for record in log_records if record.get("exact", True)], "validation_loss")
    if not any(np.isfinite(series[:, 1]).any() for series in (training, estimates, exact)):
        raise ValueError("log_records: expected at least one finite train_loss or validation_loss, got none")
    with plot_style():
        figure = new_figure(7.5, 4.5)
        axes = figure.add_subplot()
        if len(training):
            axes.plot(training[:, 0], training[:, 1], color=BLUE, alpha=0.25, linewidth=0.8)
            label_text = "training batches, smoothed" if len(training) >= SMOOTHED else "training batches"
            label_text += f"\n(with {' and '.join(training_has)})" if training_has else ""
            axes.plot(training[:, 0], _smoothed(training[:, 1]), color=BLUE, label=label_text)
        if len(estimates):
            axes.plot(*estimates.T, color=ORANGE, marker="o", markersize=3.5, label="validation, estimate")
        if len(exact):
            axes.plot(*exact.T, color=VERMILION, marker="D", markersize=4.5, label="validation, exact")
        if len(exact) or len(estimates):
            _annotate_last(axes, exact if len(exact) else estimates)
        for (name, value), color in zip((references or {}).items(), (GREEN, PURPLE, "black") * 9, strict=False):
            axes.axhline(value, color=color, linestyle="--", linewidth=1.2, label=f"{name}: {value:.3f}")
        axes.set(xlabel="step", ylabel=f"loss (nats per {unit})")
        axes.set_title(title, parse_math=False)  # it has names of the user's in it
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.margins(x=0.02)
        axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")  # a line may cross it
        save_figure(figure, path)


def plot_runs(logs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike[str]) -> None:
    """The validation loss of several runs (name -> records of log.jsonl), against steps and against seconds of training.

    What was estimated before the first step is left out, since it would flatten the rest. A last, exact loss is a diamond.
    Raises ValueError if no run has a finite validation loss after a step.
    """
    curves = {name: _after_training(records) for name, records in logs.items()}
    if not any(np.isfinite(curve[:, 2]).any() for curve in curves.values()):
        raise ValueError("plot: expected a run with a finite validation loss after a step, got none")
    colors, styles = (BLUE, VERMILION, GREEN, PURPLE, ORANGE), ("-", "--", ":", "-.")
    with plot_style():
        figure = new_figure(9, 4.2)
        for axes, column, text in zip(figure.subplots(1, 2, sharey=True), (0, 1), ("step", "training (s)"), strict=True):
            for number, (name, curve) in enumerate(curves.items()):
                style: Any = {"color": colors[number % 5], "linestyle": styles[number // 5 % 4]}
                axes.plot(curve[:, column], curve[:, 2], linewidth=1.4, label=name, **style)
                exact = curve[curve[:, 3] == 1]
                axes.plot(exact[:, column], exact[:, 2], color=style["color"], linestyle="", marker="D", markersize=4.5)
            axes.set_xlabel(text)
            axes.xaxis.set_major_formatter("{x:,g}")
        figure.axes[0].set_ylabel("validation loss (nats per token)")
        legend = figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=9)
        for name_of_run in legend.get_texts():
            name_of_run.set_parse_math(False)  # it is the user's
        save_figure(figure, path)


def _after_training(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The validation losses after a step: float64 (N, 4), step, seconds of training, loss, whether it is exact."""
    clock = _series(records, "training_seconds")
    found = [record for record in records if record.get("validation_loss") is not None and record["step"] > 0]
    rows = [(record["step"], record["validation_loss"], record.get("exact", False)) for record in found]
    steps, losses, exact = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    seconds = np.interp(steps, *clock.T) if len(clock) else np.full(len(steps), math.nan)
    return np.stack([steps, seconds, losses, exact], axis=1)


def loss_text(loss: float, digits: int = 4) -> str:
    """A loss with so many decimals, or with two digits where those would be nothing but zeros."""
    return f"{loss:.{digits}f}" if loss >= 10 ** (1 - digits) or loss == 0 else f"{loss:.1e}"


def training_has(dropout: float, label_smoothing: float, input_noise: float = 0.0) -> list[str]:
    """What makes the training loss of a run higher than the validation loss of the same model."""
    found = {"dropout": dropout, "label smoothing": label_smoothing, "input noise": input_noise}
    return [f"{name} {rate:g}" for name, rate in found.items() if rate]


def plot_attention(
    weights: Mapping[str, np.ndarray],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    path: str | os.PathLike[str],
    title: str,
    names: Sequence[str] | None = None,
    measure: str = "attention weight",
) -> None:
    """Every layer (a row of maps) and head (a column) as a heat map: which token (down) attends to which (across).

    `weights`: name of the layer -> (H, T, S), each row a distribution; T row labels and S column labels, one symbol each.
    A causal map's upper triangle is left white, and so is all that has weight 0. Maps of more than MOST_TOKENS tokens are
    cropped to the last ones, where the context is longest, and the title says so. `names` of the columns of maps stand for
    "LAYER, head NUMBER" where they are given; `measure` says what the colours are of.
    Raises ValueError for no layer, and for shapes or values that do not fit.
    """
    arrays = {name: np.asarray(array, dtype=np.float64) for name, array in weights.items()}
    _check_attention(arrays, len(row_labels), len(column_labels))
    rows, columns = [label(symbol) for symbol in row_labels], [label(symbol) for symbol in column_labels]
    shown = {name: array[:, -MOST_TOKENS:, -MOST_TOKENS:] for name, array in arrays.items()}
    if max(len(rows), len(columns)) > MOST_TOKENS:
        title += f"\n(the last {MOST_TOKENS} of {max(len(rows), len(columns))} tokens)"
    rows, columns = rows[-MOST_TOKENS:], columns[-MOST_TOKENS:]
    with plot_style():
        save_figure(_attention_figure(shown, rows, columns, title, names, measure), path)


def plot_complexity(records: Sequence[Mapping[str, Any]], slopes: Mapping[str, float], path: str | os.PathLike[str]) -> None:
    """Time and peak memory against the length on log axes, a line per "form" of attention, with the fitted exponents.

    `records` hold "form", "T", "seconds" and "bytes"; `slopes` is keyed by "FORM seconds" and "FORM bytes".
    """
    forms = list(dict.fromkeys(record["form"] for record in records))
    panels = (("seconds", 1e3, "time, forward and backward (ms)"), ("bytes", 2**-20, "peak memory (MiB)"))
    with plot_style():
        figure = new_figure(9, 4)
        for axes, (figure_name, unit, label_text) in zip(figure.subplots(1, 2), panels, strict=True):
            for form, color, marker in zip(forms, (VERMILION, BLUE, GREEN), "so^", strict=True):
                points = np.array([(r["T"], r[figure_name] * unit) for r in records if r["form"] == form])
                exponent = slopes.get(f"{form} {figure_name}")  # none was fitted to a single length
                text = form if exponent is None else f"{form}, fitted $T^{{{exponent:.2f}}}$"
                axes.plot(*points.T, color=color, marker=marker, markersize=4.5, label=text)
            axes.set(xscale="log", yscale="log", xlabel="length T (tokens)", ylabel=label_text)
            lengths = sorted({record["T"] for record in records})[::2]
            axes.set_xticks(lengths, labels=[f"{T:,}" for T in lengths])
            axes.minorticks_off()
            axes.legend(loc="upper left")
        save_figure(figure, path)


def plot_check(ratios: Mapping[str, Mapping[str, float]], path: str | os.PathLike[str], title: str) -> None:
    """error/bound of every tensor (down) by every witness (across), as a heat map with the figures in it.

    The darker the blue, the nearer to the bound; what exceeds it is vermilion, what no witness looked at is grey.
    Raises ValueError for no tensor.
    """
    if not ratios:
        raise ValueError("ratios: expected at least one tensor, got none")
    from matplotlib.colors import LinearSegmentedColormap

    witnesses = list(dict.fromkeys(witness for row in ratios.values() for witness in row))
    values = np.array([[row.get(witness, math.nan) for witness in witnesses] for row in ratios.values()])
    with np.errstate(divide="ignore"):
        shown = np.clip(np.log10(values), FAINTEST, 99)  # an error of 0 is drawn as the faintest
    blues = LinearSegmentedColormap.from_list("bounds", ["#e6f0f7", BLUE, "#001a33"])
    colors = blues.with_extremes(over=VERMILION, bad="#cccccc")
    with plot_style():
        rows, longest = len(ratios), max(map(len, ratios))
        figure = new_figure(0.075 * longest + 0.85 * len(witnesses) + 1.5, max(3.0, 0.17 * rows + 1.3))
        axes = figure.add_subplot()
        image = axes.imshow(shown, vmin=FAINTEST, vmax=0, cmap=colors, interpolation="nearest", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            color = "white" if 0.6 * FAINTEST < shown[row, column] <= 0 else "black"
            text = "" if math.isnan(value) else f"{value:.2g}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
        figure.suptitle(title, fontsize=10, parse_math=False)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(witnesses)), witnesses, fontsize=9)
        axes.set_yticks(range(rows), list(ratios), fontsize=7)
        axes.tick_params(length=0)
        bar = figure.colorbar(
            image, ax=axes, extend="both", label="error/bound", shrink=min(1.0, 4 / figure.get_figheight())
        )
        decades = range(FAINTEST, 1)
        bar.set_ticks(list(decades), labels=[f"{10.0**decade:g}" for decade in decades])
        save_figure(figure, path)


def plot_positions(
    table: np.ndarray,
    similarity: np.ndarray,
    name: str,
    lines: Mapping[str, np.ndarray],
    slopes: np.ndarray,
    path: str | os.PathLike[str],
) -> None:
    """How order enters: a table of positions (T, D), the cosine of every two rows (T, T), the same against the distance, a
    line (N,) for each kind, and ALiBi's penalties for slopes (H,)."""
    with plot_style():
        figure = new_figure(9, 7.8, gap=0.05)
        (of_table, of_pairs), (of_distance, of_alibi) = figure.subplots(2, 2)
        most = float(np.abs(table).max())
        image = of_table.imshow(table, cmap=signed_colors(), vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        of_table.set(title=f"{name} positions", xlabel="channel", ylabel="position (tokens)")
        figure.colorbar(image, ax=of_table, pad=0.02)
        most = float(np.abs(similarity).max())
        image = of_pairs.imshow(
            similarity, cmap=signed_colors(), vmin=-most, vmax=most, aspect="auto", interpolation="nearest"
        )
        of_pairs.set(
            title="cosine similarity of every two positions", xlabel="position (tokens)", ylabel="position (tokens)"
        )
        figure.colorbar(image, ax=of_pairs, pad=0.02)
        for (kind, values), color, style in zip(lines.items(), (BLUE, VERMILION, GREEN), ("-", "--", "-."), strict=False):
            of_distance.plot(values, color=color, linestyle=style, label=kind)
        of_distance.set(title="mean cosine against distance", xlabel="distance (tokens)", ylabel="cosine similarity")
        of_distance.legend(loc="upper right")
        distances = np.arange(len(table))
        for head, slope in enumerate(slopes):
            color = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)[head % 5]
            of_alibi.plot(-slope * distances, color=color, label=f"head {head}, slope {slope:.3g}")
        of_alibi.set(title="ALiBi's penalties", xlabel="distance (tokens)", ylabel="added to the score")
        of_alibi.legend(loc="lower left")
        for axes in (of_table, of_pairs):
            axes.grid(False)
        save_figure(figure, path)


def signed_colors() -> Any:
    """Blue above 0, vermilion below."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("signed", [VERMILION, "#f7f7f7", BLUE]).with_extremes(bad="white")


def attention_colors() -> Any:
    """White for what is masked; the faintest weight is tinted, so that it differs from it."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("attention", ["#e6f0f7", BLUE, "#001a33"]).with_extremes(bad="white")


WORD = 0.07  # inches that a letter of a label takes; labels of words stand upright below a map


def _attention_figure(
    arrays: Mapping[str, np.ndarray],
    rows: list[str],
    columns: list[str],
    title: str,
    names: Sequence[str] | None,
    measure: str,
) -> "Figure":
    heads = max(len(array) for array in arrays.values())
    panels: list[tuple[str, np.ndarray | None]] = [
        (names[head] if names else f"{name}, head {head}", array[head] if head < len(array) else None)
        for name, array in arrays.items()
        for head in range(heads)
    ]
    # A row of maps for each layer; the heads of a single layer stand in a square.
    across = heads if len(arrays) > 1 else math.ceil(math.sqrt(heads))
    down = math.ceil(len(panels) / across)
    # A label needs about 0.09 inches; a map is never smaller than what can be looked at, and few maps have more room.
    least = 2.4 if len(arrays) > 1 else 3.4 if heads > 1 else 4.8
    width, height = max(least, 0.09 * len(columns)), max(least, 0.09 * len(rows))
    aside, below = (WORD * (max(map(len, labels)) - 1) for labels in (rows, columns))
    figure = new_figure(across * (width + aside + 0.35) + 1.3, down * (height + below + 0.45) + 0.9)
    grid: np.ndarray = figure.subplots(down, across, squeeze=False)
    size = min(9.0, max(5.0, 72 * 0.8 * min(width / len(columns), height / len(rows))))
    image = None
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, array) in zip(grid.flat, panels, strict=False):
        if array is None:
            axes.set_axis_off()
            continue
        masked = np.ma.masked_equal(array, 0.0)
        image = axes.imshow(masked, vmin=0.0, vmax=1.0, cmap=attention_colors(), interpolation="nearest", aspect="auto")
        axes.set_title(name, fontsize=9)
        axes.grid(False)
        axes.set_xticks(range(len(columns)), columns, fontsize=size, rotation=90 if below > WORD else 0, parse_math=False)
        axes.set_yticks(range(len(rows)), rows, fontsize=size, parse_math=False)
        axes.tick_params(length=0, pad=1.5)
    assert image is not None  # _check_attention: at least one layer and head
    figure.colorbar(image, ax=grid, label=measure, shrink=min(1.0, 6 / figure.get_figheight()), pad=0.015)
    figure.suptitle(title)
    figure.supxlabel("attended to", fontsize=10)
    figure.supylabel("attending", fontsize=10)
    return figure


def _check_attention(arrays: Mapping[str, np.ndarray], rows: int, columns: int) -> None:
    if not arrays:
        raise ValueError("weights: expected at least one layer, got none")
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape[1:] != (rows, columns) or 0 in array.shape:
            raise ValueError(f"weights: expected (H, T, S) = (H, {rows}, {columns}) for {name}, got {array.shape}")
        if not ((array >= 0.0) & (array <= 1.0 + 1e-3)).all():  # bfloat16 weights may exceed 1 by rounding
            raise ValueError(f"weights: expected values from 0 to 1 for {name}, got others")


def _series(log_records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """The records that have `key`: float64 (N, 2), step and value."""
    pairs = [(record["step"], record[key]) for record in log_records if record.get(key) is not None]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


SMOOTHED = 100  # values from which on a curve is smoothed


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a fiftieth of the curve; at the ends over what there is; a short curve itself. NaN for NaN."""
    reach = len(values) // SMOOTHED
    finite = np.isfinite(values)
    window = np.ones(2 * reach + 1)
    sums = np.convolve(np.where(finite, values, 0.0), window)[reach : reach + len(values)]
    counts = np.convolve(finite, window)[reach : reach + len(values)]
    return np.where(counts > 0.5, sums / np.maximum(counts, 1.0), math.nan)


def _annotate_last(axes: "Axes", series: np.ndarray) -> None:
    step, value = series[-1]
    axes.annotate(
        loss_text(value, 3),
        (step, value),
        xytext=(0, 9),
        textcoords="offset points",
        ha="right",
        color=VERMILION,
        weight="bold",
    )


def plot_style() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def new_figure(width: float, height: float, gap: float = 0.02) -> "Figure":
    """An empty figure of that size in inches, drawn by Agg, with a gap between its panels as a share of one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=gap, wspace=gap))
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write the whole picture or nothing."""
    picture = io.BytesIO()
    with warnings.catch_warnings():  # a script that the font lacks is drawn as boxes, one warning a character
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(picture, format="png", dpi=min(DOTS_PER_INCH, MOST_PIXELS / max(figure.get_size_inches())))
    write_atomically(Path(path), picture.getvalue())
