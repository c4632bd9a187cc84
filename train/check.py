"""`twinformer check`: the spec's loss and every gradient against independent witnesses, tensor by tensor.

The truth is the spec's own code in longdouble, on an array type that also yields the bounds of a run in float64: the error
analysis of parity_tests/bounds.py; no tolerance is chosen. Every element of the spec in float64 is held against it, and, as
asked,

    twin          every element by PyTorch's autograd in float64, against the truth
    differences   (f(x + h v) - f(x - h v)) / 2h in float64, against the spec's gradient: along one random direction v
                  through all elements of the tensor, then along single elements
    complex       Im f(x + i h v) / h in longdouble, against the same

"Within bounds" by all of them means: the gradients are those of this function, as exactly as float64 can hold them. A fault
in the spec is in the truth, too: then the spec is within bounds, and all others are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity_tests.bounds import LONGDOUBLE_IS_WIDER, TWIN_FACTOR, run_tracked
from parity_tests.compare import central_difference, derivative_by_complex_step, tiled
from parity_tests.formats import unit_roundoff
from parity_tests.tracked import Tracked
from reference_numpy.model import ModelCache
from train import streams
from train.checkpoint import write_json
from train.commands import CheckConfig
from train.configuration import Device
from train.plots import plot_check
from train.progress import tqdm
from train.run_folder import environment, output_file
from train.subject import Subject, create_subject

SHORTENINGS = 8  # of the step of a central difference, each to an eighth
TITLES = {
    "spec": "spec, float64",
    "twin": "twin, autograd, float64",
    "differences": "differences, float64",
    "complex": "complex step, longdouble",
}


class Finding(NamedTuple):
    """What one witness says of one tensor; `ratio` is error/bound, at most 1 if ok, and infinite for NaN."""

    error: float
    """The largest absolute error."""
    relative: float | None
    """The same over the largest number of the tensor; None where the tensor is 0 as far as float64 can tell."""
    ratio: float
    """The largest error/bound."""
    place: tuple[int, ...] | None
    """Where that is; None for the direction through all elements."""


class Row(NamedTuple):
    """One tensor: its norm, and by name what each witness says."""

    name: str
    shape: tuple[int, ...]
    norm: float
    findings: dict[str, Finding]

    @property
    def worst(self) -> str:
        """The witness with the largest error/bound."""
        return max(self.findings, key=lambda witness: self.findings[witness].ratio)

    @property
    def ratio(self) -> float:
        """The largest error/bound of all witnesses."""
        return self.findings[self.worst].ratio


class Probe(NamedTuple):
    """A derivative to ask for: of one element of a tensor, or along a direction through all of them (place None)."""

    place: tuple[int, ...] | None
    direction: np.ndarray
    slope: np.longdouble
    """The spec's answer, from its gradient in float64."""
    bound: float
    """Of the rounding in it."""


def check(config: CheckConfig) -> int:
    """Print the table, the worst tensor last; write the files asked for; 0 if all is within bounds, else 1.

    Raises: ValueError when the options name nothing usable, or longdouble is no wider than double on this machine."""
    if not LONGDOUBLE_IS_WIDER:
        raise ValueError("check: expected a machine whose longdouble is wider than double, to have a truth to compare with")
    output_file("json", config.json)
    output_file("plot", config.plot, ".png")
    _check_distinct(config)
    subject = create_subject(config)
    rows = compare(subject, config.witnesses, config.elements, config.device)
    ranked = sorted(rows, key=lambda row: row.ratio)
    print(table(ranked), "", summary(rows), "", verdict(subject, ranked), sep="\n")
    if config.json is not None:
        write_json(Path(config.json), report(subject, rows))
    if config.plot is not None:
        ratios = {row.name: {witness: found.ratio for witness, found in row.findings.items()} for row in rows}
        plot_check(ratios, config.plot, f"{subject.name}\nerror/bound of loss and gradients")
    return 0 if ranked[-1].ratio <= 1 else 1


def _check_distinct(config: CheckConfig) -> None:
    """Raises: ValueError where a file to be written is one that is read, or written as well."""
    places: dict[Path, str] = {}
    for name in ("checkpoint", "config", "batch", "json", "plot"):
        path = getattr(config, name)
        if path is not None:
            other = places.setdefault(Path(path).resolve(), name)
            if other != name and name in ("json", "plot"):
                raise ValueError(f"{name}: expected another file than that of {other}, got {path!r}")


