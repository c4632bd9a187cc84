"""The generated parts of README.md, from the runs in train/logs: `python -m train.evidence` writes them anew.

A test compares the file with what this module would write, so that no figure in it can go stale.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from reference_numpy.parameters import parameter_count
from train.checkpoint import write_atomically
from train.configuration import read_run_config

LOGS = Path(__file__).parent / "logs"
BENCHMARKS = Path(__file__).parent / "benchmarks"
README = Path(__file__).parent.parent / "README.md"
RUNS = ("nanogpt-cpu-torch", "nanogpt-cpu-bfloat16", "nanogpt-cpu-numpy", "fast", "shakespeare-gpu")
TASKS = ("copy", "reverse", "sort", "addition", "number-words")
SAMPLE_LINES, TRANSLATION_LINES = 22, 6


def main() -> None:
    """Write README.md with its generated parts renewed."""
    write_atomically(README, renewed(README.read_text(encoding="utf-8")).encode())


def renewed(readme: str) -> str:
    """The text with its generated parts as the runs in train/logs have them. Raises ValueError for a missing mark."""
    for mark, content in GENERATED.items():
        start, end = f"<!-- {mark} -->\n", "<!-- end -->"
        before, found, rest = readme.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"README.md: expected a part between {start.strip()} and {end}, got none")
        readme = before + start + content() + end + after
    return readme


def default_run() -> str:
    """Figures, curve, attention and the beginning of the sample of train/logs/default."""
    figures = run_figures("default")
    sample = (LOGS / "default" / "sample.txt").read_text(encoding="utf-8").strip("\n").splitlines()[:SAMPLE_LINES]
    return "\n".join(
        [
            f"`make train` on {figures['cores']} CPU cores, {figures['seconds']:.0f} s of training: "
            f"{figures['steps']:,} steps, {figures['parameters']:,} parameters, exact validation loss "
            f"**{figures['loss']:.4f} nats per character** ({figures['bits']:.4f} bits).",
            "",
            '<img src="train/logs/default/loss.png" width="49%" alt="loss against steps">',
            '<img src="train/logs/default/attention.png" width="49%" alt="attention of every head">',
            "",
            "How its sample begins:",
            "",
            *(f"    {line}".rstrip() for line in sample),
            "",
            "",
        ]
    )


def evidence() -> str:
    """The table of the committed runs on tinyshakespeare."""
    lines = [
        "| run on `tinyshakespeare` | steps | parameters | exact loss, nats/char | bits/char | training, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in RUNS:
        figures = run_figures(name)
        lines.append(
            f"| [{name}](train/logs/{name}) | {figures['steps']:,} | {figures['parameters']:,} | {figures['loss']:.4f} | "
            f"{figures['bits']:.4f} | {figures['seconds']:.0f} |"
        )
    return "\n".join([*lines, "", means(), ""])


def means() -> str:
    """The seed of the runs, and where several seeds were measured, the mean and standard deviation of their exact losses."""
    board = json.loads((BENCHMARKS / "leaderboard.json").read_text(encoding="utf-8"))
    gpu = json.loads((BENCHMARKS / "gpu" / "summary.json").read_text(encoding="utf-8"))["shakespeare"]
    found = {
        "fast": ([run["loss"] for run in board["runs"] if run["name"] == "fast"], "LEADERBOARD.md"),
        "shakespeare-gpu": (gpu["exact_validation_losses"], "gpu/GPU.md"),
    }
    texts = [
        f"`{name}` {statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f} of {len(losses)} seeds "
        f"([{file}](train/benchmarks/{file}))"
        for name, (losses, file) in found.items()
    ]
    (seed,) = {read_run_config(LOGS / name).seed for name in RUNS}
    return f"Every run of the table has seed {seed}. Mean and standard deviation: {', '.join(texts)}."


def tasks() -> str:
    """The table of the encoder-decoder tasks, judged on unseen pairs by what greedy decoding writes."""
    lines = [
        "| preset | steps | parameters | exact match | test pairs | CPU time, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in TASKS:
        figures = run_figures(name)
        scores = json.loads((LOGS / name / "scores.json").read_text(encoding="utf-8"))
        lines.append(
            f"| [{name}](train/logs/{name}) | {figures['steps']:,} | {figures['parameters']:,} | "
            f"{100 * scores['exact_match']:.1f} % | {scores['sequences']:,} | {scores['cpu_seconds']:.0f} |"
        )
    return "\n".join([*lines, ""])


def speed() -> str:
    """The step of both twins beside nanoGPT's, as `twinformer bench` measured them last; nothing before that."""
    shown = ("spec", "twin", "twin, compiled", "twin, bfloat16, compiled", "nanoGPT")
    lines = [f"| one training step, ms | {' | '.join(shown)} |", "| --- |" + " ---: |" * len(shown)]
    for path in (BENCHMARKS / "bench.json", *sorted(BENCHMARKS.glob("*/bench.json"))):
        if not path.exists():
            return ""
        measured = json.loads(path.read_text(encoding="utf-8"))
        for name, table in measured["steps"].items():
            steps = {record["name"]: f"{record['step'] * 1e3:,.0f}" for record in table["records"]}
            shape = f"{name}: {table['shape']['layers']} layers, width {table['shape']['width']}, {table['tokens']:,} tokens"
            cells = " | ".join(steps.get(contender, "") for contender in shown)
            lines.append(f"| {measured['machine']['processor']}, {shape} | {cells} |")
    return "\n".join([*lines, ""])


def translation() -> str:
    """The run on Multi30k: BLEU as its scores.json has it, and how its sample begins."""
    name = "multi30k"
    if not (LOGS / name).is_dir():
        return ""
    figures = run_figures(name)
    config = json.loads((LOGS / name / "config.json").read_text(encoding="utf-8"))
    scores = json.loads((LOGS / name / "scores.json").read_text(encoding="utf-8"))
    threads = config["options"]["threads"] or figures["cores"]
    sample = (LOGS / name / "sample.txt").read_text(encoding="utf-8").splitlines()[:TRANSLATION_LINES]
    return "\n".join(
        [
            "`twinformer train --preset multi30k --corpus FOLDER` learns to translate, from the files of "
            "[Multi30k](https://github.com/multi30k/dataset/tree/master/data/task1/raw), English to German: "
            f"{figures['parameters']:,} parameters, {figures['steps']:,} steps in {figures['seconds']:,.0f} s on "
            f"{threads} CPU core{'s' * (threads > 1)}, "
            f"BLEU **{scores['bleu_test_2016_flickr']:.2f}** on test_2016 and {scores['bleu_val']:.2f} on the validation "
            f"split (sacrebleu, `{scores['signature']}`; beam search, {scores['beams']} beams, length penalty "
            f"{scores['length_penalty']}; log, options and sample in [train/logs/{name}](train/logs/{name})):",
            "",
            *(f"    {line}".rstrip() for line in sample),
            "",
            "",
        ]
    )


def run_figures(name: str) -> dict[str, Any]:
    """What a committed run says of itself: its exact loss is the last record of its log."""
    config = json.loads((LOGS / name / "config.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (LOGS / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [record for record in records if record.get("exact")][-1]
    loss = last["validation_loss"]
    return {
        "loss": loss,
        "bits": loss / math.log(2),
        "steps": last["step"],
        "seconds": last["training_seconds"],
        "parameters": parameter_count(read_run_config(LOGS / name).model),
        "cores": config["environment"]["cores"],
    }


GENERATED = {"default run": default_run, "evidence": evidence, "tasks": tasks, "translation": translation, "speed": speed}


if __name__ == "__main__":
    main()
