"""`twinformer complexity`: time and peak memory of attention against the length T, in the spec: plain, tiled, linear.

One forward and one backward of causal self-attention in float32. Memory is what NumPy allocated at the peak beyond the
inputs (tracemalloc counts every NumPy buffer); time is the median of several runs, after one that is not counted. The three
take turns at every length, so that a drift of the machine's speed meets all of them.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from reference_numpy import attention, flash_attention, linear_attention
from train.checkpoint import output_folder, write_json
from train.commands import ComplexityConfig
from train.plots import plot_complexity
from train.progress import tqdm
from train.run_folder import environment

Pass = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], object]


def plain(query: np.ndarray, key: np.ndarray, value: np.ndarray, d_output: np.ndarray) -> object:
    """Scaled dot-product attention: the (T, T) weights exist as a whole."""
    _, cache = attention.scaled_dot_product_attention_forward(query, key, value, causal=True)
    return attention.scaled_dot_product_attention_backward(d_output, cache)


def tiled(query: np.ndarray, key: np.ndarray, value: np.ndarray, d_output: np.ndarray) -> object:
    """FlashAttention-2's algorithm: one tile of weights at a time."""
    _, cache = flash_attention.flash_attention_forward(query, key, value, causal=True)
    return flash_attention.flash_attention_backward(d_output, cache)


def linear(query: np.ndarray, key: np.ndarray, value: np.ndarray, d_output: np.ndarray) -> object:
    """Linear attention: another function of the inputs, no weights at all."""
    _, cache = linear_attention.linear_attention_forward(query, key, value, causal=True)
    return linear_attention.linear_attention_backward(d_output, cache)


FORMS: dict[str, Pass] = {"plain": plain, "tiled": tiled, "linear": linear}


def complexity(config: ComplexityConfig) -> str:
    """Measure, write complexity.json and complexity.png into the output folder, and return the table."""
    folder = output_folder(config.output)
    records: list[dict[str, Any]] = []
    lengths = [2**k for k in range(8, 30) if 2**k <= config.longest]
    for T in tqdm(lengths, unit="length", disable=None):
        names = [name for name in FORMS if name != "plain" or T <= config.longest_plain]
        records += measure(names, T, config)
    fits = {f"{name} {figure}": slope(records, name, figure) for name in FORMS for figure in ("seconds", "bytes")}
    slopes = {name: fit for name, fit in fits.items() if fit is not None}
    result = {
        "heads": config.heads,
        "head_width": config.head_width,
        "slopes": slopes,
        "records": records,
        "environment": environment(),
    }
    write_json(folder / "complexity.json", result)
    plot_complexity(records, slopes, folder / "complexity.png")
    return table(records, slopes) + f"\nin {folder}: complexity.json, complexity.png"


def measure(names: list[str], T: int, config: ComplexityConfig) -> list[dict[str, Any]]:
    """One record per form of attention at length T: median seconds, and peak bytes beyond the inputs."""
    generator = np.random.default_rng(config.seed)
    shape = (1, config.heads, T, config.head_width)
    inputs = [generator.standard_normal(shape, dtype=np.float32) for _ in range(4)]
    peaks, times = {}, {name: [] for name in names}  # type: dict[str, int], dict[str, list[float]]
    for name in names:  # also the run that is not counted
        tracemalloc.start()
        FORMS[name](inputs[0], inputs[1], inputs[2], inputs[3])
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    for _ in range(config.repeats):
        for name in names:
            start = time.perf_counter()
            FORMS[name](inputs[0], inputs[1], inputs[2], inputs[3])
            times[name].append(time.perf_counter() - start)
    return [{"form": name, "T": T, "seconds": float(np.median(times[name])), "bytes": peaks[name]} for name in names]


def slope(records: list[dict[str, Any]], name: str, figure: str) -> float | None:
    """The exponent p of figure ~ T^p: least squares on log axes over the longer half of the lengths, where it settles.

    None for a single length."""
    points = [(record["T"], record[figure]) for record in records if record["form"] == name]
    points = points[len(points) // 2 :] if len(points) >= 4 else points
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, dtype=np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def table(records: list[dict[str, Any]], slopes: dict[str, float]) -> str:
    """One line per form and length, then the fitted exponents."""
    lines = [f"{'T':>6}  {'form':7}  {'ms':>9}  {'MiB':>9}"]
    for record in records:
        milliseconds, mebibytes = record["seconds"] * 1e3, record["bytes"] / 2**20
        lines.append(f"{record['T']:6d}  {record['form']:7}  {milliseconds:9.2f}  {mebibytes:9.2f}")
    fitted = [f"{name} ~ T^{value:.2f}" for name, value in slopes.items()]
    return "\n".join([*lines, "", "fitted: " + (", ".join(fitted) or "nothing, for want of a second length")])
