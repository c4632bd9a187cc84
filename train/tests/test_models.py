"""Counts of known models, by hand from their papers, without a model in memory."""

import tracemalloc

import pytest

from reference_numpy.parameters import parameter_count
from train.cli import main
from train.models import known_models, parts, table

MODELS = known_models()


def gpt2(D, L, V=50257, context=1024):
    """Embeddings, and per layer 12 D^2 of weights, 9 D of their biases and 4 D of norms; the final norm."""
    return (V + context) * D + L * (12 * D * D + 13 * D) + 2 * D


def vaswani(D, F, V=37000):
    """Per encoder layer 4 D^2 + 2 D F of weights, 4 D + F + D of biases, 4 D of norms; the decoder has more attention."""
    attention, feed_forward, norm = 4 * D * D + 4 * D, 2 * D * F + F + D, 2 * D
    return V * D + 6 * (attention + feed_forward + 2 * norm) + 6 * (2 * attention + feed_forward + 3 * norm)


BY_HAND = {
    "gpt2": (gpt2(768, 12), 124_439_808),
    "gpt2-medium": (gpt2(1024, 24), 354_823_168),
    "gpt2-large": (gpt2(1280, 36), 774_030_080),
    "gpt2-xl": (gpt2(1600, 48), 1_557_611_200),
    "bert-base": (gpt2(768, 12, 30522, 512) - 2 * 768, 109_482_240 - 2 * 768 - 2 * 768 - (768 * 768 + 768)),
    "vaswani-base": (vaswani(512, 2048), 63_082_496),
    "vaswani-big": (vaswani(1024, 4096), 214_245_376),
    "llama-tiny": (32000 * 288 + 6 * (4 * 288**2 + 3 * 288 * 768 + 2 * 288) + 288, 15_191_712),
}


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_papers(name):
    by_hand, stated = BY_HAND[name]
    assert parameter_count(MODELS[name].config) == by_hand == stated
    assert sum(part.total for part in parts(MODELS[name].config)) == by_hand


def test_counts_match_what_the_sources_state():
    for name, model in MODELS.items():
        share = abs(parameter_count(model.config) / model.published - 1)
        exact = name not in ("bert-base", "vaswani-base", "vaswani-big")
        assert share == 0 if exact else share < 0.031, name


def test_counting_allocates_no_arrays():
    tracemalloc.start()
    try:
        for model in MODELS.values():
            parts(model.config)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # bytes; gpt2-xl alone would be six billion
    finally:
        tracemalloc.stop()


def test_the_table_shows_parts_and_the_sum(capsys):
    assert main(["parameters", "--model", "vaswani-base"]) == 0
    shown = capsys.readouterr().out
    assert shown.rstrip("\n") == table("vaswani-base", MODELS["vaswani-base"])
    for line in ("decoder: cross attention", "6 x 1,050,624", "63,082,496", "65,000,000; the sum is -3.0 %"):
        assert line in " ".join(shown.split("\n"))
    assert main(["parameters", "--model", "gpt5"]) == 2
    assert capsys.readouterr().err.startswith("twinformer: error: model: expected one of gpt2, ")
