"""Optimizers: the update rules by parity; 100 steps of both twins inside an envelope measured by one ulp at the start."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from parity_tests.bounds import bound_of
from parity_tests.strategies import random_parameters, seeds, sizes
from parity_tests.within import assert_within
from reference_numpy import optimizer as spec
from reference_numpy.config import ModelConfig
from reference_numpy.model import loss_and_gradients
from reference_numpy.parameters import initialize
from torch_impl import optimizer as twin
from torch_impl.loss import cross_entropy
from torch_impl.model import Transformer
from torch_impl.parameters import parameters_as_numpy

SHAPES = {"blocks.0.weight": (3, 5), "blocks.0.bias": (5,), "table.weight": (2, 3)}


def twin_model(parameters):
    """A module with these parameters, names with dots included."""
    model = torch.nn.Module()
    for name, value in parameters.items():
        owner = model
        for part in name.split(".")[:-1]:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(name.split(".")[-1], torch.nn.Parameter(torch.tensor(value)))
    return model


def set_gradients(model, gradients):
    for name, parameter in model.named_parameters():
        parameter.grad = torch.tensor(gradients[name])


@given(st.sampled_from([0.0, 0.1]), st.sampled_from([1, 2, 5]), seeds)
def test_adamw(weight_decay, steps, seed):
    parameters = random_parameters(SHAPES, seed)
    gradients = [random_parameters(SHAPES, seed + 1 + i) for i in range(steps)]
    options = {"beta1": 0.9, "beta2": 0.98, "epsilon": 1e-9, "weight_decay": weight_decay}
    names = list(SHAPES)

    def run(*values):
        own = dict(zip(names, values[: len(names)], strict=True))
        state = spec.adamw_initial(own)
        for i in range(steps):
            step_gradients = values[len(names) * (i + 1) : len(names) * (i + 2)]
            own, state = spec.adamw_step(own, dict(zip(names, step_gradients, strict=True)), state, 1e-2, **options)
        return {"parameters": own, "first": state.first, "second": state.second}

    inputs = [*parameters.values(), *(g for step in gradients for g in step.values())]
    truth, bound = bound_of(run, *inputs, format="float64")
    model = twin_model(parameters)
    optimizer = twin.adamw(model, 1e-2, **options)
    for step in gradients:
        set_gradients(model, step)
        optimizer.step()
    count, first, second = twin.export_state(model, optimizer)
    assert count == steps
    ours, theirs = run(*inputs), {"parameters": parameters_as_numpy(model), "first": first, "second": second}
    for part in truth:
        for name in names:
            assert_within(ours[part][name], truth[part][name], bound[part][name], f"AdamW, spec {part} {name}")
            assert_within(theirs[part][name], truth[part][name], 2 * bound[part][name], f"AdamW, twin {part} {name}")


@given(sizes(1, 7), sizes(1, 7), st.sampled_from([1.0, 1e-200, 1e200]), seeds)
def test_newton_schulz(rows, columns, magnitude, seed):
    """Of a gradient that has all but vanished, too, as that of a dead block does, whose squares are 0."""
    g = magnitude * np.random.default_rng(seed).standard_normal((rows, columns))
    truth, bound = bound_of(spec.newton_schulz, g, format="float64")
    assert_within(spec.newton_schulz(g), truth, bound, "Newton-Schulz, spec")
    assert_within(twin.newton_schulz(torch.from_numpy(g)[None])[0].numpy(), truth, 2 * bound, "Newton-Schulz, twin")


def test_newton_schulz_moves_singular_values_towards_one():
    """The docstring's range, for matrices of many shapes; zero stays zero."""
    generator = np.random.default_rng(0)
    for shape in [(16, 16), (64, 16), (16, 64)]:
        g = generator.standard_normal(shape)
        half = twin.newton_schulz(torch.from_numpy(g)[None], dtype=torch.bfloat16)[0]
        assert half.dtype == torch.float64
        assert (half == half.bfloat16()).all()
        for result in (spec.newton_schulz(g), half.numpy()):
            singular = np.linalg.svd(result, compute_uv=False)
            assert singular.max() < 1.25
            assert np.median(singular) > 0.65
    assert (spec.newton_schulz(np.zeros((3, 4))) == 0).all()
    assert (twin.newton_schulz(torch.zeros(2, 3, 4)) == 0).all()


