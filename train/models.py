"""`twinformer parameters`: how many parameters a well-known model has, part by part. Nothing is allocated to count them."""

from __future__ import annotations

import math
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import parameter_count, parameter_shapes
from train.commands import ParametersConfig
from train.configuration import from_mapping

MODELS_FILE = Path(__file__).with_name("models.toml")


class KnownModel(NamedTuple):
    """A shape, and the number of parameters that its source states."""

    config: ModelConfig
    published: int
    source: str
    note: str


class Part(NamedTuple):
    """Parameters of one part: in each of so many layers."""

    name: str
    layers: int
    total: int


def known_models() -> dict[str, KnownModel]:
    """All models of models.toml. Raises: ValueError for an unknown option or a value of the wrong type."""
    with MODELS_FILE.open("rb") as file:
        return {name: _known(name, options) for name, options in tomllib.load(file).items()}


def parameters(config: ParametersConfig) -> str:
    """The table of one model. Raises: ValueError for an unknown name."""
    models = known_models()
    if config.model not in models:
        raise ValueError(f"model: expected one of {', '.join(models)}, got {config.model!r}")
    return table(config.model, models[config.model])


def parts(config: ModelConfig) -> list[Part]:
    """The parameters of a model by part, in order; tied weights count once, with the embedding."""
    totals: dict[str, int] = {}
    layers: dict[str, set[str]] = {}
    for name, shape in parameter_shapes(config).items():
        part, layer = _part(name)
        totals[part] = totals.get(part, 0) + math.prod(shape)
        layers.setdefault(part, set()).add(layer)
    return [Part(part, len(layers[part]), total) for part, total in totals.items()]


def table(name: str, model: KnownModel) -> str:
    """One line per part, the sum, and how it compares with what the source states."""
    rows = [
        (part.name, f"{part.layers} x {part.total // part.layers:,}" if part.layers > 1 else "", f"{part.total:,}")
        for part in parts(model.config)
    ]
    total = parameter_count(model.config)
    rows.append(("sum", "", f"{total:,}"))
    width = max(len(row[0]) for row in rows)
    lines = [f"{part:{width}}  {each:>15}  {count:>13}" for part, each, count in rows]
    share = 100 * (total - model.published) / model.published
    notes = [f"{model.source}: {model.published:,}; the sum is {'equal' if not share else f'{share:+.1f} %'}.", model.note]
    return "\n".join([name, *lines, "", *(line for note in notes for line in textwrap.wrap(note, 100))])


def _known(name: str, options: dict[str, Any]) -> KnownModel:
    published, source, note = (options.pop(key) for key in ("published", "source", "note"))
    return KnownModel(from_mapping(ModelConfig, options, f"{MODELS_FILE.name} [{name}]"), published, source, note)


def _part(name: str) -> tuple[str, str]:
    """encoder.blocks.3.attention_norm.weight -> ("encoder: norms", "3")."""
    match = re.fullmatch(r"(?:(encoder|decoder)\.)?(?:blocks\.(\d+)\.)?(\w+)\..*", name)
    assert match is not None, name
    stack, layer, part = match[1], match[2] or "", match[3]
    part = "norms" if layer and part.endswith("_norm") else part.replace("_", " ")
    return (f"{stack}: {part}" if stack else part), layer
