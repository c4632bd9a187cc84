"""`twinformer pitfalls`: what training looks like with each classic mistake in the code, beside the same run without it.

The mistakes are named faults that the proof must notice (parity_tests/mutants.toml), so the gallery shows the other side:
what somebody without such a proof would have to go by. One seed: this shows, the ablations measure.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train.checkpoint import output_folder, write_atomically, write_json
from train.commands import PitfallsConfig
from train.corpus import load_corpus
from train.experiment_plots import plot_pitfall
from train.faults import fault
from train.jobs import Job, Record, run_all
from train.run_folder import environment

PITFALLS_FILE = Path(__file__).with_name("pitfalls.toml")
RUNS, RESULT, GALLERY = "runs.jsonl", "pitfalls.json", "pitfalls.md"
LOOKS = 15  # in a run
SAMPLE_LINES = 8
ABOUT = (
    "Each mistake is trained beside the run as it should be, from the same seed. In the pictures blue is right, and",
    "orange has the mistake: the loss; the norm of the gradient of every layer, after the first step (dashed) and after",
    "the last; the entropy of the attention of every layer, which is 0 where a token looks at one other alone.",
)


class Pitfall(NamedTuple):
    """A mistake, as pitfalls.toml states it."""

    name: str
    title: str
    recognise: str
    options: dict[str, Any]
    wrong: dict[str, Any]
    faults: tuple[str, ...]
    mistake: str

    def jobs(self) -> tuple[Job, Job]:
        """The run as it should be, and the run with the mistake."""
        every = max(1, self.options["steps"] // LOOKS)
        right = Job(f"{self.name}: right", self.options, (), every)
        return right, Job(f"{self.name}: wrong", self.options | self.wrong, self.faults, every)


def pitfalls(config: PitfallsConfig) -> str:
    """Trains what is not trained yet, writes results, pictures and the gallery, and returns a table.

    Raises: ValueError for an unknown name; OSError when the corpus cannot be had."""
    chosen = plan(config)
    folder = output_folder(config.output)
    for corpus in {pitfall.options["corpus"] for pitfall in chosen}:
        load_corpus(corpus)  # fetched once, not by every process
    pairs = {pitfall.name: pitfall.jobs() for pitfall in chosen}
    records = run_all([job for pair in pairs.values() for job in pair], folder / RUNS, config.jobs)
    shown = [(pitfall, [brief(records[job.key]) for job in pairs[pitfall.name]]) for pitfall in chosen]
    result = {
        "environment": environment(),
        "pitfalls": {
            pitfall.name: {
                **{name: value for name, value in pitfall._asdict().items() if name != "name"},
                "right": right,
                "with_the_mistake": wrong,
            }
            for pitfall, (right, wrong) in shown
        },
    }
    write_json(folder / RESULT, result, None)
    for pitfall, (right, wrong) in shown:
        plot_pitfall(pitfall.title, right, wrong, folder / f"{pitfall.name}.png")
    write_atomically(folder / GALLERY, gallery(result["pitfalls"]).encode())
    lines = [f"{'':36}{'right':>10}{'wrong':>10}"]
    lines += [f"{pitfall.name:36}{_loss(right):>10}{_loss(wrong):>10}" for pitfall, (right, wrong) in shown]
    return "\n".join([*lines, f"in {folder}: {RUNS}, {RESULT}, {GALLERY}, a picture for each"])


def plan(config: PitfallsConfig) -> list[Pitfall]:
    """The chosen pitfalls, all by default. Raises: ValueError for a name that there is not."""
    content = tomllib.loads(PITFALLS_FILE.read_text(encoding="utf-8"))
    base = content.pop("base")
    for name in config.only:
        if name not in content:
            raise ValueError(f"only: expected one of {', '.join(content)}, got {name!r}")
    overrides = {name: value for name in ("steps", "corpus") if (value := getattr(config, name)) is not None}
    found = []
    for name in dict.fromkeys(config.only) or content:
        entry = content[name]
        faults = tuple(entry.get("faults", ()))
        options = {**base, **entry.get("options", {}), **overrides}
        mistake = entry.get("mistake") or fault(faults[0]).mistake
        found.append(Pitfall(name, entry["title"], entry["recognise"], options, entry.get("wrong", {}), faults, mistake))
    return found


def brief(value: Any) -> Any:
    """Curves and looks with the digits that a picture can show; what stands outside of lists keeps all of its digits."""
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return {name: brief(part) for name, part in value.items()} if isinstance(value, dict) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def gallery(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The gallery in Markdown, a section per pitfall, from what is in pitfalls.json."""
    lines = ["# What mistakes look like", "", *ABOUT, ""]
    every = [result["options"] for result in results.values()]
    base = {name: max(values, key=values.count) for name, values in _values(every).items()}
    for name, result in results.items():
        right, wrong = result["right"], result["with_the_mistake"]
        lines += [
            f"## {result['title']}",
            "",
            f"{result['mistake']} {result['recognise']}".strip(),
            "",
            f"Exact validation loss: {_loss(right)} as it should be, {_loss(wrong)} with the mistake."
            + _matches(right, wrong)
            + _of_both(result["options"], base),
            "",
            f"![loss, gradient norms and attention entropy: {result['title']}]({name}.png)",
            "",
            "What it writes as it should be, and with the mistake:",
            "",
            *_quoted(right),
            "",
            "<!-- -->",
            "",
            *_quoted(wrong),
            "",
        ]
    return "\n".join(lines)


def _values(every: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """By option the value that each pitfall gives it; None where it does not."""
    return {name: [options.get(name) for options in every] for name in dict.fromkeys(name for o in every for name in o)}


def _of_both(options: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """The options that both runs have and most pitfalls have not."""
    own = ", ".join(f"`{name} = {value}`" for name, value in options.items() if value != base[name])
    return f" Both with {own}." if own else ""


def _loss(record: Record) -> str:
    return "not finite" if record["loss"] is None else f"{record['loss']:.3f}"


def _matches(right: Record, wrong: Record) -> str:
    """Of a task with answers, the share of unseen ones that are exactly right."""
    shares = [record["scores"].get("exact_match") for record in (right, wrong)]
    if None in shares:
        return ""
    return f" Answers without any mistake: {100 * shares[0]:.1f} % and {100 * shares[1]:.1f} %."


def _quoted(record: Record) -> list[str]:
    """The first lines of the sample as an indented block."""
    if not record["sample"]:
        return ["    (nothing: its logits are not finite)"]
    sample = "\n".join(record["sample"].strip("\n").splitlines()[:SAMPLE_LINES]).rstrip("\n").splitlines()
    return [f"    {line}".rstrip() for line in sample or ["(nothing but line ends)"]]
