"""`twinformer exercises`: the spec's operations to be written by the reader, and how far a file of them is."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from parity_tests.parity import OPERATIONS, Drawn, Operation, assert_parity
from train.checkpoint import write_atomically
from train.commands import ExercisesConfig
from train.run_folder import output_file

HEADER = '''\
"""The parts of a transformer in NumPy, to be written: forward pass and backward pass by hand.

How far you are:  twinformer exercises --check {name}

A forward returns its output and a cache, whatever its backward needs; the backward takes the gradient of the loss in the
output, and the cache, and returns the gradients. The texts are those of reference_numpy/, where each is solved and derived.
What has a default here is never given another value: it may be left out.
"""

import numpy as np
'''
STUB = '''

# {number}. {operation}


def {forward}({arguments}):
    """{text}"""
    raise NotImplementedError


def {backward}(d_output, cache):
    """{gradients}"""
    raise NotImplementedError
'''
TO_WRITE = "to be written"


def exercises(config: ExercisesConfig) -> str | int:
    """Writes the file of exercises and returns what to do with it; or says how far one is and returns the exit status, 0 if
    all is right, 1 if not.

    Raises: ValueError for a file that cannot be written, read or run, or would be overwritten."""
    if config.check is not None:
        return check(Path(config.check))
    path = Path(str(config.output))
    output_file("output", str(path))
    if path.suffix != ".py":
        raise ValueError(f"output: expected a name that ends in .py, got {str(path)!r}")
    if path.exists():
        raise ValueError(f"output: expected a new file, got {str(path)!r}, which exists")
    write_atomically(path, text(path.name).encode())
    return f"twinformer exercises --check {path}"


def text(name: str) -> str:
    """The file of exercises, which is called `name`."""
    return HEADER.format(name=name) + "".join(
        _stub(number, operation, spec) for number, (operation, spec) in enumerate(OPERATIONS.items(), 1)
    )


def _stub(number: int, operation: str, spec: Operation) -> str:
    names = [name for name, value in spec.example.items() if isinstance(value, Drawn)]
    gradients = f"The gradient{'s' * (len(names) > 1)} of {', '.join(names)}."
    documentation = textwrap.indent(inspect.cleandoc(str(spec.forward.__doc__)), "    ").strip()
    if "\n" in documentation:
        documentation += "\n    "
    forward, backward = functions_of(operation)
    options = {p.name: p.default for p in inspect.signature(spec.forward).parameters.values() if p.name not in spec.example}
    arguments = [*spec.example, *(f"{name}={default!r}" for name, default in options.items())]
    return STUB.format(
        number=number,
        operation=operation,
        forward=forward,
        backward=backward,
        arguments=", ".join(arguments),
        text=documentation,
        gradients=gradients,
    )


def functions_of(operation: str) -> tuple[str, str]:
    """What forward and backward are called in the file."""
    return f"{operation}_forward", f"{operation}_backward"


def check(path: Path) -> int:
    """Prints a line for each operation; 0 if all are right, else 1. Raises: ValueError as `exercises`."""
    module = _imported(path)
    right = 0
    for operation in OPERATIONS:
        forward, backward = (getattr(module, name, _missing) for name in functions_of(operation))
        output = _verdict(forward, None, operation)
        line = f"{operation:18}output {output}"
        if output is None:
            gradients = _verdict(forward, backward, operation)
            line = f"{operation:18}output right, gradients {gradients or 'right'}"
            right += 1 + (gradients is None)
        print(line)
    print(f"{right} of {2 * len(OPERATIONS)} right")
    return int(right < 2 * len(OPERATIONS))


def _verdict(forward: Any, backward: Any, operation: str) -> str | None:
    """What is wrong with a pair, in one line; None if nothing is. Without a backward the output alone is judged."""
    if not callable(forward) or not (backward is None or callable(backward)):
        return f"fails: expected a function, got {forward if backward is None else backward!r}"
    try:
        with np.errstate(all="ignore"):  # the verdict says it
            assert_parity((forward, backward), operation)
    except NotImplementedError:
        return TO_WRITE
    except (Exception, SystemExit) as error:  # what a reader writes may fail in any way
        found = " ".join(str(error).split()).removeprefix(f"assert_parity, {operation}, float64, yours ")
        return f"wrong: {found}" if isinstance(error, AssertionError) else f"fails: {type(error).__name__}: {found}"
    return None


def _missing(*_: Any) -> Any:
    raise NotImplementedError


def _imported(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"check: expected a Python file, got {str(path)!r}")
    spec = importlib.util.spec_from_file_location("exercises_of_the_reader", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"check: expected a Python file, whose name ends in .py, got {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # as for a file that Python runs: it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"check: expected a file that Python can run, got {type(error).__name__}: {error}") from error
    return module
