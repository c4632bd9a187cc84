"""Subwords, and Multi30k from a folder: read whole, batched by tokens, judged by BLEU, resumed with its own vocabulary."""

import gzip
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.checkpoint import load_model
from train.cli import main
from train.configuration import train_config
from train.extras import extra
from train.generate import answer
from train.pairs import END, START, Search, marks
from train.streams import stream
from train.subwords import Subwords
from train.tests.runs import resumed, run, state
from train.translation import SPLITS, Multi30k, batch_limits, read_pairs

WORDS = {"a": "ein", "man": "Mann", "dog": "Hund", "sees": "sieht", "green": "grüner", "the": "der", "street": "Straße"}


def sentences(generator, count):
    """Pairs of lines whose words translate one by one."""
    drawn = [generator.choice(list(WORDS), generator.integers(1, 9)) for _ in range(count)]
    return [(" ".join(words) + ".", " ".join(WORDS[word] for word in words) + ".") for words in drawn]


def write_corpus(folder, count=60):
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for split in SPLITS.values():
        pairs = sentences(generator, count if split == "train" else 7)
        for language, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            path = folder / f"{split}.{language}.gz"
            path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return folder


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def options(corpus, folder, **changes):
    base = {
        "task": "multi30k",
        "corpus": str(corpus),
        "output": str(folder),
        "subwords": 280,
        "layers": 1,
        "heads": 2,
        "width": 16,
        "context": 40,
        "position": "sinusoidal",
        "dropout": 0.1,
        "label_smoothing": 0.1,
        "batch_tokens": 90,
        "steps": 30,
        "schedule": "noam",
        "learning_rate": 2.0,
        "warmup": 10,
        "beta2": 0.98,
        "dtype": "float64",
        "evaluate_every": 10,
        "checkpoint_every": 6,
        "log_every": 1,
        "average": 3,
        "beams": 2,
        "threads": 1,
        "device": "cpu",
    }
    return train_config(base | changes, "test")


TEXTS = ["Zwei junge weiße Männer sind im Freien.", "Two young, White males are outside near many bushes."]


@pytest.mark.parametrize("text", [*TEXTS, "", "日本語 and \N{PILE OF POO}", "a  b", "tab\tand\nline"])
def test_every_text_comes_back(text):
    subwords = Subwords.learn(TEXTS, 300, [START, END])
    tokens = subwords.encode(text)
    assert subwords.decode(tokens) == text
    assert tokens.dtype == np.int64
    shown = "".join(subwords.labels(subwords.encode(TEXTS[1])))  # in a label, a letter of two bytes may be cut in two
    assert shown.replace("␣", " ").strip() == TEXTS[1]


def test_subwords_are_the_same_every_time_and_survive_json():
    subwords = Subwords.learn(TEXTS, 300, [START, END])
    assert subwords.to_json() == Subwords.learn(TEXTS, 300, [START, END]).to_json()
    again = Subwords.from_json(subwords.to_json())
    assert len(again) == len(subwords) == 300
    assert marks(again) == marks(subwords) == (0, 1)
    assert (again.encode(TEXTS[0]) == subwords.encode(TEXTS[0])).all()
    assert len(subwords.encode(TEXTS[0])) < len(TEXTS[0])
    for wrong in ("", "[]", '{"version": 1}'):
        with pytest.raises(ValueError, match=r"^subwords: expected a vocabulary that tokenizers wrote"):
            Subwords.from_json(wrong)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 100))
def test_batches_are_full_but_not_fuller_than_asked(lengths, tokens):
    lengths = np.sort(lengths)
    limits = batch_limits(lengths, tokens)
    assert [first for first, _ in limits] == [0, *(last for _, last in limits[:-1])]
    assert limits[-1][1] == len(lengths)
    for first, last in limits:
        assert last - first == 1 or (last - first) * lengths[last - 1] <= tokens
        assert last == len(lengths) or (last + 1 - first) * lengths[last] > tokens


