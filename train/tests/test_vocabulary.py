"""The vocabulary: there and back again, errors that name the character, labels that a picture can show."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.vocabulary import LABELS, Vocabulary, label


@given(st.text(min_size=1))
def test_decoding_undoes_encoding(text):
    vocabulary = Vocabulary.from_text(text)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [vocabulary.symbols.index(character) for character in text]
    assert vocabulary.decode(tokens) == text
    assert vocabulary.decode(tokens.tolist()) == text


@given(st.text(min_size=1))
def test_a_vocabulary_survives_json(text):
    vocabulary = Vocabulary.from_text(text)
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


def test_symbols_that_strings_of_numpy_would_lose():
    text = "\0a\ud800𝄞\0"  # a final zero, a lone surrogate, a character beyond 16 bits
    vocabulary = Vocabulary.from_text(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_nothing_to_encode_or_decode():
    vocabulary = Vocabulary.from_text("ab")
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.decode([]) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abcé", "prompt: character 'é' (U+00E9) at position 3 is not in the vocabulary"),
        ("!abé", "prompt: character '!' (U+0021) at position 0 is not in the vocabulary, nor are 'é'"),
        ("a𝄞", "prompt: character '𝄞' (U+1D11E) at position 1 is not in the vocabulary"),
        ("a\nb", "prompt: character '\\n' (U+000A) at position 1 is not in the vocabulary"),
        ("zyxyx", "prompt: character 'z' (U+007A) at position 0 is not in the vocabulary, nor are 'x', 'y'"),
        (
            "é" + "".join(map(chr, range(200, 240))),
            "prompt: character 'é' (U+00E9) at position 0 is not in the vocabulary, nor are "
            + ", ".join(repr(chr(code)) for code in range(200, 230))
            + " and 9 more",
        ),
    ],
)
def test_the_error_names_the_missing_character_and_its_position(text, message):
    with pytest.raises(ValueError) as error:
        Vocabulary.from_text("abc").encode(text, "prompt")
    assert str(error.value) == message


@pytest.mark.parametrize("tokens", [[2], [-1], [0, 7], [0.5], [[0]]])
def test_what_is_no_token(tokens):
    with pytest.raises(ValueError, match="tokens: expected"):
        Vocabulary.from_text("ab").decode(tokens)


@pytest.mark.parametrize("symbols", [[], ["ab"], [""], ["b", "a"], ["a", "a"], [1], "ab", None])
def test_what_is_no_vocabulary(symbols):
    with pytest.raises(ValueError, match="vocabulary: expected"):
        Vocabulary.from_json(symbols)


def test_labels_are_visible_and_in_the_font_of_the_pictures():
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    glyphs = FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    for symbol in [*LABELS, "a", "'", "\x07", "\u2028"]:
        shown = label(symbol)
        assert shown.isprintable()
        assert shown.strip()
        assert all(ord(character) in glyphs for character in shown)
    assert label("a") == "a"
    assert label("\x07") == "U+0007"
