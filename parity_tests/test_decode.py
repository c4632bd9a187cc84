"""Decoding: cached and uncached, spec and twin, every option of the model; the searches against brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parity_tests.bounds import TWIN_FACTOR, bound_of
from parity_tests.compare import cast
from parity_tests.strategies import arrays, configs, fewer, random_padding, random_parameters, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy import decode as spec
from reference_numpy.block import BlockPast
from reference_numpy.config import ModelConfig
from reference_numpy.model import attention_weights, model_forward
from reference_numpy.parameters import parameter_shapes
from torch_impl import decode as twin
from torch_impl.block import BlockPast as TwinBlockPast
from torch_impl.linear import Linear, PackedLinear
from torch_impl.model import Transformer


def twin_of(config, parameters):
    module = Transformer(config).double()
    module.load_parameters(parameters)
    return module


def decoders(config, parameters, source=None, source_padding=None):
    """Spec and twin, each cached and not."""
    module = twin_of(config, parameters)
    for cached in (True, False):
        yield spec.CachedDecoder(parameters, config, source, source_padding, cached=cached)
        yield twin.CachedDecoder(module, source, source_padding, cached=cached)


def logits_within(config, parameters, tokens, **extra):
    """The true logits, and how far either twin's may be off."""

    def logits(*values):
        return model_forward(dict(zip(parameters, values, strict=True)), config, tokens, **extra)[0]

    return bound_of(logits, *parameters.values(), format="float64", factor=2.0)


def draw_source(config, B, generator):
    if config.kind != "encoder_decoder":
        return {}
    S = int(generator.integers(1, 6))
    source = generator.integers(0, config.vocabulary, (B, S))
    return {"source": source, "source_padding": random_padding(generator, B, S)}


@given(st.data(), st.sampled_from(["decoder", "encoder_decoder"]), sizes(1, 3), st.integers(1, 4), seeds)
def test_logits_token_by_token(data, kind, B, prompt, seed):
    """A prompt, then token by token, then two at once: the logits are those of one pass over everything."""
    config = data.draw(configs(kind=kind))
    generator = np.random.default_rng(seed)
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, extra = generator.integers(0, config.vocabulary, (B, 7)), draw_source(config, B, generator)

    truth, bound = logits_within(config, parameters, tokens, **extra)
    stops = [0, prompt, *range(prompt + 1, 6), 7]
    for decoder in decoders(config, parameters, **extra):
        for start, stop in itertools.pairwise(stops):
            found = decoder.append(tokens[:, start:stop])
            assert_within(found, truth[:, stop - 1], bound[:, stop - 1], f"logits after {stop} tokens")


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@fewer(5)
@given(st.data(), sizes(1, 3), seeds)
def test_logits_in_bfloat16(kind, data, B, seed):
    """Products of bfloat16 factors, the rest in float32: no further from the truth than if all were in bfloat16."""
    config = data.draw(configs(kind=kind, vocabulary=13, attention="softmax"))
    generator = np.random.default_rng(seed)
    parameters = {n: cast(p, "bfloat16") for n, p in random_parameters(parameter_shapes(config), seed).items()}
    tokens, extra = generator.integers(0, config.vocabulary, (B, 5)), draw_source(config, B, generator)

    def logits(*values):
        return model_forward(dict(zip(parameters, values, strict=True)), config, tokens, **extra)[0]

    truth, bound = bound_of(logits, *parameters.values(), format="bfloat16", factor=TWIN_FACTOR)
    assume(np.isfinite(bound).all())
    module = twin_of(config, parameters).float()
    decoder = twin.CachedDecoder(module, **extra, bfloat16=True)
    for stop in range(1, 6):
        found = decoder.append(tokens[:, stop - 1 : stop])
        assert_within(found, truth[:, stop - 1], bound[:, stop - 1], f"logits after {stop} tokens")


def test_every_linear_layer_is_packed():
    """But the head, which is none of a block; and of all models only where bfloat16 is asked for, something is rounded."""
    config = ModelConfig(kind="encoder_decoder", vocabulary=5, width=4, heads=2, layers=2, tied=False)
    module = twin_of(config, random_parameters(parameter_shapes(config), 0)).float()
    for bfloat16 in (False, True):
        packed = dict(twin.CachedDecoder(module, bfloat16=bfloat16)._model.named_modules())
        layers = {name: part for name, part in packed.items() if isinstance(part, PackedLinear)}
        # together, output, up, down of 2 encoder blocks; in 2 decoder blocks also query, key, value, output of the memory
        assert len(layers) == 2 * 4 + 2 * 8
        assert {part.in_bfloat16 for part in layers.values()} == {bfloat16}
        assert [name for name, part in packed.items() if isinstance(part, Linear)] == ["head"]