def compare(subject: Subject, witnesses: Sequence[str], elements: int = 1, device: Device = "cpu") -> list[Row]:
    """Loss and gradients against the witnesses: the loss, then a row per parameter in the model's order.

    Raises: ValueError where the loss is not finite."""
    names = list(subject.parameters)

    def spec(*values: Any) -> dict[str, Any]:
        return subject.loss_and_gradients(dict(zip(names, values, strict=True)))

    values = tuple(subject.parameters.values())
    with np.errstate(all="ignore"):  # what is not finite is told below
        ours = spec(*values)
    if not np.isfinite(ours["loss"]):
        raise ValueError(f"{subject.name}: expected a model with a finite loss, got {ours['loss']}")
    truth = run_tracked(spec, *values, format="float64")
    rows = []
    for name, tracked in truth.items():
        norm = float(np.sqrt((tracked.value * tracked.value).sum()))
        finding = _every_element(ours[name], tracked.value, tracked.bound())
        rows.append(Row(name, tracked.shape, norm, {"spec": finding}))
    if "twin" in witnesses:
        other, theirs = run_tracked(tiled(spec), *values, format="float64"), _twin(subject, device)
        for row in rows:
            tracked = truth[row.name]
            bound = TWIN_FACTOR * np.maximum(tracked.bound(), other[row.name].bound())
            row.findings["twin"] = _every_element(theirs[row.name], tracked.value, bound)
    if {"differences", "complex"} & set(witnesses):
        generator = streams.stream(subject.seed, "directions")
        wide = {name: value.astype(np.clongdouble) for name, value in subject.parameters.items()}
        for row in tqdm(rows[1:], unit="tensor", leave=False, disable=None):
            probes = list(_probes(ours[row.name], truth[row.name], elements, generator))
            if "differences" in witnesses:
                loss_bound = float(truth["loss"].bound())
                answers = [_difference(subject, row.name, probe, truth[row.name].value, loss_bound) for probe in probes]
                row.findings.update(_along("differences", probes, answers))
            if "complex" in witnesses:
                answers = [_complex_step(subject, wide, row.name, probe) for probe in probes]
                row.findings.update(_along("complex", probes, answers))
    return rows


def _twin(subject: Subject, device: Device) -> dict[str, np.ndarray]:
    """Loss and gradients by PyTorch's autograd in float64, with the spec's dropout masks."""
    import torch

    from torch_impl.loss import cross_entropy
    from torch_impl.model import Transformer
    from torch_impl.parameters import gradients_as_numpy
    from train.torch_backend import torch_device

    batch = subject.batch
    place = torch_device(device)
    twin = Transformer(subject.model).double().to(place)
    twin.load_parameters(subject.parameters)
    tokens, targets = (torch.from_numpy(np.ascontiguousarray(part)).to(place) for part in (batch.tokens, batch.targets))
    inputs = {name: torch.from_numpy(np.ascontiguousarray(part)).to(place) for name, part in batch.inputs().items()}
    loss = cross_entropy(twin(tokens, **inputs, generator=subject.dropout()), targets, subject.label_smoothing)
    loss.backward()
    return {"loss": loss.detach().cpu().numpy()} | gradients_as_numpy(twin)


def _probes(gradient: np.ndarray, tracked: Tracked, elements: int, generator: np.random.Generator) -> Iterator[Probe]:
    """A random direction through the tensor, its largest gradient, and random elements; `tracked` has the rounding."""
    direction = generator.standard_normal(gradient.shape)
    with np.errstate(invalid="ignore"):  # the gradient under test may hold anything
        slope, rounding = (gradient.astype(np.longdouble) * direction).sum(), (tracked * direction).sum().bound()
    yield Probe(None, direction, slope, float(rounding))
    order = [int(np.abs(gradient).argmax()), *generator.permutation(gradient.size)]
    for number in list(dict.fromkeys(order))[:elements]:
        place = tuple(int(i) for i in np.unravel_index(number, gradient.shape))
        unit = np.zeros(gradient.shape)
        unit[place] = 1.0
        yield Probe(place, unit, np.longdouble(gradient[place]), float(tracked[place].bound()))