@pytest.mark.parametrize("shape", [(40, 3), (3, 40)])
def test_newton_schulz_multiplies_along_the_longer_side(shape):
    """The products of rows are those of the shorter side: no matrix on the way is larger than g itself."""
    sizes = []

    class Recorded(np.ndarray):
        def __array_finalize__(self, source):
            sizes.append(self.size)

    class Recording(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in [result] if isinstance(x, torch.Tensor))
            return result

    g = np.random.default_rng(0).standard_normal(shape)
    spec.newton_schulz(g.view(Recorded))
    with Recording():
        twin.newton_schulz(torch.from_numpy(g)[None])
    assert len(sizes) > 20
    assert max(sizes) == g.size


@given(st.integers(1, 5), seeds)
def test_newton_schulz_is_the_polynomial_of_the_paper(n, seed):
    """On a diagonal matrix it acts on each number alone: five times 3.4445 s - 4.7750 s^3 + 2.0315 s^5."""
    diagonal = np.random.default_rng(seed).standard_normal(n)
    truth, bound = bound_of(spec.newton_schulz, np.diag(diagonal), format="float64", factor=2.0)
    s = diagonal / np.sqrt((diagonal * diagonal).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert_within(np.diag(s), truth, bound, "Newton-Schulz of a diagonal matrix")


@given(st.sampled_from([(5, 3), (3, 5), (3, 3)]), seeds)
def test_muon(shape, seed):
    """Two steps of one hidden matrix, written out; spec and twin against it."""
    rate, momentum, decay = 2e-2, 0.9, 0.1
    w, g, more = np.random.default_rng(seed).standard_normal((3, *shape))

    def written_out(w, g, more):
        step = rate * max(1.0, shape[0] / shape[1]) ** 0.5
        m = g
        w = w - w * (rate * decay) - step * spec.newton_schulz(g + momentum * m)
        m = momentum * m + more
        return w - w * (rate * decay) - step * spec.newton_schulz(more + momentum * m)

    truth, bound = bound_of(written_out, w, g, more, format="float64", factor=2.0)
    name = "blocks.0.weight"
    parameters, state = {name: w}, spec.muon_initial({name: w})
    model = twin_model(parameters)
    optimizer = twin.Muon(model.parameters(), rate, momentum, decay)
    for gradient in (g, more):
        parameters, state = spec.muon_step(parameters, {name: gradient}, state, rate, 0.0, momentum, weight_decay=decay)
        set_gradients(model, {name: gradient})
        optimizer.step()
    assert_within(parameters[name], truth, bound, "Muon, spec")
    assert_within(parameters_as_numpy(model)[name], truth, bound, "Muon, twin")


def test_muon_compiled_is_the_same(monkeypatch):
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="eager"))
    stream = np.random.default_rng(0)
    weights = [torch.from_numpy(stream.standard_normal(shape)) for shape in ((6, 4), (4, 6), (6, 4))]
    after = []
    for compiled in (False, True):
        own = [torch.nn.Parameter(weight.clone()) for weight in weights]
        for weight in own:
            weight.grad = weight.detach() + 1
        muon = twin.Muon(own, 2e-2, compiled=compiled)
        muon.step()
        muon.step()
        after.append(own)
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_muon_takes_the_matrices_inside_the_blocks():
    config = ModelConfig(layers=1, tied=False)
    parameters = initialize(config, np.random.default_rng(0))
    layers = (
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "feed_forward.up",
        "feed_forward.down",
    )
    hidden = {f"blocks.0.{name}.weight" for name in layers}
    assert set(spec.muon_initial(parameters).momentum) == set(twin.hidden_matrices(Transformer(config))) == hidden
    both = ModelConfig(kind="encoder_decoder", layers=1)
    own, memory = ({name.replace("attention.", f"{kind}attention.") for name in hidden} for kind in ("", "cross_"))
    expected = {f"{stack}.{name}" for stack in ("encoder", "decoder") for name in own}
    expected |= {f"decoder.{name}" for name in memory if "attention" in name}
    assert set(twin.hidden_matrices(Transformer(both))) == expected
    assert set(spec.muon_initial(initialize(both, np.random.default_rng(0))).momentum) == expected


