"""Softmax: spec, twin and complex step; -inf entries, empty rows, huge scores, invariance to a shift."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.bounds import bound_of
from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, booleans, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy.softmax import softmax_backward, softmax_forward
from torch_impl.softmax import softmax


@given(st.data(), sizes(), sizes(1, 11), st.sampled_from([1e-30, 1.0, 30.0, 1e4]), seeds)
def test_parity(data, rows, columns, magnitude, seed):
    x = data.draw(arrays((rows, 3, columns), magnitude))
    check_operation(
        "softmax", softmax_forward, softmax_backward, softmax, {"x": x}, dtypes=("float64", "float32", "bfloat16"), seed=seed
    )


@given(st.data(), sizes(1), sizes(1, 11), seeds)
def test_masked(data, rows, columns, seed):
    x = np.where(data.draw(booleans((rows, columns))), data.draw(arrays((rows, columns))), -np.inf)
    x[0] = -np.inf
    check_operation("softmax, masked", softmax_forward, softmax_backward, softmax, {"x": x}, seed=seed)
    p, _ = softmax_forward(x)
    assert (p[x == -np.inf] == 0).all()


@given(st.data(), sizes(1), sizes(1, 11), st.floats(-100, 100))
def test_a_shift_changes_nothing(data, rows, columns, shift):
    x = data.draw(arrays((rows, columns)))
    truth, bound = bound_of(lambda a: softmax_forward(a + shift)[0], x, format="float64")
    unshifted, own_bound = bound_of(lambda a: softmax_forward(a)[0], x, format="float64")
    assert_within(softmax_forward(x + shift)[0], unshifted, bound + own_bound, "softmax(x + c)")
    assert_within(truth, unshifted, bound + own_bound, "softmax(x + c), truth")


@given(st.data(), sizes(1), sizes(1, 11), seeds)
def test_the_twin_masks_as_it_goes(data, rows, columns, seed):
    """softmax(x, allowed) is the spec's of x with -inf where nothing is allowed, whatever x holds there, gradient too."""
    allowed = data.draw(booleans((rows, columns)))
    x = np.where(allowed, data.draw(arrays((rows, columns))), -np.inf)

    def twin(x):
        return softmax(torch.where(torch.from_numpy(allowed), x, torch.nan), torch.from_numpy(allowed))

    check_operation("softmax, masked", softmax_forward, softmax_backward, twin, {"x": x}, seed=seed)
    differentiated = twin(torch.tensor(x, requires_grad=True))
    assert torch.equal(differentiated, twin(torch.tensor(x)))


def test_no_columns():
    p, _ = softmax_forward(np.zeros((3, 0)))
    assert p.shape == (3, 0)


@pytest.mark.parametrize("differentiated", [False, True])
def test_what_is_not_a_number_spoils_its_row_alone(differentiated):
    x = np.array([[np.nan, 0.0], [1.0, 2.0]])
    tensor, allowed = torch.tensor(x, requires_grad=differentiated), torch.ones(2, 2, dtype=torch.bool)
    for found in (softmax_forward(x)[0], softmax(tensor).detach().numpy(), softmax(tensor, allowed).detach().numpy()):
        assert np.isnan(found).tolist() == [[True, True], [False, False]]


def test_an_empty_row_has_gradient_0_by_torch_func_too():
    x = torch.tensor([[-torch.inf, -torch.inf], [0.0, 0.0]])
    for allowed in (None, torch.tensor([[False, False], [True, True]])):
        gradient = torch.func.grad(lambda x, allowed=allowed: softmax(x, allowed)[:, 0].sum())(x)
        assert gradient.tolist() == [[0, 0], [0.25, -0.25]]
