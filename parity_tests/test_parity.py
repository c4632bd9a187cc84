"""`assert_parity` accepts what is right and rejects what is wrong, for torch functions and for NumPy pairs."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from parity_tests import assert_parity, parity
from parity_tests.parity import OPERATIONS
from reference_numpy.flash_attention import flash_attention_backward, flash_attention_forward
from reference_numpy.softmax import softmax_backward, softmax_forward


def rotary(x, positions):
    K = x.shape[-1]
    angle = positions[:, None] * 10_000.0 ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
    cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)


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
    "rotary": rotary,
    "attention": F.scaled_dot_product_attention,
    "causal_attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "cross_entropy": lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1),
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("operation", RIGHT)
def test_torch_functions_pass(operation, dtype):
    for seed in range(3):
        assert 0 <= assert_parity(RIGHT[operation], operation, dtype=dtype, seed=seed) <= 1


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_specs_own_pairs_pass(operation, dtype):
    spec = OPERATIONS[operation]
    assert 0 <= assert_parity((spec.forward, spec.backward), operation, dtype=dtype) <= 1


def test_every_operation_has_an_example_and_stands_in_the_docstring():
    assert set(OPERATIONS) == set(RIGHT)
    for name, spec in OPERATIONS.items():
        (line,) = re.findall(rf"^    (?:.*, )?{name}\b.*$", parity.__doc__.split("A torch function takes")[0], re.M)
        if name not in ("causal_attention", "relu", "relu_squared"):
            assert all(re.search(rf"\b{argument}\b", line) for argument in spec.example)


@pytest.mark.parametrize(
    ("wrong", "operation"),
    [
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0), "attention"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), "causal_attention"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
        (lambda x, weight, bias: F.layer_norm(x, (x.shape[-1],), weight, bias, eps=1e-6), "layer_norm"),
        (lambda x: torch.softmax(x, -2), "softmax"),
        (lambda x: x.exp() / x.exp().sum(-1, keepdim=True), "softmax"),
        (lambda x: x * x.exp() / (1 + x.exp()), "silu"),
        (lambda x: torch.where(x >= 0, x, 0), "relu"),
        (lambda x, positions: rotary(x, positions + 1), "rotary"),
    ],
)
def test_classic_mistakes_are_rejected(wrong, operation):
    with pytest.raises(AssertionError, match=f"assert_parity, {operation}, float64, yours"):
        assert_parity(wrong, operation)


def in_place(x):
    x.data += 1
    return torch.softmax(x - 1, -1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.softmax(x, -1).detach(), "yours: autograd sees no way from the output to the inputs"),
        (lambda x: None, "yours: expected a tensor as output, got None"),
        (lambda x: x.detach().numpy(), r"yours: expected a tensor as output, got ndarray of shape \(3, 5\)"),
        (lambda x: (torch.softmax(x, -1), x), "yours: 2 outputs, expected 1"),
        (lambda x: torch.softmax(x, -1).sum(), r"yours: expected an output of shape \(3, 5\), got \(\)"),
        (lambda x: torch.softmax(x, -1).float(), "yours: expected an output of dtype float64, got torch.float32"),
        (in_place, "yours: changed one of its inputs"),
        (
            (lambda x: softmax_forward(x)[0], softmax_backward),
            "yours: expected forward to return .output, cache., got ndarray",
        ),
        ((lambda x: (None, x), softmax_backward), "yours: expected an array as output, got None"),
        ((lambda x: (x, x, x), softmax_backward), "yours: expected forward to return .output, cache., got tuple of 3"),
        ((softmax_forward, lambda d_p, p: None), "yours d_x|d_x: expected a gradient, got None"),
        ((softmax_forward, lambda d_p, p: 0.0), "yours: expected an array as d_x, got float"),
        ((softmax_forward, lambda d_p, p: (d_p, d_p)), "backward gave 2 gradients for 1 differentiable"),
        ((softmax_forward, lambda d_p, p: p * d_p), "assert_parity, softmax, float64, yours d_x"),
        ((lambda x: (x.sort(), softmax_forward(x))[1], softmax_backward), "yours: changed one of its inputs: x"),
        (
            (softmax_forward, lambda d_p, p: (softmax_backward(d_p, p), d_p.sort())[0]),
            "yours: changed one of its inputs: the gradient of output 0",
        ),
        (
            (softmax_forward, lambda d_p, p: (softmax_backward(d_p, p), p.sort())[0]),
            "yours: d_x: a second backward pass from the same cache gave another",
        ),
    ],
)
def test_what_is_wrong_in_kind_is_said(function, message):
    with pytest.raises(AssertionError, match=message):
        assert_parity(function, "softmax")


def test_a_gradient_may_be_sparse():
    assert assert_parity(lambda tokens, weight: F.embedding(tokens, weight, sparse=True), "embedding") <= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_pair_may_be_tiled(seed):
    """It rounds differently: for a query with a single key plain attention has a gradient of exactly 0."""

    def forward(query, key, value):
        return flash_attention_forward(query, key, value, causal=True)

    assert assert_parity((forward, flash_attention_backward), "causal_attention", seed=seed) <= 1


def test_the_number_is_that_of_the_function():
    """Not that of the spec, nor of another witness, which round where this one does not."""
    assert assert_parity(F.relu, "relu") == 0


def test_a_bias_may_be_left_out():
    x, weight = np.eye(5)[:2], np.ones((7, 5))
    assert assert_parity(F.linear, "linear", x, weight) <= 1
    assert assert_parity(lambda x, w: x @ w.T, "linear", x, weight) <= 1
    assert assert_parity((lambda x, w: (x @ w.T, (x, w)), lambda d, c: (d @ c[1], d.T @ c[0])), "linear", x, weight) <= 1


def test_the_format_that_was_asked_for_is_tried():
    def wrong_in_float32(x):
        return F.gelu(x) * (1 if x.dtype == torch.float64 else 1.001)

    assert assert_parity(wrong_in_float32, "gelu") <= 1
    with pytest.raises(AssertionError, match="gelu, float32, yours"):
        assert_parity(wrong_in_float32, "gelu", dtype="float32")


def test_a_pair_of_numpy_functions():
    assert assert_parity((softmax_forward, softmax_backward), "softmax", np.array([[1.0, 2.0, -3.0]])) <= 1
    with pytest.raises(AssertionError, match="d_x"):
        assert_parity((softmax_forward, lambda d_p, p: p * d_p), "softmax")


@pytest.mark.parametrize("forward", [softmax_forward, lambda x: softmax_forward(x)[0]], ids=["and cache", "alone"])
def test_a_forward_may_come_first(forward):
    """Before there is a backward, the output is judged, and nothing else."""
    assert 0 < assert_parity((forward, None), "softmax") <= 1
    with pytest.raises(AssertionError, match="assert_parity, softmax, float64, yours output"):
        assert_parity((lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True) + 1e-15, None), "softmax", np.eye(3))


@pytest.mark.parametrize(
    ("function", "operation", "note"),
    [
        (lambda x: np.exp(x - x.max(-1, keepdims=True)), "softmax", "a NumPy function goes into a tuple: (forward, None)"),
        (lambda x: np.maximum(x, 0), "relu", "a NumPy function goes into a tuple: (forward, None)"),
        ((F.relu, None), "relu", "a torch function goes without one"),
        (F.layer_norm, "layer_norm", None),
    ],
)
def test_a_function_in_the_wrong_place_is_told_where_it_belongs(function, operation, note):
    with pytest.raises((TypeError, AttributeError, RuntimeError)) as caught:
        assert_parity(function, operation)
    notes = getattr(caught.value, "__notes__", [])
    assert [found.split("; ")[1] for found in notes] == ([] if note is None else [note])


def changing(*numbers):
    """A softmax whose n-th call multiplies by the n-th number, from the last one on always by that."""
    calls = []

    def forward(x):
        calls.append(x)
        p, cache = softmax_forward(x)
        return p * numbers[min(len(calls), len(numbers)) - 1], cache

    return forward


def drifting():
    forward = changing(1, 2)
    return lambda x: torch.softmax(x, -1) * float(forward(np.eye(1))[0][0, 0])


def kept_outside():
    """A pair whose cache is a variable of the module."""
    last = {}

    def forward(x):
        last["p"] = softmax_forward(x)[0]
        return last["p"].copy(), None

    return forward, lambda d_p, cache: softmax_backward(d_p, last["p"])


def one_buffer():
    buffer = {}

    def forward(x):
        p, cache = softmax_forward(x)
        out = buffer.setdefault(x.shape, np.empty_like(p))
        out[...] = p
        return out, cache.copy()

    return forward, softmax_backward


def spoils():
    """A pair whose every second backward pass writes into what it is given."""
    odd = itertools.cycle((False, True))

    def backward(d_p, p):
        gradient = softmax_backward(d_p, p)
        if next(odd):
            d_p[...] = 0
        return gradient

    return softmax_forward, backward


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ((changing(1, 2), softmax_backward), "a second call gave another output"),
        (drifting(), "a second call gave another output or gradient"),
        (kept_outside(), "softmax, float64, yours d_x"),
        (one_buffer(), "a later call changed the output of an earlier one"),
        (spoils(), "changed one of its inputs: the gradient of output 0"),
    ],
    ids=["a pair", "a function", "a cache outside", "one buffer", "a spoiled gradient"],
)
def test_nothing_is_kept_between_calls(function, message):
    with pytest.raises(AssertionError, match=message):
        assert_parity(function, "softmax")


def test_nobody_can_change_an_example():
    """Neither those of the module nor the caller's own."""

    def spoils(logits, targets):
        targets[...] = 0
        return np.float64(0), None

    own = np.array([[0, -1, 2]])
    for arguments in ([], [np.eye(3)[None], own]):
        for _ in range(2):
            with pytest.raises(AssertionError, match="changed one of its inputs: targets"):
                assert_parity((spoils, None), "cross_entropy", *arguments)
    assert (parity.TARGETS == [[0, 3, -1], [10, 5, 2]]).all()
    assert (own == [[0, -1, 2]]).all()


