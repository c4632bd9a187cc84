"""Parameters in and out of the twin under the spec's flat names."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import Parameters, deviation


@torch.no_grad()
def initialize(module: nn.Module, config: ModelConfig, generator: torch.Generator | None = None) -> None:
    """Draw the initial parameters as the spec's `initialize` does, but from torch's stream, or from this one."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0 if name.endswith("bias") else 1)
        else:
            parameter.normal_(std=deviation(config, name), generator=generator)


def load_parameters(module: nn.Module, parameters: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into the module, in the module's dtype and on its device.

    Raises ValueError naming the first parameter that is missing, unknown or of another shape.
    """
    own = dict(module.named_parameters())
    for name in (*own, *parameters):
        if name not in own or name not in parameters:
            expected, got = ("none", "one") if name not in own else ("one", "none")
            raise ValueError(f"parameters: {name}: expected {expected} of this name, got {got}")
        if tuple(own[name].shape) != parameters[name].shape:
            raise ValueError(f"parameters: {name}: expected shape {tuple(own[name].shape)}, got {parameters[name].shape}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(as_tensor(parameters[name], parameter))


def parameters_as_numpy(module: nn.Module) -> Parameters:
    """Copies of all parameters; bfloat16, which NumPy lacks, and float16 become float32."""
    return {name: as_numpy(parameter) for name, parameter in module.named_parameters()}


def gradients_as_numpy(module: nn.Module) -> Parameters:
    """Copies of all gradients; a parameter that no loss has reached has gradient 0."""
    return {
        name: as_numpy(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        for name, parameter in module.named_parameters()
    }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may hold a part (FSDP); every process must ask at the same time."""
    return getattr(tensor, "full_tensor", lambda: tensor)()


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, sharing its memory."""
    return getattr(tensor, "to_local", lambda: tensor)()


def divided(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `whole`: the tensor, which every process has, held in parts as `like` is."""
    if type(like) in (torch.Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor  # imported late: it takes a while

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def as_tensor(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """A copy of the array with the dtype of `like`, where and as `like` is held."""
    return divided(torch.from_numpy(np.array(array)).to(like.dtype).to(like.device), like)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A copy of the tensor in NumPy."""
    tensor = whole(tensor.detach()).cpu()
    tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return tensor.numpy().copy()  # np.array(tensor) warns: torch does not take the copy argument of NumPy 2
