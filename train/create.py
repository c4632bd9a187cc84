"""A backend by its name. Each is imported only when it is asked for: one needs torch, the other threadpoolctl."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reference_numpy.config import ModelConfig
from train.allocator import keep_freed_memory
from train.backend import Arrays, Backend
from train.configuration import TrainConfig
from train.parallel import ALONE, Processes


def create_backend(
    model: ModelConfig,
    parameters: Arrays,
    options: TrainConfig,
    dropout: np.random.Generator,
    processes: Processes = ALONE,
) -> Backend:
    """The one that `options.backend` names, with these parameters; `dropout` is the stream of its masks.

    Of several processes, all create theirs. Then they train, evaluate, export and import together, and do nothing else."""
    keep_freed_memory()
    if options.backend == "numpy":
        from train.numpy_backend import NumpyBackend

        return NumpyBackend(model, parameters, options, dropout)
    from train.torch_backend import TorchBackend

    return TorchBackend(model, parameters, options, dropout, processes)


def with_dtype(options: TrainConfig) -> TrainConfig:
    """The options with a format in the place of dtype auto: the one for the device."""
    if options.dtype != "auto":
        return options
    if options.backend == "numpy":
        return replace(options, dtype="float32", bfloat16_residual=False)
    from train.torch_backend import multiplies_bfloat16, torch_device

    there = multiplies_bfloat16(torch_device(options.device))
    residual = options.bfloat16_residual and there
    return replace(options, dtype="bfloat16" if there else "float32", bfloat16_residual=residual)
