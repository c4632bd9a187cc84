"""Checkpoints: one safetensors file holds arrays and, as JSON in its header, everything that belongs to them.

A run has two. `model.safetensors` has the weights, the shape of the model and its vocabulary: it alone suffices to
write text, with either twin. `state.safetensors` has what resuming needs: weights, optimizer moments, random streams,
step (a vocabulary comes from the text, or from the model to begin with). Each is whole in itself and is replaced in one
step, so a crash at any moment leaves the old file or the new one, never a mixture. Nothing here can run code when it is
read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import parameter_shapes
from train.configuration import from_mapping
from train.subwords import Subwords
from train.vocabulary import Symbols, Vocabulary

KEY = "twinformer"  # the one entry of the header: with several, the library writes them in a random order
VERSION = 1


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `path` such that it always holds either its old content or all of the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the content must be on the disk before the name points to it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors inside say that they are of `path`, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def output_folder(path: str) -> Path:
    """The folder for what a command writes, made if it is not there. Raises: ValueError where it cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output: expected a folder that can be written, got {path!r} ({error.strerror})") from error
    return Path(path)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Writes JSON and a line end, atomically."""
    write_atomically(path, (json.dumps(content, indent=indent) + "\n").encode())


def save_arrays(path: Path, kind: str, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
    """Writes named arrays with `extra` (JSON values) in the header, atomically; `kind` says which checkpoint it is."""
    header = {KEY: json.dumps({"version": VERSION, "kind": kind, "extra": extra})}
    write_atomically(path, save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata=header))


def load_arrays(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the extra values of a checkpoint of this `kind`.

    Raises: ValueError when the file is missing, truncated, not safetensors, or not a checkpoint of ours and kind."""
    with _opened(path) as file:
        extra = _read_header(path, kind, file.metadata() or {})
        return {name: file.get_tensor(name) for name in file.keys()}, extra  # noqa: SIM118 (not a mapping)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises: ValueError when there is none, or reading finds it truncated or foreign."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a checkpoint, found no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, TypeError) as error:  # the latter for a format that NumPy lacks
        raise ValueError(f"{path}: expected a whole safetensors file, this one is truncated or foreign ({error})") from error


def save_model(
    path: Path, parameters: Mapping[str, np.ndarray], config: ModelConfig, vocabulary: Symbols, step: int
) -> None:
    """Writes the weights with all that is needed to use them: shape of the model, vocabulary, number of updates."""
    save_arrays(path, "model", parameters, {"model": asdict(config), "symbols": vocabulary.to_json(), "step": step})


def symbols_from_json(symbols: Any) -> Symbols:
    """The inverse of a vocabulary's `to_json`: a list is of characters, a string of subwords. Raises: ValueError."""
    return Subwords.from_json(symbols) if isinstance(symbols, str) else Vocabulary.from_json(symbols)


def load_model(path: Path) -> tuple[dict[str, np.ndarray], ModelConfig, Symbols]:
    """Weights, shape of the model and vocabulary from a file that `save_model` wrote; half precision becomes float32.

    Raises: ValueError as `load_arrays`, and when the arrays are not those of the model that the header describes."""
    parameters, extra = load_arrays(path, "model")
    config, vocabulary = _described(path, extra)
    check_shapes(path, parameters, config)
    widened = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in parameters.items()}
    return widened, config, vocabulary


def model_header(path: Path) -> tuple[ModelConfig, Symbols]:
    """Shape of the model and vocabulary alone. Raises: ValueError as `load_model`."""
    with _opened(path) as file:
        return _described(path, _read_header(path, "model", file.metadata() or {}))


def _described(path: Path, extra: Mapping[str, Any]) -> tuple[ModelConfig, Symbols]:
    """What a model's header says. Raises: ValueError when it does not."""
    try:
        config = from_mapping(ModelConfig, extra["model"], "model")
        vocabulary = symbols_from_json(extra["symbols"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: expected the description of a model in the header, got none ({error})") from error
    if len(vocabulary) != config.vocabulary:
        raise ValueError(f"{path}: expected {config.vocabulary} symbols, those of its model, got {len(vocabulary)}")
    return config, vocabulary


def mean_parameters(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """The mean of the parameters in several model files of one shape, summed in float64 (Vaswani et al. 2017, section 6.1).

    Raises: ValueError as `load_model`, for no file at all, and for files whose arrays do not fit together."""
    if not paths:
        raise ValueError("paths: expected at least one model to average, got none")
    first, config, _ = load_model(paths[0])
    total = {name: array.astype(np.float64) for name, array in first.items()}
    for path in paths[1:]:
        parameters, _ = load_arrays(path, "model")
        check_shapes(path, parameters, config)
        total = {name: array + parameters[name] for name, array in total.items()}
    return {name: (array / len(paths)).astype(first[name].dtype) for name, array in total.items()}


def check_shapes(path: Path, parameters: Mapping[str, np.ndarray], config: ModelConfig) -> None:
    """Raises ValueError unless the arrays have exactly the names and shapes that `config` asks for."""
    expected = parameter_shapes(config)
    for name in [*expected, *parameters]:
        wanted = expected.get(name, "no such array")
        got = parameters[name].shape if name in parameters else "no such array"
        if wanted != got:
            raise ValueError(f"{path}: {name}: expected {wanted}, got {got}")


def _read_header(path: Path, kind: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The extra values of a checkpoint of ours, of this kind. Raises: ValueError when it is another."""
    if KEY not in metadata:
        raise ValueError(f"{path}: expected a checkpoint that twinformer wrote, got a safetensors file from elsewhere")
    try:
        header = dict(json.loads(metadata[KEY]))
        extra = dict(header["extra"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a header that twinformer wrote, got another ({error})") from error
    for name, expected in (("version", VERSION), ("kind", kind)):
        if header.get(name) != expected:
            raise ValueError(f"{path}: expected a checkpoint of {name} {expected!r}, got {header.get(name)!r}")
    return extra
