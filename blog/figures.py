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
from train import ablate, evidence, ladder, pitfalls, run_folder
from train.attention import draw, draw_view
from train.attention_page import renewed
from train.benchmarks.report import markdown, plot_steps
from train.checkpoint import load_model
from train.commands import AttentionConfig, PositionsConfig
from train.commands import View as ViewName
from train.evidence import BENCHMARKS, LOGS
from train.experiment_plots import plot_ablation, plot_induction, plot_ladder, plot_pitfall
from train.looking import Reading, attention_caches, look, pair_reading
from train.plots import loss_text, plot_complexity, plot_loss, training_has
from train.positions import positions
from train.run_folder import STACKS
from train.trained import load_backend

POSITIONS = Path(__file__).with_name("figures") / "positions.png"


class View(NamedTuple):
    """One way to look at the model that a run has left behind, as `twinformer attention` names it."""

    run: str
    file: str
    """Name of the picture; an encoder-decoder's have the stack behind it."""
    view: ViewName
    text: str
    source: str | None = None
    layer: int = 0
    head: int = 0


LINE = "To the protection of the prosper"  # of the validation split, which no step has seen
VIEWS = (
    View("default", "attention.png", "model", LINE),
    View("default", "attention-trace.png", "trace", LINE[:8], layer=1, head=0),
    View("default", "attention-statistics.png", "statistics", LINE),
    View("default", "attention-rollout.png", "rollout", LINE),
    View("reverse", "attention.png", "model", "feebdeefefacdab", "badcafefeedbeef"),
)


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
    for path, text in texts():
        path.write_text(text, encoding="utf-8")
    evidence.main()
    post.main()


def texts() -> Iterator[tuple[Path, str]]:
    """The attention pages and the reports of the experiments as today's code writes them around their numbers."""
    for page in sorted(LOGS.glob(f"*/{run_folder.PAGE}")):
        yield page, renewed(page.read_text(encoding="utf-8"))
    for file in sorted(BENCHMARKS.glob("**/bench.json")):
        yield file.with_name("BENCHMARKS.md"), markdown(file.parent)
    if content := result("ablation"):
        yield LOGS / "ablation" / ablate.TABLE, ablate.report(content)
    if content := result("ladder"):
        yield LOGS / "ladder" / ladder.TABLE, ladder.table(content)
    if content := result("pitfalls"):
        yield LOGS / "pitfalls" / pitfalls.GALLERY, pitfalls.gallery(content["pitfalls"])


def figures() -> Iterator[Figure]:
    """All figures whose data are there."""
    for log in sorted(LOGS.glob(f"*/{run_folder.LOG}")):
        if (log.parent / run_folder.CONFIG).exists():
            yield Figure(log.parent / run_folder.LOSS, partial(_loss, log.parent))
    for view in VIEWS:
        if kept := run_folder.snapshots(LOGS / view.run):
            for stack in STACKS if view.source else ("own",):
                name = view.file if stack == "own" else run_folder.attention_of(stack, view.file)
                yield Figure(LOGS / view.run / name, partial(_view, view, stack, kept[-1][1]))
    yield Figure(POSITIONS, lambda path: positions(PositionsConfig(output=str(path))))
    if content := result("complexity"):
        yield Figure(_beside("complexity"), partial(plot_complexity, content["records"], content["slopes"]))
    for file in sorted(BENCHMARKS.glob("**/bench.json")):
        steps = json.loads(file.read_text(encoding="utf-8"))["steps"]
        yield Figure(file.with_suffix(".png"), partial(plot_steps, steps))
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
    title = f"{name}: exact validation loss {loss_text(exact['validation_loss'])} nats per {unit}"
    has = training_has(options["dropout"], options["label_smoothing"], options.get("input_noise", 0.0))
    plot_loss(records, path, title, run_folder.references(folder), unit, has)


def _view(view: View, name: str, model: Path, path: Path) -> None:
    """What one stack of a model attends to, from the parameters that the run has left in half precision."""
    backend, (_, config, vocabulary) = load_backend(model, "numpy", "cpu"), load_model(model)
    tokens = vocabulary.encode(view.text)
    reading = Reading(tokens) if view.source is None else pair_reading(vocabulary, vocabulary.encode(view.source), tokens)
    stacks = [stack for stack in look(backend, vocabulary, reading) if stack.name == name]
    path = path.with_stem(path.stem.removesuffix(f"-{name}"))
    if view.view == "model":
        draw(stacks, path)
        return
    options = AttentionConfig(str(model.parent), output=str(path), view=view.view, layer=view.layer, head=view.head)
    draw_view(options, stacks, attention_caches(backend.parameters(), config, reading))


if __name__ == "__main__":
    main()
