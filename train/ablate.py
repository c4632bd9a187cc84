"""`twinformer ablate`: what each choice of the model is worth, one change at a time, with error bars.

Every variant and the baseline are trained with the same seeds, so the differences are paired: seed by seed both see the same
batches. Reported are the exact validation loss and the difference to the baseline, each as a mean with its 95 % confidence
interval by Student's t, and the paired t-test with Holm's correction for the number of variants.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.checkpoint import output_folder, write_atomically, write_json
from train.commands import AblateConfig
from train.corpus import load_corpus
from train.experiment_plots import plot_ablation
from train.extras import extra
from train.jobs import Job, Record, run_all
from train.run_folder import environment

STUDIES_FILE = Path(__file__).with_name("studies.toml")
BASELINE = "baseline"
CONFIDENCE = 0.95
SILENT = ("evaluate_every", "evaluation_characters", "checkpoint_every", "log_every", "device")  # of no effect on a result
RUNS, RESULT, TABLE, PLOT = "runs.jsonl", "ablation.json", "ablation.md", "ablation.png"


class Variant(NamedTuple):
    """The baseline with some options changed, or with faults."""

    study: str
    name: str
    changes: dict[str, Any]
    faults: tuple[str, ...]


def ablate(config: AblateConfig) -> str:
    """Trains what is not trained yet, writes results, table and plot into the output folder, and returns the table.

    Raises: ValueError for an unknown study, and when scipy is missing; OSError when the corpus cannot be had."""
    extra("scipy.stats", "experiments")  # before hours of training, not after
    options, variants = plan(config)
    folder = output_folder(config.output)
    load_corpus(options["corpus"])  # fetched once, not by every process
    jobs = [[_job(options, variant, seed) for variant in variants] for seed in range(config.seeds)]
    records = run_all([job for row in jobs for job in row], folder / RUNS, config.jobs)
    results = summaries(variants, [[records[job.key] for job in column] for column in zip(*jobs, strict=True)])
    result = {
        "baseline": options,
        "seeds": config.seeds,
        "confidence": CONFIDENCE,
        "environment": environment(),
        "variants": results,
    }
    text = report(result)
    write_json(folder / RESULT, result)
    write_atomically(folder / TABLE, text.encode())
    plot_ablation(results, folder / PLOT)
    return text + f"\nin {folder}: {RUNS}, {RESULT}, {TABLE}, {PLOT}"


def report(result: dict[str, Any]) -> str:
    """The table in Markdown from what is in ablation.json."""
    questions = {name: study["question"] for name, study in _studies().items() if name != BASELINE}
    return table(result["variants"], questions, result["baseline"], result["seeds"])


def plan(config: AblateConfig) -> tuple[dict[str, Any], list[Variant]]:
    """The baseline's options, and the variants of the chosen studies, the baseline first. Raises: ValueError for a name."""
    studies = _studies()
    options = studies.pop(BASELINE)
    options |= {name: value for name in ("steps", "corpus") if (value := getattr(config, name)) is not None}
    for name in config.study:
        if name not in studies:
            raise ValueError(f"study: expected one of {', '.join(studies)}, got {name!r}")
    variants = [Variant(BASELINE, BASELINE, {}, ())]
    for study in dict.fromkeys(config.study) or studies:
        for name, changes in studies[study]["variants"].items():
            faults = tuple(changes.pop("faults", ()))
            variants.append(Variant(study, name, changes, faults))
    return options, variants


