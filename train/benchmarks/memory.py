"""Peak memory of one contender, in a process of its own: `python -m train.benchmarks.memory SHAPE NAME [NANOGPT]`.

Prints the bytes by which the process's high-water mark grew from before the model was made to after three steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def peak_bytes(shape: str, name: str, folder: str | None) -> int | None:
    """What the process prints; None on a system without the module resource, such as Windows."""
    arguments = [sys.executable, "-m", "train.benchmarks.memory", shape, name, *([folder] if folder else [])]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def main(shape: str, name: str, folder: str | None = None) -> None:
    """Makes the contender, takes three steps, prints the growth."""
    from train.benchmarks.contenders import SHAPES, contenders

    if name == "x-transformers":
        import x_transformers  # noqa: F401  # libraries do not count
    elif name == "GPT-2 (HF)":
        from transformers import GPT2LMHeadModel  # noqa: F401  # nor these
    before = _high_water()
    chosen = contenders(folder, compiled=True)[name](SHAPES[shape], SHAPES[shape].random_batch(0))
    for _ in range(3):
        chosen.step()
    print(_high_water() - before)


def _high_water() -> int:
    """The most bytes that this process has held. On Linux getrusage would hand on what the parent had held."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
