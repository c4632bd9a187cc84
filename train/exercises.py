"""`twinformer exercises`: the spec's operations to be written by the reader, and how far a file of them is."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from parity_tests.parity import OPERATIONS, OTHER_SIZES, Drawn, Operation, assert_parity, drawn
from train.checkpoint import write_atomically
from train.commands import ExercisesConfig
from train.run_folder import output_file

HEADER = '''\
"""The parts of a transformer in NumPy, to be written: forward pass and backward pass by hand.

How far you are:  twinformer exercises --check {name}

A forward returns its output and a cache, whatever your backward needs (where a text names it, ours needs that). The
backward takes the gradient of the loss in the output, and the cache, and returns the gradients. The texts are those of
reference_numpy/, where each is solved and derived. What has a default here is never given another value: it may be left
out. Errors that a text tells of are not asked for.

B batch, T queries, S keys, H heads, K width of a head, D width of the model, V different tokens, I and O numbers into and
out of a linear layer; d_x is the gradient of the loss in x.
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
ONE_AXIS = "of one axis"
PROMISED: dict[str, dict[str, dict[str, Any]]] = {  # what the texts say beyond the examples of assert_parity
    "linear": {ONE_AXIS: {"x": Drawn((5,))}},
    "embedding": {OTHER_SIZES: {"tokens": np.array([2, 0, 2]), "weight": Drawn((3, 4))}},
    "softmax": {"with a row of -inf": {"x": Drawn((2, 3), (-np.inf,) * 3)}},
    "layer_norm": {ONE_AXIS: {name: Drawn((4,)) for name in ("x", "weight", "bias")}},
    "rms_norm": {ONE_AXIS: {name: Drawn((4,)) for name in ("x", "weight")}},
    "dropout": {"without a mask": {"keep": None}},
    "cross_entropy": {
        "where no target counts": {"targets": np.full((2, 3), -1)},
        ONE_AXIS: {"logits": Drawn((5,)), "targets": np.array(3)},
    },
}


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
        output = _verdict(forward, None, operation, path)
        line = f"{operation:18}output {output}"
        if output is None:
            gradients = _verdict(forward, backward, operation, path)
            line = f"{operation:18}output right, gradients {gradients or 'right'}"
            right += 1 + (gradients is None)
        print(line)
    print(f"{right} of {2 * len(OPERATIONS)} right")
    return int(right < 2 * len(OPERATIONS))


def _verdict(forward: Any, backward: Any, operation: str, path: Path) -> str | None:
    """What is wrong with a pair, in one line; None if nothing is. Without a backward the output alone is judged."""
    if not callable(forward) or not (backward is None or callable(backward)):
        return f"fails: expected a function, got {forward if backward is None else backward!r}"
    example = OPERATIONS[operation].example
    promised = PROMISED.get(operation, {})
    for edge, arguments in [("", ()), *((edge, drawn(example | own, 0).values()) for edge, own in promised.items())]:
        try:
            with np.errstate(all="ignore"):  # the verdict says it
                assert_parity((forward, backward), operation, *arguments)
        except NotImplementedError:
            return TO_WRITE
        except (Exception, SystemExit) as error:  # what a reader writes may fail in any way
            return _said(error, operation, edge, path)
    return None


def _said(error: BaseException, operation: str, edge: str, path: Path) -> str:
    """What an error says, in one line: of a comparison, or of the reader's own code, then with the line."""
    text = " ".join(str(error).split())
    compared = isinstance(error, AssertionError) and traceback.extract_tb(error.__traceback__)[-1].filename != str(path)
    if named := re.match(rf"assert_parity, {operation} ?(.*), float64, yours ", text):
        edge, text = edge or named[1], text[named.end() :]
    where = f" {edge}" if edge else ""
    if compared:
        return f"wrong{where}: {text}"
    return f"fails{where}: {type(error).__name__}: {text}{_place(error, path)}"


def _place(error: BaseException, path: Path) -> str:
    """The line of the reader's file from which the error came, if it did."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" (line {lines[-1]})" if lines else ""


def _missing(*_: Any) -> Any:
    raise NotImplementedError


def _imported(path: Path) -> ModuleType:
    """The file as a module, from its text: what Python keeps of an earlier one would do for a change within a second."""
    if not path.is_file():
        raise ValueError(f"check: expected a Python file, got {str(path)!r}")
    if path.suffix != ".py":
        raise ValueError(f"check: expected a Python file, whose name ends in .py, got {str(path)!r}")
    module = ModuleType("exercises_of_the_reader")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where a dataclass looks for it
    sys.path.insert(0, str(path.resolve().parent))  # as for a file that Python runs: it may import its neighbours
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}{_place(error, path)}"
        raise ValueError(f"check: expected a file that Python can run, got {what}") from error
    return module
