"""tqdm, or where it is not installed (a bare checkout on a GPU machine) a bar that shows nothing but passes lines on."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

try:
    from tqdm import tqdm
except ModuleNotFoundError:

    class tqdm:  # type: ignore[no-redef]  # instead of the one that is not there
        """What of tqdm is used here."""

        def __init__(self, iterable: Any = (), **options: Any) -> None:
            self._iterable = iterable

        def __iter__(self) -> Any:
            return iter(self._iterable)

        def __enter__(self) -> tqdm:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None: ...

        def update(self, count: int = 1) -> None: ...

        def set_postfix_str(self, text: str) -> None: ...

        def write(self, line: str) -> None:
            print(line, flush=True)


def discard_output() -> None:
    """Sends all further output nowhere: for when its reader has gone, as in `twinformer train | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


__all__ = ["discard_output", "tqdm"]
