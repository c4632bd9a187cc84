"""Tiled attention: the same function as the plain one, for every mask; tiles smaller than the sequence are the point."""

from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.bounds import bound_of
from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, attention_masks, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy import attention as plain
from reference_numpy import flash_attention as tiled
from reference_numpy.mask import allowed_pairs
from reference_numpy.position import alibi_slopes
from torch_impl import attention as twin_plain
from torch_impl import flash_attention as twin


@given(
    st.data(),
    st.sampled_from([1, 2, 3, 128]),
    *(sizes(1, 2), sizes(1, 3), sizes(0, 11), sizes(1, 11), sizes(1, 3)),
    *(st.booleans(), st.sampled_from([None, 1, 3]), st.booleans(), st.sampled_from([None, 1.5])),
    st.sampled_from([1e-30, 1.0, 100.0]),
    seeds,
)
def test_parity(data, tile, B, H, T, S, K, causal, window, alibi, softcap, magnitude, seed):
    """Tiled against its own truth and the complex step; then tiled against plain, within the sum of their bounds."""
    options = {
        "causal": causal,
        "window": window,
        "slopes": alibi_slopes(H, np.dtype(np.float64)) if alibi else None,
        "softcap": softcap,
    }
    mask = data.draw(attention_masks(B, H, T, S))
    shapes = {"query": (B, H, T, K), "key": (B, H, S, K), "value": (B, H, S, K)}
    arguments = {name: data.draw(arrays(shape, magnitude)) for name, shape in shapes.items()} | {"mask": mask}

    def backward(d_output, cache):
        return *tiled.flash_attention_backward(d_output, cache), None

    def forward(query, key, value, mask):
        return tiled.flash_attention_forward(query, key, value, mask, **options)

    with patch.object(tiled, "TILE", tile):
        check_operation("flash attention", forward, backward, None, arguments, seed=seed)
        query, key, value, _ = arguments.values()
        inputs = query, key, value, np.random.default_rng(seed).standard_normal(query.shape)
        tiled_run = whole(tiled.flash_attention_forward, tiled.flash_attention_backward, mask, options)
        plain_run = whole(
            plain.scaled_dot_product_attention_forward, plain.scaled_dot_product_attention_backward, mask, options
        )
        _, tiled_bounds = bound_of(tiled_run, *inputs, format="float64")
        truths, plain_bounds = bound_of(plain_run, *inputs, format="float64")
        names = "output", "d_query", "d_key", "d_value"
        for name, *found in zip(names, tiled_run(*inputs), truths, tiled_bounds, plain_bounds, strict=True):
            actual, truth, bound, plain_bound = found
            assert_within(actual, truth, bound + plain_bound, f"tiled against plain, {name}")


def whole(forward, backward, mask, options):
    """Output and gradients as one function of query, key, value and the upstream gradient."""

    def function(query, key, value, d_output):
        output, cache = forward(query, key, value, mask, **options)
        return output, *backward(d_output, cache)

    return function


def test_a_much_larger_score_comes_last():
    """It leaves of the other weights one part in 10^68, and of most gradients of keys less. The complex step finds them only
    if none is carried along by the largest score so far: it would cancel, but for rounding."""
    query, key, value = np.zeros((3, 1, 1, 5, 1))
    query[..., -1, 0], key[..., -1, 0], value[..., -2, 0] = 2, 79, 0.001
    with patch.object(tiled, "TILE", 1):
        check_operation(
            "flash attention",
            tiled.flash_attention_forward,
            tiled.flash_attention_backward,
            None,
            {"query": query, "key": key, "value": value},
            seed=0,
        )


def test_scores_near_a_soft_cap():
    """Where it bends: far below it nothing happens to them, far above it nothing is left of their gradients."""
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 3, 7, 5))
    with patch.object(tiled, "TILE", 3):
        check_operation(
            "flash attention",
            partial(tiled.flash_attention_forward, softcap=1.5),
            tiled.flash_attention_backward,
            None,
            {"query": query, "key": key, "value": value},
            seed=0,
        )


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"causal": True}], ids=str)
def test_on_a_cpu_the_twins_is_in_float32_under_autocast(options):
    query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = twin.flash_attention(query, key, value, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = twin.flash_attention(query, key, value, **options)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@given(sizes(1, 4), sizes(1, 11), sizes(1, 11), st.booleans(), st.sampled_from([None, 1, 3, 20]))
def test_only_tiles_that_somebody_sees_are_computed(tile, T, S, causal, window):
    """Every tile of pairs that the backward pass asks for has one that is allowed."""
    generator, asked = np.random.default_rng(0), []
    query, key = generator.standard_normal((1, 1, T, 2)), generator.standard_normal((1, 1, S, 2))

    def recorded(*arguments):
        asked.append(allowed_pairs(*arguments))
        return asked[-1]

    with patch.object(tiled, "TILE", tile):
        output, cache = tiled.flash_attention_forward(query, key, key, causal=causal, window=window)
        with patch.object(tiled, "allowed_pairs", recorded):
            tiled.flash_attention_backward(output, cache)
    assert asked
    assert all(allowed is None or allowed.any() for allowed in asked)


@given(sizes(1, 3), sizes(1, 11), st.booleans(), st.sampled_from([None, 1, 3]), seeds)
def test_what_nobody_sees_goes_nowhere(B, S, padded, window, seed):
    """NaN and inf in keys and values of padding, or out of every window, change no bit of output or gradient."""
    generator = np.random.default_rng(seed)
    query, d_output = generator.standard_normal((2, B, 2, 5, 3))
    key, value = generator.standard_normal((2, B, 2, S, 3))
    mask = (np.arange(S) < generator.integers(0, S + 1, B)[:, None])[:, None, None, :] if padded else None
    allowed = allowed_pairs(np.arange(S - 5, S), np.arange(S), mask, window=window)
    seen = np.ones((S, 1), bool) if allowed is None else allowed.any(axis=-2)[..., None]
    results = []
    with patch.object(tiled, "TILE", 2):
        for garbage in (0.0, np.nan, np.inf):
            dirty = [np.where(seen, x, garbage) for x in (key, value)]
            output, cache = tiled.flash_attention_forward(query, *dirty, mask, window=window)
            results.append([output, *tiled.flash_attention_backward(d_output, cache)])
    for clean, *dirty_results in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        assert all((clean == other).all() for other in dirty_results)


def test_a_query_that_sees_nothing_gets_0_whatever_others_see():
    query, key, value = torch.ones(3, 1, 1, 2, 2)
    value[..., 0, :] = torch.inf
    mask = torch.tensor([[True, True], [False, False]])
    found = twin.flash_attention(query, key, value, mask)
    assert (found[..., 0, :] == torch.inf).all()
    assert (found[..., 1, :] == 0).all()


def test_a_mask_of_pairs_and_causality_hide_together():
    """The mask allows key 1 to query 0 alone, which comes before it."""
    x, mask = np.ones((1, 1, 2, 1)), np.array([[True, True], [True, False]])
    value = np.array([1.0, np.nan]).reshape(1, 1, 2, 1)
    for forward in (tiled.flash_attention_forward, plain.scaled_dot_product_attention_forward):
        assert (forward(x, x, value, mask, causal=True)[0] == 1).all()
    tensors = [torch.from_numpy(array) for array in (x, x, value, mask)]
    assert (twin.flash_attention(*tensors, causal=True) == 1).all()
    assert (twin_plain.scaled_dot_product_attention(*tensors, causal=True)[0] == 1).all()