@pytest.mark.parametrize(
    ("wrong", "operation"),
    [
        (
            (lambda x: (e := np.exp(x - x.max(1, keepdims=True))) / e.sum(1, keepdims=True), None),
            "softmax of three axes, one entry -inf",
        ),
        (lambda x, positions: rotary(x, torch.arange(x.shape[2])), "rotary of positions out of order"),
        (lambda x, rate, keep: x * keep / 0.75, "dropout of half"),
        (lambda x: x * (1 + torch.erf(x.clamp(-5, 5) / math.sqrt(2))) / 2, "gelu far from 0"),
        (
            lambda q, k, v: (s := (q @ k.mT / math.sqrt(q.shape[-1])).exp()) / s.sum(-1, keepdim=True) @ v,
            "attention with scores",
        ),
        (lambda q, k, v: torch.softmax(q @ k.mT / math.sqrt(7), -1) @ v, "attention with scores"),
        (
            lambda z, t: -torch.softmax(z, -1).log().gather(-1, t.clamp(min=0)[..., None])[..., 0][t >= 0].mean(),
            "cross_entropy",
        ),
    ],
)
def test_what_is_wrong_at_an_edge_alone_is_rejected_and_the_edge_named(wrong, operation):
    with pytest.raises(AssertionError, match=f"assert_parity, {operation}"):
        assert_parity(wrong, operation.split()[0])


