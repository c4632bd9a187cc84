"""`twinformer check`: loss and every gradient of both twins against the truth, tensor by tensor.

The truth is the spec run in longdouble; the bound of each element is that of the running error analysis in
parity_tests/bounds.py, for float64. So "ok" means: both twins compute this function, as exactly as float64 can.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity_tests.bounds import LONGDOUBLE_IS_WIDER, TWIN_FACTOR, bound_of
from parity_tests.compare import bound_of_either
from reference_numpy.config import ModelConfig
from reference_numpy.model import loss_and_gradients
from reference_numpy.parameters import Parameters, initialize
from train import run_folder, streams
from train.checkpoint import load_model
from train.configuration import CheckConfig, preset, read_run_config, with_vocabulary
from train.data import Batch
from train.task import create_task


class Row(NamedTuple):
    """One tensor of the comparison: the largest errors, the places where they are, and error/bound, at most 1 if ok."""

    name: str
    shape: tuple[int, ...]
    norm: float
    spec_error: float
    twin_error: float
    place: tuple[int, ...]
    spec_ratio: float
    twin_ratio: float

    @property
    def ratio(self) -> float:
        """The worse of the two twins; NaN counts as infinite."""
        worst = max(self.spec_ratio, self.twin_ratio)
        return float("inf") if np.isnan(self.spec_ratio) or np.isnan(self.twin_ratio) else worst


def check(config: CheckConfig) -> int:
    """Print the table, the worst tensor last; 0 if all are within bounds, else 1.

    Raises: ValueError when the run has no usable model, or longdouble is no wider than double on this machine."""
    if not LONGDOUBLE_IS_WIDER:
        raise ValueError("check: expected a machine whose longdouble is wider than double, to have a truth to compare with")
    parameters, model, batch = _subject(config)
    rows = compare(parameters, model, batch)
    print(table(rows))
    outside = [row.name for row in rows if not row.ratio <= 1]
    B, T = batch.tokens.shape
    verdict = f"{len(outside)} of {len(rows)} tensors out of bounds" if outside else f"all {len(rows)} tensors within bounds"
    print(f"\n{B} sequences of {T} tokens in float64: {verdict}; worst error/bound {rows[-1].ratio:.3f} ({rows[-1].name})")
    return 1 if outside else 0


def compare(parameters: Parameters, model: ModelConfig, batch: Batch) -> list[Row]:
    """Loss and gradients of spec and twin in float64 against the truth: a row per tensor, the worst last."""
    names = list(parameters)

    def spec(*values: Any) -> dict[str, Any]:
        own = dict(zip(names, values, strict=True))
        loss, gradients = loss_and_gradients(own, model, batch.tokens, batch.targets, **batch.inputs())
        return {"loss": loss} | {name: gradients[name] for name in names}

    truth, bound = bound_of(spec, *parameters.values(), format="float64")
    _, twin_bound = bound_of_either(spec, *parameters.values(), factor=TWIN_FACTOR)
    ours, theirs = spec(*parameters.values()), _twin(parameters, model, batch)
    rows = [_row(name, truth[name], (bound[name], twin_bound[name]), ours[name], theirs[name]) for name in truth]
    return sorted(rows, key=lambda row: row.ratio)


def _twin(parameters: Parameters, model: ModelConfig, batch: Batch) -> dict[str, np.ndarray]:
    import torch

    from torch_impl.loss import cross_entropy
    from torch_impl.model import Transformer
    from torch_impl.parameters import gradients_as_numpy

    twin = Transformer(model).double()
    twin.load_parameters(parameters)
    tokens, targets = (torch.from_numpy(np.ascontiguousarray(part)) for part in (batch.tokens, batch.targets))
    inputs = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in batch.inputs().items()}
    loss = cross_entropy(twin(tokens, **inputs), targets)
    loss.backward()
    return {"loss": loss.detach().numpy()} | gradients_as_numpy(twin)


def _row(name: str, truth: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], ours: np.ndarray, theirs: np.ndarray) -> Row:
    errors = [np.abs(np.asarray(found).astype(np.longdouble) - truth) for found in (ours, theirs)]
    ratios = [_ratio(error, bound) for error, bound in zip(errors, bounds, strict=True)]
    worse = max(ratios, key=lambda ratio: float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0)))
    place = np.unravel_index(int(np.nan_to_num(worse, nan=np.inf).argmax()), worse.shape)
    norm, index = float(np.sqrt((truth * truth).sum())), tuple(int(i) for i in place)
    spec_error, twin_error = (float(error.max()) for error in errors)
    spec_ratio, twin_ratio = (float(ratio.max()) for ratio in ratios)
    return Row(name, truth.shape, norm, spec_error, twin_error, index, spec_ratio, twin_ratio)


def _ratio(error: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """error / bound, 0 where both are 0, infinite where only the bound is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = np.where(error == 0, 0, error / bound)
    return ratio


def table(rows: list[Row]) -> str:
    """One line per tensor; "error/bound" is to be at most 1."""
    width = max(len(row.name) for row in rows)
    shapes = ["x".join(map(str, row.shape)) or "scalar" for row in rows]
    head = f"{'gradient of':{width}}  {'shape':>8}  {'norm':>9}  {'error: spec':>11}  {'twin':>8}"
    lines = [f"{head}  {'error/bound: spec':>17}  {'twin':>5}  worst at"]
    for row, shape in zip(rows, shapes, strict=True):
        lines.append(
            f"{row.name:{width}}  {shape:>8}  {row.norm:9.3e}  {row.spec_error:11.1e}  {row.twin_error:8.1e}"
            f"  {row.spec_ratio:17.3f}  {row.twin_ratio:5.3f}  {list(row.place)}"
        )
    return "\n".join(lines)


def _subject(config: CheckConfig) -> tuple[Parameters, ModelConfig, Batch]:
    """Parameters in float64, the model, and a training batch of its task."""
    options = preset(config.preset) if config.run is None else read_run_config(Path(config.run))
    length = min(config.length, options.model.context)
    small = replace(options, batch=config.batch, batch_tokens=config.batch * length, resume=config.run)
    if options.task in (
        "language_model",
        "masked_language_model",
    ):  # windows of one text may be short; pairs are as they are
        small = replace(small, model=replace(options.model, context=length))
    task = create_task(small)
    if config.run is None:
        model: ModelConfig = with_vocabulary(options, len(task.vocabulary), task.kind).model
        parameters = initialize(model, streams.stream(config.seed, "initialization"), np.float64)
    else:
        loaded, model, vocabulary = load_model(Path(config.run) / run_folder.MODEL)
        parameters = {name: value.astype(np.float64) for name, value in loaded.items()}
        if vocabulary.to_json() != task.vocabulary.to_json():
            raise ValueError(f"corpus: expected the data that the run in {config.run!r} learnt from, got another one")
    return parameters, model, task.training_batch(0, streams.stream(config.seed, "data"))
