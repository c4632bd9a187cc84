"""Whole models, drawn from all options crossed: loss and every gradient; causality; padding; batches."""

import pickle  # noqa: TID251  # as one process sends a model to another; no file is read
from typing import get_args
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from parity_tests import oracle
from parity_tests.bounds import bound_of
from parity_tests.compare import bound_of_either, check_operation
from parity_tests.strategies import (
    configs,
    fewer,
    is_smooth,
    precisions,
    random_padding,
    random_parameters,
    seeds,
    sizes,
)
from parity_tests.within import assert_within
from reference_numpy import attention
from reference_numpy import block as spec_block
from reference_numpy import model as spec
from reference_numpy.config import Kind, ModelConfig
from reference_numpy.dropout import dropout_mask
from reference_numpy.loss import cross_entropy_backward, cross_entropy_forward
from reference_numpy.parameters import initialize, parameter_count, parameter_shapes
from torch_impl.block import Block, BlockPast
from torch_impl.dropout import Share
from torch_impl.loss import cross_entropy
from torch_impl.model import Stack, Transformer


def draw_batch(config, B, T, S, seed):
    """Tokens, targets (some ignored), and the keyword arguments of a forward: padding, and source with its own."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, config.vocabulary, (B, T))
    targets = generator.integers(-1, config.vocabulary, (B, T))
    extra = {"padding": random_padding(generator, B, T)}
    if config.kind == "encoder_decoder":
        extra["source"] = generator.integers(0, config.vocabulary, (B, S))
        extra["source_padding"] = random_padding(generator, B, S)
    return tokens, targets, extra


def as_tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("kind", get_args(Kind))
@fewer(2)
@given(st.data(), sizes(1, 3), sizes(1, 7), sizes(1, 5), st.sampled_from([0.0, 0.1]), precisions, seeds)
def test_parity(kind, data, B, T, S, smoothing, dtypes, seed):
    """Loss and gradients of spec and twin, with padding, empty sequences, ignored targets, smoothing, dropout, ties."""
    check_model(data.draw(configs(kind=kind)), B, T, S, smoothing, dtypes, seed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", get_args(Kind))
@fewer(8)
@given(st.data(), sizes(3, 7), sizes(3, 5), seeds)
def test_lower_precision(kind, dtype, data, T, S, seed):
    """With several tokens to choose from and to attend to: no gradient is 0, so all of them round. In bfloat16 with smaller
    parameters: with the others rounding alone is as large as most of the gradients, and the bounds say so."""
    config = data.draw(configs(kind=kind, vocabulary=13, attention="softmax", window=None, bias=True))
    check_model(config, 3, T, S, 0.1, (dtype,), seed, size=0.1 if dtype == "bfloat16" else 0.5)


@fewer(4)
@given(configs(kind="decoder", attention="softmax"), sizes(3, 7), st.booleans(), st.integers(1, 3), seeds)
def test_parity_of_blocks_of_queries(config, T, padded, rows, seed):
    """As in training, where sequences are longer than a block: with window, ALiBi and soft cap; with padding as one."""
    with patch.object(attention, "ROWS", rows):
        check_model(config, 2, T, 1, 0.0, ("float64",), seed, padded)


def test_parity_of_more_than_ten_layers():
    """Their names are in the order of numbers, not of letters."""
    check_model(ModelConfig(vocabulary=3, context=4, width=2, heads=1, layers=11), 2, 3, 1, 0.0, ("float64",), 0)


def check_model(config, B, T, S, smoothing, dtypes, seed, padded=True, size=0.5):
    parameters = random_parameters(parameter_shapes(config), seed, size)
    tokens, targets, extra = draw_batch(config, B, T, S, seed)
    extra = extra if padded else {}
    module = Transformer(config)
    assert set(module.state_dict()) == set(parameters)

    def forward(*values):
        own = dict(zip(parameters, values, strict=True))
        logits, cache = spec.model_forward(own, config, tokens, generator=np.random.default_rng(seed), **extra)
        loss, loss_cache = cross_entropy_forward(logits, targets, smoothing)
        return loss, (cache, loss_cache)

    def backward(d_loss, caches):
        d_parameters = spec.model_backward(cross_entropy_backward(d_loss, caches[1]), caches[0])
        return tuple(d_parameters[name] for name in parameters)

    def run_twin(*values):
        own = dict(zip(parameters, values, strict=True))
        options = as_tensors(extra) | {"generator": np.random.default_rng(seed)}
        logits = torch.func.functional_call(module, own, (torch.from_numpy(tokens),), options)
        return cross_entropy(logits, torch.from_numpy(targets), smoothing)

    check_operation(
        f"model, {config.kind}",
        forward,
        backward,
        run_twin,
        parameters,
        dtypes=dtypes,
        seed=seed,
        either_attention=True,
        smooth=is_smooth(config),
    )


@given(configs(kind="decoder", dropout=0.0), sizes(1, 3), st.integers(1, 7), st.data())
def test_a_later_token_never_changes_an_earlier_logit(config, B, T, data):
    seed, at = data.draw(seeds), data.draw(st.integers(0, T - 1))
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, _, _ = draw_batch(config, B, T, 1, seed)
    other = tokens.copy()
    other[:, at:] = (other[:, at:] + 1) % config.vocabulary
    assert_same = np.testing.assert_array_equal  # the same operations on the same numbers: to the bit
    ours = [spec.model_forward(parameters, config, t)[0] for t in (tokens, other)]
    assert_same(ours[0][:, :at], ours[1][:, :at])
    module = Transformer(config).double()
    module.load_parameters(parameters)
    with torch.no_grad():
        theirs = [module(torch.from_numpy(t)).numpy() for t in (tokens, other)]
    assert_same(theirs[0][:, :at], theirs[1][:, :at])


@given(configs(kind="decoder", dropout=0.0, tied=False), seeds)
def test_causality_by_jacobian(config, seed):
    """d logits[t] / d embedding of token s is exactly 0 for s > t: by the spec's backward, one token per position."""
    T = 5
    config = ModelConfig(**(config.__dict__ | {"vocabulary": T}))
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens = np.arange(T)[None]  # each position its own row of the table, so the row's gradient is the position's
    logits, cache = spec.model_forward(parameters, config, tokens)
    for t in range(T):
        d_logits = np.zeros_like(logits)
        d_logits[0, t] = np.random.default_rng(seed).standard_normal(T)
        d_table = spec.model_backward(d_logits, cache)["token_embedding.weight"]
        assert (d_table[t + 1 :] == 0).all()


