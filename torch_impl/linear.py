"""The linear layer, y = x W^T + b."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from torch_impl.derivative import exporting, first_derivative, in_torch_func


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Shapes: x (..., I), weight (O, I), bias (O,) or None; output (..., O)."""
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: expected a last axis of {weight.shape[1]}, the weight's input width, got {x.shape[-1]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape ({len(weight)},), the weight's output width, got {tuple(bias.shape)}")
    if torch.compiler.is_compiling() and not exporting() and _is_one_row(x):
        return _one_row(x, weight, bias)
    if _onednn_is_quicker(x, weight):
        if torch.is_grad_enabled():
            return _OneDNNLinear.apply(x, weight, bias)
        return _product(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Module):
    """A linear layer with its parameters, not initialised: the model does that."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def is_plain(layer: nn.Module) -> TypeGuard[Linear]:
    """Whether x W^T + b is all that a call of the layer does, so that its parameters may be used without the call: nothing
    was put in its place (as for LoRA or pruning) or in that of its forward, nobody listens to it or to all modules."""
    listeners = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    itself = type(layer) is Linear and "forward" not in layer.__dict__
    return itself and not any(listeners) and not _has_any_global_hook()


def are_joinable(layers: Sequence[nn.Module]) -> TypeGuard[Sequence[Linear]]:
    """Whether one product can stand for those of several layers: all are plain, and all of them have a bias or none."""
    return all(map(is_plain, layers)) and len({layer.bias is None for layer in layers}) == 1


class PackedLinear(nn.Module):
    """Linear layers of one input x as one, for decoding only: their outputs behind each other. Decoding a token reads every
    weight once and does little else, so the weights lie ready: side by side, and for bfloat16, which halves what is read,
    in the order in which oneDNN wants them. There x, weight and bias are rounded to bfloat16, and so is the output, in
    the format of x."""

    def __init__(self, layers: Sequence[Linear], bfloat16: bool, compiled: bool = False) -> None:
        super().__init__()
        weight = _concatenated([layer.weight for layer in layers])
        bias = _concatenated([layer.bias for layer in layers if layer.bias is not None])
        assert weight is not None
        self.in_bfloat16 = bfloat16
        if bfloat16:
            weight, bias = weight.bfloat16(), None if bias is None else bias.bfloat16()
        on_cpu = weight.device.type == "cpu" and ONEDNN is not None
        ordered = bfloat16 and on_cpu and not compiled  # the compiler reads them as they are
        self.packed = ordered and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1) if self.packed else weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (..., I), output (..., the sum of all O)."""
        if not self.in_bfloat16:
            return linear(x, self.weight, self.bias)
        return (_onednn if self.packed else linear)(x.bfloat16(), self.weight, self.bias).to(x.dtype)


def _is_one_row(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.shape[:-1].numel() == 1


def _one_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b for a single row x, as a sum that the compiler makes in one pass over the weight, on all cores: in half the
    time of the libraries' products, which are made for many rows. As they do, it sums bfloat16 in float32."""
    exact = torch.promote_types(x.dtype, torch.float32)
    row = x.reshape(-1).contiguous()
    row = row.as_strided(row.shape, (1,))  # itself; else the compiler makes it anew for every number of the output
    y = (weight.to(exact) * row.to(exact)).sum(dim=-1)
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _concatenated(parts: list[Tensor]) -> Tensor | None:
    """The parts (O, ...) as one, without their history; a single one is not copied."""
    if len(parts) < 2:
        return parts[0].detach() if parts else None
    return torch.cat(parts).detach()


def _onednn_is_quicker(x: Tensor, weight: Tensor) -> bool:
    """Whether to leave MKL, which torch asks for float32 products on x86 and which keeps off AVX-512 on AMD's processors.

    oneDNN, which comes with torch, uses it on all: the same float32, up to twice the speed. Without AVX-512 it is the slower
    one, but for a few rows. torch has no public door to it but for the lower precisions, so this asks for the operator that
    torch's own compiler calls.
    """
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and weight.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not in_torch_func()
        and not exporting()
        and 0 not in x.stride()
        and 0 not in weight.stride()
        and ONEDNN is not None
        and (AVX512 or x.shape[:-1].numel() <= FEW_ROWS)
    )


AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
FEW_ROWS = 8  # measured without AVX-512, at widths of 384 and 1,536: train/benchmarks/NOTES.md
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by oneDNN; shapes: x (..., I), weight (O, I). It reads a bias as if it were contiguous: so it must be."""
    bias = None if bias is None else bias.contiguous()
    y: Tensor = (_opaque if torch.compiler.is_compiling() else _onednn)(x, weight, bias)
    return y


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert ONEDNN is not None
    y: Tensor = ONEDNN(x, weight, bias, "none", [], "")
    return y


# For torch.compile, which mistakes a direct call of ONEDNN for one of its own, with a weight that never changes. Not by
# custom_op: that looks at the arguments of every call for aliases, which for small products takes too long.
if not hasattr(torch.ops.twinformer, "onednn"):
    torch.library.define("twinformer::onednn", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
    torch.library.impl("twinformer::onednn", "cpu", _onednn)
    torch.library.register_fake("twinformer::onednn", lambda x, weight, bias: x.new_empty(*x.shape[:-1], len(weight)))
_opaque = torch.ops.twinformer.onednn


class _OneDNNLinear(torch.autograd.Function):
    """The linear layer by oneDNN, backward too: the spec's three formulas."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight)
        ctx.shape = x.shape
        return _product(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @first_derivative
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        d_rows = d_y.reshape(-1, d_y.shape[-1])
        wanted_x, wanted_weight, wanted_bias = ctx.needs_input_grad
        d_x = _product(d_rows, weight.T).view(ctx.shape) if wanted_x else None
        d_weight = _transposed_product(d_rows, rows) if wanted_weight else None
        return d_x, d_weight, d_rows.sum(dim=0) if wanted_bias else None


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b; shapes: a (N, O), b (N, I), output (O, I). oneDNN copies its first factor if transposed: so the smaller one."""
    if torch.compiler.is_compiling():  # it makes the copies together with what comes before
        a, b = a.T.contiguous().T, b.T.contiguous().T
    return _product(a.T, b.T) if a.shape[1] <= b.shape[1] else _product(b.T, a.T).T
