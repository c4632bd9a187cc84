"""Learning rates: where they start, peak and end, and that they are the formulas of their papers."""

import math

import numpy as np
import pytest

from train.configuration import TrainConfig, from_mapping, train_config
from train.schedule import constant, cosine, learning_rate, noam, stable_decay

PEAK, MINIMUM, WARMUP, STEPS, DECAY = 3.0, 0.5, 7, 101, 23


@pytest.mark.parametrize(
    "rate",
    [
        lambda step: constant(step, peak=PEAK, warmup=WARMUP),
        lambda step: cosine(step, peak=PEAK, minimum=MINIMUM, warmup=WARMUP, steps=STEPS),
        lambda step: stable_decay(step, peak=PEAK, minimum=MINIMUM, warmup=WARMUP, steps=STEPS, decay=DECAY),
    ],
)
def test_warm_up_climbs_in_equal_parts_to_the_peak(rate):
    climb = [rate(step) for step in range(WARMUP + 1)]
    assert climb == pytest.approx([PEAK * (step + 1) / (WARMUP + 1) for step in range(WARMUP + 1)], rel=1e-15)
    assert climb[-1] == PEAK


def test_cosine_falls_from_peak_to_minimum_and_stays():
    rates = [cosine(step, peak=PEAK, minimum=MINIMUM, warmup=WARMUP, steps=STEPS) for step in range(STEPS + 5)]
    assert (np.diff(rates[WARMUP : STEPS + 1]) < 0).all()
    assert rates[(WARMUP + STEPS) // 2] == (PEAK + MINIMUM) / 2  # the middle of half a cosine
    assert rates[STEPS:] == [MINIMUM] * 5


def test_noam_peaks_where_its_branches_meet():
    width, warmup = 512, 4000
    rates = [noam(step, width=width, warmup=warmup) for step in range(3 * warmup)]
    assert int(np.argmax(rates)) == warmup - 1
    assert rates[warmup - 1] == pytest.approx(1 / math.sqrt(width * warmup), rel=1e-15)
    assert rates[0] == pytest.approx(width**-0.5 * warmup**-1.5, rel=1e-15)


def test_stable_decay_holds_the_peak_then_falls_in_a_straight_line():
    rates = [
        stable_decay(step, peak=PEAK, minimum=MINIMUM, warmup=WARMUP, steps=STEPS, decay=DECAY) for step in range(STEPS + 1)
    ]
    assert rates[WARMUP : STEPS - DECAY + 1] == [PEAK] * (STEPS - DECAY + 1 - WARMUP)
    assert np.diff(rates[STEPS - DECAY :]) == pytest.approx((MINIMUM - PEAK) / DECAY, rel=1e-12)
    assert rates[STEPS] == MINIMUM
    assert stable_decay(STEPS, peak=PEAK, minimum=MINIMUM, warmup=0, steps=STEPS, decay=0) == PEAK


def test_a_run_shorter_than_its_decay_falls_all_the_way():
    options = {"schedule": "stable_decay", "steps": 20, "warmup": 0, "minimum_learning_rate": 0.0, "learning_rate": 1.0}
    rates = {
        decay: [learning_rate(from_mapping(TrainConfig, options | {"decay": decay}, "test"), step) for step in range(21)]
        for decay in (20, 328)
    }
    assert rates[328] == rates[20]
    assert rates[20][0] == 1.0
    assert rates[20][-1] == 0.0


@pytest.mark.parametrize("name", ["constant", "cosine", "noam", "stable_decay"])
def test_every_schedule_can_be_chosen_and_has_no_step_of_rate_zero(name):
    config = from_mapping(TrainConfig, {"schedule": name, "steps": 50, "warmup": 5, "decay": 10}, "test")
    assert all(0 < learning_rate(config, step) <= config.learning_rate for step in range(50))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda step: constant(step, peak=PEAK, warmup=WARMUP)),
        ("cosine", lambda step: cosine(step, peak=PEAK, minimum=MINIMUM, warmup=WARMUP, steps=STEPS)),
        ("noam", lambda step: noam(step, width=48, warmup=WARMUP, factor=PEAK)),
        (
            "stable_decay",
            lambda step: stable_decay(step, peak=PEAK, minimum=MINIMUM, warmup=WARMUP, steps=STEPS, decay=DECAY),
        ),
    ],
)
def test_every_option_reaches_its_formula(name, formula):
    rates = {"learning_rate": PEAK, "minimum_learning_rate": MINIMUM, "warmup": WARMUP, "steps": STEPS, "decay": DECAY}
    config = train_config({"schedule": name, "width": 48, "heads": 4, **rates}, "test")
    assert [learning_rate(config, step) for step in range(STEPS)] == [formula(step) for step in range(STEPS)]
