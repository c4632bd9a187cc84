"""Pictures of the experiments: ablations, pitfalls, the ladder, the induction heads; in the house style of plots.py."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train.plots import BLUE, PURPLE, VERMILION, new_figure, plot_style, save_figure

Result = Mapping[str, Any]


def plot_ablation(results: Sequence[Result], path: str | os.PathLike[str]) -> None:
    """The difference of every variant to the baseline with its confidence interval, a row each, study by study."""
    rows = [result for result in results if "difference" in result]
    with plot_style():
        figure = new_figure(8, 1.3 + 0.27 * max(len(rows), 3))
        axes = figure.add_subplot()
        studies = list(dict.fromkeys(row["study"] for row in rows))
        for y, row in enumerate(rows):
            sure = row["p_holm"] < 0.05
            color = "#666666" if not sure else VERMILION if row["difference"] > 0 else BLUE
            axes.errorbar(row["difference"], y, xerr=row["difference_interval"], color=color, marker="o", capsize=2.5)
            if studies.index(row["study"]) % 2:
                axes.axhspan(y - 0.5, y + 0.5, color="#f4f4f4", zorder=-1)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [_variant(row["study"], row["name"]) for row in rows], fontsize=9)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("exact validation loss minus the baseline's (nats per character), with 95 % intervals")
        axes.set_title("One change at a time: left is better; grey: no difference shown (5 %, Holm)")
        save_figure(figure, path)


def _variant(study: str, name: str) -> str:
    """What a row is called: the study, unless the variant's name begins with it."""
    study = study.replace("-", " ")
    return name if name.startswith(study) else f"{study}: {name}"


def plot_induction(histories: Mapping[Any, Sequence[Result]], chance: float, path: str | os.PathLike[str]) -> None:
    """Loss, and the two scores of every head, against steps. `histories`: number of layers -> what was measured."""
    deep, flat = max(histories), min(histories)
    steps = [record["step"] for record in histories[deep]]
    with plot_style():
        figure = new_figure(7.5, 8)
        loss, previous, following = figure.subplots(3, 1, sharex=True)
        for name, color, style in (("loss_seen", VERMILION, "-"), ("loss_new", PURPLE, "-.")):
            kind = "seen before" if name == "loss_seen" else "new"
            loss.plot(steps, [r[name] for r in histories[deep]], color=color, linestyle=style, label=f"{kind}, two layers")
        flat_steps = [r["step"] for r in histories[flat]]
        flat_loss = [r["loss_seen"] for r in histories[flat]]
        loss.plot(flat_steps, flat_loss, color="#666666", linestyle="--", label="seen before, one layer")
        loss.axhline(chance, color="black", linewidth=0.8, linestyle=":", label=f"chance: {chance:.2f}")
        loss.set(ylabel="loss (nats per symbol)", ylim=(0, None), title="Repeated random sequences: loss by kind of symbol")
        loss.legend(loc="upper right", bbox_to_anchor=(1, 0.46), fontsize=9)
        panels = (
            (previous, "previous", "weight on the token before"),
            (following, "induction", "weight on what came next\nthe last time"),
        )
        for axes, name, label in panels:
            scores = np.array([record[name] for record in histories[deep]])  # (steps, L, H)
            for layer, color in enumerate((BLUE, VERMILION)):
                for head in range(scores.shape[2]):
                    text = f"heads of layer {layer}" if head == 0 else None
                    axes.plot(steps, scores[:, layer, head], color=color, linewidth=1.3, label=text)
            axes.set(ylabel=label, ylim=(0, 1))
            axes.legend(loc="upper left", fontsize=9)
        previous.set_title("Previous-token score of every head")
        following.set(title="Induction score of every head", xlabel="step")
        following.margins(x=0.02)
        following.xaxis.set_major_formatter("{x:,g}")
        save_figure(figure, path)


