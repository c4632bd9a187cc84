"""`twinformer runs`: what several runs reached, the options in which they differ, and their curves in one picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reference_numpy.parameters import parameter_count
from train import run_folder
from train.commands import RunsConfig
from train.configuration import flat_options, read_run_config
from train.plots import loss_text, plot_runs

RUNS = Path("runs")


class Run(NamedTuple):
    """What a run folder says."""

    name: str
    options: dict[str, Any]
    """Options and environment side by side."""
    learned: Any
    """What identifies the text or task; losses of different ones cannot be compared."""
    parameters: int
    log: list[dict[str, Any]]

    @property
    def loss(self) -> Mapping[str, Any] | None:
        """The last record with a validation loss."""
        records = [record for record in self.log if record.get("validation_loss") is not None]
        return records[-1] if records else None


def runs(config: RunsConfig) -> str:
    """Draws the picture if one is asked for, and returns the tables.

    Raises: ValueError for a folder that holds no run, and for no run at all; as `plot_runs`."""
    run_folder.output_file("plot", config.plot, ".png")
    found = [read(folder) for folder in (map(Path, config.run) if config.run else _all())]
    if config.plot is not None:
        plot_runs({run.name: run.log for run in found}, config.plot)
    return "\n".join([*figures(found), *differences(found), *([] if config.plot is None else ["", config.plot])])


def _all() -> list[Path]:
    """All run folders in ./runs by name, run-2 before run-10."""
    folders = [path for path in RUNS.glob("*") if run_folder.is_run(path)]
    if not folders:
        raise ValueError(f"run: expected the folders of runs, or some in {str(RUNS)!r}, got none")
    return sorted(folders, key=lambda path: (path.name.rstrip("0123456789"), len(path.name), path.name))


def read(folder: Path) -> Run:
    """One run. Raises: ValueError where the folder is none of a run."""
    options = read_run_config(folder)
    content = json.loads((folder / run_folder.CONFIG).read_text(encoding="utf-8"))
    shown = {name: value for name, value in flat_options(options).items() if name not in run_folder.OF_THE_CALL}
    learned = (options.task, content.get("text", {}))
    log = run_folder.read_log(folder)
    return Run(str(folder), shown | content.get("environment", {}), learned, parameter_count(options.model), log)


def figures(found: list[Run]) -> list[str]:
    """The table of what each reached, in Markdown."""
    lines = [
        "| run | step | parameters | validation loss, nats/token | training, s | tokens/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in found:
        trained = [record for record in run.log if "tokens_per_second" in record]
        seconds = f"{trained[-1]['training_seconds']:,.0f}" if trained else ""
        rate = f"{statistics.median(record['tokens_per_second'] for record in trained):,.0f}" if trained else ""
        step = max((record["step"] for record in run.log), default=0)
        lines.append(f"| {run.name} | {step:,} | {run.parameters:,} | {_loss(run)} | {seconds} | {rate} |")
    if any(run.loss is not None and not run.loss.get("exact", False) for run in found):
        lines += ["", "≈: an estimate from a part of the split; the run has not come to its end."]
    if any(run.learned != found[0].learned for run in found):
        lines += ["", "Not all learn the same text or task: their losses cannot be compared."]
    return lines


def _loss(run: Run) -> str:
    if run.loss is None:
        return ""
    return ("" if run.loss.get("exact", False) else "≈ ") + loss_text(run.loss["validation_loss"])


def differences(found: list[Run]) -> list[str]:
    """The table of options and versions that not all runs have in common; nothing where there are none."""
    names = list(dict.fromkeys(name for run in found for name in run.options))
    rows = {name: [run.options.get(name) for run in found] for name in names}
    differing = {name: row for name, row in rows.items() if any(value != row[0] for value in row)}
    if not differing:
        return [] if len(found) < 2 else ["", "All options are the same."]
    lines = ["", f"| option | {' | '.join(run.name for run in found)} |", "| --- |" + " --- |" * len(found)]
    return lines + [f"| {name} | {' | '.join(str(value) for value in row)} |" for name, row in differing.items()]
