"""Packages that only some tasks and experiments need: imported when they are, with one line that says how to get them."""

from importlib import import_module
from types import ModuleType


def extra(package: str, group: str = "tasks") -> ModuleType:
    """The module of an optional package of that group. Raises ValueError naming the pip line when it is not installed."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{group}: expected the package {error.name}, which this needs: python -m pip install -e '.[{group}]'"
        ) from error
