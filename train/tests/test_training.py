"""Training with either twin: the same curve; streams that do not disturb each other; resuming to the bit."""

import itertools
import json
import signal
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from torch_impl import decode
from torch_impl.block import Block
from torch_impl.optimizer import newton_schulz
from train import run_folder, schedule
from train.backend import Sampling
from train.checkpoint import load_model
from train.configuration import Optimizer, Schedule, read_run_config
from train.data import Batch, covering_batches, random_batch
from train.loop import Interrupted, mean_loss, prepare
from train.tests.runs import (
    DEPTH,
    LAYERS,
    envelope,
    exact_loss,
    losses,
    nudge_parameters,
    nudged,
    options,
    records,
    resumed,
    run,
    snapshot,
    state,
)
from train.torch_backend import _take_graphs
from train.trained import load_trained

BACKENDS = ["torch", "numpy"]


@pytest.mark.parametrize(
    ("changes", "deeper", "learnt"),
    [
        ({}, 1, 0.5),
        ({"optimizer": "muon", "learning_rate": 5e-3}, 1 + 30 / DEPTH, 0.5),
        ({"task": "masked_language_model", "position": "rotary", "batch": 9}, 1, 0.15),
        (
            {"task": "copy", "context": 17, "position": "sinusoidal", "optimizer": "muon"},
            2 + (12 * LAYERS + 30) / DEPTH,
            0.1,
        ),
    ],
    ids=["adamw", "muon", "masked", "copy"],
)
def test_loss_curves_of_the_twins_agree_over_200_steps_with_dropout(tmp_path, monkeypatch, changes, deeper, learnt):
    monkeypatch.setattr("train.generated.HELD_OUT", 20)  # the scores at the end are not what this is about
    config = options(tmp_path / "run", steps=220, warmup=20, evaluate_every=0, **changes)
    bound = deeper * envelope(tmp_path, config)
    spec = losses(tmp_path / "reference")
    twin = losses(run(replace(config, backend="torch", output=str(tmp_path / "torch"))))
    assert spec.shape == twin.shape == (220,)
    assert (np.abs(twin - spec) <= bound).all()
    assert spec[-20:].mean() < spec[:20].mean() - learnt  # it learns: a curve that stands still would prove little
    # The canary: a learning rate that differs in the eleventh digit must not pass for rounding.
    wrong = replace(config, learning_rate=config.learning_rate * (1 + 1e-11), output=str(tmp_path / "canary"))
    assert not (np.abs(losses(run(wrong)) - spec) <= bound).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_on_in_training_and_follows_the_seed(tmp_path, backend):
    first = losses(run(options(tmp_path / "a", backend=backend)))
    assert (losses(run(options(tmp_path / "b", backend=backend))) == first).all()
    assert (losses(run(options(tmp_path / "c", backend=backend, seed=1))) != first).all()
    without = losses(run(options(tmp_path / "d", backend=backend, dropout=0.0)))
    assert (without != first).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluating_more_often_changes_nothing(tmp_path, backend):
    never = run(options(tmp_path / "never", backend=backend, evaluate_every=0, evaluation_characters=50))
    often = run(options(tmp_path / "often", backend=backend, evaluate_every=1, evaluation_characters=500))
    assert state(never)[0] == state(often)[0]
    assert (losses(never) == losses(often)).all()
    assert exact_loss(never) == exact_loss(often)
    assert len(records(often)) > len(records(never))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        ("ctrl-c", {}),
        ("crash", {}),
        ("crash", {"optimizer": "muon"}),
        ("sigterm", {"task": "sort", "context": 17, "average": 2}),
        ("crash", {"task": "masked_language_model"}),
    ],
    ids=["ctrl-c", "crash", "muon", "sigterm", "masked"],
)
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(tmp_path, monkeypatch, backend, stop, changes):
    monkeypatch.setattr("train.generated.HELD_OUT", 20)
    config = options(tmp_path / "unbroken", backend=backend, checkpoint_every=8, **changes)
    unbroken = run(config)

    def break_off(trainer):
        if trainer.step == 11:
            if stop == "crash":
                raise MemoryError
            signal.raise_signal(signal.SIGINT if stop == "ctrl-c" else signal.SIGTERM)

    broken = replace(config, output=str(tmp_path / "broken"))
    with pytest.raises(MemoryError if stop == "crash" else Interrupted):
        run(broken, break_off)
    _, extra = state(tmp_path / "broken")
    assert extra["step"] == (8 if stop == "crash" else 11)
    folder = run(resumed(read_run_config(tmp_path / "broken"), tmp_path / "broken"))

    assert state(folder) == state(unbroken)
    assert records(folder) == records(unbroken)
    models = [load_model(path / "model.safetensors")[0] for path in (folder, unbroken)]
    assert all((models[0][name] == models[1][name]).all() for name in models[1])


