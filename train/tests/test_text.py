"""The two tasks on one text: what is hidden, what is asked, and that validation is the same in every run."""

import json

import numpy as np
import pytest

from train.cli import main
from train.configuration import train_config
from train.tests.runs import options, records, run, snapshot, write_text
from train.text import CHOSEN, MASKED, REPLACED, LanguageModel, MaskedLanguageModel
from train.vocabulary import MASK


@pytest.fixture
def masked(tmp_path):
    return MaskedLanguageModel(options(tmp_path / "run", task="masked_language_model"))


def test_devlins_shares_are_hidden_replaced_and_kept(masked):
    """Each share within five standard deviations of a binomial."""
    tokens = np.random.default_rng(0).integers(0, len(masked.vocabulary) - 1, (200, 300))
    mask = masked.vocabulary.symbols.index(MASK)
    tokens += tokens >= mask
    batch = masked.corrupted(tokens, np.random.default_rng(1))
    asked = batch.targets >= 0
    assert (batch.targets[asked] == tokens[asked]).all()
    assert (batch.tokens[~asked] == tokens[~asked]).all()
    shown = batch.tokens[asked]
    others = len(masked.vocabulary) - 2  # a random symbol is the right one once in so many
    kept = 1 - MASKED - REPLACED
    for found, share, count in (
        (asked.mean(), CHOSEN, asked.size),
        ((shown == mask).mean(), MASKED, shown.size),
        ((shown == tokens[asked]).mean(), kept + REPLACED / (others + 1), shown.size),
    ):
        assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / count)
    assert (CHOSEN, MASKED, REPLACED) == (0.15, 0.8, 0.1)
    replaced = shown[(shown != mask) & (shown != tokens[asked])]
    assert set(replaced) == set(range(len(masked.vocabulary))) - {mask}


def test_noise_replaces_characters_that_are_read_by_others_of_the_text(tmp_path):
    """The share and the others' frequencies within five standard deviations; the targets are those without noise."""
    tasks = [LanguageModel(options(tmp_path / "run", batch=400, input_noise=share)) for share in (0.0, 0.2)]
    plain, noisy = (task.training_batch(0, np.random.default_rng(3)) for task in tasks)
    assert (noisy.targets == plain.targets).all()
    assert (plain.tokens[:, 1:] == plain.targets[:, :-1]).all()
    training, count = tasks[0].split.training, plain.tokens.size
    frequency = np.bincount(training) / len(training)
    changed = noisy.tokens != plain.tokens
    expected = 0.2 * (1 - frequency[plain.tokens]).mean()  # the one that is drawn can be the same
    assert abs(changed.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / count)
    found = np.bincount(noisy.tokens.ravel(), minlength=len(frequency)) / count
    kept = np.bincount(plain.tokens.ravel(), minlength=len(frequency)) / count
    if_there, if_not = 0.8 + 0.2 * frequency, 0.2 * frequency  # chances to see a character where it stands, and elsewhere
    variance = kept * if_there * (1 - if_there) + (1 - kept) * if_not * (1 - if_not)
    assert (np.abs(found - 0.8 * kept - 0.2 * frequency) < 5 * np.sqrt(variance / count)).all()
    again = tasks[1].training_batch(0, np.random.default_rng(3))
    assert (again.tokens == noisy.tokens).all()
    assert all((a.tokens == b.tokens).all() for a, b in zip(*(task.validation_batches() for task in tasks), strict=True))


def test_validation_is_fixed_and_covers_the_text_once(tmp_path):
    tasks = [
        MaskedLanguageModel(options(tmp_path / "run", task="masked_language_model", **changes))
        for changes in ({}, {"seed": 5, "evaluation_batch": 2, "batch": 1})
    ]
    plain = LanguageModel(options(tmp_path / "run"))
    flat = []
    for task in tasks:
        batches = list(task.validation_batches())
        flat.append(
            [np.concatenate([part.ravel() for part in parts]) for parts in zip(*(b[:2] for b in batches), strict=True)]
        )
    assert (flat[0][0] == flat[1][0]).all()
    assert (flat[0][1] == flat[1][1]).all()
    tokens, targets = flat[0]
    restored = tasks[0].vocabulary.decode(np.where(targets >= 0, targets, tokens))
    assert restored == plain.vocabulary.decode(plain.split.validation)
    estimate = tasks[0].estimate_batches(np.random.default_rng(0))
    assert sum(batch.tokens.size for batch in estimate[:-1]) < 100 <= sum(batch.tokens.size for batch in estimate)


