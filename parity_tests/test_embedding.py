"""Embedding: spec and twin, with repeated, absent and no tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, integers, seeds, sizes
from reference_numpy.embedding import embedding_backward, embedding_forward
from torch_impl.embedding import embedding


@given(st.data(), sizes(), sizes(), sizes(1), sizes(), seeds)
def test_parity(data, rows, columns, vocabulary, width, seed):
    tokens = data.draw(integers((rows, columns), 0, vocabulary - 1))
    weight = data.draw(arrays((vocabulary, width)))
    check_operation(
        "embedding",
        embedding_forward,
        embedding_backward,
        embedding,
        {"tokens": tokens, "weight": weight},
        dtypes=("float64", "float32", "bfloat16"),
        seed=seed,
    )


@pytest.mark.parametrize("token", [-1, 5])
def test_token_out_of_range(token):
    with pytest.raises(ValueError, match=f"tokens: expected 0 to 4, got {token} to {token}"):
        embedding_forward(np.array([token]), np.zeros((5, 2)))
    with pytest.raises(IndexError):
        embedding(torch.tensor([token]), torch.zeros((5, 2)))


def test_tokens_above_a_byte_are_not_mixed_up():
    _, cache = embedding_forward(np.array([1, 257, 1]), np.zeros((300, 1)))
    gradient = embedding_backward(np.array([[1.0], [10.0], [100.0]]), cache)
    assert gradient[[1, 257]].tolist() == [[101], [10]]
    assert gradient.sum() == 111


def test_tokens_may_lie_in_any_order_in_memory():
    tokens = np.arange(6).reshape(3, 2).T
    _, cache = embedding_forward(tokens, np.zeros((6, 1)))
    d_output = np.arange(6.0).reshape(2, 3, 1)
    gradient = embedding_backward(d_output, cache)
    assert all(gradient[tokens[place]] == d_output[place] for place in np.ndindex(2, 3))


@pytest.mark.parametrize("tokens", [np.array([True, False]), np.array([0.0, 1.0])], ids=["bool", "float"])
def test_what_is_no_integer_is_refused(tokens):
    """A bool array would choose rows instead of looking them up."""
    with pytest.raises(ValueError, match=f"tokens: expected integers, got {tokens.dtype}"):
        embedding_forward(tokens, np.zeros((2, 3)))
    with pytest.raises(RuntimeError):
        embedding(torch.from_numpy(tokens), torch.zeros((2, 3)))
