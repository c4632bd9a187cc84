"""The two twins behind one interface, with the same order of operations, so that one loop drives either.

Arrays go in and out under the flat names of the spec; which twin computed them cannot be seen from outside. This is the
only file of the laboratory that knows torch, and it imports it only when the torch backend is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from reference_numpy.config import ModelConfig
from reference_numpy.decode import generate
from reference_numpy.loss import cross_entropy_forward
from reference_numpy.model import attention_weights, loss_and_gradients, model_forward
from reference_numpy.optimizer import adamw_initial, adamw_step, clip_gradients
from train.configuration import TrainConfig
from train.data import Batch

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray]


class Step(NamedTuple):
    """What one update reports; float() of either waits for the device, so ask only when it is wanted."""

    loss: Any
    """Mean training loss of the batch before the update, nats per token (with label smoothing and dropout)."""
    gradient_norm: Any
    """Norm over all parameters before clipping."""


class Sampling(NamedTuple):
    """How the next token is chosen; see `reference_numpy.decode.next_token`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Twin(Protocol):
    """What the loop and the commands ask of a backend."""

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        """One update with the gradient of all `batches` together (gradient accumulation)."""

    def evaluate_loss(self, batch: Batch) -> float:
        """The sum, in float64, of nats over all targets of the batch; no dropout, no label smoothing."""

    def generate(self, tokens: np.ndarray, count: int, generator: np.random.Generator, sampling: Sampling) -> np.ndarray:
        """(N,) tokens and `count` more that the model chose."""

    def attention(self, tokens: np.ndarray) -> Arrays:
        """Attention weights for (T,) tokens: name of the layer to (H, T, T)."""

    def parameters(self) -> Arrays:
        """All parameters by flat name."""

    def export_state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and JSON values that `import_state` of either twin takes to go on from here."""

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        """Goes on from an exported state."""


def create_backend(model: ModelConfig, parameters: Arrays, options: TrainConfig, dropout: np.random.Generator) -> Twin:
    """The twin that `options.backend` names, with these parameters; `dropout` is the stream of its masks."""
    if options.backend == "numpy":
        return NumpyBackend(model, parameters, options, dropout)
    return TorchBackend(model, parameters, options, dropout)


class NumpyBackend:
    """Trains and runs the spec."""

    def __init__(self, model: ModelConfig, parameters: Arrays, options: TrainConfig, dropout: np.random.Generator) -> None:
        self._model, self._options, self._dropout = model, options, dropout
        self._parameters = dict(parameters)
        self._state = adamw_initial(self._parameters)

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        options, count = self._options, _count(batches)
        loss: Any = 0.0
        gradients: Arrays | None = None
        for batch in batches:
            part, new = loss_and_gradients(
                self._parameters,
                self._model,
                batch.tokens,
                batch.targets,
                label_smoothing=options.label_smoothing,
                count=count,
                generator=self._dropout,
            )
            loss = loss + part
            gradients = new if gradients is None else {name: gradients[name] + new[name] for name in gradients}
        assert gradients is not None
        gradients, norm = clip_gradients(gradients, options.clip_norm or np.inf)
        self._parameters, self._state = adamw_step(
            self._parameters,
            gradients,
            self._state,
            learning_rate,
            beta1=options.beta1,
            beta2=options.beta2,
            epsilon=options.epsilon,
            weight_decay=options.weight_decay,
        )
        return Step(loss, norm)

    def evaluate_loss(self, batch: Batch) -> float:
        logits, _ = model_forward(self._parameters, self._model, batch.tokens)
        loss, _ = cross_entropy_forward(logits.astype(np.float64), batch.targets, count=1)
        return float(loss)

    def generate(self, tokens: np.ndarray, count: int, generator: np.random.Generator, sampling: Sampling) -> np.ndarray:
        return generate(self._parameters, self._model, tokens, count, generator, *sampling)

    def attention(self, tokens: np.ndarray) -> Arrays:
        _, cache = model_forward(self._parameters, self._model, tokens[None])
        return {name: weights[0] for name, weights in attention_weights(cache).items()}

    def parameters(self) -> Arrays:
        return dict(self._parameters)

    def export_state(self) -> tuple[Arrays, dict[str, Any]]:
        return _pack(self._parameters, self._state.first, self._state.second), {"updates": int(self._state.step)}

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        self._parameters, first, second = _unpack(arrays, self._parameters)
        self._state = type(self._state)(int(extra["updates"]), first, second)


class TorchBackend:
    """Trains and runs the twin, on any device.

    On a CPU the dropout masks come from the NumPy stream, so both twins drop the same units. Elsewhere drawing them there
    and copying would cost more than the step, so the device has a stream of its own, seeded by the NumPy stream."""

    def __init__(self, model: ModelConfig, parameters: Arrays, options: TrainConfig, dropout: np.random.Generator) -> None:
        import torch

        from torch_impl.model import Transformer
        from torch_impl.optimizer import adamw

        if options.threads:
            torch.set_num_threads(options.threads)
        self._options = options
        self._device = _torch_device(options.device)
        self._dropout = dropout if self._device.type == "cpu" else _device_stream(self._device, dropout)
        dtype = torch.float64 if next(iter(parameters.values())).dtype == np.float64 else torch.float32
        self._model = Transformer(model).to(device=self._device, dtype=dtype)
        self._model.load_parameters(parameters)
        self._optimizer = adamw(
            self._model,
            options.learning_rate,
            beta1=options.beta1,
            beta2=options.beta2,
            epsilon=options.epsilon,
            weight_decay=options.weight_decay,
        )

    def gradient_step(self, batches: Sequence[Batch], learning_rate: float) -> Step:
        from torch_impl.loss import cross_entropy
        from torch_impl.optimizer import clip_gradients

        options, count = self._options, _count(batches)
        loss: Any = 0.0
        self._optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            tokens, targets = self._tensors(batch)
            with self._autocast():
                logits = self._model(tokens, generator=self._dropout)
            if options.dtype == "bfloat16":
                logits = logits.float()  # a logarithm of sums of exponentials needs more than 8 bits
            part = cross_entropy(logits, targets, options.label_smoothing, count)
            part.backward()
            loss = loss + part.detach()
        norm = clip_gradients(self._model.parameters(), options.clip_norm or float("inf"))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        return Step(loss, norm)

    def evaluate_loss(self, batch: Batch) -> float:
        import torch

        from torch_impl.loss import cross_entropy

        tokens, targets = self._tensors(batch)
        with torch.no_grad(), self._autocast():
            logits = self._model(tokens)
        if self._device.type == "mps":  # it has no float64
            logits, targets = logits.cpu(), targets.cpu()
        return float(cross_entropy(logits.double(), targets, count=1))

    def generate(self, tokens: np.ndarray, count: int, generator: np.random.Generator, sampling: Sampling) -> np.ndarray:
        from torch_impl.decode import generate as torch_generate

        return torch_generate(self._model, tokens, count, generator, *sampling)

    def attention(self, tokens: np.ndarray) -> Arrays:
        import torch

        with torch.no_grad():
            weights = self._model.attention_weights(torch.as_tensor(tokens[None], device=self._device))
        return {name: weight[0].float().cpu().numpy() for name, weight in weights.items()}

    def parameters(self) -> Arrays:
        return self._model.parameters_as_numpy()

    def export_state(self) -> tuple[Arrays, dict[str, Any]]:
        from torch_impl.optimizer import export_state

        updates, first, second = export_state(self._model, self._optimizer)
        extra: dict[str, Any] = {"updates": updates}
        if not isinstance(self._dropout, np.random.Generator):
            extra["device_stream"] = bytes(self._dropout.get_state().tolist()).hex()
        return _pack(self.parameters(), first, second), extra

    def import_state(self, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> None:
        import torch

        from torch_impl.optimizer import import_state

        parameters, first, second = _unpack(arrays, self.parameters())
        self._model.load_parameters(parameters)
        import_state(self._model, self._optimizer, int(extra["updates"]), first, second)
        # A checkpoint from another kind of device has no such stream; the fresh one goes on, with other masks.
        if not isinstance(self._dropout, np.random.Generator) and "device_stream" in extra:
            self._dropout.set_state(torch.tensor(list(bytes.fromhex(extra["device_stream"])), dtype=torch.uint8))

    def _tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        parts = (batch.tokens, batch.targets)
        tokens, targets = (torch.from_numpy(np.ascontiguousarray(part, dtype=np.int64)) for part in parts)
        return tokens.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        if self._options.dtype == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def _torch_device(name: str) -> torch.device:
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


def _device_stream(device: torch.device, seeds: np.random.Generator) -> torch.Generator:
    import torch

    return torch.Generator(device).manual_seed(int(seeds.integers(2**63)))


def _count(batches: Sequence[Batch]) -> int:
    """Targets that count in all micro-batches together; -1 marks one that does not."""
    return sum(int((batch.targets >= 0).sum()) for batch in batches)


PARTS = ("parameters", "first", "second")


def _pack(*parts: Mapping[str, np.ndarray]) -> Arrays:
    """Parameters and the optimizer's two moments in one flat dictionary: `first/blocks.0...` and so on."""
    return {f"{part}/{name}": array for part, arrays in zip(PARTS, parts, strict=True) for name, array in arrays.items()}


def _unpack(arrays: Mapping[str, np.ndarray], like: Arrays) -> tuple[Arrays, Arrays, Arrays]:
    """The inverse of `_pack`, for parameters with the names, shapes and dtypes of `like`.

    Raises: ValueError naming the first array that is missing or does not fit."""
    for part in PARTS:
        for name, array in like.items():
            got = arrays.get(f"{part}/{name}")
            if got is None or got.shape != array.shape or got.dtype != array.dtype:
                found = "none" if got is None else f"{got.dtype} {got.shape}"
                raise ValueError(f"checkpoint: {part}/{name}: expected {array.dtype} {array.shape}, got {found}")
    parameters, first, second = ({name: arrays[f"{part}/{name}"] for name in like} for part in PARTS)
    return parameters, first, second