def test_a_decoder_leaves_its_model_as_it_is():
    """What is packed is a copy, and what is not packed is not copied."""
    config = ModelConfig(vocabulary=5, width=4, heads=2, layers=2)
    module = twin_of(config, random_parameters(parameter_shapes(config), 0))
    before = {name: (p.data_ptr(), p.dtype) for name, p in module.named_parameters()}
    decoder = twin.CachedDecoder(module)
    decoder.append(np.array([[1, 2]]))
    assert {name: (p.data_ptr(), p.dtype) for name, p in module.named_parameters()} == before
    assert list(module.state_dict()) == list(parameter_shapes(config))
    assert decoder._model.token_embedding.weight is module.token_embedding.weight
    assert decoder._model.final_norm.weight is module.final_norm.weight


@settings(max_examples=10)
@given(configs(kind="decoder", attention="softmax", context=50), seeds)
def test_a_long_text_token_by_token(config, seed):
    """Far beyond the room that a cache starts with: it grows, and forgets nothing."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens = np.random.default_rng(seed).integers(0, config.vocabulary, (2, 40))
    truth, bound = bound_of(
        lambda *values: model_forward(dict(zip(parameters, values, strict=True)), config, tokens)[0][:, -1],
        *parameters.values(),
        format="float64",
        factor=2.0,
    )
    for decoder in (spec.CachedDecoder(parameters, config), twin.CachedDecoder(twin_of(config, parameters))):
        for start, stop in itertools.pairwise([0, 3, *range(15, 41)]):
            found = decoder.append(tokens[:, start:stop])
        assert_within(found, truth, bound, "logits after 40 tokens")


@given(configs(kind="decoder"), sizes(1, 3), st.integers(1, 9), st.integers(0, 25), seeds)
def test_sampling_past_the_context(config, B, prompt, count, seed):
    """The same tokens, cached or not, from either twin, far beyond the context."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens = np.random.default_rng(seed).integers(0, config.vocabulary, (B, prompt))
    texts = [spec.sample(d, tokens, count, np.random.default_rng(seed)) for d in decoders(config, parameters)]
    assert texts[0].shape == (B, prompt + count)
    assert (texts[0][:, :prompt] == tokens).all()
    for text in texts[1:]:
        assert (text == texts[0]).all()


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_sampling_takes_what_cuts_it(options):
    """Each leaves the likeliest token alone, in both twins."""
    config = ModelConfig(vocabulary=31, width=8, heads=2, layers=1, context=20)
    parameters = random_parameters(parameter_shapes(config), 0)
    tokens = np.array([[3], [5]])
    for decoder in decoders(config, parameters):
        greedy = spec.greedy_search(decoder, 1, 3, -1, 12)
        decoder.restart()
        assert spec.sample(decoder, tokens, 12, np.random.default_rng(0), **options)[0, 1:].tolist() == greedy[0]
    for generate, first in ((spec.generate, (parameters, config)), (twin.generate, (twin_of(config, parameters),))):
        assert generate(*first, tokens[0], 12, np.random.default_rng(0), **options)[1:].tolist() == greedy[0]


def test_the_twin_writes_in_bfloat16_if_asked(monkeypatch):
    config, asked = ModelConfig(vocabulary=5, width=4, heads=1, layers=1), []
    module = twin_of(config, random_parameters(parameter_shapes(config), 0)).float()
    own = twin.CachedDecoder
    monkeypatch.setattr(twin, "CachedDecoder", lambda *a, **how: asked.append(how["bfloat16"]) or own(*a, **how))
    for bfloat16 in (False, True):
        twin.generate(module, np.array([1]), 1, np.random.default_rng(0), bfloat16=bfloat16)
    assert asked == [False, True]


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_more_than_a_block_of_tokens_after_others(monkeypatch, kind):
    """Their queries and the keys so far do not begin at the same place."""
    monkeypatch.setattr("reference_numpy.attention.ROWS", 2)
    config = ModelConfig(kind=kind, vocabulary=11, width=8, heads=2, layers=2, context=12)
    parameters, generator = random_parameters(parameter_shapes(config), 0), np.random.default_rng(0)
    tokens, extra = generator.integers(0, 11, (2, 12)), draw_source(config, 2, generator)
    truth, bound = logits_within(config, parameters, tokens, **extra)
    for decoder in decoders(config, parameters, **extra):
        for start, stop in ((0, 4), (4, 9), (9, 12)):
            found = decoder.append(tokens[:, start:stop])
            assert_within(found, truth[:, stop - 1], bound[:, stop - 1], f"logits after {stop} tokens")