def _difference(
    subject: Subject, name: str, probe: Probe, gradient: np.ndarray, loss_bound: float
) -> tuple[np.longdouble, float] | None:
    """The central difference along the probe, and a bound of its error: truncation and rounding, as follows.

    The step h = u^(1/3) balances the two, u the unit roundoff of float64. A loss computed at x + h v is off by R at most:
    its own bound, and the gradient times the rounding of x + h v itself. So D(h) is off by R/h, and the estimate of its
    truncation, which is 2/3 of D(2h) - D(h), by 2/3 (R/h + R/2h) = R/h. Where a unit of a piecewise function (ReLU) changes
    sides within the step, there is no such expansion, and the step is shortened; None if that does not help.
    """
    x, u = subject.parameters[name], unit_roundoff("float64")
    rounding = loss_bound + u * float(np.abs(x * gradient)[probe.direction != 0].sum())
    sides: list[list[bytes]] = []

    def moved(t: float) -> np.longdouble:
        loss, cache = subject.loss(subject.parameters | {name: x + t * probe.direction})
        sides.append(_sides(cache))
        return np.longdouble(loss)

    h = math.cbrt(u)
    for _ in range(SHORTENINGS):
        sides.clear()
        slope, truncation = central_difference(moved, h)
        if all(side == sides[0] for side in sides):
            return slope, truncation + 2 * rounding / h
        h /= 8
    return None


def _sides(cache: ModelCache) -> list[bytes]:
    """On which side of 0 is the input of every unit whose function is put together of two pieces there."""
    config, found = cache.config, []
    for stack in (cache.encoder, cache.stack):
        for block in [] if stack is None else stack.blocks:
            if "relu" in config.activation:
                found.append(block.feed_forward.sublayer.activation)
            for residual in (block.attention, block.cross_attention):
                if config.attention == "linear" and residual is not None:
                    linear = residual.sublayer.attention
                    found += [linear.query_features - 1, linear.key_features - 1]  # elu + 1 passes 1 where its input is 0
    return [(array > 0).tobytes() for array in found]


def _complex_step(subject: Subject, wide: dict[str, np.ndarray], name: str, probe: Probe) -> tuple[np.longdouble, float]:
    """The complex step along the probe, and a bound of the rounding of its last sum; the rest is far below the gradient's.

    `wide` are the parameters in clongdouble, converted once: only the one that is stepped must be real."""
    names = list(wide)

    def forward(*values: Any) -> tuple[Any, ModelCache]:
        return subject.loss(dict(zip(names, values, strict=True)))

    values = wide | {name: subject.parameters[name]}
    return derivative_by_complex_step(forward, list(values.values()), {names.index(name): probe.direction}, [np.ones(())])


def _along(
    witness: str, probes: Sequence[Probe], answers: Sequence[tuple[np.longdouble, float] | None]
) -> dict[str, Finding]:
    """The finding of a witness from its answers to the probes; none if it had no answer at all."""
    pairs = [(probe, answer) for probe, answer in zip(probes, answers, strict=True) if answer is not None]
    if not pairs:
        return {}
    slopes, bounds = (np.array(column) for column in zip(*((p.slope, p.bound) for p, _ in pairs), strict=True))
    answered, own = (np.array(column) for column in zip(*(answer for _, answer in pairs), strict=True))
    finding = _every_element(slopes, answered, bounds + own)
    assert finding.place is not None
    return {witness: finding._replace(place=pairs[finding.place[0]][0].place)}


