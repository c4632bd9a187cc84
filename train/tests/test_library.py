"""The twin as a library: with other modules in its place, torch.func, export and compiled models of varying length."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import initialize
from torch_impl.activation import relu_squared
from torch_impl.block import BlockPast
from torch_impl.decode import CachedDecoder
from torch_impl.linear import Linear, linear
from torch_impl.loss import cross_entropy
from torch_impl.model import Transformer
from torch_impl.normalization import layer_norm, rms_norm
from torch_impl.position import make_tables_constant, rotary
from torch_impl.softmax import softmax
from torch_impl.token_shift import token_shift

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, 11, (3, 7)))


def model_of(**changes):
    config = ModelConfig(vocabulary=11, context=16, width=8, layers=2, heads=2, **changes)
    model = Transformer(config).double()
    model.load_parameters(initialize(config, np.random.default_rng(0), np.float64))
    return model


class Adapted(Linear):
    """A linear layer with something added, as LoRA does."""

    def __init__(self, layer):
        super().__init__(layer.weight.shape[1], layer.weight.shape[0], layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.added = nn.Parameter(torch.ones(len(layer.weight)))

    def forward(self, x):
        return super().forward(x) + self.added


@pytest.mark.parametrize("name", ["attention.query", "attention.value", "attention.output", "feed_forward.up", "head"])
def test_a_layer_in_the_place_of_another_is_called(name):
    """In training, in evaluation and in decoding alike."""
    model = model_of(tied=False)
    before = model(TOKENS)
    parent, _, child = name.rpartition(".")
    for block in [model] if name == "head" else model.blocks:
        place = block.get_submodule(parent)
        setattr(place, child, Adapted(getattr(place, child)).double())
    in_training = model(TOKENS)
    assert not torch.equal(in_training, before)
    with torch.no_grad():
        alone = model(TOKENS)
    decoded = CachedDecoder(model).append(TOKENS.numpy())
    assert torch.allclose(alone, in_training)
    assert np.allclose(decoded, alone[:, -1].numpy())
    in_training.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.endswith("added"))


HOOKS = [f"register_{when}_hook" for when in ("forward", "forward_pre", "full_backward", "full_backward_pre")]


@pytest.mark.parametrize("hook", HOOKS)
def test_who_listens_to_a_projection_hears(hook):
    model, heard = model_of(), []
    getattr(model.blocks[0].attention.key, hook)(lambda *_: heard.append(1))
    model(TOKENS).sum().backward()
    assert heard == [1]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of the tables, which read integers
@pytest.mark.parametrize("hook", HOOKS)
def test_who_listens_to_all_modules_hears_the_projections(hook):
    model, heard = model_of(), []
    everywhere = getattr(torch.nn.modules.module, hook.replace("register_", "register_module_"))
    handle = everywhere(lambda module, *_: heard.append(module))
    try:
        model(TOKENS).sum().backward()
    finally:
        handle.remove()
    assert heard.count(model.blocks[0].attention.key) == 1


def test_a_projection_with_another_forward_is_called():
    """In training, in evaluation and in decoding alike."""
    model = model_of(initial_deviation=0.3)
    key = model.blocks[0].attention.key
    plain = model(TOKENS)
    own = key.forward
    key.forward = lambda x: 5 * own(x)
    trained = model(TOKENS)
    with torch.no_grad():
        evaluated = model(TOKENS)
    assert torch.allclose(trained, evaluated)
    assert not torch.allclose(trained, plain)
    decoded = CachedDecoder(model).append(TOKENS.numpy())
    assert np.allclose(decoded, evaluated[:, -1].numpy())


def test_one_projection_may_be_without_a_bias():
    model = model_of()
    model.blocks[0].attention.key.bias = None
    trained = model(TOKENS)
    with torch.no_grad():
        evaluated = model(TOKENS)
    assert torch.allclose(trained, evaluated)
    assert np.allclose(CachedDecoder(model).append(TOKENS.numpy()), evaluated[:, -1].numpy())


KINDS = {
    "rotary": {"position": "rotary", "norm": "rms", "activation": "relu_squared"},
    "alibi": {"position": "alibi", "softcap": 5.0},
    "linear": {"attention": "linear", "position": "sinusoidal"},
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by jvp itself
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_torch_func_takes_the_twin(changes):
    """Gradients of every sequence, and the Hessian along a direction, which is symmetric."""
    model = model_of(initial_deviation=0.3, **changes)
    parameters = dict(model.named_parameters())

    def loss(parameters, tokens):
        logits = torch.func.functional_call(model, parameters, (tokens[None, :-1],))
        return cross_entropy(logits, tokens[None, 1:])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, TOKENS)
    for row in range(len(TOKENS)):
        alone = torch.autograd.grad(loss(parameters, TOKENS[row]), list(parameters.values()))
        assert all(torch.allclose(each[name][row], grad) for name, grad in zip(parameters, alone, strict=True))
    generator = torch.Generator().manual_seed(0)
    one, other = (
        {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in parameters.items()} for _ in range(2)
    )
    gradient = torch.func.grad(lambda parameters: loss(parameters, TOKENS[0]))
    along = [torch.func.jvp(gradient, (parameters,), (direction,))[1] for direction in (one, other)]
    crossed = [sum((h[n] * d[n]).sum() for n in parameters) for h, d in zip(along, (other, one), strict=True)]
    assert torch.allclose(*crossed)
    assert abs(crossed[0]) > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by jvp itself
def test_inside_of_torch_func_the_operations_are_torchs():
    x, weight = torch.randn(5, 4), torch.rand(4)
    pairs = [
        (lambda x: layer_norm(x, weight), lambda x: F.layer_norm(x, (4,), weight)),
        (lambda x: rms_norm(x, weight), lambda x: F.rms_norm(x, (4,), weight, 1e-5)),
        (relu_squared, lambda x: F.relu(x).square()),
        (softmax, lambda x: torch.softmax(x, -1)),
        (lambda x: linear(x, torch.eye(4)), lambda x: F.linear(x, torch.eye(4))),
    ]
    for ours, theirs in pairs:
        found = [torch.func.grad(lambda x, function=f: (function(x) * x).sum())(x) for f in (ours, theirs)]
        assert torch.allclose(*found)
        assert torch.allclose(*(torch.func.jvp(f, (x,), (x,))[1] for f in (ours, theirs)))
    turned = torch.func.grad(lambda x: (rotary(x, 2) ** 3).sum())(x[None, None])
    again = x[None, None].clone().requires_grad_()
    (rotary(again, 2) ** 3).sum().backward()
    assert torch.allclose(turned, again.grad)
    shifted = torch.func.grad(lambda x: (token_shift(x) ** 3).sum())(x[None])
    again = x[None].clone().requires_grad_()
    (token_shift(again) ** 3).sum().backward()
    assert torch.equal(shifted, again.grad)


@pytest.mark.parametrize("position", ["sinusoidal", "rotary", "alibi", "learned"])
def test_an_export_has_torchs_operations_and_leaves_the_model_as_it_is(position):
    model = model_of(position=position).float()
    length = torch.export.Dim("T", min=2, max=16)
    exported = torch.export.export(model, (TOKENS,), dynamic_shapes={"tokens": {1: length}})
    operations = [str(node.target) for node in exported.graph.nodes]
    assert not any("twinformer" in name or "mkldnn" in name for name in operations)
    assert operations.count("aten.layer_norm.default") == 2 * len(model.blocks) + 1  # and none of it by parts
    for tokens in (TOKENS, TOKENS[:, :5]):
        assert torch.allclose(exported.module()(tokens), model(tokens), atol=1e-6)
    assert type(model(TOKENS)) is torch.Tensor


@pytest.mark.parametrize("position", ["sinusoidal", "rotary", "alibi"])
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_a_compiled_model_takes_all_lengths_in_two_graphs(position, kind):
    torch.compiler.reset()
    make_tables_constant()
    model, graphs = model_of(position=position, kind=kind), []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count)
    with torch.no_grad():
        for length in range(2, 8):
            tokens = TOKENS[:, :length]
            inputs = {"source": TOKENS[:, : length - 1]} if kind == "encoder_decoder" else {}
            assert torch.allclose(compiled(tokens, **inputs), model(tokens, **inputs))
    assert len(graphs) <= 3
    torch.compiler.reset()


@pytest.mark.parametrize(
    "options",
    [{"position": "rotary", "key_value_heads": 2}, {"kind": "encoder_decoder"}, {"token_shift": True}],
    ids=str,
)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_compiled_decoding_needs_one_graph(monkeypatch, options, bfloat16):
    """Of the step by one token; the prompt runs as it is. In it a product is a sum, which the compiler makes in one pass."""
    torch.compiler.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(str(graph.code))
        return graph.forward

    monkeypatch.setattr("torch.compile", partial(torch.compile, backend=count))
    model, tokens = model_of(**options).float(), TOKENS.numpy()[:1]
    source = tokens if model.config.kind == "encoder_decoder" else None
    plain, compiled = (CachedDecoder(model, source, bfloat16=bfloat16, compiled=on) for on in (False, True))
    for prompt in (1, 7):
        for at_once in (prompt, *[1] * (model.config.context - prompt)):
            logits, same = (decoder.append(tokens[:, :at_once]) for decoder in (plain, compiled))
            assert np.allclose(logits, same, atol=0.02 if bfloat16 else 1e-5)
        plain.restart()
        compiled.restart()
    assert len(graphs) == 1
    assert "linear" not in graphs[0]
    torch.compiler.reset()


def test_without_a_cache_nothing_is_compiled():
    with pytest.raises(ValueError, match="compiled: expected False without a cache, got True"):
        CachedDecoder(model_of(), cached=False, compiled=True)


def test_numbers_that_share_their_place_can_be_multiplied():
    x, weight = torch.ones(1, 3).expand(4, 3), torch.ones(1, 3).expand(5, 3)
    assert torch.equal(linear(x, weight), torch.full((4, 5), 3.0))
    with torch.enable_grad():
        free = weight.clone().requires_grad_()
        linear(x, free).sum().backward()
        assert torch.equal(free.grad, torch.full((5, 3), 4.0))


@pytest.mark.parametrize(
    "changes", [*KINDS.values(), {"position": "alibi", "window": 2}, {"position": "learned", "key_value_heads": 1}], ids=str
)
def test_whatever_a_model_makes_is_on_its_device(changes):
    """Masks, tables, buffers, states: on the device that has shapes and no numbers, a tensor of the CPU's is an error."""
    model = model_of(**changes).to("meta")
    tokens, padding = (torch.zeros(3, 7, dtype=dtype, device="meta") for dtype in (torch.int64, torch.bool))
    assert model(tokens, padding=padding).device.type == "meta"
    past = [BlockPast(), BlockPast()]
    for new in (tokens, tokens[:, :1], tokens[:, :2]):
        logits = model(new, past=past)
        assert (logits.device.type, logits.shape) == ("meta", (3, new.shape[1], 11))


def test_a_bool_mask_is_not_made_larger(monkeypatch):
    asked = []
    honest = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **o: asked.append(o["attn_mask"]) or honest(*a, **o))
    model_of(window=3)(TOKENS)
    model_of()(TOKENS, padding=TOKENS > 0)
    assert {tuple(mask.shape) for mask in asked} == {(1, 1, 7, 7), (3, 1, 7, 7)}
