"""`assert_parity`: test your own implementation against the spec in three lines.

    import torch
    from parity_tests import assert_parity
    assert_parity(torch.nn.functional.scaled_dot_product_attention, "attention")

The operations, their arguments, and what else to know:

    linear            x (..., I), weight (O, I), bias (O,)
    embedding         tokens (...) integers, weight (V, D)
    softmax           x (..., S), over the last axis
    gelu, gelu_tanh   x; the exact one, and the approximation by tanh
    relu, relu_squared, silu   x; at 0 the gradient of relu is 0
    layer_norm        x (..., D), weight (D,), bias (D,); epsilon is 1e-5
    rms_norm          x (..., D), weight (D,); epsilon is 1e-5
    dropout           x, rate, keep: like x, True where kept
    rotary            x (B, H, T, K), positions (T,); channels i and i + K/2 turn together, by the position times
                      10000^(-2i/K), of which sine and cosine are tables in float64
    attention         query (B, H, T, K), key and value (B, H, S, K)
    causal_attention  the same with T = S: no query sees a later key
    cross_entropy     logits (..., V), targets (...) integers, -1 for one that does not count; the mean over those that do

A torch function takes these arguments; a module takes those that are not names of its parameters, and the others stand in
for its parameters; a NumPy pair (forward, backward) is in the spec's manner, and with None for backward only the output is
judged; inputs of your own follow the operation, and a bias may be left out:

    assert_parity(torch.nn.LayerNorm(7), "layer_norm")
    assert_parity((my_forward, None), "softmax")
    assert_parity((my_forward, my_backward), "softmax", np.eye(3))

Outputs and every gradient must lie within the derived bounds of the truth (see bounds.py); the error names the tensor, the
element, what was expected and by how many bounds it is off.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from parity_tests.bounds import LONGDOUBLE_IS_WIDER, TWIN_FACTOR
from parity_tests.compare import (
    NARROW_LONGDOUBLE,
    Results,
    cast,
    compare_results,
    is_real,
    run_pair,
    run_twin,
    tiled,
    truth_of,
)
from reference_numpy import activation, attention, dropout, embedding, linear, loss, normalization, position, softmax


class Drawn(NamedTuple):
    """Normal numbers of this shape, which begin with some that are chosen."""

    shape: tuple[int, ...]
    first: tuple[float, ...] = ()


class Operation(NamedTuple):
    """Forward and backward of the spec, and small examples: an array that is drawn, or a value, for each argument."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    example: dict[str, Any]
    edges: dict[str, dict[str, Any]]
    """Further examples: what is special, in words, and the arguments that then differ."""


def _attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> Any:
    """output = softmax(query key^T / sqrt(K)) value (Vaswani et al. 2017, equation 1).

    Shapes: query (B, H, T, K), key and value (B, H, S, K); output (B, H, T, K). Every query may attend to every key.
    """
    return attention.scaled_dot_product_attention_forward(query, key, value)


def _attention_backward(d_output: np.ndarray, cache: Any) -> Any:
    return attention.scaled_dot_product_attention_backward(d_output, cache)


def _causal_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> Any:
    """Attention in which query t sees the keys 0 to t alone (Vaswani et al. 2017, section 3.2.3).

    Shapes: query, key, value and output (B, H, T, K).
    """
    if query.shape != key.shape:
        raise ValueError(f"key: expected the shape of query, {query.shape}, got {key.shape}")
    return attention.scaled_dot_product_attention_forward(query, key, value, causal=True)


