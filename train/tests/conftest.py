"""One small trained run and one browser, made once per worker; tests that change the run take a copy."""

import shutil

import pytest
from matplotlib.figure import Figure

from train import attention_plots, experiment_plots, plots
from train.report import train_and_report
from train.tests.browser import browser
from train.tests.runs import options


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_and_report(options(folder, steps=40))
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    return shutil.copytree(trained_once, tmp_path / "run")


@pytest.fixture(scope="session")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, to ask what they say."""
    saved: list[Figure] = []
    save = plots.save_figure

    def remember(figure, path):
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", remember)
    monkeypatch.setattr(attention_plots, "save_figure", remember)
    monkeypatch.setattr(experiment_plots, "save_figure", remember)
    return saved
