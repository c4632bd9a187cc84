"""Parameters: a flat dictionary from names to arrays, and how it starts.

The same names and layouts serve the spec, the twin's `state_dict`, the checkpoint on disk and every test. A linear weight
is (out, in). `scope` hands a room the part of the dictionary that is its own; `prefixed` puts its gradients back.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from reference_numpy.config import ModelConfig

Parameters = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
Value = TypeVar("Value")


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every parameter, in the order in which they are drawn."""
    shapes: Shapes = {"token_embedding.weight": (config.vocabulary, config.width)}
    if config.position == "learned":
        shapes["position_embedding.weight"] = (config.context, config.width)
    for stack in stacks(config):
        for layer in range(config.layers):
            shapes |= prefixed(f"{stack}blocks.{layer}", _block_shapes(config, cross=stack == "decoder."))
        if config.norm_position == "pre":
            shapes |= prefixed(f"{stack}final_norm", _norm_shapes(config, config.width))
    if not config.tied:
        shapes["head.weight"] = (config.vocabulary, config.width)
    return shapes


def stacks(config: ModelConfig) -> tuple[str, ...]:
    """Prefixes of the stacks of blocks: one without a name, or an encoder and a decoder."""
    return ("encoder.", "decoder.") if config.kind == "encoder_decoder" else ("",)


def parameter_count(config: ModelConfig) -> int:
    """Number of trained numbers; tied weights count once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def initialize(config: ModelConfig, generator: np.random.Generator, dtype: type = np.float32) -> Parameters:
    """Draw the initial parameters: N(0, deviation^2) for matrices, 1 for norm gains, 0 for biases.

    The projections that write into the residual stream are scaled by 1/sqrt(number of sub-layers in the stack), so that
    its variance does not grow with depth (GPT-2, Radford et al. 2019, section 2.3), or start at zero if the config says so.
    Draws are made in float64 and rounded to `dtype`, so that every precision starts from the same model.
    """
    parameters: Parameters = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            value = np.zeros(shape) if name.endswith("bias") else np.ones(shape)
        else:
            value = generator.standard_normal(shape) * deviation(config, name)
        parameters[name] = value.astype(dtype)
    return parameters


def deviation(config: ModelConfig, name: str) -> float:
    """The standard deviation with which a matrix starts."""
    if name == "token_embedding.weight" and config.scale_embedding:
        return config.width**-0.5
    if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
        if config.zero_projections:
            return 0.0
        sublayers = 3 if name.startswith("decoder.") else 2
        return config.initial_deviation / math.sqrt(sublayers * config.layers)
    return config.initial_deviation


def _norm_shapes(config: ModelConfig, width: int) -> Shapes:
    shapes: Shapes = {"weight": (width,)}
    return shapes | {"bias": (width,)} if config.bias and config.norm == "layer" else shapes


def _linear_shapes(config: ModelConfig, inputs: int, outputs: int) -> Shapes:
    return {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if config.bias else {})


def _attention_shapes(config: ModelConfig) -> Shapes:
    query_width, key_width = config.heads * config.head_width, config.key_heads * config.head_width
    shapes = prefixed("query", _linear_shapes(config, config.width, query_width))
    shapes |= prefixed("key", _linear_shapes(config, config.width, key_width))
    shapes |= prefixed("value", _linear_shapes(config, config.width, key_width))
    if config.qk_norm:
        shapes |= {"query_norm.weight": (config.head_width,), "key_norm.weight": (config.head_width,)}
    return shapes | prefixed("output", _linear_shapes(config, query_width, config.width))


def _feed_forward_shapes(config: ModelConfig) -> Shapes:
    shapes: Shapes = {}
    for name in ("gate", "up") if config.activation == "swiglu" else ("up",):
        shapes |= prefixed(name, _linear_shapes(config, config.width, config.inner_width))
    return shapes | prefixed("down", _linear_shapes(config, config.inner_width, config.width))


def _block_shapes(config: ModelConfig, cross: bool) -> Shapes:
    shapes: Shapes = {}
    for name in ("attention", "cross_attention") if cross else ("attention",):
        shapes |= prefixed(f"{name}_norm", _norm_shapes(config, config.width))
        shapes |= prefixed(name, _attention_shapes(config))
    shapes |= prefixed("feed_forward_norm", _norm_shapes(config, config.width))
    return shapes | prefixed("feed_forward", _feed_forward_shapes(config))


def scope(parameters: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The entries below `prefix`, with the prefix removed: scope(p, "blocks.0")["attention.query.weight"]."""
    start = prefix + "."
    return {name.removeprefix(start): value for name, value in parameters.items() if name.startswith(start)}


def parts(parameters: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """The scope of every first part of the names, in one walk: parts(p)["attention"] is scope(p, "attention")."""
    found: dict[str, dict[str, Value]] = {}
    for name, value in parameters.items():
        first, _, rest = name.partition(".")
        found.setdefault(first, {})[rest] = value
    return found


def prefixed(prefix: str, parameters: Mapping[str, Value]) -> dict[str, Value]:
    """The inverse of `scope`: every name with `prefix` and a dot in front."""
    return {f"{prefix}.{name}": value for name, value in parameters.items()}
