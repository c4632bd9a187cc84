"""The experiments, at tiny sizes: every plan is valid, results are complete, and an interrupted study goes on."""

import json
import math
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest

from parity_tests.mutants import mutated_files
from train import ablate, complexity, induction, ladder, look, pitfalls
from train.ablate import Variant
from train.cli import main
from train.commands import AblateConfig, InductionConfig, PitfallsConfig
from train.configuration import preset
from train.create import create_backend
from train.data import Batch
from train.extras import extra
from train.faults import fault
from train.jobs import Job
from train.loop import prepare
from train.run_folder import read_records
from train.streams import stream
from train.tests.runs import options, write_text
from train.tests.test_cli import refused

PNG = b"\x89PNG"


@pytest.fixture
def text(tmp_path):
    return str(write_text(tmp_path / "text.txt", 2000))


def test_every_plan_is_valid():
    """All options are options, all faults can be made together, and no two runs of a study are the same."""
    base, variants = ablate.plan(AblateConfig())
    jobs = [Job(variant.name, base | variant.changes, variant.faults) for variant in variants]
    pairs = [pitfall.jobs() for pitfall in pitfalls.plan(PitfallsConfig())]
    assert len({job.key for job in jobs}) == len(variants)
    assert all(right.key != wrong.key for right, wrong in pairs)
    assert len(pairs) >= 12
    for job in (*jobs, *(wrong for _, wrong in pairs)):
        mutated_files(tuple(fault(name) for name in job.faults))
    for rung in tomllib.loads(ladder.LADDER_FILE.read_text(encoding="utf-8")).values():
        mutated_files(tuple(fault(name) for name in rung.get("faults", ())))
        assert "preset" not in rung or preset(rung["preset"])


def test_ablate_reports_and_goes_on(tmp_path, text, capsys):
    folder = tmp_path / "ablation"
    arguments = ["--study", "scale", "--seeds", "2", "--steps", "2", "--corpus", text, "--output", str(folder)]
    assert main(["ablate", *arguments]) == 0
    assert "| not scaled |" in capsys.readouterr().out
    result = json.loads((folder / "ablation.json").read_text())
    base, variant = result["variants"]
    records = read_records(folder / "runs.jsonl", "key")
    assert {record["loss"] for record in records} == {*base["losses"], *variant["losses"]}
    assert variant["faults"] == ["twin_scores_not_scaled", "twin_fused_scores_not_scaled"]
    assert variant["losses"] != base["losses"]
    assert (folder / "ablation.png").read_bytes().startswith(PNG)
    # what is finished stays, a torn line is made again, and nothing else runs
    lines = (folder / "runs.jsonl").read_text().splitlines(keepends=True)
    (folder / "runs.jsonl").write_text("".join([*lines[:-1], lines[-1][:40]]))
    assert main(["ablate", *arguments]) == 0
    again = read_records(folder / "runs.jsonl", "key")
    assert [record["key"] for record in again] == [record["key"] for record in records]
    assert again[:-1] == records[:-1]
    assert again[-1]["loss"] == records[-1]["loss"]


def test_a_text_is_known_by_what_stands_in_it(tmp_path):
    """Not by its path: a finished training is not taken for one on another text."""
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("one text")
    second.write_text("one text")
    key = Job("x", {"corpus": str(first)}).key
    assert Job("x", {"corpus": str(second)}).key == key
    first.write_text("another text")
    assert Job("x", {"corpus": str(first)}).key != key


