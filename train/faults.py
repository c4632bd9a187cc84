"""Named faults for experiments: those of the proof (parity_tests/mutants.toml) by name, and a few of the laboratory's own.

A training with a fault runs the text of a room with one line changed. Nothing on disk changes: `install` has Python read the
changed text when the room is imported, so it belongs into a process of its own, before that room is first used.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from types import CodeType, ModuleType
from typing import Any

from parity_tests.mutants import BY_NAME, ROOT, Mutant, mutated_files

FAULTS = (
    Mutant(
        "twin_without_norms",
        "LayerNorm passes on what it is given.",
        "torch_impl/normalization.py",
        "return layer_norm(x, self.weight, self.bias, self.epsilon)",
        "return x",
    ),
    Mutant(
        "twin_average_of_the_past",
        "All scores are 0: every token takes the mean of what came before it.",
        "torch_impl/attention.py",
        "scores = (query * (1 / math.sqrt(K))) @ key.mT",
        "scores = (query * 0) @ key.mT",
    ),
    Mutant(
        "twin_fused_average_of_the_past",
        "The same in the fused kernel.",
        "torch_impl/flash_attention.py",
        "return _fused(query, key, value, None, causal)",
        "return _fused(query * 0, key, value, None, causal)",
    ),
    Mutant(
        "twin_without_feed_forward",
        "A block is attention alone.",
        "torch_impl/block.py",
        "return self._residual(x, feed_forward, self.feed_forward_norm, generator)",
        "return x",
    ),
    Mutant(
        "twin_new_keys_are_stale",
        "A new token enters the key-value cache with the key of the first one.",
        "torch_impl/attention.py",
        "self.key[:, :, self.length : stop] = key",
        "self.key[:, :, self.length : stop] = self.key[:, :, :1] if self.length else key",
    ),
    Mutant(
        "training_targets_not_shifted",
        "The target of a token is the token itself, in training.",
        "train/data.py",
        "np.arange(context + 1)]  # (B, T + 1)\n    return Batch(windows[:, :-1], windows[:, 1:])\n\n\ndef covering",
        "np.arange(context + 1)]  # (B, T + 1)\n    return Batch(windows[:, :-1], windows[:, :-1])\n\n\ndef covering",
    ),
    Mutant(
        "validation_targets_not_shifted",
        "The target of a token is the token itself, in validation.",
        "train/data.py",
        "windows = tokens[indices[:, None] * context + np.arange(context + 1)]  # (B, T + 1)\n"
        "    return Batch(windows[:, :-1], windows[:, 1:])",
        "windows = tokens[indices[:, None] * context + np.arange(context + 1)]  # (B, T + 1)\n"
        "    return Batch(windows[:, :-1], windows[:, :-1])",
    ),
)
OWN = {fault.name: fault for fault in FAULTS}


def fault(name: str) -> Mutant:
    """The fault of that name. Raises ValueError for a name that there is not."""
    found = OWN.get(name) or BY_NAME.get(name)
    if found is None:
        raise ValueError(f"faults: expected the name of a fault in mutants.toml or train/faults.py, got {name!r}")
    return found


def install(names: Iterable[str]) -> None:
    """From now on the rooms of these faults are imported with them. Raises ValueError for an unknown name."""
    texts = {
        file.removesuffix(".py").replace("/", "."): (file, text)
        for file, text in mutated_files(tuple(map(fault, names))).items()
    }
    loaded = texts.keys() & sys.modules.keys()
    assert not loaded, f"{sorted(loaded)}: imported before the fault was made"
    if texts:
        sys.meta_path.insert(0, _Finder(texts))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that have another text than their file."""

    def __init__(self, texts: dict[str, tuple[str, str]]) -> None:
        self._texts = texts

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._texts:
            return None
        file, text = self._texts[fullname]
        location = str(ROOT / file)
        return importlib.util.spec_from_file_location(fullname, location, loader=_Loader(fullname, location, text))


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from a text, never from the compiled file of the unchanged one."""

    def __init__(self, fullname: str, path: str, text: str) -> None:
        super().__init__(fullname, path)
        self._text = text

    def get_code(self, fullname: str) -> CodeType | Any:
        return self.source_to_code(self._text.encode(), self.path)
