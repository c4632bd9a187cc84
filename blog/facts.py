"""Every number that the post may use: its text, the committed file it was read from, and the command that makes it.

A fact whose file is not there yet does not exist; the parts of the post that need it are left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from blog import source
from reference_numpy.softmax import softmax_backward, softmax_forward
from train import run_folder
from train.benchmarks.report import YARDSTICK, step_ratios
from train.checkpoint import load_model
from train.configuration import read_run_config
from train.evidence import BENCHMARKS, LOGS, run_figures
from train.looking import look, pair_reading
from train.trained import load_backend

ROOT = LOGS.parent.parent
BOUNDS = ROOT / "parity_tests" / "BOUNDS.md"
MUTANTS = ROOT / "parity_tests" / "mutants.json"
GENERIC = ROOT / "parity_tests" / "generic_mutants.json"
SHOWN_OPERATIONS = {  # operation of the table of bounds -> its room
    "linear": "linear",
    "softmax": "softmax",
    "layer_norm": "normalization",
    "rms_norm": "normalization",
    "gelu": "activation",
    "rotary": "position",
    "attention, explicit": "attention",
    "multi-head attention": "attention",
    "flash attention": "flash_attention",
    "linear attention": "linear_attention",
    "block": "block",
    "cross_entropy": "loss",
    "model, decoder": "model",
    "model, encoder_decoder": "model",
}


class Fact(NamedTuple):
    """One number or word as the post prints it."""

    text: str
    file: str
    """Where it was read, from the root of the repository; for what is computed on the spot, the code that does."""
    command: str
    """What makes that file, or the number itself."""


class Bound(NamedTuple):
    """One row of the table of bounds."""

    operation: str
    dtype: str
    witness: str
    """spec, twin, complex step or central difference."""
    tensor: str
    """Empty where the witness compares all gradients at once."""
    ratio: float

    @property
    def is_gradient(self) -> bool:
        """Whether it is about a gradient; the two difference quotients are about nothing else."""
        return self.tensor.startswith("d_") or not self.tensor


@cache
def facts() -> dict[str, Fact]:
    """All facts there are, by name. Raises ValueError if one group claims the name of another."""
    found: dict[str, Fact] = {}
    for group in (
        _run,
        _translation,
        _benchmarks,
        _gpu,
        _reverse,
        _complexity,
        _bounds,
        _mutants,
        _scale,
        _induction,
        _ladder,
        _pitfalls,
        _ablation,
    ):
        for name, fact in group():
            if name in found:
                raise ValueError(f"facts: expected one fact of a name, got two called {name!r}")
            found[name] = fact
    return found


def has(group: str) -> bool:
    """Whether there is any fact of the group: has("mutants")."""
    return any(name == group or name.startswith(f"{group}.") for name in facts())


@cache
def bounds() -> list[Bound]:
    """The rows of BOUNDS.md that belong to the model, not to the instrument's own tests."""
    rows = []
    for line in BOUNDS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or not re.fullmatch(r"[\d.]+(e[-+]?\d+)?", cells[3]) or cells[0].startswith("bounds:"):
            continue
        operation, dtype, name, ratio = cells[:4]
        witness, _, tensor = name.partition(" ")
        if witness not in ("spec", "twin"):
            witness, tensor = name, ""
        rows.append(Bound(operation, dtype, witness, tensor, float(ratio)))
    return rows


@cache
def mutants() -> list[dict[str, Any]]:
    """The verdicts on the named faults; none before they were judged."""
    return json.loads(MUTANTS.read_text(encoding="utf-8"))["results"] if MUTANTS.exists() else []


def _run() -> Iterator[tuple[str, Fact]]:
    """The language model of `make train`."""
    figures, file = run_figures("default"), f"train/logs/default/{run_folder.LOG}"
    config = json.loads((LOGS / "default" / run_folder.CONFIG).read_text(encoding="utf-8"))
    symbols = config["options"]["vocabulary"]
    texts = {
        "loss": f"{figures['loss']:.3f}",
        "steps": f"{figures['steps']:,}",
        "parameters": f"{figures['parameters']:,}",
        "seconds": f"{figures['seconds']:.0f}",
        "cores": str(figures["cores"]),
        "symbols": str(symbols),
        "guess": f"{math.log(symbols):.3f}",
        "layers": str(config["options"]["layers"]),
    }
    yield from ((f"default.{key}", Fact(text, file, "make train")) for key, text in texts.items())
    bigram = config["text"]["bigram_nats"]  # the entropy of what knows nothing but the frequencies of pairs
    yield "default.bigram", Fact(f"{bigram:.3f}", f"train/logs/default/{run_folder.CONFIG}", "make train")


