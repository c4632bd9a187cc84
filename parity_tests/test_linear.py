"""Linear layer: spec, twin and complex step."""

import itertools
import math
import re
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.bounds import TWIN_FACTOR, bound_of
from parity_tests.compare import cast, check_operation
from parity_tests.strategies import arrays, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy.linear import linear_backward, linear_forward
from torch_impl.linear import AVX512, FEW_ROWS, ONEDNN, Linear, PackedLinear, _one_row, _transposed_product, linear


@given(st.data(), st.sampled_from([1, 2, 3]), sizes(), sizes(), sizes(1), st.booleans(), st.booleans(), seeds)
def test_parity(data, axes, inputs, outputs, rows, has_bias, has_avx512, seed):
    x = data.draw(arrays((*(2, 3)[: axes - 1], rows, inputs)))
    weight = data.draw(arrays((outputs, inputs)))
    bias = data.draw(arrays((outputs,))) if has_bias else None
    arguments, dtypes = {"x": x, "weight": weight, "bias": bias}, ("float64", "float32", "bfloat16")
    with patch("torch_impl.linear.AVX512", has_avx512):  # both libraries, whatever this machine would take
        check_operation("linear", linear_forward, linear_backward, linear, arguments, dtypes=dtypes, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3))[1:], ids=str)
def test_what_is_frozen_has_no_gradient_and_the_rest_its_own(wanted, dtype):
    generator = torch.Generator().manual_seed(0)
    own = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((7, 5), (3, 5), (3,))]
    upstream = torch.randn(7, 3, generator=generator, dtype=dtype)
    every = [tensor.clone().requires_grad_() for tensor in own]
    some = [tensor.clone().requires_grad_(on) for tensor, on in zip(own, wanted, strict=True)]
    for tensors in (every, some):
        linear(*tensors).backward(upstream)
    for tensor, whole, on in zip(some, every, wanted, strict=True):
        assert torch.equal(tensor.grad, whole.grad) if on else tensor.grad is None


@given(st.data(), sizes(), sizes(), st.sampled_from([(), (1,), (1, 1)]), st.booleans(), seeds)
def test_the_compilers_way_with_one_row(data, inputs, outputs, before, has_bias, seed):
    """A sum of products, which torch.compile asks for in the place of the product."""
    x, weight = data.draw(arrays((*before, inputs))), data.draw(arrays((outputs, inputs)))
    arguments = {"x": x, "weight": weight, "bias": data.draw(arrays((outputs,))) if has_bias else None}
    dtypes = ("float64", "float32", "bfloat16")
    check_operation("linear", linear_forward, linear_backward, _one_row, arguments, dtypes=dtypes, seed=seed)


def test_the_compilers_row_of_bfloat16_is_summed_in_float32():
    """(1 + 2^-7)^2 - (1 + 2^-6) is 2^-14, which is lost if the products are rounded to 8 bits before they are summed."""
    x, weight = ([1 + 2**-7, 1 + 2**-6], [1 + 2**-7, -1.0])
    x, weight = (torch.tensor(numbers * 64, dtype=torch.bfloat16) for numbers in (x, weight))
    assert float(_one_row(x, weight[None], None)) == 64 * 2**-14


def route(x, weight):
    """ "oneDNN" or "torch": who computed the product, by the name of its derivative."""
    y = linear(x, weight.requires_grad_())
    return "oneDNN" if "OneDNN" in y.grad_fn.name() else "torch"