def _every_element(actual: np.ndarray, truth: np.ndarray, bound: np.ndarray) -> Finding:
    """The errors of `actual`: 0 over a bound of 0 is 0, anything else over it is infinite, and so is NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(np.asarray(actual).astype(np.longdouble) - truth)
        ratio = np.nan_to_num(np.where(error == 0, 0, error / bound), nan=np.inf, posinf=np.inf)
        relative = float(error.max() / np.abs(truth).max()) if (np.abs(truth) > bound).any() else None
    place = np.unravel_index(int(ratio.argmax()), ratio.shape)
    return Finding(float(error.max()), relative, float(ratio.max()), tuple(int(i) for i in place))


def table(rows: Sequence[Row]) -> str:
    """A line per tensor: error/bound by every witness, then the error of the one where that is largest."""
    witnesses = list(dict.fromkeys(witness for row in rows for witness in row.findings))
    names, shapes = ["gradient of"] + [row.name for row in rows], ["x".join(map(str, row.shape)) for row in rows]
    width, columns = max(map(len, names)), [max(len(witness), 7) for witness in witnesses]
    head = f"{'':{width}}  {'':>8}  {'':>8}  {'error/bound':<{sum(columns) + 2 * len(columns)}}worst"
    titles = "  ".join(f"{witness:>{column}}" for witness, column in zip(witnesses, columns, strict=True))
    lines = [head, f"{names[0]:{width}}  {'shape':>8}  {'norm':>8}  {titles}  {'error':>7}  {'relative':>8}  at"]
    for row, shape in zip(rows, shapes, strict=True):
        found = [row.findings.get(witness) for witness in witnesses]
        ratios = "  ".join(f"{_ratio(f):>{column}}" for f, column in zip(found, columns, strict=True))
        worst = row.findings[row.worst]
        relative = "-" if worst.relative is None else f"{worst.relative:.1e}"
        lines.append(
            f"{row.name:{width}}  {shape or 'scalar':>8}  {row.norm:8.2e}  {ratios}  {worst.error:7.1e}  {relative:>8}"
            f"  {_place(worst)}"
        )
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """A line per witness: its largest relative error, its largest error/bound, and where that is."""
    lines = ["error/bound is at most 1 where nothing is wrong; relative is to the largest number of the tensor"]
    for witness in dict.fromkeys(witness for row in rows for witness in row.findings):
        own = {row.name: row.findings[witness] for row in rows if witness in row.findings}
        name = max(own, key=lambda name: own[name].ratio)
        relative = max((found.relative for found in own.values() if found.relative is not None), default=0.0)
        lines.append(
            f"{TITLES[witness]:26}  {len(own):4d} tensors, relative error at most {relative:.1e}, error/bound at most "
            f"{_ratio(own[name])}: {name} {_place(own[name])}"
        )
    return "\n".join(lines)


def verdict(subject: Subject, ranked: Sequence[Row]) -> str:
    """One line: what was checked, how many tensors are out of bounds, and the worst one."""
    outside = [row for row in ranked if not row.ratio <= 1]
    found = (
        f"{len(outside)} of {len(ranked)} tensors out of bounds" if outside else f"all {len(ranked)} tensors within bounds"
    )
    B, T = subject.batch.tokens.shape
    worst = f"worst error/bound {_ratio(ranked[-1].findings[ranked[-1].worst])} ({ranked[-1].name}, {ranked[-1].worst})"
    text = f"{subject.name}, {B} sequences of {T} tokens: {found}; {worst}"
    if any(_against_the_spec(row) for row in outside):
        text += "\nThe others agree against the spec, whose code is the truth: look at its backward pass."
    return text


def _against_the_spec(row: Row) -> bool:
    """Whether the spec is within bounds and all of several other witnesses are not."""
    others = [found.ratio for witness, found in row.findings.items() if witness != "spec"]
    return row.findings["spec"].ratio <= 1 and len(others) > 1 and min(others) > 1


def report(subject: Subject, rows: Sequence[Row]) -> dict[str, Any]:
    """All figures as JSON values; what is not finite becomes a string."""
    B, T = subject.batch.tokens.shape
    tensors = [
        {
            "name": row.name,
            "shape": list(row.shape),
            "norm": _json(row.norm),
            "witnesses": {
                witness: {
                    "error": _json(found.error),
                    "relative": _json(found.relative),
                    "error_over_bound": _json(found.ratio),
                    "at": "direction" if found.place is None else list(found.place),
                    "within_bounds": found.ratio <= 1,
                }
                for witness, found in row.findings.items()
            },
        }
        for row in rows
    ]
    return {
        "subject": subject.name,
        "sequences": B,
        "tokens_per_sequence": T,
        "seed": subject.seed,
        "within_bounds": all(row.ratio <= 1 for row in rows),
        "worst_error_over_bound": _json(max(row.ratio for row in rows)),
        "tensors": tensors,
        "environment": environment(),
    }


def _json(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _ratio(found: Finding | None) -> str:
    if found is None:
        return "-"
    return f"{found.ratio:.3f}" if found.ratio < 1000 else f"{found.ratio:.1e}"


def _place(found: Finding) -> str:
    return "direction" if found.place is None else str(list(found.place))