def test_weights_of_a_single_token_are_kept():
    """Those of the last query, in a decoder that goes on from others."""
    config = ModelConfig(vocabulary=11, width=8, heads=2, layers=2, context=8)
    module = twin_of(config, random_parameters(parameter_shapes(config), 0))
    tokens, past, keep = torch.tensor([[1, 2, 3, 4]]), [TwinBlockPast(), TwinBlockPast()], []
    with torch.no_grad():
        module(tokens[:, :3], past=past)
        module(tokens[:, 3:], past=past, keep=keep)

    def weights(*values):
        _, cache = model_forward(dict(zip(parameter_shapes(config), values, strict=True)), config, tokens.numpy())
        return tuple(attention_weights(cache).values())

    values = (module.parameters_as_numpy()[name] for name in parameter_shapes(config))
    truths, bounds = bound_of(weights, *values, format="float64", factor=2.0)
    for found, truth, bound in zip(keep, truths, bounds, strict=True):
        assert_within(found.numpy(), truth[:, :, 3:], bound[:, :, 3:], "weights of the last query")


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_no_sequence_at_all(kind):
    config = ModelConfig(kind=kind, vocabulary=5, width=4, heads=2, layers=1)
    parameters, none = random_parameters(parameter_shapes(config), 0), np.zeros((0, 2), np.int64)
    extra = {"source": none} if kind == "encoder_decoder" else {}
    for decoder in decoders(config, parameters, **extra):
        assert spec.greedy_search(decoder, 0, 0, 1, 3) == []
        assert spec.beam_search(decoder, 0, 0, 1, 3, beams=2) == []
        assert spec.sample(decoder, none, 3, np.random.default_rng(0)).shape == (0, 5)


def test_of_no_tokens_the_score_is_that_of_certainty():
    assert spec.beam_search(Table(0), 1, 0, 2, 0) == [([], 0.0)]


