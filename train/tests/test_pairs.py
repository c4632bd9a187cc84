"""Pairs as batches, tasks that make their own pairs, and answers that are decoded and not read off."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.cli import main
from train.configuration import train_config
from train.generated import HELD_OUT, RECIPES, GeneratedPairs
from train.pairs import END, START, Pair, Search, answer_all, marks, padded, pair_batch, pair_batches, sampled_pairs
from train.streams import stream
from train.tests.runs import records, snapshot
from train.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_text(START + END + "abc")


def pairs_of(*texts):
    return [Pair(VOCABULARY.encode(source), VOCABULARY.encode(target)) for source, target in texts]


def test_a_batch_of_pairs_has_marks_padding_and_ignored_targets():
    start, end = marks(VOCABULARY)
    a, b, c = VOCABULARY.encode("abc")
    batch = pair_batch(pairs_of(("abc", "b"), ("a", "cb")), start, end)
    assert batch.source.tolist() == [[a, b, c], [a, 0, 0]]
    assert batch.source_padding.tolist() == [[True, True, True], [True, False, False]]
    assert batch.tokens.tolist() == [[start, b, 0], [start, c, b]]
    assert batch.targets.tolist() == [[b, end, -1], [c, b, end]]
    assert batch.counted == 5
    assert set(batch.inputs()) == {"source", "source_padding"}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 7))
def test_every_pair_is_in_one_batch(lengths, size):
    pairs = [Pair(np.full(n, 2), np.full(n, index + 5)) for index, n in enumerate(lengths)]
    batches = list(pair_batches(pairs, size, 0, 1))
    seen = [int(row[0]) for batch in batches for row in batch.targets]
    assert sorted(seen) == [index + 5 for index in range(len(lengths))]
    assert sum(batch.counted for batch in batches) == sum(lengths) + len(lengths)
    assert all(len(batch.tokens) <= size for batch in batches)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 100))
def test_a_sample_has_different_pairs_and_enough_targets(lengths, targets):
    pairs = [Pair(np.full(n, index), np.full(n, index)) for index, n in enumerate(lengths)]
    sample = sampled_pairs(pairs, targets, np.random.default_rng(0))
    names = [int(pair.source[0]) for pair in sample]
    assert len(set(names)) == len(names)
    counts = [len(pair.target) + 1 for pair in sample]
    assert sum(counts) >= min(targets, sum(lengths) + len(lengths))
    assert sum(counts[:-1]) < targets


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=5))
def test_padding_gives_the_sequences_back(sequences):
    together, real = padded([np.array(sequence, dtype=np.int64) for sequence in sequences], filler=-1)
    assert [row[keep].tolist() for row, keep in zip(together, real, strict=True)] == sequences
    assert (together[~real] == -1).all()


@pytest.mark.parametrize(
    ("name", "key", "pair"),
    [
        ("copy", "badge", ("badge", "badge")),
        ("reverse", "badge", ("badge", "egdab")),
        ("sort", "badge", ("badge", "abdeg")),
        ("addition", "123+987=", ("123+987=", "1110")),
        ("number_words", "21", ("twenty-one", "einundzwanzig")),
        ("number_words", "0", ("zero", "null")),
        ("number_words", "377017", ("three hundred and seventy-seven thousand and seventeen", None)),
    ],
)
def test_pairs_are_what_the_task_says(name, key, pair):
    source, target = RECIPES[name].pair(key)
    assert source == pair[0]
    assert pair[1] is None or target == pair[1]


@pytest.mark.parametrize("name", RECIPES)
def test_no_training_pair_is_kept_back(name):
    """By the hash, so for every seed; here for a few thousand draws."""
    recipe = RECIPES[name]
    validation, test = recipe.kept_back("validation"), recipe.kept_back("test")
    assert len(set(validation)) == len(set(test)) == HELD_OUT
    assert not set(validation) & set(test)
    assert (validation, test) == (recipe.kept_back("validation"), recipe.kept_back("test"))
    drawn = recipe.drawn("training", np.random.default_rng(0))
    training = {next(drawn) for _ in range(3000)}
    assert not training & {*validation, *test}
    sources = {recipe.pair(key)[0] for key in test}  # nor does another key stand for the same source
    assert not sources & {recipe.pair(key)[0] for key in training}
    generator = np.random.default_rng(1)
    draws = [key for key in (recipe.draw(generator) for _ in range(3000)) if not recipe.always_trained(key)]
    for part, share in (("validation", 0.1), ("test", 0.1), ("training", 0.8)):
        deviation = np.sqrt(share * (1 - share) / len(set(draws)))
        assert abs(np.mean([recipe.part(key) == part for key in set(draws)]) - share) < 5 * deviation


@pytest.mark.parametrize("name", RECIPES)
def test_texts_have_known_symbols_and_fit(name):
    recipe, generator = RECIPES[name], np.random.default_rng(2)
    texts = [text for _ in range(1000) for text in recipe.pair(recipe.draw(generator))]
    texts += recipe.pair("777878" if name == "number_words" else recipe.example)
    assert set("".join(texts)) <= set(recipe.symbols)
    assert max(map(len, texts)) <= recipe.longest
    assert min(map(len, texts)) >= 1


def test_small_numbers_are_always_trained():
    assert {RECIPES["number_words"].part(str(number)) for number in range(100)} == {"training"}


@pytest.mark.parametrize("name", RECIPES)
def test_batches_follow_the_stream(name):
    config = train_config({"task": name, "context": 80, "batch": 5}, "test")
    task, again = GeneratedPairs(config, name), GeneratedPairs(config, name)
    assert task.facts == again.facts
    generators = [stream(seed, "data") for seed in (3, 3, 4)]
    first, same, other = (t.training_batch(0, g) for t, g in zip((task, again, task), generators, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True) if a is not None)
    assert not np.array_equal(first.source, other.source)


class Reciter:
    """A twin that copies its source: as a Decoder, it says the tokens of the source one after the other, then END."""

    context = None

    def __init__(self):
        self.asked = []

    def decoder(self, source, source_padding):
        self.asked.append((source.shape, source_padding.sum(axis=1).tolist()))
        self.source, self.lengths = source, source_padding.sum(axis=1)
        return self

    def restart(self):
        self.at = 0

    def select(self, rows):
        self.source, self.lengths = self.source[rows], self.lengths[rows]

    def append(self, tokens):
        self.at += tokens.shape[1]
        column = np.minimum(self.at - 1, self.source.shape[1] - 1)
        said = np.where(self.at <= self.lengths, self.source[:, column], marks(VOCABULARY)[1])
        return np.where(np.arange(len(VOCABULARY)) == said[:, None], 0.0, -9.0)


@pytest.mark.parametrize("beams", [1, 2])
def test_answers_come_back_in_the_order_of_the_sources(beams):
    sources = ["abc", "a", "cb", "bb", "c", "abcabc"]
    backend = Reciter()
    assert answer_all(backend, VOCABULARY, sources, Search(beams, 0.6), context=9, size=4) == sources
    assert [shape[0] for shape, _ in backend.asked] == [4, 2]
    assert answer_all(Reciter(), VOCABULARY, ["abcabc"], Search(beams, 0.6), context=6) == ["abcabc"]
    assert answer_all(Reciter(), VOCABULARY, ["a" + START + "c"], Search(beams, 0.6), context=6) == [
        "ac"
    ]  # START is no text
    for source, message in (("", "expected 1 to 3 tokens"), ("abca", "expected 1 to 3 tokens"), ("x", "character 'x'")):
        with pytest.raises(ValueError, match=f"^source: {message}"):
            answer_all(Reciter(), VOCABULARY, [source], Search(beams, 0.6), context=3)


COPY = ["train", "--preset", "copy", "--device", "cpu", "--width", "16", "--heads", "2", "--layers", "1", "--batch", "8"]


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A run that learnt a little."""
    folder = tmp_path_factory.mktemp("copy") / "run"
    assert main([*COPY, "--steps", "30", "--evaluate-every", "10", "--output", str(folder)]) == 0
    return folder