def test_accuracy_is_of_all_chosen_characters_and_of_no_others(masked):
    """Of a model that puts in what it sees: it is right where a chosen character shows itself."""

    class Believer:
        def predict(self, batch):
            return batch.tokens

    batches = list(masked.validation_batches())
    tokens, targets = (
        np.concatenate([part.ravel() for part in parts]) for parts in zip(*(b[:2] for b in batches), strict=True)
    )
    chosen = targets >= 0
    scores = masked.scores(Believer())
    assert scores == {"accuracy": (tokens == targets)[chosen].mean(), "characters": chosen.sum()}
    assert 0 < scores["accuracy"] < 1
    assert len({batch.tokens.size for batch in batches}) > 1  # a mean of means would not do


def test_a_masked_model_learns_and_reports(tmp_path, capsys):
    text = str(write_text(tmp_path / "text.txt", 4000))
    shape = ["--width", "32", "--heads", "2", "--layers", "2", "--context", "32", "--batch", "8"]
    arguments = ["--corpus", text, "--output", str(tmp_path / "run"), *shape, "--device", "cpu", "--threads", "1"]
    assert main(["train", "--preset", "masked", *arguments, "--steps", "300", "--warmup", "20"]) == 0
    folder = tmp_path / "run"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["accuracy"] > 0.5
    last = records(folder)[-1]
    assert last["masked_characters"] == scores["characters"]
    assert last["bits_per_masked_character"] == pytest.approx(last["validation_loss"] / np.log(2), rel=1e-15)
    assert "nats per masked character" in capsys.readouterr().out
    sample = (folder / "sample.txt").read_text()
    assert "▒" in sample
    assert "attention.png" in snapshot(folder)
    for backend in ("torch", "numpy"):
        capsys.readouterr()
        assert main(["generate", "--run", str(folder), "--backend", backend, "--prompt", "the k▒ng and t▒e"]) == 0
        assert capsys.readouterr().out == "the king and the\n"
    for prompt, message in (
        (None, "expected a text with ▒ for each character to fill in, got None"),
        ("the king", "expected a text with ▒ for each character to fill in, got 'the king'"),
        ("▒" * 33, "expected at most 32 characters, the context, got 33"),
    ):
        assert main(["generate", "--run", str(folder), *([] if prompt is None else ["--prompt", prompt])]) == 2
        assert f"prompt: {message}" in capsys.readouterr().err
    assert main(["generate", "--run", str(folder), "--prompt", "t▒e", "--samples", "2"]) == 2
    assert "samples: expected none for a masked language model, which fills in, got 2" in capsys.readouterr().err
    assert main(["attention", "--run", str(folder), "--text", "the king", "--output", str(tmp_path / "a.png")]) == 0


def test_a_text_with_the_mask_in_it_is_refused(tmp_path):
    (tmp_path / "text").write_text("the \x1a king " * 500)
    config = train_config({"task": "masked_language_model", "corpus": str(tmp_path / "text")}, "test")
    with pytest.raises(ValueError, match=r"^corpus: expected a text without U\+001A"):
        MaskedLanguageModel(config)


def test_a_language_model_refuses_a_source(trained, capsys):
    for command, message in (
        (["generate", "--source", "the"], "source: expected none for a language model, got 'the'"),
        (["attention", "--text", "the", "--source", "the"], "source: expected none for a model of one text, got 'the'"),
        (["attention"], "text: expected a text to read, got none"),
    ):
        assert main([command[0], "--run", str(trained), *command[1:]]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("task", ["masked_language_model", "copy"])
def test_another_task_cannot_take_over_a_run(tmp_path, capsys, task):
    folder = run(options(tmp_path / "run", steps=4, context=20))
    before = snapshot(folder)
    assert main(["train", "--resume", str(folder), "--task", task]) == 2
    assert "task: expected language_model as in the run to resume" in capsys.readouterr().err
    assert main(["train", "--resume", str(folder), "--optimizer", "muon"]) == 2
    assert "optimizer: expected adamw as in the run to resume" in capsys.readouterr().err
    assert snapshot(folder) == before


def test_a_text_too_short_to_hide_anything_is_refused(tmp_path):
    config = options(tmp_path / "run", task="masked_language_model", context=2, validation_fraction=0.15)
    (tmp_path / "text.txt").write_text("ab" * 10)
    with pytest.raises(ValueError, match="corpus: expected a longer text, got one with no hidden character among 3"):
        MaskedLanguageModel(config)


def test_something_is_hidden_in_every_batch(tmp_path):
    task = MaskedLanguageModel(options(tmp_path / "run", task="masked_language_model", batch=1, context=2))
    generator = np.random.default_rng(0)
    assert all(task.training_batch(n, generator).counted for n in range(50))
