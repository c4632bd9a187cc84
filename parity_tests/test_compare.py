"""The comparison accepts a right twin and rejects every wrong one: two toy operations, and a fault at a time."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from parity_tests import compare, within
from parity_tests.bounds import LONGDOUBLE_IS_WIDER, run_tracked
from parity_tests.compare import NARROW_LONGDOUBLE, check_operation
from parity_tests.sketches import CONFIDENCE
from parity_tests.within import Tally, assert_drift_rejected, assert_moments_within, assert_rejected, assert_within

pytestmark = pytest.mark.skipif(not LONGDOUBLE_IS_WIDER, reason=NARROW_LONGDOUBLE)
GENERATOR = np.random.default_rng(17)
LINEAR = {"x": GENERATOR.standard_normal((5, 3)), "weight": GENERATOR.standard_normal((3, 3))}
SCORES = {"x": 3 * GENERATOR.standard_normal((5, 7))}


def linear_forward(x, weight):
    return x @ weight.T, (x, weight)


def linear_backward(d_y, cache):
    x, weight = cache
    return d_y @ weight, d_y.T @ x


def linear_twin(x, weight):
    return x @ weight.T


def softmax_forward(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    return p, p


def softmax_backward(d_p, p):
    return p * (d_p - (d_p * p).sum(axis=-1, keepdims=True))


def softmax_twin(x):
    return torch.softmax(x, dim=-1)


def check_linear(forward=linear_forward, backward=linear_backward, twin=linear_twin, arguments=LINEAR, **options):
    return check_operation("toy linear", forward, backward, twin, arguments, **options)


def check_softmax(forward=softmax_forward, backward=softmax_backward, twin=softmax_twin, arguments=SCORES, **options):
    return check_operation("toy softmax", forward, backward, twin, arguments, **options)


@pytest.mark.parametrize("check", [check_linear, check_softmax])
def test_right_twins_are_accepted(check):
    ratios = check(dtypes=("float64", "float32", "bfloat16"))
    assert all(0 <= ratio <= 1 for ratio in ratios.values())
    assert max(ratios.values()) > 0.01, "the bounds are slack"
    assert {"float64 spec output", "float64 twin d_x", "bfloat16 twin d_x", "float64 complex step"} <= ratios.keys()


def transposed_weight(x, weight):
    return x @ weight


def slightly_large(x, weight):
    return x @ weight.T * (1 + 1e-9)


def detached(x, weight):
    return x.detach() @ weight.T + 0 * x.sum()


def single_precision(x, weight):
    return (x.float() @ weight.float().T).double()


def other_dtype(x, weight):
    return (x @ weight.T).float()


def extra_axis(x, weight):
    return (x @ weight.T)[None]


def one_nan(x, weight):
    return torch.where(torch.arange(3) == 1, torch.nan, x @ weight.T)


def two_outputs(x, weight):
    return x @ weight.T, weight


@pytest.mark.parametrize(
    "twin",
    [transposed_weight, slightly_large, detached, single_precision, other_dtype, extra_axis, one_nan, two_outputs],
)
def test_wrong_linear_twins_are_rejected(twin):
    with pytest.raises((AssertionError, RuntimeError)):
        check_linear(twin=twin)


@pytest.mark.parametrize(
    "twin",
    [
        lambda x: torch.softmax(x, dim=0),
        lambda x: torch.softmax(x * (1 + 1e-13), dim=-1),
        lambda x: torch.softmax(x, dim=-1) + 1e-14,
        lambda x: torch.softmax(x, dim=-1).detach() * 1.0 + 0 * x,
        lambda x: torch.log_softmax(x, dim=-1),
    ],
)
def test_wrong_softmax_twins_are_rejected(twin):
    with pytest.raises(AssertionError):
        check_softmax(twin=twin)


@pytest.mark.parametrize(
    "backward",
    [
        lambda d_y, cache: (d_y @ cache[1].T, d_y.T @ cache[0]),
        lambda d_y, cache: (d_y @ cache[1], cache[0].T @ d_y),
        lambda d_y, cache: (d_y @ cache[1] * (1 + 1e-13), d_y.T @ cache[0]),
        lambda d_y, cache: (d_y @ cache[1], d_y.T @ cache[0], None),
        lambda d_y, cache: d_y @ cache[1],
    ],
)
def test_a_wrong_derivation_is_rejected_with_and_without_a_twin(backward):
    """Without a twin only the complex step can know: truth and spec share the derivation."""
    for twin in (linear_twin, None):
        with pytest.raises(AssertionError):
            check_linear(backward=backward, twin=twin)


def test_the_elementwise_complex_step_sees_a_single_wrong_element():
    def backward(d_y, cache):
        d_x, d_weight = linear_backward(d_y, cache)
        d_x[2, 1] = d_x[2, 1] * (1 + 1e-13)
        return d_x, d_weight

    with pytest.raises(AssertionError, match="complex step"):
        check_linear(backward=backward, twin=None)


def test_a_spec_that_changes_its_input_is_rejected():
    def forward(x, weight):
        y = x @ weight.T
        x *= 2
        return y, (x * 0.5, weight)

    with pytest.raises(AssertionError, match="changed one of its inputs"):
        check_linear(forward=forward)


def test_a_spec_that_leaves_its_dtype_is_rejected():
    def forward(x):
        p, _ = softmax_forward(x)
        p = p * np.where(np.arange(7) > 9, -1, 1)  # integers of 64 bits make float64 of float32
        return p, p

    with pytest.raises(AssertionError, match="dtype float64, expected float32"):
        check_softmax(forward=forward, dtypes=("float32",))


def test_layouts_are_kept_and_constants_have_no_gradient():
    wide = GENERATOR.standard_normal((4, 10, 6))
    layouts = {
        "transposed": wide[0].T,
        "steps": wide[1, ::2, ::3],
        "negative": wide[2, ::-1],
        "broadcast": np.broadcast_to(wide[3, 0], (5, 6)),
        "read-only": np.frombuffer(wide[0].tobytes()).reshape(10, 6),
    }
    for x in layouts.values():
        copied = compare.cast(x, "float32")
        assert [s // 4 for s in copied.strides] == [s // 8 for s in x.strides]
        if all(s >= 0 for s in x.strides):
            assert [s * 8 for s in compare.to_tensor(x, "float64").stride()] == list(x.strides)
        weight = GENERATOR.standard_normal((3, x.shape[1]))
        check_linear(arguments={"x": x, "weight": weight}, dtypes=("float64", "float32"))
    assert "float64 spec d_weight" not in check_linear(constants=("weight",))


def test_several_outputs_and_arguments_that_are_no_arrays():
    def forward(x, rows, scale, nothing):
        assert nothing is None
        return (x[rows] * scale, np.tanh(x)), (x, rows, scale)

    def backward(d_outputs, cache):
        x, rows, scale = cache
        d_rows, d_tanh = d_outputs
        read = np.eye(len(x))[rows]  # (N, V): 1 where a row was read
        return read.T @ (d_rows * scale) + d_tanh * (1 - np.tanh(x) * np.tanh(x)), None, None, None

    arguments = {"x": SCORES["x"], "rows": np.array([2, 0, 2]), "scale": 0.3, "nothing": None}
    ratios = check_operation(
        "toy", forward, backward, lambda x, rows, scale, nothing: (x[rows] * scale, torch.tanh(x)), arguments
    )
    assert {"float64 twin output 0", "float64 twin output 1", "float64 twin d_x"} <= ratios.keys()


# ---- assert_within itself


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    "actual, truth, bound",
    [
        (ONES + 0.11, ONES, ONES * 0.1),
        (ONES * np.nan, ONES, ONES),
        (ONES * np.nan, ONES, ONES * np.inf),
        (ONES, ONES * np.nan, ONES),
        (ONES, ONES, ONES * np.nan),
        (ONES, ONES, ONES * np.inf),
        (ONES * np.inf, ONES, ONES),
        (-ONES * np.inf, ONES * np.inf, ONES),
        (ONES * 1e300, ONES * np.inf, ONES),
        (ONES.T, ONES, ONES),
        (ONES[:1], ONES, ONES),
        (np.nextafter(ONES, 2), ONES, ONES * 0),
    ],
)
def test_what_is_out_of_bounds_is_rejected(actual, truth, bound):
    with pytest.raises(AssertionError):
        assert_within(actual, truth, bound, "this")


def test_what_is_within_bounds_is_accepted():
    special = np.array([[np.nan, np.inf, -np.inf], [0.0, -0.0, 5.0]])
    assert assert_within(special, special, ONES * 0, "this") == Tally()
    assert assert_within(ONES + 0.5, ONES, ONES, "this").worst == 0.5
    assert assert_within(ONES + 0.5, ONES, ONES, "this", factor=2.0).worst == 0.25
    assert assert_within(np.float64(1.5), np.asarray(1.0), np.asarray(1.0), "this", np.float64).worst == 0.5
    assert assert_within(ONES[:0], ONES[:0], ONES[:0], "this").elements == 0
    with pytest.raises(AssertionError, match="dtype"):
        assert_within(ONES, ONES, ONES, "this", np.float32)


@pytest.mark.parametrize(
    ("errors", "accepted"),  # in units of the modelled deviation, without bias but in the first two
    [
        ([0.99 * CONFIDENCE], True),
        ([0.99 * CONFIDENCE, 0.0], True),
        ([0.99 * CONFIDENCE, -0.99 * CONFIDENCE], False),
        ([1.7, -1.7] * 500, True),
        ([1.8, -1.8] * 500, False),
    ],
)
def test_one_element_may_be_at_its_bound_and_not_all(errors, accepted):
    tracked = run_tracked(lambda x: x / 3, np.linspace(1, 2, len(errors)), format="float64")
    actual = tracked.value + np.array(errors) * tracked.deviation
    assert_within(actual, tracked.value, tracked.bound(), "this")
    with nullcontext() if accepted else pytest.raises(AssertionError, match="together they are"):
        assert_moments_within(actual, tracked.value, [tracked], "this", 1.0)


def test_ten_elements_of_several_roundings_are_not_all_near_their_bounds():
    """Their errors are nearly Gaussian, so the mean of the squares spreads as a chi-square of about ten degrees."""
    tracked = run_tracked(lambda x: (x * x * x + x) / 3 - x, np.linspace(1, 2, 10), format="float64")
    for errors, accepted in ((np.resize([0.6, -0.6], 10), True), (np.resize([0.9, -0.9], 10), False)):
        actual = tracked.value + errors * tracked.bound()
        assert_within(actual, tracked.value, tracked.bound(), "this")
        with nullcontext() if accepted else pytest.raises(AssertionError, match="together they are"):
            assert_moments_within(actual, tracked.value, [tracked], "this", 1.0)


def test_a_model_that_rounds_nothing_accepts_no_error():
    """Of plain and tiled attention the one may be exact where the other rounds: then it is no excuse for the other."""
    x = np.arange(1.0, 9.0)
    exact, rounding = (run_tracked(f, x, format="float64") for f in (lambda x: x, lambda x: x * 3 / 3))
    assert not exact.deviation.any() and rounding.deviation.all()
    models = [exact, rounding]
    for error in (np.zeros(8), np.resize([1.0, -1.0], 8)):
        assert_moments_within(exact.value + error * rounding.deviation, exact.value, models, "this", 1.0)
    with pytest.raises(AssertionError, match="1 elements are off where nothing rounds"):
        assert_moments_within(exact.value + 1e-6 * np.eye(8)[0], exact.value, [exact], "this", 1.0)
    with pytest.raises(AssertionError, match="together they are"):
        assert_moments_within(exact.value + 7 * rounding.deviation, exact.value, models, "this", 1.0)
    assert_drift_rejected(exact.value, models, "this", 1.0)


def test_the_message_names_the_worst_element():
    actual = ONES.copy()
    actual[1, 2] = 4.0
    with pytest.raises(AssertionError, match=r"this\[1, 2\]: 4\.0, expected 1\.0: error/bound 30 \(1 of 6"):
        assert_within(actual, ONES, ONES * 0.1, "this")


def test_the_canary_sings_when_a_comparison_is_blind(monkeypatch):
    assert_rejected(ONES, ONES, ONES * 0.1, "this")
    monkeypatch.setattr(within, "assert_within", lambda *args, **options: Tally())
    with pytest.raises(AssertionError, match="the comparison accepts"):
        assert_rejected(ONES, ONES, ONES * 0.1, "this")


def test_the_report_has_a_row_for_each_tensor(monkeypatch):
    registry: dict[tuple[str, str, str], Any] = {}
    monkeypatch.setattr(within, "REGISTRY", registry)
    check_softmax()
    worst = registry["toy softmax", "twin d_x", "float64"].worst
    check_softmax(seed=1)
    assert registry["toy softmax", "twin d_x", "float64"].elements == 2 * SCORES["x"].size
    assert registry["toy softmax", "twin d_x", "float64"].worst >= worst
    assert (
        within.report().count("toy softmax") == len(registry) == 6
    )  # spec and twin, output and gradient; complex step; central difference
