"""Parameters and config: flat names, initial values, loading; the combinations that are refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given

from parity_tests.strategies import configs, seeds
from reference_numpy.config import ModelConfig
from reference_numpy.parameters import initialize, parameter_count, parameter_shapes, parts, prefixed, scope
from torch_impl.model import Transformer
from torch_impl.parameters import as_numpy, gradients_as_numpy, parameters_as_numpy
from torch_impl.parameters import initialize as twin_initialize


@given(configs(), seeds)
def test_names_shapes_and_round_trip(config, seed):
    parameters = initialize(config, np.random.default_rng(seed))
    assert {name: value.shape for name, value in parameters.items()} == parameter_shapes(config)
    module = Transformer(config)
    module.load_parameters(parameters)
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == parameter_shapes(config)
    assert list(module.state_dict()) == list(parameters)  # drawn in this order, so a seed's model depends on it
    back = parameters_as_numpy(module)
    assert all((back[name] == value).all() and back[name].dtype == value.dtype for name, value in parameters.items())
    assert sum(p.numel() for p in module.parameters()) == parameter_count(config)


@given(configs(), seeds)
def test_every_precision_starts_from_the_same_model(config, seed):
    double, single = (initialize(config, np.random.default_rng(seed), dtype) for dtype in (np.float64, np.float32))
    for name, value in double.items():
        assert (single[name] == value.astype(np.float32)).all()


def spec_start(config):
    return initialize(config, np.random.default_rng(0), np.float64)


def twin_start(config):
    module = Transformer(config)
    twin_initialize(module, config, torch.Generator().manual_seed(0))
    return parameters_as_numpy(module)


both = pytest.mark.parametrize("start", [spec_start, twin_start])


@both
def test_a_start_follows_its_stream(start):
    first, again = start(ModelConfig()), start(ModelConfig())
    assert all((value == again[name]).all() for name, value in first.items())


@both
def test_initial_deviations(start):
    config = ModelConfig(width=256, layers=8, vocabulary=512, scale_embedding=True)
    parameters = start(config)
    expected = {
        "token_embedding.weight": 256**-0.5,
        "position_embedding.weight": 0.02,
        "blocks.0.attention.query.weight": 0.02,
        "blocks.7.attention.output.weight": 0.02 / 4,  # 2 sub-layers in each of 8 blocks: 1 / sqrt(16)
        "blocks.3.feed_forward.down.weight": 0.02 / 4,
    }
    for name, deviation in expected.items():
        value = parameters[name]
        # the sample deviation of n normal numbers has a relative deviation of 1 / sqrt(2 n); five of these
        assert abs(value.std() / deviation - 1) <= 5 / np.sqrt(2 * value.size)
    chosen = start(ModelConfig(width=256, layers=8, vocabulary=512, scale_embedding=True, tied=False, initial_deviation=0.2))
    expected = {"token_embedding.weight": 256**-0.5, "head.weight": 0.2, "blocks.7.attention.output.weight": 0.2 / 4}
    for name, deviation in expected.items():
        assert abs(chosen[name].std() / deviation - 1) <= 5 / np.sqrt(2 * chosen[name].size)  # as above
    zeroed = start(ModelConfig(zero_projections=True))
    assert (zeroed["blocks.0.attention.output.weight"] == 0).all()
    assert (zeroed["blocks.0.feed_forward.down.weight"] == 0).all()
    zeroed = start(ModelConfig(kind="encoder_decoder", zero_projections=True))
    last = ("attention.output.weight", "feed_forward.down.weight")
    assert all(value.any() != name.endswith(last) for name, value in zeroed.items() if value.ndim == 2)


@both
def test_initial_deviations_of_two_stacks(start):
    """Blocks of the decoder write into their stream three times, those of the encoder twice."""
    config = ModelConfig(kind="encoder_decoder", width=256, layers=3)
    parameters = start(config)
    for stack, sublayers in (("encoder", 2), ("decoder", 3)):
        for name in ("attention.output", "cross_attention.output", "feed_forward.down"):
            value = parameters.get(f"{stack}.blocks.0.{name}.weight")
            if value is not None:
                expected = 0.02 / np.sqrt(3 * sublayers)
                assert abs(value.std() / expected - 1) <= 5 / np.sqrt(2 * value.size)  # as above


@both
def test_gains_start_at_one_and_biases_at_zero(start):
    parameters = start(ModelConfig(kind="encoder_decoder", qk_norm=True))
    for name, value in parameters.items():
        if value.ndim == 1:
            assert (value == (0 if name.endswith(".bias") else 1)).all(), name
        else:
            assert value.std() > 0, name


def test_scope_and_prefixed_are_inverse():
    shapes = parameter_shapes(ModelConfig())
    inside = scope(shapes, "blocks.0.attention")
    assert set(inside) == {f"{n}.{p}" for n in ("query", "key", "value", "output") for p in ("weight", "bias")}
    assert prefixed("blocks.0.attention", inside).items() <= shapes.items()


def test_parts_are_the_scopes():
    shapes = scope(parameter_shapes(ModelConfig(layers=2)), "blocks")
    assert set(parts(shapes)) == {"0", "1"}
    assert parts(parts(shapes)["1"]) == {name: scope(shapes, f"1.{name}") for name in parts(parts(shapes)["1"])}
    assert {"attention", "attention_norm", "feed_forward", "feed_forward_norm"} == set(parts(parts(shapes)["0"]))


def test_loading_errors():
    config = ModelConfig(layers=1)
    parameters = initialize(config, np.random.default_rng(0))
    module = Transformer(config)
    name = "blocks.0.attention.query.weight"
    with pytest.raises(ValueError, match=rf"{name}: expected shape \(128, 128\), got \(2, 2\)"):
        module.load_parameters(parameters | {name: np.zeros((2, 2))})
    with pytest.raises(ValueError, match="parameters: other: expected none of this name, got one"):
        module.load_parameters(parameters | {"other": np.zeros(2)})
    with pytest.raises(ValueError, match=f"parameters: {name}: expected one of this name, got none"):
        module.load_parameters({n: v for n, v in parameters.items() if n != name})
    before = parameters_as_numpy(module)
    with pytest.raises(ValueError, match="final_norm"):
        module.load_parameters(parameters | {"final_norm.weight": np.zeros(3)})
    assert all((value == before[name]).all() for name, value in parameters_as_numpy(module).items())


def test_parameters_are_loaded_in_place():
    """Who shares their memory, an optimizer or a view, sees it."""
    config = ModelConfig(layers=1)
    module = Transformer(config)
    places = [parameter.data_ptr() for parameter in module.parameters()]
    module.load_parameters(initialize(config, np.random.default_rng(0)))
    assert [parameter.data_ptr() for parameter in module.parameters()] == places


def test_what_is_frozen_is_loaded_read_and_drawn_too():
    config = ModelConfig(layers=1, width=8, heads=2)
    parameters = initialize(config, np.random.default_rng(0))
    module = Transformer(config).requires_grad_(False)
    module.load_parameters(parameters)
    assert all((parameters[name] == value).all() for name, value in parameters_as_numpy(module).items())
    assert parameters_as_numpy(module).keys() == parameters.keys()
    twin_initialize(module, config, torch.Generator().manual_seed(0))
    assert all((value != parameters[name]).any() for name, value in parameters_as_numpy(module).items() if value.ndim == 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_goes_to_numpy_as_float32(dtype):
    found = as_numpy(torch.tensor([1.5], dtype=dtype))
    assert found.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    assert found == 1.5


def test_a_parameter_without_gradient_has_gradient_zero():
    module = torch.nn.Linear(2, 3).double()
    assert all((g == 0).all() and g.dtype == np.float64 for g in gradients_as_numpy(module).values())
    module.weight.grad = torch.arange(6.0).reshape(3, 2).double()
    gradients = gradients_as_numpy(module)
    assert gradients["weight"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert not gradients["bias"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10, "heads": 4}, "heads: expected a divisor of the width 10, got 4"),
        ({"heads": 4, "key_value_heads": 3}, "key_value_heads: expected a divisor of the heads 4, got 3"),
        ({"heads": 4, "key_value_heads": 0}, "key_value_heads: expected a divisor of the heads 4, got 0"),
        ({"heads": 4, "key_value_heads": -2}, "key_value_heads: expected a divisor of the heads 4, got -2"),
        *(
            ({name: count}, f"{name}: expected an integer of at least 1, got {count}")
            for name in ("vocabulary", "context", "width", "layers", "heads", "feed_forward", "window")
            for count in (0, -3)
        ),
        ({"dropout": 1.0}, "dropout: expected at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout: expected at least 0 and below 1, got -0.1"),
        ({"dropout": math.nan}, "dropout: expected at least 0 and below 1, got nan"),
        ({"norm_epsilon": math.inf}, "norm_epsilon: expected a finite number above 0, got inf"),
        ({"initial_deviation": math.inf}, "initial_deviation: expected a finite number of at least 0, got inf"),
        ({"softcap": math.inf}, "softcap: expected a finite number above 0, got inf"),
        ({"norm_epsilon": 0.0}, "norm_epsilon: expected a finite number above 0, got 0.0"),
        ({"initial_deviation": -0.1}, "initial_deviation: expected a finite number of at least 0, got -0.1"),
        ({"heads": 2.0}, "heads: expected an integer of at least 1, got 2.0"),
        ({"layers": 10**20}, f"layers: expected at most 100000, got {10**20}"),
        ({"key_value_heads": 2.0}, "key_value_heads: expected a divisor of the heads 4, got 2.0"),
        ({"window": 2.5}, "window: expected an integer of at least 1, got 2.5"),
        ({"softcap": 0.0}, "softcap: expected a finite number above 0, got 0.0"),
        ({"width": 6, "heads": 2, "position": "rotary"}, "heads: expected an even head width .* got 2 of width 3"),
        (
            {"attention": "linear", "position": "alibi"},
            "position: expected none, sinusoidal or learned for linear attention",
        ),
        (
            {"attention": "linear", "position": "rotary"},
            "position: expected none, sinusoidal or learned for linear attention",
        ),
        ({"attention": "linear", "window": 3}, "window: expected none for linear attention, got 3"),
        ({"attention": "linear", "softcap": 3.0}, "softcap: expected none for linear attention, got 3.0"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)


@pytest.mark.parametrize(
    "options", [{"feed_forward": 1}, {"softcap": 0.5}, {"initial_deviation": 0.0}, {"window": 1}, {"dropout": 0.999}]
)
def test_the_limits_themselves_are_allowed(options):
    assert dataclasses.asdict(ModelConfig(**options)).items() >= options.items()


def test_numpys_integers_count():
    counts = {"vocabulary": 7, "context": 4, "width": 8, "layers": 2, "heads": 2, "key_value_heads": 1, "window": 3}
    assert ModelConfig(**{name: np.int64(count) for name, count in counts.items()}) == ModelConfig(**counts)


def test_a_config_never_changes():
    """So it can be a key, and the caches of a forward pass can keep it."""
    config = ModelConfig()
    assert {config: 1}[ModelConfig()] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = 2


def test_what_changes_the_plain_model_is_off_by_default():
    config = ModelConfig()
    assert not (config.qk_norm or config.scale_embedding or config.zero_projections or config.dropout)
    assert config.window is config.softcap is config.key_value_heads is config.feed_forward is None
    assert config.norm_epsilon == 1e-5  # torch's
