"""Tasks on one text: the causal language model and the masked language model, both over characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from reference_numpy.config import Kind
from reference_numpy.loss import IGNORE
from train.backend import Backend, Sampling
from train.configuration import TrainConfig
from train.corpus import Corpus, load_corpus
from train.data import Batch, Split, covering_batches, frequency_losses, random_batch, sampled_batches, split_tokens
from train.generate import fresh_line, write
from train.start import vocabulary_to_keep
from train.streams import stream
from train.vocabulary import MASK, Symbols, Vocabulary

SAMPLING = Sampling(temperature=0.8)  # a little below 1: what the model finds likely, with fewer slips
EXAMPLE_CHARACTERS = 32  # more labels than this cannot be read in a grid of small pictures


class LanguageModel:
    """Predict the next character, or the next subword if the model to begin with has them. Training draws windows at random;
    validation covers the end of the text once."""

    kind: Kind = "decoder"

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        corpus = load_corpus(config.corpus)
        self.vocabulary = vocabulary_to_keep(config, self.kind) or Vocabulary.from_text(corpus.text)
        self.unit = "character" if isinstance(self.vocabulary, Vocabulary) else "token"
        tokens = self.vocabulary.encode(corpus.text, "corpus")
        self.split = split_tokens(tokens, config.validation_fraction, config.model.context)
        self.size = f"{len(self.split.training):,} {self.unit}s to learn from"
        frequencies = frequency_losses(self.split, len(self.vocabulary))
        self.facts = text_facts(corpus, self.split, self.vocabulary) | {f"{n}_nats": loss for n, loss in frequencies.items()}
        self.files: Mapping[str, bytes] = {}

    def training_batch(self, number: int, generator: np.random.Generator) -> Batch:
        batch = random_batch(self.split.training, self._config.model.context, self._config.batch, generator)
        return self._noisy(batch, generator) if self._config.input_noise else batch

    def _noisy(self, batch: Batch, generator: np.random.Generator) -> Batch:
        """The batch with a share of the characters read replaced by ones drawn from the training text; the targets stay.

        Unigram noising (Xie et al. 2017): on a small text that is read many times, no window comes twice, and no
        prediction can lean on a single character."""
        shape = batch.tokens.shape
        hidden = generator.random(shape) < self._config.input_noise
        drawn = self.split.training[generator.integers(0, len(self.split.training), shape)]
        return batch._replace(tokens=np.where(hidden, drawn, batch.tokens))

    def validation_batches(self) -> Iterator[Batch]:
        return covering_batches(self.split.validation, self._config.model.context, self._config.evaluation_batch)

    def estimate_batches(self, generator: np.random.Generator) -> list[Batch]:
        config = self._config
        sequences, characters = config.evaluation_batch, config.evaluation_characters
        return sampled_batches(self.split.validation, config.model.context, sequences, characters, generator)

    def scores(self, backend: Backend) -> dict[str, Any]:
        return {}

    def sample(self, backend: Backend, generator: np.random.Generator) -> str:
        """A sample from a fresh line on."""
        prompt, length = fresh_line(self.vocabulary), self._config.sample_length
        return write(backend, self.vocabulary, prompt, length, generator, SAMPLING)[0]

    def example(self) -> tuple[str | None, str]:
        """A line of the validation split, which no step has seen."""
        text = self.vocabulary.decode(self.split.validation)
        line = text.find("\n") + 1  # the split begins anywhere; 0 where it has no line end
        length = min(EXAMPLE_CHARACTERS, self._config.model.context)
        return None, text[line : line + length] or text[:length]


CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1  # shares: of all symbols; of the chosen ones; the rest of these stay as they are
SAMPLE_WINDOWS = 3


class MaskedLanguageModel:
    """Say what stood at 15 % of the positions (Devlin et al. 2019, section 3.1), over characters and MASK.

    Of the chosen positions 80 % show MASK, 10 % a random character, 10 % their own; the loss is that of all chosen ones. The
    validation text is corrupted once, in the same way in every run."""

    kind: Kind = "encoder"
    unit = "masked character"

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        corpus = load_corpus(config.corpus)
        if MASK in corpus.text:
            raise ValueError("corpus: expected a text without U+001A, which stands for a masked character, got one with it")
        self.vocabulary = vocabulary_to_keep(config, self.kind) or Vocabulary.from_text(corpus.text + MASK)
        tokens = self.vocabulary.encode(corpus.text, "corpus")
        self.split = split_tokens(tokens, config.validation_fraction, config.model.context)
        self._mask = int(self.vocabulary.encode(MASK)[0])
        self._validation = self.corrupted(self.split.validation, stream(0, "validation"))
        if not self._validation.counted:
            raise ValueError(
                f"corpus: expected a longer text, got one with no hidden character among {len(self.split.validation)}"
            )
        self.size = f"{len(self.split.training):,} characters to learn from"
        self.facts = text_facts(corpus, self.split, self.vocabulary)
        self.files: Mapping[str, bytes] = {}

    def corrupted(self, tokens: np.ndarray, generator: np.random.Generator) -> Batch:
        """Tokens of any shape with a share of them hidden, and as targets what stood there, -1 elsewhere."""
        chosen = generator.random(tokens.shape) < CHOSEN
        fate = generator.random(tokens.shape)
        others = generator.integers(0, len(self.vocabulary) - 1, tokens.shape)
        others += others >= self._mask  # any symbol but MASK
        shown = np.where(fate < MASKED, self._mask, np.where(fate < MASKED + REPLACED, others, tokens))
        return Batch(np.where(chosen, shown, tokens), np.where(chosen, tokens, IGNORE))

    def training_batch(self, number: int, generator: np.random.Generator) -> Batch:
        while True:  # of a few characters none may be hidden
            drawn = random_batch(self.split.training, self._config.model.context, self._config.batch, generator)
            batch = self.corrupted(drawn.tokens, generator)
            if batch.counted:
                return batch

    def validation_batches(self) -> Iterator[Batch]:
        context, size = self._config.model.context, self._config.evaluation_batch
        full = len(self._validation.tokens) // context
        windows = [part[: full * context].reshape(full, context) for part in self._validation[:2]]
        for first in range(0, full, size):
            yield Batch(*(part[first : first + size] for part in windows))
        rest = [part[None, full * context :] for part in self._validation[:2]]
        if rest[0].size:
            yield Batch(*rest)

    def estimate_batches(self, generator: np.random.Generator) -> list[Batch]:
        """The first batches with enough characters, hidden or not; one at least is."""
        return list(_first(self.validation_batches(), self._config.evaluation_characters))

    def scores(self, backend: Backend) -> dict[str, Any]:
        """How often the likeliest character is the right one, over all chosen positions of the validation text."""
        right = counted = 0
        for batch in self.validation_batches():
            right += int((backend.predict(batch) == batch.targets).sum())
            counted += batch.counted
        return {"accuracy": right / counted, "characters": counted}

    def sample(self, backend: Backend, generator: np.random.Generator) -> str:
        """Windows of the validation text as they were, as the model saw them, and with what it put in."""
        batch = next(iter(self.validation_batches()))
        batch = Batch(batch.tokens[:SAMPLE_WINDOWS], batch.targets[:SAMPLE_WINDOWS])
        asked = batch.targets >= 0
        original = np.where(asked, batch.targets, batch.tokens)
        filled = np.where(asked, backend.predict(batch), batch.tokens)
        lines = []
        for row in zip(original, batch.tokens, filled, strict=True):
            texts = ("".join(self.vocabulary.labels(tokens)) for tokens in row)
            lines += [f"{name}: {text}" for name, text in zip(("text  ", "seen  ", "filled"), texts, strict=True)]
        return "\n".join(lines) + "\n"

    def example(self) -> tuple[str | None, str]:
        length = min(EXAMPLE_CHARACTERS, self._config.model.context)
        return None, self.vocabulary.decode(self._validation.tokens[:length])


def text_facts(corpus: Corpus, split: Split, vocabulary: Symbols) -> dict[str, Any]:
    """Identity and size of a text, for config.json."""
    return {
        "sha256": corpus.sha256,
        "characters": len(corpus.text),
        "training": len(split.training),
        "validation": len(split.validation),
        "symbols": len(vocabulary),
    }


def _first(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """Batches until they have so many tokens, and a target."""
    counted = 0
    for batch in batches:
        yield batch
        tokens, counted = tokens - batch.tokens.size, counted + batch.counted
        if tokens <= 0 and counted:
            return