def test_newton_schulz_leaves_its_input_as_it_is():
    g = np.random.default_rng(0).standard_normal((3, 5))
    before, tensor = g.copy(), torch.from_numpy(g.copy())[None]
    spec.newton_schulz(g)
    twin.newton_schulz(tensor)
    assert (g == before).all()
    assert (tensor[0].numpy() == before).all()


@given(st.integers(1, 3), seeds)
def test_a_resumed_optimizer_takes_the_same_step(steps, seed):
    """State exported and imported into a new optimizer: the next step is the same to the bit."""
    gradients = [random_parameters(SHAPES, seed + 1 + i) for i in range(steps + 1)]
    model = twin_model(random_parameters(SHAPES, seed))
    optimizer = twin.adamw(model, 1e-2, weight_decay=0.1)
    for gradient in gradients[:-1]:
        set_gradients(model, gradient)
        optimizer.step()
    resumed = twin_model(parameters_as_numpy(model))
    resumed_optimizer = twin.adamw(resumed, 1e-2, weight_decay=0.1)
    twin.import_state(resumed, resumed_optimizer, *twin.export_state(model, optimizer))
    for each, its_optimizer in ((model, optimizer), (resumed, resumed_optimizer)):
        set_gradients(each, gradients[-1])
        its_optimizer.step()
    assert twin.export_state(model, optimizer)[0] == twin.export_state(resumed, resumed_optimizer)[0] == steps + 1
    after = parameters_as_numpy(resumed)
    assert all((value == after[name]).all() for name, value in parameters_as_numpy(model).items())


def test_an_optimizer_that_took_no_step_is_at_step_0():
    parameters = random_parameters(SHAPES, 0)
    model = twin_model(parameters)
    theirs, ours = twin.export_state(model, twin.adamw(model, 1e-2)), spec.adamw_initial(parameters)
    assert theirs[0] == ours.step == 0
    for found, expected in zip(theirs[1:], ours[1:], strict=True):
        assert {name: (value.shape, value.any()) for name, value in found.items()} == {
            name: (value.shape, False) for name, value in expected.items()
        }


def test_a_parameter_without_gradients_does_not_say_the_step():
    model = twin_model(random_parameters(SHAPES, 0))
    optimizer = twin.adamw(model, 1e-2)
    set_gradients(model, random_parameters(SHAPES, 1))
    list(model.parameters())[-1].grad = None
    optimizer.step()
    assert twin.export_state(model, optimizer)[0] == 1


def test_gradients_and_what_was_imported_stay_as_they_are():
    """Whoever accumulates, logs or resumes twice reads them again."""
    parameters, gradients, moments = (random_parameters(SHAPES, seed) for seed in range(3))
    model = twin_model(parameters)
    set_gradients(model, gradients)
    hidden = {"blocks.0.weight": model.get_submodule("blocks.0").weight}
    rest = {name: p for name, p in model.named_parameters() if name not in hidden}
    muon, adamw = twin.Muon(hidden.values(), 1e-2), twin.adamw(rest, 1e-2)
    before = {name: m.copy() for name, m in moments.items()}
    muon.import_state(model, {name: moments[name] for name in hidden})
    owned = {name: np.abs(moments[name]) for name in rest}
    twin.import_state(rest, adamw, 3, owned, owned)
    for _ in range(2):
        muon.step()
        adamw.step()
    for name, parameter in model.named_parameters():
        assert (parameter.grad.numpy() == gradients[name]).all(), name
    assert all((moments[name] == before[name]).all() for name in moments)
    assert all((owned[name] == np.abs(before[name])).all() for name in owned)