def _translation() -> Iterator[tuple[str, Fact]]:
    file = LOGS / "multi30k" / run_folder.SCORES
    if file.exists():
        scores, where = json.loads(file.read_text(encoding="utf-8")), f"train/logs/multi30k/{run_folder.SCORES}"
        bleu = f"{scores['bleu_test_2016_flickr']:.1f}"
        yield "multi30k.bleu", Fact(bleu, where, "twinformer train --preset multi30k --corpus FOLDER")


def _benchmarks() -> Iterator[tuple[str, Fact]]:
    """The step of both twins over nanoGPT's, where that was among the peers."""
    for shape, table in json.loads((BENCHMARKS / "bench.json").read_text(encoding="utf-8"))["steps"].items():
        who, ratios = step_ratios(shape, table)
        for name, contender in BENCHED.items() if who == YARDSTICK else ():
            if contender in ratios:
                text = f"{np.median(ratios[contender]):.2f}"
                command = "twinformer bench --nanogpt DIR"
                yield f"bench.{shape}.{name}", Fact(text, "train/benchmarks/bench.json", command)


def _gpu() -> Iterator[tuple[str, Fact]]:
    """The preset shakespeare-gpu: its model, and what its seeds reached, in what time, on what."""
    runs, summary = sorted((BENCHMARKS / "gpu").glob("shakespeare-*.json")), BENCHMARKS / "gpu" / "summary.json"
    if not runs or not summary.exists():
        return
    first, found = (json.loads(file.read_text(encoding="utf-8")) for file in (runs[0], summary))
    config = LOGS / "shakespeare-gpu" / run_folder.CONFIG
    texts = {
        "device": (first["environment"]["gpu"], runs[0]),
        "millions": (f"{first['parameters'] / 1e6:.1f}", runs[0]),
        "percent": (f"{100 * read_run_config(config.parent).input_noise:g}", config),
        "seeds": (str(len(found["shakespeare"]["seeds"])), summary),
        "mean": (f"{found['shakespeare']['mean']:.3f}", summary),
        "seconds": (f"{found['shakespeare']['longest_training_seconds']:.0f}", summary),
    }
    for name, (text, file) in texts.items():
        yield f"gpu.{name}", Fact(text, file.relative_to(ROOT).as_posix(), "python -m train.gpu --out DIR")


BENCHED = {"spec": "spec", "twin": "twin", "bfloat16": "twin, bfloat16, compiled"}


QUOTIENT = "central difference"  # half of its bound is its own error, so its ratio says little about the gradient
TWINS = {"flash attention": "attention, fused"}  # the twin of the spec's tiles is torch's kernel, compared under this name
DIAGONAL = 0.9  # a head that puts so much of its weight on the right letter, on average, follows the diagonal


def _reverse() -> Iterator[tuple[str, Fact]]:
    """How much was reversed without a fault, and how much of their weight the heads of the last cross-attention put on the
    letter that is to be written next."""
    scores, where = json.loads((LOGS / "reverse" / run_folder.SCORES).read_text(encoding="utf-8")), "train/logs/reverse"
    for key, text in (("exact", f"{100 * scores['exact_match']:.1f} %"), ("pairs", f"{scores['sequences']:,}")):
        yield f"reverse.{key}", Fact(text, f"{where}/{run_folder.SCORES}", "twinformer train --preset reverse")
    kept, word = run_folder.snapshots(LOGS / "reverse"), "badcafefeedbeef"
    if not kept:
        return
    backend, (_, _, vocabulary) = load_backend(kept[-1][1], "numpy", "cpu"), load_model(kept[-1][1])
    reading = pair_reading(vocabulary, vocabulary.encode(word), vocabulary.encode(word[::-1]))
    cross = next(stack for stack in look(backend, vocabulary, reading) if stack.name == "cross")
    letters = np.arange(len(word))
    on_due = list(cross.weights.values())[-1][:, letters, letters[::-1]].mean(axis=-1)  # (H,)
    file, command = f"{where}/{kept[-1][1].name}", "twinformer train --preset reverse --snapshots 12"
    yield "reverse.heads", Fact(str(int((on_due > DIAGONAL).sum())), file, command)
    yield "reverse.weight", Fact(f"{on_due[on_due > DIAGONAL].min():.2f}", file, command)


