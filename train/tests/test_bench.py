"""The bench command at a tiny size, so that it never rots. No figure is asserted: machines differ."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from threadpoolctl import threadpool_limits

from reference_numpy.parameters import parameter_count
from train.benchmarks import bench, contenders, leaderboard, memory, report, timing
from train.cli import main
from train.commands import BenchConfig


@pytest.mark.filterwarnings("ignore")  # of the peers, where they are installed
def test_command(tmp_path, capsys):
    output = tmp_path / "bench"
    assert main(["bench", "--size", "tiny", "--no-compile", "--repeats", "1", "--output", str(output)]) == 0
    text = (output / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    result = json.loads((output / "bench.json").read_text(encoding="utf-8"))
    names = {record["name"] for record in result["steps"]["tiny"]["records"]}
    assert {"spec", "twin", "torch.nn"} <= names
    for name in names:
        assert f"| {name} | " in text
    assert {"spec, cached", "twin, no cache"} <= {record["name"] for record in result["decoding"]["records"]}
    assert abs(sum(result["profile"]["tiny"].values()) - 1) < 1e-6
    assert (output / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_product_of_matrices_is_a_multiplication_and_an_addition_for_each_pair(monkeypatch):
    monkeypatch.setattr(timing, "interleaved", lambda functions, rounds: {name: [0.5] for name in functions})
    found = bench.products(BenchConfig(size="tiny"), 1)
    assert {record["flops"] for record in found} == {2 * 64**3 / 0.5}


def test_what_writes_is_what_its_name_says_and_characters_are_of_all_sequences(monkeypatch):
    asked = {}

    def called_once(functions, rounds):
        for name, function in functions.items():
            asked[name] = function()
        return {name: [0.5] for name in functions}

    monkeypatch.setattr(timing, "interleaved", called_once)
    monkeypatch.setattr(bench, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(bench, "torch_generate", lambda model, start, *_, **how: ("twin", len(start), how))
    monkeypatch.setattr(bench, "generate", lambda parameters, model, start, *_, **how: ("spec", len(start), how))
    found = bench.decoding(contenders.SHAPES["tiny"], BenchConfig(size="tiny", compile=True))
    assert len(found["records"]) == len(asked) == 10
    for record in found["records"]:
        name = record["name"]
        who, sequences, how = asked[name]
        on = {word: how.get(word, word == "cached") for word in ("bfloat16", "compiled", "cached")}
        assert on == {"bfloat16": "bfloat16" in name, "compiled": "compiled" in name, "cached": "no cache" not in name}
        assert (who, sequences) == (name[:4], bench.TOGETHER if "at once" in name else 1)
        assert (record["rate"], record["rates"]) == (sequences * 4 / 0.5, [sequences * 4 / 0.5])


def test_memory_is_what_a_contender_adds(monkeypatch, capsys):
    monkeypatch.setattr(memory, "peak_memory", iter([1000, 1500]).__next__)
    memory.main("tiny", "twin")
    assert capsys.readouterr().out == "500\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a system without /proc")
def test_memory_is_also_what_another_process_adds(monkeypatch, capsys):
    monkeypatch.setattr(memory, "peak_memory", iter([1000, 1500]).__next__)
    with threadpool_limits(2, user_api="blas"):
        memory.main("tiny", "spec")
    assert 10_000_000 < int(capsys.readouterr().out) < memory._of_its_own(os.getpid())  # it has no torch
    assert memory._of_its_own(None) == 0


def test_the_spread_is_half_of_where_the_middle_half_lies():
    assert timing.spread([100.0, 1.0, 4.0, 2.0, 3.0]) == (4 - 2) / 2


def test_other_machines_stand_beside(tmp_path):
    """What another machine measured, in a folder inside, is a row of the report, with a link to its own."""
    kept = report.machines(leaderboard.RECORD.parent)["."]
    other = kept | {"machine": kept["machine"] | {"processor": "abacus"}}
    for folder, result in ((tmp_path, kept), (tmp_path / "wood", other)):
        folder.mkdir(exist_ok=True)
        (folder / "bench.json").write_text(json.dumps(result), encoding="utf-8")
    assert "| [abacus, " not in report.write(tmp_path / "wood")
    text = report.write(tmp_path)
    assert text == (tmp_path / "BENCHMARKS.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if "](wood/BENCHMARKS.md) | " in line]
    assert [row.split(" | ")[1] for row in rows] == list(kept["steps"])


def test_a_folder_without_nanogpt(capsys, tmp_path):
    assert main(["bench", "--nanogpt", str(tmp_path)]) == 2
    assert "nanogpt: expected a folder with nanoGPT's model.py" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["small", "large"])
def test_contenders_do_the_same_work(name):
    """torch's own layers have as many parameters as ours."""
    shape = contenders.SHAPES[name]
    model = shape.options().model
    theirs = sum(parameter.numel() for parameter in contenders.TorchLayers(shape).parameters())
    assert theirs == parameter_count(model)