@given(configs(dropout=0.0), sizes(1, 2), sizes(1, 5), sizes(1, 5), seeds)
def test_against_the_definition(config, B, T, S, seed):
    """The oracle, which shares no code with the twins: a mistake that both of them made would show here."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, _, extra = draw_batch(config, B, T, S, seed)
    truth, bound = logits_bound(parameters, config, tokens, extra)
    assert_within(oracle.logits(parameters, config, tokens, **extra), truth, bound, "the definition")


@given(configs(dropout=0.25), sizes(1, 2), sizes(1, 4), sizes(1, 4), seeds)
def test_dropout_against_the_definition(config, B, T, S, seed):
    """Unit by unit, after the embedding and after each sub-layer of both stacks: with the masks that the spec drew."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, _, extra = draw_batch(config, B, T, S, seed)
    masks = []

    def drawn(*arguments):
        masks.append(dropout_mask(*arguments))
        return masks[-1]

    def logits(*values):
        own = dict(zip(parameters, values, strict=True))
        return spec.model_forward(own, config, tokens, generator=np.random.default_rng(seed), **extra)[0]

    truth, bound = bound_of(logits, *parameters.values(), format="float64", factor=2.0)
    with patch.object(spec_block, "dropout_mask", drawn):
        logits(*parameters.values())
    assert_within(oracle.logits(parameters, config, tokens, **extra, masks=masks), truth, bound, "the definition, dropout")


