"""What a figure, a sample or a picture is of: which split, which side, which head, which format."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from reference_numpy.config import ModelConfig
from reference_numpy.model import model_forward
from reference_numpy.parameters import initialize
from train import attention, check, complexity, looking, positions
from train.cli import main
from train.commands import AttentionConfig, CheckConfig, PositionsConfig
from train.generated import GeneratedPairs
from train.look import Look
from train.looking import Reading, Stack, attention_caches, from_score_to_weight, losses_near, read
from train.loop import prepare
from train.positions import by_distance
from train.report import train_and_report
from train.subject import create_subject
from train.task import create_task
from train.tests import test_translation
from train.tests.runs import options, records, run, state
from train.tests.test_attention_page import data_of
from train.text import LanguageModel, MaskedLanguageModel
from train.trained import load_trained
from train.translation import Multi30k


@pytest.fixture
def few_held_out(monkeypatch):
    monkeypatch.setattr("train.generated.HELD_OUT", 10)


def far_from_initial(model, generator):
    return {n: p + generator.standard_normal(p.shape) for n, p in initialize(model, generator, np.float64).items()}


# The estimate on the way


@pytest.mark.parametrize("kind", ["language_model", "masked_language_model", "copy", "multi30k"])
def test_an_estimate_is_of_the_validation_set(tmp_path, kind):
    """Every target sequence of it, padding apart, is one of the validation set."""
    if kind == "multi30k":
        corpus = test_translation.write_corpus(tmp_path / "corpus")
        task = Multi30k(test_translation.options(corpus, tmp_path / "run", evaluation_characters=30))
    else:
        task = create_task(options(tmp_path / "run", task=kind, **({"context": 17} if kind == "copy" else {})))
    estimate, validation = (
        {tuple(target for target in row if target >= 0) for batch in batches for row in batch.targets}
        for batches in (task.estimate_batches(np.random.default_rng(0)), task.validation_batches())
    )
    assert estimate
    assert estimate <= validation


def test_the_estimate_is_drawn_once_and_says_of_how_many_characters_it_is(tmp_path, monkeypatch):
    trainer, calls = prepare(options(tmp_path / "run", steps=4, evaluate_every=1)), []
    evaluate = trainer.backend.evaluate_loss
    monkeypatch.setattr(
        trainer.backend, "evaluate_loss", lambda batch: calls.append(batch.tokens.tobytes()) or evaluate(batch)
    )
    trainer.run()
    n = len(trainer._estimate)
    assert calls[:n] == calls[n : 2 * n] == calls[2 * n : 3 * n]
    counted = sum(batch.counted for batch in trainer._estimate)
    assert records(trainer.folder)[0]["characters"] == counted < len(trainer.task.split.validation) - 1


def test_an_estimate_in_which_nothing_would_be_hidden_goes_on(tmp_path):
    config = options(tmp_path / "run", task="masked_language_model", evaluation_batch=1, evaluation_characters=1, context=4)
    assert any(not batch.counted for batch in create_task(config).validation_batches())
    assert math.isfinite(records(run(config))[0]["validation_loss"])


@pytest.mark.parametrize("task", ["language_model", "masked_language_model"])
def test_looking_changes_nothing(tmp_path, task):
    alone = run(options(tmp_path / "alone", task=task))
    trainer = prepare(options(tmp_path / "looked-at", task=task))
    trainer.run(Look(trainer, 3))
    assert state(trainer.folder) == state(alone)


# Samples and summaries


def test_the_example_is_of_the_validation_split(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(f"{n:04d} ababab" for n in range(400)))  # no line comes twice
    task = LanguageModel(options(tmp_path / "run", corpus=str(tmp_path / "lines.txt"), context=16))
    _, example = task.example()
    assert example in task.vocabulary.decode(task.split.validation)
    assert example not in task.vocabulary.decode(task.split.training)


def test_mistakes_and_sample_of_pairs_say_which_is_which(tmp_path, few_held_out, monkeypatch):
    task = GeneratedPairs(options(tmp_path / "run", task="reverse", context=17), "reverse")
    monkeypatch.setattr(task, "_answers", lambda backend, sources: ["x", *(source[::-1] for source in sources[1:])])
    source, target = task._test[0]
    scores = task.scores(None)
    assert scores["wrong"] == [{"source": source, "expected": target, "got": "x"}]
    assert scores["exact_match"] == 0.9
    lines = task.sample(None, None).splitlines()
    assert lines[:2] == [f"{source} -> x   (expected {target})", " -> ".join(task._test[1])]


def test_a_masked_sample_says_what_was_what_is_seen_and_what_was_put_in(tmp_path):
    task = MaskedLanguageModel(options(tmp_path / "run", task="masked_language_model"))
    filler = SimpleNamespace(predict=lambda batch: np.zeros_like(batch.tokens))
    batch = next(iter(task.validation_batches()))
    seen, asked = batch.tokens[0], batch.targets[0] >= 0
    parts = {"text  ": np.where(asked, batch.targets[0], seen), "seen  ": seen, "filled": np.where(asked, 0, seen)}
    expected = [f"{name}: {''.join(task.vocabulary.labels(tokens))}" for name, tokens in parts.items()]
    assert task.sample(filler, None).splitlines()[:3] == expected


def test_the_summary_has_nats_and_bits_per_character(tmp_path, capsys):
    outcome = train_and_report(options(tmp_path / "run", layers=1, heads=4, steps=2))
    said = capsys.readouterr().out
    assert "(1 layers, 4 heads, width 16, context 13)" in said
    figures = re.search(r"loss ([\d.]+) nats per character, ([\d.]+) bits per character", said)
    nats, bits = map(float, figures.groups())
    half = 0.5e-4  # of the last decimal
    assert abs(nats - outcome.validation_loss) <= half * 1.001
    assert abs(bits - outcome.validation_loss / math.log(2)) <= half * 1.001


# Pictures and the page


@pytest.mark.parametrize("how", [["--html", "a.html"], ["--view", "trace", "--output", "a.png"]], ids=["page", "trace"])
def test_a_text_of_more_than_one_block_of_queries_can_be_looked_into(tmp_path, monkeypatch, how):
    """There the spec keeps a cache for every block."""
    monkeypatch.chdir(tmp_path)
    folder = run(options(tmp_path / "run", steps=1, context=100))
    text = (tmp_path / "text.txt").read_text()[:90]
    assert main(["attention", "--run", str(folder), "--text", text, "--device", "cpu", *how]) == 0


@pytest.mark.parametrize("view", ["layer", "head", "trace"])
def test_a_view_is_of_what_was_asked_for(monkeypatch, view):
    drawn = []
    for name in ("plot_attention", "plot_trace"):
        monkeypatch.setattr(attention, name, lambda what, *rest: drawn.append(what))
    generator = np.random.default_rng(0)
    model = ModelConfig(vocabulary=5, width=4, heads=2, layers=2, context=5)
    caches = attention_caches(far_from_initial(model, generator), model, Reading(generator.integers(0, 5, 4)))
    weights = {f"layer {n}": cache.attention.weights[0] for n, cache in enumerate(caches["own"])}
    stack = Stack("own", "", weights, list("abcd"), list("abcd"))
    attention.draw_view(AttentionConfig(run="x", view=view, layer=1, head=1), [stack], caches)
    of_layer = weights["layer 1"]
    got, expected = {
        "layer": lambda: (drawn[0]["layer 1"], of_layer),
        "head": lambda: (drawn[0]["layer 1"], of_layer[1:2]),
        "trace": lambda: (drawn[0].weights, of_layer[1]),
    }[view]()
    assert (got == expected).all()


def test_queries_and_keys_of_the_page_are_those_of_their_stack(tmp_path, few_held_out):
    folder = run(options(tmp_path / "run", task="reverse", context=17, steps=2))
    trained = load_trained(str(folder), "torch", "cpu")
    reading = read(trained, "efac", "cafebad")
    data = data_of(attention.page_of_run(folder, trained, reading))
    caches = attention_caches(trained.backend.parameters(), trained.model, reading)
    assert [stack["name"] for stack in data["stacks"]] == list(caches) == ["encoder", "decoder", "cross"]


def test_the_page_says_what_stands_between_product_and_weight():
    assert from_score_to_weight(ModelConfig()) == "softmax"
    assert from_score_to_weight(ModelConfig(softcap=5.0, position="alibi")) == "soft cap, ALiBi's penalty, softmax"


def test_a_loss_that_is_not_finite_is_not_told_in_the_page():
    """JSON has no NaN, and a page with one shows nothing."""
    lost = {"step": 103, "train_loss": math.nan}
    assert losses_near([{"step": 100, "train_loss": 1.0}, lost], [100]) == [1.0]
    assert losses_near([lost], [100]) == [None]


def test_an_answer_that_fills_the_context_can_be_looked_at(tmp_path, few_held_out, monkeypatch):
    folder = run(options(tmp_path / "run", task="copy", context=17, steps=1, position="learned"))
    trained = load_trained(str(folder), "torch", "cpu")
    monkeypatch.setattr(looking, "answer", lambda trained, source: "a" * 17)
    assert len(looking.look(trained.backend, trained.vocabulary, read(trained, None, "abc"))) == 3


def test_lines_of_positions_are_of_what_they_say(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(positions, "plot_positions", lambda table, products, name, lines, slopes, path: drawn.update(lines))
    folder = run(options(tmp_path / "run", steps=2))
    monkeypatch.chdir(tmp_path)
    positions.positions(PositionsConfig(run=str(folder), length=20, width=16, heads=2))
    learned = load_trained(str(folder), "numpy", "cpu").backend.parameters()["position_embedding.weight"]
    assert (drawn["learned"] == by_distance(learned)).all()
    theta = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    expected = np.cos(np.arange(20)[:, None] * theta).mean(axis=1)
    assert (abs(drawn["rotary, 8 equal channels"] - expected) <= 20 * np.finfo(np.float64).eps).all()  # of angles below 20


# Checks, formats, complexity


def test_units_of_every_stack_are_watched_for_their_side():
    """Feed-forward of encoder and decoder; features of queries and keys of three attentions."""
    shape = {"layers": 1, "width": 4, "heads": 1, "vocabulary": 7, "context": 5}
    model = ModelConfig(kind="encoder_decoder", attention="linear", activation="relu", **shape)
    tokens = np.ones((1, 3), int)
    _, cache = model_forward(initialize(model, np.random.default_rng(0)), model, tokens, source=tokens)
    assert len(check._sides(cache)) == 2 + 2 * 3


def test_check_says_norms_and_the_worst_of_each_witness(tmp_path):
    config = tmp_path / "model.json"
    config.write_text(json.dumps({"width": 4, "layers": 1, "heads": 2, "context": 5, "vocabulary": 7}))
    subject = create_subject(CheckConfig(config=str(config)))
    rows = check.compare(subject, ["twin"])
    gradients = subject.loss_and_gradients(subject.parameters)
    for row in rows:
        assert math.isclose(row.norm, np.linalg.norm(gradients[row.name]), rel_tol=1e-12, abs_tol=1e-15)
    lines = {line.split("  ")[0]: line for line in check.summary(rows).splitlines()[1:]}
    for witness in ("spec", "twin"):
        worst = max(rows, key=lambda row: row.findings[witness].ratio)
        assert f": {worst.name} " in lines[check.TITLES[witness]]


def test_pairs_are_decoded_in_the_format_that_is_asked_for(tmp_path, few_held_out):
    folder = run(options(tmp_path / "run", task="copy", context=17, steps=1))
    for dtype in ("float32", "bfloat16"):
        backend = load_trained(str(folder), "torch", "cpu", dtype).backend
        decoder = backend.decoder(np.array([[3, 4]]), np.ones((1, 2), bool))
        assert decoder._model.encoder.blocks[0].feed_forward.up.in_bfloat16 == (dtype == "bfloat16")


@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"softcap": 5.0}], ids=["norms", "cap"])
def test_a_run_in_float64_can_write_in_bfloat16(tmp_path, changes):
    folder = run(options(tmp_path / "run", steps=1, **changes))
    assert main(["generate", "--run", str(folder), "--dtype", "bfloat16", "--length", "5", "--device", "cpu"]) == 0


def test_every_form_of_complexity_is_causal():
    query, key, value, d_output = np.random.default_rng(0).standard_normal((4, 1, 1, 6, 4))
    d_output[:, :, 1:] = 0  # of the first query alone
    for form in complexity.FORMS.values():
        _, d_key, d_value = form(query, key, value, d_output)
        assert not d_key[:, :, 1:].any()
        assert not d_value[:, :, 1:].any()
        assert d_value[:, :, :1].any()


def test_a_slope_is_of_the_longer_half():
    seconds = {256: 1.0, 512: 1.0, 1024: 1.0, 2048: 4.0, 4096: 16.0}
    rows = [{"form": "x", "T": T, "seconds": s} for T, s in seconds.items()]
    assert round(complexity.slope(rows, "x", "seconds"), 12) == 2