LARGE = 1000.0  # its exponential overflows
OTHER_SIZES = "of other sizes"
TARGETS = np.array([[0, 3, -1], [10, 5, 2]])  # -1: ignored
KEEP = np.arange(15).reshape(3, 5) % 3 > 0
EVERY = {"x": Drawn((3, 5))}
WITH_0 = {"x": Drawn((3, 5), (0.0,))}
FAR = {"far from 0": {"x": Drawn((2, 4), (-7.0, 7.0, -30.0, 30.0))}}
OPERATIONS = {
    "linear": Operation(
        linear.linear_forward,
        linear.linear_backward,
        {"x": Drawn((2, 3, 5)), "weight": Drawn((7, 5)), "bias": Drawn((7,))},
        {OTHER_SIZES: {"x": Drawn((1, 4, 5))}},
    ),
    "embedding": Operation(
        embedding.embedding_forward,
        embedding.embedding_backward,
        {"tokens": np.array([[1, 4, 4], [0, 2, 4]]), "weight": Drawn((7, 5))},
        {OTHER_SIZES: {"tokens": np.array([[6, 6, 6, 0]])}},
    ),
    "softmax": Operation(
        softmax.softmax_forward,
        softmax.softmax_backward,
        {"x": Drawn((3, 5), (LARGE, LARGE - 1))},
        {"of three axes, one entry -inf": {"x": Drawn((2, 3, 4), (-np.inf,))}},
    ),
    "gelu": Operation(activation.gelu_forward, activation.gelu_backward, EVERY, FAR),
    "gelu_tanh": Operation(activation.gelu_tanh_forward, activation.gelu_tanh_backward, EVERY, FAR),
    "relu": Operation(activation.relu_forward, activation.relu_backward, WITH_0, {}),
    "relu_squared": Operation(activation.relu_squared_forward, activation.relu_squared_backward, WITH_0, {}),
    "silu": Operation(activation.silu_forward, activation.silu_backward, {"x": Drawn((3, 5), (LARGE, -LARGE))}, {}),
    "layer_norm": Operation(
        normalization.layer_norm_forward,
        normalization.layer_norm_backward,
        {"x": Drawn((2, 3, 7)), "weight": Drawn((7,)), "bias": Drawn((7,))},
        {OTHER_SIZES: {"x": Drawn((4, 1, 7))}},
    ),
    "rms_norm": Operation(
        normalization.rms_norm_forward,
        normalization.rms_norm_backward,
        {"x": Drawn((2, 3, 7)), "weight": Drawn((7,))},
        {OTHER_SIZES: {"x": Drawn((4, 1, 7))}},
    ),
    "dropout": Operation(
        dropout.dropout_forward,
        dropout.dropout_backward,
        {"x": Drawn((3, 5)), "rate": 0.25, "keep": KEEP},
        {"of half": {"x": Drawn((4, 2)), "rate": 0.5, "keep": np.arange(8).reshape(4, 2) % 3 == 1}},
    ),
    "rotary": Operation(
        position.rotary_forward,
        position.rotary_backward,
        {"x": Drawn((2, 3, 5, 6)), "positions": np.arange(5)},
        {"of positions out of order": {"x": Drawn((1, 2, 3, 4)), "positions": np.array([2, 0, 4])}},
    ),
    "attention": Operation(
        _attention,
        _attention_backward,
        {"query": Drawn((2, 3, 5, 7)), "key": Drawn((2, 3, 11, 7)), "value": Drawn((2, 3, 11, 7))},
        {
            "with scores whose exponential overflows": {
                "query": Drawn((1, 2, 3, 4), (LARGE,)),
                "key": Drawn((1, 2, 5, 4), (2.0,)),
                "value": Drawn((1, 2, 5, 4)),
            }
        },
    ),
    "causal_attention": Operation(
        _causal_attention,
        _attention_backward,
        dict.fromkeys(("query", "key", "value"), Drawn((2, 3, 5, 7))),
        {OTHER_SIZES: dict.fromkeys(("query", "key", "value"), Drawn((1, 2, 3, 4)))},
    ),
    "cross_entropy": Operation(
        loss.cross_entropy_forward,
        loss.cross_entropy_backward,
        {"logits": Drawn((2, 3, 11), (LARGE, LARGE - 1)), "targets": TARGETS},
        {
            "of a target without a chance": {
                "logits": Drawn((1, 4, 5), (LARGE, 0.0)),
                "targets": np.array([[1, -1, 4, 0]]),
            }
        },
    ),
}


