"""What a model attends to, in numbers: entropy, distance, rollout, and the models that a run keeps to be looked at."""

from dataclasses import replace

import numpy as np
import pytest

from train import run_folder
from train.checkpoint import load_arrays, load_model
from train.cli import main
from train.looking import distance, entropy, losses_near, moments, rollout
from train.loop import snapshot_steps
from train.report import train_and_report
from train.tests.runs import options, resumed, run
from train.trained import load_backend


def test_entropy_is_0_for_one_token_and_the_logarithm_for_all():
    weights = np.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(entropy(weights), [0, np.log(4), np.log(2), 0], rtol=1e-15)


def test_distance_is_0_for_oneself_and_counts_tokens_both_ways():
    weights = np.array([[0, 0, 1.0], [0.5, 0, 0.5], [0, 0.25, 0.75]])
    np.testing.assert_array_equal(distance(weights), [2, 1, 0.25])


def test_rollout_is_a_distribution_and_through_one_layer_half_of_it():
    generator = np.random.default_rng(0)
    layers = [generator.dirichlet(np.ones(5), size=(3, 5)) for _ in range(4)]
    rolled = rollout(layers)
    assert rolled.shape == (4, 5, 5)
    np.testing.assert_allclose(rolled.sum(-1), 1, rtol=1e-14)
    np.testing.assert_allclose(rolled[0], (layers[0].mean(0) + np.eye(5)) / 2, rtol=1e-15)
    one_path = rollout([np.eye(3)[None, [0, 0, 1]], np.eye(3)[None, [0, 0, 1]]])  # everyone looks one to the left, twice
    np.testing.assert_array_equal(one_path[1], [[1, 0, 0], [0.75, 0.25, 0], [0.25, 0.5, 0.25]])


def test_losses_near_a_step():
    records = [{"step": step, "train_loss": float(step)} for step in (1, 10, 95, 100, 105, 200)] + [{"step": 4}]
    assert losses_near(records, [0, 12, 100, 1000]) == [1.0, 10.0, 100.0, 200.0]
    assert losses_near([], [0, 1]) == [None, None]


def test_moments_of_a_run_end_with_the_finished_model(tmp_path):
    folder = run(options(tmp_path / "run", snapshots=3, steps=10, average=2, checkpoint_every=5))
    found = moments(folder)
    assert [step for step, _ in found] == [0, 1, 3, 5, 10]
    assert found[-1][1] == folder / run_folder.MODEL
    for _, path in found:
        assert all(array.dtype != np.float16 for array in load_backend(path, "numpy", "cpu").parameters().values())


def test_an_unfinished_run_answers_with_the_last_model_that_it_has_kept(tmp_path, capsys):
    folder = run(options(tmp_path / "run", snapshots=3, steps=10, dtype="float32"))
    (folder / run_folder.MODEL).unlink()
    snapshots = run_folder.snapshots(folder)
    assert run_folder.model_of(folder) == snapshots[-1][1]
    assert moments(folder) == snapshots
    for command in (["generate", "--length", "5"], ["check", "--against", "twin"]):
        assert main([command[0], "--run", str(folder), *command[1:]]) == 0
    assert main(["attention", "--run", str(folder), "--text", "the king", "--html", str(tmp_path / "page.html")]) == 0
    for _, path in snapshots:
        path.unlink()
    assert main(["generate", "--run", str(folder)]) == 2
    assert "model.safetensors: expected a checkpoint, found no such file" in capsys.readouterr().err


def test_the_committed_run_writes(capsys):
    """As the README says: before anything is trained."""
    assert main(["generate", "--run", "train/logs/default", "--length", "40", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out) == 42  # with the line end that it starts from, and that of print


# ----------------------------------------------------------------------------------------------------------- snapshots


def test_snapshots_are_closer_together_at_the_beginning():
    assert snapshot_steps(0, 100) == set()
    assert snapshot_steps(1, 100) == {0}
    assert snapshot_steps(5, 2000) == {0, 20, 63, 200, 632}
    assert snapshot_steps(5, 1) == {0}, "the finished model stands for the last step"


def test_snapshots_are_the_models_of_their_steps_in_half_precision(tmp_path):
    config = options(tmp_path / "run", snapshots=4, steps=10)
    seen = {}
    folder = run(config, lambda trainer: seen.update({trainer.step: trainer.backend.parameters()}))
    taken = dict(run_folder.snapshots(folder))
    assert set(taken) == snapshot_steps(4, 10) == {0, 1, 2, 5}
    assert set(taken.values()) <= set(run_folder.own_files(folder))
    for step in (1, 2, 5):
        parameters, _, _ = load_model(taken[step])
        halves, _ = load_arrays(taken[step], "model")
        for name, array in halves.items():
            assert (array.dtype, parameters[name].dtype) == (np.float16, np.float32)
            np.testing.assert_array_equal(array, seen[step][name].astype(np.float16))


def test_a_resumed_run_takes_the_snapshots_of_an_unbroken_one(tmp_path):
    config = options(tmp_path / "unbroken", snapshots=4, steps=10, schedule="constant")
    unbroken = run(config)

    def stop(trainer):
        if trainer.step == 3:
            trainer.save()
        if trainer.step == 6:
            raise InterruptedError

    broken = tmp_path / "broken"
    with pytest.raises(InterruptedError):
        run(replace(config, output=str(broken)), stop)
    assert set(dict(run_folder.snapshots(broken))) == {0, 1, 2, 5}
    (broken / run_folder.SNAPSHOT.format(step=5)).write_bytes(b"of a future that did not happen")
    run(resumed(config, broken))
    for step, path in run_folder.snapshots(unbroken):
        assert path.read_bytes() == (broken / path.name).read_bytes(), step


def test_training_with_snapshots_leaves_the_page(tmp_path, capsys):
    config = options(tmp_path / "run", snapshots=3, steps=6)
    folder = train_and_report(config).folder
    page = (folder / run_folder.PAGE).read_text(encoding="utf-8")
    assert "What the run run attends to" in page
    assert page.count('"codes":') == len(moments(folder)) + 1, "the weights of every step, and queries and keys"
    assert run_folder.PAGE in capsys.readouterr().out
