"""`python -m train.benchmarks.leaderboard --nanogpt DIR`: losses on tinyshakespeare against the time that they took.

    nanogpt  nanoGPT's own laptop configuration: the yardstick
    fast     the preset `fast`, meant to take no longer than the yardstick
    sprint   the preset `fast` with a shorter context and fewer steps, for less than a sixth of that time

For every seed all train one after the other, each in a process of its own, so that a drift of the machine meets all alike.
Every result is kept as soon as it is there, and a call goes on where the last one stopped. `--report` only writes the table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference_numpy.parameters import parameter_count
from train.checkpoint import write_atomically, write_json
from train.configuration import read_run_config
from train.corpus import load_corpus

CORPUS = "tinyshakespeare"
YARDSTICK = "nanogpt"
SHORT = {"context": 64, "batch": 32, "steps": 120, "decay": 72, "learning-rate": 3e-2, "adamw-learning-rate": 2e-2}
SPRINT = tuple(f"--{name}={value}" for name, value in SHORT.items())
RUNS: dict[str, tuple[str, ...]] = {
    "fast": ("--preset", "fast"),
    "sprint": ("--preset", "fast", *SPRINT),
}
GOALS = (("fast", 1.58, 1.0), ("sprint", 1.8857, 1 / 6))  # run, exact loss, share of the yardstick's seconds
FOLDER = Path(__file__).parent
RECORD, TABLE = FOLDER / "leaderboard.json", FOLDER / "LEADERBOARD.md"
# nanoGPT's README, "I only have a macbook", over its config/train_shakespeare_char.py
NANOGPT = {"layers": 4, "heads": 4, "width": 128, "context": 64, "batch": 12, "steps": 2000}
RATE, LEAST_RATE, WARMUP, DECAY, BETAS = 1e-3, 1e-4, 100, 0.1, (0.9, 0.99)
PROTOCOL = """
Protocol: characters; the first 90 % of the text train, the last 10 % validate. The loss is exact: every character of the
validation split but the first is predicted once, in windows of the run's context that do not overlap. Seconds are those of
all training steps by the clock, batches and optimizer included, evaluation not. For each seed the runs took turns, each in a
process of its own. The options of `fast` and `sprint` were chosen on the last tenth of the training split, the number of
steps of `fast` by the time of a step: as many as fit into nanoGPT's time. Where the processor has instructions for it, the
products of ours have factors in bfloat16; nanoGPT computes in float32, as it does on a CPU. It has the shape, the learning
rate and the other options that its README gives for a laptop.
""".strip().splitlines()


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what is not trained yet, and writes the table."""
    parser = argparse.ArgumentParser("python -m train.benchmarks.leaderboard", description="Loss against training time.")
    parser.add_argument("--nanogpt", help="folder with nanoGPT's model.py")
    parser.add_argument("--corpus", default=CORPUS, help="name or file of the text")
    parser.add_argument("--seeds", type=int, default=5, help="each trains everything once")
    parser.add_argument("--report", action="store_true", help="train nothing; write the table from leaderboard.json")
    parser.add_argument("--keep", help="folder for the run of the preset fast with seed 0; it must not exist yet")
    parser.add_argument("--only-nanogpt", type=int, metavar="SEED", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only_nanogpt is not None:
        print(json.dumps(nanogpt(options.nanogpt, options.corpus, options.only_nanogpt)))
        return 0
    if not options.report:
        if options.nanogpt is None or not (Path(options.nanogpt) / "model.py").is_file():
            parser.error(f"--nanogpt: expected the folder of the yardstick's model.py, got {options.nanogpt!r}")
        if options.seeds < 1:
            parser.error(f"--seeds: expected at least 1, got {options.seeds}")
        try:
            measure(options)
        except (ValueError, OSError) as error:
            parser.error(str(error))
    write_atomically(TABLE, table(json.loads(RECORD.read_text(encoding="utf-8"))).encode())
    print(TABLE.read_text(encoding="utf-8"))
    return 0


def measure(options: argparse.Namespace) -> None:
    """All runs of all seeds that the record lacks."""
    from train.benchmarks.report import machine  # loads torch

    content: dict[str, Any] = {"machine": machine(), "runs": []}
    content = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else content
    text = load_corpus(options.corpus).sha256
    if content.setdefault("corpus", text) != text:
        raise ValueError(f"--corpus: expected the text of {RECORD}, got another; move that file away to begin anew")
    done = {(run["name"], run["seed"]) for run in content["runs"]}
    for seed in range(options.seeds):
        for name in (YARDSTICK, *RUNS):
            if (name, seed) in done:
                continue
            found = _of_nanogpt(options, seed) if name == YARDSTICK else _of_ours(options, name, seed)
            content["runs"].append({"name": name, "seed": seed, **found})
            write_json(RECORD, content)
            print(f"seed {seed}  {name:7s} {found['loss']:.4f} nats, {found['seconds']:.1f} s", flush=True)


def _of_ours(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """One run of the command line: its exact loss and the seconds of its steps."""
    with tempfile.TemporaryDirectory() as parent:
        keeps = options.keep and (name, seed) == ("fast", 0)
        folder = Path(options.keep) if keeps else Path(parent) / "run"
        own = ["--corpus", options.corpus, "--seed", str(seed), "--output", str(folder)]
        _run(["train", "train", *RUNS[name], *own, *([] if keeps else ["--snapshots", "0"])])
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        parameters = parameter_count(read_run_config(folder).model)
    (exact,) = [record for record in log if record.get("exact")]
    return {
        "loss": exact["validation_loss"],
        "seconds": exact["training_seconds"],
        "steps": exact["step"],
        "parameters": parameters,
    }


def _of_nanogpt(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    own = ["--nanogpt", options.nanogpt, "--corpus", options.corpus, "--only-nanogpt", str(seed)]
    found: dict[str, Any] = json.loads(_run(["train.benchmarks.leaderboard", *own]).splitlines()[-1])
    return found


def _run(module_and_arguments: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", *module_and_arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        raise ValueError(f"{' '.join(module_and_arguments)}: expected to end well, got {done.stderr.strip()[-500:]}")
    return done.stdout


def nanogpt(folder: str, corpus: str, seed: int) -> dict[str, Any]:
    """nanoGPT's model and optimizer in its own loop: its rates, its random windows, clipping at 1. Only steps are timed."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    from train.allocator import keep_freed_memory
    from train.benchmarks.contenders import Shape, nanogpt_model
    from train.data import covering_batches, random_batch, split_tokens
    from train.schedule import cosine
    from train.vocabulary import Vocabulary

    keep_freed_memory()
    text = load_corpus(corpus).text
    vocabulary = Vocabulary.from_text(text)
    split = split_tokens(vocabulary.encode(text), 0.1, NANOGPT["context"])
    steps, context, batch = NANOGPT["steps"], NANOGPT["context"], NANOGPT["batch"]
    layers, heads, width = NANOGPT["layers"], NANOGPT["heads"], NANOGPT["width"]
    shape = Shape(layers, heads, width, context, batch, len(vocabulary.symbols))
    torch.manual_seed(1337 + seed)  # noqa: TID251  # nanoGPT draws its first parameters from the global generator
    generator = np.random.default_rng(seed)
    model = nanogpt_model(shape, folder, bias=False)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its groups
        optimizer = model.configure_optimizers(DECAY, RATE, BETAS, "cpu")
    seconds = 0.0
    for step in range(steps):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, peak=RATE, minimum=LEAST_RATE, warmup=WARMUP, steps=steps)
        window = random_batch(split.training, context, batch, generator)
        tokens, targets = (torch.from_numpy(np.ascontiguousarray(part)) for part in window[:2])
        _, loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - start
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for window in covering_batches(split.validation, context, 64):
            tokens, targets = (torch.from_numpy(np.ascontiguousarray(part)) for part in window[:2])
            logits, _ = model(tokens, targets)
            total += float(F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten(), reduction="sum"))
            count += targets.numel()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"loss": total / count, "seconds": seconds, "steps": steps, "parameters": parameters}


def table(content: dict[str, Any]) -> str:
    """LEADERBOARD.md."""
    runs = content["runs"]
    by_name = {name: [run for run in runs if run["name"] == name] for name in (YARDSTICK, *RUNS)}
    yardstick = statistics.mean(run["seconds"] for run in by_name[YARDSTICK])
    machine = content["machine"]
    lines = [
        "# tinyshakespeare: loss against time",
        "",
        "Written by `python -m train.benchmarks.leaderboard --nanogpt DIR`; not to be edited.",
        "",
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {machine['torch']}.",
        "",
        *PROTOCOL,
        "",
        "| run | parameters | steps | seeds | loss, nats/character | seconds | of nanoGPT's seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, own in sorted(by_name.items(), key=lambda item: _mean(item[1], "loss")):
        loss, spread = _mean(own, "loss"), statistics.stdev(run["loss"] for run in own) if len(own) > 1 else 0.0
        seconds = _mean(own, "seconds")
        lines.append(
            f"| {name} | {own[0]['parameters']:,} | {own[0]['steps']:,} | {len(own)} | {loss:.4f} ± {spread:.4f} "
            f"| {seconds:.1f} | {seconds / yardstick:.3f} |"
        )
    lines += ["", "After ± the standard deviation over the seeds. The commands, with `--seed` 0 and up:", ""]
    lines += [f"- {name}: `twinformer train {' '.join(own)} --corpus {CORPUS}`" for name, own in RUNS.items()]
    lines += ["", *(_verdict(by_name[name], yardstick, loss, share) for name, loss, share in GOALS)]
    return "\n".join(lines) + "\n"


def _verdict(own: list[dict[str, Any]], yardstick: float, loss: float, share: float) -> str:
    reached, part = _mean(own, "loss"), _mean(own, "seconds") / yardstick
    says = "reached" if reached <= loss and part <= share else "missed"
    return (
        f"- {own[0]['name']}: {reached:.4f} in {part:.3f} of the yardstick's time; "
        f"the goal, at most {loss} in at most {share:.3f}, is {says}."
    )


def _mean(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.mean(run[name] for run in runs)


if __name__ == "__main__":
    sys.exit(main())
