"""`assert_parity` accepts what is right and rejects what is wrong, for torch functions and for NumPy pairs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from parity_tests import assert_parity, parity
from parity_tests.parity import OPERATIONS
from reference_numpy.softmax import softmax_backward, softmax_forward

RIGHT = {
    "linear": F.linear,
    "embedding": F.embedding,
    "softmax": lambda x: torch.softmax(x, -1),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "layer_norm": lambda x, weight, bias: F.layer_norm(x, (x.shape[-1],), weight, bias),
    "rms_norm": lambda x, weight: F.rms_norm(x, (x.shape[-1],), weight, 1e-5),
    "dropout": lambda x, rate, keep: x * keep / (1 - rate),
    "attention": F.scaled_dot_product_attention,
    "causal_attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "cross_entropy": lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1),
}


@pytest.mark.parametrize("operation", RIGHT)
def test_torch_functions_pass(operation):
    assert 0 <= assert_parity(RIGHT[operation], operation) <= 1


def test_every_operation_has_an_example():
    assert set(OPERATIONS) - set(RIGHT) == {"rotary"}  # torch has no rotation of its own


@pytest.mark.parametrize(
    ("wrong", "operation"),
    [
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0), "attention"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), "causal_attention"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
        (lambda x, weight, bias: F.layer_norm(x, (x.shape[-1],), weight, bias, eps=1e-6), "layer_norm"),
        (lambda x: torch.softmax(x, -2), "softmax"),
    ],
)
def test_classic_mistakes_are_rejected(wrong, operation):
    with pytest.raises(AssertionError, match=f"yours, {operation}, float64, twin"):
        assert_parity(wrong, operation)


def test_the_format_that_was_asked_for_is_tried():
    def wrong_in_float32(x):
        return F.gelu(x) * (1 if x.dtype == torch.float64 else 1.001)

    assert assert_parity(wrong_in_float32, "gelu") <= 1
    with pytest.raises(AssertionError, match="yours, gelu, float32"):
        assert_parity(wrong_in_float32, "gelu", dtype="float32")


def test_a_pair_of_numpy_functions():
    assert assert_parity((softmax_forward, softmax_backward), "softmax", np.array([[1.0, 2.0, -3.0]])) <= 1
    with pytest.raises(AssertionError, match="d_x"):
        assert_parity((softmax_forward, lambda d_p, p: p * d_p), "softmax")


def test_a_pair_may_take_plain_arrays_alone():
    """Numbers from a library that knows neither complex ones nor longdouble: neither is asked of it."""
    erf = np.vectorize(math.erf, otypes=[float])

    def gelu_forward(x):
        return x * (1 + erf(x / math.sqrt(2))) / 2, x

    def gelu_backward(d_y, x):
        return d_y * ((1 + erf(x / math.sqrt(2))) / 2 + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi))

    assert assert_parity((gelu_forward, gelu_backward), "gelu") <= 1


def test_a_module_by_functional_call():
    """As the docstring shows it: a module whose parameters are the operation's arguments."""
    torch_norm = torch.nn.LayerNorm(7)

    def function(x, w, b):
        return torch.func.functional_call(torch_norm, {"weight": w, "bias": b}, x)

    assert assert_parity(function, "layer_norm") <= 1


@pytest.mark.parametrize(
    "text", [parity.__doc__, (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")], ids=["here", "README"]
)
def test_the_three_lines_that_are_promised(text):
    lines = text.split("    import torch\n")[1].splitlines()[:2]
    assert lines[1].startswith("    assert_parity(torch.")
    exec("import torch\n" + "\n".join(line.strip() for line in lines), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no such thing",), "operation: expected one of linear, embedding, .* got 'no such thing'"),
        (("softmax", np.eye(2), np.eye(2)), r"arguments: expected at most 1 \(x\), got 2"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        assert_parity(torch.softmax, *arguments)


def test_a_pair_has_no_bfloat16():
    """Nothing would be compared, and so anything accepted."""
    with pytest.raises(ValueError, match="dtype: expected float64 or float32 for a pair on NumPy arrays, got bfloat16"):
        assert_parity((lambda x: (x * 0 + 7, None), lambda d_y, cache: d_y * 3), "softmax", dtype="bfloat16")


def test_own_inputs_may_be_tensors_and_lists():
    softmax = RIGHT["softmax"]
    assert assert_parity(softmax, "softmax", torch.eye(3, dtype=torch.float64)) < 1
    assert assert_parity(softmax, "softmax", [[0.0, 1.0, 2.0]]) < 1


def test_relu_at_0_is_what_it_is():
    assert assert_parity(torch.relu, "relu", np.array([0.0, 1.0, -1.0])) < 1