def summaries(variants: Sequence[Variant], records: Sequence[Sequence[Record]]) -> list[dict[str, Any]]:
    """Figures of every variant from its records, one a seed; the baseline comes first.

    A variant with a run whose loss was not finite has no mean: it is reported with the number of such runs."""
    base = [record["loss"] for record in records[0]]
    found = []
    for variant, own in zip(variants, records, strict=True):
        losses = [record["loss"] for record in own]
        summary: dict[str, Any] = {
            "study": variant.study,
            "name": variant.name,
            "changes": variant.changes,
            "faults": list(variant.faults),
            "parameters": own[0]["parameters"],
            "cpu_seconds": float(np.mean([record["cpu_seconds"] for record in own])),
            "losses": losses,
            "not_finite": losses.count(None),
        }
        if None not in losses:
            summary |= {"mean": float(np.mean(losses)), "interval": interval(losses)}
            if variant.study != BASELINE and None not in base:
                summary |= paired(losses, base)
        found.append(summary)
    _correct(found)
    return found


def interval(values: Sequence[float] | np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of the mean: t_{n-1} s / sqrt(n)."""
    stats, n = extra("scipy.stats", "experiments"), len(values)
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def paired(losses: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Mean difference to the baseline over the seeds, its interval, and the p-value of the paired t-test (two sides)."""
    stats = extra("scipy.stats", "experiments")
    differences = np.subtract(losses, base)
    with np.errstate(all="ignore"):  # equal to the last bit for every seed: t is 0/0, and there is no evidence
        p = float(stats.ttest_1samp(differences, 0.0).pvalue) if differences.any() else 1.0
    return {"difference": float(differences.mean()), "difference_interval": interval(differences), "p": p}


def _correct(results: list[dict[str, Any]]) -> None:
    """Adds "p_holm": the k-th smallest of m p-values times m - k + 1, never below an earlier one (Holm 1979)."""
    tested = sorted((result for result in results if "p" in result), key=lambda result: result["p"])
    largest = 0.0
    for rank, result in enumerate(tested):
        largest = max(largest, min(1.0, result["p"] * (len(tested) - rank)))
        result["p_holm"] = largest


def verdict(result: dict[str, Any]) -> str:
    """What the corrected test says at the 5 % level."""
    if result["not_finite"]:
        return f"loss not finite in {result['not_finite']} runs"
    if "p_holm" not in result:
        return ""
    if result["p_holm"] >= 1 - CONFIDENCE:
        return "no difference shown"
    return "worse" if result["difference"] > 0 else "better"


def table(results: Sequence[dict[str, Any]], questions: dict[str, str], options: dict[str, Any], seeds: int) -> str:
    """The Markdown table: a row per variant, below the question of its study."""
    told = ", ".join(f"{name} {value}" for name, value in options.items() if name not in SILENT)
    lines = [
        f"Mean over {seeds} seeds ± half the width of the {100 * CONFIDENCE:.0f} % confidence interval; p of the paired",
        "t-test, corrected for all comparisons (Holm). Intervals are not: one may exclude 0 where no difference is shown.",
        "A variant keeps all other options of the baseline: tuned on its own it might do better.",
        "",
        f"Baseline: {told}.",
        "",
        "| variant | parameters | exact validation loss, nats/char | minus baseline | p | verdict at 5 % |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    study = BASELINE
    for result in results:
        if result["study"] != study:
            study = result["study"]
            lines.append(f"| **{questions[study]}** | | | | | |")
        loss = f"{result['mean']:.4f} ± {result['interval']:.4f}" if "mean" in result else ""
        difference = p = ""
        if "p_holm" in result:
            difference = f"{result['difference']:+.4f} ± {result['difference_interval']:.4f}".replace("-", "−")
            p = f"{result['p_holm']:.2g}"
        lines.append(f"| {result['name']} | {result['parameters']:,} | {loss} | {difference} | {p} | {verdict(result)} |")
    return "\n".join([*lines, ""])


def _job(options: dict[str, Any], variant: Variant, seed: int) -> Job:
    name = f"{variant.study}: {variant.name}"
    return Job(name, {**options, **variant.changes, "seed": seed}, variant.faults)


def _studies() -> dict[str, Any]:
    return tomllib.loads(STUDIES_FILE.read_text(encoding="utf-8"))
