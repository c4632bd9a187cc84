"""Characters as tokens: the sorted symbols of a text, numbered from 0."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

MASK = "\x1a"  # Unicode calls it substitute
LISTED = 30  # of the characters that a vocabulary lacks, so many are named
LABELS = {" ": "␣", "\n": "↵", "\t": "⇥", "\x02": "⊢", "\x03": "⊣", MASK: "▒"}  # all in the font of the pictures


class Symbols(Protocol):
    """What the tokens of a model stand for: single characters (Vocabulary) or subwords (subwords.py)."""

    def __len__(self) -> int:
        """V."""

    def encode(self, text: str, argument: str = "text") -> np.ndarray:
        """Tokens (T,). Raises ValueError, naming `argument`, for a text that has none."""

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens (T,)."""

    def labels(self, tokens: np.ndarray) -> list[str]:
        """Each of the tokens (T,) as a picture shows it."""

    def to_json(self) -> Any:
        """The vocabulary as JSON can hold it; `train.checkpoint.symbols_from_json` is the inverse."""


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a language model, one character each, sorted by code point; a token is a position in this order."""

    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.symbols:
            raise ValueError("vocabulary: expected at least one symbol, got none")
        for symbol in self.symbols:
            if not isinstance(symbol, str) or len(symbol) != 1:
                raise ValueError(f"vocabulary: expected single characters, got {symbol!r}")
        if list(self.symbols) != sorted(set(self.symbols)):
            raise ValueError("vocabulary: expected symbols in order and each once, got them otherwise")

    @classmethod
    def from_text(cls, text: str) -> "Vocabulary":
        """The symbols that occur in `text`. Raises ValueError for an empty text."""
        return cls(tuple(sorted(set(text))))

    @classmethod
    def from_json(cls, symbols: Sequence[str]) -> "Vocabulary":
        """The inverse of `to_json`. Raises ValueError for what `to_json` cannot have given."""
        if not isinstance(symbols, list | tuple):
            raise ValueError(f"vocabulary: expected a list of characters, got {symbols!r}")
        return cls(tuple(symbols))

    def to_json(self) -> list[str]:
        """The symbols as JSON can hold them."""
        return list(self.symbols)

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str, argument: str = "text") -> np.ndarray:
        """The tokens of `text`: int64 (T,). `argument` is what the error calls the text.

        Raises ValueError for a character that is not in the vocabulary, naming the first and its position (from 0).
        """
        codes = _codes(text)  # (T,)
        table = np.full(ord(self.symbols[-1]) + 2, -1)  # by code point; the last entry is for all beyond
        table[_codes("".join(self.symbols))] = np.arange(len(self))
        tokens: np.ndarray = table[np.minimum(codes, len(table) - 1)]
        missing = np.flatnonzero(tokens < 0)
        if missing.size:
            position = int(missing[0])
            code = f"U+{ord(text[position]):04X}"
            others = sorted({text[place] for place in missing} - {text[position]})
            more = f", nor are {', '.join(map(repr, others[:LISTED]))}" if others else ""
            more += f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
            raise ValueError(
                f"{argument}: character {text[position]!r} ({code}) at position {position} is not in the vocabulary{more}"
            )
        return tokens

    def decode(self, tokens: np.ndarray | Iterable[int]) -> str:
        """The text of `tokens`, integers (T,). Raises ValueError for a number that is no token."""
        numbers = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        if numbers.size == 0:
            return ""
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(f"tokens: expected integers (T,), got {numbers.dtype} {numbers.shape}")
        wrong = numbers[(numbers < 0) | (numbers >= len(self))]
        if wrong.size:
            raise ValueError(f"tokens: expected numbers from 0 to {len(self) - 1}, got {wrong[0]}")
        return str(_codes("".join(self.symbols))[numbers].tobytes().decode("utf-32-le", "surrogatepass"))

    def labels(self, tokens: np.ndarray) -> list[str]:
        """Each of the tokens (T,) as a picture shows it."""
        return [label(symbol) for symbol in self.decode(tokens)]


def label(symbol: str) -> str:
    """The symbol as a picture shows it: spaces and line ends visible, control characters by their code point."""
    if symbol in LABELS:
        return LABELS[symbol]
    return symbol if symbol.isprintable() else f"U+{ord(symbol):04X}"


def _codes(text: str) -> np.ndarray:
    """Code points, uint32 (T,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
