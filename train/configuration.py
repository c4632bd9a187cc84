"""What a user can choose: one frozen dataclass per command, one docstring per option, presets as data.

The command line (cli.py), `presets.toml` and a run's `config.json` all fill in the same dataclasses; a wrong name or
value in any of them is a ValueError of one line. This module imports neither numpy nor torch, so that help is quick.
"""

from __future__ import annotations

import json
import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

try:
    from tyro.conf import Suppress
except ModuleNotFoundError:  # a bare checkout on a GPU machine, where `python -m train.gpu` needs no command line
    Suppress = None  # type: ignore[misc]  # it stands for a type

from reference_numpy.config import Kind, ModelConfig, require

BackendName = Literal["torch", "numpy"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["float32", "float64", "bfloat16", "auto"]
DecodingDtype = Literal["float32", "bfloat16", "auto"]
Schedule = Literal["cosine", "constant", "noam", "stable_decay"]
Optimizer = Literal["adamw", "muon"]
Parallel = Literal["ddp", "fsdp"]
View = Literal["model", "layer", "head", "rollout", "statistics", "trace"]
TaskName = Literal[
    "language_model",
    "masked_language_model",
    "copy",
    "reverse",
    "sort",
    "addition",
    "number_words",
    "multi30k",
]

PRESETS_FILE = Path(__file__).with_name("presets.toml")
CONFIG_FILE = "config.json"
RUN_FORMAT = "twinformer run 1"


MOST_THREADS = 1024  # far more than these, and a library crashes
MOST_SAMPLES = 1_000_000  # far more than fit into memory
MOST_PENALTY = 10  # an exponent: lengths to it must stay within floating point


@dataclass(frozen=True)
class ModelOptions(ModelConfig):
    """The model's options that a user chooses; the task decides its kind and how many symbols there are."""

    kind: Annotated[Kind, Suppress] = "decoder"
    vocabulary: Annotated[int, Suppress] = 1


ON_TEXT = ("language_model", "masked_language_model")
COUNTS_FROM_1 = (
    "batch",
    "batch_tokens",
    "accumulate",
    "steps",
    "beams",
    "evaluation_batch",
    "evaluation_characters",
    "log_every",
)
COUNTS_FROM_0 = (
    "warmup",
    "decay",
    "average",
    "evaluate_every",
    "checkpoint_every",
    "snapshots",
    "sample_length",
    "seed",
    "threads",
)


@dataclass(frozen=True)
class TrainConfig:
    """Train a model on a task, with either twin; without options a character-level language model."""

    preset: str = "default"
    """Named set of values for the options below, from train/presets.toml; options given here override it."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """The model."""
    init_from: str | None = None
    """Folder of a run whose model training begins with, to fine-tune it; its vocabulary stays, and so does its shape."""
    task: TaskName = "language_model"
    """What is learnt; all but the two on one text are sequence to sequence, with an encoder and a decoder."""
    corpus: str = "shakespeare"
    """Text to learn: shakespeare, tinyshakespeare, or the path of a UTF-8 text file; for multi30k its folder."""
    validation_fraction: float = 0.1
    """Part of the text, at its end, that is kept for validation (fraction of its characters)."""
    batch: int = 12
    """Sequences per micro-batch."""
    batch_tokens: int = 4096
    """multi30k, instead of batch: most source tokens, and most target tokens, of a micro-batch, padding included."""
    subwords: int = 5000
    """multi30k: size of the joint vocabulary (tokens)."""
    accumulate: int = 1
    """Micro-batches per step; the gradient is that of one batch of batch * accumulate sequences."""
    steps: int = 2000
    """Optimizer steps in total."""
    optimizer: Optimizer = "adamw"
    """adamw; or muon for the matrices inside the blocks, with adamw for all other parameters."""
    schedule: Schedule = "cosine"
    """How the learning rate runs over the steps, after the warm-up; noam takes the learning rate as its factor."""
    learning_rate: float = 1e-3
    """Peak learning rate (change per step, relative to the normalised gradient)."""
    adamw_learning_rate: float = 1e-3
    """muon: peak learning rate of the parameters that adamw takes; the schedule is the same for both."""
    minimum_learning_rate: float = 1e-4
    """Learning rate that cosine and stable_decay come down to, after the last step."""
    warmup: int = 100
    """Steps over which the learning rate climbs to its peak; all of a run that has fewer, but for noam."""
    decay: int = 0
    """Steps over which the learning rate falls at the end, for stable_decay; all after the warm-up of a shorter run."""
    momentum: float = 0.95
    """muon: share of the momentum that stays after a step."""
    beta1: float = 0.9
    """AdamW: decay per step of the mean of gradients."""
    beta2: float = 0.99
    """AdamW: decay per step of the mean of squared gradients."""
    epsilon: float = 1e-8
    """AdamW: added to the root of the mean square (same unit as a gradient)."""
    weight_decay: float = 0.1
    """Share of a matrix that a step removes, per unit of learning rate; vectors are not decayed."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all parameters (nats per token and unit of parameter); 0 for no limit."""
    input_noise: float = 0.0
    """language_model: fraction of the input characters that training replaces with characters drawn from the text."""
    label_smoothing: float = 0.0
    """Share of each target spread over the whole vocabulary in the training loss (fraction); validation has none."""
    average: int = 0
    """The finished model is the mean of the parameters at this many last checkpoints; 0 or 1 takes the last ones alone."""
    keep_best: bool = False
    """The finished model is that with the lowest estimate of the validation loss, for a small text read too often."""
    beams: int = 1
    """Sequence to sequence: width of the search in the final test, partial answers kept at each step; 1 is greedy."""
    length_penalty: float = 0.6
    """Exponent of the length by which beam search divides log probabilities; 0 favours short answers."""
    evaluate_every: int = 250
    """Steps between estimates of the validation loss; 0 for a single one, before the first step."""
    evaluation_batch: int = 64
    """Sequences per batch in evaluation; affects speed, and of masked_language_model the size of an estimate."""
    evaluation_characters: int = 20_000
    """Characters in an estimate of the validation loss during training; the final one always takes all."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0 for one at the end only."""
    snapshots: int = 0
    """Models kept in half precision on the way, closer together at the beginning; with softmax attention on a page."""
    log_every: int = 10
    """Steps between records in log.jsonl."""
    sample_length: int = 1000
    """Characters of the sample that is written at the end."""
    seed: int = 0
    """Seed of all random streams (non-negative integer)."""
    backend: BackendName = "torch"
    """Twin that trains: torch (fast) or numpy (the spec)."""
    device: Device = "auto"
    """Where torch computes; auto is cuda where there is one, else mps, else cpu."""
    dtype: Dtype = "float32"
    """Number format; bfloat16 (torch only) keeps float32 parameters; auto is bfloat16 where the device multiplies in it."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to the libraries."""
    compile: bool = False
    """torch: compile the model before the first step, which takes half a minute on a GPU and makes the others faster."""
    cuda_graphs: bool = False
    """cuda, with compile: start the kernels of forward and backward pass together; for small models."""
    tf32: bool = False
    """cuda: products of float32 numbers in TF32, which keeps 10 bits of the fraction."""
    bfloat16_residual: bool = False
    """with bfloat16: the residual stream in it too, which keeps 8 bits of each sum and moves half the bytes."""
    checkpoint_activations: bool = False
    """torch: keep only the input of each block for the backward pass and compute the rest again; less memory, more time."""
    parallel: Parallel = "ddp"
    """Several processes (torchrun): each has the whole model (ddp) or a part of each parameter (fsdp); all share a batch."""
    output: str | None = None
    """Folder for what the run leaves; None for the first free runs/PRESET-NUMBER."""
    overwrite: bool = False
    """Replace the run that the output folder holds."""
    resume: str | None = None
    """Folder of a run to go on with; its own options apply where none is given here."""

    def __post_init__(self) -> None:
        for name in COUNTS_FROM_1:
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in COUNTS_FROM_0:
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("minimum_learning_rate", "weight_decay", "clip_norm", "length_penalty"):
            require(0 <= getattr(self, name) < float("inf"), name, "a finite number of at least 0", getattr(self, name))
        for name in ("learning_rate", "adamw_learning_rate", "epsilon"):
            require(0 < getattr(self, name) < float("inf"), name, "a finite number above 0", getattr(self, name))
        for name in ("momentum", "beta1", "beta2", "input_noise", "label_smoothing"):
            require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1", getattr(self, name))
        require(self.threads <= MOST_THREADS, "threads", f"at most {MOST_THREADS}", self.threads)
        require(self.length_penalty <= MOST_PENALTY, "length_penalty", f"at most {MOST_PENALTY}", self.length_penalty)
        require(0 < self.validation_fraction < 1, "validation_fraction", "above 0 and below 1", self.validation_fraction)
        if self.average > 1:
            require(self.checkpoint_every >= 1, "checkpoint_every", "at least 1, to average", self.checkpoint_every)
            most = -(-self.steps // self.checkpoint_every)
            kept = f"at most the {most} checkpoints of {self.steps} steps, one every {self.checkpoint_every}"
            require(self.average <= most, "average", kept, self.average)
        if self.keep_best:
            require(self.average < 2, "keep_best", "none with average", self.keep_best)
            require(self.evaluate_every >= 1, "evaluate_every", "at least 1 with keep_best", self.evaluate_every)
        require(self.resume is None or not self.overwrite, "overwrite", "none together with resume", self.overwrite)
        if self.schedule == "stable_decay":
            require(self.decay >= 1, "decay", "at least 1 for stable_decay, which else is constant", self.decay)
        if self.schedule in ("cosine", "stable_decay"):
            least, most_rate = self.minimum_learning_rate, self.learning_rate
            require(least <= most_rate, "minimum_learning_rate", f"at most the learning rate {most_rate:g}", f"{least:g}")
        require(self.subwords >= 258, "subwords", "at least 258, the bytes and two marks", self.subwords)
        noisy = self.input_noise > 0
        require(not noisy or self.task == "language_model", "input_noise", "0 for this task", self.input_noise)
        if self.cuda_graphs:  # what a replay leaves lies where the next one will write
            require(self.compile, "cuda_graphs", "none without compile", self.cuda_graphs)
            require(self.accumulate == 1, "accumulate", "1 with cuda_graphs", self.accumulate)
        if self.bfloat16_residual:
            require(self.model.norm_position == "pre", "norm_position", "pre with bfloat16_residual", "post")
            require(self.dtype in ("bfloat16", "auto"), "dtype", "bfloat16 with bfloat16_residual", self.dtype)
        if self.backend == "numpy":
            require(self.dtype != "bfloat16", "dtype", "float32 or float64 for the numpy backend", self.dtype)
            require(self.device in ("auto", "cpu"), "device", "auto or cpu for the numpy backend", self.device)
            for name in ("compile", "tf32", "bfloat16_residual", "checkpoint_activations"):
                require(not getattr(self, name), name, "none for the numpy backend", getattr(self, name))


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
            "subwords": (multi30k, "task multi30k"),
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


def preset(name: str) -> TrainConfig:
    """The options of a preset from presets.toml.

    Raises: ValueError when there is no such preset, or the file has an unknown option or a value of the wrong type."""
    presets = tomllib.loads(PRESETS_FILE.read_text(encoding="utf-8"))
    if name not in presets:
        raise ValueError(f"preset: expected one of {', '.join(presets)}, got {name!r}")
    where, own = f"{PRESETS_FILE.name} [{name}]", dict(presets[name])
    like = own.pop("like", name)
    if like not in presets:
        raise ValueError(f"{where}: like: expected one of {', '.join(presets)}, got {like!r}")
    return train_config({"preset": name, **presets[like], **own}, where)


def train_config(options: Mapping[str, Any], where: str) -> TrainConfig:
    """A TrainConfig from options of model and training side by side, as on the command line; `where` is their source."""
    of_model = {option.name for option in fields(ModelOptions)}
    model = from_mapping(ModelOptions, {name: value for name, value in options.items() if name in of_model}, where)
    return from_mapping(TrainConfig, {"model": model, **{n: v for n, v in options.items() if n not in of_model}}, where)


def flat_options(config: TrainConfig) -> dict[str, Any]:
    """The options of a TrainConfig side by side; `train_config` is the inverse."""
    options = asdict(config)
    return {**options.pop("model"), **options}


def with_vocabulary(config: TrainConfig, vocabulary: int, kind: Kind = "decoder") -> TrainConfig:
    """The same options for a task of so many different symbols that a model of this kind learns."""
    return replace(config, model=replace(config.model, kind=kind, vocabulary=vocabulary))


def read_run_config(run: Path, option: str = "run") -> TrainConfig:
    """The options of an existing run.

    Raises: ValueError when `run`, which `option` gave, is not the folder of a run, or its config.json is not one of ours."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{option}: expected the folder of a run, with its {CONFIG_FILE}, got {str(run)!r}")
    return train_config(_options_of_a_run(_read_json(path), path), str(path))


def read_config(path: Path) -> TrainConfig:
    """The options in a run's config.json, or in a JSON object of options side by side, as in a preset.

    Raises: ValueError when there is no such file, or it holds something else."""
    if not path.is_file():
        raise ValueError(f"config: expected a JSON file, got {str(path)!r}")
    content = _read_json(path)
    ours = isinstance(content, dict) and "format" not in content
    return train_config(content if ours else _options_of_a_run(content, path), str(path))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _foreign(path, error) from error


def _options_of_a_run(content: Any, path: Path) -> dict[str, Any]:
    try:
        if content["format"] != RUN_FORMAT:
            raise ValueError(f"format {content['format']!r}")
        return dict(content["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise _foreign(path, error) from error


def _foreign(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: expected the configuration of a {RUN_FORMAT!r}, got something else ({error})")


T = TypeVar("T")


def from_mapping(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """Builds a dataclass from names and values; `where` names their source in errors.

    Raises: ValueError for a name that the dataclass lacks, or a value that its type does not allow."""
    hints = get_type_hints(cls)
    for name, value in options.items():
        if name not in hints:
            raise ValueError(f"{where}: {name}: expected the name of an option, got an unknown one")
        if not _fits(value, hints[name]):
            raise ValueError(f"{where}: {name}: expected {_describe(hints[name])}, got {value!r}")
    try:
        return cls(**options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _fits(value: object, hint: Any) -> bool:
    """Whether a value from TOML or JSON may stand where the annotation `hint` is; an integer may stand for a float."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(choice) for choice in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return getattr(hint, "__name__", str(hint))
