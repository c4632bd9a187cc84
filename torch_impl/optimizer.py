"""AdamW, Muon, and clipping by the global norm."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference_numpy.optimizer import NEWTON_SCHULZ, is_hidden_matrix
from reference_numpy.parameters import Parameters
from torch_impl.parameters import as_numpy, as_tensor, divided, own_part, whole

Named = nn.Module | Mapping[str, nn.Parameter]  # a model, or some of its parameters by flat name


def adamw(
    model: Named,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """torch's AdamW, the same update as the spec's, fused where the device can do so; only matrices decay."""
    parameters = _named(model)
    return torch.optim.AdamW(
        _decay_groups(parameters.values(), weight_decay),
        lr=learning_rate,
        betas=(beta1, beta2),
        eps=epsilon,
        fused=all(parameter.device.type in ("cpu", "cuda", "mps") for parameter in parameters.values()),
    )


def _named(model: Named) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters() if isinstance(model, nn.Module) else model)


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
    if not gradients:
        return torch.zeros(())
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    torch._foreach_mul_([own_part(g) for g in gradients], torch.where(norm <= maximum, 1.0, maximum / norm))
    return norm


def export_state(model: Named, optimizer: torch.optim.Optimizer) -> tuple[int, Parameters, Parameters]:
    """Steps taken, and the running means of gradient and square by flat name: the spec's AdamWState."""
    first, second, step = {}, {}, 0
    for name, parameter in _named(model).items():
        state = optimizer.state.get(parameter, {})
        first[name] = as_numpy(state.get("exp_avg", torch.zeros_like(parameter)))
        second[name] = as_numpy(state.get("exp_avg_sq", torch.zeros_like(parameter)))
        step = max(step, int(state.get("step", 0)))  # one that never had a gradient has taken none
    return step, first, second


def import_state(model: Named, optimizer: torch.optim.Optimizer, step: int, first: Parameters, second: Parameters) -> None:
    """The inverse of export_state, in each parameter's dtype and on its device. There is one count of steps: a parameter
    that has had no gradient yet goes on as if it had."""
    for name, parameter in _named(model).items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            "exp_avg": as_tensor(first[name], parameter),
            "exp_avg_sq": as_tensor(second[name], parameter),
        }


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for the matrices inside the blocks; see the spec. All other parameters are for `adamw`.

    Matrices of one shape are orthogonalised together, as one batch of products, in `dtype`; None for their own. `compiled`
    is for a GPU, where small matrices take less time than starting the kernels for them.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype
        self._newton_schulz = torch.compile(newton_schulz, dynamic=False) if compiled else newton_schulz

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch declares overloads
        """Update the parameters; a closure computes loss and gradients first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, weights in by_shape.items():
                momenta = [self._momentum(weight) for weight in weights]
                gradients: list[Tensor] = [weight.grad for weight in weights if weight.grad is not None]
                torch._foreach_mul_(momenta, group["momentum"])
                torch._foreach_add_(momenta, gradients)
                nesterov = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
                # Of a matrix that is held in parts every process orthogonalises the whole and keeps its own part.
                stacked = torch.stack([whole(matrix) for matrix in nesterov])
                together = self._newton_schulz(stacked, dtype=self._dtype).unbind()
                updates = [divided(update, weight) for update, weight in zip(together, weights, strict=True)]
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, updates, alpha=-group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1])))
        return loss

    def export_state(self, model: Named) -> Parameters:
        """The momentum of each of its matrices by flat name."""
        own = self._own(model)
        return {name: as_numpy(self._momentum(weight)) for name, weight in own.items()}

    def import_state(self, model: Named, momentum: Parameters) -> None:
        """The inverse of export_state."""
        for name, weight in self._own(model).items():
            self.state[weight] = {"momentum": as_tensor(momentum[name], weight)}

    def _own(self, model: Named) -> dict[str, nn.Parameter]:
        own = {id(weight) for group in self.param_groups for weight in group["params"]}
        return {name: weight for name, weight in _named(model).items() if id(weight) in own}

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        return momentum


def newton_schulz(g: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Move the singular values of a batch of matrices (N, O, I) towards 1 and keep their singular vectors.

    The products are taken in `dtype`. Its authors use bfloat16: the range is the same, and what is small beside the largest
    singular value is then partly rounding.
    """
    a, b, c = NEWTON_SCHULZ
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    largest = x.abs().amax(dim=(-2, -1), keepdim=True)
    x = x / torch.where(largest == 0, 1, largest)
    norm = x.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    x = (x / torch.where(norm == 0, 1, norm)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + polynomial x
    x = x.to(g.dtype)
    return x.mT if tall else x


def hidden_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that Muon takes, by flat name: the spec's rule."""
    return {name: p for name, p in model.named_parameters() if is_hidden_matrix(name, p)}
