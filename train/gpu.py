"""`python -m train.gpu --out DIR`: what is to be shown on a GPU, from a bare checkout, in four parts.

    parity        loss and every gradient of the twin on the device within the bounds of `twinformer check`, and the same
                  losses from compiled steps with CUDA graphs as from eager ones
    masks         every step of a compiled model with CUDA graphs drops other units
    shakespeare   the preset shakespeare-gpu, once per seed: exact validation loss, seconds, memory, utilisation
    step          one training step of GPT-2's smallest model: tokens/s, memory, utilisation, for each way to run it

It needs torch, numpy, matplotlib and safetensors and no network; the text is `tinyshakespeare` in the folder that
TWINFORMER_CACHE names, or the file given by --corpus. Every seed and every way has a process of its own, and its result is
written as soon as it is there, so that parts can run in several calls; summary.json and GPU.md are of all that DIR holds.
`--tiny` does the same at a size for a CPU, `--report` only writes those two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import initialize, parameter_count
from train.check import check
from train.checkpoint import output_folder, write_atomically, write_json
from train.commands import CheckConfig
from train.configuration import TrainConfig, flat_options, preset, train_config
from train.corpus import load_corpus
from train.create import create_backend, with_dtype
from train.data import Batch
from train.flops import gpu_name, peak_flops, peak_memory, training_flops_per_token
from train.gpu_report import report, summarize
from train.models import known_models
from train.report import train_and_report, utilisation
from train.run_folder import environment, read_log
from train.torch_backend import torch_device

PARTS = ("parity", "masks", "shakespeare", "step")
SEEDS = (0, 1, 2, 3, 4)
ROUNDS, STEPS, UNCOUNTED = 3, 10, 5  # timed rounds of steps, and those before: the first compiles, the others fill caches
SAME = 1e-3  # relative difference of two losses, of which steps with Muon make a rounding error grow
TINY: dict[str, Any] = {
    "layers": 2,
    "heads": 2,
    "width": 16,
    "context": 16,
    "batch": 4,
    "steps": 20,
    "warmup": 2,
    "evaluate_every": 9,
    "evaluation_characters": 256,
    "log_every": 1,
    "sample_length": 20,
    "compile": False,
    "cuda_graphs": False,
    "dtype": "float32",
}
PADDED_VOCABULARY = 50304  # GPT-2's 50257 and symbols that never occur, to a multiple of 128: products are faster


class Variant(NamedTuple):
    """One way to run the step of GPT-2's smallest model."""

    batch: int
    compiled: bool = True
    cudnn: bool = False
    """Attention by cuDNN's kernel instead of torch's choice."""
    residual: bool = False
    """The residual stream in bfloat16."""
    graphs: bool = False
    tuned: bool = False
    """Of every kernel that torch writes, the quickest of several forms."""
    unbiased: bool = False
    """A model without biases, which nanoGPT trains by default; GPT-2 has them."""

    @property
    def name(self) -> str:
        return "-".join([str(self.batch), *(name for name, on in self._asdict().items() if on is True)])


