"""The instrument proves itself: real runs in float32 and float64 stay within its bounds, and the bounds are not slack."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from parity_tests.bounds import LONGDOUBLE_IS_WIDER, bound_of, map_arrays
from parity_tests.compare import NARROW_LONGDOUBLE
from parity_tests.formats import format_of, smallest_subnormal, unit_roundoff
from parity_tests.sketches import CONFIDENCE, HALF, student_quantile
from parity_tests.tracked import Tracked, track
from parity_tests.within import CANARY, assert_rejected, assert_within, record

pytestmark = pytest.mark.skipif(not LONGDOUBLE_IS_WIDER, reason=NARROW_LONGDOUBLE)
DTYPES = ("float32", "float64")

# The model may overstate a deviation, by reasons that are known: a rounding is uniform in half a unit in the last place,
# which is u |y| only at the lower end of a binade (a factor of up to 2); an elementary function is granted twice what a
# good library needs; a sum of n terms of random sign has partial sums of sqrt(n) terms, and is granted any order,
# sqrt(n / 2), and blocking saves additions. With the sizes below the product of them is less than 30.
SLACK = 30.0


# ---- what is run: plain NumPy, as the spec writes it


def softmax(x):
    largest = x.max(axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(x - np.where(largest == -np.inf, 0, largest))
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total == 0, 1, total)


def layer_norm(x, weight, bias, epsilon=1e-5):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * (1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon)) * weight + bias


def attention(query, key, value):
    return softmax(query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])) @ value


def perceptron(x, first, second):
    """Output, and the gradients of x and both weights for the upstream gradient `output`."""
    before = x @ first.T
    hidden = np.tanh(before)
    output = hidden @ second.T
    d_hidden = output @ second
    d_before = d_hidden * (1 - hidden * hidden)
    return output, d_before @ first, d_before.T @ x, output.T @ hidden


def residual_stream(x, weight):
    """Six blocks. With a small epsilon, equal rows would amplify each rounding 300-fold per block: nothing to bound."""
    for _ in range(6):
        x = x + softmax(layer_norm(x, 1.0, 0.0, epsilon=1.0) @ weight)
    return x


OPERATIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "add": (np.add, 2),
    "subtract": (np.subtract, 2),
    "multiply": (np.multiply, 2),
    "divide": (lambda a, b: a / (1 + b * b), 2),
    "square": (lambda a: a * a, 1),
    "cube": (lambda a: a**3, 1),
    "exp": (lambda a: np.exp(0.1 * a), 1),
    "log": (lambda a: np.log(1 + a * a), 1),
    "sqrt": (lambda a: np.sqrt(1 + a * a), 1),
    "magnitude": (lambda a: np.abs(a / 3), 1),
    "tanh": (np.tanh, 1),
    "sin": (np.sin, 1),
    "cos": (np.cos, 1),
    "relu": (lambda a: np.maximum(1.1 * a, 0), 1),
    "minimum": (lambda a, b: np.minimum(a / 3, b / 7), 2),
    "where": (lambda a, b: np.where(a > b, a * b, 0.1), 2),
    "sum": (lambda a: a.sum(axis=0), 1),
    "mean": (lambda a: np.mean(a, axis=-1, keepdims=True), 1),
    "max": (lambda a: (a / 3).max(axis=-1), 1),
    "min": (lambda a: np.min(a / 3, axis=(0, 1)), 1),
    "residual": (lambda a: a / 3 + np.tanh(a / 3), 1),
    "reduceat": (lambda a: np.add.reduceat(a, [0, 1, 3], axis=0) if len(a) > 3 else a, 1),
    "gram": (lambda a: a @ a.swapaxes(-1, -2), 1),
    "einsum": (lambda a, b: np.einsum("ti,si->ts", a, b), 2),
    "softmax": (softmax, 1),
    "attention": (lambda a: attention(a, a, a), 1),
    "layer norm": (lambda a, b: layer_norm(a, b[:1, :], b[-1:, :]), 2),
    "perceptron": (lambda a, b: perceptron(a, b, b.T), 2),
    "residual stream": (lambda a: residual_stream(a, np.tanh(a.T @ a)), 1),
}


def check(name, function, inputs, dtype):
    """One real run against truth and bound; returns the errors and the deviations of all elements."""
    inputs = [np.asarray(x).astype(dtype) for x in inputs]
    truth, bound = bound_of(function, *inputs, format=dtype)
    actual = function(*inputs)
    if not isinstance(truth, tuple):
        actual, truth, bound = (actual,), (truth,), (bound,)
    errors, deviations = [], []
    for i, (a, t, b) in enumerate(zip(actual, truth, bound, strict=True)):
        tally = assert_within(a, t, b, f"{name}, {dtype}, output {i}", np.dtype(dtype))
        assert_rejected(a, t, b, f"{name}, {dtype}, output {i}")
        record(f"bounds: {name}", f"output {i}", dtype, tally)
        finite = np.isfinite(t)
        errors.append((np.asarray(a)[finite] - t[finite]).ravel())
        deviations.append(b[finite].ravel() / CONFIDENCE)
    return np.concatenate(errors), np.concatenate(deviations)


@st.composite
def matrices(draw, count):
    """`count` matrices of one shape, of mixed magnitudes, exact in float32; zero sizes, repeated and special values too."""
    shape = draw(st.tuples(st.sampled_from([1, 2, 5, 7]), st.sampled_from([1, 3, 11])))
    number = st.one_of(
        st.floats(-4, 4, width=32),
        st.floats(-4, 4, width=32),
        st.floats(-100, 100, width=32),
        st.sampled_from([0.0, -0.0, 1.0, 0.1, -0.1, 1e-30, 1e-40, 1e-20, 64.0]),
    )
    return [draw(arrays(np.float64, shape, elements=number, fill=st.nothing())) for _ in range(count)]


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_real_runs_stay_within_the_bounds(name, data):
    function, count = OPERATIONS[name]
    inputs = data.draw(matrices(count))
    for dtype in DTYPES:
        check(name, function, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_bounds_are_not_slack(name, dtype):
    function, count = OPERATIONS[name]
    generator = np.random.default_rng(7)
    runs = [check(name, function, [generator.standard_normal((13, 17)) for _ in range(count)], dtype) for _ in range(20)]
    errors, deviations = (np.concatenate(part) for part in zip(*runs, strict=True))
    noisy = deviations > 0
    assert noisy.any(), "there is nothing to compare"
    scaled = errors[noisy] / deviations[noisy]
    root_mean_square = np.sqrt((scaled * scaled).mean())
    assert 1 / SLACK <= root_mean_square <= 1, f"{name}, {dtype}: rms(error / deviation) = {root_mean_square}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [64, 257, 1024])
@pytest.mark.parametrize("kind", ["signed", "positive", "constant", "sorted", "alternating"])
def test_long_contractions(kind, terms, dtype):
    generator = np.random.default_rng(3)
    rows = {
        "signed": generator.standard_normal((5, terms)),
        "positive": generator.random((5, terms)),
        "constant": np.full((5, terms), 0.1) * generator.random((5, 1)),
        "sorted": np.sort(generator.standard_normal((5, terms)), axis=-1),
        "alternating": generator.random((5, terms)) * (-1.0) ** np.arange(terms),
    }[kind]
    weight = np.sort(generator.random((terms, 3)), axis=0)
    check(f"long product, {kind}", np.matmul, [rows, weight], dtype)
    check(f"long sum, {kind}", lambda x: x.sum(axis=-1), [rows], dtype)
    check(f"long column sum, {kind}", lambda x: x.T.sum(axis=0), [rows], dtype)


# ---- the parts of the model


def test_constants_of_the_model():
    for name in ("float16", "float32", "float64"):
        assert unit_roundoff(name) == np.finfo(name).eps / 2
        assert smallest_subnormal(name) == np.finfo(name).smallest_subnormal
    assert unit_roundoff("longdouble") == np.finfo(np.longdouble).eps / 2
    assert format_of(np.float32) == format_of("torch.float32")
    with pytest.raises(ValueError, match="format: expected"):
        format_of("int8")
    # as printed in Abramowitz and Stegun, table 26.10, to three decimals
    assert [f"{student_quantile(p, n):.3f}" for p, n in ((0.05, 10), (0.01, 10), (0.01, 30))] == ["2.228", "3.169", "2.750"]
    assert np.sqrt(3) * 2 < CONFIDENCE, "one elementary function, two units in the last place off, is within the bound"


def test_a_deviation_is_that_of_one_rounding():
    x = np.random.default_rng(0).standard_normal(100)
    product = track(x, "float32") * track(x[::-1], "float32")
    expected = unit_roundoff("float32") * np.abs(product.value) / np.sqrt(3)
    # the deviation is a root mean square of HALF equal squares, each rounded a few times in float64
    assert (np.abs(product.deviation - expected) <= HALF * np.finfo(np.float64).eps * expected).all()


def test_what_is_used_twice_counts_twice():
    x = track(np.linspace(1, 2, 50), "float64") / 3
    doubled = x + x
    own = unit_roundoff("float64") * np.abs(doubled.value) / np.sqrt(3)  # the rounding of the sum itself
    assert (doubled.deviation + own >= 2 * x.deviation * (1 - HALF * np.finfo(np.float64).eps)).all()
    assert ((x - x).deviation == 0).all()


def test_one_error_seen_by_a_whole_row_does_not_average_out():
    x = track(np.linspace(0.5, 1, 101), "float64")
    scaled = x * (track(np.array(1.0), "float64") / 3)
    shared = unit_roundoff("float64") / 3 / np.sqrt(3)  # of the one quotient
    assert scaled.sum().deviation >= 0.9 * shared * x.value.sum()


def test_equal_values_round_equally_in_one_half_of_the_sketches():
    for x in (np.full(101, 0.7), np.float64(0.7) * 2.0 ** np.arange(-50, 51)):
        quotient = track(x, "float64") / 3
        relative = quotient.sketches / np.asarray(quotient.value, dtype=np.float64)[:, None]
        same = np.abs(relative - relative[0]) <= 4 * np.finfo(np.float64).eps * np.abs(relative[0])  # two roundings each
        assert same[:, :HALF].all()
        assert not same[:, HALF:].all(axis=0).any()
    opposite = (track(np.array([0.7, -0.7]), "float64") / 3).sketches.sum(axis=0)
    assert (opposite[:HALF] == 0).all()
    assert (opposite[HALF:] != 0).any()


def test_the_variance_is_that_of_the_worse_half():
    """Sums of equal quotients err most where these round equally, differences where each rounds on its own."""
    n = 101
    quotients = track(np.full(n, 0.7), "float64") / 3
    one = quotients.deviation[0]
    assert quotients.sum().deviation >= n * one * (1 - HALF * np.finfo(np.float64).eps)
    assert (quotients[1:] - quotients[:-1]).deviation.min() > one / 2, "sqrt(2) of it, estimated from HALF draws"


def test_exact_operations_have_no_error():
    x = track(np.arange(12.0).reshape(3, 4), "float32")
    same: list = [-x, x.T, x[1:, ::2], x[[2, 0]], np.where(x > 3, x, 0), np.maximum(x, 2), x.max(axis=0), np.stack([x, x])]
    for y in same:
        assert (y.bound() == 0).all()
    assert (x * 0.5).bound().any(), "products are taken as rounded, also by a power of two"
    chosen: Any = np.where(np.arange(4) > 1, 0.1, x)
    assert ((chosen.bound() > 0) == (np.arange(4) > 1)).all(), "the constant 0.1 is itself rounded"


def test_underflow_is_within_its_floor():
    tiny = np.array([3e-38, 1e-40, 1e-45, -1e-30, 0.0])
    check("underflow", lambda x: x * x * x, [tiny], "float32")
    check("underflow", lambda x: x / 1e10, [tiny], "float32")
    check("underflow", lambda x: np.exp(x), [np.array([-80.0, -95.0, -103.0, -200.0, -1e4])], "float32")
    check("underflow", lambda x: np.exp(x), [np.array([-700.0, -740.0, -745.0, -1e4])], "float64")
    check("underflow", lambda x: x @ x.T, [tiny.reshape(1, 5)], "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_hurt(dtype):
    generator = np.random.default_rng(1)
    scores = generator.standard_normal((7, 5))
    for scale in (1e4, 1.0, 1e-30):
        check("softmax of hurtful scores", softmax, [scores * scale], dtype)
    masked = np.where(generator.random((7, 5)) > 0.5, scores, -np.inf)
    masked[0] = -np.inf
    check("softmax of masked scores", softmax, [masked], dtype)
    _, bound = bound_of(softmax, masked, format=dtype)
    assert (bound[np.isinf(masked)] == 0).all(), "what is masked is exactly 0"
    check("layer norm of equal rows", layer_norm, [np.full((3, 5), 7.3) * scores[:3, :1], scores[3], scores[4]], dtype)
    with np.errstate(invalid="ignore"):
        check("not finite", lambda x: x * 2 - x, [np.array([np.inf, -np.inf, np.nan, 1.1])], dtype)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_arrays(shape):
    empty = np.zeros(shape)
    check("empty", softmax, [empty], "float64")
    check("empty", lambda x: x @ x.T, [empty], "float64")
    check("empty", lambda x: x.sum(axis=0), [empty], "float64")
    check("empty", lambda x: np.concatenate([x, x]) * 3, [empty], "float64")


# ---- an array like NumPy's

X = np.random.default_rng(5).standard_normal((3, 4, 5))
INDEX = np.array([2, 0, 2])
STRUCTURAL: dict[str, Callable[..., Any]] = {
    "transpose": lambda x: x.transpose(2, 0, 1),
    "swapaxes": lambda x: np.swapaxes(x, 0, 2),
    "moveaxis": lambda x: np.moveaxis(x, 0, -1),
    "reshape": lambda x: x.reshape(-1, 5),
    "split": lambda x: np.split(x, 2, axis=1)[1],
    "concatenate": lambda x: np.concatenate((x[..., :2], np.ones_like(x[..., :1]), x[..., 2:]), axis=-1),
    "stack": lambda x: np.stack([x, x], axis=1),
    "broadcast": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "expand": lambda x: np.expand_dims(x, 1)[:, 0, None],
    "basic index": lambda x: x[1:, ..., ::-2],
    "fancy index": lambda x: x[INDEX, :, INDEX],
    "boolean index": lambda x: x[X > 0.3],
    "take": lambda x: np.take(x, INDEX, axis=1),
    "take along": lambda x: np.take_along_axis(x, np.argsort(x, axis=-1), axis=-1),
    "triangle": lambda x: np.triu(x) + np.tril(x, -1),
    "repeat": lambda x: np.repeat(x, 2, axis=1),
    "iterate": lambda x: sum(part * 2 for part in x),
    "clip": lambda x: np.clip(x, -0.5, 0.5),
}


def in_place(x):
    out = np.zeros_like(x)
    out += x
    out[:, 1] *= 3
    out[INDEX[:2], 0] = x[:2, 3] / 7
    view = out.reshape(3, 20)
    view[1, ::2] -= 0.1
    np.divide(out, 3, out=out, where=X > 0)
    total = np.full_like(x[0], 0.3)
    total[INDEX[:2]] += x[0, 2]
    return out, total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STRUCTURAL)
def test_structure_is_numpys(name, dtype):
    check(name, lambda x: STRUCTURAL[name](x * 1.1), [X], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_assignment_is_numpys(dtype):
    check("assignment", lambda x: in_place(x * 1.1), [X], dtype)


def test_contractions_are_numpys():
    for dtype in DTYPES:
        check("vectors", lambda x: x[0, 0] @ x[1, 1], [X], dtype)
        check("matrix and vector", lambda x: x @ x[0, 0], [X], dtype)
        check("batched", lambda x: np.einsum("bti,bsi->bts", x, x * 2), [X], dtype)
        check("ellipsis", lambda x: np.einsum("...i,ki->...k", x, x[0]), [X], dtype)
        check("one operand", lambda x: np.einsum("bti->t", x), [X], dtype)
        check("masked sum", lambda x: np.sum(x, axis=1, where=X > 0), [X], dtype)


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: np.zeros(3).__setitem__(slice(None), x),
        lambda x: np.add(np.zeros(3), x, out=np.zeros(3)),
        lambda x: np.zeros(3).__iadd__(x),
        lambda x: np.asarray(x),
        lambda x: np.arctan(x),
        lambda x: np.fft.fft(x),
        lambda x: np.linalg.norm(x),
        lambda x: np.multiply.reduce(x),
        lambda x: np.sum(x, initial=3.0),
        lambda x: x ** np.array([1.0, 2.0, 3.0]),
        lambda x: x**2.5,
        lambda x: x.astype(np.float32),
        lambda x: x + 1j,
        lambda x: float(x[0]),
        lambda x: np.zeros(3)[x],
        lambda x: x[x > 0],
        lambda x: np.sum(x, where=x > 0),
        lambda x: np.where(x > 0, 1, 0),
        lambda x: 1 if x[0] > 0 else 0,
    ],
)
def test_what_has_no_rule_is_refused(fault):
    with pytest.raises((TypeError, IndexError)):
        fault(track(np.ones(3), "float64"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choose", [lambda s, d: d, lambda s, d: s, lambda s, d: s * d], ids=["jump", "ramp", "both"])
def test_decisions_that_rounding_turns_are_within_the_bound(choose, dtype):
    """Sums that are nothing but rounding decide: many decide otherwise than the truth does, alone and added up."""
    x, w, d = np.random.default_rng(5).standard_normal((3, 400, 7)).astype(dtype)
    x[:, -1] = -(x[:, :-1] * w[:, :-1]).sum(axis=-1) / w[:, -1]

    def decide(x, w, d):
        s = (x * w).sum(axis=-1)
        y = np.where(s <= 0, 0, choose(s, d[:, 0]))
        return {"one by one": y, "in tens": y.reshape(40, 10).sum(axis=-1), "all": y.sum()}

    truth, bound = bound_of(decide, x, w, d, format=dtype)
    actual = decide(x, w, d)
    assert ((actual["one by one"] == 0) != (truth["one by one"] == 0)).sum() > 40
    for name in truth:
        assert_within(actual[name], truth[name], bound[name], name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitudes_of_what_is_nothing_but_rounding_are_within_the_bound(dtype):
    """|x| has slope 0 at x = 0, says np.sign; and beyond its error no magnitude falls below 0."""
    x, w = np.random.default_rng(6).standard_normal((2, 400, 7)).astype(dtype)
    x[:, -1] = -(x[:, :-1] * w[:, :-1]).sum(axis=-1) / w[:, -1]
    check("magnitudes", lambda x, w: np.abs((x * w).sum(axis=-1)), [x, w], dtype)
    thirds = (track(np.ones(1), dtype) / 3).sketches
    nothing = Tracked(np.zeros(1, np.longdouble), track(np.zeros(1), dtype).noise, format_of(dtype))
    nothing.sketches[...] = thirds
    assert (np.abs(nothing).sketches == np.abs(thirds)).all()


def test_decisions_far_from_turning_cost_nothing():
    def decide(x, shift):
        return np.where(x * 3 > shift, x, 0)

    x = np.array([0.1, 0.2, 0.3])
    for shift, could_turn in ((0.5, False), (0.6, True)):
        _, bound = bound_of(decide, x, shift, format="float64")
        assert (bound > 0).tolist() == [False, could_turn, False]
        assert not could_turn or bound[1] >= x[1]


def test_a_choice_between_two_ways_to_the_same_number_is_not_charged():
    """As in erf, where two expansions meet: turned together, both conditions lead to the number that is meant."""
    x = np.full(50, 0.2)

    def twice(x):
        y = x * 3
        return np.where(y > 0.6, 2 * np.where(y > 0.6, y, 0), y + y)

    _, bound = bound_of(twice, x, format="float64")
    _, plain = bound_of(lambda x: x * 3 + x * 3, x, format="float64")
    assert (bound <= 2 * plain).all()


@pytest.mark.parametrize("operation", [lambda x: x * 0.5, lambda x: x - 0.75 * x], ids=["product", "sum"])
def test_what_is_flushed_is_within_the_bound(operation):
    """Half of bfloat16's smallest normal number, as a processor may give it and as another one flushes it; not of others."""
    x = np.array([2.0**-126])
    truth, bound = bound_of(operation, x, format="bfloat16")
    for found in (truth, np.zeros(1)):
        assert_within(found, truth, bound, "subnormal")
    truth, bound = bound_of(operation, x, format="float32")
    with pytest.raises(AssertionError):
        assert_within(np.zeros(1), truth, bound, "subnormal")


