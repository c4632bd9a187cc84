"""The two twins behind one interface, with the same order of operations, so that one loop drives either.

Arrays go in and out under the flat names of the spec; which twin computed them cannot be seen from outside. torch is
imported only when the torch backend is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from reference_numpy.config import ModelConfig
from reference_numpy.decode import CachedDecoder, Decoder, generate
from reference_numpy.loss import cross_entropy_forward
from reference_numpy.model import attention_weights, loss_and_gradients, model_forward
from reference_numpy.optimizer import (
    AdamWState,
    MuonState,
    adamw_initial,
    adamw_step,
    clip_gradients,
    muon_initial,
    muon_step,
)
from train.allocator import keep_freed_memory
from train.configuration import TrainConfig
from train.data import Batch
from train.parallel import ALONE, Processes
from train.threads import RowsOf, Threads

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray]
PARAMETERS = "parameters/"  # what their names begin with in an exported state
ROWS = 8  # sequences whose logits are in float64 at once


class Step(NamedTuple):
    """What one update reports; float() of either waits for the device, so ask only when it is wanted."""

    loss: Any
    """Mean training loss of the batch before the update, nats per token (with label smoothing and dropout)."""
    gradient_norm: Any
    """Norm over all parameters before clipping."""


class Sampling(NamedTuple):
    """How the next token is chosen; see `reference_numpy.decode.next_tokens`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Twin(Protocol):
    """What the loop and the commands ask of a backend."""

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        """One update with the gradient of all `batches` together (gradient accumulation).

        `learning_rate` is that of the optimizer that the options name; under muon, adamw's keeps its ratio to it."""

    def evaluate_loss(self, batch: Batch) -> float:
        """The sum, in float64, of nats over all targets of the batch; no dropout, no label smoothing."""

    def gradients(self, batch: Batch) -> Arrays:
        """The gradient of the mean loss of a batch, without dropout, for all parameters that it depends on; no update."""

    def predict(self, batch: Batch) -> np.ndarray:
        """The likeliest symbol (B, T) at every position."""

    def generate(
        self, tokens: np.ndarray, count: int, generator: np.random.Generator, sampling: Sampling, compiled: bool = False
    ) -> np.ndarray:
        """Tokens (N,) or (B, N) and `count` more that the model chose; `compiled` is for torch alone."""

    def decoder(self, source: np.ndarray, source_padding: np.ndarray) -> Decoder:
        """For the searches of reference_numpy.decode over sources (B, S), with keys and values kept."""

    def attention(self, tokens: np.ndarray, source: np.ndarray | None = None) -> Arrays:
        """Attention weights for (T,) tokens, and a source (S,) if the model reads one: name of the layer to (H, T, S)."""

    def parameters(self) -> Arrays:
        """All parameters by flat name."""

    def export_state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and JSON values that `import_state` of either twin takes to go on from here."""

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        """Goes on from an exported state."""

    def alone(self) -> Twin:
        """A twin with these parameters that needs no other process: the others may end."""


def create_backend(
    model: ModelConfig,
    parameters: Arrays,
    options: TrainConfig,
    dropout: np.random.Generator,
    processes: Processes = ALONE,
) -> Twin:
    """The twin that `options.backend` names, with these parameters; `dropout` is the stream of its masks.

    Of several processes, all create theirs. Then they train, evaluate, export and import together, and do nothing else."""
    keep_freed_memory()
    if options.backend == "numpy":
        return NumpyBackend(model, parameters, options, dropout)
    return TorchBackend(model, parameters, options, dropout, processes)


def with_dtype(options: TrainConfig) -> TrainConfig:
    """The options with a format in the place of dtype auto: the one for the device."""
    if options.dtype != "auto":
        return options
    there = options.backend == "torch" and multiplies_bfloat16(torch_device(options.device))
    residual = options.bfloat16_residual and there
    return replace(options, dtype="bfloat16" if there else "float32", bfloat16_residual=residual)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch means that there is not enough memory: on a CPU it has no kind of error of its own for that."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


class NumpyBackend:
    """Trains and runs the spec."""

    def __init__(self, model: ModelConfig, parameters: Arrays, options: TrainConfig, dropout: np.random.Generator) -> None:
        self._model, self._options, self._dropout = model, options, dropout
        self._parameters = dict(parameters)
        muon = options.optimizer == "muon"
        self._state: AdamWState | MuonState = (muon_initial if muon else adamw_initial)(self._parameters)
        self._threads = Threads()

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        options, count = self._options, _count(batches)
        dropout = self._dropout if self._model.dropout > 0 else None
        loss: Any = 0.0
        gradients: Arrays | None = None
        for batch in batches:
            part, new = self._gradients(batch, options.label_smoothing, count, dropout)
            loss = loss + part
            gradients = new if gradients is None else _add(gradients, new)
        assert gradients is not None
        gradients, norm = clip_gradients(gradients, options.clip_norm or np.inf)
        self._update(gradients, learning_rate)
        return Step(loss, norm)

    def _gradients(
        self, batch: Batch, label_smoothing: float, count: int, dropout: np.random.Generator | None
    ) -> tuple[Any, Arrays]:
        """The sum of the loss over `count`, and its gradients: both are sums over the rows of the batch."""

        def of_share(share: tuple[Batch, slice]) -> tuple[Any, Arrays, RowsOf | None]:
            part, rows = share
            generator = None if dropout is None else RowsOf(dropout, rows, len(batch.tokens))
            loss, gradients = loss_and_gradients(
                self._parameters,
                self._model,
                part.tokens,
                part.targets,
                label_smoothing=label_smoothing,
                count=count,
                **part.inputs(),
                generator=generator,
            )
            return loss, gradients, generator

        losses, gradients, generators = zip(*self._threads.map(of_share, self._threads.shares(batch)), strict=True)
        if dropout is not None:  # all have drawn the same
            dropout.bit_generator.state = generators[0].bit_generator.state
        return sum(losses), functools.reduce(_add, gradients)

    def _update(self, gradients: Arrays, learning_rate: float) -> None:
        """The optimizer's step; it takes each parameter by itself, so every thread takes some."""
        options, state, own = self._options, self._state, _adamw_options(self._options)

        def of_group(names: Sequence[str]) -> tuple[Arrays, AdamWState | MuonState]:
            parameters = {name: self._parameters[name] for name in names}
            if isinstance(state, AdamWState):
                return adamw_step(parameters, gradients, state, learning_rate, **own)
            rates = (learning_rate, _adamw_rate(options, learning_rate))
            return muon_step(parameters, gradients, state, *rates, momentum=options.momentum, **own)

        parts, states = zip(*self._threads.map(of_group, self._threads.groups(self._parameters)), strict=True)
        together = functools.reduce(operator.or_, parts)
        self._parameters = {name: together[name] for name in self._parameters}
        self._state = functools.reduce(_joined, states)

    def evaluate_loss(self, batch: Batch) -> float:
        def of_share(share: tuple[Batch, slice]) -> float:
            part, _ = share
            loss, _ = cross_entropy_forward(self._logits(part).astype(np.float64), part.targets, count=1)
            return float(loss)

        return sum(self._threads.map(of_share, self._threads.shares(batch)))

    def gradients(self, batch: Batch) -> Arrays:
        _, gradients = self._gradients(batch, 0.0, batch.counted, None)
        return gradients

    def predict(self, batch: Batch) -> np.ndarray:
        return self._logits(batch).argmax(axis=-1)

    def _logits(self, batch: Batch) -> np.ndarray:
        logits, _ = model_forward(self._parameters, self._model, batch.tokens, **batch.inputs())
        return logits

    def generate(
        self, tokens: np.ndarray, count: int, generator: np.random.Generator, sampling: Sampling, compiled: bool = False
    ) -> np.ndarray:
        return generate(self._parameters, self._model, tokens, count, generator, *sampling)

    def decoder(self, source: np.ndarray, source_padding: np.ndarray) -> Decoder:
        return CachedDecoder(self._parameters, self._model, source, source_padding)

    def attention(self, tokens: np.ndarray, source: np.ndarray | None = None) -> Arrays:
        read = None if source is None else source[None]
        _, cache = model_forward(self._parameters, self._model, tokens[None], source=read)
        return {name: weights[0] for name, weights in attention_weights(cache).items()}

    def parameters(self) -> Arrays:
        return dict(self._parameters)

    def export_state(self) -> tuple[Arrays, dict[str, Any]]:
        return _pack(self._parts()), {"updates": int(self._adamw_state().step)}

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        parts = _unpack(arrays, self._parts())
        adamw_state = AdamWState(int(extra["updates"]), parts["first"], parts["second"])
        self._parameters = parts["parameters"]
        self._state = MuonState(parts["momentum"], adamw_state) if "momentum" in parts else adamw_state

    def alone(self) -> Twin:
        return self

    def _parts(self) -> dict[str, Arrays]:
        own = self._adamw_state()
        parts = {"parameters": self._parameters, "first": own.first, "second": own.second}
        return parts | ({"momentum": self._state.momentum} if isinstance(self._state, MuonState) else {})

    def _adamw_state(self) -> AdamWState:
        return self._state.adamw if isinstance(self._state, MuonState) else self._state


