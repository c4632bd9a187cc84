"""What a user can choose for the subcommands beside `train`: one frozen dataclass each; and options without effect, of all.

Like configuration.py, this module imports neither numpy nor torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reference_numpy.config import require
from train.configuration import MOST_PENALTY, ON_TEXT, BackendName, DecodingDtype, Device, TrainConfig

View = Literal["model", "layer", "head", "rollout", "statistics", "trace"]

MOST_SAMPLES = 1_000_000  # far more than fit into memory


@dataclass(frozen=True)
class GenerateConfig:
    """Write text with a trained model: go on from a prompt, or answer a source (copy, translate and so on)."""

    run: str
    """Folder of the run whose model writes."""
    source: str | None = None
    """What a sequence-to-sequence model is to answer, with the options of the search; those of sampling do not apply."""
    beams: int | None = None
    """Width of the search: partial answers kept at each step; 1 is greedy, None for what the run was trained with."""
    length_penalty: float | None = None
    """Exponent of the length in beam search; None for what the run was trained with."""
    prompt: str | None = None
    """Text to go on from, of characters that the model knows, or None for a fresh line; a masked model fills in each ▒."""
    length: int = 500
    """Characters to write, or subwords where the model has those."""
    samples: int = 1
    """Texts to write, all at once; several have a line of dashes between them."""
    temperature: float = 0.8
    """Divides the logits: below 1 is safer, above 1 wilder, 0 always takes the likeliest character (no unit)."""
    top_k: int = 0
    """Choose among this many likeliest characters; 0 for all."""
    top_p: float = 1.0
    """Choose among the likeliest characters that together have this probability; 1 for all."""
    seed: int = 0
    """Seed of the choice (non-negative integer)."""
    backend: BackendName = "torch"
    """Twin that writes."""
    device: Device = "auto"
    """Where torch computes."""
    dtype: DecodingDtype = "float32"
    """Format of the factors of products; bfloat16 is torch's only, and quicker where the device multiplies in it (auto)."""
    compile: bool = False
    """torch: compile the step by one character first, some ten seconds; on a CPU one text then takes half of its time."""

    def __post_init__(self) -> None:
        require(self.prompt != "", "prompt", "at least one character", repr(self.prompt))
        require(self.source is None or self.prompt is None, "prompt", "none beside a source", repr(self.prompt))
        for name in ("beams", "length_penalty"):
            value = getattr(self, name)
            require(self.source is not None or value is None, name, "none without a source to answer", value)
        require(self.length >= 0, "length", "at least 0", self.length)
        require(1 <= self.samples <= MOST_SAMPLES, "samples", f"at least 1 and at most {MOST_SAMPLES}", self.samples)
        require(0 <= self.temperature < float("inf"), "temperature", "a finite number of at least 0", self.temperature)
        require(self.top_k >= 0, "top_k", "at least 0", self.top_k)
        require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        require(self.beams is None or self.beams >= 1, "beams", "at least 1", self.beams)
        penalty = 0.0 if self.length_penalty is None else self.length_penalty
        require(0 <= penalty <= MOST_PENALTY, "length_penalty", f"at least 0 and at most {MOST_PENALTY}", penalty)
        require(self.seed >= 0, "seed", "at least 0", self.seed)
        numpy_in_bfloat16 = self.backend == "numpy" and self.dtype == "bfloat16"
        require(not numpy_in_bfloat16, "dtype", "float32 for the numpy backend", self.dtype)
        require(self.backend == "torch" or not self.compile, "compile", "none for the numpy backend", self.compile)