def test_ctrl_c_says_how_to_go_on(tmp_path):
    def stop(trainer):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"stopped after step 1; to go on: twinformer train --resume .*run"):
        run(options(tmp_path / "run"), stop)
    assert {"config.json", "log.jsonl", "model.safetensors", "state.safetensors"} <= set(snapshot(tmp_path / "run"))


@pytest.mark.parametrize(("first", "second"), [("torch", "numpy"), ("numpy", "torch")])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_either_twin_goes_on_from_the_others_checkpoint(tmp_path, first, second, optimizer):
    config = options(tmp_path / "run", backend=first, steps=10, schedule="constant", optimizer=optimizer)
    folder = run(config)
    run(replace(resumed(config, folder), backend=second, steps=20))
    unbroken = run(replace(config, output=str(tmp_path / "unbroken"), steps=20))
    bound = envelope(tmp_path, replace(config, steps=20))
    assert (np.abs(losses(folder) - losses(unbroken)) <= bound).all()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 5}, "seed"),
        ({"dtype": "float32"}, "dtype"),
        ({"steps": 5}, "steps"),
        ({"validation_fraction": 0.2}, "validation_fraction"),
        ({"subwords": 7}, "subwords"),
        ({"subwords": 10**9}, "subwords"),
    ],
)
def test_resuming_another_experiment_is_refused_and_loses_nothing(tmp_path, changes, name):
    config = options(tmp_path / "run", steps=6)
    folder = run(config)
    before = snapshot(folder)
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        prepare(replace(resumed(config, folder), **changes))
    other_model = replace(config.model, width=32)
    with pytest.raises(ValueError, match=r"^width: expected 16 as in the run to resume, got 32"):
        prepare(replace(resumed(config, folder), model=other_model))
    (tmp_path / "text.txt").write_text("another text, " * 500)
    with pytest.raises(ValueError, match=r"^corpus: expected "):
        prepare(resumed(config, folder))
    assert snapshot(folder) == before


