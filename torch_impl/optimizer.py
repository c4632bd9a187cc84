"""AdamW, Muon, and clipping by the global norm."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference_numpy.parameters import Parameters
from torch_impl.parameters import as_numpy


def adamw(
    model: nn.Module,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """torch's AdamW, the same update as the spec's, in one fused kernel where the device has it; only matrices decay."""
    return torch.optim.AdamW(
        _decay_groups(model.parameters(), weight_decay),
        lr=learning_rate,
        betas=(beta1, beta2),
        eps=epsilon,
        fused=next(model.parameters()).device.type in ("cpu", "cuda", "mps"),
    )


def _decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, which decay, and vectors, which do not."""
    everything = list(parameters)
    groups = (
        {"params": [p for p in everything if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def clip_gradients(parameters: Iterable[Tensor], maximum: float) -> Tensor:
    """Scale all gradients in place so that their joint Euclidean norm is at most `maximum`; return the norm before.

    torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm; this does not, so that both twins take the same step.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, torch.where(norm > maximum, maximum / norm, 1.0))
    return norm


def export_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Parameters, Parameters]:
    """Steps taken, and the running means of gradient and square by flat name: the spec's AdamWState."""
    first, second, step = {}, {}, 0
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        first[name] = as_numpy(state.get("exp_avg", torch.zeros_like(parameter)))
        second[name] = as_numpy(state.get("exp_avg_sq", torch.zeros_like(parameter)))
        step = int(state.get("step", 0))
    return step, first, second


def import_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, first: Parameters, second: Parameters
) -> None:
    """The inverse of export_state, in each parameter's dtype and on its device."""
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            "exp_avg": torch.from_numpy(np.array(first[name])).to(parameter),
            "exp_avg_sq": torch.from_numpy(np.array(second[name])).to(parameter),
        }
