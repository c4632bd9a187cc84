"""`twinformer gpt2`: GPT-2's published weights as the model of a run, for either twin to write with and to look into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from train import run_folder
from train.checkpoint import check_shapes, save_model
from train.commands import GPT2Config
from train.configuration import TrainConfig, train_config
from train.subwords import Subwords

FILES = CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
# Names of ours to theirs. Their linear layers keep W^T; c_attn is those of queries, keys and values side by side.
OUTSIDE = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"}
INSIDE = {
    "attention_norm": "ln_1",
    "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
LINEAR = ("attention.output", "feed_forward.up", "feed_forward.down")


def gpt2(config: GPT2Config) -> str:
    """Writes the folder of a run with the published weights; returns what to do with it.

    Raises: ValueError for files that are missing, damaged or of another model, and for an output that holds something."""
    source = Path(config.weights)
    for name in FILES:
        if not (source / name).is_file():
            raise ValueError(f"weights: expected a folder with {', '.join(FILES)}, got no {name} in {str(source)!r}")
    options = _options(source / CONFIG, config)
    folder = run_folder.choose(options)
    vocabulary = Subwords.from_json((source / TOKENIZER).read_text(encoding="utf-8"))
    try:
        parameters = renamed(load_file(source / WEIGHTS), options.model.layers)
    except (SafetensorError, TypeError, KeyError, ValueError) as error:  # TypeError: a format that NumPy lacks
        raise ValueError(f"weights: expected those of GPT-2 in {str(source)!r}, got others ({error})") from error
    if len(vocabulary) != options.model.vocabulary:
        raise ValueError(f"weights: expected {options.model.vocabulary} tokens in {TOKENIZER}, got {len(vocabulary)}")
    check_shapes(source / WEIGHTS, parameters, options.model)
    run_folder.open_for(options, folder, {"symbols": len(vocabulary)}, {})
    save_model(folder / run_folder.MODEL, parameters, options.model, vocabulary, 0)
    return f"twinformer generate --run {folder} --prompt 'Alan Turing theorized that'"


def renamed(weights: Mapping[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """GPT-2's arrays under our names and in our layouts. Raises KeyError for one that is missing."""
    theirs = {name.removeprefix("transformer."): array for name, array in weights.items()}
    found: dict[str, np.ndarray] = {}
    for ours, name in OUTSIDE.items():
        parts = ("weight",) if ours.endswith("embedding") else ("weight", "bias")
        found |= {f"{ours}.{part}": theirs[f"{name}.{part}"] for part in parts}
    for layer in range(layers):
        for ours, name in INSIDE.items():
            for part in ("weight", "bias"):
                array = theirs[f"h.{layer}.{name}.{part}"]
                found[f"blocks.{layer}.{ours}.{part}"] = array.T if ours in LINEAR else array
        for part in ("weight", "bias"):
            three = np.split(theirs[f"h.{layer}.attn.c_attn.{part}"], 3, axis=-1)
            for ours, array in zip(("query", "key", "value"), three, strict=True):
                found[f"blocks.{layer}.attention.{ours}.{part}"] = array.T
    return found


def _options(path: Path, config: GPT2Config) -> TrainConfig:
    """The options of a run of this model, in the folder that is asked for. Raises ValueError for another kind of model."""
    try:
        shape: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind, activation = shape["model_type"], shape.get("activation_function", "gelu_new")
        if (kind, activation) != ("gpt2", "gelu_new") or shape.get("scale_attn_by_inverse_layer_idx"):
            raise ValueError(f"{kind} with {activation}")
        options = {
            "vocabulary": shape["vocab_size"],
            "context": shape["n_positions"],
            "width": shape["n_embd"],
            "layers": shape["n_layer"],
            "heads": shape["n_head"],
            "feed_forward": shape.get("n_inner"),
            "norm_epsilon": shape["layer_norm_epsilon"],
            "output": config.output,
            "overwrite": config.overwrite,
        }  # what else there is to choose is as in GPT-2 by default
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"weights: expected the {CONFIG} of GPT-2, got another in {str(path)!r} ({error})") from error
    return train_config(options, str(path))
