"""Attention: spec, twin and complex step; the twin's fused path against its explicit one; torch's own module as outsider."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from parity_tests.bounds import TWIN_FACTOR, bound_of
from parity_tests.compare import check_operation
from parity_tests.strategies import (
    arrays,
    attention_masks,
    configs,
    fewer,
    is_smooth,
    precisions,
    random_parameters,
    seeds,
    sizes,
)
from parity_tests.within import assert_within
from reference_numpy import attention as spec
from reference_numpy.config import ModelConfig
from reference_numpy.parameters import parameter_shapes, scope
from reference_numpy.position import alibi_slopes
from torch_impl import attention as twin
from torch_impl import position
from torch_impl.flash_attention import flash_attention

TWINS = {
    "explicit": lambda *arguments, **options: twin.scaled_dot_product_attention(*arguments, **options)[0],
    "fused": lambda *arguments, softcap, **options: flash_attention(*arguments, **options),
}


@pytest.mark.parametrize("path", TWINS)
@given(
    st.data(),
    *(sizes(1, 3), sizes(1, 3), sizes(0, 7), sizes(1, 7), sizes(1, 5)),
    *(st.booleans(), st.sampled_from([None, 1, 3]), st.booleans(), st.sampled_from([None, 1.5])),
    st.sampled_from([1e-30, 1.0, 4.0, 100.0]),
    *(precisions, seeds),
)
def test_parity(path, data, B, H, T, S, K, causal, window, alibi, softcap, magnitude, dtypes, seed):
    """Scores of up to 1e4 and down to 1e-60; every kind of mask, rows that may attend to nothing among them."""
    assume("bfloat16" not in dtypes or magnitude < 30)  # scores of 1e4 have no digit behind the point there
    mask = data.draw(attention_masks(B, H, T, S))
    check_attention(path, data, B, H, T, S, K, mask, causal, window, alibi, softcap, magnitude, dtypes, seed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("path", TWINS)
@fewer(5)
@given(st.data(), sizes(2, 5), sizes(2, 7), sizes(2, 5), st.booleans(), st.booleans(), st.sampled_from([1.0, 4.0]), seeds)
def test_lower_precision(path, dtype, data, T, S, K, causal, alibi, magnitude, seed):
    """Scores of ordinary size between several keys: no gradient is 0, so all of them round."""
    check_attention(path, data, 2, 3, T, S, K, None, causal, None, alibi, None, magnitude, (dtype,), seed)


def check_attention(path, data, B, H, T, S, K, mask, causal, window, alibi, softcap, magnitude, dtypes, seed):
    options = {
        "causal": causal,
        "window": window,
        "softcap": softcap if path == "explicit" else None,
    }
    shapes = {"query": (B, H, T, K), "key": (B, H, S, K), "value": (B, H, S, K)}
    arguments = {name: data.draw(arrays(shape, magnitude)) for name, shape in shapes.items()} | {"mask": mask}

    def backward(d_output, cache):
        return *spec.scaled_dot_product_attention_backward(d_output, cache), None

    def forward(query, key, value, mask):
        slopes = alibi_slopes(H, query.dtype) if alibi else None
        return spec.scaled_dot_product_attention_forward(query, key, value, mask, slopes=slopes, **options)

    def run_twin(query, key, value, mask):
        slopes = position.alibi_slopes(H, query.dtype, query.device) if alibi else None
        return TWINS[path](query, key, value, mask, slopes=slopes, **options)

    check_operation(
        f"attention, {path}",
        forward,
        backward,
        run_twin,
        arguments,
        dtypes=dtypes,
        seed=seed,
        either_attention=path == "fused",
    )


@given(
    st.integers(1, 4),
    *(sizes(1, 2), sizes(1, 3), sizes(2, 11), sizes(1, 3)),
    *(st.sampled_from([None, 1, 3]), st.booleans(), st.sampled_from([None, 1.5]), st.sampled_from([1.0, 30.0]), seeds),
)
def test_blocks_of_queries_are_the_whole(rows, B, H, T, K, window, alibi, softcap, magnitude, seed):
    """Causal attention a few queries at a time, and all at once: output, gradients, weights; the last block may be short."""
    options = {"window": window, "slopes": alibi_slopes(H, np.dtype(np.float64)) if alibi else None, "softcap": softcap}

    def run(forward, backward, **more):
        def both(query, key, value, d_output):
            output, cache = forward(query, key, value, **options, **more)
            return output, *backward(d_output, cache), cache.weights

        return both

    inputs = np.random.default_rng(seed).standard_normal((4, B, H, T, K)) * magnitude
    whole = run(spec.scaled_dot_product_attention_forward, spec.scaled_dot_product_attention_backward, causal=True)
    with patch.object(spec, "ROWS", rows):
        blocks = run(spec._causal_attention_forward, spec._causal_attention_backward)
        found = blocks(*inputs)
        _, own_bounds = bound_of(blocks, *inputs, format="float64")
    truths, bounds = bound_of(whole, *inputs, format="float64")
    names = "output", "d_query", "d_key", "d_value", "weights"
    for name, actual, truth, bound, own in zip(names, found, truths, bounds, own_bounds, strict=True):
        assert_within(actual, truth, bound + own, f"blocks against the whole, {name}")


@pytest.mark.parametrize("path", TWINS)
@given(st.data(), sizes(1, 3), sizes(1, 5), sizes(1, 7), seeds)
def test_what_padding_holds_is_never_seen(path, data, B, T, S, seed):
    """NaN and inf in keys and values that nobody may attend to change no bit of output or gradient."""
    generator = np.random.default_rng(seed)
    query, d_output = generator.standard_normal((2, B, 2, T, 3))
    key, value = generator.standard_normal((2, B, 2, S, 3))
    mask = (np.arange(S) < generator.integers(0, S + 1, B)[:, None])[:, None, None, :]
    results = []
    for garbage in (0.0, np.nan, np.inf):
        dirty_key, dirty_value = (np.where(mask.swapaxes(-1, -2), x, garbage) for x in (key, value))
        output, cache = spec.scaled_dot_product_attention_forward(query, dirty_key, dirty_value, mask)
        gradients = spec.scaled_dot_product_attention_backward(d_output, cache)
        tensors = [torch.tensor(x, requires_grad=True) for x in (query, dirty_key, dirty_value)]
        twin_output = TWINS[path](*tensors, torch.from_numpy(mask), softcap=None)
        twin_output.backward(torch.from_numpy(d_output))
        results.append([output, *gradients, twin_output.detach().numpy(), *(t.grad.numpy() for t in tensors)])
    for clean, *dirty in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        assert all((clean == other).all() for other in dirty)
    empty = ~mask.any(axis=-1)[:, 0, 0]
    for array in results[0]:
        assert (array[empty] == 0).all()  # a query that may attend to nothing: output 0, gradient 0


@pytest.mark.parametrize("path", TWINS)
def test_what_is_behind_the_window_is_never_seen(path):
    """The same without a mask: two queries at the end of six keys see at most three of them, 3 to 5."""
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, 2, 6, 3))
    results = []
    for garbage in ((0.0, 0.0), (np.nan, np.inf)):
        key[:, :, :3], value[:, :, :3] = garbage
        arguments = query[:, :, :2], key, value
        output, cache = spec.scaled_dot_product_attention_forward(*arguments, causal=True, window=2)
        gradients = spec.scaled_dot_product_attention_backward(np.ones_like(output), cache)
        tensors = [torch.tensor(x, requires_grad=True) for x in arguments]
        twin_output = TWINS[path](*tensors, None, softcap=None, causal=True, window=2)
        twin_output.sum().backward()
        results.append([output, *gradients, twin_output.detach().numpy(), *(t.grad.numpy() for t in tensors)])
    for clean, dirty in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        assert (clean == dirty).all()


@given(configs(attention="softmax"), sizes(1, 3), sizes(1, 5), sizes(1, 5), st.booleans(), st.booleans(), precisions, seeds)
def test_multi_head_parity(config, B, T, S, cross, causal, dtypes, seed):
    shapes = scope(parameter_shapes(config), f"{'decoder.' if config.kind == 'encoder_decoder' else ''}blocks.0.attention")
    check_multi_head("multi-head attention", config, shapes, B, T, S, cross, causal, dtypes, seed)


@given(configs(attention="linear"), sizes(1, 3), sizes(1, 5), sizes(1, 5), st.booleans(), st.booleans(), precisions, seeds)
def test_multi_head_linear_parity(config, B, T, S, cross, causal, dtypes, seed):
    shapes = scope(parameter_shapes(config), f"{'decoder.' if config.kind == 'encoder_decoder' else ''}blocks.0.attention")
    check_multi_head("multi-head linear attention", config, shapes, B, T, S, cross, causal and not cross, dtypes, seed)


def check_multi_head(name, config, shapes, B, T, S, cross, causal, dtypes, seed):
    parameters = random_parameters(shapes, seed)
    generator = np.random.default_rng(seed)
    memory = generator.standard_normal((B, S, config.width)) if cross else None
    keys = S if cross else T
    mask = (np.arange(keys) < generator.integers(0, keys + 1, B)[:, None])[:, None, None, :]
    arguments = {"x": generator.standard_normal((B, T, config.width)), "memory": memory} | parameters

    def forward(x, memory, *values):
        own = dict(zip(parameters, values, strict=True))
        return spec.multi_head_attention_forward(x, memory, own, config, mask, causal, cross=cross)

    def backward(d_output, cache):
        d_x, d_memory, d_parameters = spec.multi_head_attention_backward(d_output, cache)
        if not cross:
            d_x, d_memory = d_x + d_memory, None
        return d_x, d_memory, *(d_parameters[name] for name in parameters)

    module = twin.MultiHeadAttention(config, cross)

    def run_twin(x, memory, *values):
        own = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, own, (x, memory, torch.from_numpy(mask), causal))

    options = {"dtypes": dtypes, "seed": seed, "either_attention": True, "smooth": is_smooth(config)}
    check_operation(name, forward, backward, run_twin, arguments, **options)


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_a_mask_may_be_one_number(attention):
    """It broadcasts to every pair: to let all in is to have no mask."""
    config = ModelConfig(width=8, heads=2, layers=1, attention=attention)
    parameters = random_parameters(scope(parameter_shapes(config), "blocks.0.attention"), 0)
    x = np.random.default_rng(0).standard_normal((2, 3, 8))
    module, own = twin.MultiHeadAttention(config, False), {n: torch.from_numpy(p) for n, p in parameters.items()}
    for causal in (False, True):
        plain, one = (
            spec.multi_head_attention_forward(x, None, parameters, config, m, causal)[0] for m in (None, np.array(True))
        )
        assert (plain == one).all()
        plain, one = (
            torch.func.functional_call(module, own, (torch.from_numpy(x), None, m, causal))
            for m in (None, torch.tensor(True))
        )
        assert torch.equal(plain, one)


@given(sizes(1, 3), sizes(1, 7), sizes(1, 7), st.sampled_from([1, 2, 4]), st.booleans(), seeds)
def test_equals_torch_multihead_attention(B, T, S, heads, causal, seed):
    """torch.nn.MultiheadAttention with copied weights, an implementation that is not ours: output and weights."""
    config = ModelConfig(kind="encoder_decoder", width=4 * heads, heads=heads, layers=1)
    parameters = random_parameters(scope(parameter_shapes(config), "decoder.blocks.0.cross_attention"), seed)
    outsider = torch.nn.MultiheadAttention(config.width, heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for part in ("weight", "bias"):
            stacked = np.concatenate([parameters[f"{name}.{part}"] for name in ("query", "key", "value")])
            getattr(outsider, f"in_proj_{part}").copy_(torch.from_numpy(stacked))
            getattr(outsider.out_proj, part).copy_(torch.from_numpy(parameters[f"output.{part}"]))
    generator = np.random.default_rng(seed)
    x, memory = generator.standard_normal((B, T, config.width)), generator.standard_normal((B, S, config.width))
    mask = np.tri(T, S, dtype=bool) if causal else None  # torch aligns at the start, and so does this mask
    theirs, their_weights = outsider(
        *(torch.from_numpy(a) for a in (x, memory, memory)),
        attn_mask=None if mask is None else torch.from_numpy(~mask),  # torch: True = may not attend
        average_attn_weights=False,
    )

    def ours(x, memory, *values):
        own = dict(zip(parameters, values, strict=True))
        output, cache = spec.multi_head_attention_forward(x, memory, own, config, mask, cross=True)
        return output, cache.attention.weights

    (truth, weights), (bound, weights_bound) = bound_of(ours, x, memory, *parameters.values(), format="float64", factor=2.0)
    assert_within(theirs.detach().numpy(), truth, bound, "torch.nn.MultiheadAttention")
    assert_within(their_weights.detach().numpy(), weights, weights_bound, "torch.nn.MultiheadAttention, weights")


@pytest.mark.parametrize("key_value", [spec.KeyValue, twin.KeyValue])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_the_buffers_of_decoding_double_when_they_are_full(key_value, widths):
    """Nothing is lost on the way; a new buffer is made for what the old one cannot hold, and for as much again."""
    keep, room = key_value(), 0
    tokens = np.arange(2.0 * 3 * sum(widths)).reshape(2, 1, sum(widths), 3)
    tokens = tokens if key_value is spec.KeyValue else torch.from_numpy(tokens)
    for start, stop in itertools.pairwise(itertools.accumulate([0, *widths])):
        key, value = keep.append(tokens[:, :, start:stop], -tokens[:, :, start:stop])
        assert key.shape == value.shape == tokens[:, :, :stop].shape
        assert (key == tokens[:, :, :stop]).all()
        assert (value == -tokens[:, :, :stop]).all()
        room = room if stop <= room else max(16, 2 * stop)
        assert keep.key.shape[2] == keep.value.shape[2] == room


def test_a_buffer_with_room_grows_beyond_it():
    keep, tokens = twin.KeyValue(room=4), torch.arange(24.0).reshape(1, 1, 8, 3)
    for stop in range(1, 9):
        key, value = keep.append(tokens[:, :, stop - 1 : stop], -tokens[:, :, stop - 1 : stop])
        assert torch.equal(key, tokens[:, :, :stop])
        assert torch.equal(value, -tokens[:, :, :stop])
        assert stop > 4 or keep.key.shape[2] == 4


def test_cross_attention_needs_a_memory():
    """One of no tokens is one: every query gets 0, also from the cache. Without any, x is not taken for it."""
    config = ModelConfig(kind="encoder_decoder", width=4, heads=2, layers=1)
    parameters = random_parameters(scope(parameter_shapes(config), "decoder.blocks.0.cross_attention"), 0)
    module = twin.MultiHeadAttention(config, cross=True).double()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in parameters.items()})
    x, memory = np.ones((1, 2, 4)), np.ones((1, 0, 4))
    past, twin_past = spec.KeyValue(), twin.KeyValue()
    for given_memory in (memory, None):
        ours, _ = spec.multi_head_attention_forward(x, given_memory, parameters, config, past=past, cross=True)
        tensor = None if given_memory is None else torch.from_numpy(given_memory)
        theirs = module(torch.from_numpy(x), tensor, past=twin_past)
        for found in (ours, theirs.detach().numpy()):
            assert (found == parameters["output.bias"]).all()
    for past, twin_past in ((None, None), (spec.KeyValue(), twin.KeyValue())):
        with pytest.raises(ValueError, match="memory: expected one for cross-attention"):
            spec.multi_head_attention_forward(x, None, parameters, config, past=past, cross=True)
        with pytest.raises(ValueError, match="memory: expected one for cross-attention"):
            module(torch.from_numpy(x), past=twin_past)


def test_a_memory_is_for_cross_attention_and_given_once():
    config = ModelConfig(kind="encoder_decoder", width=4, heads=2, layers=1)
    parameters = random_parameters(scope(parameter_shapes(config), "decoder.blocks.0.cross_attention"), 0)
    x, past, twin_past = np.ones((1, 2, 4)), spec.KeyValue(), twin.KeyValue()
    with pytest.raises(ValueError, match="memory: expected none in self-attention, got one"):
        spec.multi_head_attention_forward(x, x, parameters, config)
    with pytest.raises(ValueError, match="memory: expected none in self-attention, got one"):
        twin.MultiHeadAttention(config).double()(torch.from_numpy(x), torch.from_numpy(x))
    module = twin.MultiHeadAttention(config, cross=True).double()
    spec.multi_head_attention_forward(x, x, parameters, config, past=past, cross=True)
    module(torch.from_numpy(x), torch.from_numpy(x), past=twin_past)
    with pytest.raises(ValueError, match="or a past that was filled by one, got both"):
        spec.multi_head_attention_forward(x, x, parameters, config, past=past, cross=True)
    with pytest.raises(ValueError, match="or a past that was filled by one, got both"):
        module(torch.from_numpy(x), torch.from_numpy(x), past=twin_past)


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_a_forward_with_a_past_has_no_backward(attention):
    config = ModelConfig(width=4, heads=2, layers=1, attention=attention)
    parameters = random_parameters(scope(parameter_shapes(config), "blocks.0.attention"), 0)
    x, past = np.ones((1, 2, 4)), spec.KeyValue()
    for _ in range(2):
        output, cache = spec.multi_head_attention_forward(x, None, parameters, config, causal=True, past=past)
        with pytest.raises(AssertionError, match="a forward with a past has no backward"):
            spec.multi_head_attention_backward(output, cache)


@given(st.data(), sizes(1, 3), sizes(0, 5), seeds)
def test_one_query_after_others(data, B, earlier, seed):
    """Where a past is continued by one token, no key is copied and none behind the window is read, whatever the mask: the
    same as the last row of all tokens at once."""
    config = data.draw(configs(kind="decoder", attention="softmax"))
    parameters = random_parameters(scope(parameter_shapes(config), "blocks.0.attention"), seed)
    T, x = earlier + 1, np.random.default_rng(seed).standard_normal((B, earlier + 1, config.width))
    mask = data.draw(attention_masks(B, config.heads, T, T))

    def whole(x, *values):
        own = dict(zip(parameters, values, strict=True))
        return spec.multi_head_attention_forward(x, None, own, config, mask, causal=True)[0][:, -1]

    truth, bound = bound_of(whole, x, *parameters.values(), format="float64", factor=2.0)
    module = twin.MultiHeadAttention(config).double()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in parameters.items()})
    rows_differ = mask is not None and mask.ndim > 1
    last = mask[..., -1:, :] if rows_differ else mask  # of the last query
    past, twin_past = spec.KeyValue(), twin.KeyValue()
    if earlier:  # what these give is not looked at
        spec.multi_head_attention_forward(x[:, :-1], None, parameters, config, causal=True, past=past)
        module(torch.from_numpy(x[:, :-1]), causal=True, past=twin_past)
    ours, _ = spec.multi_head_attention_forward(x[:, -1:], None, parameters, config, last, causal=True, past=past)
    assert_within(ours[:, 0], truth, bound, "spec")
    twin_mask = None if last is None else torch.from_numpy(np.array(last))
    theirs = module(torch.from_numpy(x[:, -1:]), mask=twin_mask, causal=True, past=twin_past)
    assert_within(theirs[:, 0].detach().numpy(), truth, bound, "twin")


@pytest.mark.parametrize(
    ("mask", "shared"),
    [
        *((shape, True) for shape in (None, (6,), (1, 6), (1, 1, 6), (1, 1, 1, 6), (1, 1, 1, 1))),
        *((shape, False) for shape in ((4, 1, 6), (1, 4, 1, 6))),
    ],
)
def test_one_query_copies_no_key(monkeypatch, mask, shared):
    """Two of four heads share a key, and decoding reads the buffers themselves, of a window its keys alone; unless a mask is
    another for each head."""
    config = ModelConfig(width=8, heads=4, key_value_heads=2, layers=1, window=3)
    parameters = random_parameters(scope(parameter_shapes(config), "blocks.0.attention"), 0)
    module = twin.MultiHeadAttention(config).double()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in parameters.items()})
    x, past, twin_past = np.ones((1, 5, 8)), spec.KeyValue(), twin.KeyValue()
    spec.multi_head_attention_forward(x, None, parameters, config, causal=True, past=past)
    module(torch.from_numpy(x), causal=True, past=twin_past)
    read = []
    for where, name in ((spec, "scaled_dot_product_attention_forward"), (twin, "flash_attention")):
        run = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *given, run=run, **rest: read.append(given) or run(*given, **rest))
    allowed = None if mask is None else np.ones(mask, bool)
    spec.multi_head_attention_forward(x[:, :1], None, parameters, config, allowed, causal=True, past=past)
    module(
        torch.from_numpy(x[:, :1]), mask=None if allowed is None else torch.from_numpy(allowed), causal=True, past=twin_past
    )
    for (query, key, value, _), kept in zip(read, (past, twin_past), strict=True):
        assert query.shape == ((1, 2, 2, 2) if shared else (1, 4, 1, 2))
        assert key.shape == value.shape == ((1, 2, 3, 2) if shared else (1, 4, 6, 2))
        for one, buffer in ((key, kept.key), (value, kept.value)):
            assert np.shares_memory(np.asarray(one.data), np.asarray(buffer.data)) == shared


def test_one_query_needs_no_causal_mask(monkeypatch):
    """It is the last and sees every key: decoding makes no mask, and takes the kernel that needs none."""
    asked, generator = [], np.random.default_rng(0)
    query, (key, value) = generator.standard_normal((1, 2, 1, 3)), generator.standard_normal((2, 1, 2, 5, 3))
    monkeypatch.setattr(spec, "allowed_pairs", lambda *arguments: asked.append(arguments[3]))

    def ours(*values):
        return spec.scaled_dot_product_attention_forward(*values, causal=True)[0]

    truth, bound = bound_of(ours, query, key, value, format="float64", factor=TWIN_FACTOR)
    assert set(asked) == {False}
    monkeypatch.setattr("torch_impl.flash_attention.allowed_pairs", None)
    theirs = flash_attention(*map(torch.from_numpy, (query, key, value)), causal=True)
    assert_within(theirs.numpy(), truth, bound, "one query")
