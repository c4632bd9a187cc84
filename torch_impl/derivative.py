"""Backward passes of our own: where they stand in for torch's, and that they are for first derivatives alone."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

# Whether a transform of torch.func is at work: vmap, grad, jvp and so on. torch has no public name for it.
in_torch_func: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


# torch 2.11 says that it exports where it compiles, too; its flag is right there, but has no public name.
_BEFORE_212 = torch.__version__ < "2.12"


def exporting() -> bool:
    """Whether torch.export is at work."""
    return torch.compiler._is_exporting_flag if _BEFORE_212 else torch.compiler.is_exporting()


def own_backward() -> bool:
    """Whether a backward pass of our own is to be used: where a gradient is wanted, but not inside of torch.func and not in
    an export, which must see torch's own operations."""
    return torch.is_grad_enabled() and not in_torch_func() and not exporting()


def first_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a backward pass raise RuntimeError where its own derivative is wanted (create_graph=True).

    torch's once_differentiable gives a wrong second derivative in silence where the gradient that comes in is a constant."""

    @wraps(backward)
    def run(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("the twin's own backward passes are for first derivatives; for higher ones take torch.func")
        return backward(ctx, *gradients)

    return run
