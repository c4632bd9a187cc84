"""The models that are measured: both twins, and peers that are not ours, at one shape, on one batch, with AdamW.

All are decoders with learned positions, pre-norm LayerNorm, biases, a tied head and F = 4 D. The twin and most peers have
the exact GELU; the spec and Hugging Face's GPT-2 have its tanh approximation. All compute in float32 but the twin where it
says bfloat16: then the factors of its products are in bfloat16; parameters, residual stream, norms, loss and optimizer stay
in float32. nanoGPT and ours take AdamW as their own code makes it, the others as torch.optim has it by default;
x-transformers has its own choice of biases.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_numpy.parameters import initialize
from torch_impl.model import Transformer
from train.configuration import ModelOptions, TrainConfig
from train.create import create_backend
from train.data import Batch
from train.flops import training_flops_per_token
from train.objective import objective
from train.torch_backend import multiplies_bfloat16

LEARNING_RATE = 1e-3


class Shape(NamedTuple):
    """What all contenders of one table have in common."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    vocabulary: int = 65

    @property
    def tokens(self) -> int:
        """Tokens in one step."""
        return self.batch * self.context

    @property
    def step_flops(self) -> float:
        """Floating-point operations of one training step; `train.flops` has the formula and its source."""
        return self.tokens * training_flops_per_token(self.options().model, self.context)

    def options(self, **more: Any) -> TrainConfig:
        """The twins' options at this shape."""
        model = ModelOptions(
            vocabulary=self.vocabulary,
            context=self.context,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            activation="gelu_tanh" if more.get("backend") == "numpy" else "gelu",
        )
        return TrainConfig(model=model, batch=self.batch, device="cpu", **more)

    def random_batch(self, seed: int) -> Batch:
        """Random tokens and targets: the work does not depend on them."""
        generator = np.random.default_rng(seed)
        shape = (self.batch, self.context)
        return Batch(*(generator.integers(0, self.vocabulary, shape) for _ in range(2)))


SHAPES = {
    "small": Shape(layers=4, heads=4, width=128, context=64, batch=12),
    "large": Shape(layers=6, heads=6, width=384, context=256, batch=8),
    "tiny": Shape(layers=1, heads=2, width=8, context=8, batch=2),
}


class Contender(NamedTuple):
    """One model with its optimizer; each function does the whole of its work when it returns."""

    forward: Callable[[], object]
    """The loss, ready to be differentiated."""
    gradients: Callable[[], object]
    """The loss and the gradients of all parameters."""
    step: Callable[[], object]
    """The same, clipping to norm 1, and AdamW's update."""


def spec(shape: Shape, batch: Batch) -> Contender:
    """The spec, in NumPy, in as many processes as `twinformer train --backend numpy` gives it."""
    options = shape.options(backend="numpy")
    parameters = initialize(options.model, np.random.default_rng(0))
    backend = create_backend(options.model, parameters, options, np.random.default_rng(0))
    return Contender(
        lambda: backend.evaluate_loss(batch),
        lambda: backend.gradients(batch),
        lambda: backend.gradient_step([batch], LEARNING_RATE),
    )


def twin(shape: Shape, batch: Batch, **more: Any) -> Contender:
    """The twin, in PyTorch; `more` are options of training."""
    options = shape.options(**more)
    parameters = initialize(options.model, np.random.default_rng(0))
    backend = create_backend(options.model, parameters, options, np.random.default_rng(0))
    model = Transformer(options.model)
    model.load_parameters(parameters)
    loss = objective(model, options, processes=1)
    tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)

    def forward() -> Tensor:
        return loss(tokens, targets, None, {}) / tokens.numel()

    return Contender(forward, lambda: _gradients(model, forward), lambda: backend.gradient_step([batch], LEARNING_RATE))