def test_the_text_may_have_moved(tmp_path):
    """What counts is what stands in it."""
    config = options(tmp_path / "run", steps=6)
    folder = run(config)
    moved = (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    run(replace(resumed(config, folder), corpus=str(moved), steps=8))
    assert records(folder)[-1]["step"] == 8


@pytest.mark.parametrize("average", [1, 2])
def test_a_crash_between_state_and_model_is_made_good(tmp_path, average):
    """Resuming a run that has done its last step writes the model that belongs to it."""
    config = options(tmp_path / "run", steps=6, checkpoint_every=3, average=average)
    folder = run(config)
    model = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    run(resumed(config, folder))
    assert (folder / "model.safetensors").read_bytes() == model


def test_what_is_not_finite_replaces_no_checkpoint(tmp_path):
    """Also where the step is not logged, so that its loss is not looked at."""
    config = options(tmp_path / "run", steps=4, checkpoint_every=4, log_every=100, evaluate_every=0)
    folder = run(config)
    before = state(folder)
    worse = replace(resumed(config, folder), steps=12, learning_rate=1e200, clip_norm=0.0)
    with pytest.raises(ValueError, match="learning_rate: a parameter or what"), np.errstate(all="ignore"):
        run(worse)
    assert state(folder) == before


def test_two_runs_do_not_share_a_folder(tmp_path):
    """Both found it free; the second to write is told."""
    config = options(tmp_path / "run")
    chosen = [run_folder.choose(config) for _ in range(2)]
    assert chosen[0] == chosen[1]
    run_folder.open_for(config, chosen[0], {}, {})
    before = snapshot(chosen[0])
    with pytest.raises(ValueError, match=r"output: expected .* to be still empty; another run has begun there meanwhile"):
        run_folder.open_for(config, chosen[1], {}, {})
    assert snapshot(chosen[0]) == before


def test_resuming_a_finished_run_reports_again_and_changes_no_figure(tmp_path):
    folder = run(options(tmp_path / "run"))
    before, log = state(folder), records(folder)
    run(resumed(read_run_config(folder), folder))
    assert (state(folder), records(folder)) == (before, log)


@pytest.mark.parametrize("backend", BACKENDS)
def test_accumulation_equals_the_large_batch(tmp_path, backend):
    """One step on three micro-batches, of unequal numbers of targets, against one step on all of it at once."""
    config = options(tmp_path / "run", backend=backend, dropout=0.0, clip_norm=0.0, batch=6, accumulate=1)
    trainers = [prepare(replace(config, output=str(tmp_path / f"{i}"))) for i in range(3)]
    batch = random_batch(trainers[0].task.split.training, 13, 6, np.random.default_rng(0))
    targets = batch.targets.copy()
    targets[0, :9] = -1  # the first micro-batch has fewer targets: a mean of means would be wrong
    parts = [Batch(batch.tokens[rows], targets[rows]) for rows in (slice(0, 1), slice(1, 3), slice(3, 6))]

    whole = trainers[0].backend.gradient_step([Batch(batch.tokens, targets)], 1e-2)
    accumulated = trainers[1].backend.gradient_step(parts, 1e-2)
    nudge_parameters(np.random.default_rng(0))(trainers[2])
    disturbed = trainers[2].backend.gradient_step([Batch(batch.tokens, targets)], 1e-2)

    unit = np.finfo(np.float64).eps
    for got, wanted, other in zip(accumulated, whole, disturbed, strict=True):
        bound = DEPTH * (abs(float(other) - float(wanted)) + unit * abs(float(wanted)))
        assert abs(float(got) - float(wanted)) <= bound
    # Adam's first moment after one step is (1 - beta1) times the gradient, so it shows every single gradient.
    moments = [{n: a for n, a in t.backend.export_state()[0].items() if n.startswith("first/")} for t in trainers]
    for name, wanted in moments[0].items():
        scale = np.abs(moments[2][name] - wanted).max() + unit * np.abs(wanted).max()
        assert (np.abs(moments[1][name] - wanted) <= DEPTH * scale).all(), name
    mean_of_means = np.mean(
        [
            float(prepare(replace(config, output=str(tmp_path / f"m{i}"))).backend.gradient_step([p], 1e-2).loss)
            for i, p in enumerate(parts)
        ]
    )
    assert abs(mean_of_means - float(whole.loss)) > DEPTH * unit * float(whole.loss)  # the canary


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_is_exact_and_independent_of_its_batch(tmp_path, backend):
    trainer = prepare(options(tmp_path / "run", backend=backend))
    tokens = trainer.task.split.validation

    def loss(sequences, backend=trainer.backend):
        return mean_loss(backend, covering_batches(tokens, 13, sequences))

    reference = loss(1)
    disturbed = prepare(options(tmp_path / "other", backend=backend))
    arrays, extra = disturbed.backend.export_state()
    disturbed.backend.import_state(nudged(arrays, np.random.default_rng(0)), extra)
    # The sum of n terms adds n roundings at most, each of at most half the spacing of the result.
    bound = DEPTH * abs(loss(1, disturbed.backend) - reference) + len(tokens) * np.finfo(np.float64).eps / 2 * reference
    assert all(abs(loss(sequences) - reference) <= bound for sequences in (2, 3, 7, 64))
    by_hand = [
        trainer.backend.evaluate_loss(Batch(tokens[None, start:stop], tokens[None, start + 1 : stop + 1]))
        for start in range(0, len(tokens) - 1, 13)
        for stop in [min(start + 13, len(tokens) - 1)]
    ]
    assert abs(sum(by_hand) / (len(tokens) - 1) - reference) <= bound
    assert abs(mean_loss(trainer.backend, covering_batches(tokens[:-1], 13, 7)) - reference) > bound  # the canary


def test_evaluation_of_the_twins_agrees_and_has_no_dropout_or_smoothing(tmp_path):
    values = {}
    for backend in BACKENDS:
        for dropout, smoothing in ((0.0, 0.0), (0.5, 0.3)):
            folder = tmp_path / f"{backend}-{dropout}"
            trainer = prepare(options(folder, backend=backend, dropout=dropout, label_smoothing=smoothing))
            values[backend, dropout] = mean_loss(trainer.backend, covering_batches(trainer.task.split.validation, 13, 8))
    assert values["torch", 0.0] == values["torch", 0.5]
    assert values["numpy", 0.0] == values["numpy", 0.5]
    unit = np.finfo(np.float64).eps
    assert abs(values["torch", 0.0] - values["numpy", 0.0]) <= DEPTH * unit * values["numpy", 0.0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # see below
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_bfloat16_trains_float32_parameters(tmp_path, monkeypatch, compiled):
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    changes = {"position": "rotary", "norm": "rms", "qk_norm": True}  # norms of queries and keys that are in bfloat16
    config = options(tmp_path / "run", dtype="bfloat16", steps=60, dropout=0.0, compile=compiled, **changes)
    folder = run(config)
    parameters, _, _ = load_model(folder / "model.safetensors")
    assert {array.dtype for array in parameters.values()} == {np.dtype(np.float32)}
    full = losses(run(replace(config, dtype="float32", compile=False, output=str(tmp_path / "full"))))
    assert losses(folder)[-10:].mean() < losses(folder)[:10].mean() - 0.3
    assert (losses(folder) != full).any()  # it did compute in another format


@pytest.mark.parametrize(
    ("stacks", "changes"), [(1, {}), (2, {"task": "copy", "context": 17, "position": "sinusoidal"})], ids=["one", "two"]
)
def test_recomputed_activations_change_nothing(tmp_path, monkeypatch, stacks, changes):
    monkeypatch.setattr("train.generated.HELD_OUT", 20)
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return checkpoint(*arguments, **options)

    monkeypatch.setattr("torch_impl.block.checkpoint", counted)
    kept = run(options(tmp_path / "kept", **changes))
    assert not calls
    again = run(options(tmp_path / "again", checkpoint_activations=True, **changes))
    assert len(calls) == 20 * 2 * stacks * LAYERS  # steps, micro-batches, blocks; none in evaluation
    assert state(again) == state(kept)  # dropout included: masks are the same the second time, and the stream goes on


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch asks itself, while tracing
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not")  # and makes one itself
@pytest.mark.parametrize(
    "changes", [{"position": "rotary", "qk_norm": True}, {"position": "alibi", "window": 3}], ids=["rotary", "alibi"]
)
def test_a_compiled_step_is_the_same_to_rounding(tmp_path, monkeypatch, changes):
    # Traced and differentiated ahead of time as in use, but run by torch itself: to compile takes a minute.
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    config = options(tmp_path / "run", steps=6, compile=True, **changes)
    bound = envelope(tmp_path, config)
    assert (np.abs(losses(run(config)) - losses(tmp_path / "reference")) <= bound).all()


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_residual_stream_in_bfloat16(tmp_path, monkeypatch, norm):
    formats = set()

    def seen(self, *arguments, **named):
        formats.add(arguments[0].dtype)
        return forward(self, *arguments, **named)

    forward = Block.forward
    monkeypatch.setattr(Block, "forward", seen)
    config = options(tmp_path / "run", dtype="bfloat16", bfloat16_residual=True, steps=60, dropout=0.0, norm=norm)
    folder = run(config)
    assert formats == {torch.bfloat16}
    wide = losses(run(replace(config, bfloat16_residual=False, output=str(tmp_path / "wide"))))
    assert formats == {torch.bfloat16, torch.float32}
    assert losses(folder)[-10:].mean() < losses(folder)[:10].mean() - 0.3
    assert 0 < np.abs(losses(folder)[:5] / wide[:5] - 1).max() < 5 * 2.0**-8  # relative spacing of bfloat16


@pytest.mark.parametrize("name", ["compile", "tf32", "bfloat16_residual", "checkpoint_activations"])
def test_what_only_torch_can_do_the_spec_refuses(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: expected none for the numpy backend"):
        options(tmp_path / "run", backend="numpy", dtype="auto", **{name: True})
    if name == "tf32":
        with pytest.raises(ValueError, match="tf32: expected none on a device other than cuda"):
            prepare(options(tmp_path / "run", tf32=True))


def test_cuda_graphs_are_for_one_model_on_a_gpu(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cuda_graphs: expected none on a device other than cuda, got them on cpu"):
        prepare(options(tmp_path / "run", cuda_graphs=True, compile=True, accumulate=1))
    monkeypatch.setattr("train.torch_backend._graphs_taken", False)
    with pytest.raises(ValueError, match="cuda_graphs: expected one process, got 2"):
        _take_graphs(torch.device("cuda"), 2)
    _take_graphs(torch.device("cuda"), 1)
    with pytest.raises(ValueError, match="cuda_graphs: expected one model per process, got a second"):
        _take_graphs(torch.device("cuda"), 1)


@pytest.mark.filterwarnings("ignore")  # the compiler warns of what it does itself, one thing or another
def test_compiled_blocks_are_recomputed_without_dropout_alone(tmp_path, monkeypatch):
    """torch's compiler cannot set NumPy's stream back, as the second forward pass would have to."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    both = {"compile": True, "checkpoint_activations": True, "steps": 2}
    with pytest.raises(ValueError, match="checkpoint_activations: expected none with compile and dropout"):
        prepare(options(tmp_path / "dropping", **both))
    run(options(tmp_path / "run", dropout=0.0, **both))


def test_a_residual_stream_stays_as_it_is_where_auto_is_not_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr("train.torch_backend.multiplies_bfloat16", lambda device: False)
    folder = run(options(tmp_path / "run", dtype="auto", bfloat16_residual=True, steps=2))
    assert read_run_config(folder).bfloat16_residual is False


@pytest.mark.parametrize(("backend", "there"), [("torch", True), ("torch", False), ("numpy", True)])
def test_auto_is_bfloat16_where_the_device_has_instructions_for_it(tmp_path, monkeypatch, backend, there):
    monkeypatch.setattr("train.torch_backend.multiplies_bfloat16", lambda device: there)
    config = options(tmp_path / "auto", steps=3, dtype="auto", backend=backend, optimizer="muon", learning_rate=5e-3)
    folder = run(config)
    found = read_run_config(folder).dtype
    assert found == ("bfloat16" if there and backend == "torch" else "float32")
    named = run(replace(config, dtype=found, output=str(tmp_path / "named")))
    assert (losses(folder) == losses(named)).all()
    run(replace(resumed(read_run_config(folder), folder), steps=3))  # a finished run is taken up as what it was


def test_muon_multiplies_in_bfloat16_where_all_does(tmp_path, monkeypatch):
    used = []

    def seen(matrix, dtype):
        used.append(dtype)
        return newton_schulz(matrix, dtype=dtype)

    monkeypatch.setattr("torch_impl.optimizer.newton_schulz", seen)
    for name in ("float32", "bfloat16"):
        run(options(tmp_path / name, steps=1, accumulate=1, dtype=name, optimizer="muon", learning_rate=5e-3))
    assert set(used[: len(used) // 2]) == {None}
    assert set(used[len(used) // 2 :]) == {torch.bfloat16}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_norm_that_is_logged_is_from_before_clipping(tmp_path, backend):
    loose = records(run(options(tmp_path / "loose", backend=backend, steps=1, clip_norm=0.0)))
    tight = records(run(options(tmp_path / "tight", backend=backend, steps=1, clip_norm=1e-3)))
    norms = [next(r["gradient_norm"] for r in run if "gradient_norm" in r) for run in (loose, tight)]
    assert norms[0] == norms[1] > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_is_summed_in_float64(tmp_path, backend):
    """With parameters in float32 too: a sum of float32 numbers would itself be one."""
    trainer = prepare(options(tmp_path / "run", backend=backend, dtype="float32"))
    losses = [trainer.backend.evaluate_loss(batch) for batch in trainer.task.validation_batches()]
    assert any(np.float64(loss) != np.float32(loss) for loss in losses)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_the_batch_alone(tmp_path, backend):
    """Whatever a step has left; without smoothing and dropout; and none are left for the next step."""
    config = options(tmp_path / "run", backend=backend)
    fresh, used = (prepare(replace(config, output=str(tmp_path / name))).backend for name in ("fresh", "used"))
    batch = Batch(np.array([[1, 2, 3], [2, 3, 4]]), np.array([[2, 3, 4], [3, 4, 5]]))
    state = used.export_state()
    used.gradient_step([batch], 1e-2)
    used.import_state(*state)
    plain = prepare(replace(config, label_smoothing=0.0, output=str(tmp_path / "plain"))).backend
    expected = plain.gradients(batch)
    for found in (fresh.gradients(batch), used.gradients(batch), used.gradients(batch)):
        assert list(found) == list(expected)
        assert all((found[name] == gradient).all() for name, gradient in expected.items())
    first, again = (each.gradient_step([batch], 1e-2) for each in (fresh, prepare(config).backend))
    assert float(first.gradient_norm) == float(again.gradient_norm)  # no gradient was left, no mask drawn


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_targets_that_do_not_count(tmp_path, backend):
    """Its loss is 0, no NaN; nor does the order of the parameters change."""
    own = prepare(options(tmp_path / "run", backend=backend)).backend
    names = list(own.parameters())
    step = own.gradient_step([Batch(np.array([[1, 2, 3]]), np.array([[-1, -1, -1]]))], 1e-2)
    assert float(step.loss) == float(step.gradient_norm) == 0
    assert list(own.parameters()) == names
    assert all(np.isfinite(value).all() for value in own.parameters().values())


def test_a_run_in_bfloat16_decodes_in_it(tmp_path, monkeypatch):
    asked = []
    honest = decode.CachedDecoder.__init__
    monkeypatch.setattr(decode.CachedDecoder, "__init__", lambda *a, **o: asked.append(o["bfloat16"]) or honest(*a, **o))
    for dtype in ("float32", "bfloat16"):
        trainer = prepare(options(tmp_path / dtype, dtype=dtype))
        trainer.backend.generate(np.array([1]), 1, np.random.default_rng(0), Sampling())
        pairs = prepare(options(tmp_path / f"{dtype}-copy", dtype=dtype, task="copy", context=17, position="sinusoidal"))
        pairs.backend.decoder(np.array([[1, 2]]), np.ones((1, 2), bool))
    assert asked == [False, False, True, True]


def test_torch_takes_as_many_threads_as_it_is_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    prepare(options(tmp_path / "run", threads=1))
    assert told == [1]


def test_accumulated_parts_are_different_batches(tmp_path, monkeypatch):
    """Numbered on through all steps: a task with epochs goes by the number."""
    trainer, numbers = prepare(options(tmp_path / "run", steps=3, accumulate=2)), []
    draw = trainer.task.training_batch
    monkeypatch.setattr(trainer.task, "training_batch", lambda n, stream: numbers.append(n) or draw(n, stream))
    trainer.run()
    assert numbers == list(range(6))


@pytest.mark.parametrize("average", [1, 3])
def test_the_exact_loss_is_that_of_the_model_that_is_saved(tmp_path, average):
    folder = run(options(tmp_path / "run", steps=9, checkpoint_every=3, average=average))
    trained = load_trained(str(folder), "torch", "cpu")
    trainer = prepare(options(tmp_path / "other"))
    parameters, extra = trainer.backend.export_state()
    saved = {f"parameters/{name}": array for name, array in trained.backend.parameters().items()}
    trainer.backend.import_state(parameters | saved, extra)
    assert mean_loss(trainer.backend, trainer.task.validation_batches()) == pytest.approx(exact_loss(folder), rel=1e-6)


def test_seconds_go_on_where_they_were(tmp_path):
    config = options(tmp_path / "run", steps=4)
    trainer = prepare(config)
    trainer.run()
    trainer.training_seconds, trainer.evaluation_seconds = 1000.0, 5000.0
    trainer.save()
    again = prepare(replace(resumed(config, trainer.folder), steps=6))
    assert (again.training_seconds, again.evaluation_seconds) == (1000.0, 5000.0)
    again.run()
    log = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    assert 1000 < log[-1]["training_seconds"] < 2000
    assert 5000 < log[-1]["evaluation_seconds"] < 6000


def test_tokens_per_second_are_of_the_steps_since_the_last_record(tmp_path):
    folder = run(options(tmp_path / "run", steps=12, log_every=4, accumulate=2, batch=3))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    training = [record for record in log if "train_loss" in record]
    for before, after in itertools.pairwise(training):
        seconds = after["training_seconds"] - before["training_seconds"]
        tokens = (after["step"] - before["step"]) * 2 * 3 * 13
        assert after["tokens_per_second"] * seconds == pytest.approx(tokens, rel=1e-6)


def test_log_has_what_a_reader_needs_and_config_what_a_rerun_needs(tmp_path):
    config = options(tmp_path / "run", log_every=5, steps=12)
    folder = run(config)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    training = [line for line in lines if "train_loss" in line]
    assert [line["step"] for line in training] == [1, 5, 10, 12]
    assert set(training[0]) == {
        "step",
        "train_loss",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
        "training_seconds",
    }
    estimates = [line for line in lines if line.get("exact") is False]
    assert [line["step"] for line in estimates] == [0, 7]
    assert lines[-1]["exact"] is True
    assert lines[-1]["bits_per_character"] == pytest.approx(lines[-1]["validation_loss"] / np.log(2), rel=1e-15)
    assert lines[-1]["characters"] == json.loads((folder / "config.json").read_text())["text"]["validation"] - 1
    again = replace(read_run_config(folder), output=str(tmp_path / "again"))
    assert records(run(again)) == records(folder)


@pytest.mark.parametrize("name", get_args(Schedule))
@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_every_schedule_is_followed_by_every_optimizer(tmp_path, name, optimizer):
    config = options(tmp_path / "run", schedule=name, optimizer=optimizer, steps=9, decay=4, adamw_learning_rate=5e-3)
    used: list[tuple[float, ...]] = []

    def look(trainer):
        optimizers = [o for o in (trainer.backend._muon, trainer.backend._adamw) if o is not None]
        used.append(tuple(group["lr"] for o in optimizers for group in o.param_groups[:1]))

    logged = [record["learning_rate"] for record in records(run(config, look)) if "learning_rate" in record]
    wanted = [schedule.learning_rate(config, step) for step in range(9)]
    assert logged == wanted
    assert len(set(wanted)) > 2
    if optimizer == "muon":
        assert used == [(rate, rate * 0.5) for rate in wanted]
    else:
        assert used == [(rate,) for rate in wanted]


def test_a_loss_that_is_not_finite_ends_the_run_with_a_reason(tmp_path):
    with pytest.raises(ValueError, match=r"learning_rate: the loss became (nan|inf)"), np.errstate(all="ignore"):
        run(options(tmp_path / "run", learning_rate=1e200, warmup=0, clip_norm=0.0))
