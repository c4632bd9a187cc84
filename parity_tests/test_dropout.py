"""Dropout: spec and twin with the same mask; the mask's statistics; both twins draw the same mask from one stream."""

from unittest.mock import patch

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


def test_a_draw_at_the_rate_is_kept():
    """Draws are from 0 to below 1, so those of at least the rate have the probability 1 - rate; at rate 0 it is all."""
    draws = np.array([0.0, 0.25, 0.5, 0.75], np.float32)

    class Fixed:
        def random(self, shape, dtype):
            return draws

    cpu = torch.device("cpu")
    for rate, kept in ((0.0, [True] * 4), (0.5, [False, False, True, True])):
        assert spec.dropout_mask((4,), rate, Fixed()).tolist() == kept
        with patch.object(torch, "rand", return_value=torch.from_numpy(draws)):
            for generator in (cpu, torch.Generator()):
                assert twin.dropout_mask((4,), rate, generator, cpu).tolist() == kept


@given(sizes(1), sizes(1), st.integers(0, 5), st.integers(0, 5), seeds)
def test_a_share_is_its_rows_of_the_whole_mask(T, K, start, count, seed):
    """Processes that compute some rows of a batch each drop what one process would drop."""
    whole = twin.dropout_mask((7, T, K), 0.4, np.random.default_rng(seed), torch.device("cpu"))
    rows = slice(start, start + count)
    share = twin.Share(np.random.default_rng(seed), rows, 7)
    assert (twin.dropout_mask((count, T, K), 0.4, share, torch.device("cpu")) == whole[rows]).all()


def test_what_is_dropped_is_0_whatever_it_was():
    x, keep = np.array([np.inf, np.nan, 1.0]), np.array([False, False, True])
    y, cache = spec.dropout_forward(x, 0.5, keep)
    assert y.tolist() == spec.dropout_backward(x, cache).tolist() == [0, 0, 2]
    tensor = torch.tensor(x, requires_grad=True)
    theirs = twin.dropout(tensor, 0.5, torch.from_numpy(keep))
    theirs.backward(torch.from_numpy(x))
    assert theirs.tolist() == tensor.grad.tolist() == [0, 0, 2]


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.1, 0.5])
def test_the_share_kept(rate):
    count = 1_000_000
    deviation = (rate * (1 - rate) / count) ** 0.5  # of a mean of Bernoulli draws
    numpy_mask = spec.dropout_mask((count,), rate, np.random.default_rng(1))
    torch_mask = twin.dropout_mask((count,), rate, torch.Generator().manual_seed(1), torch.device("cpu"))
    with torch.random.fork_rng():
        torch.set_rng_state(torch.Generator().manual_seed(1).get_state())
        device_mask = twin.dropout_mask((count,), rate, torch.device("cpu"), torch.device("cpu"))
    for kept in (numpy_mask.mean(), torch_mask.double().mean().item(), device_mask.double().mean().item()):
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