def test_muon_takes_each_groups_rate_and_leaves_what_has_no_gradient():
    first, second, frozen = (torch.from_numpy(w) for w in np.random.default_rng(0).standard_normal((3, 3, 5)))
    weights = [torch.nn.Parameter(first.clone()) for _ in range(2)] + [torch.nn.Parameter(frozen.clone())]
    changed = twin.Muon([weights[0], weights[2]], 0.1)
    changed.param_groups[0]["lr"] = 0.01
    for weight, optimizer in ((weights[0], changed), (weights[1], twin.Muon([weights[1]], 0.01))):
        weight.grad = second.clone()
        optimizer.step()
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], frozen)


def test_each_group_has_all_of_its_options():
    """Two steps of a group with a rate, momentum and decay of its own are those of a Muon that was made with them."""
    own = {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.2}
    weights = [torch.nn.Parameter(torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5)))) for _ in range(2)]
    grouped = twin.Muon([{"params": [weights[0]], **own}], 0.1, 0.9, 0.1)
    alone = twin.Muon([weights[1]], own["lr"], own["momentum"], own["weight_decay"])
    for seed in (1, 2):
        for weight, optimizer in zip(weights, (grouped, alone), strict=True):
            weight.grad = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 5)))
            optimizer.step()
    assert torch.equal(*weights)


def test_a_closure_computes_the_loss_and_the_gradients_of_a_step():
    weights = [torch.nn.Parameter(torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5)))) for _ in range(2)]
    with_closure, without = (twin.Muon([weight], 0.1) for weight in weights)

    def closure() -> torch.Tensor:
        loss = weights[0].square().sum()
        loss.backward()
        return loss

    weights[1].grad = 2 * weights[1].detach()
    expected = weights[0].detach().square().sum()
    assert torch.equal(with_closure.step(closure), expected)
    assert without.step() is None
    assert torch.equal(*weights)


def test_the_specs_steps_mutate_nothing():
    parameters, gradients = random_parameters(SHAPES, 0), random_parameters(SHAPES, 1)
    states = spec.adamw_initial(parameters), spec.muon_initial(parameters)
    kept = [{n: a.copy() for n, a in arrays.items()} for arrays in (parameters, gradients)]
    for _ in range(2):
        spec.adamw_step(parameters, gradients, states[0], 1e-2, weight_decay=0.1)
        spec.muon_step(parameters, gradients, states[1], 1e-2, 1e-3, weight_decay=0.1)
    for before, after in zip(kept, (parameters, gradients), strict=True):
        assert all((before[name] == after[name]).all() for name in SHAPES)
    means = (states[0].first, states[0].second, states[1].momentum, states[1].adamw.first, states[1].adamw.second)
    assert not any(array.any() for arrays in means for array in arrays.values())


def test_no_parameters():
    with pytest.raises(ValueError, match="empty parameter list"):
        twin.adamw({}, 0.1)