@pytest.mark.skipif(ONEDNN is None, reason="this torch comes without oneDNN")
@pytest.mark.parametrize("avx512", [True, False])
@pytest.mark.parametrize(
    ("shape", "outputs", "dtype", "expected"),
    [
        ((1, 3), 2, torch.float32, "oneDNN"),
        ((2, 5, 3), 2, torch.float32, "oneDNN"),
        ((2, 5, 1), 1, torch.float32, "oneDNN"),
        ((1, 1), 1, torch.float32, "oneDNN"),
        ((0, 3), 2, torch.float32, "torch"),
        ((2, 0), 2, torch.float32, "torch"),
        ((2, 3), 0, torch.float32, "torch"),
        ((2, 3), 2, torch.float64, "torch"),
        ((2, 3), 2, torch.bfloat16, "torch"),
    ],
)
def test_who_computes_the_product(monkeypatch, shape, outputs, dtype, expected, avx512):
    """oneDNN in float32 on a CPU, where there is something to compute; nothing where autocast chooses the precision."""
    monkeypatch.setattr("torch_impl.linear.AVX512", avx512)
    expected = "torch" if not avx512 and math.prod(shape[:-1]) > FEW_ROWS else expected
    x, weight = torch.ones(shape, dtype=dtype), torch.ones((outputs, shape[-1]), dtype=dtype)
    assert route(x, weight) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert route(x, weight) == "torch"


def test_onednn_is_asked_where_it_is_there_and_quicker():
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert (ONEDNN is not None) == there
    assert ("AVX512" in torch.__config__.show().partition("CPU capability usage: ")[2].partition("\n")[0]) == AVX512


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3), (2, 5, 3), (2, 1, 4, 3)])
def test_without_a_gradient_the_product_is_the_same(shape):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in (shape, (2, 3), (2,)))
    with torch.no_grad():
        alone = linear(x, weight, bias)
    assert alone.shape == (*shape[:-1], 2)
    assert torch.equal(alone, linear(x, weight.requires_grad_(), bias))


def layers_of(weights, biases):
    """Linears with these parameters."""
    layers = []
    for weight, bias in zip(weights, biases, strict=True):
        layers.append(Linear(weight.shape[1], weight.shape[0], bias is not None).double())
        layers[-1].weight.data = torch.tensor(np.ascontiguousarray(weight))
        if bias is not None:
            layers[-1].bias.data = torch.tensor(np.ascontiguousarray(bias))
    return layers


def test_without_onednn_packed_layers_are_torchs_own(monkeypatch):
    """The same rounded factors, the same sums of a few powers of 2."""
    layers = [layer.float() for layer in layers_of([np.array([[1.0, 2.0], [-0.5, 4.0]])], [np.array([1.0, -8.0])])]
    x = torch.tensor([[1.0, 0.25], [1 + 2.0**-9, 0.5]])
    expected = PackedLinear(layers, bfloat16=True)(x)
    monkeypatch.setattr("torch_impl.linear.ONEDNN", None)
    alone = PackedLinear(layers, bfloat16=True)
    assert not alone.packed
    assert torch.equal(alone(x), expected)


@pytest.mark.parametrize("format", ["float64", "bfloat16"])
@given(st.data(), st.sampled_from([1, 2, 3]), sizes(1), st.sampled_from([(1,), (5,), (2, 3, 3)]), sizes(1), st.booleans())
def test_packed_layers(format, data, axes, inputs, outputs, rows, has_bias):
    """Packed layers are the layers, their outputs behind each other."""
    x = cast(data.draw(arrays((*(2, 3)[: axes - 1], rows, inputs))), format)
    weights = [cast(data.draw(arrays((width, inputs))), format) for width in outputs]
    biases = [cast(data.draw(arrays((width,))), format) if has_bias else None for width in outputs]
    layers = layers_of(weights, biases)
    if format == "bfloat16":
        layers = [layer.float() for layer in layers]
    found = PackedLinear(layers, format == "bfloat16")(torch.tensor(np.ascontiguousarray(x)).to(layers[0].weight.dtype))
    assert found.dtype == layers[0].weight.dtype
    assert not found.requires_grad

    def together(x, weight, bias=None):
        return linear_forward(x, weight, bias)[0]

    whole = np.concatenate(weights), *([np.concatenate(biases)] if has_bias else [])
    truth, bound = bound_of(together, x, *whole, format=format, factor=TWIN_FACTOR)
    assert_within(found.double().numpy(), truth, bound, f"packed layers, {format}")


