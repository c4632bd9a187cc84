"""Arrays and bundles in one row: every number in its place, and an update that is the optimizer's on each array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from reference_numpy.optimizer import adamw_initial, adamw_step, muon_initial, muon_step
from reference_numpy.parameters import initialize
from train import bundles
from train.benchmarks.contenders import SHAPES
from train.bundles import Bundles
from train.numpy_backend import NumpyBackend

SHAPE = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@given(st.lists(st.tuples(SHAPE, st.booleans()), max_size=8), st.integers(1, 20))
def test_every_number_is_in_its_place(drawn, size):
    generator = np.random.default_rng(0)
    arrays = {f"array {i}": generator.normal(size=shape) for i, (shape, _) in enumerate(drawn)}
    own = {f"array {i}" for i, (_, alone) in enumerate(drawn) if alone}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "SIZE", size)
        together = Bundles(arrays, own)
    assert together.size == sum(array.size for array in arrays.values())
    row = np.full(together.size, np.nan)
    named, joined = together.arrays(row), together.bundles(row)
    assert list(named) == list(arrays)
    for name, array in named.items():
        array[...] = arrays[name]  # of the same shape; no number has two places, or none
    assert all((array == arrays[name]).all() and array.shape == arrays[name].shape for name, array in named.items())
    assert (np.concatenate([np.zeros(0), *(bundle.reshape(-1) for bundle in joined.values())]) == row).all()
    assert [name for name in joined if name in own] == [name for name in arrays if name in own]  # the same in every process
    assert all(joined[name].shape == arrays[name].shape for name in own)
    for name, bundle in joined.items():  # as a whole a matrix where its arrays are, and not much larger than asked for
        assert (bundle.ndim >= 2) == (arrays[name].ndim >= 2)
        assert bundle.size < size + max(array.size for array in arrays.values())
        assert np.shares_memory(bundle, named[name])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_update_is_the_optimizers_on_every_array(monkeypatch, optimizer):
    """To the last bit, over steps and through a state that goes out and in."""
    monkeypatch.setattr(bundles, "SIZE", 200)
    shape, seed = SHAPES["tiny"], np.random.default_rng
    own = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6, "weight_decay": 0.1}
    options = shape.options(backend="numpy", optimizer=optimizer, clip_norm=0.0, learning_rate=1e-2, **own)
    expected = initialize(options.model, seed(0))
    with threadpool_limits(1, user_api="blas"):  # two threads add up in another order
        backend = NumpyBackend(options.model, expected, options, seed(0))
        again = NumpyBackend(options.model, initialize(options.model, seed(1)), options, seed(0))
    assert len(backend._bundles.bundles(np.zeros(backend._bundles.size))) > 2
    state = (adamw_initial if optimizer == "adamw" else muon_initial)(expected)
    for step in range(4):
        batch, gradients = shape.random_batch(step), backend.gradients(shape.random_batch(step))
        if optimizer == "adamw":
            expected, state = adamw_step(expected, gradients, state, 1e-2, **own)
        else:
            rate = options.adamw_learning_rate
            expected, state = muon_step(expected, gradients, state, 1e-2, rate, options.momentum, **own)
        backend.gradient_step([batch], 1e-2)
        got = backend.parameters()
        assert list(got) == list(expected)
        assert all((got[name] == expected[name]).all() for name in expected)
        again.import_state(*backend.export_state())
        backend, again = again, backend
