"""Learning rates as pure functions of the step; steps count from 0.

Every function returns the rate of update number `step`. A warm-up of `warmup` steps climbs in equal parts,
`peak * (step + 1) / (warmup + 1)`, so the first update is not wasted on a rate of 0 and the peak comes right after; that of
noam, which is the paper's, has its peak at its last step.
"""

from __future__ import annotations

import math

from train.configuration import TrainConfig


def constant(step: int, *, peak: float, warmup: int = 0) -> float:
    """The peak rate, after the warm-up."""
    return peak * _climb(step, warmup)


def cosine(step: int, *, peak: float, minimum: float, warmup: int, steps: int) -> float:
    """Warm-up, then half a cosine from `peak` to `minimum`, reached at `steps` (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup:
        return peak * _climb(step, warmup)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))


def noam(step: int, *, width: int, warmup: int, factor: float = 1.0) -> float:
    """`factor * width^-0.5 * min(s^-0.5, s * warmup^-1.5)` with s = step + 1 (Attention Is All You Need, eq. 3)."""
    s = step + 1
    return factor * width**-0.5 * min(s**-0.5, s * max(1, warmup) ** -1.5)


def stable_decay(step: int, *, peak: float, minimum: float, warmup: int, steps: int, decay: int) -> float:
    """Warm-up, a plateau at `peak`, a straight line to `minimum` over the last `decay` steps (Hu et al. 2024, section 4,
    who take an exponential)."""
    if step < warmup:
        return peak * _climb(step, warmup)
    if decay == 0:
        return peak
    progress = min(1.0, max(0.0, (step - (steps - decay)) / decay))
    return peak + (minimum - peak) * progress


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of update number `step` under the options of a run.

    A warm-up longer than the run takes all of it, and the decay of `stable_decay` at most what the warm-up leaves."""
    peak, minimum, steps = config.learning_rate, config.minimum_learning_rate, config.steps
    warmup = min(config.warmup, steps)
    match config.schedule:
        case "constant":
            return constant(step, peak=peak, warmup=warmup)
        case "cosine":
            return cosine(step, peak=peak, minimum=minimum, warmup=warmup, steps=steps)
        case "noam":
            return noam(step, width=config.model.width, warmup=config.warmup, factor=peak)
        case "stable_decay":
            decay = min(config.decay, steps - warmup)
            return stable_decay(step, peak=peak, minimum=minimum, warmup=warmup, steps=steps, decay=decay)


def _climb(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / (warmup + 1))