@given(configs(dropout=0.0), sizes(1, 3), sizes(1, 3), sizes(1, 3), seeds)
def test_padding_changes_nothing(config, B, T, S, seed):
    """Padding appended on either side, of any content, leaves the logits of the real tokens within rounding."""
    parameters = random_parameters(parameter_shapes(config), seed)
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, config.vocabulary, (B, T))
    extra, padded_extra = {}, {"padding": np.arange(T + 2) < np.full((B, 1), T)}
    if config.kind == "encoder_decoder":
        extra["source"] = generator.integers(0, config.vocabulary, (B, S))
        garbage = generator.integers(0, config.vocabulary, (B, 2))
        padded_extra["source"] = np.concatenate((extra["source"], garbage), axis=1)
        padded_extra["source_padding"] = np.arange(S + 2) < np.full((B, 1), S)
    padded = np.concatenate((tokens, generator.integers(0, config.vocabulary, (B, 2))), axis=1)
    truth, bound = logits_bound(parameters, config, tokens, extra)
    with_padding, _ = spec.model_forward(parameters, config, padded, **padded_extra)
    assert_within(with_padding[:, :T], truth, bound, "padded logits")


@given(configs(dropout=0.0), sizes(2, 5), sizes(1, 7), seeds)
def test_a_batch_is_its_sequences(config, B, T, seed):
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, _, extra = draw_batch(config, B, T, 3, seed)
    truth, bound = logits_bound(parameters, config, tokens, extra)
    for b in range(B):
        alone, _ = spec.model_forward(parameters, config, tokens[b : b + 1], **{k: v[b : b + 1] for k, v in extra.items()})
        assert_within(alone[0], truth[b], bound[b], "one sequence of the batch")


def logits_bound(parameters, config, tokens, extra, dropout_seed=None):
    """The true logits and their bound, for another order of the same operations."""

    def logits(*values):
        stream = None if dropout_seed is None else np.random.default_rng(dropout_seed)
        return spec.model_forward(dict(zip(parameters, values, strict=True)), config, tokens, generator=stream, **extra)[0]

    return bound_of(logits, *parameters.values(), format="float64", factor=2.0)


@given(configs(dropout=0.0, attention="softmax"), sizes(1, 3), sizes(1, 5), seeds)
def test_permuting_heads_changes_nothing(config, B, T, seed):
    """Heads are a set: with their projections permuted alike, and ALiBi apart (its slopes are ordered), nothing changes."""
    assume(config.position != "alibi" and config.key_heads == config.heads)
    parameters = random_parameters(parameter_shapes(config), seed)
    order = np.random.default_rng(seed).permutation(config.heads)
    channels = np.concatenate([np.arange(config.head_width) + h * config.head_width for h in order])
    permuted = {}
    for name, value in parameters.items():
        if "attention." in name and name.split(".")[-2] in ("query", "key", "value"):
            value = value[channels]
        elif name.endswith("attention.output.weight"):
            value = value[:, channels]
        permuted[name] = value
    tokens, _, extra = draw_batch(config, B, T, 3, seed)
    truth, bound = logits_bound(parameters, config, tokens, extra)
    assert_within(spec.model_forward(permuted, config, tokens, **extra)[0], truth, bound, "heads permuted")


ONE_TOKEN = ModelConfig(  # repeated, it has equal keys, which torch's product may round differently
    kind="encoder_decoder", vocabulary=1, width=24, heads=4, layers=1, context=7, position="none", bias=False
)


