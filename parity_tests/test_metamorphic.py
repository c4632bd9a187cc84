"""Properties that need no expected value: what must not change, or must change in a known way, when the input does.

Others stand where they belong: a shift of the scores (test_softmax), masked garbage and empty rows (test_attention),
causality, padding, permuted heads (test_model), cached against uncached decoding (test_decode). That <u, J v> = <J' u, v>
is what the complex step along a line asserts in every check_operation: its left side is Im f(x + i h v) . u / h.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.bounds import bound_of
from parity_tests.compare import bound_of_either
from parity_tests.strategies import configs, fewer, random_parameters, seeds, sizes
from parity_tests.test_model import as_tensors, draw_batch
from parity_tests.within import assert_within
from reference_numpy import model as spec
from reference_numpy.loss import cross_entropy_forward
from reference_numpy.parameters import parameter_shapes
from torch_impl.loss import cross_entropy
from torch_impl.model import Transformer

TWINS = ["spec", "twin"]


def spec_run(parameters, config, tokens, targets, extra, count=None):
    """Loss and gradients of the spec, in one dictionary."""
    options = {"label_smoothing": 0.1, "count": count} | extra
    loss, gradients = spec.loss_and_gradients(parameters, config, tokens, targets, **options)
    return {"loss": loss} | gradients


def twin_run(parameters, config, tokens, targets, extra, count=None):
    """The same of the twin, in evaluation as well."""
    module = Transformer(config).double()
    module.load_parameters(parameters)
    logits = module(torch.from_numpy(tokens), **as_tensors(extra))
    loss = cross_entropy(logits, torch.from_numpy(targets), 0.1, count)
    loss.backward()
    found = {"loss": loss.detach().numpy()}
    return found | {name: p.grad.numpy() for name, p in module.named_parameters()}


RUN = dict(zip(TWINS, (spec_run, twin_run), strict=True))


def modelled(parameters, function):
    """(truth, bound) of a function of the parameters; twice the bound, since what is compared rounds in another order."""
    names = list(parameters)
    return bound_of_either(lambda *values: function(dict(zip(names, values, strict=True))), *parameters.values(), factor=2.0)


def assert_same(found, truth, bound, what):
    assert found.keys() == truth.keys()
    for name, value in found.items():
        assert_within(value, truth[name], bound[name], f"{what}, {name}")


def part(extra, rows):
    return {name: value[rows] for name, value in extra.items()}


@fewer(4)
@pytest.mark.parametrize("which", TWINS)
@given(configs(dropout=0.0), sizes(2, 5), sizes(1, 5), seeds)
def test_microbatches_are_the_batch(which, config, B, T, seed):
    """Losses and gradients of the parts, each over the count of the whole, add up to those of the whole."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, targets, extra = draw_batch(config, B, T, 3, seed)
    count = max(int((targets != -1).sum()), 1)
    truth, bound = modelled(parameters, lambda p: spec_run(p, config, tokens, targets, extra))
    cut = 1 + seed % (B - 1)
    halves = [
        RUN[which](parameters, config, tokens[rows], targets[rows], part(extra, rows), count)
        for rows in (slice(0, cut), slice(cut, B))
    ]
    assert_same({name: halves[0][name] + halves[1][name] for name in truth}, truth, bound, "two microbatches")


@fewer(4)
@pytest.mark.parametrize("which", TWINS)
@given(configs(dropout=0.0), sizes(2, 5), sizes(1, 5), seeds)
def test_the_order_in_a_batch_means_nothing(which, config, B, T, seed):
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, targets, extra = draw_batch(config, B, T, 3, seed)
    truth, bound = modelled(parameters, lambda p: spec_run(p, config, tokens, targets, extra))
    order = np.random.default_rng(seed).permutation(B)
    found = RUN[which](parameters, config, tokens[order], targets[order], part(extra, order))
    assert_same(found, truth, bound, "another order")


