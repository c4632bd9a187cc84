"""`twinformer bench`: the measurements, the JSON, the plot and BENCHMARKS.md."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from reference_numpy.decode import generate
from reference_numpy.parameters import initialize, parameter_count
from torch_impl.decode import generate as torch_generate
from torch_impl.linear import linear
from torch_impl.model import Transformer
from train import complexity
from train.allocator import keep_freed_memory
from train.benchmarks import contenders, profile, report, timing
from train.benchmarks.contenders import SHAPES, Shape
from train.benchmarks.memory import peak_bytes
from train.checkpoint import output_folder, write_json
from train.commands import BenchConfig, ComplexityConfig
from train.data import random_batch
from train.torch_backend import multiplies_bfloat16

WRITTEN = 500  # characters, as nanoGPT's sample.py writes
TOGETHER = 16  # sequences that are written at once, for the batched figures


def bench(config: BenchConfig) -> str:
    """Measure everything, write bench.json, bench.png and BENCHMARKS.md into the output folder; return the tables."""
    keeps = keep_freed_memory()
    folder = output_folder(config.output)
    tiny = config.size == "tiny"
    sizes = {"tiny": 1} if tiny else {"small": 9 * config.repeats, "large": config.repeats}
    result: dict[str, Any] = {"machine": report.machine(), "keeps_freed_memory": keeps, "size": config.size}
    big, little = SHAPES["tiny" if tiny else "large"], SHAPES["tiny" if tiny else "small"]
    with tqdm(total=7, unit="part", disable=None) as bar:

        def done(name: str, measured: Any) -> None:
            result[name] = measured
            bar.update()

        before = products(config, 1 if tiny else 9)
        done("steps", {name: steps(SHAPES[name], rounds, config) for name, rounds in sizes.items()})
        after = products(config, 1 if tiny else 9)  # the machine's speed drifts: the quicker counts
        done("products", [max(pair, key=lambda record: record["flops"]) for pair in zip(before, after, strict=True)])
        done("memory", {name: memory(name, config) for name in sizes})
        done("decoding", decoding(big, config))
        done("attention", attention(config))
        done("data", data(little, config))
        done("profile", {name: profile.twin_profile(SHAPES[name]) for name in sizes})
    write_json(folder / "bench.json", result)
    return report.write(folder) + f"\nin {folder}: BENCHMARKS.md, bench.json, bench.png"


def products(config: BenchConfig, rounds: int) -> list[dict[str, Any]]:
    """Operations per second of one large product, x (N, I) by W^T (I, O), through each library."""
    generator = np.random.default_rng(config.seed)
    records = []
    for N, inputs, outputs in ((64, 64, 64),) if config.size == "tiny" else ((1024, 1024, 1024), (2048, 384, 1536)):
        x, weight = (generator.standard_normal(s, dtype=np.float32) for s in ((N, inputs), (outputs, inputs)))
        x_tensor, weight_tensor = torch.from_numpy(x), torch.from_numpy(weight)
        functions: dict[str, Callable[[], object]] = {
            "NumPy": partial(np.matmul, x, weight.T),
            "torch": partial(torch.matmul, x_tensor, weight_tensor.T),
            "the twin's linear": partial(linear, x_tensor, weight_tensor),
        }
        for name, seconds in timing.interleaved(functions, rounds).items():
            flops = 2.0 * N * inputs * outputs / timing.median(seconds)
            records.append({"shape": [N, inputs, outputs], "library": name, "flops": flops})
    return records


def steps(shape: Shape, rounds: int, config: BenchConfig) -> dict[str, Any]:
    """Forward, gradients and whole step of every contender at one shape, all interleaved."""
    batch = shape.random_batch(config.seed)
    made = {name: make(shape, batch) for name, make in contenders.contenders(config.nanogpt, config.compile).items()}
    phases = ("forward", "gradients", "step")
    functions = {f"{phase} {name}": getattr(contender, phase) for name, contender in made.items() for phase in phases}
    seconds = timing.interleaved(functions, rounds)
    records = [
        {"name": name}
        | {phase: timing.median(seconds[f"{phase} {name}"]) for phase in phases}
        | {"spread": timing.spread(seconds[f"step {name}"]), "steps": seconds[f"step {name}"]}
        for name in made
    ]
    work = {"tokens": shape.tokens, "flops": shape.step_flops}
    return {"shape": shape._asdict(), **work, "rounds": rounds, "records": records}


def memory(name: str, config: BenchConfig) -> dict[str, int | None]:
    """Peak bytes of a training step of every contender but the compiled one, whose compiler would be counted."""
    names = ["twin"] if config.size == "tiny" else list(contenders.contenders(config.nanogpt, compiled=False))
    return {contender: peak_bytes(name, contender, config.nanogpt) for contender in names}


def decoding(shape: Shape, config: BenchConfig) -> dict[str, Any]:
    """Characters per second of sampling from one token on, alone and many sequences at once."""
    model = shape.options().model
    parameters = initialize(model, np.random.default_rng(0))
    spec_model = shape.options(backend="numpy").model
    twin = Transformer(model)
    twin.load_parameters(parameters)
    count = 4 if config.size == "tiny" else WRITTEN
    one, many = np.zeros((1, 1), dtype=np.int64), np.zeros((TOGETHER, 1), dtype=np.int64)

    def spec_writes(start: np.ndarray, cached: bool = True) -> object:
        return generate(parameters, spec_model, start, count, np.random.default_rng(0), cached=cached)

    def twin_writes(start: np.ndarray, **how: bool) -> object:
        return torch_generate(twin, start, count, np.random.default_rng(0), **how)

    functions: dict[str, tuple[int, Callable[[], object]]] = {
        "spec, cached": (1, lambda: spec_writes(one)),
        "twin, cached": (1, lambda: twin_writes(one)),
        f"spec, cached, {TOGETHER} at once": (TOGETHER, lambda: spec_writes(many)),
        f"twin, cached, {TOGETHER} at once": (TOGETHER, lambda: twin_writes(many)),
    }
    in_bfloat16 = multiplies_bfloat16(torch.device("cpu"))
    if in_bfloat16:
        functions |= {
            "twin, bfloat16, cached": (1, lambda: twin_writes(one, bfloat16=True)),
            f"twin, bfloat16, cached, {TOGETHER} at once": (TOGETHER, lambda: twin_writes(many, bfloat16=True)),
        }
    compiling = None  # seconds
    if config.compile:
        functions["twin, compiled, cached"] = 1, lambda: twin_writes(one, compiled=True)
        if in_bfloat16:
            functions["twin, bfloat16, compiled, cached"] = 1, lambda: twin_writes(one, bfloat16=True, compiled=True)
        begin = time.perf_counter()
        twin_writes(one, compiled=True)
        compiling = time.perf_counter() - begin
    if config.nanogpt is not None:
        other = contenders.nanogpt_model(shape, config.nanogpt).eval()
        functions["nanoGPT, which has no cache"] = (1, lambda: other.generate(torch.from_numpy(one), count))
    alone: dict[str, tuple[int, Callable[[], object]]] = {
        "spec, no cache": (1, lambda: spec_writes(one, cached=False)),
        "twin, no cache": (1, lambda: twin_writes(one, cached=False)),
    }
    rounds = 1 if config.size == "tiny" else 3
    seconds = timing.interleaved({name: function for name, (_, function) in functions.items()}, rounds)
    seconds |= timing.interleaved({name: function for name, (_, function) in alone.items()}, 1)
    return {
        "shape": shape._asdict(),
        "count": count,
        "compiling": compiling,
        "parameters": parameter_count(model),
        "records": [
            {
                "name": name,
                "rate": sequences * count / timing.median(seconds[name]),
                "rates": [sequences * count / each for each in seconds[name]],
            }
            for name, (sequences, _) in (functions | alone).items()
        ],
    }


def attention(config: BenchConfig) -> list[dict[str, Any]]:
    """The spec's three forms of attention against T, as `twinformer complexity` measures them."""
    lengths = (16,) if config.size == "tiny" else (512, 2048)
    options = ComplexityConfig(repeats=1 if config.size == "tiny" else 15, seed=config.seed)
    return [record for T in lengths for record in complexity.measure(list(complexity.FORMS), T, options)]


def data(shape: Shape, config: BenchConfig) -> dict[str, float]:
    """Seconds to cut one batch from a text of a million tokens."""
    generator = np.random.default_rng(config.seed)
    text = generator.integers(0, shape.vocabulary, 10_000 if config.size == "tiny" else 1_000_000)

    def batch() -> object:
        return random_batch(text, shape.context, shape.batch, generator)

    seconds = timing.interleaved({"batch": batch}, 1 if config.size == "tiny" else 25)
    return {"batch_seconds": timing.median(seconds["batch"])}