def test_muon_multiplies_in_its_format():
    weight = torch.nn.Parameter(torch.zeros(3, 5))
    weight.grad = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5))).float()
    twin.Muon([weight], 1.0, momentum=0.0, dtype=torch.bfloat16).step()
    expected = -twin.newton_schulz(weight.grad[None], dtype=torch.bfloat16)[0]
    assert torch.equal(weight.detach(), expected)
    assert not torch.equal(expected, -twin.newton_schulz(weight.grad[None])[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_format_of_the_parameters_is_kept(dtype):
    """By every array that a step gives back, in the spec."""
    parameters, gradients = ({n: a.astype(dtype) for n, a in random_parameters(SHAPES, seed).items()} for seed in (0, 1))
    clipped, _ = spec.clip_gradients(gradients, 1e-3)
    after, state = spec.adamw_step(parameters, clipped, spec.adamw_initial(parameters), 1e-3, weight_decay=0.1)
    with_muon, muon = spec.muon_step(parameters, clipped, spec.muon_initial(parameters), 1e-2, 1e-3, weight_decay=0.1)
    every = (clipped, after, state.first, state.second, with_muon, muon.momentum, muon.adamw.first, muon.adamw.second)
    assert {array.dtype for arrays in every for array in arrays.values()} == {np.dtype(dtype)}


def test_muon_gives_the_rest_to_adamw_with_all_its_options():
    parameters, gradients = random_parameters(SHAPES, 0), random_parameters(SHAPES, 1)
    own = {"beta1": 0.7, "beta2": 0.8, "epsilon": 0.3, "weight_decay": 0.1}
    state = spec.muon_initial(parameters)
    after, _ = spec.muon_step(parameters, gradients, state, 1e-2, 1e-3, **own)
    rest = {name: w for name, w in parameters.items() if name not in state.momentum}
    expected, _ = spec.adamw_step(rest, gradients, state.adamw, 1e-3, **own)
    assert all((after[name] == expected[name]).all() for name in rest)


@given(seeds)
def test_a_resumed_muon_takes_the_same_step(seed):
    """Momentum exported and imported into a new optimizer: the next step is the same to the bit."""
    parameters, first, second = ({"blocks.0.weight": w} for w in np.random.default_rng(seed).standard_normal((3, 3, 5)))
    model = twin_model(parameters)
    optimizer = twin.Muon(model.parameters(), 1e-2)
    set_gradients(model, first)
    optimizer.step()
    resumed = twin_model(parameters_as_numpy(model))
    resumed_optimizer = twin.Muon(resumed.parameters(), 1e-2)
    resumed_optimizer.import_state(resumed, optimizer.export_state(model))
    for each, its_optimizer in ((model, optimizer), (resumed, resumed_optimizer)):
        set_gradients(each, second)
        its_optimizer.step()
    after = parameters_as_numpy(resumed)
    assert all((value == after[name]).all() for name, value in parameters_as_numpy(model).items())


@given(st.sampled_from([1e-3, 1.0, 1e3]), seeds)
def test_clipping(maximum, seed):
    gradients = random_parameters(SHAPES, seed)
    before = {name: g.copy() for name, g in gradients.items()}
    clipped, norm = spec.clip_gradients(gradients, maximum)
    model = twin_model(gradients)
    set_gradients(model, gradients)
    twin_norm = twin.clip_gradients(model.parameters(), maximum)
    everything = np.concatenate([g.ravel() for g in before.values()])
    true_norm, norm_bound = bound_of(lambda g: np.sqrt((g * g).sum()), everything, format="float64", factor=2.0)
    assert_within(norm, true_norm, norm_bound, "norm")
    assert_within(twin_norm.item(), true_norm, norm_bound, "norm, twin")
    for name, parameter in model.named_parameters():
        assert (gradients[name] == before[name]).all(), "the spec changed its input"
        scale = min(1.0, maximum / float(true_norm))
        bound = np.abs(before[name]) * scale * (float(norm_bound / true_norm) + 4 * np.finfo(np.float64).eps)
        assert_within(clipped[name], before[name] * np.longdouble(scale), bound, f"clipped {name}")
        assert_within(parameter.grad.numpy(), before[name] * np.longdouble(scale), bound, f"clipped {name}, twin")


def test_a_gradient_that_is_not_a_number_spoils_them_all():
    """In both twins: so a loss that has diverged is seen at the next step, and not hidden in one tensor."""
    gradients = random_parameters(SHAPES, 0)
    next(iter(gradients.values())).flat[0] = np.nan
    model = twin_model(gradients)
    set_gradients(model, gradients)
    clipped, norm = spec.clip_gradients(gradients, 1.0)
    assert np.isnan([norm, twin.clip_gradients(model.parameters(), 1.0).item()]).all()
    for name, parameter in model.named_parameters():
        assert np.isnan(clipped[name]).all()
        assert parameter.grad.isnan().all()


def test_clipping_nothing():
    """A step that reached no parameter; gradients of 0, of which 0 is allowed."""
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    model = twin_model(zeros)
    set_gradients(model, zeros)
    assert spec.clip_gradients(zeros, 0.0)[1] == twin.clip_gradients(model.parameters(), 0.0) == 0
    assert not any(parameter.grad.any() for parameter in model.parameters())
    assert spec.clip_gradients({}, 1.0) == ({}, 0.0)
    assert twin.clip_gradients(twin_model(random_parameters(SHAPES, 0)).parameters(), 1.0) == 0


STEPS = 100
CONFIG = ModelConfig(vocabulary=11, context=6, width=12, layers=2, heads=3, dropout=0.2, initial_deviation=0.2)


def run_spec(optimizer, parameters):
    """Losses, and the parameters and state after every step."""
    adamw = optimizer == "adamw"
    state = spec.adamw_initial(parameters) if adamw else spec.muon_initial(parameters)
    generator, dropout = np.random.default_rng(1), np.random.default_rng(2)
    trajectory = []
    for _ in range(STEPS):
        tokens = generator.integers(0, 11, (5, 7))
        loss, gradients = loss_and_gradients(parameters, CONFIG, tokens[:, :-1], tokens[:, 1:], generator=dropout)
        if adamw:
            parameters, state = spec.adamw_step(parameters, gradients, state, 1e-2, weight_decay=0.1)
            moments = [state.first, state.second]
        else:
            parameters, state = spec.muon_step(parameters, gradients, state, 2e-2, 1e-2, weight_decay=0.1)
            moments = [state.momentum, state.adamw.first, state.adamw.second]
        trajectory.append([{"loss": loss}, parameters, *moments])
    return trajectory


def run_twin(optimizer, parameters):
    model = Transformer(CONFIG).double()
    model.load_parameters(parameters)
    hidden = twin.hidden_matrices(model) if optimizer == "muon" else {}
    muon = twin.Muon(hidden.values(), 2e-2, weight_decay=0.1) if hidden else None
    rest = {n: p for n, p in model.named_parameters() if n not in hidden}
    adamw = twin.adamw(rest, 1e-2, weight_decay=0.1)
    generator, dropout = np.random.default_rng(1), np.random.default_rng(2)
    trajectory = []
    for _ in range(STEPS):
        tokens = torch.from_numpy(generator.integers(0, 11, (5, 7)))
        model.zero_grad()
        loss = cross_entropy(model(tokens[:, :-1], generator=dropout), tokens[:, 1:])
        loss.backward()
        adamw.step()
        if muon is not None:
            muon.step()
        _, first, second = twin.export_state(rest, adamw)
        momentum = [muon.export_state(model)] if muon else []
        trajectory.append([{"loss": loss.detach().numpy()}, parameters_as_numpy(model), *momentum, first, second])
    return trajectory


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_trajectories(optimizer):
    """Every parameter and moment after each of 100 steps, dropout on: the twins differ no more than the spec differs from
    itself when every initial parameter moves by one ulp, up or down; the envelope is the largest of 8 such starts per step
    and tensor, since single elements of a perturbation cross zero. A step rounds far more often than once, hence the factor:
    the square root of the number of roundings along the longest path through one step (about 30 operations of up to D
    terms), sqrt(30 * 12)."""
    factor = float(np.sqrt(30 * CONFIG.width))
    start = initialize(CONFIG, np.random.default_rng(0), np.float64)
    reference, other = run_spec(optimizer, start), run_twin(optimizer, start)
    generator = np.random.default_rng(3)
    envelopes = [run_spec(optimizer, perturbed(start, generator)) for _ in range(8)]
    worst = 0.0
    for step in range(STEPS):
        for part, values in enumerate(reference[step]):
            for name, value in values.items():
                spread = max(np.abs(run[step][part][name] - value).max() for run in envelopes)
                floor = np.spacing(np.abs(value).max())
                difference = np.abs(other[step][part][name] - value).max()
                assert difference <= factor * (spread + floor), (step, name, difference, spread)
                worst = max(worst, difference / (spread + floor))
    assert worst > 0, "the twins are bit-equal over 100 steps: is it the same code?"


def perturbed(parameters, generator):
    return {
        name: np.nextafter(value, np.where(generator.random(value.shape) < 0.5, -np.inf, np.inf))
        for name, value in parameters.items()
    }
