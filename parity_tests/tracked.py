"""An array that carries beside each value what the roundings of a given format would do to it: bounds.py derives it."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from parity_tests.formats import Format, format_of
from parity_tests.rules import RULES, may_be_something, narrow
from parity_tests.sketches import CONFIDENCE, QUIET, SKETCHES, larger_half, signs

_NOISE = np.dtype([("sketch", np.float64, (SKETCHES,))])  # one element of noise per element of value: same shape


def _is_plain_number(x: object) -> bool:
    return isinstance(x, (bool, int, float, np.ndarray, np.generic)) and np.asarray(x).dtype.kind in "biuf"


class Tracked(NDArrayOperatorsMixin):
    """An array of true values with the rounding errors that computing it in `format` would have made.

    `value`: longdouble, the truth. `noise`: same shape, `SKETCHES` signed errors per element. Structural functions act
    on both alike, so views, indexing and assignment behave as in NumPy. Whatever has no rule raises TypeError.
    """

    def __init__(self, value: np.ndarray, noise: np.ndarray, format: Format) -> None:
        self.value, self.noise, self.format = value, noise, format

    # ---- what a test reads

    @property
    def sketches(self) -> np.ndarray:
        """The signed errors, shape self.shape + (SKETCHES,), float64; a view."""
        sketches: np.ndarray = self.noise["sketch"]
        return sketches

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of the rounding error of each element."""
        scale = np.abs(self.sketches).max(axis=-1, initial=0.0)  # scaled, since squares of tiny errors underflow
        safe = np.where(scale > 0, scale, 1.0)
        return safe * np.sqrt(larger_half((self.sketches / safe[..., None]) ** 2))

    def bound(self, factor: float = 1.0) -> np.ndarray:
        """What the error of each element exceeds with probability FAILURE_PROBABILITY at most; times factor."""
        return factor * CONFIDENCE * self.deviation

    def __repr__(self) -> str:
        return f"Tracked({self.value!r}, deviation={self.deviation!r}, format={self.format.name})"

    # ---- what the spec asks of an array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """longdouble: tables and constants that the spec makes in x.dtype are then part of the truth."""
        return self.value.dtype

    @property
    def real(self) -> Tracked:
        return self

    @property
    def T(self) -> Tracked:
        return self.transpose()

    @property
    def mT(self) -> Tracked:
        return self.swapaxes(-1, -2)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Tracked]:
        return (self[i] for i in range(len(self)))

    def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
        raise TypeError(
            "Tracked: would lose its error bound here (np.asarray, or assignment into a plain array: "
            "make that array with np.zeros_like or np.empty_like)"
        )

    def _cannot_convert(self) -> Any:
        raise TypeError("Tracked: conversion to a Python number would lose its error bound")

    __float__ = __int__ = __index__ = __complex__ = _cannot_convert

    def __bool__(self) -> bool:
        return bool(self.value)

    def __getitem__(self, index: Any) -> Tracked:
        return self._both(lambda a: a[_plain_index(index)])

    def __setitem__(self, index: Any, item: Any) -> None:
        lifted = self._lift(item)
        self.value[_plain_index(index)] = lifted.value
        self.noise[_plain_index(index)] = lifted.noise

    def transpose(self, *axes: Any) -> Tracked:
        return self._both(lambda a: a.transpose(*axes))

    def reshape(self, *shape: Any, **kwargs: Any) -> Tracked:
        return self._both(lambda a: a.reshape(*shape, **kwargs))

    def swapaxes(self, first: int, second: int) -> Tracked:
        return self._both(lambda a: a.swapaxes(first, second))

    def squeeze(self, axis: Any = None) -> Tracked:
        return self._both(lambda a: a.squeeze(axis))

    def ravel(self) -> Tracked:
        return self._both(lambda a: a.ravel())

    flatten = ravel

    def copy(self, order: Any = "C") -> Tracked:
        return self._both(lambda a: a.copy(order))

    def astype(self, dtype: Any, copy: bool = True) -> Tracked:
        if np.dtype(dtype) != self.dtype:
            raise TypeError(f"Tracked.astype: only to its own dtype, got {dtype}")
        return self.copy() if copy else self

    def take(self, indices: Any, axis: Any = None) -> Tracked:
        return self._both(lambda a: a.take(indices, axis))

    def repeat(self, repeats: Any, axis: Any = None) -> Tracked:
        return self._both(lambda a: a.repeat(repeats, axis))

    def sum(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tracked:
        return _sum(self, axis, keepdims, **kwargs)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tracked:
        total = _sum(self, axis, keepdims)
        return total / (self.size / max(total.size, 1))

    def max(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tracked:
        return _extremum(np.maximum, self, axis, keepdims, **kwargs)

    def min(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tracked:
        return _extremum(np.minimum, self, axis, keepdims, **kwargs)

    def argmax(self, axis: Any = None, keepdims: bool = False) -> Any:
        return self.value.argmax(axis, keepdims=keepdims)

    # ---- how the rest reaches its rule

    def _both(self, function: Callable[[np.ndarray], np.ndarray]) -> Tracked:
        # [()] of a structured array is a scalar without views: keep arrays, also 0-d ones
        return Tracked(np.asarray(function(self.value)), np.asarray(function(self.noise), dtype=_NOISE), self.format)

    def _lift(self, x: Any) -> Tracked:
        """A constant as the format holds it: exact if representable, else one rounding off."""
        if isinstance(x, Tracked):
            if x.format != self.format:
                raise ValueError(f"format: expected {self.format.name}, got {x.format.name}")
            return x
        if not _is_plain_number(x):
            raise TypeError(f"Tracked: cannot be combined with {type(x).__name__} {getattr(x, 'dtype', '')}".rstrip())
        return _constant(np.asarray(x), self.format)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out, where = kwargs.pop("out", (None,))[0], kwargs.pop("where", True)
        if out is not None and not isinstance(out, Tracked):
            raise TypeError(f"Tracked: {ufunc.__name__} cannot write into a plain array (make it with np.zeros_like)")
        with np.errstate(all="ignore"):
            if method == "__call__":
                if kwargs:
                    raise TypeError(f"Tracked: {ufunc.__name__} has no rule for {', '.join(kwargs)}")
                result = self._call(ufunc, inputs)
            elif method == "reduce" and ufunc is np.add:
                result, where = _sum(*inputs, **{"axis": 0, **kwargs, "where": where}), True
            elif method == "reduce" and ufunc in (np.maximum, np.minimum):
                result, where = _extremum(ufunc, *inputs, **{"axis": 0, **kwargs, "where": where}), True
            elif method == "reduceat" and ufunc is np.add:
                result = _sum_segments(*inputs, **kwargs)
            else:
                raise TypeError(f"Tracked: no rule for {ufunc.__name__}.{method}")
        return result if out is None and where is True else _write(result, out, where)

    def _call(self, ufunc: np.ufunc, inputs: tuple[Any, ...]) -> Any:
        if ufunc in _PREDICATES:
            return ufunc(*(x.value if isinstance(x, Tracked) else x for x in inputs))
        operands = [self._lift(x) for x in inputs]
        if ufunc in _COMPARISONS:
            holds = ufunc(operands[0].value, operands[1].value)
            if ufunc in (np.equal, np.not_equal):  # they ask for a special value (-inf, 0, no change)
                return holds
            return _decide(ufunc, holds, operands[0] - operands[1])
        if ufunc in _CONTRACTIONS:
            return _contract(ufunc, operands[0], operands[1], operands[0].shape[-1])
        if ufunc is np.power:
            return _power(inputs[0], inputs[1])
        if ufunc not in RULES:
            raise TypeError(f"Tracked: no rule for {ufunc.__name__}")
        value = np.asarray(ufunc(*(x.value for x in operands)))
        sketches, roundings, underflows = RULES[ufunc](value, *operands)
        return _rounded(value, sketches, roundings * np.abs(value), self.format, underflows)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            if function in _ON_VALUES:
                return function(*_only(_values, args), **_only(_values, kwargs))
            if function in _STRUCTURAL:
                return self._structural(function, args, kwargs)
            if function in _FUNCTIONS:
                return _FUNCTIONS[function](*args, **kwargs)
        raise TypeError(f"Tracked: no rule for {function.__module__}.{function.__name__}")

    def _structural(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function in (np.concatenate, np.stack):
            args = ([self._lift(x) for x in args[0]], *args[1:])
        values = function(*_only(_values, args), **_only(_values, kwargs))
        noises = function(*_only(_noises, args), **_only(_noises, kwargs))
        if isinstance(values, (list, tuple)):
            return [Tracked(v, n, self.format) for v, n in zip(values, noises, strict=True)]
        return Tracked(np.asarray(values), np.asarray(noises, dtype=_NOISE), self.format)


class Decision:
    """Where a comparison holds in truth, and in each sketch: what `np.where` chooses by, and nothing else."""

    def __init__(self, holds: np.ndarray, sketches: np.ndarray) -> None:
        self.holds, self.sketches = holds, sketches

    def _cannot_convert(self, *args: object, **kwargs: object) -> Any:
        raise TypeError("Tracked: a comparison can only be the condition of np.where: elsewhere its error would be lost")

    __bool__ = __array__ = _cannot_convert


def _decide(comparison: np.ufunc, holds: np.ndarray, difference: Tracked) -> Decision:
    """The comparison of the difference with 0 in each sketch, as far as its bound reaches."""
    reach = CONFIDENCE * difference.sketches
    return Decision(holds, np.where(reach == 0, _along(holds), comparison(narrow(difference.value) + reach, 0)))


def _plain_index(index: Any) -> Any:
    errors = Tracked, Decision
    if isinstance(index, errors) or (isinstance(index, tuple) and any(isinstance(i, errors) for i in index)):
        raise TypeError("Tracked: cannot be an index")
    return index


def _values(x: Tracked) -> np.ndarray:
    return x.value


def _noises(x: Tracked) -> np.ndarray:
    return x.noise


def _only(part: Callable[[Tracked], np.ndarray], tree: Any) -> Any:
    """The tree with every Tracked replaced by its part."""
    if isinstance(tree, Tracked):
        return part(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)([_only(part, x) for x in tree])
    return {k: _only(part, v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _pack(value: np.ndarray, sketches: np.ndarray, format: Format) -> Tracked:
    """Non-finite values carry no error: they must match exactly."""
    noise = np.empty(value.shape, _NOISE)
    noise["sketch"] = np.where(np.isfinite(value)[..., None], sketches, 0.0)
    return Tracked(np.asarray(value, dtype=np.longdouble), noise, format)


def _rounded(value: np.ndarray, sketches: Any, amplitude: np.ndarray, format: Format, underflows: Any = 0) -> Tracked:
    """Add a rounding of u * amplitude, and underflows: as many as said, or where and as often as an array of them says."""
    if not isinstance(underflows, np.ndarray):
        underflows = underflows * (value != 0)  # an exact 0 comes of nothing that could underflow
        if format.flushes:
            underflows = np.maximum(underflows, amplitude > 0)
    size = format.unit_roundoff * np.asarray(amplitude, dtype=np.float64)
    size = (size + format.underflow * underflows) / math.sqrt(3.0)
    return _pack(value, sketches + size[..., None] * signs(value), format)


@QUIET
def _constant(array: np.ndarray, format: Format) -> Tracked:
    value = array.astype(np.longdouble)
    with np.errstate(all="ignore"):
        scaled = np.ldexp(np.frexp(value)[0], format.precision)
        inexact = (scaled != np.rint(scaled)) & np.isfinite(value)
        if not inexact.any():
            return Tracked(value, np.zeros(value.shape, _NOISE), format)
        return _rounded(value, 0.0, np.abs(value) * inexact, format)


_PREDICATES = {np.isfinite, np.isinf, np.isnan, np.signbit, np.sign}
_COMPARISONS = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}
_CONTRACTIONS = {np.matmul, np.vecdot, *(getattr(np, name) for name in ("matvec", "vecmat") if hasattr(np, name))}


def _power(base: Any, exponent: Any) -> Tracked:
    """x**n for a small whole n as products; n < 0 as a quotient; n = 0.5 as a root."""
    if not isinstance(base, Tracked) or not isinstance(exponent, (int, float)):
        raise TypeError("Tracked: power needs a Tracked base and a Python number as exponent")
    if exponent in (0.5, -0.5):
        root: Any = np.sqrt(base)
        return root if exponent > 0 else 1.0 / root
    if exponent != int(exponent) or not 1 <= abs(exponent) <= 8:
        raise TypeError(f"Tracked: no rule for power {exponent}")
    result = base
    for _ in range(abs(int(exponent)) - 1):
        result = result * base
    return result if exponent > 0 else 1.0 / result


# ---- contractions and reductions


def _largest_partial_sum(total_of_magnitudes: np.ndarray, total: np.ndarray) -> np.ndarray:
    return (np.asarray(total_of_magnitudes, np.float64) + np.abs(np.asarray(total, np.float64))) / 2


@QUIET
def _contract(operation: Callable[..., Any], a: Tracked, b: Tracked, terms: int) -> Tracked:
    """sum over `terms` products of a and b, both linear in `operation`: the module's docstring has the derivation."""
    value = np.asarray(operation(a.value, b.value))
    a_value, b_value = a.value.astype(np.float64), b.value.astype(np.float64)
    sketches = np.zeros((SKETCHES, *value.shape))
    a_noisy, b_noisy = bool(a.sketches.any()), bool(b.sketches.any())
    for k in range(SKETCHES if a_noisy or b_noisy else 0):
        a_error, b_error = np.ascontiguousarray(a.sketches[..., k]), np.ascontiguousarray(b.sketches[..., k])
        if a_noisy:
            sketches[k] += operation(a_error, b_value)
        if b_noisy:
            sketches[k] += operation(a_value + a_error, b_error)
    largest = _largest_partial_sum(operation(np.abs(a_value), np.abs(b_value)), value)
    somethings = operation(may_be_something(a).astype(np.float64), may_be_something(b).astype(np.float64))
    return _rounded(value, np.moveaxis(sketches, 0, -1), math.sqrt(terms + 1) * largest, a.format, np.asarray(somethings))


def _einsum(subscripts: str, *operands: Any, **kwargs: Any) -> Tracked:
    if kwargs.pop("optimize", False) not in (False, True) or kwargs or not 1 <= len(operands) <= 2:
        raise TypeError("Tracked: einsum of one or two operands without keywords only")
    template = next(x for x in operands if isinstance(x, Tracked))
    lifted = [template._lift(x) for x in operands]
    sources, arrow, target = subscripts.replace(" ", "").partition("->")
    if not arrow:
        raise TypeError("Tracked: einsum needs an explicit output (->)")
    letters = [source.replace("...", "") for source in sources.split(",")]
    lengths: dict[str, int] = {}
    for source, names, operand in zip(sources.split(","), letters, lifted, strict=True):
        head, dots, tail = source.partition("...")
        sizes = operand.shape[: len(head)] + (operand.shape[operand.ndim - len(tail) :] if dots else ())
        for name, size in zip(names, sizes, strict=True):
            lengths[name] = max(lengths.get(name, 0), size)
    terms = math.prod(size for name, size in lengths.items() if name not in target and name in string.ascii_letters)

    if len(lifted) == 1:
        one = _constant(np.ones(()), template.format)
        return _contract(lambda a, b: np.einsum(f"{sources},->{target}", a, b), lifted[0], one, terms)
    pair = lifted[0], lifted[1]
    return _contract(lambda a, b: np.einsum(subscripts, a, b), *pair, terms)


def _sketch_axes(a: Tracked, axis: Any) -> tuple[int, ...]:
    axes = range(a.ndim) if axis is None else (axis,) if isinstance(axis, (int, np.integer)) else axis
    return tuple(int(i) % a.ndim for i in axes)


def _along(mask: Any) -> Any:
    return mask if mask is True else np.asarray(mask)[..., None]


@QUIET
def _sum(a: Tracked, axis: Any = None, keepdims: bool = False, where: Any = True, **kwargs: Any) -> Tracked:
    if any(v is not None for k, v in kwargs.items() if k != "initial") or kwargs.get("initial", 0) not in (0, None):
        raise TypeError(f"Tracked: sum has no rule for {', '.join(kwargs)}")
    axes = _sketch_axes(a, axis)
    options: dict[str, Any] = {"axis": axes, "keepdims": bool(keepdims)}
    value = np.asarray(np.add.reduce(a.value, where=where, **options))
    magnitudes = np.add.reduce(np.abs(a.value), where=where, **options)
    terms = np.add.reduce(np.broadcast_to(np.asarray(where, dtype=np.float64), a.shape), **options)
    sketches = np.add.reduce(a.sketches, where=_along(where), **options)
    additions = np.sqrt(np.maximum(np.asarray(terms) - 1, 0))
    return _rounded(value, sketches, additions * _largest_partial_sum(magnitudes, value), a.format)


@QUIET
def _extremum(ufunc: np.ufunc, a: Tracked, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Tracked:
    axes = _sketch_axes(a, axis)
    initial, where = kwargs.pop("initial", None), kwargs.pop("where", True)
    if any(v is not None for v in kwargs.values()) or not isinstance(initial, (int, float, np.floating, type(None))):
        raise TypeError(f"Tracked: {ufunc.__name__} has no rule for {', '.join(kwargs) or 'this initial'}")
    start: Any = {} if initial is None else {"initial": np.longdouble(initial)}
    value = np.asarray(ufunc.reduce(a.value, axis=axes, keepdims=True, where=where, **start))
    shifted = narrow(a.value - value) + a.sketches  # exact at and near ties
    worst = -np.inf if ufunc is np.maximum else np.inf
    sketches = ufunc.reduce(shifted, axis=axes, keepdims=True, where=_along(where), initial=worst)
    if initial is not None:
        sketches = ufunc(sketches, narrow(np.longdouble(initial) - value))
    result = _pack(value, sketches, a.format)
    return result if keepdims else result._both(lambda part: part.squeeze(axes))


@QUIET
def _sum_segments(a: Tracked, starts: Any, axis: int = 0, **kwargs: Any) -> Tracked:
    if any(v is not None for v in kwargs.values()):
        raise TypeError(f"Tracked: add.reduceat has no rule for {', '.join(kwargs)}")
    axis = int(axis) % a.ndim
    value = np.add.reduceat(a.value, starts, axis)
    terms = np.add.reduceat(np.ones(a.shape[axis]), starts).reshape([-1 if i == axis else 1 for i in range(a.ndim)])
    largest = _largest_partial_sum(np.add.reduceat(np.abs(a.value), starts, axis), value)
    return _rounded(value, np.add.reduceat(a.sketches, starts, axis), np.sqrt(terms - 1) * largest, a.format)


def _write(result: Any, out: Tracked | None, where: Any) -> Tracked:
    if out is None or not isinstance(result, Tracked):
        raise TypeError("Tracked: where= needs out=, and comparisons cannot be written")
    np.copyto(out.value, result.value, where=where)
    np.copyto(out.noise, result.noise, where=where)
    return out


# ---- functions of the NumPy namespace


def _where(condition: Any, a: Any = None, b: Any = None) -> Any:
    if isinstance(condition, Tracked) or a is None:
        raise TypeError("Tracked: np.where needs a boolean array as condition, and both choices")
    template = a if isinstance(a, Tracked) else b
    a, b = template._lift(a), template._lift(b)
    if isinstance(condition, Decision):
        value = np.where(condition.holds, a.value, b.value)
        chosen, other = (narrow(x.value - value) + x.sketches for x in (a, b))
        return _pack(value, np.where(condition.sketches, chosen, other), template.format)
    value, noise = np.where(condition, a.value, b.value), np.where(condition, a.noise, b.noise)
    return Tracked(value, noise, template.format)


def _full_like(a: Tracked, fill: Any, dtype: Any = None, shape: Any = None) -> Tracked:
    if dtype is not None and np.dtype(dtype) != a.dtype:
        raise TypeError(f"Tracked: cannot make an array of {dtype} like it")
    result = _constant(np.zeros(a.shape if shape is None else shape), a.format)
    result[...] = fill
    return result


def _like(fill: float) -> Callable[..., Any]:
    def make(a: Tracked, dtype: Any = None, shape: Any = None) -> Any:
        if dtype is not None and np.dtype(dtype).kind in "biu":  # a mask of the same shape is plain
            return np.full(a.shape if shape is None else shape, fill, dtype)
        return _full_like(a, fill, dtype, shape)

    return make


def _copyto(out: Any, source: Any, where: Any = True) -> None:
    if not isinstance(out, Tracked):
        raise TypeError("Tracked: np.copyto cannot write into a plain array (make it with np.zeros_like)")
    _write(out._lift(source), out, where)


def _clip(a: Any, low: Any = None, high: Any = None) -> Any:
    a = a if low is None else np.maximum(a, low)
    return a if high is None else np.minimum(a, high)


def _method(name: str) -> Callable[..., Any]:
    def call(a: Tracked, *args: Any, **kwargs: Any) -> Any:
        kwargs = {k: v for k, v in kwargs.items() if v is not np._NoValue}
        return getattr(a, name)(*args, **kwargs)

    return call


_STRUCTURAL = {
    *(np.concatenate, np.stack, np.split, np.array_split, np.reshape, np.transpose, np.swapaxes, np.moveaxis),
    *(np.broadcast_to, np.expand_dims, np.squeeze, np.take, np.take_along_axis, np.triu, np.tril, np.repeat),
    *(np.tile, np.roll, np.flip, np.ravel, np.copy, np.diagonal, np.atleast_1d, np.atleast_2d, np.rollaxis),
}
_ON_VALUES = {
    *(np.shape, np.ndim, np.size, np.result_type, np.argmax, np.argmin, np.argsort, np.iscomplexobj, np.isrealobj),
    *(np.can_cast, np.count_nonzero, np.any, np.all, np.broadcast_shapes, np.min_scalar_type),
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.sum: _method("sum"),
    np.mean: _method("mean"),
    np.max: _method("max"),
    np.amax: _method("max"),
    np.min: _method("min"),
    np.amin: _method("min"),
    np.einsum: _einsum,
    np.where: _where,
    np.zeros_like: _like(0.0),
    np.empty_like: _like(0.0),
    np.ones_like: _like(1.0),
    np.full_like: _full_like,
    np.copyto: _copyto,
    np.clip: _clip,
    np.real: lambda a: a,
}


def track(array: np.ndarray | np.floating, format: str | Format) -> Tracked:
    """The array as an exact input: what it holds is the truth, without error. Copied."""
    chosen = format if isinstance(format, Format) else format_of(format)
    if np.asarray(array).dtype.kind != "f":
        raise ValueError(f"array: expected floating point, got {np.asarray(array).dtype}")
    value = np.array(array, dtype=np.longdouble)
    return Tracked(value, np.zeros(value.shape, _NOISE), chosen)
