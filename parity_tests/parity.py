"""`assert_parity`: test your own implementation against the spec in three lines.

    import torch
    from parity_tests import assert_parity
    assert_parity(torch.nn.functional.scaled_dot_product_attention, "attention")

A torch function takes the operation's arguments, as OPERATIONS below names them; a module does so by `functional_call`; a
NumPy pair (forward, backward) is in the spec's manner; inputs of your own follow the operation:

    assert_parity(lambda x, w, b: torch.func.functional_call(my_norm, {"weight": w, "bias": b}, x), "layer_norm")
    assert_parity((my_forward, my_backward), "softmax", np.eye(3))

Outputs and every gradient must lie within the derived bounds of the truth (see bounds.py); the error names the tensor, the
element, what was expected and by how many bounds it is off.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from parity_tests.bounds import Tracked
from parity_tests.compare import check_operation
from reference_numpy import activation, attention, dropout, embedding, linear, loss, normalization, position, softmax


class Operation(NamedTuple):
    """Forward and backward of the spec, and the shapes of a small example: floats by shape, the rest by value."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    example: dict[str, Any]


def _positions(x: np.ndarray) -> Any:
    return position.rotary_forward(x, np.arange(x.shape[2]))


def _attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, causal: bool = False) -> Any:
    return attention.scaled_dot_product_attention_forward(query, key, value, causal=causal)


def _attention_backward(d_output: np.ndarray, cache: Any) -> Any:
    return attention.scaled_dot_product_attention_backward(d_output, cache)


def _causal_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> Any:
    return _attention(query, key, value, causal=True)


ATTENTION = {"query": (2, 3, 5, 7), "key": (2, 3, 5, 7), "value": (2, 3, 5, 7)}
TARGETS = np.array([[0, 3, -1], [10, 5, 2]])  # -1: ignored
KINKED = ("relu", "relu_squared")  # at 0, where a difference quotient would see both sides
WIDE = (np.longdouble, np.complex128, np.clongdouble)
KEEP = np.arange(15).reshape(3, 5) % 3 > 0
OPERATIONS = {
    "linear": Operation(linear.linear_forward, linear.linear_backward, {"x": (2, 3, 5), "weight": (7, 5), "bias": (7,)}),
    "embedding": Operation(
        embedding.embedding_forward,
        embedding.embedding_backward,
        {"tokens": np.array([[1, 4, 4], [0, 2, 4]]), "weight": (7, 5)},
    ),
    "softmax": Operation(softmax.softmax_forward, softmax.softmax_backward, {"x": (3, 5)}),
    "gelu": Operation(activation.gelu_forward, activation.gelu_backward, {"x": (3, 5)}),
    "gelu_tanh": Operation(activation.gelu_tanh_forward, activation.gelu_tanh_backward, {"x": (3, 5)}),
    "relu": Operation(activation.relu_forward, activation.relu_backward, {"x": (3, 5)}),
    "relu_squared": Operation(activation.relu_squared_forward, activation.relu_squared_backward, {"x": (3, 5)}),
    "silu": Operation(activation.silu_forward, activation.silu_backward, {"x": (3, 5)}),
    "layer_norm": Operation(
        normalization.layer_norm_forward, normalization.layer_norm_backward, {"x": (2, 3, 7), "weight": (7,), "bias": (7,)}
    ),
    "rms_norm": Operation(normalization.rms_norm_forward, normalization.rms_norm_backward, {"x": (2, 3, 7), "weight": (7,)}),
    "dropout": Operation(
        dropout.dropout_forward,
        lambda d_y, cache: (dropout.dropout_backward(d_y, cache), None, None),
        {"x": (3, 5), "rate": 0.25, "keep": KEEP},
    ),
    "rotary": Operation(_positions, position.rotary_backward, {"x": (2, 3, 5, 6)}),
    "attention": Operation(_attention, _attention_backward, ATTENTION),
    "causal_attention": Operation(_causal_attention, _attention_backward, ATTENTION),
    "cross_entropy": Operation(
        loss.cross_entropy_forward,
        lambda d_loss, cache: (loss.cross_entropy_backward(d_loss, cache), None),
        {"logits": (2, 3, 11), "targets": TARGETS},
    ),
}


def assert_parity(
    function: Callable[..., Any] | tuple[Callable[..., Any], Callable[..., Any]],
    operation: str,
    *arguments: Any,
    dtype: str = "float64",
    seed: int = 0,
) -> float:
    """Assert that `function` computes what the spec's `operation` computes, outputs and gradients; returns error/bound.

    `function` takes the operation's arguments: a callable on torch tensors, differentiated by autograd, or a pair
    (forward, backward) on NumPy arrays in the spec's manner (forward returns output and cache; backward takes the upstream
    gradient and the cache and returns the gradients in the order of the arguments). Without `arguments` a small random
    example is used, its sizes distinct primes. dtype: float64 or float32, for torch also bfloat16.
    Raises AssertionError naming the worst element; ValueError for an unknown operation, and for a pair in bfloat16.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation: expected one of {', '.join(OPERATIONS)}, got {operation!r}")
    spec = OPERATIONS[operation]
    names = list(spec.example)
    if arguments and len(arguments) > len(names):
        raise ValueError(f"arguments: expected at most {len(names)} ({', '.join(names)}), got {len(arguments)}")
    generator = np.random.default_rng(seed)
    if isinstance(function, tuple) and dtype == "bfloat16":
        raise ValueError("dtype: expected float64 or float32 for a pair on NumPy arrays, got bfloat16")
    given = (np.asarray(value) if isinstance(value, list | torch.Tensor) else value for value in arguments)
    values = dict(zip(names, given, strict=False)) or {
        name: generator.standard_normal(value) if isinstance(value, tuple) else value for name, value in spec.example.items()
    }
    forward, backward = spec.forward, spec.backward
    if isinstance(function, tuple):
        pair = _Pair(spec, *function)
        forward, backward = pair.forward, pair.backward
    twin = None if isinstance(function, tuple) else function
    either = operation in ("attention", "causal_attention")
    ratios = check_operation(
        f"yours, {operation}",
        forward,
        backward,
        twin,
        values,
        dtypes=(dtype,),
        seed=seed,
        either_attention=either,
        smooth=operation not in KINKED,
    )
    return max(ratios.values())


class _Pair:
    """Runs the user's pair on float64 and float32, and the spec on tracked, complex and longdouble arrays, the judges."""

    def __init__(self, spec: Operation, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        self._spec, self._forward, self._backward = spec, forward, backward

    def forward(self, *values: Any) -> tuple[Any, Any]:
        plain = not any(isinstance(value, Tracked) or getattr(value, "dtype", None) in WIDE for value in values)
        output, cache = (self._forward if plain else self._spec.forward)(*values)
        return output, (plain, cache)

    def backward(self, d_output: Any, cache: tuple[bool, Any]) -> Any:
        plain, inner = cache
        return (self._backward if plain else self._spec.backward)(d_output, inner)
