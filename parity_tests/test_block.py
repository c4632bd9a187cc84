"""Blocks: spec, twin and complex step, drawn from all options; torch's own encoder and decoder layers as outsiders."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.compare import bound_of_either, check_operation
from parity_tests.strategies import configs, is_smooth, precisions, random_parameters, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy import block as spec
from reference_numpy.config import ModelConfig
from reference_numpy.parameters import parameter_shapes, scope
from torch_impl import block as twin


def block_shapes(config, cross):
    return scope(parameter_shapes(config), "decoder.blocks.0" if cross else "blocks.0")


def padding(generator, B, S):
    """(B, 1, 1, S): real tokens first, some sequences empty."""
    return (np.arange(S) < generator.integers(0, S + 1, B)[:, None])[:, None, None, :]


@given(st.data(), st.booleans(), sizes(1, 2), sizes(1, 5), sizes(1, 5), st.booleans(), precisions, seeds)
def test_parity(data, cross, B, T, S, causal, dtypes, seed):
    config = data.draw(configs(kind="encoder_decoder" if cross else "decoder"))
    parameters = random_parameters(block_shapes(config, cross), seed)
    generator = np.random.default_rng(seed)
    mask, memory_mask = padding(generator, B, T), padding(generator, B, S)
    memory = generator.standard_normal((B, S, config.width)) if cross else None
    module = twin.Block(config, cross)

    def forward(x, memory, *values):
        own = dict(zip(parameters, values, strict=True))
        dropout = np.random.default_rng(seed)
        return spec.block_forward(x, own, config, mask, causal, memory, memory_mask, dropout)

    def backward(d_output, cache):
        d_x, d_memory, d_parameters = spec.block_backward(d_output, cache)
        return d_x, d_memory, *(d_parameters[name] for name in parameters)

    def run_twin(x, memory, *values):
        masks = torch.from_numpy(mask), causal, memory, torch.from_numpy(memory_mask), np.random.default_rng(seed)
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), (x, *masks))

    arguments = {"x": generator.standard_normal((B, T, config.width)), "memory": memory} | parameters
    check_operation(
        "decoder block" if cross else "block",
        forward,
        backward,
        run_twin,
        arguments,
        dtypes=dtypes,
        seed=seed,
        either_attention=True,
        smooth=is_smooth(config),
    )


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@given(st.data(), seeds)
def test_without_a_gradient_the_inputs_stay_as_they_are(norm_position, data, seed):
    config = data.draw(configs(kind="encoder_decoder", norm_position=norm_position))
    module = twin.Block(config, cross=True).double()
    generator = np.random.default_rng(seed)
    x, memory = (torch.from_numpy(generator.standard_normal((2, n, config.width))) for n in (3, 4))
    before = x.clone(), memory.clone()
    with torch.no_grad():
        module(x, None, True, memory, None, np.random.default_rng(seed))
    assert torch.equal(x, before[0])
    assert torch.equal(memory, before[1])


NAMES = {"attention": "self_attn", "cross_attention": "multihead_attn"}


def torch_layer(config, parameters, cross):
    """torch's encoder or decoder layer with these parameters."""
    maker = torch.nn.TransformerDecoderLayer if cross else torch.nn.TransformerEncoderLayer
    layer = maker(
        config.width,
        config.heads,
        config.inner_width,
        dropout=0.0,
        activation=config.activation,
        batch_first=True,
        norm_first=config.norm_position == "pre",
        layer_norm_eps=config.norm_epsilon,
        dtype=torch.float64,
    )
    return layer, {key: torch.tensor(value, requires_grad=True) for key, value in torch_names(parameters, cross).items()}


def torch_names(parameters, cross):
    """Our flat names -> torch's; it keeps query, key and value in one matrix."""
    renamed = {}
    for part in ("weight", "bias"):
        for ours, theirs in NAMES.items():
            if f"{ours}.query.{part}" in parameters:
                together = [parameters[f"{ours}.{name}.{part}"] for name in ("query", "key", "value")]
                renamed[f"{theirs}.in_proj_{part}"] = np.concatenate(together)
                renamed[f"{theirs}.out_proj.{part}"] = parameters[f"{ours}.output.{part}"]
        renamed[f"linear1.{part}"] = parameters[f"feed_forward.up.{part}"]
        renamed[f"linear2.{part}"] = parameters[f"feed_forward.down.{part}"]
        norms = ("attention", "cross_attention", "feed_forward") if cross else ("attention", "feed_forward")
        renamed |= {f"norm{i + 1}.{part}": parameters[f"{name}_norm.{part}"] for i, name in enumerate(norms)}
    return renamed


@pytest.mark.parametrize("cross", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@given(sizes(1, 3), sizes(1, 5), sizes(1, 5), st.sampled_from(["relu", "gelu"]), seeds)
def test_equals_torch_layer(cross, norm_position, B, T, S, activation, seed):
    """Output and every gradient of torch's own layer, with masks; it plays the twin."""
    config = ModelConfig(
        kind="encoder_decoder",
        width=6,
        heads=2,
        layers=1,
        feed_forward=5,
        norm_position=norm_position,
        activation=activation,
    )
    prefix = "decoder.blocks.0" if cross else "encoder.blocks.0"
    parameters = random_parameters(scope(parameter_shapes(config), prefix), seed)
    generator = np.random.default_rng(seed)
    # torch gives NaN where a query may attend to nothing, so here every sequence has a token
    key_padding, memory_padding = (np.arange(n) < generator.integers(1, n + 1, B)[:, None] for n in (T, S))
    layer, tensors = torch_layer(config, parameters, cross)
    x, memory = generator.standard_normal((B, T, 6)), generator.standard_normal((B, S, 6))
    d_output = generator.standard_normal((B, T, 6))

    def ours(x, memory, d_output, *values):
        own = dict(zip(parameters, values, strict=True))
        masks = key_padding[:, None, None], cross, memory if cross else None, memory_padding[:, None, None]
        y, cache = spec.block_forward(x, own, config, *masks)
        d_x, d_memory, d_parameters = spec.block_backward(d_output, cache)
        gradients = torch_names(d_parameters, cross)
        return {"output": y, "d_x": d_x, "d_memory": d_memory} | gradients

    truth, bound = bound_of_either(ours, x, memory, d_output, *parameters.values(), factor=2.0)
    x_tensor, memory_tensor = (torch.tensor(a, requires_grad=True) for a in (x, memory))
    not_real = [torch.from_numpy(~p) for p in (key_padding, memory_padding)]  # torch: True = padding
    if cross:
        options = {"tgt_mask": torch.ones(T, T).triu(1).bool(), "tgt_key_padding_mask": not_real[0]}
        options |= {"memory_key_padding_mask": not_real[1]}
        y = torch.func.functional_call(layer, tensors, (x_tensor, memory_tensor), options)
    else:
        y = torch.func.functional_call(layer, tensors, (x_tensor,), {"src_key_padding_mask": not_real[0]})
    y.backward(torch.from_numpy(d_output))
    theirs = {"output": y.detach(), "d_x": x_tensor.grad} | {name: t.grad for name, t in tensors.items()}
    if cross:
        theirs["d_memory"] = memory_tensor.grad
    for name, tensor in theirs.items():
        assert_within(tensor.numpy(), truth[name], bound[name], f"torch's layer, {name}")
