"""Several processes that train one model, as `torchrun -m train train ...` starts them; usually there is one.

All run the same program on the same random streams. Each draws the whole batch, and the dropout masks of the whole batch,
and computes its own rows of them; the gradients are summed over all. So the losses are those of one process, to rounding,
and a checkpoint can be taken up by any number of processes. Process 0 alone writes; all must be able to read its folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from train.configuration import TrainConfig

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PATIENCE = timedelta(seconds=5)  # for a store to answer, and for torchrun to end the other processes


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many. What asks the others must be called by all of them, and waits for them."""

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and speaks to the user; asks nobody."""
        return self.rank == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a number over all processes, where each of them has it."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; it does not wait for the device."""
        if self.count == 1:
            return flag
        import torch

        return bool(self.sum(torch.tensor(int(flag))) > 0)

    def agreed(self, value: T) -> T:
        """The value of process 0."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    @contextlib.contextmanager
    def one_after_the_other(self) -> Iterator[None]:
        """Process 0 goes through what is inside before the others, so that what it has fetched they find."""
        if self.rank > 0:
            self.any(False)
        yield
        if self.rank == 0:
            self.any(False)


ALONE = Processes()


@contextlib.contextmanager
def connected(options: TrainConfig) -> Iterator[Processes]:
    """Connects the processes that torchrun started, if it did; an error in one of them ends all, and is told once.

    Raises: ValueError when the options or the machine allow one process only, ConnectionError when another is gone."""
    rank, count = _place()
    if count == 1:
        yield ALONE
        return
    _connect(options)
    try:
        yield Processes(rank, count)
    except (ValueError, OSError, MemoryError, KeyboardInterrupt):  # told by the command line
        raise
    except Exception as error:  # a defect, or the news that another process has ended
        if "gloo" in str(error) or type(error).__name__ == "DistBackendError":  # NCCL's
            raise ConnectionError(f"another process has ended; what was saved last can be resumed ({error})") from error
        if not reports_error():
            raise SystemExit(2) from None
        raise
    import torch.distributed as dist

    dist.destroy_process_group()


def reports_error() -> bool:
    """Whether this process, which ends with an error, tells the user of it: the first to ask. Each asks once.

    The store at MASTER_ADDR, torchrun's own, knows who was first. The others wait to be ended, since torchrun ends all as
    soon as one is gone, even one that has yet to speak."""
    rank, count = _place()
    if count == 1:
        return True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which torchrun ends those that wait: nothing is left to be closed
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, but not declared as exported

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=PATIENCE)
        first = store.add(f"twinformer/failures/{attempt}", 1) == 1
    except (KeyError, RuntimeError):  # no store as yet, or process 0 kept it and has ended
        first = rank == 0
    if not first:
        time.sleep(PATIENCE.total_seconds())
    return first


def _place() -> tuple[int, int]:
    """Rank and number of processes, as torchrun says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _connect(options: TrainConfig) -> None:
    if options.backend != "torch":
        raise ValueError(f"backend: expected torch for several processes, got {options.backend}")
    import torch
    import torch.distributed as dist

    if options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available()):
        dist.init_process_group("gloo")
        return
    if options.device == "mps":
        raise ValueError("device: expected cuda or cpu for several processes, got mps")
    own, here = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if own >= here:
        raise ValueError(f"device: expected a GPU for each process of this machine, got {here} for number {own + 1}")
    torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl")