def test_what_is_packed_in_bfloat16_is_rounded_to_it():
    """x, the weight, the bias and the output: 1 + 2^-9 and 1/2^9 beside 1 are lost in each of them."""
    more, one, zero = 1 + 2.0**-9, 1.0, 0.0
    for x, weight, bias in ((more, one, zero), (one, more, zero), (zero, zero, more), (one, one, 2.0**-9)):
        layers = [layer.float() for layer in layers_of([np.array([[weight]])], [np.array([bias])])]
        assert PackedLinear(layers, bfloat16=False)(torch.tensor([[x]])).item() == more
        assert PackedLinear(layers, bfloat16=True)(torch.tensor([[x]])).item() == one


def test_a_packed_layer_is_not_copied():
    (layer,) = layers_of([np.ones((2, 3))], [np.ones(2)])
    packed = PackedLinear((layer,), bfloat16=False)
    assert packed.weight.data_ptr() == layer.weight.data_ptr()
    assert packed.bias.data_ptr() == layer.bias.data_ptr()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 1, 3)])
def test_no_rows(shape):
    """A batch of nothing gives nothing, of the right shape; the parameters' gradients are 0."""
    weight, bias = np.ones((4, 3)), np.ones(4)
    y, cache = linear_forward(np.zeros(shape), weight, bias)
    assert y.shape == (*shape[:-1], 4)
    assert linear(*map(torch.from_numpy, (np.zeros(shape), weight, bias))).shape == y.shape
    d_x, d_weight, d_bias = linear_backward(y, cache)
    assert d_x.shape == shape
    assert np.array_equal(d_weight, np.zeros((4, 3)))
    assert np.array_equal(d_bias, np.zeros(4))


@pytest.mark.parametrize("changed", ["x", "weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_that_was_changed_before_the_backward_pass_is_noticed(dtype, changed):
    x, weight = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype)
    y = linear(x.requires_grad_(), weight.requires_grad_())
    with torch.no_grad():
        {"x": x, "weight": weight}[changed].mul_(5)
    with pytest.raises(RuntimeError, match=r"modified .*inplace"):
        y.sum().backward()


def test_widths_must_fit():
    message = "x: expected a last axis of 3, the weight's input width, got 2"
    with pytest.raises(ValueError, match=message):
        linear_forward(np.zeros((5, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=message):
        linear(torch.zeros((5, 2)), torch.zeros((4, 3)))


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 4)])
def test_a_bias_is_not_broadcast(shape):
    message = r"bias: expected shape \(4,\), the weight's output width, got " + re.escape(str(shape))
    with pytest.raises(ValueError, match=message):
        linear_forward(np.zeros((5, 3)), np.zeros((4, 3)), np.zeros(shape))
    with pytest.raises(ValueError, match=message):
        linear(torch.zeros((5, 3)), torch.zeros((4, 3)), torch.zeros(shape))


@pytest.mark.parametrize(("outputs", "inputs"), [(2, 5), (5, 2), (3, 3)])
def test_the_smaller_factor_is_the_one_that_is_copied(monkeypatch, outputs, inputs):
    """oneDNN copies a first factor that is transposed."""
    firsts = []
    monkeypatch.setattr("torch_impl.linear._product", lambda x, weight: firsts.append(len(x)) or x @ weight.T)
    a, b = torch.arange(7.0 * outputs).view(7, -1), torch.arange(7.0 * inputs).view(7, -1)  # whole numbers: exact sums
    assert torch.equal(_transposed_product(a, b), a.T @ b)
    assert firsts == [min(outputs, inputs)]


def test_the_operator_for_the_compiler_is_for_the_compiler_alone(monkeypatch):
    """It takes longer to call, which small products would feel."""
    monkeypatch.setattr("torch_impl.linear._opaque", None)
    assert linear(torch.ones((2, 3)), torch.ones((4, 3))).tolist() == [[3.0] * 4] * 2


def test_two_layers_are_packed_one_behind_the_other():
    layers = layers_of([np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])], [np.array([7.0]), np.array([8.0, 9.0])])
    x = torch.tensor([[1.0, 10.0]], dtype=torch.float64)
    assert PackedLinear(layers, bfloat16=False)(x).tolist() == [[28.0, 51.0, 74.0]]
