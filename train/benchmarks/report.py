"""What the measurements look like: the machine, the tables, the text around them, the plot. Every figure is generated."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.benchmarks.timing import interval
from train.checkpoint import write_atomically
from train.plots import BLUE, VERMILION, new_figure, plot_style, save_figure
from train.run_folder import environment

YARDSTICK = "nanoGPT"
STAND_IN = "torch.nn"
# Where nanoGPT is not at hand: its step over that of torch.nn.TransformerEncoder, as once measured with both.
STAND_IN_FACTOR = {"small": 0.87, "large": 0.98}
GOALS = {  # step, over the yardstick's
    "spec": 1.0,
    "twin": 0.6,
    "twin, compiled": 0.6,
    "twin, bfloat16": 0.6,
    "twin, bfloat16, compiled": 0.6,
}
DECODING_GOAL = 10.0  # cached, over the yardstick's sampler
PALE = "#9ecae1"
MARKS = (("forward", BLUE, "o", "forward alone"), ("gradients", VERMILION, "D", "forward and backward alone"))
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}


def machine() -> dict[str, Any]:
    """What ran this, and when: processor, threads, versions, load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return environment() | {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "load_before": load,
        "openblas": os.environ.get("OPENBLAS_CORETYPE"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def write(folder: Path) -> str:
    """Draw bench.png and write BENCHMARKS.md from the folder's bench.json; return the text."""
    result, *_ = machines(folder).values()
    plot_steps(result["steps"], folder / "bench.png")
    text = markdown(folder)
    write_atomically(folder / "BENCHMARKS.md", text.encode())
    return text


def machines(folder: Path) -> dict[str, Any]:
    """What bench.json holds, of this folder and of those inside, for other machines; by the folder's name, this one "."."""
    files = folder / "bench.json", *sorted(folder.glob("*/bench.json"))
    return {str(path.parent.relative_to(folder)): json.loads(path.read_text(encoding="utf-8")) for path in files}


def markdown(folder: Path) -> str:
    """The whole of BENCHMARKS.md."""
    results = machines(folder)
    result = results["."]
    fastest = quickest_product(result)
    lines = [
        "# Benchmarks",
        "",
        "Written by `twinformer bench`; not to be edited.",
        "",
        _machine_text(result["machine"], result["keeps_freed_memory"]),
        "",
        "## Training step",
        "",
        "AdamW with clipping; all take turns, called by one process, which may have others beside it; medians, plus or",
        "minus half the interquartile range; the ratio is the median of the rounds' own. A step's operations are counted",
        "as (6 N + 12 L D T) per token (Chowdhery et al. 2022, appendix B), N the weights that multiply; the share is of",
        f"the quickest product of float32 below, {fastest / 1e9:.0f} GFLOP/s: above 100 %, that was measured in slower",
        "minutes than the step. Memory is what a process of its own, and those that it starts, need at most beyond what it",
        "took to load the libraries; of what is compiled it is not measured. Backward is what the gradients take beyond",
        "forward, by medians of different calls: the parts need not add up to the step.",
        "All have biases, x-transformers fewer than the others; nanoGPT by default trains without. The twin and most",
        "peers have the exact GELU; the spec and Hugging Face's GPT-2 its tanh approximation.",
        "All compute in float32 but the twin where it says bfloat16: then the factors of its products are in bfloat16;",
        "parameters, residual stream, norms, loss and optimizer stay in float32.",
        "",
    ]
    for name, table in result["steps"].items():
        lines += [*_step_table(name, table, result["memory"][name], fastest), ""]
    lines += ["![time of a step](bench.png)", "", "## What is ahead, what is behind", "", *_verdict(result), ""]
    if len(results) > 1:
        lines += ["## Other machines", "", *_machines_table(results), ""]
    lines += ["## Where the twin's time goes", "", *_profile_table(result["profile"]), ""]
    lines += ["## One product", "", *_product_table(result["products"]), ""]
    lines += ["## Decoding", "", *_decoding_table(result["decoding"]), ""]
    lines += ["## Attention of the spec against the length", "", *_attention_table(result["attention"]), ""]
    seconds = result["data"]["batch_seconds"]
    lines += ["## Data", "", f"Cutting a batch of the first shape from a text takes {seconds * 1e6:.0f} microseconds.", ""]
    if "note" in result:
        lines += [result["note"], ""]
    return "\n".join(lines)


def quickest_product(result: Mapping[str, Any]) -> float:
    """Operations per second of the quickest library at the quickest shape."""
    return max(float(record["flops"]) for record in result["products"])


def plot_steps(tables: Mapping[str, Any], path: Path) -> None:
    """One panel per shape, one bar per contender: the step, with half its interquartile range to either side.

    Forward alone and forward with backward were measured in calls of their own, so they are marks, not parts of the bar."""
    with plot_style():
        figure = new_figure(6.5 * len(tables) + 0.5, 3.8)
        for axes, (name, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
            records = sorted(table["records"], key=lambda record: -record["step"])
            places = range(len(records))
            steps, spreads = ([1e3 * record[key] for record in records] for key in ("step", "spread"))
            whiskers = {"xerr": spreads, "error_kw": {"elinewidth": 1.2, "capsize": 3}}
            axes.barh(places, steps, color=PALE, height=0.65, label="training step, median and spread", **whiskers)
            for key, color, marker, label in MARKS:
                times = [1e3 * record[key] for record in records]
                axes.plot(times, places, color=color, marker=marker, markersize=6, linestyle="", label=label)
            for place, record in enumerate(records):
                end = 1e3 * max(record["step"] + record["spread"], record["gradients"])
                axes.annotate(f"{1e3 * record['step']:,.0f}", (end, place), xytext=(7, 0), **BESIDE)
            axes.set_yticks(places, [record["name"] for record in records])
            axes.set(xlabel="time (ms)", title=f"{name}: {_shape_text(table['shape'])}")
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.margins(x=0.12)
            axes.grid(axis="y", visible=False)
        handles = axes.get_legend_handles_labels()[0]
        figure.legend(handles=[*handles[-1:], *handles[:-1]], loc="outside lower center", ncols=3)
        save_figure(figure, path)


def yardstick(name: str, table: Mapping[str, Any]) -> tuple[str, float]:
    """What the steps are compared with, and its seconds."""
    steps = {record["name"]: record["step"] for record in table["records"]}
    if YARDSTICK in steps:
        return YARDSTICK, steps[YARDSTICK]
    factor = STAND_IN_FACTOR.get(name, 1.0)
    return f"{factor} x {STAND_IN}", factor * steps[STAND_IN]


def step_ratios(name: str, table: Mapping[str, Any]) -> tuple[str, dict[str, np.ndarray]]:
    """What the steps are compared with, and every contender's steps over it, round by round."""
    who, seconds = yardstick(name, table)
    rounds = {record["name"]: np.array(record.get("steps", [record["step"]])) for record in table["records"]}
    base = YARDSTICK if YARDSTICK in rounds else STAND_IN
    step = next(record["step"] for record in table["records"] if record["name"] == base)
    theirs = rounds[base] * (seconds / step)  # the yardstick may be a multiple of it
    return who, {contender: steps / theirs for contender, steps in rounds.items()}


def _step_table(name: str, table: Mapping[str, Any], memory: Mapping[str, Any], fastest: float) -> list[str]:
    who, ratios = step_ratios(name, table)
    lines = [
        f"**{name}**: {_shape_text(table['shape'])}; {table['rounds']} rounds.",
        "",
        f"| | forward, ms | backward, ms | step, ms | step / {who} | tokens/s | of the quickest product | memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for record in sorted(table["records"], key=lambda record: record["step"]):
        step, peak, ratio = record["step"], memory.get(record["name"]), np.median(ratios[record["name"]])
        backward = max(record["gradients"] - record["forward"], 0.0)  # of two medians, so noise could push it below 0
        lines.append(
            f"| {record['name']} | {record['forward'] * 1e3:.1f} | {backward * 1e3:.1f} | "
            f"{step * 1e3:,.1f} ± {record['spread'] * 1e3:.1f} | {ratio:.2f} | {table['tokens'] / step:,.0f} | "
            f"{100 * table['flops'] / step / fastest:.0f} % | {'' if peak is None else f'{peak / 2**20:.0f}'} |"
        )
    return lines


def _verdict(result: Mapping[str, Any]) -> list[str]:
    """The goals and whether they are met, from the rounds of the figures above."""
    lines = [
        "A ratio is the median of the rounds' own; in brackets its 95 % confidence interval by the sign test, or the range",
        "of all rounds if they are fewer than 6. A goal inside it is not decided.",
        "",
    ]
    for name, table in result["steps"].items():
        who, ratios = step_ratios(name, table)
        _, seconds = yardstick(name, table)
        for contender, goal in GOALS.items():
            if contender in ratios:
                found = ratios[contender]
                lines.append(
                    f"- Step, {name}, {contender}: {_ratio(found, 3)} times that of {who}; the goal, at most {goal}, is "
                    f"{_decided(found, goal)}."
                )
        lines.append(
            f"- Step, {name}: its operations alone, at the rate of the quickest product below, would take "
            f"{table['flops'] / quickest_product(result) / seconds:.2f} times as long as {who}'s step."
        )
        steps = {record["name"]: record["step"] for record in table["records"]}
        ahead = [other for other in steps if other not in GOALS and steps[other] < steps["twin"]]
        lines.append(f"- Step, {name}: quicker than the twin: {', '.join(ahead) or 'none of the others'}.")
    records = result["decoding"]["records"]
    rates = {record["name"]: np.array(record.get("rates", [record["rate"]])) for record in records}
    sampler = next((rate for name, rate in rates.items() if name.startswith(YARDSTICK)), None)
    for name in (
        *(f"twin{how}, cached" for how in ("", ", bfloat16", ", compiled", ", bfloat16, compiled")),
        "spec, cached",
    ):
        if sampler is not None and name in rates:
            found = rates[name] / sampler
            lines.append(
                f"- Decoding, {name}: {_ratio(found, 1)} times the rate of nanoGPT's sampler; the goal, at least "
                f"{DECODING_GOAL:.0f}, is {_decided(-found, -DECODING_GOAL)}."
            )
    return lines


def _ratio(ratios: np.ndarray, digits: int) -> str:
    """Its median and, of several rounds, its interval."""
    text = f"{np.median(ratios):.{digits}f}"
    low, high = interval(list(ratios))
    return text if len(ratios) == 1 else f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def _decided(ratios: np.ndarray, most: float) -> str:
    low, high = interval(list(ratios))
    return "met" if high <= most else "missed" if low > most else "not decided by these rounds"


def _machines_table(results: Mapping[str, Any]) -> list[str]:
    """One row per machine and shape: steps over the yardstick's, and what the products alone would take."""
    lines = [
        "Steps over the yardstick's, and what a step's operations alone would take at the rate of that machine's quickest",
        "product. Where torch's own products are as quick as any other, only the rest of a step can be made quicker.",
        "",
        f"| machine | shape | {' | '.join(GOALS)} | operations alone |",
        "| --- | --- |" + " ---: |" * (len(GOALS) + 1),
    ]
    for where, result in results.items():
        machine = f"{result['machine']['processor']}, {result['machine']['date'][:10]}"
        for name, table in result["steps"].items():
            _, seconds = yardstick(name, table)
            _, found = step_ratios(name, table)
            ratios = [f"{np.median(found[contender]):.2f}" if contender in found else "" for contender in GOALS]
            alone = f"{table['flops'] / quickest_product(result) / seconds:.2f}"
            row = f"{machine}, above" if where == "." else f"[{machine}]({where}/BENCHMARKS.md)"
            lines.append(f"| {row} | {name} | {' | '.join(ratios)} | {alone} |")
    return lines


def _profile_table(profiles: Mapping[str, Mapping[str, float]]) -> list[str]:
    kinds = list(next(iter(profiles.values())))
    lines = [
        "By torch's profiler, which itself slows what is small; shares of one step.",
        "",
        "| | " + " | ".join(profiles) + " |",
        "| --- |" + " ---: |" * len(profiles),
    ]
    for kind in kinds:
        lines.append(f"| {kind} | " + " | ".join(f"{100 * shares[kind]:.0f} %" for shares in profiles.values()) + " |")
    return lines


def _product_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| rows, inputs, outputs | library | GFLOP/s |", "| --- | --- | ---: |"]
    for record in records:
        shape = ", ".join(f"{size:,}" for size in record["shape"])
        lines.append(f"| {shape} | {record['library']} | {record['flops'] / 1e9:.0f} |")
    return lines


def _decoding_table(decoding: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{decoding['count']} characters after a first one, {_shape_text(decoding['shape'], batch=False)}. When the context",
        "is full, ours begin again from its second half; nanoGPT's moves on by one character. Where it says bfloat16,",
        "so are the factors of all products with weights but the head's.",
    ]
    if decoding.get("compiling") is not None:
        lines.append(f"Compiling and a first text took {decoding['compiling']:.0f} s, which do not count.")
    lines += ["", "| | characters/s |", "| --- | ---: |"]
    return lines + [f"| {record['name']} | {record['rate']:,.0f} |" for record in decoding["records"]]


def _attention_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "Forward and backward, causal, 4 heads of 32; `twinformer complexity` goes further.",
        "",
        "| T | form | ms | MiB |",
        "| ---: | --- | ---: | ---: |",
    ]
    for record in records:
        lines.append(
            f"| {record['T']:,} | {record['form']} | {record['seconds'] * 1e3:.1f} | {record['bytes'] / 2**20:.1f} |"
        )
    return lines


def _shape_text(shape: Mapping[str, int], batch: bool = True) -> str:
    text = f"{shape['layers']} layers, {shape['heads']} heads, width {shape['width']}, context {shape['context']}"
    return text + (f", batch {shape['batch']}" if batch else "")


def _machine_text(found: Mapping[str, Any], keeps: bool) -> str:
    load = "" if found["load_before"] is None else f", load average before {found['load_before']:.1f}"
    kept = "glibc keeps freed memory" if keeps else "the allocator is as it comes"
    # Kernels that the environment names, not those that OpenBLAS would choose: the spec's products are as quick as they are.
    blas = f" with OPENBLAS_CORETYPE={found['openblas']}" if found.get("openblas") else ""
    versions = f"Python {found['python']}, NumPy {found['numpy']}{blas}, torch {found['torch']}"
    return (
        f"{found['date']}, {found['processor']}, {found['cores']} cores, {found['threads']} threads{load}; "
        f"{found['system']}, {versions}; {kept}, for all contenders."
    )


def _processor() -> str:
    """The processor's name for itself; on Linux, where Python does not know it, with its family and model."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in found.items()}
    if "model name" not in known:
        return platform.machine()
    return f"{known['model name']} (family {known.get('cpu family')}, model {known.get('model')})"