@dataclass(frozen=True)
class AttentionConfig:
    """Draw what every head of every layer attends to in a text."""

    run: str
    """Folder of the run whose model reads."""
    text: str | None = None
    """Text to read, at most the context long, ▒ for what is masked; None for a sequence-to-sequence model's own answer."""
    source: str | None = None
    """What a sequence-to-sequence model answers."""
    output: str = "attention.png"
    """PNG file to write; a sequence-to-sequence model fills three, with -encoder, -decoder and -cross before the ending."""
    view: View = "model"
    """All heads (model), those of a layer, one head, rollout over layers, statistics (entropy, distance), a head's trace."""
    layer: int = 0
    """Which layer, counted from 0, for layer, head and trace."""
    head: int = 0
    """Which head, counted from 0, for head and trace."""
    html: str | None = None
    """HTML file to write instead: a page to explore, with a slider over training if the run has kept snapshots."""
    backend: BackendName = "torch"
    """Twin that reads."""
    device: Device = "auto"
    """Where torch computes."""

    def __post_init__(self) -> None:
        for name in ("text", "source"):
            require(getattr(self, name) != "", name, "at least one character", repr(getattr(self, name)))
        for name in ("layer", "head"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(self.html is None or self.view == "model", "view", "none beside html, whose page has its own", self.view)


@dataclass(frozen=True)
class RunsConfig:
    """Compare runs: what each reached, the options in which they differ, and their curves in one picture."""

    run: tuple[str, ...] = ()
    """Folders of runs; none for all in the folder runs."""
    plot: str | None = None
    """PNG file to draw their validation losses to, against steps and against the seconds of training."""


@dataclass(frozen=True)
class PositionsConfig:
    """Draw how order enters a model: the table of positions, cosines against distance, ALiBi's penalties."""

    output: str = "positions.png"
    """PNG file to write."""
    run: str | None = None
    """Folder of a run with learned positions to draw; None for the sinusoidal ones."""
    length: int = 128
    """Positions (tokens); a run's table has its own."""
    width: int = 128
    """Channels of the sinusoidal table."""
    heads: int = 4
    """Attention heads, which share the width among them for rotary positions; must divide it, with an even quotient."""

    def __post_init__(self) -> None:
        for name in ("length", "width", "heads"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.width % (2 * self.heads) == 0, "heads", f"a divisor of half the width {self.width}", self.heads)


WITNESSES = ("twin", "differences", "complex")


@dataclass(frozen=True)
class CheckConfig:
    """Compare the spec's loss and gradients, tensor by tensor, with the twin's, with finite differences and with the complex
    step, each within a derived bound. Exit status: 0 all within, 1 some tensor out of bounds, 2 bad input."""

    preset: str | None = None
    """Preset whose model is checked, with fresh parameters; `default` where nothing else is named."""
    config: str | None = None
    """JSON file whose model is checked, with fresh parameters: a run's config.json, or options named as in a preset."""
    run: str | None = None
    """Folder of the run whose model is checked."""
    checkpoint: str | None = None
    """File model.safetensors whose model is checked."""
    batch: str | None = None
    """random; data; or an .npz of tokens, targets (-1: none), padding, source, source_padding; None: data for a run."""
    sequences: int = 2
    """Sequences of a random batch or one of data."""
    length: int = 5
    """Most tokens per sequence of such a batch; a random source has one more."""
    seed: int = 0
    """Seed of fresh parameters, batch, dropout masks and directions (non-negative integer)."""
    against: str = ",".join(WITNESSES)
    """Witnesses: twin (autograd), differences (central, float64), complex (the complex step, longdouble)."""
    elements: int = 1
    """Elements per tensor for differences and complex, largest gradient first, besides a direction through all."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the twin computes, in float64."""
    json: str | None = None
    """File to write all figures to."""
    plot: str | None = None
    """PNG file to write a heat map to: tensors down, witnesses across."""

    def __post_init__(self) -> None:
        given = [name for name in ("preset", "config", "run", "checkpoint") if getattr(self, name) is not None]
        require(len(given) <= 1, "check", "at most one of preset, config, run, checkpoint", " and ".join(given))
        for name in ("sequences", "length"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("seed", "elements"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in self.witnesses:
            require(
                name in WITNESSES, "against", f"names from {', '.join(WITNESSES)} with commas between", repr(self.against)
            )

    @property
    def witnesses(self) -> list[str]:
        """The names in `against`."""
        return [name.strip() for name in self.against.split(",")]


@dataclass(frozen=True)
class BenchConfig:
    """Measure both twins and their peers side by side: training steps, decoding, data, attention; on this machine."""

    output: str = "runs/bench"
    """Folder for BENCHMARKS.md, bench.json and bench.png."""
    size: Literal["full", "tiny"] = "full"
    """full: the small and the large model, some twenty minutes; tiny: one of a few numbers, to see that everything works."""
    nanogpt: str | None = None
    """Folder with nanoGPT's model.py, to have it among the peers."""
    repeats: int = 5
    """Rounds at the large model, and nine times as many at the small one; medians are reported."""
    compile: bool = True
    """Measure the twin under torch.compile too, which takes a C++ compiler and a minute."""
    seed: int = 0
    """Seed of the random inputs (non-negative integer)."""

    def __post_init__(self) -> None:
        require(self.repeats >= 1, "repeats", "at least 1", self.repeats)
        require(self.seed >= 0, "seed", "at least 0", self.seed)
        if self.nanogpt is not None:
            there = (Path(self.nanogpt) / "model.py").is_file()
            require(there, "nanogpt", "a folder with nanoGPT's model.py", repr(self.nanogpt))


@dataclass(frozen=True)
class ComplexityConfig:
    """Measure time and peak memory of plain, tiled and linear attention in the spec against the length."""

    output: str = "runs/complexity"
    """Folder for complexity.json and complexity.png."""
    longest: int = 16384
    """Longest sequence (tokens); lengths are the powers of 2 from 256 to it."""
    longest_plain: int = 8192
    """Longest sequence for plain attention (tokens), whose memory grows with the square."""
    heads: int = 4
    """Attention heads."""
    head_width: int = 32
    """Numbers per token in one head."""
    repeats: int = 3
    """Timed runs per form and length; the median is reported."""
    seed: int = 0
    """Seed of the random inputs (non-negative integer)."""

    def __post_init__(self) -> None:
        for name in ("longest", "longest_plain"):
            require(getattr(self, name) >= 256, name, "at least 256 tokens", getattr(self, name))
        for name in ("heads", "head_width", "repeats"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.seed >= 0, "seed", "at least 0", self.seed)


@dataclass(frozen=True)
class AblateConfig:
    """Train a small model with one thing changed at a time, over several seeds, and say what each change costs."""

    study: tuple[str, ...] = ()
    """Names of studies in train/studies.toml; none for all."""
    seeds: int = 5
    """Runs of every variant, with the seeds 0, 1 and so on."""
    steps: int | None = None
    """Optimizer steps of a run; None for those of train/studies.toml."""
    corpus: str | None = None
    """Text to learn, as for train; None for that of train/studies.toml."""
    jobs: int = 1
    """Trainings at a time, each on one thread."""
    output: str = "runs/ablation"
    """Folder for the finished runs and the report; the same command again goes on with what is missing there."""

    def __post_init__(self) -> None:
        require(self.seeds >= 2, "seeds", "at least 2, for an interval", self.seeds)
        require(self.steps is None or self.steps >= 1, "steps", "at least 1", self.steps)
        require(self.jobs >= 1, "jobs", "at least 1", self.jobs)


@dataclass(frozen=True)
class InductionConfig:
    """Train two layers of attention on random sequences that repeat themselves, and watch an induction head form."""

    steps: int = 1500
    """Optimizer steps."""
    batch: int = 32
    """Sequences per step."""
    learning_rate: float = 3e-3
    """Learning rate, after a short warm-up."""
    measure_every: int = 20
    """Steps between measurements of losses and heads."""
    seed: int = 0
    """Seed of all random streams (non-negative integer)."""
    output: str = "runs/induction"
    """Folder for induction.json and induction.png."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "measure_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(0 < self.learning_rate < float("inf"), "learning_rate", "a finite number above 0", self.learning_rate)
        require(self.seed >= 0, "seed", "at least 0", self.seed)


@dataclass(frozen=True)
class PitfallsConfig:
    """Train with one classic mistake at a time, and show what one sees: loss, gradients, attention, sample."""

    only: tuple[str, ...] = ()
    """Names of pitfalls in train/pitfalls.toml; none for all."""
    steps: int | None = None
    """Optimizer steps of a run; None for those of train/pitfalls.toml."""
    corpus: str | None = None
    """Text to learn, as for train; None for that of train/pitfalls.toml."""
    jobs: int = 1
    """Trainings at a time, each on one thread."""
    output: str = "runs/pitfalls"
    """Folder for the finished runs and the gallery; the same command again goes on with what is missing there."""

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 1, "steps", "at least 1", self.steps)
        require(self.jobs >= 1, "jobs", "at least 1", self.jobs)


@dataclass(frozen=True)
class LadderConfig:
    """Climb from a bigram model to a transformer, one idea at a time: parameters, loss and sample of each rung."""

    steps: int | None = None
    """Optimizer steps of a run; None for those of the presets ladder-*."""
    corpus: str | None = None
    """Text to learn, as for train; None for that of the presets."""
    seed: int = 0
    """Seed of all random streams (non-negative integer)."""
    jobs: int = 1
    """Trainings at a time, each on one thread."""
    output: str = "runs/ladder"
    """Folder for the finished runs and the report; the same command again goes on with what is missing there."""

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 1, "steps", "at least 1", self.steps)
        require(self.jobs >= 1, "jobs", "at least 1", self.jobs)
        require(self.seed >= 0, "seed", "at least 0", self.seed)


@dataclass(frozen=True)
class GPT2Config:
    """Make GPT-2's published weights the model of a run, to write with and to look into."""

    weights: str
    """Folder with their config.json, model.safetensors and tokenizer.json, as at huggingface.co/openai-community/gpt2."""
    output: str = "runs/gpt2"
    """Folder to write the run to."""
    overwrite: bool = False
    """Replace the run in the output folder."""


@dataclass(frozen=True)
class ExercisesConfig:
    """Write the parts of a transformer yourself: a file of exercises, and how far it is."""

    output: str | None = None
    """Python file to write with the spec's operations, their texts, and nothing in them."""
    check: str | None = None
    """Such a file, filled as far as you are: outputs and gradients are compared with the spec's."""

    def __post_init__(self) -> None:
        given = "both" if self.output is not None else "neither"
        require((self.output is None) != (self.check is None), "output", "it or check, one of the two", given)


@dataclass(frozen=True)
class ParametersConfig:
    """Count the parameters of a well-known model, part by part."""

    model: str
    """Name of a model in train/models.toml, such as gpt2 or vaswani-base."""


OF_WRITING = ("length", "samples", "temperature", "top_k", "top_p", "seed", "compile")  # options for writing on


def without_effect(config: Any) -> dict[str, str]:
    """Options of a subcommand that change nothing beside the others, and what they are for."""
    needs: dict[str, tuple[bool, str]] = {}
    if isinstance(config, TrainConfig):
        on_text, muon = config.task in ON_TEXT, config.optimizer == "muon"
        falls, multi30k = config.schedule in ("cosine", "stable_decay"), config.task == "multi30k"
        needs = {
            "momentum": (muon, "optimizer muon"),
            "adamw_learning_rate": (muon, "optimizer muon"),
            "minimum_learning_rate": (falls, "schedules cosine and stable_decay"),
            "decay": (config.schedule == "stable_decay", "schedule stable_decay"),
            "corpus": (on_text or multi30k, "tasks that read one"),
            "validation_fraction": (on_text, "tasks on one text"),
            "batch": (not multi30k, "other tasks than multi30k, which has batch_tokens"),
            "batch_tokens": (multi30k, "task multi30k"),
            "subwords": (multi30k and config.init_from is None, "task multi30k where no model to begin with has them"),
            "beams": (not on_text, "tasks on pairs"),
            "length_penalty": (not on_text, "tasks on pairs"),
            "sample_length": (config.task == "language_model", "task language_model"),
            **dict.fromkeys(
                ("initial_deviation", "zero_projections"), (config.init_from is None, "parameters that are drawn")
            ),
            "parallel": (int(os.environ.get("WORLD_SIZE", "1")) > 1, "several processes, which torchrun starts"),
        }
    if isinstance(config, GenerateConfig):
        writes, chooses = config.source is None, config.temperature > 0
        needs = {
            **dict.fromkeys(OF_WRITING, (writes, "models that write on, not for an answer to a source")),
            **dict.fromkeys(("top_k", "top_p") if writes else (), (chooses, "temperatures above 0")),
            "length_penalty": (config.beams != 1, "a search with several beams"),
        }
    if isinstance(config, AttentionConfig):
        needs = {
            "layer": (config.view in ("layer", "head", "trace"), "views layer, head and trace"),
            "head": (config.view in ("head", "trace"), "views head and trace"),
            "output": (config.html is None, "pictures, not for the page"),
        }
    if isinstance(config, CheckConfig):
        made = config.batch in (None, "random", "data"), "a batch that is drawn, not for a file"
        searched = bool({"differences", "complex"} & set(config.witnesses)), "witnesses differences and complex"
        needs = {"sequences": made, "length": made, "elements": searched}
    return {name: meant for name, (holds, meant) in needs.items() if not holds}
