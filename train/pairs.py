"""Sequence to sequence: pairs of token sequences as padded batches, and the search that answers a source.

The encoder reads the source; the decoder reads START and the target, and is to say the target and END.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from reference_numpy.decode import beam_search, greedy_search
from reference_numpy.loss import IGNORE
from reference_numpy.mask import padding_mask
from train.backend import Backend
from train.configuration import TrainConfig
from train.data import Batch
from train.vocabulary import Symbols

START, END = "\x02", "\x03"  # Unicode calls them start and end of text; both are symbols of every vocabulary of pairs


class Pair(NamedTuple):
    """Tokens of a source (S,) and of its target (T,), without START and END."""

    source: np.ndarray
    target: np.ndarray


class Search(NamedTuple):
    """How an answer is looked for: see reference_numpy.decode. One beam is greedy."""

    beams: int
    length_penalty: float


def padded(sequences: Sequence[np.ndarray], filler: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (T_b,) as one array (B, T), `filler` behind the shorter ones, and which of its tokens are real, bool."""
    lengths = np.array([len(sequence) for sequence in sequences])
    real = padding_mask(lengths, int(lengths.max()))
    together = np.full(real.shape, filler, dtype=np.int64)
    together[real] = np.concatenate(sequences)
    return together, real


def pair_batch(pairs: Sequence[Pair], start: int, end: int) -> Batch:
    """The pairs side by side. Targets behind END are -1.

    The decoder needs no padding mask: it looks back only, and what follows the real tokens is not asked for."""
    source, source_padding = padded([pair.source for pair in pairs])
    tokens, _ = padded([np.concatenate(([start], pair.target)) for pair in pairs])
    targets, _ = padded([np.concatenate((pair.target, [end])) for pair in pairs], filler=IGNORE)
    return Batch(tokens, targets, None, source, source_padding)


def pair_batches(pairs: Sequence[Pair], size: int, start: int, end: int) -> Iterator[Batch]:
    """Every pair once, `size` of similar length at a time."""
    order = sorted(range(len(pairs)), key=lambda index: (len(pairs[index].target), len(pairs[index].source)))
    for first in range(0, len(order), size):
        yield pair_batch([pairs[index] for index in order[first : first + size]], start, end)


def sampled_pairs(pairs: Sequence[Pair], targets: int, generator: np.random.Generator) -> list[Pair]:
    """Pairs drawn without replacement until they have at least so many targets (END included), or all of them."""
    order = generator.permutation(len(pairs))
    counts = np.cumsum([len(pairs[index].target) + 1 for index in order])
    return [pairs[index] for index in order[: np.searchsorted(counts, targets) + 1]]


def answer_all(
    backend: Backend, vocabulary: Symbols, sources: Sequence[str], search: Search, context: int, size: int = 64
) -> list[str]:
    """What the model answers to each source, decoded from its own output, `size` sources at a time.

    An answer of as many tokens as the context, END included, is cut there. Raises ValueError for a source that is empty,
    longer than the context, or has a character that the vocabulary lacks."""
    encoded = [source_tokens(vocabulary, source, context) for source in sources]
    answers: list[str] = [""] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    start, end = marks(vocabulary)
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        decoder = backend.decoder(*padded([encoded[row] for row in rows]))
        if search.beams == 1:
            found = greedy_search(decoder, len(rows), start, end, context)
        else:
            best = beam_search(decoder, len(rows), start, end, context, search.beams, search.length_penalty)
            found = [hypothesis.tokens for hypothesis in best]
        for row, tokens in zip(rows, found, strict=True):
            answers[row] = vocabulary.decode(np.array([t for t in tokens if t != start], dtype=np.int64))
    return answers


class PairTask:
    """What all tasks on pairs do alike. A task's own `__init__` gives it these."""

    vocabulary: Symbols
    _config: TrainConfig
    _marks: tuple[int, int]
    _validation: Sequence[Pair]

    def validation_batches(self) -> Iterator[Batch]:
        return pair_batches(self._validation, self._config.evaluation_batch, *self._marks)

    def estimate_batches(self, generator: np.random.Generator) -> list[Batch]:
        pairs = sampled_pairs(self._validation, self._config.evaluation_characters, generator)
        return list(pair_batches(pairs, self._config.evaluation_batch, *self._marks))

    def _answers(self, backend: Backend, sources: Sequence[str]) -> list[str]:
        config = self._config
        search = Search(config.beams, config.length_penalty)
        return answer_all(backend, self.vocabulary, sources, search, config.model.context, config.evaluation_batch)


def source_tokens(vocabulary: Symbols, source: str, context: int) -> np.ndarray:
    """Tokens of a source. Raises ValueError as `answer_all`."""
    tokens = vocabulary.encode(source, "source")
    if not 0 < len(tokens) <= context:
        raise ValueError(f"source: expected 1 to {context} tokens, the model's context, got {len(tokens)}")
    return tokens


def marks(vocabulary: Symbols) -> tuple[int, int]:
    """The tokens START and END. Raises ValueError for a vocabulary without them."""
    start, end = vocabulary.encode(START + END, "start and end")
    return int(start), int(end)
