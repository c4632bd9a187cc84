"""The split and its windows: what is predicted, how often, and that nothing leaks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data import Split, covering_batches, frequency_losses, random_batch, sampled_batches, split_tokens


def test_split_is_nanogpts():
    assert len(split_tokens(np.zeros(1_115_394, np.int64), 0.1, 64).training) == 1_003_854


@given(st.integers(1, 10_000), st.sampled_from([0.1, 0.2, 0.3, 0.05]))
def test_split_cuts_once_and_loses_nothing(blocks, fraction):
    tokens = np.arange(blocks * 100)
    split = split_tokens(tokens, fraction, 1)
    assert (np.concatenate(split) == tokens).all()
    assert len(split.validation) == round(len(tokens) * fraction)


@pytest.mark.parametrize("length", [0, 1, 50, 100, 109])
def test_context_that_does_not_fit_is_an_error(length):
    with pytest.raises(ValueError, match="context: expected fewer characters than the"):
        split_tokens(np.zeros(length, np.int64), 0.1, 11)


def test_random_windows_reach_every_start_and_targets_follow():
    tokens = np.arange(23)
    batch = random_batch(tokens, 19, 500, np.random.default_rng(0))
    assert batch.tokens.shape == batch.targets.shape == (500, 19)
    assert (batch.targets == batch.tokens + 1).all()
    assert set(batch.tokens[:, 0]) == {0, 1, 2, 3}  # the last window ends with the last token as a target


@given(st.integers(2, 200), st.integers(1, 30), st.integers(1, 12))
def test_cover_predicts_every_token_but_the_first_once(length, context, sequences):
    tokens = np.arange(length)
    batches = list(covering_batches(tokens, context, sequences))
    assert np.concatenate([batch.targets.ravel() for batch in batches]).tolist() == list(range(1, length))
    assert all((batch.targets == batch.tokens + 1).all() for batch in batches)
    assert all(batch.tokens.shape[0] <= sequences and batch.tokens.shape[1] <= context for batch in batches)


@given(st.integers(1, 12), st.integers(1, 12))
def test_windows_of_the_cover_do_not_depend_on_the_batch(first, second):
    tokens = np.arange(97)
    windows = [[row.tolist() for batch in covering_batches(tokens, 7, n) for row in batch.tokens] for n in (first, second)]
    assert windows[0] == windows[1]


@given(st.integers(1, 200), st.integers(1, 12))
def test_sample_has_distinct_windows_of_the_cover_and_enough_of_them(characters, sequences):
    tokens = np.arange(100)
    batches = sampled_batches(tokens, 9, sequences, characters, np.random.default_rng(1))
    starts = np.concatenate([batch.tokens[:, 0] for batch in batches])
    assert len(set(starts)) == len(starts)
    assert (starts % 9 == 0).all()
    assert len(starts) * 9 >= min(characters, 99)
    assert (len(starts) - 1) * 9 < characters  # and no more than enough


def test_frequencies_alone_reach_so_much():
    """By hand: the training split abab, the validation split aba; counts start at 1."""
    split = Split(np.array([0, 1, 0, 1]), np.array([0, 1, 0]))
    losses = frequency_losses(split, 2)
    unigram = [1 + 1, 1 + 2]  # of a and of b as the second of a pair
    pairs = {(0, 1): 1 + 2, (1, 0): 1 + 1, (0, 0): 1, (1, 1): 1}
    assert losses["unigram"] == pytest.approx(-np.mean(np.log([unigram[1] / 5, unigram[0] / 5])), rel=1e-14)
    chances = [pairs[0, 1] / (pairs[0, 0] + pairs[0, 1]), pairs[1, 0] / (pairs[1, 0] + pairs[1, 1])]
    assert losses["bigram"] == pytest.approx(-np.mean(np.log(chances)), rel=1e-14)
