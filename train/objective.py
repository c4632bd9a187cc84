"""What one step of the twin minimises, as a torch module: so it can be compiled and shared among processes as a whole."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from torch_impl.block import Block
from torch_impl.dropout import Generator
from torch_impl.loss import cross_entropy
from torch_impl.model import Stack, Transformer
from torch_impl.position import make_tables_constant
from train.configuration import TrainConfig


class Objective(nn.Module):
    """The sum of the training loss over all targets of a batch, nats."""

    def __init__(self, model: Transformer, options: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self._label_smoothing, self._bfloat16 = options.label_smoothing, options.dtype == "bfloat16"

    def forward(self, tokens: Tensor, targets: Tensor, generator: Generator | None, inputs: dict[str, Tensor]) -> Tensor:
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            logits = self.model(tokens, generator=generator, **inputs)
        if self._bfloat16:
            logits = logits.float()  # a logarithm of sums of exponentials needs more than 8 bits
        return cross_entropy(logits, targets, self._label_smoothing, count=1)


def objective(model: Transformer, options: TrainConfig, processes: int) -> Any:
    """The module to call in training, as the options ask: recomputing, divided, compiled.

    With several processes, a backward pass leaves the mean of their gradients in the parameters. `model` is changed in
    place: with fsdp its parameters are divided from now on, so the optimizer has to come after. Raises: ValueError for
    what torch cannot do together."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.recompute = options.checkpoint_activations
    drops = model.config.dropout > 0 and model.device.type != "cuda"
    if options.compile and options.checkpoint_activations and drops:
        raise ValueError("checkpoint_activations: expected none with compile and dropout, unless on cuda, got them together")
    model.residual_dtype = torch.bfloat16 if options.bfloat16_residual else None
    if processes > 1 and options.parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard  # imported late: it takes a while

        # It warns of an in-place operation on the logits, which are a view; there is none.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
        for block in [module for module in model.modules() if isinstance(module, Block)]:
            fully_shard(block)
        # By default what is outside the blocks stays whole after a forward pass; after one without a backward pass, an
        # evaluation, the next gradients were then wrong (torch 2.13). A test sees it.
        fully_shard(model, reshard_after_forward=True)
    training: nn.Module = Objective(model, options)
    if processes > 1 and options.parallel == "ddp":
        training = nn.parallel.DistributedDataParallel(training)
    if not options.compile:
        return training
    make_tables_constant()  # they are what is cached, and the warning is of no use
    warnings.filterwarnings("ignore", message=".*functools.lru_cache", category=UserWarning)
    return torch.compile(training, mode="reduce-overhead" if options.cuda_graphs else None)
