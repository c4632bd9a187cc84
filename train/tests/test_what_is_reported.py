"""What is told of a run, a model or an experiment: the numbers are of what they are said to be of, in the unit they name."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from reference_numpy.config import ModelConfig
from reference_numpy.parameters import initialize
from train import (
    ablate,
    check,
    complexity,
    flops,
    induction,
    ladder,
    look,
    models,
    pitfalls,
    report,
    run_folder,
)
from train.attention_plots import MOST_TRACED, Trace, plot_statistics, plot_trace
from train.cli import main
from train.commands import LadderConfig, PitfallsConfig
from train.configuration import TrainConfig
from train.create import create_backend
from train.looking import Reading, attention_caches
from train.looking import look as look_at
from train.parallel import Processes
from train.plots import MOST_TOKENS, plot_attention
from train.streams import stream
from train.tests.runs import options
from train.tests.test_gpt2 import write_weights
from train.tests.test_models import gpt2 as count_of_gpt2
from train.trained import load_trained
from train.vocabulary import Vocabulary


def maps_of(figure):
    return [axes for axes in figure.axes if axes.images]


def shown_in(axes):
    """The numbers of a map, 0 where it is white."""
    return np.ma.filled(axes.images[0].get_array(), 0.0)


def texts(ticks):
    return [tick.get_text() for tick in ticks]


def numbered(count):
    return [str(number) for number in range(count)]


# Pictures of attention


def test_the_weights_of_long_attention_are_those_of_its_labels(tmp_path, figures):
    T, S = MOST_TOKENS + 6, MOST_TOKENS + 2
    weights = np.random.default_rng(0).dirichlet(np.ones(S), size=(2, T))
    plot_attention({"only": weights}, numbered(T), numbered(S), tmp_path / "attention.png", "a run")
    for axes, head in zip(maps_of(figures[0]), weights, strict=True):
        np.testing.assert_array_equal(shown_in(axes), head[6:, 2:])
        assert texts(axes.get_yticklabels()) == numbered(T)[6:]
        assert texts(axes.get_xticklabels()) == numbered(S)[2:]


def test_every_map_of_a_long_trace_is_of_the_last_tokens(tmp_path, figures):
    T, S, D, K = MOST_TRACED + 6, MOST_TRACED + 3, 5, 4
    generator = np.random.default_rng(0)
    shapes = {
        "x": (T, D),
        "memory": (S, D),
        "query_weight": (K, D),
        "key_weight": (K, D),
        "value_weight": (K, D),
        "query": (T, K),
        "key": (S, K),
        "value": (S, K),
        "scores": (T, S),
        "output": (T, K),
        "output_weight": (D, K),
        "added": (T, D),
    }
    of = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    weights = generator.dirichlet(np.ones(S), size=T)
    weights[-1, -2:] = 0  # masked: white in the maps of scores and weights
    plot_trace(
        Trace(**of, weights=weights, also="", then="softmax"), numbered(T), numbered(S), tmp_path / "trace.png", "a head"
    )
    scores = np.where(weights == 0, 0, of["scores"])
    rows, columns = numbered(T)[6:], numbered(S)[3:]
    expected = []
    for inputs, name, first, labels in (
        ("x", "query", 6, rows),
        ("memory", "key", 3, columns),
        ("memory", "value", 3, columns),
    ):
        expected += [(of[inputs][first:], labels, []), (of[f"{name}_weight"].T, [], []), (of[name][first:], labels, [])]
    expected += [(scores[6:, 3:], rows, columns), (weights[6:, 3:], rows, columns)]
    expected += [(of["output"][6:], rows, []), (of["added"][6:], rows, [])]
    for axes, (numbers, down, across) in zip(maps_of(figures[0]), expected, strict=True):
        np.testing.assert_array_equal(shown_in(axes), numbers, err_msg=axes.get_title())
        assert (texts(axes.get_yticklabels()), texts(axes.get_xticklabels())) == (down, across), axes.get_title()


def test_even_attention_to_a_source_is_to_all_of_it(tmp_path, figures):
    """Whatever single heads leave out, and however many heads and rows there are: ln S."""
    weights = {"layer 0": np.stack([np.full((2, 5), 0.2), np.eye(2, 5), np.eye(2, 5)])}
    plot_statistics(weights, False, tmp_path / "statistics.png", "a run")
    (axes,) = figures[0].axes
    assert axes.get_title() == f"mean entropy (nats); even attention has {math.log(5):.2f}"
    assert axes.images[0].get_clim() == (0.0, np.log([5, 5]).mean())
    assert texts(axes.texts) == [f"{math.log(5):.2f}", "0.00", "0.00"]


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_caches_are_of_the_stacks_that_they_are_named_after(kind):
    """Query and key have as many tokens in every stack, so that no shape tells them apart."""
    generator = np.random.default_rng(0)
    model = ModelConfig(kind=kind, vocabulary=5, width=4, heads=2, layers=2, context=5)
    initial = initialize(model, generator, np.float64)
    parameters = {name: array + generator.standard_normal(array.shape) for name, array in initial.items()}
    backend = create_backend(model, parameters, TrainConfig(backend="numpy"), stream(0, "dropout"))
    pair = (np.array([4, 1, 1, 0]), np.array([2, 0, 3, 4])) if kind == "encoder_decoder" else ()
    reading = Reading(np.array([0, 3, 1, 2]), *pair)
    caches = attention_caches(parameters, model, reading)
    stacks = look_at(backend, Vocabulary.from_text("abcde"), reading)
    assert list(caches) == [stack.name for stack in stacks]
    for stack in stacks:
        for cache, weights in zip(caches[stack.name], stack.weights.values(), strict=True):
            np.testing.assert_array_equal(cache.attention.weights[0], weights, err_msg=stack.name)


# Figures of a run


def test_the_norm_of_a_layer_is_the_root_of_the_squares_of_all_its_parts():
    gradients = {
        "token_embedding.weight": np.array([[3.0, 0.0], [0.0, 4.0]]),
        "blocks.0.attention.query.weight": np.array([[2.0, 3.0]]),
        "blocks.0.feed_forward.up.bias": np.array([6.0]),
        "encoder.blocks.1.attention_norm.weight": np.array([5.0, 12.0]),
    }
    assert look.norms(gradients) == {"token_embedding": 5.0, "blocks.0": 7.0, "encoder.blocks.1": 13.0}


def test_what_the_system_counts_in_kibibytes_is_told_in_bytes(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  999999 kB\nVmHWM:\t    2051 kB\nVmRSS:\t    1024 kB\n")
    monkeypatch.setattr(flops, "gpu_name", lambda: None)
    monkeypatch.setattr(flops, "Path", {"/proc/self/status": status}.__getitem__)
    assert flops.peak_memory() == 2051 * 1024


@pytest.mark.parametrize("devices", [1, 4])
def test_utilisation_is_of_the_median_speed_after_the_first_and_of_all_devices(tmp_path, monkeypatch, devices):
    config = options(tmp_path / "run")
    monkeypatch.setattr(report, "gpu_name", lambda: "a GPU")
    monkeypatch.setattr(report, "peak_flops", lambda *of: {("a GPU", "float64", False): 2.0**26}[of])
    speeds = [1.0, 700.0, 500.0, 1500.0]  # the first has what was compiled in it
    log = [{"step": step, "tokens_per_second": speed} for step, speed in enumerate(speeds)] + [{"step": 3, "seconds": 1.0}]
    L, D, T, V = config.model.layers, config.model.width, config.model.context, config.model.vocabulary
    a_token = 6 * (12 * L * D * D + V * D) + 12 * L * T * D
    share = 700 * a_token / (2**26 * devices)
    assert report.utilisation(config, log, devices) == share
    assert report.utilisation(config, log[:1], devices) is None
    monkeypatch.setattr(report, "peak_memory", lambda: 2.5e9)
    monkeypatch.setattr(run_folder, "read_log", lambda folder: log)
    trainer = SimpleNamespace(config=config, folder=tmp_path, processes=Processes(0, devices))
    (line,) = report._of_the_machine(trainer)
    assert line.startswith(f"2.50 GB of memory at most, {100 * share:.1f} % of what the a GPU can do")


def test_the_curve_names_all_that_training_alone_had(tmp_path, figures):
    (tmp_path / run_folder.CONFIG).write_text("{}")
    (tmp_path / run_folder.LOG).write_text('{"step": 1, "train_loss": 2.0}\n')
    config = options(tmp_path / "run", dropout=0.25, label_smoothing=0.125, input_noise=0.5)
    trainer = SimpleNamespace(config=config, task=SimpleNamespace(unit="character"), folder=tmp_path)
    report._draw_loss(trainer, SimpleNamespace(validation_loss=1.5))
    (training,) = texts(figures[0].axes[0].get_legend().get_texts())
    assert training == "training batches\n(with dropout 0.25 and label smoothing 0.125 and input noise 0.5)"


def test_the_best_model_is_the_last_that_was_better(tmp_path):
    for step in (7, 3):
        (tmp_path / run_folder.BEST.format(step=step)).touch()
    trainer = SimpleNamespace(config=SimpleNamespace(keep_best=True), folder=tmp_path)
    assert report._of_which(trainer) == ["of the model after step 7, whose estimate was the lowest"]


@pytest.mark.parametrize("last", [run_folder.KEPT, run_folder.SNAPSHOT], ids=["to be averaged", "to be looked at"])
def test_the_model_of_an_unfinished_run_is_the_latest_for_whatever_it_was_kept(tmp_path, last):
    for name, step in [(run_folder.KEPT, 2), (run_folder.SNAPSHOT, 4), (last, 9)]:
        (tmp_path / name.format(step=step)).touch()
    assert run_folder.model_of(tmp_path) == tmp_path / last.format(step=9)
    (tmp_path / run_folder.MODEL).touch()
    assert run_folder.model_of(tmp_path) == tmp_path / run_folder.MODEL


# Models and their check


def test_how_far_a_count_is_off_is_a_share_of_what_was_published():
    total = count_of_gpt2(8, 1, 10, 6)
    config = ModelConfig(width=8, heads=2, layers=1, vocabulary=10, context=6)
    shown = models.table("small", models.KnownModel(config, total // 2, "by hand", "No note."))
    assert shown.endswith(f"by hand: {total // 2:,}; the sum is +100.0 %.\nNo note.")


def test_gpt2_has_the_epsilon_and_the_inner_width_of_its_files(tmp_path):
    folder = write_weights(tmp_path / "weights")
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(shape | {"layer_norm_epsilon": 0.25, "n_inner": 20}))
    weights = load_file(folder / "model.safetensors")
    for layer in range(shape["n_layer"]):
        mlp = f"h.{layer}.mlp"
        weights[f"{mlp}.c_fc.weight"] = weights[f"{mlp}.c_fc.weight"][:, :20].copy()
        weights[f"{mlp}.c_fc.bias"] = weights[f"{mlp}.c_fc.bias"][:20]
        weights[f"{mlp}.c_proj.weight"] = weights[f"{mlp}.c_proj.weight"][:20]
    save_file(weights, folder / "model.safetensors")
    assert main(["gpt2", "--weights", str(folder), "--output", str(tmp_path / "run")]) == 0
    model = load_trained(str(tmp_path / "run"), "numpy", "cpu").model
    assert (model.norm_epsilon, model.feed_forward) == (0.25, 20)


def test_a_witness_that_could_not_answer_everything_names_the_place_where_it_is_off():
    probes = [
        check.Probe(place, np.ones((2, 3)), np.longdouble(slope), 0.5)
        for place, slope in [(None, 1.0), ((0, 0), 2.0), ((1, 2), 4.0)]
    ]
    answers = [None, (np.longdouble(2.0), 0.5), (np.longdouble(8.0), 0.5)]
    assert check._along("differences", probes, answers) == {"differences": check.Finding(4.0, 0.5, 4.0, (1, 2))}


# Experiments


def test_the_table_of_complexity_has_milliseconds_and_mebibytes():
    record = {"form": "tiled", "T": 512, "seconds": 0.0125, "bytes": 48 * 2**20}
    lines = complexity.table([record], {}).splitlines()
    assert [line.split() for line in lines[:2]] == [["T", "form", "ms", "MiB"], ["512", "tiled", "12.50", "48.00"]]


def test_the_loss_falls_from_the_first_step_below_the_one_to_the_first_below_the_other():
    losses = {0: 4.0, 10: 2.875, 20: 1.125, 30: 0.875, 40: 2.0, 50: 0.25}
    history = [{"step": step, "loss_seen": loss} for step, loss in losses.items()]
    assert induction.drop(history, 4.0) == {"from": 10, "to": 30}
    assert induction.drop(history[:3], 4.0) == {"from": 10, "to": None}


def test_the_summary_of_induction_names_the_best_heads():
    two = {"loss_seen": 0.5, "previous": [[0.25, 0.75], [0.125, 0.5]], "induction": [[0.25, 0.0], [0.875, 0.5]]}
    layers = {"2": [two], "1": [{"loss_seen": 2.5}]}
    said = induction.summary({"layers": layers, "drop": {"from": 10, "to": 30}, "chance": 3.5})
    assert said.splitlines() == [
        "loss on seen symbols at the end: 0.500 nats with two layers, 2.500 with one (chance 3.500)",
        "it was first found below three quarters of chance at step 10, below one quarter at step 30",
        "score previous: highest 0.750, in layer 0, head 1",
        "score induction: highest 0.875, in layer 1, head 0",
    ]


def test_a_rung_is_trained_from_the_seed_that_was_asked_for():
    job = ladder._job("heads", {"preset": "ladder-heads", "faults": ["twin_no_residual"]}, LadderConfig(seed=7, steps=5))
    assert (job.options["seed"], job.options["steps"], job.faults) == (7, 5, ("twin_no_residual",))


def test_what_the_command_says_comes_before_the_file_of_pitfalls(tmp_path, monkeypatch):
    """And what the file says of one pitfall before what it says of all."""
    file = tmp_path / "pitfalls.toml"
    file.write_text(
        '[base]\ncorpus = "of all"\nsteps = 300\nheads = 4\n'
        '[one]\ntitle = "One"\nrecognise = "Somehow."\nmistake = "None."\n'
        'options = { corpus = "its own", steps = 40, heads = 1 }\n'
    )
    monkeypatch.setattr(pitfalls, "PITFALLS_FILE", file)
    plans = {steps: pitfalls.plan(PitfallsConfig(steps=steps))[0].options for steps in (None, 5)}
    assert plans[None] == {"corpus": "its own", "steps": 40, "heads": 1}
    assert plans[5] == plans[None] | {"steps": 5}
    (asked,) = pitfalls.plan(PitfallsConfig(corpus="asked for"))
    assert asked.options == plans[None] | {"corpus": "asked for"}


def test_the_time_of_a_variant_is_the_mean_over_its_seeds():
    records = [{"loss": 2.0 + seconds, "parameters": 1, "cpu_seconds": seconds} for seconds in (1.0, 2.0, 6.0)]
    (summary,) = ablate.summaries([ablate.Variant("baseline", "baseline", {}, ())], [records])
    assert (summary["cpu_seconds"], summary["mean"]) == (3.0, 5.0)
