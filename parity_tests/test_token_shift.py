"""Token shift: spec and twin, element by element, with padding, without tokens, token by token."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, booleans, seeds, sizes
from reference_numpy import token_shift as spec
from torch_impl import token_shift as twin


@given(st.data(), sizes(0, 3), sizes(), sizes(), st.booleans(), seeds)
def test_parity(data, B, T, D, padded, seed):
    x, padding = data.draw(arrays((B, T, D))), data.draw(booleans((B, T))) if padded else None

    def backward(d_y, cache):
        return spec.token_shift_backward(d_y, cache), None

    check_operation(
        "token shift",
        spec.token_shift_forward,
        backward,
        twin.token_shift,
        {"x": x, "padding": padding},
        dtypes=("float64", "float32", "bfloat16"),
        seed=seed,
    )


@given(st.data(), sizes(1, 3), sizes(1), sizes(1))
def test_every_element_comes_from_where_it_should(data, B, T, D):
    x, padding = data.draw(arrays((B, T, D))), data.draw(booleans((B, T)))
    tensors = torch.tensor(x.copy()), torch.tensor(padding)  # torch has no negative strides
    outputs = [spec.token_shift_forward(x, padding)[0], twin.token_shift(*tensors).numpy()]
    with torch.no_grad():
        outputs.append(twin.token_shift(*tensors).numpy())
    for b, t, i in np.ndindex(B, T, D):
        own = i < D - D // 2
        before = x[b, t - 1, i] if t > 0 and padding[b, t - 1] else 0
        assert all(y[b, t, i] == (x[b, t, i] if own else before) for y in outputs)


@pytest.mark.parametrize("padded", [False, True], ids=["all-real", "padded"])
@given(st.data(), sizes(1, 3), sizes(1), sizes(1, 5))
def test_token_by_token(padded, data, B, T, D):
    """With a past the tokens can come in any portions, and rows of the batch change places."""
    x, real = data.draw(arrays((B, T, D))), data.draw(booleans((B, T))) if padded else None
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1)))) if T > 1 else []
    rows = np.array(data.draw(st.lists(st.integers(0, B - 1), min_size=1, max_size=4)))
    whole, _ = spec.token_shift_forward(x, real)
    ours, theirs, order = spec.LastToken(), twin.LastToken(), np.arange(B)
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
        part, padding = x[order, start:stop], None if real is None else real[order, start:stop]
        expected = whole[order, start:stop]
        assert np.array_equal(spec.token_shift_forward(part, padding, ours)[0], expected)
        arguments = torch.tensor(part.copy()), None if padding is None else torch.from_numpy(padding)
        assert np.array_equal(twin.token_shift(*arguments, theirs).numpy(), expected)
        order = order[rows % len(order)]
        ours.select(rows % len(part))
        theirs.select(torch.from_numpy(rows % len(part)))


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_what_padding_holds_is_never_seen(strange):
    x, padding = np.full((1, 2, 2), strange), np.array([[False, True]])
    x[0, 1] = 5
    y, cache = spec.token_shift_forward(x, padding)
    assert y[0, 1].tolist() == [5, 0]
    assert twin.token_shift(torch.tensor(x), torch.tensor(padding))[0, 1].tolist() == [5, 0]
    d_y = np.full((1, 2, 2), strange)
    d_y[0, 0] = 1
    assert spec.token_shift_backward(d_y, cache)[0, 0].tolist() == [1, 0]
    x_tensor = torch.tensor(x, requires_grad=True)
    twin.token_shift(x_tensor, torch.tensor(padding)).backward(torch.tensor(d_y))
    assert x_tensor.grad[0, 0].tolist() == [1, 0]


def test_its_derivative_has_one():
    """A Hessian through it is right: the way back is the shift the other way, which torch can follow."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 5))).requires_grad_()
    padding = torch.tensor([[True, False, True]] * 2)
    for real in (None, padding):
        assert torch.autograd.gradgradcheck(lambda x, real=real: twin.token_shift(x, real).pow(3), x)
