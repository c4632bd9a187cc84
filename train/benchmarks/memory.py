"""Peak memory of one contender, in a process of its own: `python -m train.benchmarks.memory SHAPE NAME [NANOGPT]`.

Prints the bytes by which the process's high-water mark grew from before the model was made to after three steps; with it
that of the processes that the contender started, where /proc tells it, without what they share with the first.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

from train.flops import memory_of, peak_memory


def peak_bytes(shape: str, name: str, folder: str | None) -> int | None:
    """What the process prints; None on a system without the module resource, such as Windows."""
    if peak_memory() is None:
        return None
    arguments = [sys.executable, "-m", "train.benchmarks.memory", shape, name, *([folder] if folder else [])]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return int(done.stdout.split()[-1])


def main(shape: str, name: str, folder: str | None = None) -> None:
    """Makes the contender, takes three steps, prints the growth."""
    from train.benchmarks.contenders import SHAPES, contenders

    if name == "x-transformers":
        import x_transformers  # noqa: F401  # libraries do not count
    elif name == "GPT-2 (HF)":
        from transformers import GPT2LMHeadModel  # noqa: F401  # nor these
    before = peak_memory()
    chosen = contenders(folder, compiled=True)[name](SHAPES[shape], SHAPES[shape].random_batch(0))
    for _ in range(3):
        chosen.step()
    after = peak_memory()
    assert before is not None and after is not None  # who calls has asked
    print(after - before + sum(_of_its_own(child.pid) for child in multiprocessing.active_children()))


def _of_its_own(process: int | None) -> int:
    """The most memory that another process has held so far, without what it shares now, bytes; 0 without /proc."""
    memory = memory_of(process)
    return memory.get("VmHWM", 0) - memory.get("RssShmem", 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
