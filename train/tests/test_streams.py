"""Random streams: separate, reproducible, and restored from JSON."""

import json

import numpy as np
import pytest

from train.streams import NAMES, export_state, import_state, stream, streams


def test_streams_differ_by_name_and_by_seed_and_repeat():
    draws = {(seed, name): stream(seed, name).integers(2**63) for seed in (0, 1) for name in NAMES}
    assert len(set(draws.values())) == len(draws)
    assert draws == {(seed, name): streams(seed)[name].integers(2**63) for seed in (0, 1) for name in NAMES}


def test_names_of_the_same_letters_differ():
    assert stream(0, "epoch 12").integers(2**63) != stream(0, "epoch 21").integers(2**63)


def test_drawing_from_one_leaves_the_others_as_they_are():
    disturbed, calm = streams(5), streams(5)
    disturbed["evaluation"].random(1000)
    assert {n: g.random() for n, g in calm.items() if n != "evaluation"} == {
        n: g.random() for n, g in disturbed.items() if n != "evaluation"
    }


def test_state_survives_json_to_the_bit():
    first = streams(3)
    for generator in first.values():
        generator.random(7, dtype=np.float32)  # leaves half a 64-bit draw in the buffer
    second = streams(4)
    import_state(second, json.loads(json.dumps(export_state(first))))
    for name in NAMES:
        assert (first[name].random(5, dtype=np.float32) == second[name].random(5, dtype=np.float32)).all()


@pytest.mark.parametrize("state", [{}, dict.fromkeys(NAMES), {name: {"bit_generator": "MT19937"} for name in NAMES}])
def test_a_state_that_does_not_fit_is_refused(state):
    with pytest.raises(ValueError, match="random stream 'initialization'"):
        import_state(streams(0), state)
