"""Masks: spec and twin against a brute-force statement of the rule."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.strategies import integers, sizes
from reference_numpy import attention, flash_attention
from reference_numpy import mask as spec
from torch_impl import attention as twin_attention
from torch_impl import flash_attention as twin_flash_attention
from torch_impl import mask as twin


def pairs(T, S, rule):
    """(T, S) from a rule on positions, pair by pair; query t stands at S - T + t."""
    return np.array([[rule(S - T + t, s) for s in range(S)] for t in range(T)], dtype=bool).reshape(T, S)


@given(sizes(), sizes())
def test_causal(T, S):
    expected = pairs(T, S, lambda t, s: s <= t)
    assert (spec.allowed_pairs(np.arange(S - T, S), np.arange(S), causal=True) == expected).all()
    assert (twin.allowed_pairs(T, S, causal=True).numpy() == expected).all()


@given(sizes(), sizes(), st.integers(1, 8))
def test_window(T, S, window):
    expected = pairs(T, S, lambda t, s: abs(t - s) < window)
    assert (spec.allowed_pairs(np.arange(S - T, S), np.arange(S), window=window) == expected).all()
    assert (twin.allowed_pairs(T, S, window=window).numpy() == expected).all()


@given(st.data(), sizes(), sizes())
def test_padding(data, B, S):
    lengths = data.draw(integers((B,), 0, S))
    expected = np.array([[s < length for s in range(S)] for length in lengths], dtype=bool).reshape(B, S)
    assert (spec.padding_mask(lengths, S) == expected).all()
    assert (twin.padding_mask(torch.from_numpy(lengths), S).numpy() == expected).all()


@pytest.mark.parametrize(("dtype", "length"), [("int8", 100), ("uint8", 200)])
def test_padding_beyond_what_the_lengths_can_count(dtype, length):
    lengths = np.array([length, 3], dtype)
    for mask in (spec.padding_mask(lengths, 300), twin.padding_mask(torch.from_numpy(lengths), 300).numpy()):
        assert mask.sum(axis=1).tolist() == [length, 3]
        assert mask[:, :3].all()


@given(sizes(1), sizes(1), st.booleans(), st.sampled_from([None, 1, 3]))
def test_combined(T, S, causal, window):
    mask = np.random.default_rng(T * 31 + S).random((2, 1, 1, S)) < 0.6
    ours = spec.allowed_pairs(np.arange(S - T, S), np.arange(S), mask, causal, window)
    theirs = twin.allowed_pairs(T, S, torch.from_numpy(mask), causal, window)
    rule = pairs(T, S, lambda t, s: (not causal or s <= t) and (window is None or abs(t - s) < window))
    assert (np.broadcast_to(ours, (2, 1, T, S)) == (mask & rule)).all()
    assert (np.broadcast_to(theirs.numpy(), (2, 1, T, S)) == (mask & rule)).all()


@given(sizes(1, 3), sizes(1, 7), sizes(1, 3))
def test_only_seen(B, S, K):
    """What is not seen becomes 0, NaN too; what is seen stays."""
    generator = np.random.default_rng(B * 31 + S * 7 + K)
    seen = generator.random((B, 1, S, 1)) < 0.6
    x = np.where(seen, generator.standard_normal((B, 2, S, K)), np.nan)
    expected = np.nan_to_num(x)
    assert (spec.only_seen(x, seen) == expected).all()
    assert (twin.only_seen(torch.from_numpy(x), torch.from_numpy(seen)).numpy() == expected).all()
    assert spec.only_seen(x, None) is x
    assert twin.only_seen(x, None) is x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mask": np.ones((5, 3), bool)},
            r"mask: expected bool that broadcasts to \(B, H, T, S\) = \(2, 4, 3, 5\), got bool \(5, 3\)",
        ),
        ({"mask": np.ones((1, 2, 4, 3, 5), bool)}, r"mask: expected .* got bool \(1, 2, 4, 3, 5\)"),
        ({"mask": np.ones((3, 5))}, r"mask: expected bool that broadcasts to .* got float64 \(3, 5\)"),
        ({"mask": np.ones((3, 5), np.int64)}, r"mask: expected bool that broadcasts to .* got int64 \(3, 5\)"),
        ({"key": np.zeros((2, 1, 5, 6))}, r"key: expected shape \(B, H, S, K\) = \(2, 4, 5, 6\), got \(2, 1, 5, 6\)"),
        ({"key": np.zeros((2, 4, 5, 7))}, r"key: expected shape \(B, H, S, K\) = \(2, 4, 5, 6\), got \(2, 4, 5, 7\)"),
        ({"query": np.zeros((3, 6))}, r"query: expected 4 axes, batch, head, length and width, got shape \(3, 6\)"),
        ({"key": np.zeros((4, 5, 6))}, r"key: expected 4 axes, batch, head, length and width, got shape \(4, 5, 6\)"),
        ({"value": np.zeros((2, 4, 4, 6))}, r"value: expected shape \(B, H, S, K\) = \(2, 4, 5, 6\), got \(2, 4, 4, 6\)"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    arguments = {
        "query": np.zeros((2, 4, 3, 6)),
        "key": np.zeros((2, 4, 5, 6)),
        "value": np.zeros((2, 4, 5, 6)),
        "mask": None,
    }
    arguments |= change
    for function in (attention.scaled_dot_product_attention_forward, flash_attention.flash_attention_forward):
        with pytest.raises(ValueError, match=message):
            function(**arguments)
    tensors = {name: None if a is None else torch.from_numpy(a) for name, a in arguments.items()}
    for dtype in ("float64", "int64", "bool"):
        message = message.replace(f"got {dtype}", f"got torch.{dtype}")
    for function in (twin_attention.scaled_dot_product_attention, twin_flash_attention.flash_attention):
        with pytest.raises(ValueError, match=message):
            function(**tensors)