class TorchBackend:
    """Trains and runs the twin, on any device.

    On a CPU the dropout masks come from the NumPy stream, so both twins drop the same units. Elsewhere drawing them there
    and copying would cost more than the step, so the device's own stream is taken, seeded by the NumPy stream."""

    def __init__(
        self,
        model: ModelConfig,
        parameters: Arrays,
        options: TrainConfig,
        dropout: np.random.Generator,
        processes: Processes = ALONE,
    ) -> None:
        import torch

        from torch_impl.model import Transformer
        from torch_impl.optimizer import Muon, adamw, hidden_matrices
        from train.objective import objective

        if options.threads:
            torch.set_num_threads(options.threads)
        self._options, self._processes = options, processes
        self._device = torch_device(options.device)
        _choose_products(options.tf32, self._device)
        if options.cuda_graphs:
            _take_graphs(self._device, processes.count)
        self._dropout = dropout if self._device.type == "cpu" else _device_stream(self._device, dropout)
        dtype = torch.float64 if next(iter(parameters.values())).dtype == np.float64 else torch.float32
        self._model = Transformer(model).to(device=self._device, dtype=dtype)
        self._model.load_parameters(parameters)
        self._objective = objective(self._model, options, processes.count)
        self._parameters = list(self._model.parameters())  # a walk through all modules, too long for every step
        hidden = hidden_matrices(self._model) if options.optimizer == "muon" else {}
        self._rest = {name: p for name, p in self._model.named_parameters() if name not in hidden}
        self._adamw = adamw(self._rest, options.learning_rate, **_adamw_options(options))
        self._muon: Muon | None = None
        if options.optimizer == "muon":
            products = torch.bfloat16 if options.dtype == "bfloat16" else None
            compiled = options.compile and self._device.type == "cuda" and processes.count == 1
            own = options.learning_rate, options.momentum, options.weight_decay
            self._muon = Muon(hidden.values(), *own, products, compiled)

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        from torch_impl.optimizer import clip_gradients

        options, count = self._options, max(_count(batches), 1)
        loss: Any = 0.0
        for parameter in self._parameters:
            parameter.grad = None
        for number, batch in enumerate(batches, 1):
            with self._gradients_stay_here(number < len(batches)):
                part = self._loss(batch) / count
                # Several processes get the mean of their gradients; the factor makes it the sum.
                (part * self._processes.count).backward()
            loss = loss + part.detach()
        norm = clip_gradients(self._parameters, options.clip_norm or float("inf"))
        self._update(learning_rate)
        return Step(self._processes.sum(loss), norm)

    def _loss(self, batch: Batch) -> torch.Tensor:
        """The sum of the training loss over this process's rows of the batch, with dropout."""
        from torch_impl.dropout import Share

        part, rows = batch.share(self._processes.rank, self._processes.count)
        dropout = self._dropout if len(part.tokens) == len(batch.tokens) else Share(self._dropout, rows, len(batch.tokens))
        return self._objective(self._tensor(part.tokens), self._tensor(part.targets), dropout, self._inputs(part))

    def _gradients_stay_here(self, stay: bool) -> contextlib.AbstractContextManager[Any]:
        """Where ddp sums the gradients of the processes in the backward pass, and more is to come, it waits for that."""
        if stay and self._processes.count > 1 and self._options.parallel == "ddp":
            return self._objective.no_sync()
        return contextlib.nullcontext()

    def _update(self, learning_rate: float) -> None:
        rates: list[tuple[torch.optim.Optimizer, float]] = [(self._adamw, learning_rate)]
        if self._muon is not None:
            rates = [(self._muon, learning_rate), (self._adamw, _adamw_rate(self._options, learning_rate))]
        for optimizer, rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def evaluate_loss(self, batch: Batch) -> float:
        import torch

        from torch_impl.loss import cross_entropy

        part, _ = batch.share(self._processes.rank, self._processes.count)
        logits, targets = self._logits(part), self._tensor(part.targets)
        if self._device.type == "mps":  # it has no float64
            logits, targets = logits.cpu(), targets.cpu()
        parts = zip(logits.split(ROWS), targets.split(ROWS), strict=True)  # float64 takes room
        losses = [cross_entropy(rows.double(), own, count=1) for rows, own in parts]
        return float(self._processes.sum(torch.stack(losses).sum()))

    def gradients(self, batch: Batch) -> Arrays:
        from torch_impl.loss import cross_entropy
        from torch_impl.parameters import as_numpy

        self._model.zero_grad(set_to_none=True)
        cross_entropy(self._model(self._tensor(batch.tokens), **self._inputs(batch)), self._tensor(batch.targets)).backward()
        parameters = self._model.named_parameters()
        found = {name: as_numpy(p.grad) for name, p in parameters if p.grad is not None}
        self._model.zero_grad(set_to_none=True)
        return found

    def generate(
        self, tokens: np.ndarray, count: int, generator: np.random.Generator, sampling: Sampling, compiled: bool = False
    ) -> np.ndarray:
        from torch_impl.decode import generate as torch_generate

        how = {"bfloat16": self._options.dtype == "bfloat16", "compiled": compiled}
        return torch_generate(self._model, tokens, count, generator, *sampling, **how)

    def predict(self, batch: Batch) -> np.ndarray:
        likeliest: np.ndarray = self._logits(batch).argmax(dim=-1).cpu().numpy()
        return likeliest

    def decoder(self, source: np.ndarray, source_padding: np.ndarray) -> Decoder:
        from torch_impl.decode import CachedDecoder as TorchCachedDecoder

        bfloat16 = self._options.dtype == "bfloat16"
        return TorchCachedDecoder(self._model, source, source_padding, bfloat16=bfloat16)

    def attention(self, tokens: np.ndarray, source: np.ndarray | None = None) -> Arrays:
        import torch

        read = None if source is None else self._tensor(source[None])
        with torch.no_grad():
            weights = self._model.attention_weights(self._tensor(tokens[None]), source=read)
        return {name: weight[0].float().cpu().numpy() for name, weight in weights.items()}

    def parameters(self) -> Arrays:
        return self._model.parameters_as_numpy()

    def export_state(self) -> tuple[Arrays, dict[str, Any]]:
        updates, parts = self._parts()
        extra: dict[str, Any] = {"updates": updates}
        if not isinstance(self._dropout, np.random.Generator):
            extra["device_stream"] = bytes(_device_module(self._device).get_rng_state().tolist()).hex()
        return _pack(parts), extra

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        import torch

        from torch_impl.optimizer import import_state

        _, own = self._parts()
        parts = _unpack(arrays, own)
        self._model.load_parameters(parts["parameters"])
        import_state(self._rest, self._adamw, int(extra["updates"]), parts["first"], parts["second"])
        if self._muon is not None:
            self._muon.import_state(self._model, parts["momentum"])
        # A checkpoint from another kind of device has no such stream; the fresh one goes on, with other masks.
        if not isinstance(self._dropout, np.random.Generator) and "device_stream" in extra:
            state = torch.tensor(list(bytes.fromhex(extra["device_stream"])), dtype=torch.uint8)
            _device_module(self._device).set_rng_state(state)

    def alone(self) -> Twin:
        if self._processes.count == 1:
            return self
        unused = np.random.default_rng(0)  # of dropout: this one is not to train
        options = replace(self._options, compile=False, cuda_graphs=False)
        return TorchBackend(self._model.config, self.parameters(), options, unused)

    def _parts(self) -> tuple[int, dict[str, Arrays]]:
        """Updates done; parameters and what the optimizers keep, by part and flat name."""
        from torch_impl.optimizer import export_state

        updates, first, second = export_state(self._rest, self._adamw)
        parts = {"parameters": self.parameters(), "first": first, "second": second}
        return updates, parts | ({} if self._muon is None else {"momentum": self._muon.export_state(self._model)})

    def _logits(self, batch: Batch) -> torch.Tensor:
        import torch

        with torch.no_grad(), self._autocast():
            logits: torch.Tensor = self._model(self._tensor(batch.tokens), **self._inputs(batch))
        return logits

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: self._tensor(part) for name, part in batch.inputs().items()}

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=bool if array.dtype == bool else np.int64))
        if self._device.type == "cuda":  # from pinned memory the copy runs beside what the device still has to do
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        if self._options.dtype == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def torch_device(name: str) -> torch.device:
    """The device to compute on. Raises: ValueError when it was asked for by name and is not there."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present[name]:
        raise ValueError(
            f"device: expected one that this machine has ({', '.join(k for k in present if present[k])}), got {name}"
        )
    return torch.device(name)


def _choose_products(tf32: bool, device: torch.device) -> None:
    """How CUDA multiplies float32 numbers. Raises: ValueError for TF32 on another device."""
    import torch

    if tf32 and device.type != "cuda":
        raise ValueError(f"tf32: expected none on a device other than cuda, got it on {device.type}")
    if device.type == "cuda":
        # Not the newer fp32_precision: the compiler still asks for the older switch and fails where the two differ.
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def _take_graphs(device: torch.device, processes: int) -> None:
    """Raises: ValueError on a device without CUDA graphs; for several processes, with which nobody has tried them; and for a
    second model with them: in a process that had trained another, steps once repeated the dropout masks of earlier ones
    (torch 2.11, H200), in a new one they did not."""
    global _graphs_taken
    if device.type != "cuda":
        raise ValueError(f"cuda_graphs: expected none on a device other than cuda, got them on {device.type}")
    if processes > 1:
        raise ValueError(f"cuda_graphs: expected one process, got {processes}")
    if _graphs_taken:
        raise ValueError("cuda_graphs: expected one model per process, got a second")
    _graphs_taken = True


_graphs_taken = False


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16; without them they take longer than float32's."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())  # torch 2.11 has no public name for it


def _device_stream(device: torch.device, seeds: np.random.Generator) -> torch.device:
    """The device's own random stream, seeded: see `torch_impl.dropout.Generator`."""
    _device_module(device).manual_seed(int(seeds.integers(2**63)))
    return device


