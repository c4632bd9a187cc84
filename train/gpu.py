"""`python -m train.gpu --out DIR`: what is to be shown on a GPU, from a bare checkout, in three parts.

    parity        loss and every gradient of the twin on the device within the bounds of `twinformer check`; compiled steps
                  with CUDA graphs give the losses of eager ones, and draw new dropout masks each
    shakespeare   the preset shakespeare-gpu, once per seed: exact validation loss, seconds, memory, utilisation
    step          one training step of GPT-2's smallest model: tokens/s, memory, utilisation, for each way to run it

It needs torch, numpy, matplotlib and safetensors and no network; the text is `tinyshakespeare` in the folder that
TWINFORMER_CACHE names, or the file given by --corpus. Every result is written as soon as it is there, so that parts can
run in several calls; the summary is of all that DIR holds. `--tiny` does the same at a size for a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import initialize, parameter_count
from train.backend import create_backend, torch_device
from train.check import check
from train.checkpoint import write_atomically
from train.configuration import CheckConfig, TrainConfig, flat_options, preset, train_config
from train.data import Batch
from train.flops import gpu_name, peak_flops, peak_memory, training_flops_per_token
from train.models import known_models
from train.report import train_and_report, utilisation
from train.run_folder import environment, read_log

PARTS = ("parity", "shakespeare", "step")
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
    "tf32": False,
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
)
TINY_VARIANTS = (Variant(2, compiled=False), Variant(2, compiled=False, residual=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts that are asked for; 0 unless the check of parity found a tensor out of bounds."""
    options = _options(arguments)
    out, device = Path(options.out), torch_device("auto").type
    out.mkdir(parents=True, exist_ok=True)
    status = 0
    if "parity" in options.parts:
        name = "tiny" if options.tiny else "default"  # the rooms of shakespeare-gpu at a size that longdouble can take
        subject = CheckConfig(preset=name, against="twin", json=str(out / "parity.json"))
        status = check(replace(subject, device="cuda") if device == "cuda" else subject)
        compiled = compiled_steps(options.tiny, device)
        _write(out / "compiled.json", compiled)
        if compiled["largest_difference"] > SAME or not compiled["new_masks"]:
            status = 1
    if "shakespeare" in options.parts:
        for seed in options.seeds:
            _write(out / f"shakespeare-{seed}.json", shakespeare(options, seed))
    if "step" in options.parts:
        for variant in TINY_VARIANTS if options.tiny else VARIANTS:
            if not options.variants or variant.name in options.variants:
                _write(out / f"step-{variant.name}.json", measured_step(options.tiny, variant, device))
    summary = summarize(out)
    _write(out / "summary.json", summary)
    print(json.dumps(summary, indent=1))
    return status


