"""The twin's own backward passes have no derivative, and say so."""

import pytest
import torch

from torch_impl.activation import relu_squared
from torch_impl.derivative import own_backward
from torch_impl.linear import ONEDNN, linear
from torch_impl.normalization import layer_norm, rms_norm
from torch_impl.softmax import softmax

ONES = torch.ones(3)
OWN = {
    "softmax": softmax,
    "relu_squared": relu_squared,
    "rms_norm": lambda x: rms_norm(x, ONES),
    **({"linear": lambda x: linear(x, torch.eye(3))} if ONEDNN is not None else {}),
}


@pytest.mark.parametrize("function", OWN.values(), ids=OWN)
def test_a_second_derivative_is_refused(function):
    """And not wrong: torch's once_differentiable lets it pass where the gradient that comes in is a constant."""
    x = torch.tensor([[0.5, -1.0, 2.0]], requires_grad=True)
    for y in (function(x).sum(), function(x).square().sum()):
        with pytest.raises(RuntimeError, match="for first derivatives"):
            torch.autograd.grad(y, x, create_graph=True)


def test_layer_norm_has_a_second_derivative():
    """That of a mean which counts as a constant: torch compares it with differences."""
    x, weight, bias = torch.tensor([[0.5, -1.0, 2.0], [1.0, 3.0, 0.0], [0.25, 0.5, -0.5]], dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        layer_norm, (x[None].requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    )


def test_where_a_backward_pass_of_our_own_is_used():
    found = []
    torch.func.grad(lambda x: (found.append(own_backward()), x.sum())[1])(ONES)
    assert found == [False]
    assert own_backward()
    with torch.no_grad():
        assert not own_backward()


@pytest.mark.parametrize("function", [layer_norm, rms_norm, linear], ids=lambda function: function.__name__)
def test_a_weight_that_changes_before_the_backward_pass_is_noticed(function):
    x, weight = torch.ones((2, 3), requires_grad=True), torch.eye(3) if function is linear else torch.ones(3)
    y = function(x, weight.requires_grad_())
    with torch.no_grad():
        weight.mul_(5)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()