class Causal(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(9, 9, dtype=torch.bool).tril())

    def forward(self, query, key, value):
        T = query.shape[2]
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        return torch.softmax(scores.masked_fill(~self.mask[:T, :T], -math.inf), -1) @ value


def test_a_module_may_have_buffers():
    assert 0 < assert_parity(Causal(), "causal_attention") <= 1


@pytest.mark.parametrize("rate", [np.float64(0.5), torch.tensor(0.5), np.array(0.5)])
def test_a_rate_may_be_of_any_kind_of_number(rate):
    assert 0 <= assert_parity(RIGHT["dropout"], "dropout", np.ones(3), rate, np.array([True, False, True])) <= 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_tokens_may_be_of_any_kind_of_integer(kind):
    assert assert_parity(F.embedding, "embedding", np.array([1, 0, 1], kind), np.ones((3, 2))) <= 1


def test_a_pair_may_take_plain_arrays_alone():
    """Numbers from a library that knows neither complex ones nor longdouble: neither is asked of it."""
    erf = np.vectorize(math.erf, otypes=[float])

    def gelu_forward(x):
        return x * (1 + erf(x / math.sqrt(2))) / 2, x

    def gelu_backward(d_y, x):
        return d_y * ((1 + erf(x / math.sqrt(2))) / 2 + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi))

    assert assert_parity((gelu_forward, gelu_backward), "gelu") <= 1


