"""Cross-entropy: spec, twin and complex step; ignored targets, smoothing, one symbol, parts of a batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.bounds import bound_of
from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, integers, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy.loss import cross_entropy_backward, cross_entropy_forward
from torch_impl.loss import cross_entropy

smoothings = st.sampled_from([0.0, 0.1, 0.9])


@given(
    st.data(),
    sizes(),
    sizes(),
    sizes(1, 11),
    smoothings,
    st.sampled_from([None, 1, 17]),
    st.sampled_from([1.0, 30.0, 1e4]),
    seeds,
)
def test_parity(data, B, T, V, smoothing, count, magnitude, seed):
    logits = data.draw(arrays((B, T, V), magnitude))
    targets = data.draw(integers((B, T), -1, V - 1))

    def backward(d_loss, cache):
        return cross_entropy_backward(d_loss, cache), None, None, None

    arguments = {"logits": logits, "targets": targets, "label_smoothing": smoothing, "count": count}
    check_operation(
        "cross_entropy",
        cross_entropy_forward,
        backward,
        cross_entropy,
        arguments,
        dtypes=("float64", "float32", "bfloat16"),
        seed=seed,
    )


@given(st.data(), sizes(1), sizes(1, 11), smoothings)
def test_against_the_definition(data, N, V, smoothing):
    """-sum_v q_v log p_v, written out."""
    logits, targets = data.draw(arrays((N, V))), data.draw(integers((N,), 0, V - 1))
    loss, bound = bound_of(lambda x: cross_entropy_forward(x, targets, smoothing)[0], logits, format="float64")
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_total = math.log(math.fsum(math.exp(z) for z in row))
        expected += sum(-((1 - smoothing) * (v == target) + smoothing / V) * (z - log_total) for v, z in enumerate(row)) / N
    # the definition written out in double rounds about as often as the spec, without its shift: twice the bound and an ulp
    # of the largest term
    assert_within(expected, loss, 2 * bound + 8 * np.spacing(np.abs(logits).max() + 1), "cross-entropy")


@given(st.data(), sizes(1), sizes(1), seeds)
def test_ignored_targets_do_not_count(data, N, V, seed):
    generator = np.random.default_rng(seed)
    logits, targets = generator.standard_normal((N, V)), generator.integers(0, V, N)
    more = np.concatenate((logits, generator.standard_normal((3, V)) * 100))
    padded = np.concatenate((targets, [-1, -1, -1]))
    loss, cache = cross_entropy_forward(logits, targets, 0.1)
    padded_loss, padded_cache = cross_entropy_forward(more, padded, 0.1)
    truth, bound = bound_of(lambda x: cross_entropy_forward(x, targets, 0.1)[0], logits, format="float64")
    assert_within(padded_loss, truth, bound, "padded loss")
    assert_within(loss, truth, bound, "loss")
    d_padded = cross_entropy_backward(1.0, padded_cache)
    assert (d_padded[N:] == 0).all()
    assert (d_padded[:N] == cross_entropy_backward(1.0, cache)).all()


@pytest.mark.parametrize("V", [1, 2])
def test_nothing_counts(V):
    logits, targets = np.ones((2, 3, V)), np.full((2, 3), -1)
    loss, cache = cross_entropy_forward(logits, targets, 0.1)
    assert loss == 0
    assert (cross_entropy_backward(1.0, cache) == 0).all()
    tensor = torch.ones(2, 3, V, requires_grad=True)
    cross_entropy(tensor, torch.from_numpy(targets), 0.1).backward()
    assert (tensor.grad == 0).all()
    assert cross_entropy_forward(logits, targets, count=0)[0] == 0
    assert cross_entropy(tensor, torch.from_numpy(targets), count=0) == 0


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "uint32"])
def test_targets_may_be_integers_of_any_kind(dtype):
    """Byte 255 is a target, not -1; and with more symbols than bytes no other symbol is mistaken for it."""
    targets = np.array([255, 3, 7] if dtype != "int8" else [127, 3, 7]).astype(dtype)
    logits = np.random.default_rng(0).standard_normal((3, 600))
    widened, tensor = targets.astype(np.int64), torch.from_numpy(logits)
    (loss, cache), (expected, of_widened) = (cross_entropy_forward(logits, own) for own in (targets, widened))
    assert loss == expected
    assert np.array_equal(cross_entropy_backward(1.0, cache), cross_entropy_backward(1.0, of_widened))
    assert cross_entropy(tensor, torch.from_numpy(targets)) == cross_entropy(tensor, torch.from_numpy(widened))
    for other in (torch.float64, torch.bool):
        with pytest.raises(ValueError, match=f"targets: expected integers, got {other}"):
            cross_entropy(tensor, torch.zeros(3, dtype=other))


def test_an_impossible_symbol_costs_nothing_where_it_is_no_target():
    """Its logit is -inf. With label smoothing, which wants every symbol, the loss is infinite."""
    logits, target = np.array([[0.5, 1.0, -np.inf]]), np.array([0])
    loss, cache = cross_entropy_forward(logits, target)
    tensor = torch.tensor(logits, requires_grad=True)
    theirs = cross_entropy(tensor, torch.from_numpy(target))
    theirs.backward()
    for found in (loss, theirs.item(), *cross_entropy_backward(1.0, cache)[0], *tensor.grad[0]):
        assert math.isfinite(found)
    assert cross_entropy_forward(logits, target, 0.1)[0] == math.inf
    assert cross_entropy(tensor, torch.from_numpy(target), 0.1) == math.inf


def test_logits_of_ignored_targets_are_not_read():
    """But for the gradient of torch's kernel, in which 0 times NaN is NaN."""
    logits, targets = np.array([[0.5, 1.0], [np.nan, np.inf]]), np.array([0, -1])
    with np.errstate(invalid="ignore"):
        loss, cache = cross_entropy_forward(logits, targets)
        gradient = cross_entropy_backward(1.0, cache)
    assert math.isfinite(loss)
    assert math.isfinite(cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)))
    assert np.isfinite(gradient[0]).all()
    assert (gradient[1] == 0).all()


def test_one_symbol_has_no_loss():
    loss, _ = cross_entropy_forward(np.array([[3.0], [-4.0]]), np.array([0, 0]), 0.1)
    assert loss == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.array([3])}, "targets: expected -1 to 2, got 3 to 3"),
        ({"targets": np.array([-2])}, "targets: expected -1 to 2, got -2 to -2"),
        ({"targets": np.array([0, 0])}, r"targets: expected shape \(1,\)"),
        ({"targets": np.array([0.0])}, "targets: expected integers, got float64"),
        ({"targets": np.array([True])}, "targets: expected integers, got bool"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected at least 0 and below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing: expected at least 0 and below 1, got -0.1"),
    ],
)
def test_errors(change, message):
    arguments = {"logits": np.zeros((1, 3)), "targets": np.array([0])} | change
    with pytest.raises(ValueError, match=message):
        cross_entropy_forward(**arguments)
    if "expected -1 to" not in message and "integers" not in message:  # these torch itself refuses
        tensors = {name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for name, a in arguments.items()}
        with pytest.raises(ValueError, match=message):
            cross_entropy(**tensors)
