"""`python -m train.gpu --out DIR`: what is to be shown on a GPU, from a bare checkout, in three parts.

    parity        loss and every gradient of the twin on the device within the bounds of `twinformer check`
    shakespeare   the preset shakespeare-gpu, once per seed: exact validation loss, seconds, memory, utilisation
    step          one training step of GPT-2's smallest model: tokens/s, memory, utilisation, for each way to run it

It needs torch, numpy, matplotlib and safetensors and no network; the text is `tinyshakespeare` in the folder that
TWINFORMER_CACHE names, or the file given by --corpus. Every result is written as soon as it is there, so that parts can
run in several calls; the summary is of all that DIR holds. `--tiny` does the same at a size for a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

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
STEPS, UNCOUNTED = 20, 5  # timed steps, and those before: the first compiles, the others fill caches
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
    "dtype": "float32",
}
PADDED_VOCABULARY = 50304  # GPT-2's 50257 and symbols that never occur, to a multiple of 128: products are faster
BATCHES = (16, 32, 64)
KERNELS = ("default", "cudnn")  # torch's choice of attention; cuDNN's


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
    if "shakespeare" in options.parts:
        for seed in options.seeds:
            _write(out / f"shakespeare-{seed}.json", shakespeare(options, seed))
    if "step" in options.parts:
        for variant in variants(options.tiny, device):
            _write(out / "step-{}-{}-{}.json".format(*variant), measured_step(options.tiny, *variant))
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


def variants(tiny: bool, device: str) -> list[tuple[int, bool, str]]:
    """Sequences per step, whether compiled, and which attention."""
    if tiny:
        return [(2, False, "default")]
    kernels = KERNELS if device == "cuda" else KERNELS[:1]
    return [(BATCHES[0], False, "default"), *((batch, True, kernel) for batch in BATCHES for kernel in kernels)]


def measured_step(tiny: bool, batch: int, compiled: bool, kernel: str) -> dict[str, Any]:
    """Steps of GPT-2's smallest model on random tokens, timed together: nothing in a step waits for the device."""
    model = replace(known_models()["gpt2"].config, vocabulary=PADDED_VOCABULARY)
    if tiny:
        model = ModelConfig(vocabulary=11, context=16, width=16, layers=2, heads=2)
    bfloat16 = torch.cuda.is_available()
    options = TrainConfig(batch=batch, compile=compiled, dtype="bfloat16" if bfloat16 else "float32")
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {"batch": batch, "compiled": compiled, "attention": kernel, "context": model.context}
    found |= {"parameters": parameter_count(model), "environment": environment()}
    try:
        twin = create_backend(model, initialize(model, generator), options, generator)
        tokens = generator.integers(0, model.vocabulary, (batch, model.context + 1))
        batches = [Batch(tokens[:, :-1], tokens[:, 1:])]
        with _attention(kernel):
            for _ in range(UNCOUNTED):
                loss = float(twin.gradient_step(batches, 1e-4).loss)
            start = time.perf_counter()
            for _ in range(STEPS):
                step = twin.gradient_step(batches, 1e-4)
            loss = float(step.loss)  # waits for the device
            seconds = (time.perf_counter() - start) / STEPS
    except (torch.OutOfMemoryError, RuntimeError) as error:  # too large for this device, or no such kernel on it
        return found | {"failed": str(error).splitlines()[0]}
    finally:
        memory = peak_memory()
        if torch.cuda.is_available():
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


def _attention(kernel: str) -> AbstractContextManager[Any]:
    """Inside, attention runs by this kernel."""
    if kernel == "default":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION])


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