def test_trees_keep_their_structure():
    truth, bound = bound_of(lambda t, n: {"a": (t["x"] / 3, n)}, {"x": X}, INDEX, format="float64")
    assert truth["a"][1] is INDEX
    assert bound["a"][1] is None
    assert map_arrays(np.shape, bound["a"][:1]) == (X.shape,)
    assert isinstance(track(X, "float64")[0], Tracked)


# ---- canaries


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax", "layer norm", "perceptron", "residual stream", "gram"])
def test_a_fault_of_a_few_bounds_is_rejected(name, dtype):
    function, count = OPERATIONS[name]
    generator = np.random.default_rng(11)
    inputs = [generator.standard_normal((5, 7)).astype(dtype) for _ in range(count)]
    truth, bound = bound_of(lambda *x: _first(function(*x)), *inputs, format=dtype)
    actual = np.asarray(_first(function(*inputs))).astype(np.longdouble)
    assert_within(actual, truth, bound, name)
    for fault in (CANARY * bound[1, 2], -CANARY * bound[1, 2], np.nan, np.inf):
        faulty = actual.copy()
        faulty[1, 2] += fault
        with pytest.raises(AssertionError, match=r"\[1, 2\]"):
            assert_within(faulty, truth, bound, name)


def _first(x):
    return x[0] if isinstance(x, tuple) else x
