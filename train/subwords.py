"""Subwords as tokens: byte-pair encoding (Sennrich et al. 2016) over bytes, learned by the library `tokenizers`.

Over bytes every text has tokens and is given back as it was, so there is no symbol for the unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from train.extras import extra
from train.vocabulary import label


class Subwords:
    """A joint vocabulary of subwords, most frequent merges first; a token is a position in it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        spaced = getattr(tokenizer.pre_tokenizer, "add_prefix_space", False)  # before the first word, which is no other then
        self._ends = " " if spaced else ""

    @classmethod
    def learn(cls, texts: Iterable[str], size: int, special: list[str]) -> Subwords:
        """`size` tokens: `special`, the 256 bytes, and the merges that the texts suggest. Equal texts give equal tokens."""
        tokenizers = extra("tokenizers")
        byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=byte_level.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Subwords:
        """The inverse of `to_json`. Raises ValueError for what `to_json` cannot have given."""
        try:
            return cls(extra("tokenizers").Tokenizer.from_str(text))
        except ValueError:
            raise
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"subwords: expected a vocabulary that tokenizers wrote, got another ({error})") from error

    def to_json(self) -> str:
        """The library's own format, which is JSON."""
        return json.dumps(json.loads(self._tokenizer.to_str()), ensure_ascii=False)

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, argument: str = "text") -> np.ndarray:
        """The tokens of `text`: int64 (T,). Where a space is put before the first word, spaces at the ends of a text
        do not count. Raises: ValueError, naming `argument`, for half of a surrogate pair, which is no text."""
        if wrong := re.search("[\ud800-\udfff]", text):  # what the command line makes of bytes that are no UTF-8
            character = f"{wrong[0]!r} (U+{ord(wrong[0]):04X})"
            raise ValueError(f"{argument}: character {character} at position {wrong.start()} is not in the vocabulary")
        return np.array(self._tokenizer.encode(text.strip(self._ends)).ids, dtype=np.int64)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens (T,); bytes that are no UTF-8, which a bad model may write, become U+FFFD."""
        return str(self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)).strip(self._ends)

    def labels(self, tokens: np.ndarray) -> list[str]:
        """Each token as a picture shows it, the space before a word visible."""
        texts = (self._tokenizer.decode([int(token)], skip_special_tokens=False) for token in tokens)
        return ["".join(label(symbol) for symbol in text) for text in texts]
