"""`twinformer attention`: what every head of every layer attends to, as pictures or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import parameter_count
from train import run_folder
from train.attention_page import Moment, QueryKey, attention_page
from train.checkpoint import write_atomically
from train.configuration import AttentionConfig, Backend, Device
from train.looking import Reading, Stack, attention_caches, look, losses_near, moments, read
from train.plots import plot_attention
from train.run_folder import attention_of
from train.trained import Trained, load_trained, load_twin


def attention(config: AttentionConfig) -> list[Path]:
    """Draws the picture, or the three of a sequence-to-sequence model, or writes the page, and returns the paths.

    Raises: ValueError when the run has no usable model, a text is too long or missing or one too many, or a character is not
    in the vocabulary."""
    trained = load_trained(config.run, config.backend, config.device)
    reading = read(trained, config.text, config.source)
    if config.html is not None:
        page = page_of_run(Path(config.run), trained, reading, config.backend, config.device)
        write_atomically(Path(config.html), page.encode())
        return [Path(config.html)]
    return draw(look(trained.twin, trained.vocabulary, reading), Path(config.output))


def draw(stacks: Sequence[Stack], path: Path) -> list[Path]:
    """Draws every head of every layer: one picture, or one for each stack of an encoder-decoder; their paths."""
    paths = [path if stack.name == "own" else path.with_name(attention_of(stack.name, path.name)) for stack in stacks]
    for stack, name in zip(stacks, paths, strict=True):
        plot_attention(stack.weights, stack.rows, stack.columns, name, f"{stack.title}: who (down) attends to whom (across)")
    return paths


def page_of_run(run: Path, trained: Trained, reading: Reading, backend: Backend = "torch", device: Device = "auto") -> str:
    """The page on what the models of a run attend to: the finished one, and those that it has kept on the way.

    Raises: ValueError for a model that is damaged or has linear attention, and for a text too long for one page."""
    model, kept = trained.model, moments(run)
    losses = losses_near(run_folder.read_log(run), [step for step, _ in kept])
    seen = []
    for (step, path), loss in zip(kept, losses, strict=True):
        twin = trained.twin if path.name == run_folder.MODEL else load_twin(path, backend, device)
        seen.append(Moment(step, loss, look(twin, trained.vocabulary, reading)))
    kind = model.kind.replace("_", "-")
    shape = f"{kind}, {parameter_count(model):,} parameters, {model.layers} layers, {model.heads} heads"
    caches = attention_caches(trained.twin.parameters(), model, reading).values()
    detail = [
        QueryKey(*(np.stack([getattr(c.attention, n)[0] for c in layers]) for n in ("query", "key"))) for layers in caches
    ]
    return attention_page(seen, f"What {run.resolve().name} attends to", shape, "nats", detail, _then(model))


def _then(model: ModelConfig) -> str:
    """What stands between the scaled product of query and key and the weight."""
    steps = [] if model.softcap is None else ["soft cap"]
    return ", ".join([*steps, *(["ALiBi's penalty"] if model.position == "alibi" else []), "mask and softmax"])