def test_rounds_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = timing.interleaved(functions, rounds=2)
    assert [len(times) for times in seconds.values()] == [2, 2]
    assert "".join(calls) == "aaabbbbbbaaa", "two calls that do not count, then one; the second round backwards"


def test_where_a_median_lies():
    """With 95 %: of 6 rounds all, of 9 all but the outermost two, of 45 the 16th to the 30th (tables of the sign test)."""
    for n, rank in ((3, 1), (5, 1), (6, 1), (9, 2), (45, 16)):
        assert timing.interval(range(n, 0, -1)) == (rank, n + 1 - rank)


def test_a_goal_that_the_rounds_cannot_tell_is_not_decided():
    for ratios, answer in (([0.9, 0.95, 0.99], "met"), ([0.9, 1.1, 0.95], "not decided by these rounds"), ([1.1], "missed")):
        assert report._decided(np.array(ratios), 1.0) == answer
    assert report._ratio(np.array([0.9, 1.1, 0.95]), 2) == "0.95 (0.90 to 1.10)"
    assert report._ratio(np.array([0.9]), 2) == "0.90"


def test_yardstick():
    table = {"records": [{"name": "torch.nn", "step": 2.0}, {"name": "twin", "step": 1.0}]}
    assert report.yardstick("small", table) == ("0.87 x torch.nn", 0.87 * 2.0)
    table["records"].append({"name": "nanoGPT", "step": 1.5})
    assert report.yardstick("small", table) == ("nanoGPT", 1.5)


def test_a_bar_is_the_step_and_nothing_else(tmp_path, monkeypatch):
    """Backward is timed in calls of its own, so forward with backward may seem to take longer than the whole step."""
    saved: list[Figure] = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: saved.append(figure))
    record = {"name": "a", "forward": 0.02, "gradients": 0.039, "step": 0.034, "spread": 0.004}
    shape = {"layers": 1, "heads": 1, "width": 8, "context": 8, "batch": 1}
    report.plot_steps({"small": {"records": [record], "shape": shape}}, tmp_path / "bench.png")
    (axes,) = saved[0].axes
    assert [patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)] == [34.0]
    assert [text.get_text() for text in axes.texts] == ["34"]
    marks = [np.asarray(line.get_xdata())[0] for line in axes.lines if line.get_marker() in ("o", "D")]
    assert marks == [20.0, 39.0]


STUB = """
import torch
from torch import nn

class GPTConfig:
    def __init__(self, **options):
        self.__dict__.update(options)

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)

    def configure_optimizers(self, weight_decay, rate, betas, device):
        return torch.optim.AdamW(self.parameters(), lr=rate, betas=betas, weight_decay=weight_decay)

    def forward(self, tokens, targets):
        logits = self.table(tokens)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


def test_leaderboard(tmp_path, monkeypatch, capsys):
    """The yardstick and our runs on a short text; a second call trains nothing."""
    (tmp_path / "nanogpt").mkdir()
    (tmp_path / "nanogpt" / "model.py").write_text(STUB, encoding="utf-8")
    path = list(sys.path)
    assert contenders.nanogpt_model(contenders.SHAPES["tiny"], str(tmp_path / "nanogpt")).table.weight.shape == (65, 65)
    assert sys.path == path  # its folder has a train.py, which must not be found in the place of our package
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 60, encoding="utf-8")
    monkeypatch.setattr(leaderboard, "RECORD", tmp_path / "leaderboard.json")
    monkeypatch.setattr(leaderboard, "TABLE", tmp_path / "LEADERBOARD.md")
    tiny = ("--preset", "tiny", "--steps", "2")
    monkeypatch.setattr(leaderboard, "RUNS", {"fast": tiny, "sprint": tiny})
    arguments = ["--nanogpt", str(tmp_path / "nanogpt"), "--corpus", str(tmp_path / "text.txt"), "--seeds", "1"]
    assert leaderboard.main(arguments) == 0
    text = capsys.readouterr().out
    assert "| nanogpt | " in text
    assert "- fast: " in text
    assert "goal, at most 1.58 in at most 1.000" in text
    monkeypatch.setattr(leaderboard, "_run", None)
    assert leaderboard.main(arguments) == 0
    assert capsys.readouterr().out.endswith(leaderboard.TABLE.read_text(encoding="utf-8") + "\n")


def test_the_committed_leaderboard_is_that_of_its_record():
    record = json.loads(leaderboard.RECORD.read_text(encoding="utf-8"))
    assert leaderboard.TABLE.read_text(encoding="utf-8") == leaderboard.table(record)
