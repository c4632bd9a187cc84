"""Pictures: they are written whole, say what they leave out, and refuse what they cannot draw."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from reference_numpy.attention import multi_head_attention_forward
from reference_numpy.config import ModelConfig
from reference_numpy.position import sinusoidal_table
from train import experiment_plots, plots
from train.attention_plots import plot_statistics, plot_trace, trace
from train.cli import main
from train.experiment_plots import plot_pitfall
from train.plots import BLUE, MOST_PIXELS, MOST_TOKENS, VERMILION, plot_attention, plot_check, plot_loss
from train.positions import by_distance, similarity

PNG = b"\x89PNG\r\n\x1a\n"


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
        "training batches",
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


@pytest.mark.parametrize(
    ("loss", "text"), [(1.65314, "1.6531"), (0.00123, "0.0012"), (2.26e-5, "2.3e-05"), (0.0, "0.0000"), (math.inf, "inf")]
)
def test_a_small_loss_keeps_two_digits(loss, text):
    assert plots.loss_text(loss) == text


def test_a_training_loss_says_what_the_validation_loss_has_not(tmp_path, figures):
    assert plots.training_has(0.0, 0.0) == []
    assert plots.training_has(0.3, 0.0, 0.1) == ["dropout 0.3", "input noise 0.1"]
    plot_loss([{"step": 1, "train_loss": 2.0}], tmp_path / "loss.png", "", training_has=plots.training_has(0.3, 0.1))
    legend = figures[0].axes[0].get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "training batches\n(with dropout 0.3 and label smoothing 0.1)"


@pytest.mark.parametrize(("count", "name"), [(99, "training batches"), (100, "training batches, smoothed")])
def test_a_curve_is_called_smoothed_where_it_is(tmp_path, figures, count, name):
    values = np.random.default_rng(0).normal(size=count)
    plot_loss([{"step": step, "train_loss": value} for step, value in enumerate(values)], tmp_path / "loss.png", "")
    raw, drawn = (line.get_ydata() for line in figures[0].axes[0].get_lines())
    assert figures[0].axes[0].get_legend().get_texts()[0].get_text() == name
    assert (raw == drawn).all() == (count < 100)


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


def test_one_head_is_named_and_one_layer_stands_in_a_square(tmp_path, figures):
    weights = {"layer 1": causal_attention(4, 3)}
    plot_attention(weights, "abc", "abc", tmp_path / "layer.png", "a run")
    plot_attention({"layer 1": weights["layer 1"][2:3]}, "abc", "abc", tmp_path / "head.png", "a run", ["layer 1, head 2"])
    maps = [[axes for axes in figure.axes if axes.images] for figure in figures]
    assert maps[0][0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)
    assert [axes.get_title() for axes in maps[1]] == ["layer 1, head 2"]


def test_positions(tmp_path, figures, capsys):
    assert main(["positions", "--output", str(tmp_path / "p.png"), "--length", "20", "--width", "16", "--heads", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'p.png'}\n"
    assert_picture(tmp_path / "p.png")
    texts = [text.get_text() for text in figures[0].axes[2].get_legend().get_texts()]
    assert texts == ["sinusoidal", "rotary, 8 equal channels"]


def test_sinusoids_know_the_distance_alone():
    """sum_i cos(d theta_i): the line of the picture is that of the formula, at every pair of positions."""
    T, D = 23, 14
    table = sinusoidal_table(np.arange(T), D, np.dtype(np.float64))
    theta = 10000.0 ** (-np.arange(0, D, 2) / D)
    expected = np.cos(np.arange(T)[:, None] * theta).mean(axis=1)
    bound = bounds_of_dot(D)
    assert (abs(by_distance(table) - expected) <= bound).all()
    pairs = similarity(table)
    assert (abs(pairs - expected[abs(np.arange(T)[:, None] - np.arange(T))]) <= bound).all()


def bounds_of_dot(terms: int) -> float:
    """Rounding of a dot product of so many numbers of at most 1, with sines and quotients before it, in float64."""
    return 8 * terms * np.finfo(np.float64).eps * 2


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_a_trace_multiplies_up_to_what_the_model_computed(tmp_path, figures, kind):
    cross = kind == "cross"
    config = ModelConfig(width=16, heads=4, key_value_heads=2, qk_norm=True, position="rotary", bias=False)
    generator = np.random.default_rng(0)
    shapes = {f"{n}.weight": (8 if n in ("key", "value") else 16, 16) for n in ("query", "key", "value", "output")}
    parameters = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    parameters |= {f"{name}_norm.weight": np.ones(4) for name in ("query", "key")}
    x, memory = generator.normal(size=(1, 5, 16)), generator.normal(size=(1, 7, 16)) if cross else None
    output, cache = multi_head_attention_forward(x, memory, parameters, config, causal=not cross, cross=cross)
    traces = [trace(cache, head) for head in range(4)]
    added = sum(traced.added for traced in traces)
    np.testing.assert_allclose(added, output[0], rtol=0, atol=bounds_of_dot(16) * abs(output).max())
    traced = traces[3]
    assert (traced.x is traced.memory) == (not cross)
    np.testing.assert_array_equal(traced.key_weight, parameters["key.weight"][4:])  # heads 2 and 3 share the second
    np.testing.assert_allclose(traced.value, traced.memory @ traced.value_weight.T, rtol=1e-12)
    assert traced.also == ("norm" if cross else "norm, rotation")
    plot_trace(traced, "abcde", "fghijkl" if cross else "abcde", tmp_path / "trace.png", "a head")
    assert_picture(tmp_path / "trace.png")
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles[2] == f"$\\rightarrow\\ Q$ ({traced.also})"
    assert titles[3].startswith("memory" if cross else "input")
    numbers = [text.get_text() for text in figures[0].axes[10].texts]
    assert numbers == [f"{weight:.2f}" for weight in traced.weights.ravel() if weight > 0]
    with pytest.raises(ValueError, match="head: expected 0 to 3, got 4"):
        trace(cache, 4)


def test_a_trace_names_every_step_from_score_to_weight(tmp_path, figures):
    config = ModelConfig(width=4, heads=1, position="alibi", softcap=2.0, bias=False)
    parameters = {f"{name}.weight": np.eye(4) for name in ("query", "key", "value", "output")}
    _, cache = multi_head_attention_forward(np.eye(4)[None, :3], None, parameters, config, causal=True)
    plot_trace(trace(cache, 0), "abc", "abc", tmp_path / "trace.png", "a head")
    assert figures[0].axes[10].get_title() == "$\\rightarrow$ soft cap, ALiBi's penalty, softmax: weights $P$"


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_a_trace_says_where_half_of_its_input_is_from(cross, tmp_path, figures):
    """With the token shift a row of the input is of two tokens; cross-attention reads its own alone."""
    config = ModelConfig(width=4, heads=1, bias=False, token_shift=True)
    parameters = {f"{name}.weight": np.eye(4) for name in ("query", "key", "value", "output")}
    x, memory = np.eye(4)[None, :3], np.eye(4)[None] if cross else None
    _, cache = multi_head_attention_forward(x, memory, parameters, config, cross=cross)
    plot_trace(trace(cache, 0), "abc", "efgh" if cross else "abc", tmp_path / "trace.png", "a head")
    titles = [figures[0].axes[place].get_title() for place in (0, 3)]
    shifted = "input, right half: the token before, 4 channels"
    assert titles == (["input, 4 channels", "memory, 4 channels"] if cross else [shifted, shifted])


def test_a_dollar_sign_is_no_formula(tmp_path, figures):
    """GPT-2 has tokens of two dollar signs, and a text may have $x$ in it."""
    labels = ["$x$", "$$", "a"]
    plot_attention({"layer 0": np.full((1, 3, 3), 0.25)}, labels, labels, tmp_path / "attention.png", "a run")
    config = ModelConfig(width=4, heads=1, position="none", bias=False)
    parameters = {f"{name}.weight": np.eye(4) for name in ("query", "key", "value", "output")}
    _, cache = multi_head_attention_forward(np.eye(4)[None, :3], None, parameters, config)
    plot_trace(trace(cache, 0), labels, labels, tmp_path / "trace.png", "a head")
    for axes in (figures[0].axes[0], figures[1].axes[9]):
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert [tick.get_text() for tick in ticks] == ["$x$", "$$", "a"]
            assert not any(tick.get_parse_math() for tick in ticks)


def test_a_long_trace_is_cropped_and_says_so(tmp_path, figures):
    config = ModelConfig(width=4, heads=1, position="none", bias=False)
    generator = np.random.default_rng(0)
    parameters = {f"{name}.weight": generator.normal(size=(4, 4)) for name in ("query", "key", "value", "output")}
    _, cache = multi_head_attention_forward(generator.normal(size=(1, 40, 4)), None, parameters, config, causal=True)
    plot_trace(trace(cache, 0), "a" * 40, "a" * 40, tmp_path / "trace.png", "a head")
    assert figures[0].get_suptitle() == "a head (blue above 0, orange below)\n(the last 24 of 40 tokens; sums are over all)"


def test_statistics_write_their_numbers(tmp_path, figures):
    weights = {"layer 0": np.stack([np.eye(4), np.tri(4) / np.tri(4).sum(-1, keepdims=True)])}
    plot_statistics(weights, True, tmp_path / "statistics.png", "a run")
    assert_picture(tmp_path / "statistics.png")
    entropies, distances = ([text.get_text() for text in axes.texts] for axes in figures[0].axes)
    even = np.log([1, 2, 3, 4]).mean()
    assert entropies == ["0.00", f"{even:.2f}"]
    assert f"even attention has {even:.2f}" in figures[0].axes[0].get_title()
    assert distances == ["0.00", "0.75"]  # the mean of 0, 0.5, 1, 1.5


@pytest.mark.parametrize("view", ["layer", "head", "rollout", "statistics", "trace"])
def test_every_view_from_the_command_line(trained, tmp_path, capsys, view):
    path = tmp_path / "view" / "a.png"
    path.parent.mkdir()
    arguments = ["attention", "--run", str(trained), "--text", "the king", "--view", view, "--output", str(path)]
    chosen = {"layer": ["--layer", "1"], "rollout": [], "statistics": []}.get(view, ["--layer", "1", "--head", "1"])
    assert main([*arguments, *chosen]) == 0
    assert_picture(path)
    assert capsys.readouterr().out.strip() == str(path)
    assert main([*arguments, "--layer", "2"]) == 2
    assert f"layer: expected {'0 to 1' if chosen else 'none here'}" in capsys.readouterr().err


def test_equal_curves_are_both_seen(tmp_path, figures):
    """Some mistakes change no curve at all: what is right lies below, and broader."""
    look = {
        "step": 0,
        "gradient_norm": {"token_embedding": 1.5, "blocks.0": 0.3},
        "entropy": {"blocks.0.attention": [1.0, 2.0]},
    }
    record = {"log": [{"step": 0, "train_loss": 4.0, "validation_loss": 4.1}], "looks": [look, {**look, "step": 5}]}
    plot_pitfall("a mistake", record, record, tmp_path / "pitfall.png")
    for axes in figures[0].axes:
        for right, wrong in zip(
            [line for line in axes.lines if line.get_color() == BLUE],
            [line for line in axes.lines if line.get_color() == VERMILION],
            strict=True,
        ):
            assert np.array_equal(right.get_ydata(), wrong.get_ydata())
            assert right.get_linewidth() > wrong.get_linewidth()
            assert right.get_zorder() == wrong.get_zorder(), "drawn in the order in which they were added"
            assert axes.lines.index(right) < axes.lines.index(wrong)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(0.17, 3.2, ["0.2", "0.5", "1", "2"]), (0.04, 3.0, ["0.1", "1"]), (2e-5, 5.0, ["{-4}", "{-3}", "{-2}", "{-1}", "{0}"])],
)
def test_a_logarithmic_axis_has_labels_enough_and_no_more(low, high, labels):
    axes = plots.new_figure(3, 3).add_subplot()
    axes.set(yscale="log", ylim=(low, high))
    experiment_plots._few_ticks(axes)
    axes.figure.canvas.draw()
    shown = [tick for tick, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True) if low <= place <= high]
    assert len(shown) == len(labels)
    assert all(text in tick.get_text() for tick, text in zip(shown, labels, strict=True))
    assert all(not tick.get_text() for tick in axes.get_yticklabels(minor=True))


@pytest.mark.parametrize(
    ("study", "name", "label"),
    [
        ("heads", "2 heads", "heads: 2 heads"),
        ("dropout", "dropout 0.1", "dropout 0.1"),
        ("learning-rate", "half of it", "learning rate: half of it"),
    ],
)
def test_a_variant_is_named_once(study, name, label):
    assert experiment_plots._variant(study, name) == label
