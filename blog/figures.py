"""`make figures`: every figure of the repository drawn again from committed results, and the texts that quote them renewed.

A figure is a file and a function that draws it from what lies beside it. A test draws each once more and compares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from blog import post
from blog.facts import result
from train import evidence, run_folder
from train.evidence import LOGS
from train.experiment_plots import plot_ablation, plot_induction, plot_ladder, plot_pitfall
from train.plots import plot_complexity, plot_loss


class Figure(NamedTuple):
    """A picture: where it is, and what draws it to a given path."""

    path: Path
    draw: Callable[[Path], Any]


def main() -> None:
    """Draw the figures, all or those whose path contains a word, then renew README.md and the post."""
    parser = argparse.ArgumentParser(prog="python -m blog.figures", description="Draw every figure from committed results.")
    parser.add_argument("--only", default="", help="draw those whose path contains this")
    word = parser.parse_args().only
    for figure in figures():
        if word in figure.path.as_posix():
            figure.draw(figure.path)
            print(figure.path.relative_to(LOGS.parent.parent))
    evidence.main()
    post.main()


def figures() -> Iterator[Figure]:
    """All figures whose data are there."""
    for log in sorted(LOGS.glob(f"*/{run_folder.LOG}")):
        if (log.parent / run_folder.CONFIG).exists():
            yield Figure(log.parent / run_folder.LOSS, partial(_loss, log.parent))
    if content := result("complexity"):
        yield Figure(_beside("complexity"), partial(plot_complexity, content["records"], content["slopes"]))
    if content := result("ablation"):
        yield Figure(_beside("ablation"), partial(plot_ablation, content["variants"]))
    if content := result("ladder"):
        yield Figure(_beside("ladder"), partial(plot_ladder, content["rungs"]))
    if content := result("induction"):
        histories = {int(layers): history for layers, history in content["layers"].items()}
        yield Figure(_beside("induction"), partial(plot_induction, histories, content["chance"]))
    if content := result("pitfalls"):
        for name, pitfall in content["pitfalls"].items():
            draw = partial(plot_pitfall, pitfall["title"], pitfall["right"], pitfall["with_the_mistake"])
            yield Figure(LOGS / "pitfalls" / f"{name}.png", draw)


def _beside(name: str) -> Path:
    return LOGS / name / f"{name}.png"


def _loss(folder: Path, path: Path) -> None:
    """The curve of a run as `twinformer train` draws it."""
    options = json.loads((folder / run_folder.CONFIG).read_text(encoding="utf-8"))["options"]
    records = run_folder.read_log(folder)
    exact = [record for record in records if record.get("exact")][-1]
    unit = next(key.removeprefix("bits_per_") for key in exact if key.startswith("bits_per_"))
    name = options["corpus"] if options["task"] == "language_model" else options["task"].replace("_", " ")
    title = f"{name}: exact validation loss {exact['validation_loss']:.4f} nats per {unit}"
    plot_loss(records, path, title, run_folder.references(folder), unit)


if __name__ == "__main__":
    main()