@fewer(4)
@pytest.mark.parametrize("which", TWINS)
@given(configs(dropout=0.0), sizes(1, 3), sizes(1, 5), seeds)
def test_the_numbers_of_the_tokens_mean_nothing(which, config, B, T, seed):
    """Tokens renamed, with the rows of their tables: the same loss, and the gradients' rows move along."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, targets, extra = draw_batch(config, B, T, 3, seed)
    truth, bound = modelled(parameters, lambda p: spec_run(p, config, tokens, targets, extra))
    new = np.random.default_rng(seed).permutation(config.vocabulary)  # token v is called new[v] now
    old = np.argsort(new)
    tables = [name for name in ("token_embedding.weight", "head.weight") if name in parameters]
    renamed = parameters | {name: parameters[name][old] for name in tables}
    extra = {name: new[value] if name == "source" else value for name, value in extra.items()}
    found = RUN[which](renamed, config, new[tokens], np.where(targets == -1, -1, new[targets]), extra)
    assert_same(found | {name: found[name][new] for name in tables}, truth, bound, "tokens renamed")


@fewer(4)
@given(
    configs(kind="encoder", position="none", window=None, token_shift=False, dropout=0.0), sizes(1, 3), sizes(1, 7), seeds
)
def test_without_positions_an_encoder_sees_a_set(config, B, T, seed):
    """Tokens in another order give the same logits in that order: attention itself knows no positions."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, _, extra = draw_batch(config, B, T, 3, seed)
    order = np.random.default_rng(seed).permutation(T)
    moved = {name: value[:, order] for name, value in extra.items()}
    truth, bound = modelled(parameters, lambda p: {"logits": spec.model_forward(p, config, tokens, **extra)[0]})
    found, _ = spec.model_forward(parameters, config, tokens[:, order], **moved)
    assert_within(found, truth["logits"][:, order], bound["logits"][:, order], "another order, spec")
    module = Transformer(config).double()
    module.load_parameters(parameters)
    with torch.no_grad():
        found = module(torch.from_numpy(tokens[:, order]), **as_tensors(moved)).numpy()
    assert_within(found, truth["logits"][:, order], bound["logits"][:, order], "another order, twin")


@fewer(4)
@given(configs(dropout=0.0), sizes(1, 3), sizes(1, 5), st.sampled_from([-3.0, 0.0, 0.5]), seeds)
def test_a_backward_pass_is_linear(config, B, T, factor, seed):
    """J'(a u + w) = a J'u + J'w, for the upstream gradients u and w of the logits."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, _, extra = draw_batch(config, B, T, 3, seed)
    u, w = np.random.default_rng(seed).standard_normal((2, B, T, config.vocabulary))
    names = list(parameters)

    def apart(*values):
        _, cache = spec.model_forward(dict(zip(names, values[2:], strict=True)), config, tokens, **extra)
        first, second = (spec.model_backward(value, cache) for value in values[:2])
        return {name: factor * first[name] + second[name] for name in names}

    def together(*values):
        _, cache = spec.model_forward(dict(zip(names, values[2:], strict=True)), config, tokens, **extra)
        return spec.model_backward(factor * values[0] + values[1], cache)

    truth, bound = bound_of(apart, u, w, *parameters.values(), format="float64")
    _, other = bound_of(together, u, w, *parameters.values(), format="float64")
    found = together(u, w, *parameters.values())
    assert_same(found, truth, {name: bound[name] + other[name] for name in names}, "backward of a sum")


@fewer(4)
@given(configs(kind="decoder", dropout=0.0), sizes(2, 5), sizes(1, 5), seeds)
def test_the_loss_of_a_batch_is_the_mean_over_its_targets(config, B, T, seed):
    """Evaluation does not depend on the batch size: sums over sequences alone, divided by all targets."""
    parameters = random_parameters(parameter_shapes(config), seed)
    tokens, targets, extra = draw_batch(config, B, T, 3, seed)

    def mean(p):
        logits, _ = spec.model_forward(p, config, tokens, **extra)
        return {"loss": cross_entropy_forward(logits, targets)[0]}

    truth, bound = modelled(parameters, mean)
    sums = []
    for b in range(B):
        logits, _ = spec.model_forward(parameters, config, tokens[b : b + 1], **part(extra, slice(b, b + 1)))
        sums.append(cross_entropy_forward(logits, targets[b : b + 1], count=1)[0])
    total = sum(sums) / max(int((targets != -1).sum()), 1)
    assert_within(total, truth["loss"], bound["loss"], "one sequence at a time")
