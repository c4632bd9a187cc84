"""Parameters in and out of the twin under the spec's flat names."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from reference_numpy.parameters import Parameters


def load_parameters(module: nn.Module, parameters: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into the module, in the module's dtype and on its device.

    Raises ValueError naming the first parameter that is missing, unknown or of another shape.
    """
    own = dict(module.named_parameters())
    for name in (*own, *parameters):
        if name not in own or name not in parameters:
            raise ValueError(f"parameters: expected the names of the module, got {name} in only one of the two")
        if tuple(own[name].shape) != parameters[name].shape:
            raise ValueError(f"parameters: {name}: expected shape {tuple(own[name].shape)}, got {parameters[name].shape}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(np.array(parameters[name])))


def parameters_as_numpy(module: nn.Module) -> Parameters:
    """Copies of all parameters; bfloat16, which NumPy lacks, becomes float32."""
    return {name: as_numpy(parameter) for name, parameter in module.named_parameters()}


def gradients_as_numpy(module: nn.Module) -> Parameters:
    """Copies of all gradients; a parameter that no loss has reached has gradient 0."""
    return {
        name: as_numpy(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        for name, parameter in module.named_parameters()
    }


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A copy of the tensor in NumPy."""
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return tensor.numpy().copy()  # np.array(tensor) warns: torch does not take the copy argument of NumPy 2