@pytest.mark.parametrize(
    ("module", "operation"),
    [
        (torch.nn.LayerNorm(7), "layer_norm"),
        (torch.nn.Linear(5, 7), "linear"),
        (torch.nn.Embedding(7, 5), "embedding"),
        (torch.nn.RMSNorm(7, eps=1e-5), "rms_norm"),
        (torch.nn.GELU(), "gelu"),
    ],
)
def test_modules_pass(module, operation):
    """The arguments of their parameters' names stand in for these, and get the gradients."""
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    assert 0 <= assert_parity(module, operation) <= 1
    assert all((parameter == before[name]).all() for name, parameter in module.named_parameters())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_wrong_module_is_rejected():
    with pytest.raises(AssertionError, match="assert_parity, layer_norm, float64, yours"):
        assert_parity(torch.nn.LayerNorm(7, eps=1e-6), "layer_norm")


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
        ((F.relu, "no such thing"), "operation: expected one of linear, embedding, .* got 'no such thing'"),
        ((RIGHT["softmax"], "softmax", np.eye(2), np.eye(2)), r"arguments: expected at most 1 \(x\), got 2"),
        ((RIGHT["linear"], "linear", np.eye(2)), "arguments: expected x, weight, bias, got none for weight"),
        ((None, "softmax"), "function: expected a function, or a tuple of two, forward and backward, got None"),
        ((torch.nn.Softmax, "softmax"), "function: expected a function, .* got <class 'torch.nn"),
        (((softmax_forward,), "softmax"), "function: expected a function, or a tuple of two"),
        (([softmax_forward, softmax_backward], "softmax"), "function: expected a function, or a tuple of two"),
        ((torch.nn.MultiheadAttention(6, 2), "attention"), "function: expected a module with parameters among query, key"),
        ((torch.nn.Bilinear(5, 5, 7), "linear"), r"function: expected one that takes x, got one with \(input1"),
        (
            ((lambda x: x, softmax_backward), "linear"),
            r"function: expected one that takes x, weight, bias, got one with \(x\)",
        ),
        ((F.gelu, "gelu", np.array([1e10])), "arguments: expected numbers for which every bound is finite"),
        ((RIGHT["softmax"], "softmax", np.array([True])), "x: expected floating-point numbers, got bool"),
        ((F.embedding, "embedding", np.ones(2), np.eye(2)), "tokens: expected integers, got float64"),
        ((RIGHT["dropout"], "dropout", np.eye(2), 0.5, np.eye(2)), "keep: expected True and False, got float64"),
        ((RIGHT["dropout"], "dropout", np.eye(2), "half", np.eye(2) > 0), "rate: expected a number, got 'half'"),
        (
            (RIGHT["causal_attention"], "causal_attention", *map(np.ones, ((1, 1, 2, 3), (1, 1, 3, 3), (1, 1, 3, 3)))),
            "key: exp",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        assert_parity(*arguments)


@pytest.mark.parametrize("dtype", ["float16", "longdouble", None, torch.float32])
def test_formats_that_are_not_tried(dtype):
    with pytest.raises(ValueError, match="dtype: expected one of float64, float32, bfloat16, got"):
        assert_parity(F.gelu, "gelu", dtype=dtype)


def test_a_machine_without_a_truth(monkeypatch):
    monkeypatch.setattr(parity, "LONGDOUBLE_IS_WIDER", False)
    with pytest.raises(ValueError, match="longdouble is no wider than double here"):
        assert_parity(F.gelu, "gelu")


def test_a_pair_has_no_bfloat16():
    """Nothing would be compared, and so anything accepted."""
    with pytest.raises(ValueError, match="dtype: expected one of float64, float32 for NumPy arrays, got 'bfloat16'"):
        assert_parity((lambda x: (x * 0 + 7, None), lambda d_y, cache: d_y * 3), "softmax", dtype="bfloat16")


def test_own_inputs_may_be_tensors_and_lists():
    softmax = RIGHT["softmax"]
    assert assert_parity(softmax, "softmax", torch.eye(3, dtype=torch.float64)) < 1
    assert assert_parity(softmax, "softmax", [[0, 1, 2]]) < 1
    assert assert_parity(softmax, "softmax", torch.nn.Parameter(torch.eye(3).bfloat16())) < 1
    assert assert_parity(softmax, "softmax", (1.0, 2.0)) < 1


def test_relu_at_0_is_what_it_is():
    assert assert_parity(torch.relu, "relu", np.array([0.0, 1.0, -1.0])) < 1
