"""What `python -m train.gpu` has found, beside the goals: summary.json and GPU.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

GOAL_LOSS, GOAL_SECONDS, GOAL_UTILISATION = 1.43, 90, 0.55  # of the mean seed, of each seed's training, of the step
WAYS = {
    "compiled": "compiled",
    "cudnn": "cuDNN's attention",
    "residual": "bfloat16 residual",
    "graphs": "CUDA graphs",
    "tuned": "kernels tuned",
    "unbiased": "no biases",
}


def summarize(out: Path) -> dict[str, Any]:
    """The figures of all results in the folder: parity, mean and spread over the seeds, the fastest step."""
    summary: dict[str, Any] = {}
    if (out / "parity.json").exists():
        parity = json.loads((out / "parity.json").read_text(encoding="utf-8"))
        summary["parity"] = {name: parity[name] for name in ("within_bounds", "worst_error_over_bound")}
    if (out / "compiled.json").exists():
        summary["compiled"] = json.loads((out / "compiled.json").read_text(encoding="utf-8"))["largest_difference"]
    if (out / "masks.json").exists():
        summary["new_masks"] = json.loads((out / "masks.json").read_text(encoding="utf-8"))["new_masks"]
    if experiments := _experiments(out):
        summary["shakespeare"] = _over_seeds(max(experiments, key=len))
    steps = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("step-*.json"))]
    if steps:
        summary["step"] = [{name: value for name, value in step.items() if name != "environment"} for step in steps]
    return summary


def _experiments(out: Path) -> list[list[dict[str, Any]]]:
    """The runs on Shakespeare, those together that differ by their seeds alone."""
    experiments: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("shakespeare-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        experiments.setdefault(repr((sorted(run["changes"].items()), run["tuned"])), []).append(run)
    return list(experiments.values())


def _over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [run["exact_validation_loss"] for run in runs]
    return {
        "seeds": [run["seed"] for run in runs],
        "exact_validation_losses": losses,
        "mean": statistics.mean(losses),
        "deviation": statistics.stdev(losses) if len(losses) > 1 else None,
        "longest_training_seconds": max(run["training_seconds"] for run in runs),
        "longest_seconds": max(run["seconds"] for run in runs),
    }


def _how(path: Path) -> str:
    """What the steps of a comparison were, from the options of the file."""
    ways = json.loads(path.read_text(encoding="utf-8"))["ways"]
    graphs = " with CUDA graphs" if ways.get("cuda_graphs") else ""
    return f"Compiled steps{graphs}" if ways.get("compile") else "Eager steps (nothing was compiled)"


def report(out: Path, summary: dict[str, Any]) -> str:
    """GPU.md: the figures as tables, beside the goals."""
    lines = ["# On a GPU", "", "Written by `python -m train.gpu --out DIR`; not to be edited.", ""]
    if "parity" in summary:
        worst = summary["parity"]["worst_error_over_bound"]
        word = "within" if summary["parity"]["within_bounds"] else "NOT within"
        lines += [
            f"Loss and gradients of the twin in float64 are {word} their bounds; at worst an error is {worst:.3f} of one."
        ]
    if "compiled" in summary:
        lines += [f"{_how(out / 'compiled.json')} against eager ones: losses differ by {summary['compiled']:.1e} at most."]
    if "new_masks" in summary:
        word = "draw new dropout masks" if summary["new_masks"] else "REPEAT their dropout masks"
        lines += [f"{_how(out / 'masks.json')} {word}."]
    for alike in _experiments(out):
        lines += ["", *_shakespeare_lines(alike)]
    if "step" in summary:
        lines += ["", *_step_lines(summary["step"])]
    return "\n".join(lines) + "\n"


def _shakespeare_lines(runs: list[dict[str, Any]]) -> list[str]:
    found = _over_seeds(runs)
    first, spread = runs[0], found["deviation"]
    where, changes = first["environment"]["gpu"] or "a CPU", "; ".join(f"{n} = {v}" for n, v in first["changes"].items())
    remarks: dict[str, list[str]] = {}  # written by hand, if at all
    for run in runs:
        if "remark" in run:
            remarks.setdefault(run["remark"], []).append(str(run["seed"]))
    mean = f"{found['mean']:.4f}" + ("" if spread is None else f", standard deviation {spread:.4f}")
    reached = found["mean"] <= GOAL_LOSS and found["longest_training_seconds"] <= GOAL_SECONDS
    goal = f"The goal, on an H100 a mean of at most {GOAL_LOSS} in at most {GOAL_SECONDS} s each, is "
    return [
        "## tinyshakespeare",
        "",
        f"Preset `shakespeare-gpu`, {first['parameters']:,} parameters, on {where}, {first['date']}, "
        f"torch {first['environment']['torch']}" + (f"; with {changes}." if changes else "."),
        f"Exact loss over {'a piece of the training split' if first['tuned'] else 'the validation split'}, nats per "
        "character. Training seconds are of all steps, compilation included;",
        "those of the whole run are with evaluation, figures and sample. Utilisation is that of the median logged speed.",
        "",
        "| seed | loss | training, s | whole run, s | utilisation |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {run['seed']} | {run['exact_validation_loss']:.4f} | {run['training_seconds']:.1f} | {run['seconds']:.1f} | "
            f"{_percent(run['utilisation'])} |"
            for run in runs
        ),
        "",
        *(f"Seeds {', '.join(seeds)}: {remark}.\n" for remark, seeds in remarks.items()),
        f"Mean {mean}." + ("" if first["tuned"] else f" {goal}{'' if reached else 'not '}reached on this device."),
    ]


def _step_lines(steps: list[dict[str, Any]]) -> list[str]:
    done = [step for step in steps if "failed" not in step]
    lines = [
        f"## The step of {'a tiny model' if steps[0]['tiny'] else 'the smallest GPT-2'}",
        "",
        f"On {steps[0]['gpu'] or 'a CPU'}, {steps[0]['date']}: random tokens, AdamW, bfloat16 with float32 parameters.",
        "The formula of FLOPs and the device's peak: train/flops.py.",
        "",
        "| sequences | options | ms | tokens/s | utilisation | memory, GB |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for step in done:
        ways = {name: word for name, word in WAYS.items() if step.get(name) and (name != "tuned" or step["compiled"])}
        way = ", ".join(ways.values()) or "eager"
        memory = "-" if step["peak_memory_bytes"] is None else f"{step['peak_memory_bytes'] / 1e9:.1f}"
        lines.append(
            f"| {step['batch']} | {way} | {step['milliseconds']:.1f} | {step['tokens_per_second']:,.0f} | "
            f"{_percent(step['utilisation'])} | {memory} |"
        )
    lines += [f"\n{step['batch']} sequences failed: {step['failed']}" for step in steps if "failed" in step]
    shares = [step["utilisation"] for step in done if step["utilisation"] is not None]
    if shares:
        word = "" if max(shares) >= GOAL_UTILISATION else "not "
        lines += ["", f"The goal, {_percent(GOAL_UTILISATION)}, is {word}reached."]
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