@given(st.integers(0, 300), st.integers(1, 50))
def test_visible_from(length, context):
    """All that fits; beyond it the window moves by half of the context at a time."""
    assert spec.visible_from(context, context) == 0
    assert spec.visible_from(context + 1, context) == max(context // 2, 1)
    start = spec.visible_from(length, context)
    assert length - start <= context
    assert length - start >= min(length, context - max(context // 2, 1) + 1) or start == 0
    assert spec.visible_from(length, None) == 0


@given(configs(kind="decoder"), st.integers(1, 9), seeds)
def test_generate(config, prompt, seed):
    """One prompt without a batch axis is a batch of one, in both twins, cached or not."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens = np.random.default_rng(seed).integers(0, config.vocabulary, prompt)
    batch = spec.generate(parameters, config, tokens[None], 5, np.random.default_rng(seed))
    for generate, first in ((spec.generate, (parameters, config)), (twin.generate, (twin_of(config, parameters),))):
        for cached in (True, False):
            text = generate(*first, tokens, 5, np.random.default_rng(seed), cached=cached)
            assert text.shape == (prompt + 5,)
            assert (text == batch[0]).all()


def test_both_twins_write_on_beyond_the_context():
    """With extrapolate nothing is forgotten: not what a window gives, and the same from both."""
    config = ModelConfig(vocabulary=11, width=8, heads=2, layers=1, context=4, position="rotary")
    parameters = random_parameters(parameter_shapes(config), 0, size=1.0)
    both = (spec.generate, (parameters, config)), (twin.generate, (twin_of(config, parameters),))
    whole, windowed = (
        [
            generate(*first, np.array([1, 2, 3]), 20, np.random.default_rng(0), extrapolate=on).tolist()
            for generate, first in both
        ]
        for on in (True, False)
    )
    assert whole[0] == whole[1]
    assert windowed[0] == windowed[1] != whole[0]


def test_the_twin_decodes_in_inference_mode():
    """No graph is kept of what is never differentiated."""
    config = ModelConfig(vocabulary=5, width=4, heads=1, layers=1)
    module, modes = twin_of(config, random_parameters(parameter_shapes(config), 0)), []
    module.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    twin.generate(module, np.array([1, 2]), 3, np.random.default_rng(0))
    assert modes == [True] * 3


@given(st.data(), st.sampled_from(["decoder", "encoder_decoder"]), sizes(1, 3), st.sampled_from([1, 2, 3]), seeds)
def test_searches_agree(data, kind, B, beams, seed):
    """Greedy and beam search give the same sequences cached or not, from either twin."""
    config = data.draw(configs(kind=kind))
    generator = np.random.default_rng(seed)
    parameters = random_parameters(parameter_shapes(config), seed)
    extra, end = draw_source(config, B, generator), config.vocabulary - 1
    greedy = [spec.greedy_search(d, B, 0, end, 6) for d in decoders(config, parameters, **extra)]
    assert all(found == greedy[0] for found in greedy)
    found = [[h.tokens for h in spec.beam_search(d, B, 0, end, 6, beams)] for d in decoders(config, parameters, **extra)]
    assert all(sequences == found[0] for sequences in found)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint32"])
def test_tokens_may_be_integers_of_any_kind(dtype):
    config = ModelConfig(kind="encoder_decoder", vocabulary=5, context=4, width=4, heads=2, layers=1)
    parameters = random_parameters(parameter_shapes(config), 0)
    source, tokens = np.array([[1, 2, 3]]), np.array([[0, 4]])
    for decoder, other in zip(*(decoders(config, parameters, source.astype(d)) for d in ("int64", dtype)), strict=True):
        assert (other.append(tokens.astype(dtype)) == decoder.append(tokens)).all()


def test_a_prompt_of_bytes_is_followed_by_any_token():
    config = ModelConfig(vocabulary=400, context=8, width=8, layers=1, heads=2)
    parameters = random_parameters(parameter_shapes(config), 0)
    narrow, wide = (np.array([[1, 2], [3, 4]], dtype) for dtype in ("uint8", "int64"))
    texts = [spec.generate(parameters, config, prompt, 20, np.random.default_rng(0)) for prompt in (narrow, wide)]
    assert (texts[0] == texts[1]).all()
    assert texts[1].max() > 255


def test_what_could_not_be_appended_leaves_no_trace():
    config = ModelConfig(vocabulary=5, context=8, width=8, layers=1, heads=2)
    parameters = random_parameters(parameter_shapes(config), 0)
    for decoder, other in zip(decoders(config, parameters), decoders(config, parameters), strict=True):
        for each in (decoder, other):
            each.append(np.array([[1]]))
        with pytest.raises((ValueError, IndexError)):
            decoder.append(np.array([[5]]))
        assert (decoder.append(np.array([[2]])) == other.append(np.array([[2]]))).all()


def test_a_decoder_has_a_source_of_its_own():
    config = ModelConfig(kind="encoder_decoder", vocabulary=7, context=8, width=8, layers=1, heads=2)
    parameters = random_parameters(parameter_shapes(config), 0)
    given = np.array([[1, 2]]), np.array([[True, False]])
    changed = [array.copy() for array in given]
    expected = [decoder.append(np.array([[0]])) for decoder in decoders(config, parameters, *given)]
    made = list(decoders(config, parameters, *changed))
    changed[0][:], changed[1][:] = 3, True
    for decoder, logits in zip(made, expected, strict=True):
        assert (decoder.append(np.array([[0]])) == logits).all()


@pytest.mark.parametrize("tokens", [np.array([[1.7]]), np.array([[True]])], ids=["float", "bool"])
def test_tokens_that_are_no_integers_are_refused(tokens):
    config = ModelConfig(kind="encoder_decoder", vocabulary=7, context=8, width=8, layers=1, heads=2)
    parameters = random_parameters(parameter_shapes(config), 0)
    for decoder in decoders(config, parameters, np.array([[1, 2]])):
        with pytest.raises(ValueError, match=f"tokens: expected integers, got {tokens.dtype}"):
            decoder.append(tokens)
    with pytest.raises(ValueError, match=f"source: expected integers, got {tokens.dtype}"):
        twin.CachedDecoder(twin_of(config, parameters), tokens)
    with pytest.raises(ValueError, match=f"source: expected integers, got {tokens.dtype}"):
        spec.CachedDecoder(parameters, config, tokens).append(np.array([[0]]))
    for decoder in decoders(config, parameters, np.array([[1]]), np.ones((1, 1))):
        with pytest.raises(ValueError, match="source_padding: expected bool"):
            decoder.append(np.array([[0]]))


def test_a_decoder_can_search_again():
    """A search leaves out rows that are done and repeats others; the next one begins with the source as it was given."""
    config = ModelConfig(kind="encoder_decoder", vocabulary=7, context=8, width=8, layers=1, heads=2)
    parameters = random_parameters(parameter_shapes(config), 0)
    source = np.random.default_rng(0).integers(0, 7, (3, 4))
    padding = np.arange(4) < np.array([4, 2, 3])[:, None]
    for decoder in decoders(config, parameters, source, padding):
        found = [(spec.beam_search(decoder, 3, 0, 6, 5), spec.greedy_search(decoder, 3, 0, 6, 5)) for _ in range(2)]
        assert found[0] == found[1]


@given(configs(kind="decoder"), sizes(1, 3), st.integers(1, 6), seeds)
def test_padding_covers_earlier_tokens(config, B, first, seed):
    """With `past`, padding is over all tokens so far: what was padding then is not seen now."""
    generator = np.random.default_rng(seed)
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, padding = generator.integers(0, config.vocabulary, (B, 7)), random_padding(generator, B, 7)
    module = twin_of(config, parameters)

    def logits(*values):
        return model_forward(dict(zip(parameters, values, strict=True)), config, tokens, padding=padding)[0]

    truth, bound = bound_of(logits, *parameters.values(), format="float64", factor=2.0)
    pasts = [BlockPast() for _ in range(config.layers)], [TwinBlockPast() for _ in range(config.layers)]
    for start, stop in ((0, first), (first, 7)):
        new, so_far = tokens[:, start:stop], padding[:, :stop]
        ours, _ = model_forward(parameters, config, new, padding=so_far, past=pasts[0])
        theirs = module(torch.from_numpy(new), padding=torch.from_numpy(so_far), past=pasts[1]).detach().numpy()
        for name, found in (("spec", ours), ("twin", theirs)):
            assert_within(found, truth[:, start:stop], bound[:, start:stop], f"logits from token {start} on, {name}")


def test_a_new_decoder_has_the_parameters_of_now():
    """Nothing of an earlier one's packing is left."""
    config = ModelConfig(vocabulary=5, width=4, heads=2, layers=1)
    module = twin_of(config, random_parameters(parameter_shapes(config), 0))
    before = twin.CachedDecoder(module).append(np.array([[1, 2]]))
    module.load_parameters(random_parameters(parameter_shapes(config), 1))
    fresh = twin.CachedDecoder(twin_of(config, random_parameters(parameter_shapes(config), 1)))
    after = twin.CachedDecoder(module).append(np.array([[1, 2]]))
    assert (after == fresh.append(np.array([[1, 2]]))).all()
    assert (after != before).any()


def test_the_spec_decodes_in_the_format_of_its_parameters():
    config = ModelConfig(vocabulary=5, width=4, heads=2, layers=1, context=64, position="rotary")
    parameters = {n: p.astype(np.float32) for n, p in random_parameters(parameter_shapes(config), 0).items()}
    decoder = spec.CachedDecoder(parameters, config)
    assert {decoder.append(np.array([[t % 5]])).dtype for t in range(40)} == {np.dtype(np.float32)}
    assert decoder._past[0].own.key.dtype == np.float32


class Table:
    """A decoder with given logits for every prefix: vocabulary of 3, token 2 ends."""

    context = None

    def __init__(self, seed):
        self.seed = seed
        self.restart()

    def restart(self):
        self.rows = [[]]

    def select(self, rows):
        self.rows = [list(self.rows[row]) for row in rows]

    def append(self, tokens):
        self.rows = [[*row, *new] for row, new in zip(self.rows, tokens.tolist(), strict=True)]
        return np.stack([self.logits(row) for row in self.rows])

    def logits(self, prefix):
        return np.random.default_rng([self.seed, *prefix]).standard_normal(3) * 2


class Tables(Table):
    """Several rows, each with a table of its own."""

    def __init__(self, seed, rows):
        self.first = rows
        super().__init__(seed)

    def restart(self):
        self.rows = [[row] for row in self.first]


class Shifted(Table):
    def logits(self, prefix):
        return super().logits(prefix) + 1e4


def score_of(table, tokens, ended, alpha):
    """Log probability over length penalty, from the definition."""
    total, prefix = 0.0, [0]
    for token in [*tokens, *([2] if ended else [])]:
        logits = table.logits(prefix)
        total += logits[token] - math.log(sum(math.exp(z) for z in logits))
        prefix.append(token)
    return total / spec.length_penalty(len(tokens) + ended, alpha)


@given(seeds, st.integers(1, 3), st.integers(0, 6))
def test_greedy_search_takes_the_likeliest(seed, batch, maximum):
    """Row by row, token by token, from the definition; rows that end early do not disturb the others."""
    table, expected = Tables(seed, range(batch)), []
    for row in range(batch):
        prefix = [row, 0]
        while len(prefix) < maximum + 2 and (token := int(table.logits(prefix).argmax())) != 2:
            prefix.append(token)
        expected.append(prefix[2:])
    assert spec.greedy_search(table, batch, 0, 2, maximum) == expected


@given(seeds, st.integers(2, 3), st.integers(1, 6), st.sampled_from([1, 2, 4]))
def test_rows_are_searched_each_for_itself(seed, batch, maximum, beams):
    together = spec.beam_search(Tables(seed, range(batch)), batch, 0, 2, maximum, beams)
    alone = [spec.beam_search(Tables(seed, [row]), 1, 0, 2, maximum, beams)[0] for row in range(batch)]
    assert together == alone


@given(seeds, st.integers(1, 6))
def test_a_number_added_to_all_logits_changes_nothing(seed, maximum):
    """Nor does it overflow."""
    (ours,), (shifted,) = (spec.beam_search(table(seed), 1, 0, 2, maximum) for table in (Table, Shifted))
    assert shifted.tokens == ours.tokens
    logits = np.random.default_rng(seed).standard_normal((5, 7))
    ours, shifted = (spec.next_tokens(z, np.random.default_rng(seed), top_p=0.9) for z in (logits, logits + 1e4))
    assert (ours == shifted).all()


class Recorded(Table):
    """A table that remembers the shapes of what it was asked for."""

    def __init__(self, seed):
        self.asked = []
        super().__init__(seed)

    def append(self, tokens):
        self.asked.append(tokens.shape)
        return super().append(tokens)


def test_the_window_goes_on_from_its_last_half():
    """When the context is full: what is asked for then, token by token."""

    class Seen(Table):
        context = 6

        def __init__(self, seed):
            self.asked = []
            super().__init__(seed)

        def append(self, tokens):
            self.asked.append(tokens[0].tolist())
            return super().append(tokens)

    table = Seen(0)
    text = spec.sample(table, np.array([0, 1, 0, 1]), 8, np.random.default_rng(0)).tolist()
    expected = [text[:4], [text[4]], [text[5]], text[3:7], [text[7]], [text[8]], text[6:10], [text[10]]]
    assert table.asked == expected


@pytest.mark.parametrize("position", ["sinusoidal", "rotary", "alibi", "none"])
def test_positions_that_are_computed_have_no_last_one(position):
    config = ModelConfig(vocabulary=5, width=4, heads=2, layers=1, context=3, position=position)
    parameters = random_parameters(parameter_shapes(config), 0)
    tokens = np.arange(7)[None] % 5
    truth, bound = logits_within(config, parameters, tokens)
    assert_within(model_forward(parameters, config, tokens)[0], truth, bound, "logits beyond the context")
    with torch.no_grad():
        theirs = twin_of(config, parameters)(torch.from_numpy(tokens)).numpy()
    assert_within(theirs, truth, bound, "logits beyond the context, twin")


def test_extrapolation_knows_no_context():
    for position in ("sinusoidal", "rotary", "alibi", "none"):
        config = ModelConfig(vocabulary=5, width=4, heads=2, layers=1, context=4, position=position)
        assert spec.decoding_context(config, False) == 4
        assert spec.decoding_context(config, True) is None


def test_learned_positions_end_also_for_what_goes_on():
    config = ModelConfig(vocabulary=5, width=4, heads=2, layers=1, context=4)
    for decoder in decoders(config, random_parameters(parameter_shapes(config), 0)):
        decoder.append(np.array([[1, 2, 3, 4]]))
        with pytest.raises(ValueError, match="tokens: expected at most 4, the learned positions, got 5"):
            decoder.append(np.array([[1]]))


def test_probabilities_are_summed_in_float64():
    """So that equal logits give equal tokens, whatever their format."""
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((200, 20_000)).astype(np.float32)
    single, double = (spec.next_tokens(z, np.random.default_rng(1)) for z in (logits, logits.astype(np.float64)))
    assert (single == double).all()

    class Single(Table):
        def logits(self, prefix):
            return super().logits(prefix).astype(np.float32)

    class Double(Single):
        def logits(self, prefix):
            return super().logits(prefix).astype(np.float64)

    assert spec.beam_search(Single(0), 1, 0, 2, 5) == spec.beam_search(Double(0), 1, 0, 2, 5)


def test_a_token_is_computed_once():
    """What was decoded before is not decoded again while the window stays where it is."""
    table = Recorded(0)
    spec.sample(table, np.zeros((1, 3), np.int64), 5, np.random.default_rng(0))
    assert table.asked == [(1, 3), *[(1, 1)] * 4]


def test_beam_search_as_in_the_paper():
    """By default 4 beams and alpha 0.6 (Vaswani et al. 2017, section 6.1)."""
    for seed in range(20):
        table = Recorded(seed)
        assert spec.beam_search(table, 1, 0, 2, 6) == spec.beam_search(Table(seed), 1, 0, 2, 6, beams=4, alpha=0.6)
        assert set(table.asked) == {(4, 1)}


def test_searches_stop_when_nothing_open_can_win():
    class Ends(Recorded):
        def logits(self, prefix):
            return np.array([0.0, 0.0, 50.0])

    beams, greedy = Ends(0), Ends(0)
    (found,) = spec.beam_search(beams, 1, 0, 2, 9)
    assert found.tokens == []
    assert spec.greedy_search(greedy, 1, 0, 2, 9) == [[]]
    assert len(beams.asked) == len(greedy.asked) == 1


def test_where_every_continuation_ends():
    """With one token, which ends, there is nothing to go on with: the empty answer is certain."""

    class One(Table):
        def logits(self, prefix):
            return np.zeros(1)

    assert spec.beam_search(One(0), 1, 0, 0, 3, beams=2) == [spec.Hypothesis([], 0.0)]


def test_an_end_counts_among_twice_the_beams_only():
    """One beam looks at two continuations: an end in the third place is not taken, though it would have won."""

    class Third(Table):
        def logits(self, prefix):
            return np.log([0.5, 0.4, 0.1] if len(prefix) == 1 else [0.5, 0.499, 0.001])

    (found,) = spec.beam_search(Third(0), 1, 0, 2, 6, beams=1, alpha=0.0)
    assert found.tokens == [0] * 6


def test_length_penalty():
    """((5 + length) / 6)^alpha by hand (Wu et al. 2016, equation 14)."""
    assert spec.length_penalty(1, 0.6) == 1
    assert spec.length_penalty(7, 1.0) == 2
    assert spec.length_penalty(13, 2.0) == 9
    assert spec.length_penalty(13, 0.0) == 1


@given(seeds, st.sampled_from([0.0, 0.6, 1.0]), st.integers(1, 4))
def test_wide_beam_search_is_exhaustive(seed, alpha, maximum):
    """With as many beams as there are prefixes, the best of all sequences is found."""
    table = Table(seed)
    candidates = [
        (score_of(table, tokens, ended, alpha), list(tokens))
        for length in range(maximum + 1)
        for tokens in itertools.product([0, 1], repeat=length)
        for ended in (True, False)
        if (ended and length < maximum) or (not ended and length == maximum)
    ]
    best_score, best = max(candidates)
    (found,) = spec.beam_search(table, 1, 0, 2, maximum, beams=2**maximum, alpha=alpha)
    assert found.tokens == best
    assert abs(found.score - best_score) <= 64 * np.spacing(abs(best_score) + maximum)  # a few sums of a few terms


def test_a_long_answer_may_win_late():
    """An open prefix behind a finished one goes on as long as the penalty of the longest answer could make up for it."""

    class Late(Table):
        def logits(self, prefix):
            ends = {1: [0.35, 0.25, 0.4], 6: [0.01, 0.01, 0.98]}  # after the start, and after five tokens
            return np.log(ends.get(len(prefix), [0.98, 0.01, 0.01]))

    for beams in (1, 2):  # even of one beam the end that is likeliest at first does not take the place
        (found,) = spec.beam_search(Late(0), 1, 0, 2, 6, beams=beams, alpha=1.0)
        assert found.tokens == [0] * 5
    (found,) = spec.beam_search(Late(0), 1, 0, 2, 6, beams=2, alpha=0.0)  # without a penalty the short one stays ahead
    assert found.tokens == []


@given(seeds, st.integers(1, 6))
def test_one_beam_is_greedy_until_its_end(seed, maximum):
    """Without a penalty one beam that ends by its likeliest token is the greedy sequence."""
    (greedy,) = spec.greedy_search(Table(seed), 1, 0, 2, maximum)
    (found,) = spec.beam_search(Table(seed), 1, 0, 2, maximum, beams=1, alpha=0.0)
    if found.tokens[: len(greedy)] != greedy:  # beam search may have stopped at a finished prefix that scores higher
        assert greedy[: len(found.tokens)] == found.tokens


@given(
    st.data(),
    sizes(1, 3),
    sizes(1, 11),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([0.3, 0.9, 1.0]),
)
def test_cut_distribution(data, B, V, temperature, top_k, top_p):
    """Tokens outside the top k, or beyond the mass p, are never drawn; the likeliest always can be."""
    logits = data.draw(arrays((B, V)))
    generator = np.random.default_rng(0)
    order = np.argsort(-logits, axis=-1, kind="stable")
    for _ in range(5):
        chosen = spec.next_tokens(logits, generator, temperature, top_k, top_p)
        for b in range(B):
            p = np.exp((logits[b] - logits[b].max()) / temperature)
            kept = order[b][: top_k or V]
            mass = np.cumsum(p[kept] / p[kept].sum())
            # the first token at which the mass reaches p is the last allowed one; a rounding of the sum may move it by one
            allowed = kept[: int((mass < top_p).sum()) + 2]
            assert chosen[b] in allowed
    assert (spec.next_tokens(logits, generator, 0.0) == logits.argmax(-1)).all()
    assert (spec.next_tokens(logits, generator, 1.0, top_k=1) == order[:, 0]).all()


def test_the_likeliest_are_those_of_the_logits():
    """1 - 5e-324 rounds to 1: by the scaled logits tokens 0, 1 and 2 would be as likely, and token 2 would be cut."""
    logits = np.array([[0.0, 0.0, 5e-324, 1.0]])
    generator = np.random.default_rng(0)
    assert {int(spec.next_tokens(logits, generator, top_k=2)[0]) for _ in range(50)} == {2, 3}


def test_frequencies_are_the_probabilities():
    logits, count = np.array([0.0, 1.0, 2.0, -1.0]), 40_000
    drawn = spec.next_tokens(np.tile(logits, (count, 1)), np.random.default_rng(0), temperature=0.7)
    p = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    share = np.bincount(drawn, minlength=4) / count
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / count)).all()  # five deviations of a binomial share


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 0.45, [0.5]),
        (0, 0.55, [0.5, 0.25]),
        (0, 0.8, [0.5, 0.25, 0.15]),
        (2, 1.0, [0.5, 0.25]),
        (3, 0.8, [0.5, 0.25]),  # 0.75 of the 0.9 that top_k left
        (3, 0.9, [0.5, 0.25, 0.15]),
    ],
)
def test_what_a_cut_leaves(top_k, top_p, kept):
    """The tokens that are left are drawn in their proportions, the others never; probabilities 0.5, 0.25, 0.15, 0.1."""
    count, order = 10_000, [2, 0, 3, 1]  # token 2 is the likeliest
    logits = np.empty(4)
    logits[order] = np.log([0.5, 0.25, 0.15, 0.1])
    drawn = spec.next_tokens(np.tile(logits, (count, 1)), np.random.default_rng(0), top_k=top_k, top_p=top_p)
    p = np.zeros(4)
    p[order[: len(kept)]] = np.array(kept) / sum(kept)
    share = np.bincount(drawn, minlength=4) / count
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / count)).all()  # five deviations of a binomial share


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_token_takes_one_draw(temperature):
    """Whatever the temperature, so that what is drawn behind a text does not depend on it."""
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    spec.next_tokens(np.zeros((3, 2)), one, temperature)
    other.random(3)
    assert one.random() == other.random()


