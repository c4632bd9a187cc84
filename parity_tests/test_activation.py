"""Activations: spec, twin and complex step; erf against the standard library's."""

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
from reference_numpy import activation as spec
from torch_impl import activation as twin

NAMES = ("gelu", "gelu_tanh", "relu", "relu_squared", "silu")


@pytest.mark.parametrize("name", NAMES)
@given(st.data(), sizes(), sizes(), st.sampled_from([1e-30, 1.0, 4.0, 40.0]), seeds)
def test_parity(name, data, rows, columns, magnitude, seed):
    x = data.draw(arrays((rows, columns), magnitude))
    check_operation(
        name,
        getattr(spec, f"{name}_forward"),
        getattr(spec, f"{name}_backward"),
        getattr(twin, name),
        {"x": x},
        dtypes=("float64", "float32", "bfloat16"),
        seed=seed,
        smooth="relu" not in name,
    )


@given(arrays((101,), 9.0))
def test_erf(x):
    truth, bound = bound_of(spec.erf, x, format="float64")
    library = np.array([math.erf(v) for v in x])  # itself within one ulp
    assert_within(spec.erf(x), library, bound + np.spacing(np.abs(library)), "erf")
    assert_within(truth, library, bound + np.spacing(np.abs(library)), "erf in longdouble")


def test_erf_where_rounding_is_larger_than_its_argument():
    """A difference of large products in bfloat16 is anywhere between -80 and 80: a bound, although no more than 2."""
    x = np.array([2000.0, 2000.0])
    truth, bound = bound_of(lambda x: spec.erf(x / 3 - np.array([664.0, 672.0])), x, format="bfloat16")
    assert ((bound >= 1) & (bound <= 40)).all()
    for found in (-1.0, 1.0):
        assert_within(np.full(2, found), truth, bound, "erf")


@pytest.mark.parametrize("x", [-3.9375, -3.9504, -0.064, 0.0008])
def test_gelu_where_a_kernel_errs_most(x):
    """torch's vectorised erf in float32 has an error of its own; alone in a tensor, its element's bound judges it."""
    x = np.array([0.0, np.float32(x)])
    check_operation("gelu", spec.gelu_forward, spec.gelu_backward, twin.gelu, {"x": x}, dtypes=("float32",))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_a_number_stays_so(name):
    """And its gradient does not vanish: a model that has diverged is seen to have."""
    x = np.array([np.nan, 1.0])
    y, cache = getattr(spec, f"{name}_forward")(x)
    tensor = torch.tensor(x, requires_grad=True)
    theirs = getattr(twin, name)(tensor)
    theirs.sum().backward()
    for found in (y, theirs.detach().numpy()):
        assert np.isnan(found).tolist() == [True, False]
    for gradient in (getattr(spec, f"{name}_backward")(np.ones(2), cache), tensor.grad.numpy()):
        assert np.isnan(gradient[0]) or (name == "relu" and gradient[0] == 1)
