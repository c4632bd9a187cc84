"""What is drawn, answered and judged of pairs is what the options and the records of a run say."""

import gzip
import json

import numpy as np
import pytest

from reference_numpy.decode import beam_search, greedy_search
from train.commands import CheckConfig
from train.configuration import train_config
from train.extras import extra
from train.generated import RECIPES, GeneratedPairs
from train.loop import prepare
from train.pairs import END, START, Search, answer_all, marks
from train.report import train_and_report
from train.streams import stream
from train.subject import create_subject
from train.subwords import Subwords
from train.tests.runs import resumed
from train.tests.test_translation import options, write_corpus
from train.translation import SPLITS, Multi30k, read_pairs
from train.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_text(START + END + "abcdef")
TEST = SPLITS["test"]
SMALL = {"layers": 1, "heads": 2, "width": 16, "context": 17, "batch": 50, "device": "cpu"}


def generated(name="copy", **changes):
    return GeneratedPairs(train_config({"task": name, **SMALL, **changes}, "test"), name)


def said(monkeypatch, answer):
    """All sources that any task asks from here on; `answer` takes the place of the model."""
    asked = []

    def answers(backend, vocabulary, sources, *how):
        asked.extend(sources)
        return [answer(source) for source in sources]

    monkeypatch.setattr("train.pairs.answer_all", answers)
    return asked


