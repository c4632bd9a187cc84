"""Tasks that make their own pairs: copy, reverse, sort, addition, number words.

Each is a recipe. What is kept back for validation and for the final test is decided by a hash of what was drawn, so no
training batch can have it, whatever the seed and however long the run.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reference_numpy.config import Kind
from train.backend import Backend
from train.configuration import TrainConfig
from train.data import Batch
from train.extras import extra
from train.pairs import END, START, Pair, PairTask, marks, pair_batch
from train.streams import stream
from train.vocabulary import Vocabulary

Part = Literal["training", "validation", "test"]
HELD_OUT = 1000  # pairs in the validation set, and in the test set
SHOWN = 10  # answers in the sample


@dataclass(frozen=True)
class Recipe:
    """How one task makes its pairs: a key is drawn, and it stands for one pair of texts."""

    symbols: str
    """Characters that occur in sources and targets."""
    longest: int
    """Characters of the longest source or target."""
    draw: Callable[[np.random.Generator], str]
    """A random key."""
    pair: Callable[[str], tuple[str, str]]
    """Source and target of a key."""
    example: str
    """Key of the pair in the pictures of attention."""
    always_trained: Callable[[str], bool] = lambda key: False
    """Keys that are never kept back, since nothing else teaches them."""

    def part(self, key: str) -> Part:
        """Where a key belongs: a tenth of all is for validation, another for the test."""
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        choice = int.from_bytes(digest, "little") % 10
        if choice > 1 or self.always_trained(key):
            return "training"
        return "validation" if choice else "test"

    def drawn(self, part: Part, generator: np.random.Generator) -> Iterator[str]:
        """Random keys of one part, without end."""
        while True:
            key = self.draw(generator)
            if self.part(key) == part:
                yield key

    def kept_back(self, part: Part) -> list[str]:
        """The same HELD_OUT different keys in every run."""
        keys: dict[str, None] = {}
        for key in self.drawn(part, stream(0, part)):
            keys[key] = None
            if len(keys) == HELD_OUT:
                break
        return list(keys)


LETTERS = string.ascii_lowercase[:16]
LONGEST_SEQUENCE = 16


def _sequence(generator: np.random.Generator) -> str:
    """A sequence of 1 to LONGEST_SEQUENCE letters."""
    length = generator.integers(1, LONGEST_SEQUENCE + 1)
    return "".join(LETTERS[index] for index in generator.integers(0, len(LETTERS), length))


def _sequences(answer: Callable[[str], str]) -> Recipe:
    return Recipe(LETTERS, LONGEST_SEQUENCE, _sequence, lambda key: (key, answer(key)), example="badcafefeedbeef")


def _sum(generator: np.random.Generator) -> str:
    """Two numbers of three digits, such as 123+456=."""
    first, second = generator.integers(100, 1000, 2)
    return f"{first}+{second}="


def _add(key: str) -> tuple[str, str]:
    """The sum as it is written, hundreds or thousands first."""
    first, second = key.removesuffix("=").split("+")
    return key, str(int(first) + int(second))


def _number(generator: np.random.Generator) -> str:
    """A number of 1 to 6 digits, each length equally often, so that short ones are not rare."""
    digits = int(generator.integers(1, 7))
    return str(generator.integers(0 if digits == 1 else 10 ** (digits - 1), 10**digits))


def _words(key: str) -> tuple[str, str]:
    """21 -> twenty-one, einundzwanzig."""
    num2words = extra("num2words").num2words
    return num2words(int(key), lang="en"), num2words(int(key), lang="de")


RECIPES = {
    "copy": _sequences(lambda key: key),
    "reverse": _sequences(lambda key: key[::-1]),
    "sort": _sequences(lambda key: "".join(sorted(key))),
    "addition": Recipe(string.digits + "+=", 8, _sum, _add, example="123+987="),
    # The longest is 777,878 in English. Below 100 are the words that the others consist of.
    "number_words": Recipe(
        string.ascii_lowercase + "öüß ,-", 73, _number, _words, "21", always_trained=lambda key: int(key) < 100
    ),
}


class GeneratedPairs(PairTask):
    """A task made by a recipe; judged by the share of HELD_OUT unseen sources that it answers without any mistake."""

    kind: Kind = "encoder_decoder"
    unit = "character"
    size = "pairs made as they are needed"

    def __init__(self, config: TrainConfig, name: str) -> None:
        self._config, self._recipe = config, RECIPES[name]
        recipe, context = self._recipe, config.model.context
        if context <= recipe.longest:
            raise ValueError(f"context: expected at least {recipe.longest + 1} for {name}, got {context}")
        self.vocabulary = Vocabulary.from_text(START + END + recipe.symbols)
        self._marks = marks(self.vocabulary)
        self._validation = [self._tokens(key) for key in recipe.kept_back("validation")]
        self._test = [recipe.pair(key) for key in recipe.kept_back("test")]
        self.facts: dict[str, Any] = {
            "sha256": hashlib.sha256(repr((recipe.pair(recipe.example), self._test)).encode()).hexdigest(),
            "symbols": len(self.vocabulary),
            "validation": HELD_OUT,
            "test": HELD_OUT,
        }
        self.files: Mapping[str, bytes] = {}

    def training_batch(self, number: int, generator: np.random.Generator) -> Batch:
        keys = self._recipe.drawn("training", generator)
        return pair_batch([self._tokens(next(keys)) for _ in range(self._config.batch)], *self._marks)

    def scores(self, backend: Backend) -> dict[str, Any]:
        answers = self._answers(backend, [source for source, _ in self._test])
        right = sum(answer == target for answer, (_, target) in zip(answers, self._test, strict=True))
        wrong = [(*pair, answer) for pair, answer in zip(self._test, answers, strict=True) if answer != pair[1]]
        return {
            "exact_match": right / len(self._test),
            "sequences": len(self._test),
            "wrong": [dict(zip(("source", "expected", "got"), mistake, strict=True)) for mistake in wrong[:SHOWN]],
        }

    def sample(self, backend: Backend, generator: np.random.Generator) -> str:
        shown = self._test[:SHOWN]
        answers = self._answers(backend, [source for source, _ in shown])
        lines = []
        for (source, target), answer in zip(shown, answers, strict=True):
            lines.append(f"{source} -> {answer}" + ("" if answer == target else f"   (expected {target})"))
        return "\n".join(lines) + "\n"

    def example(self) -> tuple[str | None, str]:
        return self._recipe.pair(self._recipe.example)

    def _tokens(self, key: str) -> Pair:
        source, target = self._recipe.pair(key)
        return Pair(self.vocabulary.encode(source), self.vocabulary.encode(target))
