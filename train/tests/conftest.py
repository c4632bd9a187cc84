"""One small trained run and one browser, made once per worker; tests that change the run take a copy."""

import shutil

import pytest

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