def _complexity() -> Iterator[tuple[str, Fact]]:
    content = result("complexity")
    if content is None:
        return
    where, command = "train/logs/complexity/complexity.json", "twinformer complexity"
    for name, slope in content["slopes"].items():
        form, figure = name.split()
        yield f"complexity.{form}.{figure}", Fact(f"{slope:.2f}", where, command)
    records = {(record["form"], record["T"]): record for record in content["records"]}
    longest = max(T for form, T in records if form == "plain")
    yield "complexity.T", Fact(f"{longest:,}", where, command)
    for form in ("plain", "tiled", "linear"):
        mebibytes = records[form, longest]["bytes"] / 2**20
        yield f"complexity.{form}.mebibytes", Fact(f"{mebibytes:,.0f}", where, command)


def _bounds() -> Iterator[tuple[str, Fact]]:
    rows, command = [row for row in bounds() if row.witness != QUOTIENT], "make bounds"
    where = "parity_tests/BOUNDS.md"
    worst = max(rows, key=lambda row: row.ratio)
    yield "bounds.cells", Fact(f"{len(rows):,}", where, command)
    yield "bounds.worst", Fact(f"{worst.ratio:.2f}", where, command)
    within, derived, drawn = "parity_tests/within.py", "parity_tests/bounds.py", "parity_tests/sketches.py"
    yield "bounds.canary", Fact(f"{_constant(within, 'CANARY'):g}", within, "make test")
    yield "bounds.twin", Fact(f"{_constant(derived, 'TWIN_FACTOR'):g}", derived, "make test")
    yield "bounds.rarity", Fact(f"{1 / _constant(drawn, 'FAILURE_PROBABILITY'):,.0f}", drawn, "make test")


def _constant(path: str, name: str) -> float:
    return float(source.line(path, f"{name} = ").split("=")[1].split("#")[0])


def _mutants() -> Iterator[tuple[str, Fact]]:
    if not mutants():
        return
    where, command = "parity_tests/mutants.json", "make mutants"
    outcomes = [verdict["outcome"] for verdict in mutants()]
    yield "mutants.total", Fact(str(len(outcomes)), where, command)
    yield "mutants.dead", Fact(str(len(outcomes) - outcomes.count("survived")), where, command)
    results = json.loads(GENERIC.read_text(encoding="utf-8"))["results"]
    dead = sum(result["outcome"] != "survived" for result in results)
    for name, count in (("total", len(results)), ("dead", dead)):
        yield f"generic.{name}", Fact(str(count), GENERIC.relative_to(ROOT).as_posix(), "make generic-mutants")


def _scale() -> Iterator[tuple[str, Fact]]:
    """What the scale of the scores does, on random queries and keys, with the spec's own softmax."""
    K, S, queries = 64, 32, 2000
    generator = np.random.default_rng(0)
    query, key = generator.standard_normal((queries, K)), generator.standard_normal((queries, S, K))
    d_p = generator.standard_normal((queries, S))
    scores = np.einsum("nk,nsk->ns", query, key)
    where, command = "blog/facts.py", "python -m blog.post"
    yield "scale.K", Fact(str(K), where, command)
    yield "scale.S", Fact(str(S), where, command)
    for name, x in (("raw", scores), ("scaled", scores / math.sqrt(K))):
        p, cache = softmax_forward(x)
        norms = np.sqrt((softmax_backward(d_p, cache) ** 2).sum(axis=-1))
        yield f"scale.{name}.deviation", Fact(f"{x.std():.1f}", where, command)
        yield f"scale.{name}.largest", Fact(f"{p.max(axis=-1).mean():.2f}", where, command)
        yield f"scale.{name}.gradient", Fact(f"{np.quantile(norms, 0.1):.2g}", where, command)
        yield f"scale.{name}.mean", Fact(f"{norms.mean():.2f}", where, command)


