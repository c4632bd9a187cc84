"""LayerNorm and RMSNorm: spec, twin and complex step; rows of equal numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.bounds import bound_of
from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy import normalization as spec
from torch_impl import normalization as twin


def gains(width):
    """No subnormal gain for torch's LayerNorm: its backward multiplies the upstream gradient times the gain by 1/deviation^3
    where the spec multiplies by 1/deviation, and so many times worse is an underflow in the product. RMSNorm, whose
    backward is the spec's in both twins, is tried with such gains, too.
    """
    return arrays((width,), subnormal=False)


@given(
    st.data(), sizes(), sizes(1, 11), st.booleans(), st.sampled_from([1e-3, 4.0, 1e4]), st.sampled_from([0, 30, 1e3]), seeds
)
def test_layer_norm(data, rows, width, has_bias, magnitude, offset, seed):
    """With rows far from 0 too, where a backward that does not centre them first loses digits."""
    arguments = {
        "x": data.draw(arrays((2, rows, width), magnitude)) + offset * magnitude,
        "weight": data.draw(gains(width)),
        "bias": data.draw(arrays((width,))) if has_bias else None,
    }
    check_operation(
        "layer_norm",
        spec.layer_norm_forward,
        spec.layer_norm_backward,
        twin.layer_norm,
        arguments,
        dtypes=("float64", "float32", "bfloat16"),
        seed=seed,
    )


@given(st.data(), sizes(), sizes(1, 11), st.sampled_from([1e-3, 4.0, 1e4]), seeds)
def test_rms_norm(data, rows, width, magnitude, seed):
    arguments = {"x": data.draw(arrays((2, rows, width), magnitude)), "weight": data.draw(arrays((width,)))}
    check_operation(
        "rms_norm",
        spec.rms_norm_forward,
        spec.rms_norm_backward,
        twin.rms_norm,
        arguments,
        dtypes=("float64", "float32", "bfloat16"),
        seed=seed,
    )


@given(st.floats(-1e3, 1e3, width=32), seeds)
def test_a_row_of_equal_numbers_gives_the_bias(value, seed):
    x = np.full((3, 7), value)
    weight, bias = np.random.default_rng(seed).standard_normal((2, 7))
    check_operation(
        "layer_norm, equal rows",
        spec.layer_norm_forward,
        spec.layer_norm_backward,
        twin.layer_norm,
        {"x": x, "weight": weight, "bias": bias},
        seed=seed,
    )
    truth, bound = bound_of(lambda x: spec.layer_norm_forward(x, weight, bias)[0], x, format="float64")
    assert_within(np.broadcast_to(bias, x.shape), truth, bound, "the bias")


@pytest.mark.parametrize("norm", [twin.layer_norm, twin.rms_norm])
def test_a_stream_in_bfloat16_is_normed_in_the_format_of_the_weight(norm):
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.ones(7)
    assert torch.equal(norm(x, weight), norm(x.float(), weight))


@given(sizes(1, 11), seeds)
def test_a_single_vector(width, seed):
    """No axis but the last."""
    x, weight, bias = np.random.default_rng(seed).standard_normal((3, width))
    layer = spec.layer_norm_forward, spec.layer_norm_backward, twin.layer_norm
    root = spec.rms_norm_forward, spec.rms_norm_backward, twin.rms_norm
    check_operation("layer_norm", *layer, {"x": x, "weight": weight, "bias": bias}, seed=seed)
    check_operation("rms_norm", *root, {"x": x, "weight": weight}, seed=seed)


def test_far_from_0_digits_are_lost_once():
    """Rounding of the mean costs the digits that it has before those of the deviation, four here, and not twice as many, as
    the mean square less the square of the mean would: a bound that widened with the algorithm would not tell."""
    x = 1e4 + np.random.default_rng(0).standard_normal((3, 8))
    _, bound = bound_of(lambda x: spec.layer_norm_forward(x, np.ones(8))[0], x, format="float64")
    assert bound.max() < 1e4 * 20 * np.finfo(np.float64).eps
