"""Cross-entropy, in nats per token."""

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_numpy.loss import IGNORE


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, count: int | None = None) -> Tensor:
    """Mean cross-entropy over the targets that are not -1, or their sum over `count`; 0 if no target counts.

    Shapes: logits (..., V), targets (...) integers. torch's mean would be NaN where no target counts, hence the sum.
    """
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets: expected shape {tuple(logits.shape[:-1])}, that of the logits without V, got {tuple(targets.shape)}"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected at least 0 and below 1, got {label_smoothing}")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"targets: expected integers, got {targets.dtype}")
    targets = targets.long()  # torch takes no other integers, and as a byte -1 would be 255
    total = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        targets.reshape(-1),
        ignore_index=IGNORE,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / ((targets != IGNORE).sum().clamp(min=1) if count is None else max(count, 1))
