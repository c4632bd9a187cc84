"""Comparisons of spec, twin and truth within derived bounds: a parity test of an operation is a few lines of this.

    check_operation("softmax", softmax_forward, softmax_backward, torch_softmax, {"x": x})

compares three witnesses with the longdouble truth, every output and every gradient, elementwise: the spec, the twin under
autograd, and the complex step through the spec. The bounds are those of `bounds.py`; there is no other tolerance.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from parity_tests.bounds import LONGDOUBLE_IS_WIDER, TWIN_FACTOR, bound_of, run_tracked, track_tree
from parity_tests.formats import format_of, unit_roundoff
from parity_tests.sketches import CONFIDENCE
from parity_tests.tracked import Tracked
from parity_tests.within import Tally, assert_drift_rejected, assert_moments_within, assert_rejected, assert_within, record
from reference_numpy import attention, flash_attention

STEP = 1e-30  # complex step: its square is lost beside 1 even in longdouble, so the derivative has no truncation error
SMALL = 48  # inputs with at most so many elements are differentiated by the complex step element by element
NARROW_LONGDOUBLE = "longdouble is no wider than double here, so there is no truth to compare with"


# ---- two algorithms of one function


def tiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the spec's plain attention replaced by its tiled one, which is what torch's fused kernels run.

    The two round differently where it matters: the softmax's backward p (d - sum p d) is exactly 0 in the plain form for a
    query with a single key, whatever the error of d, while the tiled form takes the sum from d_output . output, whose error
    is another one. A twin that is free to choose is held to the larger of the two bounds.
    """

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with (
            patch.object(attention, "scaled_dot_product_attention_forward", flash_attention.flash_attention_forward),
            patch.object(attention, "scaled_dot_product_attention_backward", flash_attention.flash_attention_backward),
        ):
            return function(*arguments, **options)

    return run


def bound_of_either(function: Callable[..., dict[str, Any]], *arrays: Any, factor: float) -> tuple[Any, Any]:
    """(truth, bound) in float64 of a function that returns a dictionary: the larger bound of the two algorithms."""
    truth, bound = bound_of(function, *arrays, format="float64", factor=factor)
    _, other = bound_of(tiled(function), *arrays, format="float64", factor=factor)
    return truth, {name: bound[name] if bound[name] is None else np.maximum(bound[name], other[name]) for name in bound}


# ---- one operation, all witnesses


class Results(NamedTuple):
    """Outputs, and one gradient per argument (None where there is none)."""

    outputs: tuple[Any, ...]
    gradients: tuple[Any, ...]


def check_operation(
    name: str,
    spec_forward: Callable[..., tuple[Any, Any]],
    spec_backward: Callable[[Any, Any], Any],
    twin_function: Callable[..., Any] | None,
    arguments: Mapping[str, Any],
    *,
    constants: Sequence[str] = (),
    dtypes: Sequence[str] = ("float64",),
    seed: int = 0,
    twin_factor: float = TWIN_FACTOR,
    complex_step: bool = True,
    either_attention: bool = False,
    smooth: bool = True,
) -> dict[str, float]:
    """Compare spec, twin and complex step with the truth; returns the worst error/bound by "dtype witness tensor".

    spec_forward(*arguments) -> output(s), cache; spec_backward(d_output(s), cache) -> the gradient, or a tuple of gradients,
    of all arguments (None where there is none) or of the differentiable ones, in their order;
    twin_function(*arguments as tensors) -> output(s), or None to check the spec alone.
    `arguments` by name, in order: float64 arrays are differentiable unless named in `constants`; integers, masks, None and
    other objects are passed through. Layouts (strides, broadcasting) are kept, also for the twin where torch can hold them.
    `smooth`: the function has three continuous derivatives here, so central differences are a witness, too.
    `either_attention`: the twin may run plain or tiled attention, see `tiled`; its bound is the larger of the two.
    For dtypes other than float64 the inputs are rounded first, so that they are exact; bfloat16 is for the twin alone.
    Skips where longdouble is no wider than double. Raises AssertionError with the tensor, element and error/bound.
    """
    if not LONGDOUBLE_IS_WIDER:
        import pytest

        pytest.skip(NARROW_LONGDOUBLE)
    worst: dict[str, float] = {}
    for dtype in dtypes:
        values = {name: cast(value, dtype) if is_real(value) else value for name, value in arguments.items()}
        wanted = [is_real(value) and key not in constants for key, value in arguments.items()]
        upstream, truth = truth_of(spec_forward, spec_backward, values, wanted, dtype, seed)
        twin_truth = truth
        if either_attention and twin_function is not None:
            _, twin_truth = truth_of(tiled(spec_forward), tiled(spec_backward), values, wanted, dtype, seed)
        spec = None
        if dtype != "bfloat16":
            spec = run_pair("spec", spec_forward, spec_backward, values, wanted, upstream)
            worst |= compare_results(name, "spec", spec, truth, truth, values, dtype, 1.0)
        if twin_function is not None:
            twin = run_twin("twin", twin_function, values, wanted, upstream, dtype)
            worst |= compare_results(name, "twin", twin, truth, twin_truth, values, dtype, twin_factor)
        if dtype == "float64" and complex_step and all(np.isfinite(v).all() for v in values.values() if is_real(v)):
            assert spec is not None
            given = list(values.values())
            ratio = _check_complex_step(
                name, spec_forward, given, list(values), wanted, upstream, spec.gradients, truth.gradients, seed
            )
            worst["float64 complex step"] = ratio
            if smooth:
                ratio = _check_central_difference(name, spec_forward, given, wanted, upstream, truth, seed)
                worst["float64 central difference"] = ratio
    return worst


