"""Multi30k, English to German (Elliott et al. 2016): short descriptions of pictures, from a folder of its files."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from reference_numpy.config import Kind
from train.backend import Backend
from train.configuration import TrainConfig
from train.corpus import expanded
from train.data import Batch
from train.extras import extra
from train.pairs import END, START, Pair, PairTask, marks, pair_batch
from train.run_folder import SUBWORDS
from train.start import vocabulary_to_keep
from train.streams import stream
from train.subwords import Subwords

Texts = list[tuple[str, str]]
SPLITS = {"training": "train", "validation": "val", "test": "test_2016_flickr"}
SHOWN = 10  # translations in the sample


class Multi30k(PairTask):
    """Translation with joint subwords, learned from both sides of the training text; judged by BLEU."""

    kind: Kind = "encoder_decoder"
    unit = "token"

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        extra("sacrebleu")  # it is needed at the end; who lacks it should hear of it now
        self._texts = {name: read_pairs(expanded(config.corpus), split) for name, split in SPLITS.items()}
        self.vocabulary = _vocabulary(config, self.kind, self._texts["training"])
        self._marks = marks(self.vocabulary)
        pairs = {name: [self._tokens(pair) for pair in self._texts[name]] for name in ("training", "validation")}
        self._validation = _fitting(pairs["validation"], config.model.context)
        self._training = _fitting(pairs["training"], config.model.context)
        self._lengths = np.array([_length(pair) for pair in self._training])
        longest = self._longest_judged()
        if longest > config.model.context:
            raise ValueError(
                f"context: expected at least {longest}, the longest source to judge by, got {config.model.context}"
            )
        for name, kept in (("training", self._training), ("validation", self._validation)):
            if not kept:
                raise ValueError(
                    f"corpus: {SPLITS[name]}: expected a pair with a source, and with both sides within the context of "
                    f"{config.model.context} tokens, got none"
                )
        self._limits = batch_limits(np.sort(self._lengths), config.batch_tokens)
        self._epoch, self._order = -1, np.arange(0)
        self.size = f"{len(self._training):,} pairs"
        self.facts: dict[str, Any] = {
            "sha256": hashlib.sha256(repr(self._texts).encode()).hexdigest(),
            "symbols": len(self.vocabulary),
            "training": len(self._training),
            "validation": len(self._validation),
            "test": len(self._texts["test"]),
            "longer_than_the_context": sum(_length(pair) > config.model.context for p in pairs.values() for pair in p),
            "without_a_source": sum(len(pair.source) == 0 for p in pairs.values() for pair in p),
            "training_source_tokens": sum(len(pair.source) for pair in self._training),
            "training_target_tokens": sum(len(pair.target) + 1 for pair in self._training),
            "batches_per_epoch": len(self._limits),
        }
        self.files = {SUBWORDS: self.vocabulary.to_json().encode()}

    def training_batch(self, number: int, generator: np.random.Generator) -> Batch:
        """Batches by token count, each pair once an epoch; their order depends on the seed and the epoch's number alone."""
        epoch, position = divmod(number, len(self._limits))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        first, last = self._limits[self._order[position]]
        return pair_batch([self._training[index] for index in self._by_length[first:last]], *self._marks)

    def scores(self, backend: Backend) -> dict[str, Any]:
        """BLEU (percent) of detokenised translations against the raw references, with sacrebleu's own tokenizer."""
        bleu = extra("sacrebleu").metrics.BLEU()
        found: dict[str, Any] = {}
        for name in ("test", "validation"):
            sources, references = zip(*self._texts[name], strict=True)
            score = bleu.corpus_score(self._answers(backend, sources), [references])
            found[f"bleu_{SPLITS[name]}"] = score.score
            found[f"length_ratio_{SPLITS[name]}"] = score.ratio
        search = {"beams": self._config.beams, "length_penalty": self._config.length_penalty}
        return found | {"signature": str(bleu.get_signature())} | search

    def sample(self, backend: Backend, generator: np.random.Generator) -> str:
        sources, references = zip(*self._texts["test"][:SHOWN], strict=True)
        translations = self._answers(backend, sources)
        return "\n".join(
            f"{source}\n  -> {translation}\n  (reference: {reference})"
            for source, translation, reference in zip(sources, translations, references, strict=True)
        )

    def example(self) -> tuple[str | None, str]:
        return self._texts["test"][0]

    def _longest_judged(self) -> int:
        """Tokens of the longest source that is to be translated: who cannot read it should hear of it before training.

        Raises: ValueError for one without a token."""
        lengths = []
        for name in ("validation", "test"):
            for line, (source, _) in enumerate(self._texts[name], 1):
                lengths.append(len(self.vocabulary.encode(source)))
                if not lengths[-1]:
                    raise ValueError(f"corpus: {SPLITS[name]}.en.gz: expected a sentence in line {line}, got none")
        return max(lengths)

    def _tokens(self, pair: tuple[str, str]) -> Pair:
        return Pair(*(self.vocabulary.encode(text) for text in pair))

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Draws, for an epoch, who stands beside whom among pairs of one length, and the order of its batches."""
        generator = stream(self._config.seed, f"epoch {epoch}")
        order = generator.permutation(len(self._training))
        self._by_length = order[np.argsort(self._lengths[order], kind="stable")]
        return generator.permutation(len(self._limits))


def read_pairs(folder: Path, split: str) -> Texts:
    """The pairs of a split, from `SPLIT.en.gz` and `SPLIT.de.gz`: a sentence on every line.

    Line ends become "\\n". Raises: ValueError for a file that is missing, not compressed UTF-8 text, with a character that
    is one of our marks, or of another length than its partner."""
    sides = [_read_lines(folder, f"{split}.{language}.gz") for language in ("en", "de")]
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise ValueError(f"corpus: {split}: expected as many lines in English as in German, got {[len(s) for s in sides]}")
    return list(zip(*sides, strict=True))


def _read_lines(folder: Path, name: str) -> list[str]:
    path = folder / name
    if not path.is_file():
        raise ValueError(
            f"corpus: expected the folder of Multi30k, with its {name} (data/task1/raw of github.com/multi30k/dataset), "
            f"got {str(folder)!r}"
        )
    try:
        text = gzip.decompress(path.read_bytes()).decode("utf-8-sig").replace("\r\n", "\n")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"corpus: {path}: expected compressed UTF-8 text, got something else ({error})") from error
    for mark in ("\0", START, END):
        if mark in text:
            line = text[: text.index(mark)].count("\n") + 1
            raise ValueError(f"corpus: {path}: expected text without the character U+{ord(mark):04X}, got it in line {line}")
    return text.removesuffix("\n").split("\n")


def batch_limits(lengths: np.ndarray, tokens: int) -> list[tuple[int, int]]:
    """Cuts sequences of these lengths, sorted, into batches [first, last) of at most `tokens`, padding included.

    Every batch has at least one sequence."""
    limits, first = [], 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or (last + 1 - first) * lengths[last] > tokens:
            limits.append((first, last))
            first = last
    return limits


def _vocabulary(config: TrainConfig, kind: Kind, texts: Texts) -> Subwords:
    """Learned anew; or that of the run to resume, or of the model to begin with."""
    if config.resume is None:
        kept = vocabulary_to_keep(config, kind)
        if kept is None:
            return Subwords.learn((text for pair in texts for text in pair), config.subwords, [START, END])
        if not isinstance(kept, Subwords):
            raise ValueError(
                "init_from: expected a run whose model has subwords, as this task does, got one with characters"
            )
        return kept
    path = Path(config.resume) / SUBWORDS
    if not path.is_file():
        raise ValueError(f"resume: expected a run with its {SUBWORDS}, got {config.resume!r}")
    return Subwords.from_json(path.read_text(encoding="utf-8"))


def _length(pair: Pair) -> int:
    """Tokens that a pair takes on its longer side, with the mark of the target."""
    return max(len(pair.source), len(pair.target) + 1)


def _fitting(pairs: list[Pair], context: int) -> list[Pair]:
    return [pair for pair in pairs if 0 < len(pair.source) and _length(pair) <= context]
