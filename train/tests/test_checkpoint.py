"""Checkpoints: whole or not at all, readable by both twins, and plain about what is wrong with one."""

import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import initialize, parameter_shapes
from train import checkpoint
from train.checkpoint import load_arrays, load_model, mean_parameters, save_arrays, save_model, write_atomically
from train.vocabulary import Vocabulary

CONFIG = ModelConfig(vocabulary=3, context=5, width=6, heads=2, layers=1)
VOCABULARY = Vocabulary.from_text("a\nπ")


@pytest.fixture
def parameters():
    return initialize(CONFIG, np.random.default_rng(0))


@pytest.fixture
def model_file(tmp_path, parameters):
    path = tmp_path / "model.safetensors"
    save_model(path, parameters, CONFIG, VOCABULARY, 7)
    return path


def test_a_model_file_alone_gives_back_weights_shape_and_vocabulary(model_file, parameters):
    loaded, config, vocabulary = load_model(model_file)
    assert config == CONFIG
    assert vocabulary == VOCABULARY
    assert list(loaded) == sorted(parameters)
    for name, array in parameters.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_come_back_to_the_bit_also_when_not_contiguous_empty_or_not_finite(tmp_path, dtype):
    arrays = {
        "transposed": np.arange(35, dtype=dtype).reshape(5, 7).T,
        "strided": np.arange(20, dtype=dtype)[::3],
        "empty": np.zeros((0, 3), dtype),
        "scalar": np.array(2.5, dtype),
        "special": np.array([np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).smallest_subnormal], dtype),
    }
    extra = {"text": "π\n", "large": 2**127 + 1, "nested": {"x": [1, 2.5, None]}}
    save_arrays(tmp_path / "file", "state", arrays, extra)
    loaded, loaded_extra = load_arrays(tmp_path / "file", "state")
    assert loaded_extra == extra
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def crash(*_):
        raise OSError("no space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, crash)
            with pytest.raises(OSError, match="no space left"):
                write_atomically(path, b"new and longer")
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_an_error(model_file, kept):
    content = model_file.read_bytes()
    model_file.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=re.escape(str(model_file)) + r": expected a whole safetensors file"):
        load_model(model_file)


def test_foreign_files_are_errors(tmp_path, model_file, parameters):
    path = tmp_path / "foreign"
    for content in (b"PK\x03\x04 a zip file", b"\x80\x04 a pickle", b"text\n" * 50):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"expected a whole safetensors file"):
            load_model(path)
    for header in ("not JSON", "[1]", "{}", '{"extra": 5}'):
        save_file(parameters, path, {"twinformer": header})
        with pytest.raises(ValueError, match=r"expected a header that twinformer wrote"):
            load_model(path)
    save_file(parameters, path)
    with pytest.raises(ValueError, match=r"expected a checkpoint that twinformer wrote"):
        load_model(path)
    with pytest.raises(ValueError, match=r"expected a checkpoint, found no such file"):
        load_model(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"expected a checkpoint of kind 'state', got 'model'"):
        load_arrays(model_file, "state")


def test_another_version_is_an_error(model_file, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    with pytest.raises(ValueError, match=r"expected a checkpoint of version 2, got 1"):
        load_model(model_file)


def test_arrays_that_are_not_the_models_are_errors(tmp_path, parameters):
    path = tmp_path / "model.safetensors"
    name = "token_embedding.weight"
    for wrong in (
        parameters | {name: parameters[name][:, :-1]},
        {n: a for n, a in parameters.items() if n != name},
        parameters | {"more.weight": parameters[name]},
    ):
        save_model(path, wrong, CONFIG, VOCABULARY, 0)
        with pytest.raises(ValueError, match=r"(token_embedding|more).weight: expected .*, got "):
            load_model(path)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"model": {"width": "large"}, "symbols": ["a"]},
        {"model": {"heads": 5, "width": 7}, "symbols": ["a"]},
        {"model": {"new_option": 1}, "symbols": ["a"]},
        {"model": {}, "symbols": "a"},
        {"model": {"vocabulary": 2}, "symbols": ["a"]},
        {"model": [], "symbols": ["a"]},
    ],
)
def test_a_header_that_describes_no_model_is_an_error(tmp_path, parameters, extra):
    path = tmp_path / "model.safetensors"
    save_arrays(path, "model", parameters, extra)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ": expected "):
        load_model(path)


def test_equal_content_gives_equal_bytes_and_the_header_is_json(tmp_path, model_file, parameters):
    content = model_file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert json.loads(header["twinformer"])["extra"]["symbols"] == VOCABULARY.to_json()
    for attempt in range(10):
        path = tmp_path / f"{attempt}"
        save_model(path, dict(reversed(parameters.items())), CONFIG, VOCABULARY, 7)
        assert path.read_bytes() == content


def test_a_mean_is_summed_in_float64(tmp_path):
    """1e8 + 1 is 1e8 in float32, and the 1 would be lost."""
    paths = []
    for value in (1e8, 1.0, -1e8):
        parameters = {name: np.full(shape, value, np.float32) for name, shape in parameter_shapes(CONFIG).items()}
        paths.append(tmp_path / f"{len(paths)}.safetensors")
        save_model(paths[-1], parameters, CONFIG, VOCABULARY, 1)
    assert all((array == np.float32(1 / 3)).all() for array in mean_parameters(paths).values())