def test_a_run_on_pairs_leaves_scores_and_three_pictures(copied):
    assert set(snapshot(copied)) == {
        "config.json",
        "log.jsonl",
        "loss.png",
        "attention-encoder.png",
        "attention-decoder.png",
        "attention-cross.png",
        "sample.txt",
        "scores.json",
        "model.safetensors",
        "state.safetensors",
    }
    scores = json.loads((copied / "scores.json").read_text())
    assert scores["sequences"] == HELD_OUT
    assert 0 <= scores["exact_match"] <= 1
    assert len(scores["wrong"]) <= 10
    assert scores["cpu_seconds"] > scores["training_seconds"] / 100
    assert records(copied)[-1]["characters"] == sum(len(key) + 1 for key in RECIPES["copy"].kept_back("validation"))
    assert json.loads((copied / "config.json").read_text())["options"]["kind"] == "encoder_decoder"


def test_both_twins_answer_alike(copied, capsys):
    answers = set()
    for extra in ([], ["--backend", "numpy"]):
        for search in ([], ["--beams", "3", "--length-penalty", "1"]):
            assert main(["generate", "--run", str(copied), "--source", "abcde", *extra, *search]) == 0
            answers.add((len(search), capsys.readouterr().out))
    assert len(answers) == 2


def test_attention_of_pairs_draws_three_pictures(copied, capsys, tmp_path):
    for backend in ("torch", "numpy"):
        path = tmp_path / f"{backend}.png"
        arguments = ["attention", "--run", str(copied), "--source", "abc", "--output", str(path), "--backend", backend]
        assert main([*arguments, "--text", "ab"] if backend == "torch" else arguments) == 0
        shown = capsys.readouterr().out.split()
        assert shown == [str(tmp_path / f"{backend}-{stack}.png") for stack in ("encoder", "decoder", "cross")]
        assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "source: expected a text to answer, got none"),
        (["generate", "--source", "ab!"], "source: character '!'"),
        (["generate", "--source", "a" * 18], "source: expected 1 to 17 tokens"),
        (["generate", "--source", "a", "--beams", "0"], "beams: expected at least 1, got 0"),
        (["attention", "--text", "a"], "source: expected a text to answer, got none"),
        (["attention", "--source", "a", "--text", "a" * 17], "text: expected at most 16 characters"),
        (["attention", "--source", ""], "source: expected at least one character"),
    ],
)
def test_what_a_run_on_pairs_refuses(copied, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([arguments[0], "--run", str(copied), *arguments[1:]]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_of_pairs_that_make_no_sense(capsys, tmp_path):
    output = ["--output", str(tmp_path / "run")]
    for arguments, message in (
        (["--context", "16"], "context: expected at least 17 for copy, got 16"),
        (["--task", "juggle"], "invalid choice 'juggle' for argument '--task'"),
        (["--average", "2", "--checkpoint-every", "0"], "checkpoint_every: expected at least 1, to average, got 0"),
        (["--momentum", "1"], "momentum: expected at least 0 and below 1"),
    ):
        assert main([*COPY, *output, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_one_line_that_says_how_to_get_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert main(["train", "--preset", "number-words", "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "expected the package num2words" in message
    assert "pip install -e '.[tasks]'" in message
    assert message.count("\n") == 1