def test_a_tie_at_top_p_is_cut():
    """The first token alone reaches one half, so the second is one too many."""
    assert (spec.next_tokens(np.zeros((100, 2)), np.random.default_rng(0), top_p=0.5) == 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_the_likeliest_is_enough_where_it_reaches_top_p(seed):
    """Also where its probability is top_p to the last bit, which a difference of sums would not give back."""
    logits = np.random.default_rng(seed).standard_normal(50)
    p = np.exp(np.sort(logits)[::-1] - logits.max())
    p /= p.sum()
    drawn = spec.next_tokens(np.tile(logits, (200, 1)), np.random.default_rng(0), top_p=float(p[0]))
    assert (drawn == logits.argmax()).all()


@pytest.mark.parametrize(("draw", "token"), [(0.0, 0), (np.nextafter(0.5, 0), 0), (0.5, 1), (np.nextafter(1, 0), 1)])
def test_a_draw_is_looked_up(draw, token):
    """Two tokens of probability one half: the first has the draws from 0 to below one half."""

    class Fixed:
        def random(self, count):
            return np.full(count, draw)

    assert spec.next_token(np.zeros(2), Fixed()) == token


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected a finite number of at least 0, got -1.0"),
        ({"temperature": math.inf}, "temperature: expected a finite number of at least 0, got inf"),
        ({"top_p": 1.5}, "top_p: expected above 0 and at most 1, got 1.5"),
        ({"top_k": -1}, "top_k: expected at least 0, got -1"),
        ({"top_p": 0.0}, "top_p: expected above 0 and at most 1, got 0.0"),
        ({"temperature": math.nan}, "temperature: expected a finite number of at least 0, got nan"),
        ({"top_p": math.nan}, "top_p: expected above 0 and at most 1, got nan"),
    ],
)
def test_sampling_errors(options, message):
    with pytest.raises(ValueError, match=message):
        spec.next_token(np.zeros(3), np.random.default_rng(0), **options)


