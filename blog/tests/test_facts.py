"""Numbers of the post, found once more in another way, or from results that are made up to tell right from nearly right."""

import json

import numpy as np
import pytest

from blog import annotate, facts, post
from blog.facts import Bound, Fact
from train import run_folder
from train.checkpoint import load_model
from train.evidence import BENCHMARKS, LOGS
from train.looking import look, pair_reading
from train.trained import load_backend


def value(name):
    return facts.facts()[name].text


def test_memory_is_in_mebibytes():
    records = json.loads((LOGS / "complexity" / "complexity.json").read_text(encoding="utf-8"))["records"]
    longest = max(record["T"] for record in records if record["form"] == "plain")
    for record in records:
        if record["T"] == longest:
            assert value(f"complexity.{record['form']}.mebibytes") == f"{record['bytes'] / (1024 * 1024):,.0f}"


def test_so_many_heads_put_at_least_so_much_of_their_weight_on_the_right_letter():
    """The last cross-attention of the model that reverses: at step t the letter that is due is the t-th from the end."""
    model = run_folder.snapshots(LOGS / "reverse")[-1][1]
    _, _, vocabulary = load_model(model)
    word = "badcafefeedbeef"
    reading = pair_reading(vocabulary, vocabulary.encode(word), vocabulary.encode(word[::-1]))
    *_, cross = look(load_backend(model, "numpy", "cpu"), vocabulary, reading)
    last = list(cross.weights.values())[-1]
    means = [np.mean([head[t, len(word) - 1 - t] for t in range(len(word))]) for head in last]
    least = float(value("reverse.weight"))
    assert sum(round(float(mean), 2) >= least for mean in means) == int(value("reverse.heads"))
    assert any(round(float(mean), 2) == least for mean in means)


def test_a_ratio_of_steps_is_the_median_of_the_rounds():
    for shape, table in json.loads((BENCHMARKS / "bench.json").read_text(encoding="utf-8"))["steps"].items():
        steps = {record["name"]: record["steps"] for record in table["records"]}
        for name, contender in (("spec", "spec"), ("twin", "twin"), ("bfloat16", "twin, bfloat16, compiled")):
            ratios = sorted(ours / theirs for ours, theirs in zip(steps[contender], steps["nanoGPT"], strict=True))
            middle = (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2
            assert value(f"bench.{shape}.{name}") == f"{middle:.2f}"


def test_seconds_on_a_gpu_are_those_of_training():
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in (BENCHMARKS / "gpu").glob("shakespeare-*.json")]
    assert value("gpu.seconds") == f"{max(run['training_seconds'] for run in runs):.0f}"
    assert value("gpu.mean") == f"{sum(run['exact_validation_loss'] for run in runs) / len(runs):.3f}"


def test_the_score_of_a_head_is_that_of_induction():
    last = json.loads((LOGS / "induction" / "induction.json").read_text(encoding="utf-8"))["layers"]["2"][-1]
    assert value("induction.score") == f"{max(score for layer in last['induction'] for score in layer):.2f}"


def test_a_variant_differs_where_its_corrected_p_says_so(monkeypatch):
    variants = [
        {"study": "baseline", "difference": 0.0},
        {"study": "a", "difference": 0.5, "p": 0.01, "p_holm": 0.04},
        {"study": "a", "difference": 0.5, "p": 0.01, "p_holm": 0.06},
        {"study": "a", "difference": -0.5, "p": 0.01, "p_holm": 0.07},
        {"study": "a", "difference": float("nan")},
    ]
    monkeypatch.setattr(facts, "result", lambda name: {"seeds": 3, "confidence": 0.95, "variants": variants})
    found = {name.removeprefix("ablation."): fact.text for name, fact in facts._ablation()}
    assert found == {"seeds": "3", "variants": "4", "worse": "1", "better": "0", "open": "3"}


BOUNDS = [
    Bound("flash attention", "float64", "spec", "output", 0.25),
    Bound("flash attention", "float64", "complex step", "", 0.375),
    Bound("flash attention", "float64", "central difference", "", 0.75),
    Bound("attention, explicit", "float64", "twin", "output", 0.625),
    Bound("attention, fused", "float32", "twin", "output", 0.125),
    Bound("attention, fused", "float32", "twin", "d_query", 0.5),
    Bound("softmax", "float64", "spec", "d_x", 0.3125),
    Bound("softmax", "float64", "twin", "d_x", 0.4375),
    Bound("softmax", "float64", "central difference", "", 0.875),
    Bound("model, decoder", "float64", "spec", "output", 0.1875),
    Bound("model, decoder", "float64", "spec", "d_parameters", 0.5625),
]


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(facts, "bounds", lambda: BOUNDS)
    monkeypatch.setattr(annotate, "bounds", lambda: BOUNDS)


def test_the_twin_of_the_tiles_is_the_fused_kernel(made_up):
    assert "[flash attention](../reference_numpy/flash_attention.py) | 0.25 | 0.38 | 0.50 |" in facts.bounds_table()
    assert annotate.note_of("flash_attention", "flash_attention_forward").worst == {"spec": 0.25, "twin": 0.125}
    worst = {"complex step": 0.375, "central difference": 0.75, "twin": 0.5}
    assert annotate.note_of("flash_attention", "flash_attention_backward").worst == worst


def test_the_figure_behind_a_formula_is_the_worst_but_for_central_differences(made_up):
    badges = annotate.page("softmax").split('id="softmax_backward"')[1]
    assert ">proof 0.44</a>" in badges
    assert ">proof 0.31</a>" not in badges and ">proof 0.88</a>" not in badges


def test_what_returns_outputs_and_gradients_has_the_figures_of_both(monkeypatch):
    patterns = annotate.table()["model"]["loss_and_gradients"]["bound"]
    rows = [
        Bound(patterns[0].replace("*", "x"), "float64", "spec", tensor, ratio)
        for tensor, ratio in (("output", 0.25), ("d_x", 0.5))
    ]
    monkeypatch.setattr(annotate, "bounds", lambda: rows)
    assert annotate._worst("model", "loss_and_gradients", patterns) == {"spec": 0.5}


def test_the_difference_of_a_fault_takes_away_what_was_there(monkeypatch):
    edit = {"before": "right", "after": "wrong"}
    verdict = {"name": "a", "outcome": "killed", "edits": [edit], "killer": "test.py::test", "message": "no"}
    monkeypatch.setattr(post, "mutants", lambda: [verdict])
    assert "- right\n+ wrong\n" in post.mutant("a")


def test_a_fact_has_a_source():
    assert all(isinstance(fact, Fact) and fact.file and fact.command for fact in facts.facts().values())
