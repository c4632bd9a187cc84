"""`twinformer positions`: how order enters a model, as a picture: tables, their cosines, penalties on distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reference_numpy.position import alibi_slopes, rotary_tables, sinusoidal_table
from train import run_folder
from train.checkpoint import load_model
from train.commands import PositionsConfig
from train.plots import plot_positions


def positions(config: PositionsConfig) -> str:
    """Draws the picture and returns its path. Raises: ValueError for a run whose model has learned no positions."""
    run_folder.output_file("output", config.output, ".png")
    length, width = config.length, config.width
    where, name = np.arange(length), "sinusoidal"
    table = sinusoidal_table(where, width, np.dtype(np.float64))
    turned = rotary_tables(where, width // config.heads, np.dtype(np.float64)).cosine
    lines = {"sinusoidal": by_distance(table), f"rotary, {width // config.heads} equal channels": turned.mean(axis=1)}
    if config.run is not None:
        parameters, _, _ = load_model(run_folder.model_of(Path(config.run)))
        if "position_embedding.weight" not in parameters:
            raise ValueError(f"run: expected a model with learned positions, got one without in {config.run!r}")
        table, name = parameters["position_embedding.weight"].astype(np.float64), "learned"
        lines[name] = by_distance(table)
    slopes = alibi_slopes(config.heads, np.dtype(np.float64))
    plot_positions(table, similarity(table), name, lines, slopes, config.output)
    return config.output


def similarity(table: np.ndarray) -> np.ndarray:
    """The cosine of every two rows of a table (T, D), their dot product by both lengths: (T, T)."""
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    products: np.ndarray = unit @ unit.T
    return products


def by_distance(table: np.ndarray) -> np.ndarray:
    """The mean of `similarity` over all pairs at a distance: (T,), distances from 0. For sinusoids they are equal, since
    sin a sin b + cos a cos b = cos(a - b): p_t . p_s = sum_i cos((t - s) theta_i), and every p_t . p_t = D/2."""
    products = similarity(table)
    return np.array([products.diagonal(distance).mean() for distance in range(len(table))])