def assert_parity(
    function: Callable[..., Any] | tuple[Callable[..., Any], Callable[..., Any] | None],
    operation: str,
    *arguments: Any,
    dtype: str = "float64",
    seed: int = 0,
) -> float:
    """Assert that `function` computes what the spec's `operation` computes, outputs and gradients.

    `function` takes the operation's arguments: a callable on torch tensors, differentiated by autograd, or a pair
    (forward, backward) on NumPy arrays in the spec's manner: forward returns output and cache; backward takes the upstream
    gradient and the cache and returns the gradients, of all arguments (None where there is none) or of those that are
    floating-point arrays, in their order. With None for backward the output alone is judged, and may be all that forward
    returns. Without `arguments` small examples are drawn: they show some edges, not every one.
    dtype: float64 or float32, for torch also bfloat16. Returns the largest error/bound of an output or gradient.
    Raises AssertionError naming the worst element; ValueError for arguments that make no sense, and on a machine whose
    longdouble is no wider than double.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation: expected one of {', '.join(OPERATIONS)}, got {operation!r}")
    pair = isinstance(function, tuple)
    parts = function if isinstance(function, tuple) else (function,)
    given = parts[:1] if parts[1:] == (None,) else parts
    if len(parts) != 1 + pair or any(not callable(part) or isinstance(part, type) for part in given):
        raise ValueError(f"function: expected a function, or a tuple of two, forward and backward, got {function!r}")
    formats = ("float64", "float32") if pair else ("float64", "float32", "bfloat16")
    if dtype not in formats:
        raise ValueError(f"dtype: expected one of {', '.join(formats)}{' for NumPy arrays' * pair}, got {dtype!r}")
    if not LONGDOUBLE_IS_WIDER:
        raise ValueError(NARROW_LONGDOUBLE)
    spec = OPERATIONS[operation]
    if arguments:
        return _compared(function, spec, operation, _given(spec, arguments), dtype, seed)
    return max(
        _compared(function, spec, f"{operation} {edge}".rstrip(), drawn(spec.example | changed, seed), dtype, seed)
        for edge, changed in {"": {}, **spec.edges}.items()
    )


def _compared(function: Any, spec: Operation, what: str, values: dict[str, Any], dtype: str, seed: int) -> float:
    """The largest error/bound for these arguments. Raises: as `assert_parity`."""
    values = {name: cast(value, dtype) if is_real(value) else value for name, value in values.items()}
    if isinstance(function, torch.nn.Module):
        function = _with_parameters(function, values)
    else:
        _check_signature(function[0] if isinstance(function, tuple) else function, values)

    wanted = [is_real(value) for value in values.values()]
    forward, backward = spec.forward, _first_gradients(spec.backward, wanted)
    upstream, truth = truth_of(forward, backward, values, wanted, dtype, seed)
    if not all(np.isfinite(t.bound()).all() for t in (*truth.outputs, *truth.gradients) if t is not None):
        raise ValueError("arguments: expected numbers for which every bound is finite (bounds.py, Limits), got larger ones")
    other = truth
    if spec.backward is _attention_backward:  # plain and tiled attention round differently: either will do
        _, other = truth_of(tiled(forward), tiled(backward), values, wanted, dtype, seed)
    results: Results
    try:
        if isinstance(function, tuple):
            results, factor = run_pair("yours", _asked_again(function[0]), function[1], values, wanted, upstream), 1.0
            if function[1] is None:
                truth, other = (each._replace(gradients=results.gradients) for each in (truth, other))
        else:
            results, factor = run_twin("yours", function, values, wanted, upstream, dtype), TWIN_FACTOR
            again = run_twin("yours", function, values, wanted, upstream, dtype)
            same = all(_bytes(one) == _bytes(two) for one, two in zip(results, again, strict=True))
            assert same, "yours: a second call gave another output or gradient"
    except (TypeError, AttributeError, RuntimeError) as error:
        if not isinstance(function, tuple) and any(word in str(error) for word in NUMPYS):
            error.add_note("yours: called with torch tensors; a NumPy function goes into a tuple: (forward, None)")
        elif isinstance(function, tuple) and "Tensor" in str(error):
            error.add_note("yours: called with NumPy arrays, as a tuple is; a torch function goes without one")
        raise
    name = f"assert_parity, {what}"
    return max(compare_results(name, "yours", results, truth, other, values, dtype, factor).values())


# What torch says to a function of NumPy's has one of these in it.
NUMPYS = ("numpy", "return_types", "ufunc", "'Tensor' object has no attribute")


def _asked_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward, and two more calls after it: one that must give the same, and one with other numbers, after which what it
    gave first must be what it was; so that a backward finds nothing that was kept outside of its cache."""

    def output(result: Any) -> list[bytes]:
        return _bytes(result[:1] if isinstance(result, tuple) else (result,))

    def run(*values: Any) -> Any:
        result = forward(*values)
        first = output(result)
        assert first == output(forward(*values)), "yours: a second call gave another output"
        forward(*(value / 2 if is_real(value) and isinstance(value, np.ndarray) else value for value in values))
        assert first == output(result), "yours: a later call changed the output of an earlier one"
        return result

    return run


