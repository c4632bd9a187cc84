"""Packages that only some tasks need: imported when they are, with one line that says how to get them."""

from importlib import import_module
from types import ModuleType


def extra(package: str) -> ModuleType:
    """The module of an optional package. Raises ValueError naming the pip line when it is not installed."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"task: expected the package {error.name}, which this task needs: python -m pip install -e '.[tasks]'"
        ) from error
