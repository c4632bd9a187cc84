"""`twinformer ladder`: from a bigram model to a transformer, one idea at a time, all on the same text and split.

The first rung is counted. The others are presets with parts taken away, by the same means as the pitfalls: a rung without
residual connections is the transformer with the fault "no residual". Their parameters are those that the loss reaches.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.checkpoint import output_folder, write_atomically, write_json
from train.commands import LadderConfig
from train.configuration import flat_options, preset, train_config
from train.corpus import load_corpus
from train.data import split_tokens
from train.experiment_plots import plot_ladder
from train.jobs import Job, Record, run_all
from train.run_folder import environment
from train.streams import stream
from train.vocabulary import Vocabulary

LADDER_FILE = Path(__file__).with_name("ladder.toml")
RUNS, RESULT, TABLE, PLOT = "runs.jsonl", "ladder.json", "ladder.md", "ladder.png"
SAMPLE_LINES = 6


def ladder(config: LadderConfig) -> str:
    """Climbs what is not climbed yet, writes results, table and plot, and returns the table.

    Raises: OSError when the corpus cannot be had."""
    folder = output_folder(config.output)
    rungs = tomllib.loads(LADDER_FILE.read_text(encoding="utf-8"))
    jobs = {name: _job(name, rung, config) for name, rung in rungs.items() if "preset" in rung}
    options = next(iter(jobs.values())).options
    counted = bigram(options)
    records = run_all(list(jobs.values()), folder / RUNS, config.jobs)
    results = [
        {"rung": name, "idea": rung["idea"], **_figures(records[jobs[name].key] if name in jobs else counted)}
        for name, rung in rungs.items()
    ]
    content = {"options": {name: job.options for name, job in jobs.items()}, "environment": environment(), "rungs": results}
    write_json(folder / RESULT, content)
    text = table(content)
    write_atomically(folder / TABLE, text.encode())
    plot_ladder(results, folder / PLOT)
    return text + f"\nin {folder}: {RUNS}, {RESULT}, {TABLE}, {PLOT}"


def bigram(options: Mapping[str, Any]) -> Record:
    """The bigram model of a text: P(b after a) = (count of ab + 1) / (count of a + V). Loss in nats per character.

    Every character of the validation split but the first is predicted once, as by the other rungs."""
    config = train_config({**options, "threads": 1}, "bigram")
    corpus = load_corpus(config.corpus)
    vocabulary = Vocabulary.from_text(corpus.text)
    V = len(vocabulary)
    split = split_tokens(vocabulary.encode(corpus.text), config.validation_fraction, config.model.context)
    counts = np.ones((V, V))
    np.add.at(counts, (split.training[:-1], split.training[1:]), 1)
    p = counts / counts.sum(axis=1, keepdims=True)
    loss = -np.log(p[split.validation[:-1], split.validation[1:]]).mean()
    generator = stream(config.seed, "sample")
    written = [int(vocabulary.encode("\n")[0]) if "\n" in vocabulary.symbols else 0]
    for _ in range(config.sample_length):
        written.append(int(generator.choice(V, p=p[written[-1]])))
    return {"loss": float(loss), "parameters": V * V, "sample": vocabulary.decode(np.array(written)), "cpu_seconds": None}


def table(content: Mapping[str, Any]) -> str:
    """The Markdown table from what is in ladder.json, the plot, and the beginning of each rung's sample."""
    results, trained = content["rungs"], list(content["options"].values())
    (steps,), (corpus,) = ({options[name] for options in trained} for name in ("steps", "corpus"))
    lines = [
        "The first rung is counted, the second is the simplest model with attention, and every other one has one idea",
        f"more than the one above it. They are trained for {steps:,} steps, all on the same part of `{corpus}`, once each;",
        "the loss is the mean over all of the rest.",
        "",
        "| rung | the idea | parameters | exact loss, nats/char |",
        "| --- | --- | ---: | ---: |",
    ]
    for result in results:
        lines.append(f"| {result['rung']} | {result['idea']} | {result['parameters']:,} | {result['loss']:.4f} |")
    lines += ["", f"![loss of every rung]({PLOT})", "", "What each of them writes:"]
    for result in results:
        lines += ["", f"{result['rung']}:", ""]
        lines += [f"    {line}".rstrip() for line in result["sample"].strip("\n").splitlines()[:SAMPLE_LINES]]
    return "\n".join([*lines, ""])


def _figures(record: Record) -> dict[str, Any]:
    if record["loss"] is None:
        raise ValueError(f"ladder: expected a finite loss on every rung, got {record['failure']}")
    return {name: record[name] for name in ("parameters", "loss", "cpu_seconds", "sample")}


def _job(name: str, rung: Mapping[str, Any], config: LadderConfig) -> Job:
    options = flat_options(preset(rung["preset"]))
    options |= {key: value for key in ("steps", "corpus") if (value := getattr(config, key)) is not None}
    options |= {"seed": config.seed}
    return Job(f"ladder: {name}", options, tuple(rung.get("faults", ())), options["steps"])
