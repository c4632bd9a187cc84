"""Tiled attention: the same function as the plain one, for every mask; tiles smaller than the sequence are the point."""

from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.bounds import bound_of
from parity_tests.compare import assert_within, check_operation
from parity_tests.strategies import arrays, attention_masks, seeds, sizes
from reference_numpy import attention as plain
from reference_numpy import flash_attention as tiled
from reference_numpy.position import alibi_slopes


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


@given(sizes(1, 3), sizes(1, 11), seeds)
def test_what_padding_holds_is_never_seen(B, S, seed):
    generator = np.random.default_rng(seed)
    query, d_output = generator.standard_normal((2, B, 2, 5, 3))
    key, value = generator.standard_normal((2, B, 2, S, 3))
    mask = (np.arange(S) < generator.integers(0, S + 1, B)[:, None])[:, None, None, :]
    results = []
    with patch.object(tiled, "TILE", 2):
        for garbage in (0.0, np.nan, np.inf):
            dirty = [np.where(mask.swapaxes(-1, -2), x, garbage) for x in (key, value)]
            output, cache = tiled.flash_attention_forward(query, *dirty, mask)
            results.append([output, *tiled.flash_attention_backward(d_output, cache)])
    for clean, *dirty_results in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        assert all((clean == other).all() for other in dirty_results)
