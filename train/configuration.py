"""What a user can choose for a model and its training: frozen dataclasses, one docstring per option, presets as data.

The command line (cli.py), `presets.toml` and a run's `config.json` all fill in the same dataclasses; a wrong name or
value in any of them is a ValueError of one line. commands.py has the options of the other subcommands. This module imports
neither numpy nor torch, so that help is quick.
"""

from __future__ import annotations

import json
import sys
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
MOST_SUBWORDS = 1_000_000  # far more than help; from some hundred millions on, the library that learns them crashes
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
    """CPU threads, or under numpy processes of one thread each; 0 leaves the choice to the libraries."""
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
        for name in (*COUNTS_FROM_1, *COUNTS_FROM_0):  # beyond, NumPy has no such index
            require(getattr(self, name) <= sys.maxsize, name, f"at most {sys.maxsize}", getattr(self, name))
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
        subwords = f"at least 258, the bytes and two marks, and at most {MOST_SUBWORDS}"
        require(258 <= self.subwords <= MOST_SUBWORDS, "subwords", subwords, self.subwords)
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
