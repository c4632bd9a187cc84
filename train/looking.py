"""What a model attends to while it reads, as arrays: the weights of every stack, and figures computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reference_numpy.attention import MultiHeadCache
from reference_numpy.config import ModelConfig
from reference_numpy.model import model_forward
from train import run_folder
from train.backend import Arrays, Backend
from train.checkpoint import load_arrays
from train.generate import HIDDEN, answer
from train.pairs import marks, source_tokens
from train.trained import Trained
from train.vocabulary import MASK, Symbols, Vocabulary


class Reading(NamedTuple):
    """What a model reads."""

    tokens: np.ndarray
    """(T,), for the decoder or the only stack."""
    source: np.ndarray | None = None
    """(S,), for the encoder of an encoder-decoder."""
    written: np.ndarray | None = None
    """(T,), for an encoder-decoder: what it is to write after each of the tokens."""


class Stack(NamedTuple):
    """The attention of one stack of a model: its weights, and what stands beside their rows and columns."""

    name: str
    """own, for a model of one stack; else encoder, decoder or cross."""
    title: str
    """What the attention is, for a heading."""
    weights: dict[str, np.ndarray]
    """Name of the layer to (H, T, S); each row adds up to 1, or is 0."""
    rows: list[str]
    """Labels of the T tokens that attend."""
    columns: list[str]
    """Labels of the S tokens that are attended to."""


TITLES = {
    "own": "Self-attention",
    "encoder": "Encoder self-attention",
    "decoder": "Decoder self-attention",
    "cross": "Cross-attention",
}


def read(trained: Trained, text: str | None, source: str | None) -> Reading:
    """The tokens of the texts; without a text, those of the model's own answer to the source.

    Raises: ValueError for a text that is too long or missing or one too many, and a character not in the vocabulary."""
    vocabulary, context = trained.vocabulary, trained.model.context
    pairs = trained.model.kind == "encoder_decoder"
    if (source is not None) != pairs:
        expected = "a text to answer" if pairs else "none for a model of one text"
        raise ValueError(f"source: expected {expected}, got {'none' if source is None else repr(source)}")
    if source is None:
        return Reading(_text(trained, text, context))
    seen, longest = source_tokens(vocabulary, source, context), context - 1  # the mark at the start takes one
    target = vocabulary.encode(answer(trained, source))[:longest] if text is None else _text(trained, text, longest)
    return pair_reading(vocabulary, seen, target)


def pair_reading(vocabulary: Symbols, source: np.ndarray, target: np.ndarray) -> Reading:
    """What an encoder-decoder reads while it answers a source (S,) with a target."""
    start, end = marks(vocabulary)
    return Reading(np.concatenate(([start], target)), source, np.concatenate((target, [end])))


def look(backend: Backend, vocabulary: Symbols, reading: Reading) -> list[Stack]:
    """The attention of every stack while the model reads.

    A decoder's rows are what it has just read; those of the cross-attention are what it writes next.
    Raises: ValueError for linear attention, which forms no weights."""
    weights, own = backend.attention(reading.tokens, reading.source), vocabulary.labels(reading.tokens)
    sides = {"own": (own, own)}
    if reading.source is not None:
        assert reading.written is not None
        source, written = vocabulary.labels(reading.source), vocabulary.labels(reading.written)
        sides = {"encoder": (source, source), "decoder": (own, own), "cross": (written, source)}
    return [
        Stack(name, TITLES[name], {_layer(n): array for n, array in weights.items() if _stack(n) == name}, *labels)
        for name, labels in sides.items()
    ]


def attention_caches(parameters: Arrays, model: ModelConfig, reading: Reading) -> dict[str, list[MultiHeadCache]]:
    """What the spec keeps of every attention, layer by layer, under the names of the stacks in `look`."""
    source = None if reading.source is None else reading.source[None]
    _, cache = model_forward(parameters, model, reading.tokens[None], source=source)
    own = [block.attention.sublayer for block in cache.stack.blocks]
    if cache.encoder is None:
        return {"own": own}
    cross = [block.cross_attention.sublayer for block in cache.stack.blocks if block.cross_attention is not None]
    return {"encoder": [block.attention.sublayer for block in cache.encoder.blocks], "decoder": own, "cross": cross}


def from_score_to_weight(model: ModelConfig) -> str:
    """What stands between the scaled product of query and key and the weight, besides the mask."""
    steps = [] if model.softcap is None else ["soft cap"]
    return ", ".join([*steps, *(["ALiBi's penalty"] if model.position == "alibi" else []), "softmax"])


def entropy(weights: np.ndarray) -> np.ndarray:
    """-sum_s w_s ln w_s of every row in nats, 0 ln 0 = 0: (..., T, S) -> (..., T). From 0 to ln S."""
    return -(weights * np.log(np.where(weights > 0, weights, 1))).sum(axis=-1)


def distance(weights: np.ndarray) -> np.ndarray:
    """sum_s w_s |t - s| of every row t in tokens: (..., T, S) -> (..., T). Only where rows and columns are one text."""
    T, S = weights.shape[-2:]
    return (weights * np.abs(np.arange(T)[:, None] - np.arange(S))).sum(axis=-1)


def rollout(layers: Sequence[np.ndarray]) -> np.ndarray:
    """How much of each token reaches each token through all layers: (H, T, T) each -> (L, T, T), after every layer.

    A layer passes on half of its input, by the residual connection, and half of the mean over its heads:
    R_l = (A_l + I) / 2 @ R_(l-1), R_0 = I (Abnar & Zuidema 2020, section 3). It knows nothing of values and norms.
    """
    passed, result = np.eye(layers[0].shape[-1]), []
    for weights in layers:
        passed = (weights.mean(axis=0) + np.eye(len(passed))) / 2 @ passed
        result.append(passed)
    return np.stack(result)


def losses_near(records: Sequence[Mapping[str, float]], steps: Sequence[int]) -> list[float | None]:
    """The training loss around each step: the mean over what was logged within a twentieth of it, or the nearest record.

    None where nothing was logged at all; what was not finite does not count."""
    logged = [(r["step"], r["train_loss"]) for r in records if r.get("train_loss") is not None]
    known = np.array([(step, loss) for step, loss in logged if math.isfinite(loss)]).reshape(-1, 2)
    if len(known) == 0:
        return [None] * len(steps)
    away = [np.abs(known[:, 0] - step) for step in steps]
    return [float(known[gap <= max(step / 20, gap.min()), 1].mean()) for step, gap in zip(steps, away, strict=True)]


def moments(run: Path) -> list[tuple[int, Path]]:
    """Step and file of every model that a run has kept, the last one last; at equal steps the finished one."""
    finished = run_folder.model_of(run)
    step = int(load_arrays(finished, "model")[1]["step"])
    kept = dict([*run_folder.kept(run), *run_folder.snapshots(run)])
    return [*sorted((s, path) for s, path in kept.items() if s < step), (step, finished)]


def _text(trained: Trained, text: str | None, longest: int) -> np.ndarray:
    """Tokens of a text. Raises: ValueError for none, and for more than `longest`."""
    if text is None:
        raise ValueError("text: expected a text to read, got none")
    tokens = trained.vocabulary.encode(text.replace(HIDDEN, MASK) if trained.model.kind == "encoder" else text)
    if len(tokens) > longest:
        unit = "characters" if isinstance(trained.vocabulary, Vocabulary) else "tokens"
        raise ValueError(f"text: expected at most {longest} {unit}, as many as the model can take, got {len(tokens)}")
    return tokens


def _stack(name: str) -> str:
    """blocks.0.attention -> own; encoder.blocks.0.attention -> encoder; decoder.blocks.0.cross_attention -> cross."""
    first = name.split(".")[0]
    return "cross" if name.endswith("cross_attention") else "own" if first == "blocks" else first


def _layer(name: str) -> str:
    """encoder.blocks.0.attention -> layer 0."""
    return f"layer {name.split('.')[-2]}"
