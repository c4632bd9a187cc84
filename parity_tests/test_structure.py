"""The house: every room of the spec has its twin and its test, and imports point one way."""

import ast
import importlib
import inspect
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"config"}  # both twins read the spec's: there is one description of a model
TWINS_OWN = {"derivative"}  # torch differentiates by itself, and has to be told where not to
MAY_IMPORT = {  # of our own packages
    "reference_numpy": {"reference_numpy"},
    "torch_impl": {"reference_numpy", "torch_impl"},
    "train": {"reference_numpy", "torch_impl", "train", "parity_tests"},  # of the proof, the instruments only: see below
    "blog": {"reference_numpy", "train", "blog"},
}
# bounds, what it is made of, and compare serve `twinformer check`; with the named faults gallery and ablations train.
INSTRUMENTS = {f"parity_tests.{name}" for name in ("bounds", "formats", "tracked", "compare", "mutants", "parity")}
SPEC_MAY_IMPORT = {"numpy", "math", "typing", "collections", "dataclasses"}  # nothing of weight besides NumPy


def rooms(package):
    return {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}


def imports(path):
    """Full names of all modules that the file imports, at any depth of the code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_a_twin():
    assert rooms("reference_numpy") - SHARED == rooms("torch_impl") - TWINS_OWN


def test_every_room_has_a_test():
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "parity_tests").glob("test_*.py")}
    assert rooms("torch_impl") <= tests


def parameters_of(room):
    """(function, parameter) of every public function, method and constructor that the room defines."""
    module = importlib.import_module(room)
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == room and not name.startswith("_"):
            methods = vars(value).values() if inspect.isclass(value) else [value]
            for function in filter(inspect.isfunction, map(inspect.unwrap, methods)):
                if not function.__name__.startswith("_") or function.__name__ == "__init__":
                    for parameter in inspect.signature(function).parameters.values():
                        yield f"{room}, {function.__qualname__}", parameter


@pytest.mark.parametrize("room", sorted(rooms("torch_impl") - TWINS_OWN))
def test_one_name_has_one_default(room):
    """In a room and its twin a parameter that may be left out means the same wherever it is; each can be given by name."""
    defaults = defaultdict(set)
    for package in ("reference_numpy", "torch_impl"):
        for function, parameter in parameters_of(f"{package}.{room}"):
            assert parameter.kind is not parameter.POSITIONAL_ONLY, f"{function}: {parameter.name}"
            if parameter.default is not parameter.empty:
                defaults[parameter.name].add(parameter.default)
    assert {name: values for name, values in defaults.items() if len(values) > 1} == {}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package):
    ours = {"reference_numpy", "torch_impl", "train", "parity_tests", "blog"}
    for path in (ROOT / package).rglob("*.py"):
        if "tests" in path.relative_to(ROOT).parts:
            continue
        for name in imports(path):
            first = name.split(".")[0]
            assert first not in ours or first in MAY_IMPORT[package], f"{path.name} imports {name}"
            if first == "parity_tests" and name != first:
                assert any(name.startswith(i) for i in INSTRUMENTS), f"{path.name} imports {name}, not an instrument"


def test_the_spec_is_numpy_alone():
    for path in (ROOT / "reference_numpy").glob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] in SPEC_MAY_IMPORT | {"reference_numpy"}, f"{path.name} imports {name}"


def test_the_instruments_look_at_the_twins_only():
    for name in INSTRUMENTS:
        for imported in imports(ROOT / (name.replace(".", "/") + ".py")):
            assert imported.split(".")[0] not in {"train", "blog"}, f"{name} imports {imported}"
