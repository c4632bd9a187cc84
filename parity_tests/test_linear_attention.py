"""Linear attention: spec, twin and complex step; tiles; the running state; the quadratic formula as brute force."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.bounds import bound_of
from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, booleans, precisions, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy import linear_attention as spec
from torch_impl import linear_attention as twin


@given(
    st.data(),
    st.sampled_from([1, 3, 64]),
    sizes(1, 2),
    sizes(1, 3),
    sizes(0, 7),
    sizes(1, 7),
    sizes(1, 3),
    st.booleans(),
    st.booleans(),
    precisions,
    seeds,
)
def test_parity(data, chunk, B, H, T, S, K, causal, masked, dtypes, seed):
    S = T if causal else S
    mask = data.draw(booleans(data.draw(st.sampled_from([(S,), (1, S), (B, 1, 1, S)])))) if masked else None
    shapes = {"query": (B, H, T, K), "key": (B, H, S, K), "value": (B, H, S, K)}
    arguments = {name: data.draw(arrays(shape, 2.0)) for name, shape in shapes.items()} | {"mask": mask}

    def backward(d_output, cache):
        return *spec.linear_attention_backward(d_output, cache), None

    with patch.object(spec, "CHUNK", chunk), patch.object(twin, "CHUNK", chunk):
        check_operation(
            "linear attention",
            lambda *a: spec.linear_attention_forward(*a, causal=causal),
            backward,
            lambda *a: twin.linear_attention(*a, causal=causal)[0],
            arguments,
            dtypes=dtypes,
            seed=seed,
            smooth=False,  # the second derivative of elu + 1 jumps at 0
        )


@given(sizes(1, 3), sizes(1, 11), st.booleans(), seeds)
def test_against_the_quadratic_formula(K, T, causal, seed):
    query, key, value = np.random.default_rng(seed).standard_normal((3, 1, 1, T, K))

    def features(x):
        return np.where(x > 0, x + 1, np.exp(np.where(x > 0, 0, x)))

    def quadratic(query, key, value):
        pairs = features(query) @ features(key).swapaxes(-1, -2)
        pairs = np.tril(pairs) if causal else pairs
        return (pairs @ value) / pairs.sum(axis=-1, keepdims=True)

    truth, bound = bound_of(quadratic, query, key, value, format="float64", factor=2.0)
    output, _ = spec.linear_attention_forward(query, key, value, causal=causal)
    assert_within(output, truth, bound, "linear attention")


@given(sizes(1, 3), st.integers(1, 9), st.integers(1, 9), st.booleans(), seeds)
def test_the_state_continues_where_it_stopped(K, first, second, causal, seed):
    """The last queries see all keys, causal or not."""
    query, key, value = np.random.default_rng(seed).standard_normal((3, 2, 2, first + second, K))
    run = spec.linear_attention_forward
    truth, bound = bound_of(lambda *a: run(*a, causal=causal)[0], query, key, value, format="float64", factor=2.0)
    head, tail = slice(0, first), slice(first, None)
    _, cache = run(*(x[:, :, head] for x in (query, key, value)), causal=causal)
    before = cache.state.copy()
    output, _ = run(*(x[:, :, tail] for x in (query, key, value)), causal=causal, state=cache.state)
    assert (cache.state == before).all()
    assert_within(output, truth[:, :, tail], bound[:, :, tail], "continued")
    tensors = [torch.from_numpy(x) for x in (query, key, value)]
    _, state = twin.linear_attention(*(x[:, :, head] for x in tensors), causal=causal)
    before = state.clone()
    theirs, _ = twin.linear_attention(*(x[:, :, tail] for x in tensors), causal=causal, state=state)
    assert torch.equal(state, before)
    assert_within(theirs.numpy(), truth[:, :, tail], bound[:, :, tail], "continued, twin")


@pytest.mark.parametrize("far", [-300.0, -20.0, 800.0])
@pytest.mark.parametrize("causal", [False, True])
def test_features_far_from_0(far, causal):
    """Of equal keys the weights are equal, however small or large; and no gradient is lost to inf."""
    x, value = np.full((1, 1, 3, 2), far), np.full((1, 1, 3, 2), 2.0)
    output, cache = spec.linear_attention_forward(x, x, value, causal=causal)
    gradients = spec.linear_attention_backward(np.ones_like(output), cache)
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, x, value)]
    theirs, _ = twin.linear_attention(*tensors, causal=causal)
    theirs.sum().backward()
    for found in (output, theirs.detach().numpy()):
        assert (found == 2).all()
    assert all(np.isfinite(found).all() for found in (*gradients, *(t.grad.numpy() for t in tensors)))


def test_what_continues_a_state_has_no_backward():
    x = np.ones((1, 1, 3, 2))
    output, cache = spec.linear_attention_forward(x, x, x, causal=True)
    spec.linear_attention_backward(output, cache)
    output, cache = spec.linear_attention_forward(x, x, x, causal=True, state=cache.state)
    with pytest.raises(AssertionError, match="continues a state has no backward"):
        spec.linear_attention_backward(output, cache)


def test_what_padding_holds_is_never_seen():
    generator = np.random.default_rng(0)
    query, key, value, d_output = generator.standard_normal((4, 2, 1, 5, 3))
    mask = (np.arange(5) < np.array([3, 0])[:, None])[:, None, None, :]
    results = []
    for garbage in (0.0, np.nan, np.inf):
        dirty = [np.where(mask.swapaxes(-1, -2), x, garbage) for x in (key, value)]
        output, cache = spec.linear_attention_forward(query, *dirty, mask)
        tensors = [torch.tensor(x, requires_grad=True) for x in (query, *dirty)]
        theirs, _ = twin.linear_attention(*tensors, torch.from_numpy(mask))
        theirs.backward(torch.from_numpy(d_output))
        gradients = spec.linear_attention_backward(d_output, cache)
        results.append([output, *gradients, theirs.detach().numpy(), *(t.grad.numpy() for t in tensors)])
    for clean, *others in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        assert all((clean == other).all() for other in others)
        assert (clean[1] == 0).all()  # the sequence of nothing but padding


def test_a_mask_of_pairs_is_refused():
    x, mask = np.zeros((1, 1, 3, 2)), np.ones((3, 3), bool)
    message = r"mask: expected one over keys, \(B, H, 1, S\), got \(3, 3\)"
    with pytest.raises(ValueError, match=message):
        spec.linear_attention_forward(x, x, x, mask)
    with pytest.raises(ValueError, match=message):
        twin.linear_attention(*[torch.from_numpy(x)] * 3, torch.from_numpy(mask))


def test_errors():
    x, y = np.zeros((1, 1, 3, 2)), np.zeros((1, 1, 5, 2))
    for arguments, causal, message in (
        ((x, y, y), True, "key: expected as many as there are queries, 3, got 5"),
        ((x, y, x), False, r"value: expected shape \(B, H, S, K\) = \(1, 1, 5, 2\), got \(1, 1, 3, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            spec.linear_attention_forward(*arguments, causal=causal)
        with pytest.raises(ValueError, match=message):
            twin.linear_attention(*map(torch.from_numpy, arguments), causal=causal)