def compare_results(
    name: str,
    witness: str,
    results: Results,
    truth: Results,
    other: Results,
    arguments: Iterable[str],
    dtype: str,
    factor: float,
) -> dict[str, float]:
    """Assert that every output and gradient of a witness is within `factor` times its bound, that of `other` where it is
    larger; record the errors, and return the worst error/bound by "dtype witness tensor"."""
    worst = {}
    names = list(arguments)
    triples = zip(_pairs(results, truth, names), _pairs(results, other, names), strict=True)
    for (tensor, actual, tracked), (_, _, alternative) in triples:
        what = f"{name}, {dtype}, {witness} {tensor}"
        tally = _compare(actual, tracked, alternative, what, None if dtype == "bfloat16" else np.dtype(dtype), factor)
        record(name, f"{witness} {tensor}", dtype, tally)
        worst[f"{dtype} {witness} {tensor}"] = tally.worst
    return worst


def is_real(value: Any) -> bool:
    """Is it a floating-point array?"""
    return isinstance(value, (np.ndarray, np.floating)) and value.dtype.kind == "f"


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array rounded to dtype (bfloat16: as float64 that bfloat16 can hold), with the strides it has; a new array."""
    array = np.asarray(array)
    if dtype == "bfloat16":
        rounded = torch.tensor(np.ascontiguousarray(array)).to(torch.bfloat16).to(torch.float64).numpy()
        return with_layout_of(array, rounded.reshape(array.shape))
    with np.errstate(over="ignore"):
        return with_layout_of(array, array.astype(dtype))


def with_layout_of(model: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A new array of these values whose strides are those of the model, in elements: steps, signs, zeros (broadcast)."""
    size = model.itemsize
    if model.size == 0 or any(stride % size for stride in model.strides):
        return values.copy()
    steps = [stride // size for stride in model.strides]
    reach = [step * (length - 1) for step, length in zip(steps, model.shape, strict=True)]
    first = -sum(r for r in reach if r < 0)
    buffer = np.zeros(first + sum(r for r in reach if r > 0) + 1, values.dtype)
    strides = [step * values.dtype.itemsize for step in steps]
    view = np.lib.stride_tricks.as_strided(buffer[first:], model.shape, strides)
    view[...] = values
    return view


def to_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """A tensor of its own memory with the strides of the array; contiguous where torch cannot have them (negative)."""
    own = with_layout_of(array, array) if all(s >= 0 for s in array.strides) else array.copy()
    tensor = torch.from_numpy(own) if own.ndim else torch.tensor(own[()])
    target: torch.dtype = getattr(torch, dtype)
    if tensor.dtype == target or not tensor.is_floating_point():
        return tensor
    result = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=target)
    return result.copy_(tensor) if 0 not in tensor.stride() else tensor.to(target)