def plot_pitfall(title: str, right: Result, wrong: Result, path: str | os.PathLike[str]) -> None:
    """The loss curve, the gradient norm of every layer, and the entropy of attention, with and without a mistake.

    Of an encoder-decoder the cross-attention is shown."""
    from matplotlib.lines import Line2D

    with plot_style():
        figure = new_figure(10, 3.6)
        loss, norms, entropy = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
        shown: list[str] = []
        # What is right lies below, broad, so that it can be seen where the two are one.
        for record, color, name, wide in (
            (right, BLUE, "as it should be", 2.0),
            (wrong, VERMILION, "with the mistake", 1.0),
        ):
            training = np.array([(r["step"], r["train_loss"]) for r in record["log"] if "train_loss" in r])
            checked = np.array([(r["step"], r["validation_loss"]) for r in record["log"] if "validation_loss" in r])
            if len(training):
                loss.plot(*training.T, color=color, linewidth=wide, alpha=0.75, label=f"{name}: training")
            if len(checked):
                dots: Any = {"marker": "D", "markersize": 2.5 + wide, "linestyle": ":", "linewidth": 1.2 * wide}
                loss.plot(*checked.T, color=color, label=f"{name}: validation", **dots)
            _plot_norms(record["looks"], color, 1.2 * wide, norms)
            shown = _plot_entropies(record["looks"], color, 1.2 * wide, entropy) or shown
        loss.set(xlabel="step", ylabel="loss (nats per character)", title="Loss", ylim=(0, None))
        handles = loss.get_legend_handles_labels()[0]
        for layer, style in zip(shown, LAYER_STYLES, strict=False):
            handles.append(Line2D([], [], color="#444444", linestyle=style, linewidth=1.3, label=layer))
        norms.set(yscale="log", title="Gradient norm (dashed: after step 1)", ylabel="nats per unit of parameter")
        _few_ticks(norms)
        norms.set_xticks(norms.get_xticks(), norms.get_xticklabels(), rotation=40, ha="right", fontsize=8)
        entropy.set(xlabel="step", title="Entropy of attention", ylabel="nats, mean over heads", ylim=(0, None))
        figure.suptitle(title, weight="bold")
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
        save_figure(figure, path)


LAYER_STYLES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1))) * 8
SHORT = {"token_embedding": "tokens", "position_embedding": "positions", "blocks.": "", "final_norm": "norm", ".": " "}


def _few_ticks(axes: Any) -> None:
    """Labels at the powers of ten; where there are fewer than two of them, also at twice and five times those."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    powers = np.floor(np.log10(high)) - np.ceil(np.log10(low)) + 1
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if powers > 1 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if powers <= 2:
        axes.yaxis.set_major_formatter("{x:g}")


def _plot_norms(looks: Sequence[Result], color: str, wide: float, axes: Any) -> None:
    """Gradient norms by layer, after the first step and at the end."""
    for look, style in zip((looks[:1], looks[-1:]), ("--", "-"), strict=True):
        for record in look:
            names = list(record["gradient_norm"])
            for long, short in SHORT.items():
                names = [name.replace(long, short) for name in names]
            names = [f"block {name}" if name.isdigit() else name for name in names]
            values = [value if np.isfinite(value) and value > 0 else np.nan for value in record["gradient_norm"].values()]
            axes.plot(names, values, color=color, linestyle=style, linewidth=wide, marker="o", markersize=2.5 + wide)


def _plot_entropies(looks: Sequence[Result], color: str, wide: float, axes: Any) -> list[str]:
    """Mean entropies by layer against steps; the names of the layers."""
    records = [look for look in looks if "entropy" in look]
    names = list(records[0]["entropy"]) if records else []
    names = [name for name in names if name.endswith("cross_attention")] or names
    for name, style in zip(names, LAYER_STYLES, strict=False):
        means = [float(np.mean(look["entropy"][name])) for look in records]
        axes.plot([look["step"] for look in records], means, color=color, linestyle=style, linewidth=wide)
    return [f"attention of layer {layer}" for layer in range(len(names))]


def plot_ladder(results: Sequence[Result], path: str | os.PathLike[str]) -> None:
    """The exact loss of every rung from the first to the last, with its parameters."""
    with plot_style():
        figure = new_figure(8, 1.2 + 0.42 * len(results))
        axes = figure.add_subplot()
        losses = [result["loss"] for result in results]
        left = min(losses) - 0.05
        axes.hlines(range(len(results)), left, losses, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axes.plot(losses, range(len(results)), color=BLUE, marker="o", linestyle="")
        for y, result in enumerate(results):
            text = f"{result['loss']:.3f}   {result['parameters']:,} parameters"
            axes.annotate(text, (result["loss"], y), xytext=(9, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(results)), [result["rung"] for result in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlim(left, max(losses) + 0.45 * (max(losses) - min(losses)) + 0.05)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("exact validation loss (nats per character)")
        axes.set_title("From bigram to GPT, one idea a rung")
        save_figure(figure, path)
