"""Dropout: spec and twin with the same mask; the mask's statistics; both twins draw the same mask from one stream."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, booleans, seeds, sizes
from reference_numpy import dropout as spec
from torch_impl import dropout as twin


@given(st.data(), sizes(), sizes(), st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.booleans(), seeds)
def test_parity(data, rows, columns, rate, on, seed):
    x = data.draw(arrays((rows, columns)))
    keep = data.draw(booleans((rows, columns))) if on else None

    def backward(d_y, cache):
        return spec.dropout_backward(d_y, cache), None, None

    arguments = {"x": x, "rate": rate, "keep": keep}
    check_operation(
        "dropout",
        spec.dropout_forward,
        backward,
        twin.dropout,
        arguments,
        dtypes=("float64", "float32", "bfloat16"),
        seed=seed,
    )


@given(seeds, st.sampled_from([0.1, 0.5]))
def test_both_twins_draw_the_same_mask(seed, rate):
    ours = spec.dropout_mask((5, 7), rate, np.random.default_rng(seed))
    theirs = twin.dropout_mask((5, 7), rate, np.random.default_rng(seed), torch.device("cpu"))
    assert (ours == theirs.numpy()).all()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_the_share_kept(rate):
    count = 100_000
    deviation = (rate * (1 - rate) / count) ** 0.5  # of a mean of Bernoulli draws
    numpy_mask = spec.dropout_mask((count,), rate, np.random.default_rng(1))
    torch_mask = twin.dropout_mask((count,), rate, torch.Generator().manual_seed(1), torch.device("cpu"))
    for kept in (numpy_mask.mean(), torch_mask.double().mean().item()):
        assert abs(kept - (1 - rate)) <= 5 * deviation  # five deviations: once in a million seeds, and the seed is fixed


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_mean_stays(rate):
    """What is kept makes up for what is dropped: ones stay ones on average, in both twins."""
    count = 100_000
    keep = spec.dropout_mask((count,), rate, np.random.default_rng(2))
    ours, _ = spec.dropout_forward(np.ones(count), rate, keep)
    theirs = twin.dropout(torch.ones(count, dtype=torch.float64), rate, torch.from_numpy(keep))
    deviation = (rate / (1 - rate) / count) ** 0.5  # of the mean of 1/(1 - rate) with probability 1 - rate, else 0
    for mean in (ours.mean(), theirs.mean().item()):
        assert abs(mean - 1) <= 5 * deviation


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rate_out_of_range(rate):
    for function, x in ((spec.dropout_forward, np.zeros(3)), (twin.dropout, torch.zeros(3))):
        with pytest.raises(ValueError, match="rate: expected at least 0 and below 1, got"):
            function(x, rate, None)