@given(configs(attention="softmax", dropout=0.0), sizes(1, 3), sizes(1, 5), seeds)
@example(ONE_TOKEN, 2, 1, 24)
@example(ONE_TOKEN, 2, 7, 0)
def test_attention_weights(config, B, T, seed):
    """The same names and weights from both twins; rows sum to 1, or to 0 where there is nothing to attend to."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, _, extra = draw_batch(config, B, T, 3, seed)
    module = Transformer(config).double()
    module.load_parameters(parameters)
    theirs = module.attention_weights(torch.from_numpy(tokens), **as_tensors(extra))
    assert not any(weights.requires_grad for weights in theirs.values())

    def weights(*values):
        _, cache = spec.model_forward(dict(zip(parameters, values, strict=True)), config, tokens, **extra)
        return spec.attention_weights(cache)

    truth, bound = bound_of(weights, *parameters.values(), format="float64", factor=2.0)
    assert list(theirs) == list(truth)
    for name, array in theirs.items():
        assert_within(array.detach().numpy(), truth[name], bound[name], name)
        totals, slack = truth[name].sum(axis=-1), bound[name].sum(axis=-1)
        assert ((np.abs(totals - 1) <= slack) | (totals == 0)).all()


@given(configs(), sizes(1, 3), seeds)
def test_rate_0_draws_nothing(config, B, seed):
    """A model without dropout leaves the stream of random numbers as it is, in both twins."""
    config = ModelConfig(**(config.__dict__ | {"dropout": 0.0}))
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, _, extra = draw_batch(config, B, 3, 3, seed)
    module = Transformer(config).double()
    module.load_parameters(parameters)
    stream, untouched = np.random.default_rng(seed), np.random.default_rng(seed)
    spec.model_forward(parameters, config, tokens, generator=stream, **extra)
    module(torch.from_numpy(tokens), generator=stream, **as_tensors(extra))
    assert stream.bit_generator.state == untouched.bit_generator.state


STREAMS = {
    "evaluation": lambda seed, B: None,
    "NumPy": lambda seed, B: np.random.default_rng(seed),
    "torch": lambda seed, B: torch.Generator().manual_seed(seed),
    "device": lambda seed, B: torch.device("cpu"),
    "share": lambda seed, B: Share(np.random.default_rng(seed), slice(1, B + 1), B + 2),
    "share of torch's": lambda seed, B: Share(torch.Generator().manual_seed(seed), slice(1, B + 1), B + 2),
    "share of a device's": lambda seed, B: Share(torch.device("cpu"), slice(1, B + 1), B + 2),
}


@pytest.mark.parametrize("stream", STREAMS)
@fewer(4)
@given(configs(dropout=0.25), sizes(1, 3), sizes(1, 5), seeds)
def test_recomputed_blocks_are_the_same_blocks(stream, config, B, T, seed):
    """Loss and gradients to the bit, the same units dropped; a block runs once more for every backward pass, and
    once where nothing is learned."""
    tokens, targets, extra = draw_batch(config, B, T, 3, seed)
    module = Transformer(config).double()
    module.load_parameters(random_parameters(parameter_shapes(config), seed))
    assert not module.recompute
    runs, results, after = [], [], []
    for block in (m for m in module.modules() if isinstance(m, Block)):
        block.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    for again in (False, True):
        for stack in (m for m in module.modules() if isinstance(m, Stack)):
            stack.recompute = again
        runs.clear()
        module.zero_grad()
        generator = STREAMS[stream](seed, B)
        with torch.random.fork_rng():
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
            logits = module(torch.from_numpy(tokens), generator=generator, **as_tensors(extra))
            loss = cross_entropy(logits, torch.from_numpy(targets))
            loss.backward(retain_graph=True)
            once = [p.grad.clone() for p in module.parameters()]
            loss.backward()  # again, with the same units dropped
            assert all(torch.equal(p.grad, 2 * gradient) for p, gradient in zip(module.parameters(), once, strict=True))
            drawn = torch.rand(1) if generator is None or "device" in stream else None  # torch's own stream is as it was
            count = len(runs)
            next_step = module(torch.from_numpy(tokens), generator=generator, **as_tensors(extra))
            after.append((drawn, next_step.detach()))  # the next step drops what it would have dropped
        results.append([loss.detach().numpy(), *(p.grad.numpy() for p in module.parameters())])
        assert count == config.layers * (2 if config.kind == "encoder_decoder" else 1) * (3 if again else 1)
        with torch.no_grad():
            runs.clear()
            module(torch.from_numpy(tokens), **as_tensors(extra))
            assert len(runs) == config.layers * (2 if config.kind == "encoder_decoder" else 1)
    (drawn, next_step), (drawn_again, next_step_again) = after
    assert drawn == drawn_again
    assert torch.equal(next_step, next_step_again)
    for once, twice in zip(*results, strict=True):
        np.testing.assert_array_equal(once, twice)


def small_twin(**changes):
    config = ModelConfig(**({"vocabulary": 7, "context": 8, "width": 8, "layers": 2, "heads": 2} | changes))
    parameters = random_parameters(parameter_shapes(config), 0)
    module = Transformer(config).double()
    module.load_parameters(parameters)
    return config, parameters, module


def test_what_a_caller_draws_between_two_backward_passes_stays_drawn():
    _, _, module = small_twin(dropout=0.25)
    module.recompute, stream = True, np.random.default_rng(0)
    loss = module(torch.tensor([[1, 2, 3]]), generator=stream).square().sum()
    loss.backward(retain_graph=True)
    stream.random(7)
    drawn = stream.bit_generator.state
    loss.backward()
    assert stream.bit_generator.state == drawn


def test_with_a_past_no_block_is_recomputed():
    """It would be on keys that hold its own already."""
    tokens, gradients = torch.tensor([[1, 2, 3]]), []
    for again in (False, True):
        _, _, module = small_twin()
        module.recompute = again
        module(tokens, past=[BlockPast(), BlockPast()]).square().sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_generator_alone_switches_dropout_on(norm_position, kind):
    """Not train() and eval(), and with a past as without one: in both twins the same units."""
    config, parameters, module = small_twin(dropout=0.25, norm_position=norm_position, kind=kind)
    tokens, _, extra = draw_batch(config, 2, 3, 3, 0)
    truth, bound = logits_bound(parameters, config, tokens, extra, dropout_seed=0)
    evaluated, _ = logits_bound(parameters, config, tokens, extra)
    assert (np.abs(truth - evaluated) > 2 * bound).any()
    for training in (True, False):
        for past in (None, [BlockPast(), BlockPast()]):
            options = {"generator": np.random.default_rng(0), "past": past}
            logits = module.train(training)(torch.from_numpy(tokens), **options, **as_tensors(extra))
            assert_within(logits.detach().numpy(), truth, bound, f"twin, train({training})")
    past = [spec_block.BlockPast(), spec_block.BlockPast()]
    logits, _ = spec.model_forward(parameters, config, tokens, generator=np.random.default_rng(0), past=past, **extra)
    assert_within(logits, truth, bound, "spec with a past")


FROZEN = ["query.weight", "key.weight", "value.bias", "attention.output", "norm", "embedding", "down.weight", "blocks.0"]


@pytest.mark.parametrize("frozen", FROZEN)
def test_what_learns_beside_something_frozen_has_its_own_gradients(frozen):
    config, parameters, module = small_twin()
    tokens = np.array([[1, 2, 3]])

    def gradients(*values):
        logits, cache = spec.model_forward(dict(zip(parameters, values, strict=True)), config, tokens)
        return spec.model_backward(2 * logits, cache)

    truth, bound = bound_of_either(gradients, *parameters.values(), factor=2.0)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(frozen not in name)
    module(torch.from_numpy(tokens)).square().sum().backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert set(found) == {name for name in parameters if frozen not in name} != set(parameters)
    for name, gradient in found.items():
        assert_within(gradient.numpy(), truth[name], bound[name], name)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=["no sequence", "no token"])
@pytest.mark.parametrize("changes", [{}, {"key_value_heads": 1, "position": "rotary"}, {"attention": "linear"}], ids=str)
def test_of_nothing_the_gradients_are_zero(changes, shape):
    config, parameters, module = small_twin(**changes)
    tokens = np.zeros(shape, np.int64)
    loss, gradients = spec.loss_and_gradients(parameters, config, tokens, tokens)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients.values())
    twins = cross_entropy(module(torch.from_numpy(tokens)), torch.from_numpy(tokens))
    twins.backward()
    assert twins == 0
    assert not any(p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("window", [None, 2, 9])
@pytest.mark.parametrize("heads", [1, 2])
def test_attention_weights_of_one_token_after_others(window, heads):
    """Of all keys and heads, as without a past."""
    config, parameters, _ = small_twin(window=window, key_value_heads=heads)
    tokens, past = np.array([[1, 2, 3, 4, 5]]), [spec_block.BlockPast(), spec_block.BlockPast()]

    def weights(*values):
        return spec.attention_weights(spec.model_forward(dict(zip(parameters, values, strict=True)), config, tokens)[1])

    truth, bound = bound_of(weights, *parameters.values(), format="float64", factor=2.0)
    spec.model_forward(parameters, config, tokens[:, :4], past=past)
    _, last = spec.model_forward(parameters, config, tokens[:, 4:], past=past)
    for name, array in spec.attention_weights(last).items():
        assert_within(array, truth[name][:, :, 4:], bound[name][:, :, 4:], name)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_a_residual_stream_in_bfloat16_is_for_autocast(norm, kind):
    """Inside, every block reads bfloat16 and the logits stay near; outside, and without it, nothing changes."""
    config = ModelConfig(kind=kind, vocabulary=7, context=8, width=16, layers=2, heads=2, norm=norm, norm_position="pre")
    tokens, _, extra = draw_batch(config, 2, 5, 4, 0)
    module = Transformer(config)
    module.load_parameters(initialize(config, np.random.default_rng(0)))
    formats, logits = [], {}
    for block in (m for m in module.modules() if isinstance(m, Block)):
        block.register_forward_pre_hook(lambda _, arguments: formats.append(arguments[0].dtype))
    for dtype in (None, torch.bfloat16):
        module.residual_dtype = dtype
        for inside in (False, True):
            formats.clear()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                logits[dtype, inside] = module(torch.from_numpy(tokens), **as_tensors(extra))
            assert set(formats) == {torch.bfloat16 if dtype is not None and inside else torch.float32}
    assert torch.equal(logits[None, False], logits[torch.bfloat16, False])
    wide, narrow = logits[None, True].float(), logits[torch.bfloat16, True].float()
    assert 0 < (narrow - wide).norm() < 4 * torch.finfo(torch.bfloat16).eps * wide.norm()


@given(configs(), seeds)
def test_float32_stays_float32(config, seed):
    """No float64 sneaks in: logits, loss and gradients of float32 parameters are float32."""
    parameters = initialize(config, np.random.default_rng(seed))
    tokens, targets, extra = draw_batch(config, 2, 3, 3, seed)
    for padded in (extra, {name: array for name, array in extra.items() if "padding" not in name}):
        with patch.object(attention, "ROWS", 2):  # blocks of queries, where there is no padding
            logits, cache = spec.model_forward(parameters, config, tokens, generator=np.random.default_rng(seed), **padded)
            loss, gradients = spec.loss_and_gradients(
                parameters, config, tokens, targets, label_smoothing=0.1, generator=np.random.default_rng(seed), **padded
            )
        weights = spec.attention_weights(cache).values() if config.attention == "softmax" else ()
        assert {a.dtype for a in (logits, loss, *gradients.values(), *weights)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "make", [lambda *a, **b: spec_logits(*a, **b), lambda *a, **b: twin_logits(*a, **b)], ids=["spec", "twin"]
)
def test_errors(make):
    with pytest.raises(ValueError, match="tokens: expected at most 4, the learned positions, got 5"):
        make(ModelConfig(context=4, position="learned"))
    with pytest.raises(ValueError, match="source: expected one for kind encoder_decoder, got none"):
        make(ModelConfig(context=8, kind="encoder_decoder"))
    source = np.zeros((1, 6), np.int64)
    for kind in ("decoder", "encoder"):
        with pytest.raises(ValueError, match=f"source: expected none for kind {kind}, got one"):
            make(ModelConfig(context=8, kind=kind), source=source)
    with pytest.raises(ValueError, match="source: expected at most 5, the learned positions, got 6"):
        make(ModelConfig(context=5, kind="encoder_decoder"), source=source)
    for padding in (np.ones((1, 4), bool), np.ones(5, bool), np.ones((2, 5), bool), np.ones((1, 5))):
        with pytest.raises(ValueError, match=r"^padding: expected bool of shape \(B, S\) = \(1, 5\), got "):
            make(ModelConfig(context=8), padding=padding)
    with pytest.raises(
        ValueError, match=r"^source_padding: expected bool of shape \(B, S\) = \(1, 6\), got .*bool \(1, 5\)"
    ):
        make(ModelConfig(context=8, kind="encoder_decoder"), source=source, source_padding=np.ones((1, 5), bool))
    with pytest.raises(
        ValueError, match=r"^source_padding: expected bool of shape \(B, S\) = \(1, 0\), got .*bool \(1, 5\)"
    ):
        make(ModelConfig(context=8), source_padding=np.ones((1, 5), bool))


def test_a_source_comes_once():
    config = ModelConfig(vocabulary=7, context=8, width=8, layers=1, heads=2, kind="encoder_decoder")
    tokens, source, module = np.zeros((1, 2), np.int64), np.zeros((1, 3), np.int64), Transformer(config)
    parameters = initialize(config, np.random.default_rng(0))
    past, twins = [spec_block.BlockPast()], [BlockPast()]
    spec.model_forward(parameters, config, tokens, source=source, past=past)
    module(torch.from_numpy(tokens), source=torch.from_numpy(source), past=twins)
    message = "source: expected none for kind encoder_decoder that goes on from a past, got one"
    with pytest.raises(ValueError, match=message):
        spec.model_forward(parameters, config, tokens, source=source, past=past)
    with pytest.raises(ValueError, match=message):
        module(torch.from_numpy(tokens), source=torch.from_numpy(source), past=twins)


def test_a_token_of_the_source_out_of_range_is_named():
    with pytest.raises(ValueError, match="source: expected 0 to 64, got 0 to 65"):
        spec_logits(ModelConfig(context=8, kind="encoder_decoder"), source=np.array([[0, 65]]))


@pytest.mark.parametrize("name", ["kind", "position", "norm", "norm_position", "activation", "attention"])
def test_a_choice_that_there_is_not(name):
    with pytest.raises(ValueError, match=f"{name}: expected one of .*, got rotory"):
        ModelConfig(**{name: "rotory"})


def test_linear_attention_forms_no_weights():
    config = ModelConfig(context=8, attention="linear")
    message = "attention: expected softmax attention to look at, got linear, which forms no weights"
    with pytest.raises(ValueError, match=message):
        spec.attention_weights(spec_logits(config)[1])
    with pytest.raises(ValueError, match=message):
        Transformer(config).attention_weights(torch.zeros((1, 5), dtype=torch.int64))


def spec_logits(config, **arguments):
    parameters, tokens = initialize(config, np.random.default_rng(0)), np.zeros((1, 5), np.int64)
    return spec.model_forward(parameters, config, tokens, **arguments)


def twin_logits(config, **arguments):
    module = Transformer(config)
    module.load_parameters(initialize(config, np.random.default_rng(0)))
    arguments = {name: torch.from_numpy(array) for name, array in arguments.items()}
    return module(torch.zeros((1, 5), dtype=torch.int64), **arguments)


def test_parameter_count_of_a_small_model():
    """By hand: table 65 x 128, positions 64 x 128; 4 blocks of 12 D^2 + 13 D; final norm 2 D (GPT-2's sum)."""
    D = 128
    assert parameter_count(ModelConfig()) == 65 * D + 64 * D + 4 * (12 * D * D + 13 * D) + 2 * D


def test_weights_are_kept_once_where_blocks_are_recomputed():
    config = ModelConfig(vocabulary=7, context=4, width=8, layers=2, heads=2)
    module = Transformer(config)
    module.load_parameters(random_parameters(parameter_shapes(config), 0))
    module.recompute, keep = True, []
    module(torch.zeros((1, 3), dtype=torch.int64), keep=keep).sum().backward()
    assert len(keep) == 2
    assert all(weights.requires_grad for weights in keep)  # so that a loss may ask something of them


def test_blocks_are_recomputed_in_evaluation_too():
    """It is not train() that says whether gradients are wanted."""
    config, runs = ModelConfig(vocabulary=7, context=4, width=8, layers=1, heads=2), []
    module = Transformer(config).eval()
    module.recompute = True
    module.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    module(torch.zeros((1, 3), dtype=torch.int64)).sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_model_can_be_pickled(activation):
    module = Transformer(ModelConfig(vocabulary=7, context=4, width=8, layers=1, heads=2, activation=activation))
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(pickle.loads(pickle.dumps(module))(tokens), module(tokens))