def source_texts(task, batches):
    rows = (row[real] for batch in batches for row, real in zip(batch.source, batch.source_padding, strict=True))
    return [task.vocabulary.decode(row) for row in rows]


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def rewrite(corpus, split, pairs):
    for language, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        (corpus / f"{split}.{language}.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def epoch(task, number):
    """All batches of an epoch."""
    count = task.facts["batches_per_epoch"]
    return [task.training_batch(number * count + position, None) for position in range(count)]


class Wanderer:
    """A twin whose next token hangs on the last one alone, so that other searches end elsewhere."""

    def __init__(self, seed):
        self.table = np.random.default_rng(seed).normal(scale=2, size=(len(VOCABULARY), len(VOCABULARY)))
        self.table[:, marks(VOCABULARY)[1]] += 1

    def decoder(self, source, source_padding):
        return self

    def restart(self):
        pass

    def select(self, rows):
        pass

    def append(self, tokens):
        return self.table[tokens[:, -1]]


def test_an_answer_is_what_the_search_that_was_asked_for_finds():
    start, end = marks(VOCABULARY)
    found = {}
    for beams, alpha, context in [(1, 0.0, 6), (2, 0.0, 6), (3, 0.0, 6), (3, 0.6, 6), (3, 2.0, 6), (3, 2.0, 3)]:
        answers = []
        for twin in map(Wanderer, range(100)):
            if beams == 1:
                (expected,) = greedy_search(twin, 1, start, end, context)
            else:
                expected = beam_search(twin, 1, start, end, context, beams, alpha)[0].tokens
            text = VOCABULARY.decode(np.array([token for token in expected if token != start], dtype=np.int64))
            assert answer_all(twin, VOCABULARY, ["a"], Search(beams, alpha), context) == [text]
            answers.append(text)
        found[beams, alpha, context] = tuple(answers)
    assert len(set(found.values())) == len(found), "each search answers something else"


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_an_answer_is_the_same_alone_and_beside_longer_sources(tmp_path, backend, beams):
    """With parameters so large that every token of a source matters to the answer."""
    own = {"task": "copy", "backend": backend, "initial_deviation": 1.0, "dtype": "float64", "output": str(tmp_path / "run")}
    trainer = prepare(train_config({**SMALL, **own}, "test"))
    sources = RECIPES["copy"].kept_back("test")[:12]

    def answers(asked):
        return answer_all(trainer.backend, trainer.task.vocabulary, asked, Search(beams, 0.6), 17)

    together = answers(sources)
    assert together == [text for source in sources for text in answers([source])]
    assert len(set(together)) > 3


@pytest.mark.parametrize("name", ["copy", "addition"])
def test_a_task_trains_validates_and_tests_each_on_its_own_part(name, monkeypatch):
    task, asked = generated(name), said(monkeypatch, str)
    task.scores(None)
    batches = {"training": [task.training_batch(0, stream(0, "data"))], "validation": task.validation_batches()}
    sources = {part: source_texts(task, some) for part, some in batches.items()} | {"test": asked}
    for part, keys in sources.items():  # of these tasks the source is the key
        assert {RECIPES[name].part(key) for key in keys} == {part}
    assert [len(keys) for keys in sources.values()] == [50, 1000, 1000]


def test_an_estimate_has_as_many_targets_as_asked_and_draws_its_pairs():
    task = generated(evaluation_characters=200)
    drawn = [task.estimate_batches(stream(seed, "estimate")) for seed in (0, 0, 1)]
    for batches in drawn:
        assert 200 <= sum(batch.counted for batch in batches) < 200 + 17  # the last pair may go beyond
    first, again, other = (source_texts(task, batches) for batches in drawn)
    assert first == again
    assert len(set(first) & set(other)) < len(first) / 2


def test_an_exact_match_has_the_characters_in_their_order(monkeypatch):
    task = generated()
    asked = said(monkeypatch, lambda source: source[::-1])
    scores = task.scores(None)
    wrong = [source for source in asked if source != source[::-1]]
    assert scores["exact_match"] == (len(asked) - len(wrong)) / len(asked)
    assert scores["wrong"][0] == {"source": wrong[0], "expected": wrong[0], "got": wrong[0][::-1]}


def test_every_number_of_three_digits_is_added():
    generator = np.random.default_rng(0)
    drawn = [RECIPES["addition"].draw(generator).removesuffix("=").split("+") for _ in range(6000)]
    assert {int(addend) for both in drawn for addend in both} == set(range(100, 1000))


def test_subwords_are_learned_from_the_training_text_alone(corpus, tmp_path):
    def learned():
        return Multi30k(options(corpus, tmp_path / "run", context=1000)).vocabulary.to_json()

    before = learned()
    for split in SPLITS.values():
        rewrite(corpus, split, [*read_pairs(corpus, split), ("zebra " * 99, "Zebra " * 99)])
        assert (learned() == before) == (split != "train")
        rewrite(corpus, split, read_pairs(corpus, split)[:-1])


@pytest.mark.parametrize("split", SPLITS.values())
def test_a_run_goes_on_with_the_files_it_began_with_alone(corpus, tmp_path, split):
    config = options(corpus, tmp_path / "run")
    prepare(config).save()
    prepare(resumed(config, tmp_path / "run"))
    rewrite(corpus, split, read_pairs(corpus, split)[::-1])
    with pytest.raises(ValueError, match=r"^corpus: expected the data that the run"):
        prepare(resumed(config, tmp_path / "run"))


def test_every_epoch_has_other_batches_in_another_order(corpus, tmp_path):
    task = Multi30k(options(corpus, tmp_path / "run"))
    epochs = [epoch(task, number) for number in range(3)]
    assert len({tuple(batch.targets.shape for batch in batches) for batches in epochs}) == 3, "not by length"
    beside = [frozenset(tuple(sorted(map(tuple, batch.targets.tolist()))) for batch in batches) for batches in epochs]
    assert len(set(beside)) == 3, "who shares a batch"


def test_the_sizes_in_the_records_are_those_of_what_is_read(corpus, tmp_path):
    long = "a man sees the dog " * 20
    rewrite(corpus, "train", [*read_pairs(corpus, "train"), (long, long)])
    rewrite(corpus, "val", read_pairs(corpus, "val")[:5])
    trainer = prepare(options(corpus, tmp_path / "run", context=80))
    facts = json.loads((tmp_path / "run" / "config.json").read_text())["text"]
    batches = epoch(trainer.task, 0)
    expected = {
        "training": 60,
        "validation": 5,
        "test": 7,
        "longer_than_the_context": 1,
        "training_source_tokens": sum(int(batch.source_padding.sum()) for batch in batches),
        "training_target_tokens": sum(batch.counted for batch in batches),
    }
    assert {name: facts[name] for name in expected} == expected
    assert ", 60 pairs, " in trainer.describe()


def test_bleu_is_of_whole_answers_and_says_their_search(corpus, tmp_path, monkeypatch):
    rewrite(corpus, TEST, [("a dog.", "Hund " * 60)])
    said(monkeypatch, lambda source: "Hund " * 50)
    scores = Multi30k(options(corpus, tmp_path / "run", beams=3, length_penalty=0.25)).scores(None)
    expected = extra("sacrebleu").corpus_bleu(["Hund " * 50], [["Hund " * 60]])
    assert scores[f"bleu_{TEST}"] == expected.score < 100
    assert (scores["beams"], scores["length_penalty"]) == (3, 0.25)


@pytest.mark.parametrize("text", ["  a man.", "a man. "])
def test_spaces_at_the_ends_of_a_text_have_no_tokens(text):
    subwords = Subwords.learn(["a man."], 260, [START, END])
    assert subwords.encode(text).tolist() == subwords.encode("a man.").tolist()


def test_a_check_of_translation_has_the_sequences_asked_for(corpus, tmp_path):
    content = {
        "task": "multi30k",
        "corpus": str(corpus),
        "subwords": 280,
        "layers": 1,
        "heads": 2,
        "width": 4,
        "context": 40,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    subject = create_subject(CheckConfig(config=str(tmp_path / "config.json"), batch="data", sequences=3))
    assert len(subject.batch.tokens) == len(subject.batch.source) == 3


def test_pictures_are_of_the_first_test_pair_as_far_as_the_context_goes(corpus, tmp_path, figures):
    """And of no more than learned positions reach."""
    source, target = "the green dog sees a man.", "Hund sieht Mann " * 9
    rewrite(corpus, TEST, [(source, target)])
    rewrite(corpus, "val", [("a dog.", "ein Hund.")])
    folder = tmp_path / "run"
    train_and_report(options(corpus, folder, position="learned", context=24, heads=1, steps=1, average=0, beams=1))
    vocabulary = Subwords.from_json((folder / "subwords.json").read_text())
    cross = next(figure for figure in figures if figure.get_suptitle().startswith("Cross")).axes[0]
    columns, rows = ([tick.get_text() for tick in ticks] for ticks in (cross.get_xticklabels(), cross.get_yticklabels()))
    assert columns == vocabulary.labels(vocabulary.encode(source))
    assert rows == [*vocabulary.labels(vocabulary.encode(target)[:23]), "⊣"]
