"""Pictures: they are written whole, say what they leave out, and refuse what they cannot draw."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from train import plots
from train.plots import MOST_PIXELS, MOST_TOKENS, VERMILION, plot_attention, plot_check, plot_loss

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, to ask what they say."""
    saved: list[Figure] = []
    save = plots._save

    def remember(figure, path):
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", remember)
    return saved


def causal_attention(heads: int, tokens: int) -> np.ndarray:
    scores = np.random.default_rng(0).normal(size=(heads, tokens, tokens))
    weights = np.tril(np.exp(scores))
    return weights / weights.sum(-1, keepdims=True)


def assert_picture(path):
    assert path.read_bytes().startswith(PNG)
    height, width, channels = imread(path).shape
    assert channels in (3, 4)
    assert 100 < width <= MOST_PIXELS + 1
    assert 100 < height <= MOST_PIXELS + 1
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file stays"


def test_loss_curve(tmp_path, figures):
    records = [{"step": step, "train_loss": 4.0 / (1 + step)} for step in range(50)]
    records += [{"step": 20, "validation_loss": 1.5, "exact": False}, {"step": 49, "validation_loss": 1.125, "exact": False}]
    records += [{"step": 49, "validation_loss": 1.25, "exact": True}, {"step": 49, "seconds": 3.0}]
    path = tmp_path / "loss.png"
    plot_loss(records, path, "a run", {"elsewhere": 1.88})
    assert_picture(path)
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.texts] == ["1.250"], "the final exact loss is written out"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "training batches, smoothed",
        "validation, estimate",
        "validation, exact",
        "elsewhere: 1.880",
    ]
    assert "nats per character" in axes.get_ylabel()


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 0, "train_loss": 4.0}],
        [{"step": 0, "validation_loss": 4.0}],
        [{"step": 0, "train_loss": 4.0, "validation_loss": None}, {"step": 1, "train_loss": float("nan")}],
    ],
    ids=["one training loss", "one validation loss", "diverged"],
)
def test_loss_curve_of_little(tmp_path, records):
    path = tmp_path / "loss.png"
    plot_loss(records, path, "a run")
    assert_picture(path)


@pytest.mark.parametrize("records", [[], [{"step": 1}], [{"step": 1, "train_loss": float("nan")}]])
def test_loss_curve_of_nothing(tmp_path, records):
    with pytest.raises(ValueError, match="log_records: expected at least one finite"):
        plot_loss(records, tmp_path / "loss.png", "a run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 2, 99, 100, 250])
def test_smoothing_keeps_a_constant_and_the_length(count):
    values = np.full(count, 3.0)
    np.testing.assert_array_equal(plots._smoothed(values), values)


def test_smoothing_passes_over_what_is_not_finite():
    values = np.full(250, 3.0)
    values[100] = np.inf
    np.testing.assert_array_equal(plots._smoothed(values), np.full(250, 3.0))


def test_attention_of_every_layer_and_head(tmp_path, figures):
    text = "TO:\nBe or"
    weights = {f"blocks.{layer}.attention": causal_attention(3, len(text)) for layer in range(2)}
    path = tmp_path / "attention.png"
    plot_attention(weights, text, text, path, "a run")
    assert_picture(path)
    maps = [axes for axes in figures[0].axes if axes.images]
    titles = [axes.get_title() for axes in maps]
    assert titles == [f"blocks.{layer}.attention, head {head}" for layer in range(2) for head in range(3)]
    for axes in maps:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == list("TO:↵Be␣or")
        assert [tick.get_text() for tick in axes.get_yticklabels()] == list("TO:↵Be␣or")
        assert axes.images[0].get_clim() == (0.0, 1.0)
        shown = axes.images[0].get_array()
        assert (np.ma.getmaskarray(shown) == ~np.tri(len(text), dtype=bool)).all(), "what is masked stays white"


def test_attention_across_and_layers_of_unequal_heads(tmp_path):
    generator = np.random.default_rng(1)
    weights = {f"layer {heads}": generator.dirichlet(np.ones(7), size=(heads, 5)) for heads in (1, 2)}
    path = tmp_path / "attention.png"
    plot_attention(weights, "abcde", "fghijkl", path, "a run")
    assert_picture(path)


def test_long_attention_is_cropped_to_its_end_and_says_so(tmp_path, figures):
    text = ("abcdefghij" * 30)[:293]
    path = tmp_path / "attention.png"
    plot_attention({"only": causal_attention(1, len(text))}, text, text, path, "a run")
    assert_picture(path)
    assert figures[0].get_suptitle() == f"a run\n(the last {MOST_TOKENS} of 293 tokens)"
    labels = figures[0].axes[0].get_xticklabels()
    assert "".join(tick.get_text() for tick in labels) == text[-MOST_TOKENS:]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "expected at least one layer, got none"),
        ({"x": np.ones((3, 3))}, r"expected \(H, T, S\) = \(H, 3, 3\) for x, got \(3, 3\)"),
        ({"x": np.ones((2, 3, 5))}, r"for x, got \(2, 3, 5\)"),
        ({"x": np.ones((0, 3, 3))}, r"for x, got \(0, 3, 3\)"),
        ({"x": np.full((1, 3, 3), np.nan)}, "expected values from 0 to 1 for x"),
        ({"x": np.full((1, 3, 3), 2.0)}, "expected values from 0 to 1 for x"),
    ],
)
def test_attention_that_does_not_fit(tmp_path, weights, message):
    with pytest.raises(ValueError, match=message):
        plot_attention(weights, "abc", "abc", tmp_path / "attention.png", "a run")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "loss.png"
    path.write_bytes(b"old")

    def fails(figure, file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="disk full"):
        plot_loss([{"step": 0, "train_loss": 4.0}], path, "a run")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_heat_map_of_a_check(tmp_path, figures):
    """What is out of bounds is vermilion, what nobody looked at grey, an error of 0 as faint as can be."""
    ratios = {"loss": {"spec": 0.0}, "weight": {"spec": 0.25, "twin": 1.5}, "bias": {"spec": 1e-9, "twin": float("inf")}}
    path = tmp_path / "check.png"
    plot_check(ratios, path, "a check")
    assert_picture(path)
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["0", "", "0.25", "1.5", "1e-09", "inf"]
    (image,) = axes.get_images()
    colors = [to_hex(color) for color in image.cmap(image.norm(image.get_array())).reshape(-1, 4)]
    assert colors[0] == colors[4] == to_hex(image.cmap(0.0))
    assert colors[1] == "#cccccc"
    assert colors[3] == colors[5] == VERMILION.lower()
    with pytest.raises(ValueError, match="ratios: expected at least one tensor, got none"):
        plot_check({}, path, "nothing")