def shakespeare(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run with this seed: what it reached, and what it took; the run's folder lies beside."""
    folder = Path(options.out) / f"shakespeare-{seed}"
    changes = tomllib.loads("\n".join(options.set))
    changes |= {"seed": seed, "output": str(folder), "overwrite": True, "corpus": _corpus(options)}
    base = flat_options(preset("shakespeare-gpu")) | (TINY if options.tiny else {})
    torch._dynamo.reset()  # what an earlier run compiled is of no use to this one
    start = time.perf_counter()
    config = train_config(base | changes, "--set")
    outcome = train_and_report(config)
    return {
        "seed": seed,
        "exact_validation_loss": outcome.validation_loss,
        "training_seconds": outcome.training_seconds,  # of all steps, the compilation in the first one too
        "evaluation_seconds": outcome.evaluation_seconds,
        "seconds": time.perf_counter() - start,  # of all, with the text, the figures and the sample
        "parameters": parameter_count(replace(config.model, vocabulary=_symbols(folder))),
        "utilisation": utilisation(config, read_log(folder)),
        "peak_memory_bytes": peak_memory(),
        "changes": {name: value for name, value in changes.items() if name not in ("output", "overwrite", "seed")},
        "environment": environment() | {"gpu": gpu_name()},
    }


def compiled_steps(tiny: bool, device: str) -> dict[str, Any]:
    """A few steps eager and as the preset runs them, compiled and with CUDA graphs, in float32 without dropout: the largest
    relative difference of their losses. And whether two steps on one batch, with dropout, differ: their masks must be new."""
    model = replace(train_config(flat_options(preset("tiny")), "tiny").model, vocabulary=11)
    losses = []
    ways = {} if tiny else {"compile": True, "cuda_graphs": device == "cuda"}
    for changes in ({}, ways):
        options = TrainConfig(optimizer="muon", learning_rate=1e-2, **changes)
        losses.append(_losses(model, options, count=10))
    changed = abs(1 - np.array(losses[1]) / np.array(losses[0]))
    still = TrainConfig(learning_rate=1e-30, **ways)
    dropping = _losses(replace(model, dropout=0.5), still, count=3)
    return {"largest_difference": float(changed.max()), "new_masks": len(set(dropping)) == 3, "losses": losses}


def _losses(model: ModelConfig, options: TrainConfig, count: int) -> list[float]:
    """The training losses of so many steps on one batch."""
    torch._dynamo.reset()
    generator = np.random.default_rng(0)
    twin = create_backend(model, initialize(model, generator), options, generator)
    tokens = generator.integers(0, model.vocabulary, (8, model.context + 1))
    batches = [Batch(tokens[:, :-1], tokens[:, 1:])]
    return [float(twin.gradient_step(batches, options.learning_rate).loss) for _ in range(count)]


def measured_step(tiny: bool, variant: Variant, device: str) -> dict[str, Any]:
    """Steps of GPT-2's smallest model on random tokens, timed together: nothing in a step waits for the device."""
    torch._dynamo.reset()  # else the compiler takes the other batch for a sign that sizes vary, and makes slower code
    batch = variant.batch
    model = replace(known_models()["gpt2"].config, vocabulary=PADDED_VOCABULARY)
    if tiny:
        model = ModelConfig(vocabulary=11, context=16, width=16, layers=2, heads=2)
    ways = {"compile": variant.compiled, "cuda_graphs": variant.graphs, "bfloat16_residual": variant.residual}
    options = TrainConfig(batch=batch, dtype="bfloat16", **ways)
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {**variant._asdict(), "context": model.context}
    found |= {"parameters": parameter_count(model), "environment": environment()}
    try:
        twin = create_backend(model, initialize(model, generator), options, generator)
        tokens = generator.integers(0, model.vocabulary, (batch, model.context + 1))
        batches = [Batch(tokens[:, :-1], tokens[:, 1:])]
        with _cudnn_attention() if variant.cudnn and device == "cuda" else nullcontext():
            for _ in range(UNCOUNTED):
                loss = float(twin.gradient_step(batches, 1e-4).loss)
            timed = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                for _ in range(STEPS):
                    step = twin.gradient_step(batches, 1e-4)
                loss = float(step.loss)  # waits for the device
                timed.append((time.perf_counter() - start) / STEPS)
            seconds = statistics.median(timed)
    except (torch.OutOfMemoryError, RuntimeError) as error:  # too large for this device, or no such kernel on it
        return found | {"failed": str(error).splitlines()[0]}
    finally:
        memory = peak_memory()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    speed = batch * model.context / seconds
    peak = peak_flops(gpu_name() or "", options.dtype)
    flops = speed * training_flops_per_token(model, model.context)
    return found | {
        "gpu": gpu_name(),
        "loss": loss,
        "milliseconds": 1000 * seconds,
        "tokens_per_second": speed,
        "flops_per_second": flops,
        "utilisation": None if peak is None else flops / peak,
        "peak_memory_bytes": memory,
    }


def summarize(out: Path) -> dict[str, Any]:
    """The figures of all results in the folder: parity, mean and spread over the seeds, the fastest step."""
    summary: dict[str, Any] = {}
    if (out / "parity.json").exists():
        parity = json.loads((out / "parity.json").read_text(encoding="utf-8"))
        summary["parity"] = {name: parity[name] for name in ("within_bounds", "worst_error_over_bound")}
    if (out / "compiled.json").exists():
        compiled = json.loads((out / "compiled.json").read_text(encoding="utf-8"))
        summary["compiled"] = {name: compiled[name] for name in ("largest_difference", "new_masks")}
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("shakespeare-*.json"))]
    if runs:
        losses = [run["exact_validation_loss"] for run in runs]
        summary["shakespeare"] = {
            "seeds": [run["seed"] for run in runs],
            "exact_validation_losses": losses,
            "mean": statistics.mean(losses),
            "deviation": statistics.stdev(losses) if len(losses) > 1 else None,
            "longest_training_seconds": max(run["training_seconds"] for run in runs),
            "longest_seconds": max(run["seconds"] for run in runs),
        }
    steps = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("step-*.json"))]
    done = [step for step in steps if "failed" not in step]
    if steps:
        summary["step"] = {"fastest": max(done, key=lambda s: s["tokens_per_second"], default=None)}
        summary["step"]["failed"] = [step for step in steps if "failed" in step]
    return summary


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m train.gpu", description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--tiny", action="store_true", help="everything at a size for a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="one run of Shakespeare each")
    parser.add_argument("--corpus", default="tinyshakespeare", help="name or file of the text")
    parser.add_argument("--variants", nargs="+", choices=[v.name for v in VARIANTS], default=[], help="which steps; else all")
    parser.add_argument("--set", nargs="+", default=[], metavar="'NAME = VALUE'", help="options of that run, as in TOML")
    parser.add_argument(
        "--tune", action="store_true", help="cut the validation split off, so that nothing is chosen by looking at it"
    )
    return parser.parse_args(arguments)


def _corpus(options: argparse.Namespace) -> str:
    """The text to learn; for tuning a file of its training split alone, which the run splits again."""
    if not options.tune:
        return str(options.corpus)
    from train.corpus import load_corpus

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


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