def test_a_training_that_cannot_begin_costs_one_line(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("too short")
    arguments = [
        "--only",
        "unscaled-scores",
        "--steps",
        "2",
        "--corpus",
        tmp_path / "short.txt",
        "--output",
        tmp_path / "out",
    ]
    message = refused(capsys, "pitfalls", *arguments)
    assert "context: expected" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("command", ["ablate", "pitfalls", "ladder", "induction", "complexity"])
def test_a_folder_that_is_a_file_is_told_before_the_work(tmp_path, capsys, monkeypatch, command):
    (tmp_path / "file").write_text("mine")
    for module in (induction, pitfalls, ladder, ablate, complexity):
        for name in {"load_corpus", "in_a_process", "run_all", "measure"} & set(vars(module)):
            monkeypatch.setattr(module, name, None)
    message = refused(capsys, command, "--output", tmp_path / "file")
    assert "output: expected a folder that can be written, got" in message


def test_figures_of_an_ablation():
    """Against scipy's paired test and interval; Holm's correction against its definition; a run that diverged."""
    losses = {"base": [2.0, 2.1, 1.9], "a": [2.5, 2.7, 2.4], "b": [2.01, 2.08, 1.93], "c": [2.0, None, 1.9]}
    variants = [Variant("baseline", "base", {}, ()), *(Variant("x", name, {}, ()) for name in "abc")]
    records = [[{"loss": loss, "parameters": 1, "cpu_seconds": 1.0} for loss in losses[v.name]] for v in variants]
    base, a, b, c = ablate.summaries(variants, records)
    assert "difference" not in base
    for result in (a, b):
        test = extra("scipy.stats").ttest_rel(losses[result["name"]], losses["base"])
        low, high = test.confidence_interval(ablate.CONFIDENCE)
        assert math.isclose(result["p"], test.pvalue)
        assert math.isclose(result["difference_interval"], (high - low) / 2)
    assert a["p"] < b["p"]
    assert a["p_holm"] == min(1, 2 * a["p"])
    assert b["p_holm"] == max(a["p_holm"], b["p"])
    assert ablate.verdict(c) == "loss not finite in 1 runs"
    assert "mean" not in c
    text = ablate.table([base, a, b, c], {"x": "What?"}, {"layers": 2, "device": "cpu"}, 3)
    assert "| **What?** |" in text
    assert "Baseline: layers 2." in text


def test_equal_losses_show_no_difference():
    assert ablate.paired([1.0, 2.0], [1.0, 2.0]) == {"difference": 0.0, "difference_interval": 0.0, "p": 1.0}


def test_pitfalls_show_both_runs(tmp_path, text, capsys):
    folder = tmp_path / "pitfalls"
    arguments = ["--steps", "2", "--corpus", text, "--output", str(folder)]
    assert main(["pitfalls", "--only", "causality-forgotten", "learning-rate-too-high", *arguments]) == 0
    assert "causality-forgotten" in capsys.readouterr().out
    result = json.loads((folder / "pitfalls.json").read_text())["pitfalls"]["causality-forgotten"]
    right, wrong = result["right"], result["with_the_mistake"]
    assert right["loss"] != wrong["loss"]
    for record in (right, wrong):
        assert [entry["step"] for entry in record["looks"]] == [1, 2]
        layers = ["token_embedding", "blocks.0", "blocks.1", "final_norm"]
        assert list(record["looks"][0]["gradient_norm"]) == layers
        assert all(0 < entropy < math.log(64) for entropy in record["looks"][0]["entropy"]["blocks.0.attention"])
    gallery = (folder / "pitfalls.md").read_text()
    assert "## No causal mask" in gallery
    assert "A learning rate that is too high" in gallery
    assert len(read_records(folder / "runs.jsonl", "key")) == 3  # both have the same right run
    assert (folder / "causality-forgotten.png").read_bytes().startswith(PNG)


def test_ladder_has_every_rung(tmp_path, text, capsys):
    assert main(["ladder", "--steps", "1", "--corpus", text, "--output", str(tmp_path / "ladder")]) == 0
    rungs = json.loads((tmp_path / "ladder" / "ladder.json").read_text())["rungs"]
    parameters = {rung["rung"]: rung["parameters"] for rung in rungs}
    assert parameters["one-head"] == parameters["heads"] < parameters["feed-forward"] < parameters["norm"]
    assert all(math.isfinite(rung["loss"]) for rung in rungs)
    assert (tmp_path / "ladder" / "ladder.png").read_bytes().startswith(PNG)
    assert "| bigram |" in capsys.readouterr().out


def test_bigram_counts(tmp_path):
    """abab...: after one of the two letters comes the other, but for the one that was added to each count."""
    (tmp_path / "ab.txt").write_text("ab" * 500)
    record = ladder.bigram(
        {"corpus": str(tmp_path / "ab.txt"), "context": 4, "validation_fraction": 0.1, "sample_length": 9}
    )
    after_a, after_b = (450 + 1) / (450 + 2), (449 + 1) / (449 + 2)
    assert math.isclose(record["loss"], -(50 * math.log(after_a) + 49 * math.log(after_b)) / 99)
    assert record["parameters"] == 4
    assert len(record["sample"]) == 10


def test_induction_measures(tmp_path, capsys):
    arguments = ["--steps", "2", "--batch", "2", "--measure-every", "1", "--output", str(tmp_path)]
    assert main(["induction", *arguments]) == 0
    result = json.loads((tmp_path / "induction.json").read_text())
    assert [record["step"] for record in result["layers"]["2"]] == [0, 1, 2]
    assert np.shape(result["layers"]["2"][0]["induction"])[0] == 2
    assert "score induction" in capsys.readouterr().out


def test_induction_warms_up(monkeypatch):
    rates = []
    backend = SimpleNamespace(gradient_step=lambda batches, rate: rates.append(rate))
    monkeypatch.setattr("train.create.create_backend", lambda *_: backend)
    monkeypatch.setattr(induction, "install", lambda faults: None)
    monkeypatch.setattr(induction, "measure", lambda *_: {})
    induction.learn((InductionConfig(steps=60, learning_rate=0.5), 1))
    assert rates == sorted(rates)
    assert (len(set(rates)), rates[50:]) == (51, [0.5] * 10)


class PerfectInduction:
    """Two layers of one head each: the first looks one back, the second at what followed the present symbol last time."""

    def attention(self, tokens):
        T = len(tokens)
        first, second = np.zeros((2, 1, T, T))
        for t in range(T):
            first[0, t, max(t - 1, 0)] = 1
            seen = [s for s in range(t) if tokens[s] == tokens[t]]
            second[0, t, seen[-1] + 1 if seen else 0] = 1
        return {"blocks.0.attention": first, "blocks.1.attention": second}

    def evaluate_loss(self, batch):
        """0.5 nats where it has something to copy, 2 where it has not."""
        losses = [
            0.5 if token in tokens[:t] else 2.0
            for tokens, targets in zip(batch.tokens.tolist(), batch.targets, strict=True)
            for t, token in enumerate(tokens)
            if targets[t] >= 0
        ]
        return sum(losses)


def test_what_was_not_measured_in_between_is_not_claimed():
    """Between two measurements the loss has fallen by all of it: nobody knows when."""
    scores = {"previous": [[0.5]], "induction": [[0.5]]}
    history = [{"step": step, "loss_seen": loss, **scores} for step, loss in ((0, 4), (9, 0.1))]
    result = {"layers": {"1": history, "2": history}, "chance": 4.0, "drop": induction.drop(history, 4.0)}
    assert result["drop"] == {"from": 9, "to": 9}
    assert "first found below three quarters of chance at step 9, below one quarter at step 9" in induction.summary(result)


def test_scores_of_a_perfect_induction_head():
    batch, periods = induction.repeated(3, stream(0, "test"))
    figures = induction.measure(PerfectInduction(), batch, periods)
    assert figures["previous"][0] == [1.0]
    assert figures["induction"][1] == [1.0]
    assert (figures["loss_seen"], figures["loss_new"]) == (0.5, 2.0)
    for tokens, targets, period in zip(batch.tokens, batch.targets, periods, strict=True):
        assert (targets[period:] == targets[:-period]).all()
        assert (tokens[period:] == tokens[:-period]).all()
        assert len(set(tokens[:period])) == period


def test_both_twins_give_the_same_gradients(tmp_path):
    """`Twin.gradients` is the gradient of the loss that they report; the proof compares the functions themselves."""
    trainer = prepare(options(tmp_path / "run", dropout=0.0))
    batch = trainer.task.training_batch(0, stream(0, "test"))
    parameters, model = trainer.backend.parameters(), trainer.config.model
    numpy_options = options(tmp_path / "other", backend="numpy")
    other = create_backend(model, parameters, numpy_options, stream(0, "dropout"))
    ours, theirs = trainer.backend.gradients(batch), other.gradients(batch)
    assert ours.keys() == theirs.keys()
    both = [np.concatenate([gradients[name].ravel() for name in ours]) for gradients in (ours, theirs)]
    apart = np.linalg.norm(both[0] - both[1])
    assert apart <= np.sqrt(np.finfo(np.float64).eps) * np.linalg.norm(both[0])  # half the digits


def test_entropy_of_uniform_attention():
    class Uniform:
        def attention(self, tokens, source):
            return {"blocks.0.attention": np.full((1, 4, 4), 0.25)}

    tokens = np.zeros((2, 4), dtype=int)
    ((entropy,),) = look.entropies(Uniform(), Batch(tokens, tokens)).values()
    assert math.isclose(entropy, math.log(4))


def test_filler_has_no_part_in_the_entropy_of_attention():
    """Neither what follows the real targets nor what a source is padded with."""
    seen = []

    class Uniform:
        def attention(self, tokens, source):
            seen.append((tokens.tolist(), source.tolist()))
            return {"cross": np.full((1, len(tokens), len(source)), 1 / len(source))}

    targets = np.array([[5, 6, -1, -1], [5, 6, 7, 8]])
    padding = np.array([[True, True, False], [True, True, True]])
    batch = Batch(np.arange(8).reshape(2, 4), targets, None, np.arange(6).reshape(2, 3), padding)
    ((entropy,),) = look.entropies(Uniform(), batch).values()
    assert seen == [([0, 1], [0, 1]), ([4, 5, 6, 7], [3, 4, 5])]
    assert math.isclose(entropy, (math.log(2) + math.log(3)) / 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ablate", "--study", "nothing"], "study: expected one of scale, "),
        (["ablate", "--seeds", "1"], "seeds: expected at least 2, for an interval, got 1"),
        (["pitfalls", "--only", "nothing"], "only: expected one of unscaled-scores, "),
        (["ladder", "--jobs", "0"], "jobs: expected at least 1, got 0"),
        (["induction", "--learning-rate", "0"], "learning_rate: expected a finite number above 0, got 0"),
        (["pitfalls", "--corpus", "no such file"], "corpus: expected one of "),
    ],
)
def test_mistakes_cost_one_line(capsys, arguments, message):
    assert message in refused(capsys, *arguments)