def from_tensor(tensor: torch.Tensor) -> np.ndarray:
    """The array of a tensor; bfloat16 as float64."""
    tensor = tensor.detach().cpu()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    array: np.ndarray = (tensor.to(torch.float64) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _tuple(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _same_structure(flat: Sequence[Any], model: Any) -> Any:
    return tuple(flat) if isinstance(model, (tuple, list)) else flat[0]


def _aligned(gradients: Any, wanted: Sequence[bool]) -> tuple[Any, ...]:
    """One gradient per argument, from a backward that returns one per argument or one per differentiable argument."""
    given = _tuple(gradients)
    if len(given) == len(wanted):
        return tuple(g if want else None for g, want in zip(given, wanted, strict=True))
    assert len(given) == sum(wanted), f"backward gave {len(given)} gradients for {sum(wanted)} differentiable arguments"
    remaining = iter(given)
    return tuple(next(remaining) if want else None for want in wanted)


def truth_of(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    values: Mapping[str, Any],
    wanted: Sequence[bool],
    dtype: str,
    seed: int,
) -> tuple[tuple[np.ndarray, ...], Results]:
    """A random upstream gradient per output, and the tracked outputs and gradients."""
    upstream: list[np.ndarray] = []

    def run(*tracked: Any) -> Results:
        output, cache = forward(*tracked)
        generator = np.random.default_rng(seed)
        upstream.extend(cast(generator.standard_normal(y.shape), dtype) for y in _tuple(output))
        d_output = _same_structure([track_tree(d, dtype) for d in upstream], output)
        return Results(_tuple(output), _aligned(backward(d_output, cache), wanted))

    truth = run_tracked(run, *values.values(), format=format_of(dtype))
    return tuple(upstream), truth


def run_pair(
    witness: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None,
    values: Mapping[str, Any],
    wanted: Sequence[bool],
    upstream: Sequence[np.ndarray],
) -> Results:
    """Outputs and gradients of a pair on NumPy arrays; asserts that they are arrays, that the pair leaves its inputs as they
    were, and the cache as it was found. `witness` stands in the messages. Without a backward there are no gradients, and
    forward may return its output alone."""
    given = {**values, **{f"the gradient of output {i}": d for i, d in enumerate(upstream)}}
    before = {name: value.copy() for name, value in given.items() if isinstance(value, np.ndarray)}

    def unchanged() -> None:
        changed = [name for name, old in before.items() if old.tobytes() != given[name].tobytes()]
        assert not changed, f"{witness}: changed one of its inputs: {', '.join(changed)}"

    result = forward(*values.values())
    if backward is None and not isinstance(result, tuple):
        result = result, None
    pair = isinstance(result, tuple) and len(result) == 2
    assert pair, f"{witness}: expected forward to return (output, cache), got {_described(result)}"
    output, cache = result
    outputs = _tuple(output)
    assert len(outputs) == len(upstream), f"{witness}: {len(outputs)} outputs, expected {len(upstream)}"
    for y in outputs:
        assert isinstance(y, (np.ndarray, np.generic)), f"{witness}: expected an array as output, got {_described(y)}"
    unchanged()
    outputs = tuple(np.array(y) for y in outputs)  # a backward that writes into its cache must not change what is judged
    if backward is None:
        return Results(outputs, (None,) * len(values))
    d_output = _same_structure(upstream, output)
    gradients = _aligned(backward(d_output, cache), wanted)
    for name, gradient in zip(values, gradients, strict=True):
        kind = gradient is None or isinstance(gradient, (np.ndarray, np.generic))
        assert kind, f"{witness}: expected an array as d_{name}, got {_described(gradient)}"
    unchanged()
    gradients = tuple(None if gradient is None else np.array(gradient) for gradient in gradients)
    for name, one, other in zip(values, gradients, _aligned(backward(d_output, cache), wanted), strict=True):
        same = one is None or one.tobytes() == np.asarray(other).tobytes()
        assert same, f"{witness}: d_{name}: a second backward pass from the same cache gave another"
    unchanged()
    return Results(outputs, gradients)


def run_twin(
    witness: str,
    function: Callable[..., Any],
    values: Mapping[str, Any],
    wanted: Sequence[bool],
    upstream: Sequence[np.ndarray],
    dtype: str,
) -> Results:
    """Outputs of a function on torch tensors, and their gradients by autograd; asserts that they are what those of the spec
    are in kind, and that the inputs stay as they were. `witness` stands in the messages."""
    tensors = [to_tensor(np.asarray(v), dtype) if isinstance(v, (np.ndarray, np.generic)) else v for v in values.values()]
    leaves = [t.requires_grad_() for t, want in zip(tensors, wanted, strict=True) if want]
    d_outputs = [to_tensor(d, dtype) for d in upstream]
    given = [t for t in (*tensors, *d_outputs) if isinstance(t, torch.Tensor)]
    before = [from_tensor(t).tobytes() for t in given]
    outputs = _tuple(function(*tensors))
    assert len(outputs) == len(upstream), f"{witness}: {len(outputs)} outputs, expected {len(upstream)}"
    for y, d in zip(outputs, d_outputs, strict=True):
        assert isinstance(y, torch.Tensor), f"{witness}: expected a tensor as output, got {_described(y)}"
        assert y.shape == d.shape, f"{witness}: expected an output of shape {tuple(d.shape)}, got {tuple(y.shape)}"
        assert y.dtype == d.dtype, f"{witness}: expected an output of dtype {dtype}, got {y.dtype}"
        assert y.requires_grad or not leaves, (
            f"{witness}: autograd sees no way from the output to the inputs (detach, no_grad, numpy, item or tolist?)"
        )
    found = iter(torch.autograd.grad(outputs, leaves, d_outputs, allow_unused=True, materialize_grads=True))
    assert before == [from_tensor(t).tobytes() for t in given], f"{witness}: changed one of its inputs"
    return Results(
        tuple(from_tensor(y) for y in outputs), tuple(from_tensor(next(found)) if want else None for want in wanted)
    )


def _described(value: Any) -> str:
    """What something is, for a message."""
    kind = "None" if value is None else type(value).__name__
    if isinstance(value, tuple):
        return f"{kind} of {len(value)}"
    return f"{kind} of shape {tuple(value.shape)}" if hasattr(value, "shape") else kind


def _pairs(results: Results, truth: Results, names: Sequence[str]) -> list[tuple[str, Any, Tracked]]:
    assert len(results.outputs) == len(truth.outputs), f"{len(results.outputs)} outputs, expected {len(truth.outputs)}"
    single = len(truth.outputs) == 1
    triples = [
        ("output" if single else f"output {i}", actual, tracked)
        for i, (actual, tracked) in enumerate(zip(results.outputs, truth.outputs, strict=True))
    ]
    for name, actual, tracked in zip(names, results.gradients, truth.gradients, strict=True):
        assert actual is not None or tracked is None, f"d_{name}: expected a gradient, got None"
        assert actual is None or tracked is not None, f"d_{name}: expected no gradient, got one"
        if tracked is not None:
            triples.append((f"d_{name}", actual, tracked))
    return triples


def _compare(actual: Any, tracked: Any, other: Any, what: str, dtype: Any, factor: float) -> Tally:
    assert isinstance(tracked, Tracked), f"{what}: the tracked run gave {type(tracked).__name__}: its bound is lost"
    bound = tracked.bound() if other is tracked else np.maximum(tracked.bound(), other.bound())
    tally = assert_within(actual, tracked.value, bound, what, dtype, factor)
    assert_rejected(actual, tracked.value, bound, what, factor)
    models = (tracked,) if other is tracked else (tracked, other)
    assert_moments_within(actual, tracked.value, models, what, factor)
    assert_drift_rejected(tracked.value, models, what, factor)
    return tally


def _check_complex_step(
    name: str,
    forward: Callable[..., Any],
    values: Sequence[Any],
    names: Sequence[str],
    wanted: Sequence[bool],
    upstream: Sequence[np.ndarray],
    gradients: Sequence[Any],
    truth: Sequence[Any],
    seed: int,
) -> float:
    """The spec's float64 gradients against Im f(x + i h v) / h, and the largest error/bound.

    No difference is formed, so h can be so small that nothing is truncated (Squire & Trapp 1998). The step runs in
    longdouble, where rounding is 2^-11 of that of float64: the gradient's tracked bound is the tolerance, and `own` covers
    exact ones. Neither covers a step in which more cancels than in the gradient; flash_attention.py avoids one.
    """
    generator = np.random.default_rng(seed + 1)
    real = [i for i, want in enumerate(wanted) if want]
    dense = {i: generator.standard_normal(values[i].shape) for i in real}
    slope, own = derivative_by_complex_step(forward, values, dense, upstream)
    along = sum((np.sum(gradients[i] * dense[i].astype(np.longdouble)) for i in real), np.longdouble(0))
    tracked = [(truth[i] * dense[i]).sum() for i in real]
    bound = sum((t.bound() for t in tracked), np.zeros(())) + own
    worst = assert_within(along, np.asarray(slope), np.asarray(bound), f"{name}, complex step along a line").worst
    for i in real:
        if 0 < values[i].size <= SMALL:
            slopes, owns = np.zeros(values[i].shape, np.longdouble), np.zeros(values[i].shape)
            for place in np.ndindex(*values[i].shape):
                unit = np.zeros(values[i].shape)
                unit[place] = 1.0
                slopes[place], owns[place] = derivative_by_complex_step(forward, values, {i: unit}, upstream)
            what = f"{name}, complex step d_{names[i]}"
            worst = max(worst, assert_within(gradients[i], slopes, truth[i].bound() + owns, what).worst)
    record(name, "complex step", "float64", Tally(worst))
    return worst


def _check_central_difference(
    name: str,
    forward: Callable[..., Any],
    values: Sequence[Any],
    wanted: Sequence[bool],
    upstream: Sequence[np.ndarray],
    truth: Results,
    seed: int,
) -> float:
    """The true gradient along a dense direction against (f(x + h v) - f(x - h v)) / 2h in longdouble, and error/bound.

    It knows nothing of derivatives, analytic or complex. The step h = u^(1/3), u the unit roundoff, balances the two errors
    of D(h): truncation, see central_difference; and the rounding of the two values in longdouble, over 2h: that of a float64
    run tracked at x + h v times the ratio of the unit roundoffs, and the gradient times the rounding of x + h v.
    """
    generator = np.random.default_rng(seed + 2)
    real = [i for i, want in enumerate(wanted) if want]
    direction = {i: generator.standard_normal(values[i].shape) for i in real}
    h = np.cbrt(np.longdouble(unit_roundoff("longdouble")))

    def moved(t: np.longdouble) -> list[Any]:
        wide = [np.asarray(v).astype(np.longdouble) if is_real(v) else v for v in values]
        return [v + t * direction[i] if i in direction else v for i, v in enumerate(wide)]

    def product(*arguments: Any) -> Any:
        output, _ = forward(*arguments)
        terms = [np.sum(y * d) for y, d in zip(_tuple(output), upstream, strict=True)]
        return sum(terms[1:], terms[0])

    near, truncation = central_difference(lambda t: product(*moved(t)), h)
    finer = unit_roundoff("longdouble") / unit_roundoff("float64")
    own = float(run_tracked(product, *moved(h), format="float64").bound())
    inputs = sum((np.sum(np.abs(moved(h)[i] * truth.gradients[i].value)) for i in real), np.longdouble(0))
    rounding = (finer * own + unit_roundoff("longdouble") * float(inputs)) / float(h)
    expected = sum((np.sum(truth.gradients[i].value * direction[i]) for i in real), np.longdouble(0))
    bound = np.asarray(truncation + rounding)
    worst = assert_within(near, np.asarray(expected), bound, f"{name}, central difference").worst
    record(name, "central difference", "float64", Tally(worst))
    return worst


def central_difference(function: Callable[[Any], Any], h: Any) -> tuple[Any, float]:
    """D(h) = (f(h) - f(-h)) / 2h, and a bound of its truncation error; f takes one number and is smooth from -2h to 2h.

    D(h) = f' + c h^2 + O(h^4), so D(2h) - D(h) = 3 c h^2 + O(h^4) measures c h^2; it is taken twice for the O(h^4).
    """
    plus, minus, plus2, minus2 = (function(t * h) for t in (1, -1, 2, -2))
    near, far = (plus - minus) / (2 * h), (plus2 - minus2) / (4 * h)
    return near, 2 * abs(float(far - near)) / 3


def derivative_by_complex_step(
    forward: Callable[..., Any], values: Sequence[Any], direction: Mapping[int, np.ndarray], upstream: Sequence[np.ndarray]
) -> tuple[np.longdouble, float]:
    """The derivative of sum(upstream * output) along the direction, and the rounding of this sum in longdouble."""
    steps: list[Any] = []
    for i, value in enumerate(values):
        if is_real(value):
            value = np.asarray(value).astype(np.clongdouble)
            value.imag = STEP * direction[i] if i in direction else 0.0
        steps.append(value)
    output, _ = forward(*steps)
    terms = [d * np.asarray(y).imag / np.longdouble(STEP) for y, d in zip(_tuple(output), upstream, strict=True)]
    count = sum(term.size for term in terms) + 2
    own = CONFIDENCE * unit_roundoff("longdouble") * count * float(sum((np.abs(t).sum() for t in terms), np.longdouble(0)))
    return sum((t.sum() for t in terms), np.longdouble(0)), own