VARIANTS = (
    Variant(16, compiled=False),
    Variant(32),
    Variant(32, cudnn=True),
    Variant(32, cudnn=True, residual=True),
    Variant(64, cudnn=True, residual=True),
    Variant(64, cudnn=True, residual=True, graphs=True),
    Variant(64, cudnn=True, residual=True, graphs=True, tuned=True),
    Variant(64, cudnn=True, residual=True, graphs=True, tuned=True, unbiased=True),
)
TINY_VARIANT = Variant(2, compiled=False, residual=True, tuned=True, unbiased=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts that are asked for; 0 if all went well and agreed, 2 for what makes no sense."""
    try:
        return _main(_options(arguments))
    except (ValueError, OSError) as error:
        print(f"gpu: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace) -> int:
    out, status = output_folder(options.out), 0
    if "shakespeare" in options.parts and not options.report:
        for seed in options.seeds:  # before anything runs
            train_config(_run_options(options, seed)[0], "--set")
        load_corpus(options.corpus)
    work = [] if options.report else _work(options)
    if len(work) == 1:
        status = _done(options, *work[0])
    else:
        for part, which in work:
            status |= _done_apart(options, part, which)
    summary = summarize(out)
    write_json(out / "summary.json", summary)
    write_atomically(out / "GPU.md", report(out, summary).encode())
    if len(work) != 1:  # else this may be a process for one piece of a larger call
        print(json.dumps(summary, indent=1))
    return status


def _done_apart(options: argparse.Namespace, part: str, which: str) -> int:
    """Does one piece of work in a process of its own; 0 if it went well, else 1."""
    command = [sys.executable, "-m", "train.gpu", "--out", options.out, "--corpus", options.corpus, "--parts", part]
    command += {"shakespeare": ["--seeds", which], "step": ["--variants", which]}.get(part, [])
    command += [flag for flag, on in (("--tiny", options.tiny), ("--tune", options.tune)) if on]
    command += ["--set", *options.set] if options.set else []
    return int(subprocess.run(command, check=False).returncode != 0)


def _work(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Pairs of a part and which of it."""
    ways = options.variants or [variant.name for variant in ((TINY_VARIANT,) if options.tiny else VARIANTS)]
    each = {"shakespeare": [str(seed) for seed in options.seeds], "step": ways}
    return [(part, which) for part in options.parts for which in each.get(part, [""])]


def _done(options: argparse.Namespace, part: str, which: str) -> int:
    """Does one piece of work; 0 if it went well."""
    out, device = Path(options.out), torch_device("auto").type
    match part:
        case "parity":
            name = "tiny" if options.tiny else "default"  # shakespeare-gpu's rooms at a size that longdouble can take
            subject = CheckConfig(preset=name, against="twin", json=str(out / "parity.json"))
            status = check(replace(subject, device="cuda") if device == "cuda" else subject)
            compiled = compiled_steps(options.tiny, device)
            write_json(out / "compiled.json", compiled)
            return int(status != 0 or compiled["largest_difference"] > SAME)
        case "masks":
            masks = new_masks(options.tiny, device)
            write_json(out / "masks.json", masks)
            return int(not masks["new_masks"])
        case "shakespeare":
            write_json(out / f"shakespeare-{which}.json", shakespeare(options, int(which)))
            return 0
    variant = next(variant for variant in (*VARIANTS, TINY_VARIANT) if variant.name == which)
    found = measured_step(options.tiny, variant, device)
    write_json(out / f"step-{which}.json", found)
    return int("failed" in found)


def compiled_steps(tiny: bool, device: str) -> dict[str, Any]:
    """The largest relative difference of the losses of a few steps, eager and compiled with CUDA graphs, in float32."""
    ways = _ways(tiny, device)
    losses = [_losses(TrainConfig(optimizer="muon", learning_rate=1e-2, **changes), 0.0, 10) for changes in ({}, ways)]
    difference = abs(1 - np.array(losses[1]) / np.array(losses[0]))
    return {"largest_difference": float(difference.max()), "losses": losses, "ways": ways}


def new_masks(tiny: bool, device: str) -> dict[str, Any]:
    """Whether steps that change nothing, on one batch, have different losses: then each drops other units."""
    ways = _ways(tiny, device)
    losses = _losses(TrainConfig(learning_rate=1e-30, schedule="constant", **ways), 0.5, 8)
    return {"new_masks": len(set(losses)) == len(losses), "losses": losses, "ways": ways}


def _ways(tiny: bool, device: str) -> dict[str, Any]:
    return {} if tiny else {"compile": True, "cuda_graphs": device == "cuda"}


def _losses(options: TrainConfig, dropout: float, count: int) -> list[float]:
    """The training losses of so many steps of a small model on one batch."""
    model = replace(train_config(flat_options(preset("tiny")), "tiny").model, vocabulary=11, dropout=dropout)
    generator = np.random.default_rng(0)
    backend = create_backend(model, initialize(model, generator), options, generator)
    tokens = generator.integers(0, model.vocabulary, (8, model.context + 1))
    batches = [Batch(tokens[:, :-1], tokens[:, 1:])]
    return [float(backend.gradient_step(batches, options.learning_rate).loss) for _ in range(count)]


def shakespeare(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run with this seed: what it reached, and what it took; the run's folder lies beside."""
    chosen, changes = _run_options(options, seed)
    folder = Path(chosen["output"])
    start = time.perf_counter()
    config = train_config(chosen | {"corpus": _corpus(options)}, "--set")
    outcome = train_and_report(config)
    config = replace(config, model=replace(config.model, vocabulary=_symbols(folder)))
    return {
        "seed": seed,
        "date": _now(),
        "exact_validation_loss": outcome.validation_loss,
        "training_seconds": outcome.training_seconds,  # of all steps, the compilation in the first one too
        "evaluation_seconds": outcome.evaluation_seconds,
        "seconds": time.perf_counter() - start,  # of all, with the text, the figures and the sample
        "parameters": parameter_count(config.model),
        "utilisation": utilisation(with_dtype(config), read_log(folder)),
        "peak_memory_bytes": peak_memory(),
        "changes": changes,
        "tuned": options.tune,
        "environment": environment() | {"gpu": gpu_name()},
    }


def _run_options(options: argparse.Namespace, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the run with this seed, and what of them is not the preset's."""
    base = flat_options(preset("shakespeare-gpu"))
    try:
        chosen = tomllib.loads("\n".join(options.set)) | {"corpus": options.corpus}
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"--set: expected 'NAME = VALUE' as in TOML, got {' '.join(options.set)} ({error})") from error
    changes = (TINY if options.tiny else {}) | chosen
    own = {"seed": seed, "output": str(Path(options.out) / f"shakespeare-{seed}"), "overwrite": True}
    return base | changes | own, {name: value for name, value in changes.items() if value != base.get(name)}


def measured_step(tiny: bool, variant: Variant, device: str) -> dict[str, Any]:
    """Steps of GPT-2's smallest model on random tokens, timed together: nothing in a step waits for the device."""
    batch = variant.batch
    model = replace(known_models()["gpt2"].config, vocabulary=PADDED_VOCABULARY)
    if tiny:
        model = ModelConfig(vocabulary=11, context=16, width=16, layers=2, heads=2)
    model = replace(model, bias=not variant.unbiased)
    ways: dict[str, Any] = {
        "compile": variant.compiled,
        "cuda_graphs": variant.graphs,
        "bfloat16_residual": variant.residual,
    }
    options = TrainConfig(batch=batch, dtype="bfloat16", **ways)
    # The compiler reads this when it is first used; what is set in Python is the thread's own, and gradients have another.
    os.environ["TORCHINDUCTOR_COORDINATE_DESCENT_TUNING"] = str(int(variant.tuned))
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {**variant._asdict(), "tiny": tiny, "date": _now(), "gpu": gpu_name(), "context": model.context}
    found |= {"parameters": parameter_count(model), "environment": environment()}
    try:
        backend = create_backend(model, initialize(model, generator), options, generator)
        tokens = generator.integers(0, model.vocabulary, (batch, model.context + 1))
        batches = [Batch(tokens[:, :-1], tokens[:, 1:])]
        with _cudnn_attention() if variant.cudnn and device == "cuda" else nullcontext():
            for _ in range(UNCOUNTED):
                loss = float(backend.gradient_step(batches, 1e-4).loss)
            timed = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                for _ in range(STEPS):
                    step = backend.gradient_step(batches, 1e-4)
                loss = float(step.loss)  # waits for the device
                timed.append((time.perf_counter() - start) / STEPS)
            seconds = statistics.median(timed)
    except (torch.OutOfMemoryError, RuntimeError) as error:  # too large for this device, or no such kernel on it
        return found | {"failed": str(error).splitlines()[0]}
    speed = batch * model.context / seconds
    peak = peak_flops(gpu_name() or "", options.dtype)
    flops = speed * training_flops_per_token(model, model.context)
    return found | {
        "loss": loss,
        "milliseconds": 1000 * seconds,
        "tokens_per_second": speed,
        "flops_per_second": flops,
        "utilisation": None if peak is None else flops / peak,
        "peak_memory_bytes": peak_memory(),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m train.gpu", description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--tiny", action="store_true", help="everything at a size for a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="one run of Shakespeare each")
    parser.add_argument("--corpus", default="tinyshakespeare", help="name or file of the text")
    parser.add_argument("--report", action="store_true", help="compute nothing; write summary.json and GPU.md anew")
    names = [variant.name for variant in (*VARIANTS, TINY_VARIANT)]
    parser.add_argument("--variants", nargs="+", choices=names, default=[], help="which steps; else all")
    parser.add_argument("--set", nargs="+", default=[], metavar="'NAME = VALUE'", help="options of that run, as in TOML")
    parser.add_argument(
        "--tune", action="store_true", help="cut the validation split off, so that nothing is chosen by looking at it"
    )
    return parser.parse_args(arguments)


def _corpus(options: argparse.Namespace) -> str:
    """The text to learn; for tuning a file of its training split alone, which the run splits again."""
    if not options.tune:
        return str(options.corpus)
    text = load_corpus(options.corpus).text
    path = Path(options.out) / "training-split.txt"
    path.write_text(text[: int(round(len(text) * (1 - preset("shakespeare-gpu").validation_fraction), 6))], encoding="utf-8")
    return str(path)


def _symbols(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["text"]["symbols"])


def _cudnn_attention() -> AbstractContextManager[Any]:
    """Inside, attention runs by cuDNN's kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[Any] = sdpa_kernel([SDPBackend.CUDNN_ATTENTION])
    return context


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


if __name__ == "__main__":
    sys.exit(main())
