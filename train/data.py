"""Tokens in, batches out: the split, random windows for training, and windows that cover the validation split once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from reference_numpy.loss import IGNORE


class Batch(NamedTuple):
    """What goes into the model and what is to come out of it: in a text, `targets[b, t]` follows `tokens[b, t]`."""

    tokens: np.ndarray
    """(B, T) integers."""
    targets: np.ndarray
    """(B, T) integers; -1 where nothing is asked."""
    padding: np.ndarray | None = None
    """(B, T) bool, True for a real token; None if all are."""
    source: np.ndarray | None = None
    """(B, S) integers, what an encoder-decoder reads."""
    source_padding: np.ndarray | None = None
    """(B, S) bool, as `padding`."""

    @property
    def counted(self) -> int:
        """Targets that count."""
        return int((self.targets >= 0).sum())

    def share(self, rank: int, count: int) -> tuple[Batch, slice]:
        """The rows of process `rank` of so many, and which they are: even parts, as far as it goes.

        A process that is left without one takes the first, and nothing is asked in it."""
        B = len(self.tokens)
        rows = slice(B * rank // count, B * (rank + 1) // count)
        if rows.start == rows.stop:
            nothing = self._replace(targets=np.full_like(self.targets, IGNORE))
            return nothing._rows(slice(0, 1)), slice(0, 1)
        return self._rows(rows), rows

    def _rows(self, rows: slice) -> Batch:
        tokens, targets, *rest = (None if part is None else part[rows] for part in self)
        assert tokens is not None and targets is not None
        return Batch(tokens, targets, *rest)

    def inputs(self) -> dict[str, Any]:
        """What the model takes besides the tokens, by the names of its arguments."""
        optional = {"padding": self.padding, "source": self.source, "source_padding": self.source_padding}
        return {name: part for name, part in optional.items() if part is not None}


class Split(NamedTuple):
    """The two parts of a text, (N,) integers each; validation is the end, so no training window can look into it."""

    training: np.ndarray
    validation: np.ndarray


def split_tokens(tokens: np.ndarray, validation_fraction: float, context: int) -> Split:
    """Cuts (N,) tokens into the first part for training and the last `validation_fraction` for validation.

    The cut is at floor(N * (1 - fraction)), as nanoGPT does it, so that figures can be compared.

    Raises: ValueError when a part is too short for one window of `context` characters and the character after it."""
    # A product such as 1000 * (1 - 0.1) must not land below the integer that is meant, hence the rounding.
    cut = int(round(len(tokens) * (1.0 - validation_fraction), 6))
    split = Split(tokens[:cut], tokens[cut:])
    for name, part in split._asdict().items():
        if len(part) <= context:
            raise ValueError(
                f"context: expected fewer characters than the {name} split has, {len(part)} of {len(tokens)}, got {context}"
            )
    return split


def random_batch(tokens: np.ndarray, context: int, sequences: int, generator: np.random.Generator) -> Batch:
    """`sequences` windows of `context` tokens from (N,) tokens, each start as likely as any other, with replacement."""
    starts = generator.integers(0, len(tokens) - context, size=sequences)
    windows = tokens[starts[:, None] + np.arange(context + 1)]  # (B, T + 1)
    return Batch(windows[:, :-1], windows[:, 1:])


def covering_batches(tokens: np.ndarray, context: int, sequences: int) -> Iterator[Batch]:
    """Non-overlapping windows over (N,) tokens that predict every token but the first exactly once.

    Full windows come in batches of at most `sequences`; what remains at the end is one shorter window by itself, so
    there is no padding. Which windows there are does not depend on `sequences`."""
    full = (len(tokens) - 1) // context
    for first in range(0, full, sequences):
        yield _windows(tokens, context, np.arange(first, min(first + sequences, full)))
    rest = tokens[full * context :]
    if len(rest) > 1:
        yield Batch(rest[None, :-1], rest[None, 1:])


def sampled_batches(
    tokens: np.ndarray, context: int, sequences: int, characters: int, generator: np.random.Generator
) -> list[Batch]:
    """Distinct full windows of the cover, drawn once, for at least `characters` predictions where there are so many.

    This is the quick estimate during training. The draw is fixed for a run, so that the curve does not jitter."""
    full = (len(tokens) - 1) // context
    count = min(full, -(-characters // context))
    chosen = np.sort(generator.choice(full, size=count, replace=False))
    return [_windows(tokens, context, chosen[first : first + sequences]) for first in range(0, count, sequences)]


def _windows(tokens: np.ndarray, context: int, indices: np.ndarray) -> Batch:
    """The windows number `indices` of the cover as one batch."""
    windows = tokens[indices[:, None] * context + np.arange(context + 1)]  # (B, T + 1)
    return Batch(windows[:, :-1], windows[:, 1:])


def frequency_losses(split: Split, symbols: int) -> dict[str, float]:
    """Nats per token of the validation split for who knows frequencies alone: how often each of V symbols occurs in the
    training split (unigram), and how often after each other symbol (bigram). Every count starts at 1, so that none is 0."""
    before, after = split.validation[:-1], split.validation[1:]
    first, second = (np.bincount(part, minlength=symbols) for part in (split.training[:-1], split.training[1:]))
    pairs, asked = ((part[:-1] * symbols + part[1:]) for part in split)
    known, counts = np.unique(pairs, return_counts=True)  # a table of all pairs would be large for many symbols
    at = np.searchsorted(known, asked).clip(max=len(known) - 1)
    together = np.where(known[at] == asked, counts[at], 0)
    chances = {
        "unigram": (second[after] + 1.0) / (second.sum() + symbols),
        "bigram": (together + 1.0) / (first[before] + symbols),
    }
    return {name: float(-np.log(chance).mean()) for name, chance in chances.items()}