def result(name: str) -> dict[str, Any] | None:
    """What `twinformer NAME` has written into train/logs; None before it has."""
    path = LOGS / name / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _induction() -> Iterator[tuple[str, Fact]]:
    content = result("induction")
    if content is None:
        return
    where, command = "train/logs/induction/induction.json", "twinformer induction"
    two, one = content["layers"]["2"][-1], content["layers"]["1"][-1]
    texts = {
        "chance": f"{content['chance']:.2f}",
        "from": f"{content['drop']['from']:,}",
        "to": f"{content['drop']['to']:,}",
        "two": f"{two['loss_seen']:.2f}",
        "one": f"{one['loss_seen']:.2f}",
        "score": f"{np.max(two['induction']):.2f}",
        **{f"{name}_then": f"{_then(content, layers):.2f}" for name, layers in (("two", "2"), ("one", "1"))},
    }
    yield from ((f"induction.{key}", Fact(text, where, command)) for key, text in texts.items())


def _then(content: dict[str, Any], layers: str) -> float:
    """The loss on seen symbols when the fall begins."""
    return next(r["loss_seen"] for r in content["layers"][layers] if r["step"] == content["drop"]["from"])


def _ladder() -> Iterator[tuple[str, Fact]]:
    content = result("ladder")
    if content is None:
        return
    where, command = "train/logs/ladder/ladder.json", "twinformer ladder"
    yield "ladder.rungs", Fact(str(len(content["rungs"])), where, command)
    for rung in content["rungs"]:
        yield f"ladder.{rung['rung']}.loss", Fact(f"{rung['loss']:.3f}", where, command)


def _pitfalls() -> Iterator[tuple[str, Fact]]:
    content = result("pitfalls")
    if content is None:
        return
    where, command = "train/logs/pitfalls/pitfalls.json", "twinformer pitfalls"
    yield "pitfalls.count", Fact(str(len(content["pitfalls"])), where, command)
    for name, pitfall in content["pitfalls"].items():
        for key, run in (("right", pitfall["right"]), ("wrong", pitfall["with_the_mistake"])):
            if run["loss"] is not None:
                yield f"pitfalls.{name}.{key}", Fact(f"{run['loss']:.2f}", where, command)


def _ablation() -> Iterator[tuple[str, Fact]]:
    content = result("ablation")
    if content is None:
        return
    where, command = "train/logs/ablation/ablation.json", "twinformer ablate"
    variants = [variant for variant in content["variants"] if variant["study"] != "baseline"]
    sure = [variant for variant in variants if variant.get("p_holm", 1.0) < 1 - content["confidence"]]
    texts = {
        "seeds": str(content["seeds"]),
        "variants": str(len(variants)),
        "worse": str(sum(variant["difference"] > 0 for variant in sure)),
        "better": str(sum(variant["difference"] < 0 for variant in sure)),
        "open": str(len(variants) - len(sure)),
    }
    yield from ((f"ablation.{key}", Fact(text, where, command)) for key, text in texts.items())


def ladder_table() -> str:
    """The rungs, their ideas, parameters and losses, as Markdown."""
    content = result("ladder")
    if content is None:
        raise ValueError("post: expected the results of `twinformer ladder`, got none")
    rows = [f"| {r['rung']} | {r['idea']} | {r['parameters']:,} | {r['loss']:.3f} |" for r in content["rungs"]]
    return "\n".join(["| rung | the idea | parameters | loss |", "| --- | --- | ---: | ---: |", *rows])


def bounds_table() -> str:
    """The worst error/bound per operation and witness, as Markdown."""
    lines = ["| operation | spec | complex step | twin |", "| --- | ---: | ---: | ---: |"]
    for operation, room in SHOWN_OPERATIONS.items():
        names = {"twin": TWINS.get(operation, operation)}
        worst = worst_of([row for row in bounds() if row.operation == names.get(row.witness, operation)])
        cells = [f"{worst[witness]:.2f}" if witness in worst else "" for witness in ("spec", "complex step", "twin")]
        lines.append(f"| [{operation}](../reference_numpy/{room}.py) | {' | '.join(cells)} |")
    return "\n".join(lines)


def worst_of(rows: Iterable[Bound]) -> dict[str, float]:
    """The worst error/bound of each witness among the rows."""
    worst: dict[str, float] = {}
    for row in rows:
        worst[row.witness] = max(row.ratio, worst.get(row.witness, 0.0))
    return worst


def sample_lines(name: str, count: int) -> str:
    """The first lines of what a run wrote."""
    text = (LOGS / name / run_folder.SAMPLE).read_text(encoding="utf-8").strip("\n")
    return "\n".join(line.rstrip() for line in text.splitlines()[:count]).rstrip()
