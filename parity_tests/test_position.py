"""Positions: tables against their formulas, rotary by parity, ALiBi against brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.bounds import bound_of
from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy import position as spec
from torch_impl import position as twin

F64 = np.dtype(np.float64)


@given(st.integers(0, 500), sizes(0, 11), sizes(1, 11))
def test_sinusoidal_table(start, T, width):
    expected = np.empty((T, width))
    for t in range(T):
        for i in range(width):
            angle = (start + t) / 10000 ** (2 * (i // 2) / width)
            expected[t, i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    ours = spec.sinusoidal_table(np.arange(start, start + T), width, F64)
    # the angle is a power and a quotient, two ulps each at most; sine and cosine pass on at most that, and add one ulp
    bound = 4 * np.spacing(np.full((T, width), float(start + T))) + np.spacing(1.0)
    assert_within(ours, expected, bound, "sinusoidal table")
    theirs = twin.sinusoidal_table(start, start + T, width, torch.float64, torch.device("cpu"))
    assert (theirs.numpy() == ours).all()


@given(st.integers(0, 500), sizes(0, 11), st.sampled_from([2, 4, 6, 10]))
def test_rotary_tables(start, T, width):
    """cos and sin of t 10000^(-2i/K), in both twins."""
    angles = [[(start + t) * 10000 ** (-2 * i / width) for i in range(width // 2)] for t in range(T)]
    # as for the sinusoidal table: a power and a product, two ulps each at most, then sine and cosine add one ulp
    bound = 4 * np.spacing(np.full((T, width // 2), float(start + T))) + np.spacing(1.0)
    ours = spec.rotary_tables(np.arange(start, start + T), width, F64)
    theirs = halves(twin.rotary_tables(start, start + T, width, torch.float64, torch.device("cpu")))
    for function, table, tensor in zip((math.cos, math.sin), ours, theirs, strict=True):
        expected = np.array([[function(angle) for angle in row] for row in angles]).reshape(T, width // 2)
        assert_within(table, expected, bound, f"rotary table, {function.__name__}")
        assert (tensor == table).all()


def halves(tables):
    """The twin's tables have every number twice; of the sines the first with a minus, for the channel that is subtracted."""
    cosine, sine = (table.numpy() for table in tables)
    K = cosine.shape[1]
    assert (cosine[:, : K // 2] == cosine[:, K // 2 :]).all()
    assert (sine[:, : K // 2] == -sine[:, K // 2 :]).all()
    return cosine[:, K // 2 :], sine[:, K // 2 :]


@given(st.data(), sizes(), sizes(1), sizes(), st.sampled_from([2, 4, 6]), st.integers(0, 1000), seeds)
def test_rotary(data, B, H, T, K, start, seed):
    x = data.draw(arrays((B, H, T, K)))
    positions = np.arange(start, start + T)
    check_operation(
        "rotary",
        lambda x: spec.rotary_forward(x, positions),
        lambda d_y, cache: spec.rotary_backward(d_y, cache),
        lambda x: twin.rotary(x, start),
        {"x": x},
        seed=seed,
    )


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), seeds)
def test_rotary_depends_on_distance_alone(s, t, shift, seed):
    query, key = np.random.default_rng(seed).standard_normal((2, 1, 1, 1, 6))

    def product(q, k, s, t):
        turned, _ = spec.rotary_forward(q, np.array([s]))
        return (turned * spec.rotary_forward(k, np.array([t]))[0]).sum()

    near, bound = bound_of(lambda q, k: product(q, k, s, t), query, key, format="float64")
    far, far_bound = bound_of(lambda q, k: product(q, k, s + shift, t + shift), query, key, format="float64")
    # the tables are constants rounded from angles up to 600: an ulp of the angle, for each of the two turns
    angles = 2 * np.spacing(600.0) * np.abs(query).sum() * np.abs(key).sum()
    assert_within(far, near, bound + far_bound + 2 * angles, "rotary, shifted")


def test_rotary_turns_counter_clockwise():
    """At position 1 the first pair turns by one radian: (1, 0) becomes (cos 1, sin 1)."""
    x = np.zeros((1, 1, 1, 4))
    x[..., 0] = 1
    y, _ = spec.rotary_forward(x, np.array([1]))
    assert y[0, 0, 0].tolist() == [math.cos(1), 0, math.sin(1), 0]


@given(st.integers(1, 20), sizes(), sizes())
def test_alibi(heads, T, S):
    slopes = spec.alibi_slopes(heads, F64)
    rows, columns = np.arange(S - T, S), np.arange(S)
    ours = spec.alibi_bias(slopes, rows, columns)
    assert ours.shape == (heads, T, S)
    for h in range(heads):
        for t in range(T):
            for s in range(S):
                assert ours[h, t, s] == -slopes[h] * abs((S - T + t) - s)
    theirs = twin.alibi_bias(twin.alibi_slopes(heads, torch.float64, torch.device("cpu")), T, S)
    assert (theirs.numpy() == ours).all()


@pytest.mark.parametrize(
    "rotate", [lambda x: spec.rotary_forward(x, np.arange(2)), lambda x: twin.rotary(torch.from_numpy(x), 0)]
)
def test_an_odd_number_of_channels_cannot_turn_in_pairs(rotate):
    with pytest.raises(ValueError, match="x: expected an even last axis, whose channels are turned in pairs, got 3"):
        rotate(np.zeros((1, 1, 2, 3)))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_integers_do_not_turn(dtype):
    x = np.ones((1, 1, 2, 4), dtype)
    with pytest.raises(ValueError, match=f"x: expected floating-point numbers, got {dtype}"):
        spec.rotary_forward(x, np.arange(2))
    with pytest.raises(ValueError, match=f"x: expected floating-point numbers, got torch.{dtype}"):
        twin.rotary(torch.from_numpy(x), 0)


def test_alibi_far_away():
    assert spec.alibi_bias(np.array([0.5]), np.array([300]), np.array([0, 100, 301])).tolist() == [[[-150, -100, -0.5]]]
    assert twin.alibi_bias(torch.tensor([0.5]), 1, 301)[0, 0, [0, 100, 299]].tolist() == [-150, -100, -0.5]


def test_alibi_slopes_of_the_paper():
    assert spec.alibi_slopes(8, F64).tolist() == [2.0**-h for h in range(1, 9)]
    twelve = spec.alibi_slopes(12, F64).tolist()  # 8 heads' slopes, then every other of 16 heads'
    assert twelve == [2.0**-h for h in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    assert spec.alibi_slopes(3, F64).tolist() == [2.0**-4, 2.0**-8, 2.0**-2]


@pytest.mark.parametrize("start", [0, 1000])
def test_tables_are_rounded_once(start):
    """Angles of thousands in float32 would have lost their digits before sine and cosine."""
    where, single = np.arange(start, start + 9), np.dtype(np.float32)
    device = torch.device("cpu")
    wide, narrow = (spec.sinusoidal_table(where, 6, dtype) for dtype in (F64, single))
    assert (narrow == wide.astype(single)).all()
    assert (twin.sinusoidal_table(start, start + 9, 6, torch.float32, device).numpy() == narrow).all()
    wide, narrow = (spec.rotary_tables(where, 6, dtype) for dtype in (F64, single))
    theirs = halves(twin.rotary_tables(start, start + 9, 6, torch.float32, device))
    for ours, rounded, tensor in zip(wide, narrow, theirs, strict=True):
        assert (rounded == ours.astype(single)).all()
        assert (tensor == rounded).all()


def test_a_table_is_made_once():
    for make in (twin._sinusoidal, twin._rotary, twin._alibi):
        length = (4,) if make is twin._alibi else (2048, 4)
        first, second = (make(*length, torch.float64, torch.device("cpu")) for _ in range(2))
        assert all(one is other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("make", [twin._sinusoidal, twin._rotary], ids=["sinusoidal", "rotary"])
def test_a_table_first_used_while_generating_serves_training(make):
    """The twin keeps its tables; one made in inference mode could not be saved for a backward pass."""
    with torch.inference_mode():
        tables = make(1024, 26, torch.float64, torch.device("cpu"))
    assert not any(table.is_inference() for table in tables)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1020, 1024), (1020, 1025), (3000, 5000)])
def test_a_table_has_all_positions(start, stop):
    positions, arguments = np.arange(start, stop), (start, stop, 6, torch.float64, torch.device("cpu"))
    assert (twin.sinusoidal_table(*arguments).numpy() == spec.sinusoidal_table(positions, 6, F64)).all()
    for theirs, ours in zip(halves(twin.rotary_tables(*arguments)), spec.rotary_tables(positions, 6, F64), strict=True):
        assert (theirs == ours).all()


def test_a_trace_leaves_no_table_behind():
    """Tensors without numbers, as an export works with, are not kept for those who compute."""
    arguments = (0, 3, 34, torch.float64, torch.device("cpu"))
    with torch._subclasses.FakeTensorMode():
        twin.sinusoidal_table(*arguments)
    assert type(twin.sinusoidal_table(*arguments)) is torch.Tensor


def test_a_transform_leaves_no_table_behind():
    """Within torch.func they are of use for one transform alone."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 3, 38)))

    def derivative(x):
        return torch.func.grad(lambda x: (twin.rotary(x, 0) ** 3).sum())(x).sum()

    first, again = torch.func.grad(derivative)(x), torch.func.grad(derivative)(x)
    assert torch.equal(first, again)


def test_tables_are_remembered_for_each_format_and_device():
    for dtype in (torch.float32, torch.float64):
        for device in ("cpu", "meta", "cpu"):
            where = dtype, torch.device(device)
            tables = twin.sinusoidal_table(2, 5, 4, *where), *twin.rotary_tables(2, 5, 4, *where)
            assert {(table.dtype, table.device) for table in tables} == {where}