def _device_module(device: torch.device) -> Any:
    """torch.cuda or torch.mps."""
    import torch

    return torch.get_device_module(device)


def _count(batches: Sequence[Batch]) -> int:
    """Targets that count in all micro-batches together; -1 marks one that does not."""
    return sum(batch.counted for batch in batches)


def _add(total: Arrays, more: Arrays) -> Arrays:
    """The sum, in the place of `total`."""
    for name in total:
        total[name] += more[name]
    return total


def _joined(state: Any, other: Any) -> Any:
    """The optimizer's state of two groups of parameters as one: AdamW's or Muon's."""
    if isinstance(state, MuonState):
        return MuonState(state.momentum | other.momentum, _joined(state.adamw, other.adamw))
    return AdamWState(state.step, state.first | other.first, state.second | other.second)


def _adamw_options(options: TrainConfig) -> dict[str, float]:
    names = ("beta1", "beta2", "epsilon", "weight_decay")
    return {name: getattr(options, name) for name in names}


def _adamw_rate(options: TrainConfig, learning_rate: float) -> float:
    """AdamW's learning rate beside muon's: both follow the schedule."""
    return learning_rate * (options.adamw_learning_rate / options.learning_rate)


def _pack(parts: Mapping[str, Arrays]) -> Arrays:
    """Parameters and what the optimizer keeps in one dictionary: `parameters/blocks.0...`, `first/blocks.0...` and so on."""
    return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def _unpack(arrays: Mapping[str, np.ndarray], like: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """The inverse of `_pack`, for parts with the names, shapes and dtypes of `like`.

    Raises: ValueError naming the first array that is missing or does not fit."""
    for part, own in like.items():
        for name, array in own.items():
            got = arrays.get(f"{part}/{name}")
            if got is None or got.shape != array.shape or got.dtype != array.dtype:
                found = "none" if got is None else f"{got.dtype} {got.shape}"
                raise ValueError(f"checkpoint: {part}/{name}: expected {array.dtype} {array.shape}, got {found}")
    return {part: {name: arrays[f"{part}/{name}"] for name in own} for part, own in like.items()}