def test_errors():
    config = ModelConfig(vocabulary=3, width=4, heads=1, layers=1)
    parameters = random_parameters(parameter_shapes(config), 0)
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="tokens: expected at least 1 token to go on from, got 0"):
        spec.generate(parameters, config, np.zeros(0, np.int64), 3, generator)
    for decoder in decoders(config, parameters):
        with pytest.raises(ValueError, match="tokens: expected at least 1 to append, got 0"):
            decoder.append(np.zeros((1, 0), np.int64))
    with pytest.raises(ValueError, match="count: expected at least 0 tokens, got -1"):
        spec.generate(parameters, config, np.zeros(1, np.int64), -1, generator)
    with pytest.raises(ValueError, match="extrapolate: expected positions that are computed, got learned ones"):
        spec.generate(parameters, config, np.zeros(1, np.int64), 3, generator, extrapolate=True)
    with pytest.raises(ValueError, match="logits: expected finite numbers, got NaN or inf"):
        spec.next_token(np.array([0.0, np.nan]), generator)
    with pytest.raises(ValueError, match="kind: expected decoder or encoder_decoder to write text, got encoder"):
        spec.CachedDecoder(parameters, ModelConfig(kind="encoder"))
    with pytest.raises(ValueError, match="kind: expected decoder or encoder_decoder to write text, got encoder"):
        spec.decoding_context(ModelConfig(kind="encoder", position="rotary"), extrapolate=True)
    with pytest.raises(ValueError, match="beams: expected at least 1, got 0"):
        spec.beam_search(Table(0), 1, 0, 2, 3, beams=0)
    for alpha in (-1, math.inf, math.nan):  # a row would be done too early; all scores would be 0
        with pytest.raises(ValueError, match=f"alpha: expected a finite number of at least 0, got {alpha}"):
            spec.beam_search(Table(0), 1, 0, 2, 3, alpha=alpha)

    class Diverged(Table):
        def logits(self, prefix):
            return np.array([0.0, np.nan, 0.0])

    for search in (spec.beam_search, spec.greedy_search):
        with pytest.raises(ValueError, match="logits: expected finite numbers, got NaN or inf"):
            search(Diverged(0), 1, 0, 2, 3)
