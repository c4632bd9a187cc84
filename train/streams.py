"""Separate random streams, all derived from one seed by name.

Initialisation, data order, dropout, evaluation and sampling each draw from a stream of their own, so that more of one
(evaluating twice as often, say) changes nothing in another. A stream depends only on the seed and on its own name, so a
stream that a later version adds leaves the others as they were.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NAMES = ("initialization", "data", "dropout", "evaluation", "sample")


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream `name` of `seed`: PCG64 on SeedSequence(seed, spawn_key=the name's bytes)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=tuple(name.encode()))))


def streams(seed: int) -> dict[str, np.random.Generator]:
    """All streams of one run, by name."""
    return {name: stream(seed, name) for name in NAMES}


def export_state(generators: dict[str, np.random.Generator]) -> dict[str, Any]:
    """The states of all streams as JSON values (integers of 128 bits are plain integers in JSON)."""
    return {name: generator.bit_generator.state for name, generator in generators.items()}


def import_state(generators: dict[str, np.random.Generator], state: dict[str, Any]) -> None:
    """Sets every stream to its saved state.

    Raises: ValueError when a stream is missing in `state` or its state is not one of PCG64."""
    for name, generator in generators.items():
        try:
            generator.bit_generator.state = state[name]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"checkpoint: expected the state of the random stream {name!r}, got none that fits") from error
