"""Cross-entropy, in nats per token."""

from typing import NamedTuple

import numpy as np

IGNORE = -1  # a target that does not count: padding, or a token that was not masked out


class CrossEntropyCache(NamedTuple):
    """Probabilities (recomputing them costs an exponential each), targets, and what the mean was divided by."""

    probabilities: np.ndarray
    targets: np.ndarray
    label_smoothing: float
    divisor: int


def cross_entropy_forward(
    logits: np.ndarray, targets: np.ndarray, label_smoothing: float = 0.0, count: int | None = None
) -> tuple[np.ndarray, CrossEntropyCache]:
    """loss = 1/count sum_n sum_v -q[n, v] log softmax(logits[n])[v], with q = (1 - e) onehot(target) + e/V.

    Shapes: logits (..., V), targets (...) integers; a target of -1 is ignored. Units: nats per token that counts.
    `count` defaults to the number of targets that count; give it to sum one batch from several parts. With no target that
    counts the loss is 0 and so is its gradient. Label smoothing e spreads over all V symbols, the right one too (Szegedy et
    al. 2016, section 7), so V = 1 and 2 need no special case. Raises ValueError for targets that are no integers, of another
    shape or out of range, and for an e outside [0, 1).
    """
    vocabulary = logits.shape[-1]
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets: expected shape {logits.shape[:-1]}, that of the logits without V, got {targets.shape}")
    if targets.dtype.kind not in "iu":
        raise ValueError(f"targets: expected integers, got {targets.dtype}")
    if targets.size and not (IGNORE <= targets.min() and targets.max() < vocabulary):
        raise ValueError(f"targets: expected {IGNORE} to {vocabulary - 1}, got {targets.min()} to {targets.max()}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected at least 0 and below 1, got {label_smoothing}")
    counted = targets != IGNORE
    count = int(counted.sum()) if count is None else count

    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponential = np.exp(shifted)
    total = exponential.sum(axis=-1, keepdims=True)
    log_total = np.log(total)[..., 0]  # (...)
    of_target = np.take_along_axis(shifted, np.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    nats = log_total - of_target  # (...): -log softmax at the target
    if label_smoothing > 0:
        nats = (1 - label_smoothing) * nats + label_smoothing * (log_total - shifted.mean(axis=-1))
    divisor = max(count, 1)
    loss = np.where(counted, nats, 0).sum() / divisor
    return loss, CrossEntropyCache(exponential / total, targets, label_smoothing, divisor)


def cross_entropy_backward(d_loss: np.ndarray | float, cache: CrossEntropyCache) -> np.ndarray:
    """Gradient of the logits.

    -log softmax(z)[v] = log sum_j exp(z_j) - z_v has the derivative p - onehot(v); q sums to 1, so the mixture has p - q:
      dL/dz[n] = (p[n] - q[n]) / count where target n counts, 0 where it is ignored.
    """
    probabilities, targets, label_smoothing, divisor = cache
    vocabulary = probabilities.shape[-1]
    at_target = targets[..., None] == np.arange(vocabulary)
    difference = np.where(at_target, probabilities - (1 - label_smoothing), probabilities) - label_smoothing / vocabulary
    d_logits = difference * (d_loss / divisor)
    return np.where((targets != IGNORE)[..., None], d_logits, 0)
