"""The feed-forward layer: the same two (or three) linear maps at every position (Vaswani et al. 2017, section 3.3)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from reference_numpy import activation
from reference_numpy.config import ModelConfig
from reference_numpy.linear import LinearCache, named_linear_backward, named_linear_forward
from reference_numpy.parameters import Parameters

ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "gelu": (activation.gelu_forward, activation.gelu_backward),
    "gelu_tanh": (activation.gelu_tanh_forward, activation.gelu_tanh_backward),
    "relu": (activation.relu_forward, activation.relu_backward),
    "relu_squared": (activation.relu_squared_forward, activation.relu_squared_backward),
    "swiglu": (activation.silu_forward, activation.silu_backward),
}


class FeedForwardCache(NamedTuple):
    """The caches of the linear maps and of the activation; with a gate also both factors of its product."""

    up: LinearCache
    gate: LinearCache | None
    activation: Any
    factors: tuple[np.ndarray, np.ndarray] | None
    down: LinearCache
    name: str


def feed_forward_forward(x: np.ndarray, parameters: Parameters, config: ModelConfig) -> tuple[np.ndarray, FeedForwardCache]:
    """f(x W_up^T) W_down^T, or with swiglu (silu(x W_gate^T) * x W_up^T) W_down^T (Shazeer 2020, equation 6); with
    config.bias each map adds its own.

    Shapes: x (B, T, D), output (B, T, D); inside, F numbers per position.
    """
    activate, _ = ACTIVATIONS[config.activation]
    up, up_cache = named_linear_forward(x, parameters, "up")  # (B, T, F)
    gate_cache = factors = None
    if config.activation == "swiglu":
        gate, gate_cache = named_linear_forward(x, parameters, "gate")
        activated, activation_cache = activate(gate)
        factors = (activated, up)
        inner = activated * up
    else:
        inner, activation_cache = activate(up)
    output, down_cache = named_linear_forward(inner, parameters, "down")  # (B, T, D)
    return output, FeedForwardCache(up_cache, gate_cache, activation_cache, factors, down_cache, config.activation)


def feed_forward_backward(d_output: np.ndarray, cache: FeedForwardCache) -> tuple[np.ndarray, Parameters]:
    """Gradients of x and the parameters: the chain rule through the maps in reverse.

    With a gate, inner = s(g) * u: each factor's gradient is d_inner times the other, and x, used twice, sums both paths.
    """
    _, activate_backward = ACTIVATIONS[cache.name]
    d_inner, d_parameters = named_linear_backward(d_output, cache.down, "down")
    if cache.gate is None or cache.factors is None:
        d_x, d_up_parameters = named_linear_backward(activate_backward(d_inner, cache.activation), cache.up, "up")
        return d_x, d_parameters | d_up_parameters
    activated, up = cache.factors
    d_gate = activate_backward(d_inner * up, cache.activation)
    d_x_up, d_up_parameters = named_linear_backward(d_inner * activated, cache.up, "up")
    d_x_gate, d_gate_parameters = named_linear_backward(d_gate, cache.gate, "gate")
    return d_x_up + d_x_gate, d_parameters | d_up_parameters | d_gate_parameters