def test_an_epoch_has_every_pair_once_in_another_order_each_time(corpus, tmp_path):
    task = Multi30k(options(corpus, tmp_path / "run"))
    per_epoch, generator = task.facts["batches_per_epoch"], stream(0, "data")
    epochs = []
    for epoch in range(2):
        batches = [task.training_batch(epoch * per_epoch + number, generator) for number in range(per_epoch)]
        assert all(max(batch.tokens.size, batch.source.size) <= 90 for batch in batches)
        assert sum(batch.counted for batch in batches) == task.facts["training_target_tokens"]
        epochs.append([tuple(row) for batch in batches for row in batch.targets])
    texts = [[task.vocabulary.decode(np.array([t for t in row if t > 1])) for row in rows] for rows in epochs]
    assert sorted(texts[0]) == sorted(texts[1]) == sorted(german for _, german in read_pairs(corpus, "train"))
    assert texts[0] != texts[1]
    again = Multi30k(options(corpus, tmp_path / "run"))
    batches = [some.training_batch(per_epoch + 2, generator) for some in (task, again)]
    assert (batches[0].tokens == batches[1].tokens).all()


def test_pairs_beyond_the_context_are_left_out_and_counted(corpus, tmp_path):
    long = "a man sees the green dog. " * 5
    for language in ("en", "de"):
        path = corpus / f"train.{language}.gz"
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + long.encode() + b"\n"))
    whole, short = (Multi30k(options(corpus, tmp_path / "run", context=context)) for context in (400, 40))
    assert whole.facts["longer_than_the_context"] == 0
    assert whole.facts["training"] == 61
    assert short.facts["training"] + short.facts["validation"] == 68 - short.facts["longer_than_the_context"] < 68
    assert all(batch.tokens.shape[1] <= 40 for batch in short.validation_batches())
    with pytest.raises(ValueError, match=r"^context: expected at least \d+, the longest source to judge by, got 9"):
        Multi30k(options(corpus, tmp_path / "run", context=9))


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_a_resumed_translation_is_bit_equal_to_an_unbroken_one(corpus, tmp_path, backend):
    config = options(corpus, tmp_path / "unbroken", backend=backend, optimizer="muon", learning_rate=0.5)
    unbroken = run(config)

    def stop(trainer):
        if trainer.step == 14:
            raise MemoryError

    broken = options(corpus, tmp_path / "broken", backend=backend, optimizer="muon", learning_rate=0.5)
    with pytest.raises(MemoryError):
        run(broken, stop)
    run(resumed(broken, tmp_path / "broken"))
    assert state(unbroken) == state(tmp_path / "broken")
    for name in ("model.safetensors", "subwords.json", "checkpoint-00000024.safetensors"):
        assert (unbroken / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_the_finished_model_is_the_mean_of_the_last_checkpoints(corpus, tmp_path):
    folder = run(options(corpus, tmp_path / "run"))
    kept = sorted(path for path in folder.iterdir() if path.name.startswith("checkpoint-"))
    assert [int(path.stem.split("-")[1]) for path in kept] == [18, 24, 30]
    arrays = [load_model(path)[0] for path in kept]
    mean, _, vocabulary = load_model(folder / "model.safetensors")
    for name, array in mean.items():
        assert (array == (arrays[0][name] + arrays[1][name] + arrays[2][name]) / 3).all()
        assert array.dtype == np.float64
    assert vocabulary.to_json() == (folder / "subwords.json").read_text()
    last = load_model(kept[-1])[0]
    assert any((array != last[name]).any() for name, array in mean.items())


def test_a_run_translates(corpus, tmp_path, capsys):
    """From the command line: train, translate, look."""
    folder = tmp_path / "run"
    names = ["layers", "heads", "width", "context", "subwords", "steps"]
    values = {name: str(value) for name, value in zip(names, (1, 2, 16, 40, 280, 20), strict=True)}
    shape = [word for name, value in values.items() for word in (f"--{name}", value)]
    arguments = ["--task", "multi30k", "--corpus", str(corpus), "--output", str(folder), "--batch-tokens", "90", *shape]
    assert main(["train", *arguments, "--position", "sinusoidal", "--device", "cpu"]) == 0
    scores = json.loads((folder / "scores.json").read_text())
    assert 0 <= scores["bleu_test_2016_flickr"] <= 100
    assert 0 <= scores["bleu_val"] <= 100
    assert scores["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    printed = capsys.readouterr().out
    assert f"\nbleu_val: {scores['bleu_val']:.5g}\n" in printed and f"\nbeams: {scores['beams']}\n" in printed
    assert main(["generate", "--run", str(folder), "--source", "a man sees the dog.", "--beams", "2"]) == 0
    assert main(["attention", "--run", str(folder), "--source", "a dog.", "--output", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a-cross.png").is_file()


def test_bleu_is_sacrebleus(corpus, tmp_path, monkeypatch):
    task = Multi30k(options(corpus, tmp_path / "run"))
    sources, references = zip(*read_pairs(corpus, "test_2016_flickr"), strict=True)
    monkeypatch.setattr(task, "_answers", lambda backend, asked: list(references if asked == sources else asked))
    scores = task.scores(None)
    assert scores["bleu_test_2016_flickr"] == pytest.approx(100.0)
    assert scores["bleu_val"] < 50


def test_the_search_is_the_one_that_was_asked_for(corpus, tmp_path, monkeypatch):
    task, asked = Multi30k(options(corpus, tmp_path / "run", beams=3, length_penalty=0.25)), []

    def seen(backend, vocabulary, sources, search, *rest):
        asked.append(search)
        return list(sources)

    monkeypatch.setattr("train.pairs.answer_all", seen)
    task.scores(None)
    monkeypatch.setattr("train.generate.answer_all", seen)
    trained = SimpleNamespace(options=task._config, backend=None, vocabulary=None, model=task._config.model)
    answer(trained, "a dog.")
    answer(trained, "a dog.", 1, 0.5)
    assert set(asked[:-1]) == {Search(3, 0.25)}
    assert asked[-1] == Search(1, 0.5)


def test_a_folder_that_is_not_multi30k(corpus, tmp_path, capsys):
    def refused(*more):
        arguments = ["--task", "multi30k", "--corpus", str(corpus), "--output", str(tmp_path / "run"), *more]
        assert main(["train", "--preset", "tiny", *arguments]) == 2
        captured = capsys.readouterr().err
        assert captured.count("\n") == 1
        return captured

    assert "expected the folder of Multi30k, with its train.en.gz" in refused("--corpus", str(tmp_path / "nowhere"))
    assert "expected the folder of Multi30k" in refused("--corpus", "shakespeare")
    assert "context: expected" in refused("--context", "3")
    content = (corpus / "val.de.gz").read_bytes()
    (corpus / "val.de.gz").write_bytes(content[:-9])
    assert "val.de.gz: expected compressed UTF-8 text" in refused()
    (corpus / "val.de.gz").write_bytes(gzip.compress(b"nur eine Zeile\n"))
    assert "val: expected as many lines in English as in German, got [7, 1]" in refused()
    (corpus / "val.de.gz").unlink()
    assert "with its val.de.gz" in refused()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package", ["tokenizers", "sacrebleu"])
def test_a_missing_package_is_noticed_before_training(corpus, tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ["--task", "multi30k", "--corpus", str(corpus), "--output", str(tmp_path / "run")]
    assert main(["train", "--preset", "tiny", *arguments]) == 2
    assert f"expected the package {package}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_line_ends_with_a_newline_and_nothing_else(corpus):
    for language in ("en", "de"):
        (corpus / f"val.{language}.gz").write_bytes(gzip.compress("one\u2028still one\x85 and\x0c more\ntwo\n".encode()))
    assert [source for source, _ in read_pairs(corpus, "val")] == ["one\u2028still one\x85 and\x0c more", "two"]


def test_line_ends_of_windows_and_a_byte_order_mark_are_no_text(corpus):
    (corpus / "val.en.gz").write_bytes(gzip.compress("\ufeffone\r\ntwo\r\n".encode()))
    (corpus / "val.de.gz").write_bytes(gzip.compress(b"eins\nzwei"))
    assert read_pairs(corpus, "val") == [("one", "eins"), ("two", "zwei")]


@pytest.mark.parametrize("mark", [START, END, "\0"])
def test_marks_in_a_sentence_are_refused(corpus, mark):
    """They would become the beginning or the end of an answer."""
    (corpus / "val.en.gz").write_bytes(gzip.compress(f"one\nt{mark}wo\n".encode()))
    with pytest.raises(
        ValueError, match=rf"val.en.gz: expected text without the character U\+{ord(mark):04X}, got it in line 2"
    ):
        read_pairs(corpus, "val")


def test_what_is_no_text_is_named():
    """As Python reads the byte E9 from a command line that is otherwise UTF-8."""
    subwords = Subwords.learn(TEXTS, 300, [START, END])
    with pytest.raises(ValueError, match=r"^source: character .* \(U\+DCE9\) at position 2 is not in the vocabulary"):
        subwords.encode("ab\udce9", "source")


@pytest.mark.parametrize(
    ("split", "side", "lines"), [("train", "en", [""]), ("train", "de", ["x" * 99]), ("val", "de", ["x" * 99] * 7)]
)
def test_a_split_without_a_pair_to_use_is_named(corpus, tmp_path, split, side, lines):
    other = {"en": "de", "de": "en"}[side]
    (corpus / f"{split}.{side}.gz").write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
    (corpus / f"{split}.{other}.gz").write_bytes(gzip.compress(b"dog\n" * len(lines)))
    with pytest.raises(
        ValueError, match=rf"^corpus: {split}: expected a pair with a source, and .* context of 60 tokens, got none"
    ):
        Multi30k(options(corpus, tmp_path / "run", context=60, subwords=258))


def test_subwords_come_with_the_model_to_begin_with(corpus, tmp_path, capsys):
    """Other sentences would give other subwords; a model of characters has none."""
    first = run(options(corpus, tmp_path / "first", steps=2, average=0))
    for language, more in (("en", "zebras quarrel\n"), ("de", "Zebras zanken\n")):
        path = corpus / f"train.{language}.gz"
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + 40 * more.encode()))
    fresh = Multi30k(options(corpus, tmp_path / "run")).vocabulary.to_json()
    second = run(options(corpus, tmp_path / "second", steps=2, average=0, init_from=str(first)))
    assert (first / "subwords.json").read_text() == (second / "subwords.json").read_text() != fresh
    copies = run(options("", tmp_path / "copies", task="copy", steps=2, average=0))
    with pytest.raises(ValueError, match=r"^init_from: expected a run whose model has subwords, as this task does"):
        Multi30k(options(corpus, tmp_path / "third", init_from=str(copies)))
    arguments = ["--task", "multi30k", "--corpus", str(corpus), "--init-from", str(first), "--subwords", "280"]
    assert main(["train", *arguments, "--output", str(tmp_path / "fourth")]) == 2
    assert "subwords: expected none here" in capsys.readouterr().err


def test_gradients_are_checked_on_the_data_of_the_run(corpus, tmp_path, capsys):
    folder = run(options(corpus, tmp_path / "run", steps=1, average=0, layers=1))
    check = ["check", "--run", str(folder), "--against", "twin", "--sequences", "1"]
    assert main(check) == 0
    (corpus / "val.en.gz").write_bytes(gzip.compress(b"another\n" * 7))
    assert main(check) == 2
    assert "corpus: expected the data that the model of run" in capsys.readouterr().err


def test_epochs_go_by_the_seed(corpus, tmp_path):
    tasks = [Multi30k(options(corpus, tmp_path / "run", seed=seed)) for seed in (0, 1)]
    epochs = [
        [task.training_batch(n, None).targets.tolist() for n in range(task.facts["batches_per_epoch"])] for task in tasks
    ]
    assert epochs[0] != epochs[1]


def test_a_pair_without_a_source_is_left_out(corpus, tmp_path):
    before = Multi30k(options(corpus, tmp_path / "run")).facts["training"]
    for language, more in (("en", "\n"), ("de", "Hund.\n")):
        path = corpus / f"train.{language}.gz"
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + more.encode()))
    facts = Multi30k(options(corpus, tmp_path / "run")).facts
    assert (facts["training"], facts["without_a_source"], facts["longer_than_the_context"]) == (before, 1, 0)


def test_bleu_and_ratio_know_which_side_is_the_translation(corpus, tmp_path, monkeypatch):
    """Translations that lack their last words are too short, not too long."""
    task = Multi30k(options(corpus, tmp_path / "run"))
    known = {source: target for split in ("val", "test_2016_flickr") for source, target in read_pairs(corpus, split)}

    def half(backend, sources):
        words = [known[source].split() for source in sources]
        return [" ".join(each[: (len(each) + 1) // 2]) for each in words]

    monkeypatch.setattr(task, "_answers", half)
    sources, references = zip(*read_pairs(corpus, "test_2016_flickr"), strict=True)
    expected = extra("sacrebleu").corpus_bleu(half(None, sources), [list(references)])
    scores = task.scores(None)
    assert scores["bleu_test_2016_flickr"] == expected.score
    assert scores["length_ratio_test_2016_flickr"] == expected.sys_len / expected.ref_len < 1


def test_a_sample_says_which_is_which(corpus, tmp_path, monkeypatch):
    task = Multi30k(options(corpus, tmp_path / "run"))
    monkeypatch.setattr(task, "_answers", lambda backend, sources: [f"<{source}>" for source in sources])
    english, german = read_pairs(corpus, "test_2016_flickr")[0]
    assert task.sample(None, None).startswith(f"{english}\n  -> <{english}>\n  (reference: {german})\n")
