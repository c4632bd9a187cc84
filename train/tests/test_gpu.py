"""train/gpu.py from end to end at a tiny size, as on a machine without the packages of the command line; train/flops.py."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import parameter_count
from train import gpu
from train.evidence import BENCHMARKS
from train.flops import PEAKS, peak_flops, training_flops_per_token
from train.gpu import Variant
from train.gpu_report import report, summarize
from train.models import known_models
from train.tests.runs import write_text

MISSING = ("tyro", "tqdm", "hypothesis", "pytest", "sacrebleu", "tokenizers", "threadpoolctl")
BARE = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in MISSING)


def run_script(folder, *arguments):
    """python -m train.gpu in `folder` without the packages that such a machine lacks, in the processes it starts too."""
    (folder / "sitecustomize.py").write_text(BARE)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(folder), os.getcwd())),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "train.gpu", "--out", "out", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_gpu_script_runs_from_a_bare_checkout(tmp_path):
    text = write_text(tmp_path / "text.txt")
    done = run_script(
        tmp_path, "--tiny", "--tune", "--seeds", "3", "4", "--corpus", text.name, "--set", "dropout = 0.1", "batch = 3"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["parity"]["within_bounds"] is True
    assert summary["new_masks"] is True
    assert summary["compiled"] == 0  # at this size both are eager
    assert summary["shakespeare"]["seeds"] == [3, 4]
    assert len(set(summary["shakespeare"]["exact_validation_losses"])) == 2
    assert [(step["residual"], step["unbiased"]) for step in summary["step"]] == [(True, True)]
    assert summary["step"][0]["tokens_per_second"] > 0
    run = json.loads((tmp_path / "out" / "shakespeare-3.json").read_text())
    assert (run["changes"]["dropout"], run["changes"]["batch"]) == (0.1, 3)
    config = json.loads((tmp_path / "out" / "shakespeare-3" / "config.json").read_text())
    characters = len(text.read_text())
    assert config["text"]["characters"] == round(characters * 0.9, 6) // 1  # --tune: the validation split is out of reach
    assert (tmp_path / "out" / "shakespeare-4" / "loss.png").exists()
    table = (tmp_path / "out" / "GPU.md").read_text()
    assert f"| 4 | {summary['shakespeare']['exact_validation_losses'][1]:.4f} |" in table
    assert "reached on this device" not in table  # on a piece of the training split
    assert "Exact loss over a piece of the training split" in table
    assert "Eager steps (nothing was compiled) draw new dropout masks." in table
    assert "layers = 2" in table and "dropout = 0.1" in table
    assert "## The step of a tiny model" in table
    assert "| 2 | bfloat16 residual, no biases |" in table
    (step,) = (tmp_path / "out").glob("step-*.json")
    step.unlink()
    (tmp_path / "short.txt").write_text("too short")
    failed = run_script(tmp_path, "--tiny", "--parts", "shakespeare", "step", "--seeds", "3", "--corpus", "short.txt")
    assert failed.returncode == 1
    assert "gpu: error: context: expected" in failed.stderr
    assert step.exists()  # what comes after is done all the same


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "dropout 0.1"], "--set: expected 'NAME = VALUE' as in TOML, got dropout 0.1"),
        (["--set", "batch = 0"], "--set: batch: expected at least 1, got 0"),
        (["--corpus", "nowhere"], "corpus: expected one of "),
        (["--out", __file__], "output: expected a folder that can be written, got "),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_runs(tmp_path, capsys, arguments, message):
    assert gpu.main(["--tiny", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"gpu: error: {message}")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("part", "name", "figure", "found", "status"),
    [
        ("parity", "compiled_steps", "largest_difference", gpu.SAME, 0),
        ("parity", "compiled_steps", "largest_difference", 2 * gpu.SAME, 1),
        ("masks", "new_masks", "new_masks", True, 0),
        ("masks", "new_masks", "new_masks", False, 1),
    ],
)
def test_what_does_not_agree_shows_in_the_exit_status(tmp_path, monkeypatch, part, name, figure, found, status):
    honest = getattr(gpu, name)
    monkeypatch.setattr(gpu, name, lambda *asked: honest(*asked) | {figure: found})
    monkeypatch.setattr(gpu, "check", lambda options: 0)
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--parts", part]) == status


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize(
    "variant",
    [Variant(2), Variant(4, graphs=True, tuned=True), Variant(8, compiled=False, residual=True, unbiased=True)],
    ids=lambda variant: variant.name,
)
def test_a_step_is_what_its_variant_says_and_takes_the_median_of_the_rounds(monkeypatch, tiny, variant):
    clock, made = [0.0], []
    seconds = iter([64.0] * gpu.UNCOUNTED + [1.0] * gpu.STEPS + [0.25] * gpu.STEPS + [0.5] * gpu.STEPS)

    def gradient_step(batches, rate):
        clock[0] += next(seconds)
        return SimpleNamespace(loss=2.0)

    def create(model, parameters, options, generator):
        made[:] = model, options
        return SimpleNamespace(gradient_step=gradient_step)

    monkeypatch.setattr(gpu, "create_backend", create)
    monkeypatch.setattr(gpu, "initialize", lambda *_: {})
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setenv("TORCHINDUCTOR_COORDINATE_DESCENT_TUNING", "")  # so that it is as before afterwards
    found = gpu.measured_step(tiny, variant, "cpu")
    model, options = made
    tokens = variant.batch * (16 if tiny else 1024)
    assert (found["milliseconds"], found["tokens_per_second"]) == (500, tokens / 0.5)
    assert found["flops_per_second"] == found["tokens_per_second"] * training_flops_per_token(model, model.context)
    assert found["parameters"] == parameter_count(model)
    ways = variant.compiled, variant.graphs, variant.residual, variant.unbiased
    assert (options.compile, options.cuda_graphs, options.bfloat16_residual, not model.bias) == ways
    assert os.environ["TORCHINDUCTOR_COORDINATE_DESCENT_TUNING"] == str(int(variant.tuned))


def test_the_report_says_what_is_reached_and_what_failed(tmp_path):
    out = BENCHMARKS / "gpu"
    summary = summarize(out)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "GPU.md").read_text() == report(out, summary)
    failed = {"batch": 99, "date": "today", "failed": "out of memory", "tiny": False, "gpu": "NVIDIA H100"}
    found = report(out, {"step": [failed, summary["step"][0] | {"utilisation": 0.6}], "new_masks": False})
    assert "99 sequences failed: out of memory" in found
    assert "The goal, 55.0 %, is reached." in found
    assert "Compiled steps with CUDA graphs REPEAT" in found
    assert "On NVIDIA H100, today:" in found


def test_runs_that_differ_by_more_than_seeds_are_not_averaged(tmp_path):
    run = json.loads((BENCHMARKS / "gpu" / "shakespeare-0.json").read_text())
    changes = [{"steps": 4}, {"steps": 5}, {"steps": 5}, {"steps": 5}]
    for seed, changed in enumerate(changes):
        own = {"seed": seed, "changes": changed, "tuned": seed == 3, "exact_validation_loss": 1.0 + seed}
        (tmp_path / f"shakespeare-{seed}.json").write_text(json.dumps(run | own))
    summary = summarize(tmp_path)
    assert (summary["shakespeare"]["seeds"], summary["shakespeare"]["mean"]) == ([1, 2], 2.5)
    text = report(tmp_path, summary)
    assert [line.split(".")[0] for line in text.splitlines() if line.startswith("Mean")] == ["Mean 1", "Mean 2", "Mean 4"]
    assert text.count("with steps = 4.") == 1 and text.count("with steps = 5.") == 2


def test_flops_per_token():
    model = ModelConfig(vocabulary=7, width=4, layers=3, heads=2, context=5)
    one_layer = 4 * 4 * 4 + 2 * 4 * 16  # query, key, value, output; up, down
    assert training_flops_per_token(model, 5) == 6 * (7 * 4 + 3 * one_layer) + 12 * 3 * 5 * 4
    gpt2 = known_models()["gpt2"].config
    vectors_and_positions = parameter_count(gpt2) - training_flops_per_token(gpt2, 0) / 6
    assert 1024 * 768 <= vectors_and_positions <= 1024 * 768 + 0.001 * parameter_count(gpt2)
    for changes, seen in (({"window": 2}, 3), ({"window": 4}, 5), ({"attention": "linear"}, 2)):
        other = replace(model, **changes)
        assert training_flops_per_token(other, 5) == 6 * (7 * 4 + 3 * one_layer) + 12 * 3 * seen * 4
    untied = ModelConfig(vocabulary=7, width=4, layers=3, heads=2, context=5, tied=False)
    assert training_flops_per_token(untied, 5) == training_flops_per_token(model, 5)
    with pytest.raises(ValueError, match="flops: expected a model of one stack"):
        training_flops_per_token(ModelConfig(kind="encoder_decoder"), 5)


def test_peaks():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32", tf32=True) == 156e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 19.5e12
    others = ("some other device", "NVIDIA RTX A1000 Laptop GPU", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090 D")
    for other in (*others, "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"):
        assert peak_flops(other, "bfloat16") is None
    assert peak_flops("NVIDIA H100 80GB HBM3", "float64") is None
    assert all(formats["bfloat16"] > formats["tf32"] >= formats["float32"] for formats in PEAKS.values())