class TorchLayers(nn.Module):
    """torch.nn.TransformerEncoder with a causal mask, and what it needs around it to be a language model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.token = nn.Embedding(shape.vocabulary, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        layer = nn.TransformerEncoderLayer(
            shape.width, shape.heads, 4 * shape.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(shape.width)
        self.blocks = nn.TransformerEncoder(layer, shape.layers, norm, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(shape.context))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.blocks(self.token(tokens) + self.position.weight, mask=self.mask, is_causal=True)
        return F.linear(hidden, self.token.weight)


def torch_layers(shape: Shape, batch: Batch) -> Contender:
    """torch.nn.TransformerEncoder."""
    return _peer(TorchLayers(shape), batch)


def x_transformers(shape: Shape, batch: Batch) -> Contender:
    """The package x-transformers."""
    import x_transformers as package

    layers = package.Decoder(
        dim=shape.width, depth=shape.layers, heads=shape.heads, attn_dim_head=shape.width // shape.heads, attn_flash=True
    )
    model = package.TransformerWrapper(
        num_tokens=shape.vocabulary, max_seq_len=shape.context, attn_layers=layers, tie_embedding=True
    )
    return _peer(model, batch)


def hugging_face(shape: Shape, batch: Batch) -> Contender:
    """GPT-2 of the package transformers."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.context,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config)
    return _peer(model, batch, lambda tokens: model(input_ids=tokens).logits)


def nanogpt(shape: Shape, batch: Batch, folder: str) -> Contender:
    """nanoGPT, with the optimizer that it makes itself."""
    model = nanogpt_model(shape, folder)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(0.1, LEARNING_RATE, (0.9, 0.99), "cpu")
    targets = torch.from_numpy(batch.targets)
    return _peer(model, batch, loss=lambda tokens: model(tokens, targets)[1], optimizer=optimizer)


def nanogpt_model(shape: Shape, folder: str, bias: bool = True) -> Any:
    """nanoGPT's model at this shape, from its model.py."""
    # By its file: with the folder on the path, its train.py would be what other processes find where they look for ours.
    found = spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    assert found is not None and found.loader is not None
    module: Any = module_from_spec(found)
    sys.modules[found.name] = module  # its dataclass looks there for the types of its fields
    found.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=shape.context,
        vocab_size=shape.vocabulary,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        dropout=0.0,
        bias=bias,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        return module.GPT(config)


PEERS = {"torch.nn": None, "x-transformers": "x_transformers", "GPT-2 (HF)": "transformers"}  # and the package it takes


def contenders(folder: str | None, compiled: bool) -> dict[str, Callable[[Shape, Batch], Contender]]:
    """Name -> how to make it: the twins, and the peers that are installed."""
    makers: dict[str, Callable[[Shape, Batch], Contender]] = {"spec": spec}
    # In bfloat16 where the processor has instructions for its products; without them they take longer than float32's.
    dtypes = {"twin": "float32"} | ({"twin, bfloat16": "bfloat16"} if multiplies_bfloat16(torch.device("cpu")) else {})
    for name, dtype in dtypes.items():
        makers[name] = partial(twin, dtype=dtype)
        if compiled:
            makers[f"{name}, compiled"] = partial(twin, dtype=dtype, compile=True)
    if folder is not None:
        makers["nanoGPT"] = lambda shape, batch: nanogpt(shape, batch, folder)
    peers = {"torch.nn": torch_layers, "x-transformers": x_transformers, "GPT-2 (HF)": hugging_face}
    for name, package in PEERS.items():
        if package is None or find_spec(package) is not None:
            makers[name] = peers[name]
    return makers


def _peer(
    model: Any,
    batch: Batch,
    logits: Callable[[Tensor], Tensor] | None = None,
    loss: Callable[[Tensor], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Contender:
    tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
    rule = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1) if optimizer is None else optimizer
    compute = model if logits is None else logits

    def forward() -> Tensor:
        if loss is not None:
            return loss(tokens)
        return F.cross_entropy(compute(tokens).flatten(0, 1), targets.flatten())

    def step() -> None:
        _gradients(model, forward)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rule.step()

    return Contender(forward, lambda: _gradients(model, forward), step)


def _gradients(model: nn.Module, forward: Callable[[], Tensor]) -> None:
    model.zero_grad(set_to_none=True)
    forward().backward()
