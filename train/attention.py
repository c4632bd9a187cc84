"""`twinformer attention`: what every head of every layer attends to, as pictures or as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from reference_numpy.attention import MultiHeadCache
from reference_numpy.parameters import parameter_count
from train import run_folder
from train.attention_page import Moment, QueryKey, attention_page
from train.attention_plots import plot_rollout, plot_statistics, plot_trace, trace
from train.checkpoint import write_atomically
from train.commands import AttentionConfig
from train.configuration import BackendName, Device
from train.looking import Reading, Stack, attention_caches, from_score_to_weight, look, losses_near, moments, read, rollout
from train.plots import plot_attention
from train.run_folder import attention_of
from train.trained import Trained, load_backend, load_trained


def attention(config: AttentionConfig) -> str:
    """Draws the picture, or the three of a sequence-to-sequence model, or writes the page; their paths, one a line.

    Raises: ValueError when the run has no usable model, a text is too long or missing or one too many, or a character is not
    in the vocabulary."""
    if config.html is None:
        run_folder.output_file("output", config.output, ".png")
    else:
        run_folder.output_file("html", config.html, ".html")
    trained = load_trained(config.run, config.backend, config.device)
    for name, most in (("layer", trained.model.layers), ("head", trained.model.heads)):
        if getattr(config, name) >= most:
            raise ValueError(f"{name}: expected 0 to {most - 1}, got {getattr(config, name)}")
    reading = read(trained, config.text, config.source)
    if config.html is not None:
        page = page_of_run(Path(config.run), trained, reading, config.backend, config.device)
        write_atomically(Path(config.html), page.encode())
        return config.html
    stacks = look(trained.backend, trained.vocabulary, reading)
    if config.view == "model":
        return "\n".join(map(str, draw(stacks, Path(config.output))))
    views = draw_view(config, stacks, attention_caches(trained.backend.parameters(), trained.model, reading))
    return "\n".join(map(str, views))


def draw(stacks: Sequence[Stack], path: Path) -> list[Path]:
    """Draws every head of every layer: one picture, or one for each stack of an encoder-decoder; their paths."""
    paths = [_path_of(stack, path) for stack in stacks]
    for stack, name in zip(stacks, paths, strict=True):
        plot_attention(stack.weights, stack.rows, stack.columns, name, f"{stack.title}: {_who(stack)}")
    return paths


def draw_view(
    config: AttentionConfig, stacks: Sequence[Stack], caches: Mapping[str, Sequence[MultiHeadCache]]
) -> list[Path]:
    """Draws what `config.view` names of every stack; rollout of self-attention alone, since it follows one stream."""
    layer, head, paths = config.layer, config.head, []
    for stack in stacks:
        path, rows, columns, name = _path_of(stack, Path(config.output)), stack.rows, stack.columns, f"layer {layer}"
        match config.view:
            case "layer":
                plot_attention({name: stack.weights[name]}, rows, columns, path, f"{stack.title}: {_who(stack)}")
            case "head":
                only = {name: stack.weights[name][head : head + 1]}
                plot_attention(only, rows, columns, path, f"{stack.title}: {_who(stack)}", [f"{name}, head {head}"])
            case "rollout":
                if stack.name == "cross":
                    continue
                rolled = rollout(list(stack.weights.values()))
                said = "what (across) reaches whom (down) by attention alone"  # a token shift moves something, too
                plot_rollout(rolled, rows, path, f"{stack.title}, rolled out: {said}")
            case "statistics":
                plot_statistics(stack.weights, stack.name != "cross", path, stack.title)
            case "trace":
                traced = trace(caches[stack.name][layer], head)
                plot_trace(traced, rows, columns, path, f"{stack.title}, {name}, head {head}, step by step")
        paths.append(path)
    return paths


def _who(stack: Stack) -> str:
    """What the rows and columns of its maps are; cross-attention's rows are what is written next, not what was read."""
    if stack.name == "cross":
        return "what is looked at (across) while each symbol (down) is written"
    return "who (down) attends to whom (across)"


def _path_of(stack: Stack, path: Path) -> Path:
    return path if stack.name == "own" else path.with_name(attention_of(stack.name, path.name))


def page_of_run(
    run: Path, trained: Trained, reading: Reading, backend: BackendName = "torch", device: Device = "auto"
) -> str:
    """The page on what the models of a run attend to: the finished one, and those that it has kept on the way.

    Raises: ValueError for a model that is damaged or has linear attention, and for a text too long for one page."""
    model, kept = trained.model, moments(run)
    losses = losses_near(run_folder.read_log(run), [step for step, _ in kept])
    seen = []
    for (step, path), loss in zip(kept, losses, strict=True):
        then = trained.backend if path == run_folder.model_of(run) else load_backend(path, backend, device)
        seen.append(Moment(step, loss, look(then, trained.vocabulary, reading)))
    kind = model.kind.replace("_", "-")
    shape = f"{kind}, {parameter_count(model):,} parameters, {model.layers} layers, {model.heads} heads"
    caches = attention_caches(trained.backend.parameters(), model, reading).values()
    detail = [
        QueryKey(*(np.stack([getattr(c.attention, n)[0] for c in layers]) for n in ("query", "key"))) for layers in caches
    ]
    title = f"What the run {run.resolve().name} attends to"
    return attention_page(seen, title, shape, "nats", detail, from_score_to_weight(model))
