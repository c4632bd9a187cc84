"""Options of the proof, `--report-bounds` and `--write-bounds`, and the Hypothesis profiles "deep" and "random"."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from parity_tests import within

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twinformer" / "hypothesis"
set_hypothesis_home_dir(CACHE)  # found failures are remembered there, not in the repository
# "ci", chosen in pyproject.toml, comes with Hypothesis: derandomised, no deadline, says how to replay a failure.
settings.register_profile("deep", deadline=None, print_blob=True, max_examples=10_000)
settings.register_profile("random", deadline=None, print_blob=True, max_examples=5, database=None)
REPORT = Path(__file__).with_name("BOUNDS.md")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report-bounds", action="store_true", help="print max(error/bound) per operation, tensor and dtype")
    parser.addoption("--write-bounds", action="store_true", help=f"write the same as a table into {REPORT.name}")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """A worker of pytest-xdist has ended: its registry joins ours."""
    for operation, tensor, dtype, tally in getattr(node, "workeroutput", {}).get("bounds", []):
        within.record(operation, tensor, dtype, within.Tally(*tally))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        rows = [[*key, list(tally)] for key, tally in within.REGISTRY.items()]
        session.config.workeroutput["bounds"] = rows


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if hasattr(config, "workeroutput"):  # a part of the registry; the whole is written by the process that collects them
        return
    if config.getoption("--write-bounds") and within.REGISTRY:
        instructions = torch.backends.cpu.get_cpu_capability()
        libraries = f"NumPy {np.__version__} and torch {torch.__version__} on a processor with {instructions}"
        REPORT.write_text(within.markdown(libraries), encoding="utf-8")
        terminalreporter.write_line(f"wrote {REPORT}")
    if config.getoption("--report-bounds") and within.REGISTRY:
        terminalreporter.section("error/bound")
        terminalreporter.write_line(within.report())