def _bytes(parts: Sequence[Any]) -> list[bytes]:
    """The numbers of those that are arrays."""
    return [part.tobytes() for part in parts if isinstance(part, (np.ndarray, np.generic))]


def drawn(example: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The example with its arrays drawn; the others are copies, so that nobody can change the example."""
    generator = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for name, value in example.items():
        if isinstance(value, Drawn):
            array = generator.standard_normal(value.shape)
            array.flat[: len(value.first)] = value.first
            value = array
        values[name] = value.copy() if isinstance(value, np.ndarray) else value
    return values


def _given(spec: Operation, arguments: Sequence[Any]) -> dict[str, Any]:
    """The user's own arguments by name: floats in float64, integers and masks as they are. Raises ValueError."""
    names = list(spec.example)
    if len(arguments) > len(names):
        raise ValueError(f"arguments: expected at most {len(names)} ({', '.join(names)}), got {len(arguments)}")
    parameters = inspect.signature(spec.forward).parameters
    optional = [name for name, parameter in parameters.items() if parameter.default is None]
    missing = [name for name in names[len(arguments) :] if name not in optional]
    if missing:
        raise ValueError(f"arguments: expected {', '.join(names)}, got none for {', '.join(missing)}")
    values: dict[str, Any] = {}
    for name, value in zip(names, arguments, strict=False):
        example = spec.example[name]
        if isinstance(value, torch.Tensor):
            value = (value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()).numpy()
        if value is None and "None" in str(parameters[name].annotation):
            values[name] = value
            continue
        if isinstance(example, float):
            if np.ndim(value) or np.asarray(value).dtype.kind not in "fi":
                raise ValueError(f"{name}: expected a number, got {value!r}")
            values[name] = float(value)
            continue
        array = np.asarray(value)
        kind = "f" if isinstance(example, Drawn) else example.dtype.kind
        if array.dtype.kind not in {"f": "fi", "i": "iu", "b": "b"}[kind]:
            expected = {"f": "floating-point numbers", "i": "integers", "b": "True and False"}[kind]
            raise ValueError(f"{name}: expected {expected}, got {array.dtype}")
        values[name] = array.astype({"f": np.float64, "i": np.int64, "b": np.bool_}[kind])  # a copy
    return values


def _with_parameters(module: torch.nn.Module, values: Mapping[str, Any]) -> Callable[..., Any]:
    """The module as a function of all arguments. Raises ValueError for one with other parameters or inputs."""
    own = [name for name, _ in module.named_parameters()]
    others = {name: value for name, value in values.items() if name not in own}
    if not set(own) <= set(values):
        raise ValueError(f"function: expected a module with parameters among {', '.join(values)}, got {', '.join(own)}")
    _check_signature(module.forward, others)

    def function(*arguments: Any) -> Any:
        given = dict(zip(values, arguments, strict=True))
        inputs = tuple(given[name] for name in others)
        parts = {name: buffer.clone() for name, buffer in module.named_buffers()} | {name: given[name] for name in own}
        return torch.func.functional_call(module, parts, inputs, strict=True)

    return function


def _check_signature(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raises ValueError for a function with another number of parameters, as far as Python can tell."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one that is not written in Python
        return
    try:
        signature.bind(*values.values())
    except TypeError as error:
        raise ValueError(f"function: expected one that takes {', '.join(values)}, got one with {signature}") from error


def _first_gradients(backward: Callable[..., Any], wanted: Sequence[bool]) -> Callable[..., Any]:
    """The spec's backward without the gradients of arguments that were left out."""

    def run(d_output: Any, cache: Any) -> Any:
        gradients = backward(d_output, cache)
        return gradients[: len(wanted)] if isinstance(gradients, tuple) else gradients

    return run
