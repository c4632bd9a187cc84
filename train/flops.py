"""How much arithmetic training takes, and what share that is of what the hardware can do (model FLOPs utilisation)."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import parameter_shapes

# Products of dense matrices, FLOP/s by number format, as NVIDIA states them without sparsity. A name is found as whole words
# in what torch calls the device; the first that fits counts, but for variants and parts of a device.
PEAKS = {
    # NVIDIA H100 Tensor Core GPU Architecture (2022), tables 1 and 2; the H200 has the same processor (its datasheet)
    "H100 PCIe": {"bfloat16": 756e12, "tf32": 378e12, "float32": 51.2e12},
    "H100": {"bfloat16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12},
    "H200": {"bfloat16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12},
    # NVIDIA A100 Tensor Core GPU Architecture (2020), table 1
    "A100": {"bfloat16": 312e12, "tf32": 156e12, "float32": 19.5e12},
    # NVIDIA Ada GPU Architecture (2022), appendix A; bfloat16 summed in float32
    "RTX 4090": {"bfloat16": 165.2e12, "tf32": 82.6e12, "float32": 82.6e12},
}


def training_flops_per_token(model: ModelConfig, length: int) -> float:
    """FLOPs of one training step on a sequence of `length` tokens, per token (Chowdhery et al. 2022, PaLM, appendix B).

    A weight of a matrix takes one multiplication and one addition forward and twice that backward: 6. Attention takes
    12 T D per layer, all pairs counted although a causal kernel skips half of them; of a window those within it, and of
    linear attention, which forms no pairs, K instead of T. Tables that are only looked up, norms and what is computed again
    do not count. Raises: ValueError for an encoder-decoder, whose tokens differ."""
    if model.kind == "encoder_decoder":
        raise ValueError("flops: expected a model of one stack, got an encoder-decoder")
    looked_up = {"position_embedding.weight"} | (set() if model.tied else {"token_embedding.weight"})
    shapes = parameter_shapes(model).items()
    weights = sum(math.prod(shape) for name, shape in shapes if len(shape) == 2 and name not in looked_up)
    seen = length if model.window is None else min(length, 2 * model.window - 1)
    seen = model.head_width if model.attention == "linear" else seen
    return 6.0 * weights + 12.0 * model.layers * seen * model.width


def peak_flops(device: str, dtype: str, tf32: bool = False) -> float | None:
    """What the device of this name can do at most with this number format, FLOP/s; None where PEAKS has no figure."""
    slower = re.search(r"\b(NVL|MIG|Laptop|Max-Q|D)\b", device)
    found = (formats for name, formats in PEAKS.items() if re.search(rf"\b{name}\b", device) and not slower)
    formats = next(found, {})
    return formats.get("tf32" if dtype == "float32" and tf32 else dtype)


def gpu_name() -> str | None:
    """What torch calls the GPU that this process uses; None without one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_initialized() else None


def memory_of(process: int | str | None) -> dict[str, int]:
    """What Linux tells of a process's memory, bytes, by the names of proc(5); {} elsewhere, and where there is no such."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    parts = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, _, value in parts}


def peak_memory() -> int | None:
    """The most memory so far, bytes: what torch had reserved on the GPU, else the process's own; None on Windows."""
    if gpu_name() is not None:
        return int(sys.modules["torch"].cuda.max_memory_reserved())
    if (peak := memory_of("self").get("VmHWM")) is not None:  # on Linux getrusage would hand on what the parent had held
        return peak
    try:
        import resource
    except ModuleNotFoundError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
