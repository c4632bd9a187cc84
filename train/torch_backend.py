"""The twin behind the interface of train/backend.py, on any device."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from reference_numpy.config import ModelConfig
from reference_numpy.decode import Decoder
from torch_impl import decode
from torch_impl.dropout import Share
from torch_impl.loss import cross_entropy
from torch_impl.model import Transformer
from torch_impl.optimizer import Muon, adamw, clip_gradients, export_state, hidden_matrices, import_state
from torch_impl.parameters import as_numpy
from train.backend import Arrays, Backend, Sampling, Step, adamw_options, adamw_rate, counted, pack, unpack
from train.configuration import TrainConfig
from train.data import Batch
from train.objective import objective
from train.parallel import ALONE, Processes

ROWS = 8  # sequences whose logits are in float64 at once


class TorchBackend:
    """Trains and runs the twin.

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
        self._adamw = adamw(self._rest, options.learning_rate, **adamw_options(options))
        self._muon: Muon | None = None
        if options.optimizer == "muon":
            products = torch.bfloat16 if options.dtype == "bfloat16" else None
            compiled = options.compile and self._device.type == "cuda" and processes.count == 1
            own = options.learning_rate, options.momentum, options.weight_decay
            self._muon = Muon(hidden.values(), *own, products, compiled)

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        options, count = self._options, max(counted(batches), 1)
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
            rates = [(self._muon, learning_rate), (self._adamw, adamw_rate(self._options, learning_rate))]
        for optimizer, rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def evaluate_loss(self, batch: Batch) -> float:
        part, _ = batch.share(self._processes.rank, self._processes.count)
        logits, targets = self._logits(part), self._tensor(part.targets)
        if self._device.type == "mps":  # it has no float64
            logits, targets = logits.cpu(), targets.cpu()
        parts = zip(logits.split(ROWS), targets.split(ROWS), strict=True)  # float64 takes room
        losses = [cross_entropy(rows.double(), own, count=1) for rows, own in parts]
        return float(self._processes.sum(torch.stack(losses).sum()))

    def gradients(self, batch: Batch) -> Arrays:
        self._model.zero_grad(set_to_none=True)
        cross_entropy(self._model(self._tensor(batch.tokens), **self._inputs(batch)), self._tensor(batch.targets)).backward()
        parameters = self._model.named_parameters()
        found = {name: as_numpy(p.grad) for name, p in parameters if p.grad is not None}
        self._model.zero_grad(set_to_none=True)
        return found

    def generate(
        self, tokens: np.ndarray, count: int, generator: np.random.Generator, sampling: Sampling, compiled: bool = False
    ) -> np.ndarray:
        how = {"bfloat16": self._options.dtype == "bfloat16", "compiled": compiled}
        return decode.generate(self._model, tokens, count, generator, *sampling, **how)

    def predict(self, batch: Batch) -> np.ndarray:
        likeliest: np.ndarray = self._logits(batch).argmax(dim=-1).cpu().numpy()
        return likeliest

    def decoder(self, source: np.ndarray, source_padding: np.ndarray) -> Decoder:
        bfloat16 = self._options.dtype == "bfloat16"
        return decode.CachedDecoder(self._model, source, source_padding, bfloat16=bfloat16)

    def attention(self, tokens: np.ndarray, source: np.ndarray | None = None) -> Arrays:
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
        return pack(parts), extra

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        _, own = self._parts()
        parts = unpack(arrays, own)
        self._model.load_parameters(parts["parameters"])
        import_state(self._rest, self._adamw, int(extra["updates"]), parts["first"], parts["second"])
        if self._muon is not None:
            self._muon.import_state(self._model, parts["momentum"])
        # A checkpoint from another kind of device has no such stream; the fresh one goes on, with other masks.
        if not isinstance(self._dropout, np.random.Generator) and "device_stream" in extra:
            state = torch.tensor(list(bytes.fromhex(extra["device_stream"])), dtype=torch.uint8)
            _device_module(self._device).set_rng_state(state)

    def alone(self) -> Backend:
        if self._processes.count == 1:
            return self
        unused = np.random.default_rng(0)  # of dropout: this one is not to train
        options = replace(self._options, compile=False, cuda_graphs=False)
        return TorchBackend(self._model.config, self.parameters(), options, unused)

    def _parts(self) -> tuple[int, dict[str, Arrays]]:
        """Updates done; parameters and what the optimizers keep, by part and flat name."""
        updates, first, second = export_state(self._rest, self._adamw)
        parts = {"parameters": self.parameters(), "first": first, "second": second}
        return updates, parts | ({} if self._muon is None else {"momentum": self._muon.export_state(self._model)})

    def _logits(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad(), self._autocast():
            logits: torch.Tensor = self._model(self._tensor(batch.tokens), **self._inputs(batch))
        return logits

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: self._tensor(part) for name, part in batch.inputs().items()}

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=bool if array.dtype == bool else np.int64))
        if self._device.type == "cuda":  # from pinned memory the copy runs beside what the device still has to do
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._options.dtype == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def torch_device(name: str) -> torch.device:
    """The device to compute on. Raises: ValueError when it was asked for by name and is not there."""
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
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())  # torch 2.11 has no public name for it


def _device_stream(device: torch.device, seeds: np.random.Generator) -> torch.device:
    """The device's own random stream, seeded: see `torch_impl.dropout.Generator`."""
    _device_module(device).manual_seed(int(seeds.integers(2**63)))
    return device


def _device_module(device: torch.device) -> Any:
    """torch.cuda or torch.mps."""
    return torch.get_device_module(device)
