"""The folder that a run leaves: which one it is, what may be in it, and that nothing in it is lost by accident."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from train.checkpoint import load_arrays, write_atomically, write_json
from train.configuration import CONFIG_FILE, RUN_FORMAT, TrainConfig, flat_options, read_run_config
from train.corpus import SOURCES, expanded

CONFIG = CONFIG_FILE
LOG = "log.jsonl"
MODEL = "model.safetensors"
STATE = "state.safetensors"
LOSS = "loss.png"
ATTENTION = "attention.png"
PAGE = "attention.html"
SAMPLE = "sample.txt"
SCORES = "scores.json"
SUBWORDS = "subwords.json"
STACKS = ("encoder", "decoder", "cross")  # an encoder-decoder has a picture of each
FILES = (CONFIG, SUBWORDS, LOG, MODEL, STATE, LOSS, ATTENTION, PAGE, SAMPLE, SCORES)
KEEPS = (".json", ".jsonl", ".safetensors")  # endings of what cannot be made again from the rest
PART = ".*.part"  # of a process that was killed while it wrote
KEPT = "checkpoint-{step:08d}.safetensors"  # a model kept to be averaged
BEST = "best-{step:08d}.safetensors"  # a model whose estimated validation loss was the lowest so far
SNAPSHOT = "snapshot-{step:08d}.safetensors"  # a model kept to be looked at

# What belongs to this invocation and not to the run; it is not written into config.json.
OF_THE_CALL = ("output", "overwrite", "resume")


def choose(config: TrainConfig) -> Path:
    """The folder that `config` asks for; nothing is created or changed yet.

    Raises: ValueError when it holds something already, or cannot be written."""
    if config.resume is not None:
        if config.output is not None:
            raise ValueError("output: expected none together with --resume, which goes on in the run's own folder")
        folder = Path(config.resume)
    elif config.output is not None:
        folder = Path(config.output)
    else:
        folder = _first_free(config.preset)
    if config.resume is None and folder.is_dir() and _holds_something(folder):
        if not is_run(folder):
            raise ValueError(f"output: expected a new or empty folder, got {str(folder)!r}, which holds something else")
        if not config.overwrite and not (folder / STATE).is_file():
            raise ValueError(f"output: {str(folder)!r} holds a run without a checkpoint; choose another, or add --overwrite")
        if not config.overwrite:
            raise ValueError(f"output: {str(folder)!r} holds a run already; choose another, --resume it, or add --overwrite")
        if expanded(config.corpus).resolve() in [path.resolve() for path in own_files(folder)]:
            raise ValueError(f"corpus: expected a text outside of the run that is overwritten, got {config.corpus!r}")
        if config.init_from is not None and Path(config.init_from).resolve() == folder.resolve():
            raise ValueError(f"init_from: expected another run than the one that is overwritten, got {config.init_from!r}")
    _check_writable(folder)
    return folder


@contextlib.contextmanager
def claimed(config: TrainConfig) -> Iterator[Path]:
    """The folder that `config` asks for, made where it is new, and held while it is open; a new one that stays empty goes.

    Raises: ValueError as `choose` and `held`."""
    folder, made = _made(config)
    with held(folder, "output" if config.resume is None else "resume"):
        if not made:
            folder = choose(config)  # again, since another process may have had it until now
        try:
            yield folder
        finally:
            for new in made:
                if any(new.iterdir()):
                    break
                new.rmdir()


def _made(config: TrainConfig) -> tuple[Path, list[Path]]:
    """The folder that `config` asks for; and itself and those above it, as far as they were made here.

    Of several processes that find a folder free one makes it."""
    while True:
        folder = choose(config)
        if folder.is_dir() or config.resume is not None:
            return folder, []
        above = [path for path in folder.parents if not path.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder, [folder, *above]


def _holds_something(folder: Path) -> bool:
    return any(not path.match(PART) for path in folder.iterdir())


def is_run(folder: Path) -> bool:
    """Whether a run of ours is in the folder: other tools, too, call their files config.json and model.safetensors."""
    try:
        return bool(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["format"] == RUN_FORMAT)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


@contextlib.contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """While it is open, no other process of this machine can hold the folder. Raises: ValueError when one does; it begins
    with `name`, the option that names the folder.

    The system lets go of it when the process ends, however it ends. Without such locks (Windows) nothing is held."""
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{name}: expected a run that no other process trains, got {str(folder)!r}") from None
        yield
    finally:
        os.close(handle)


def open_for(config: TrainConfig, folder: Path, facts: dict[str, Any], files: Mapping[str, bytes], step: int = 0) -> None:
    """Creates the folder, or clears it of the run that is overwritten; writes config.json and `files`. For a run that goes
    on after `step`, config.json also says which options are other ones from there on.

    Raises: ValueError when something has come into the folder since it was chosen; OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    if config.resume is None:
        if not config.overwrite and _holds_something(folder):
            raise ValueError(f"output: expected {str(folder)!r} to be still empty; another run has begun there meanwhile")
        for path in own_files(folder):
            if path.name != CONFIG:  # it is replaced, so that at every moment the folder is a run's
                path.unlink()
    for path in folder.glob(PART):
        path.unlink()
    for name, file in files.items():
        write_atomically(folder / name, file)
    options = {name: value for name, value in flat_options(config).items() if name not in OF_THE_CALL}
    if config.corpus not in SOURCES and expanded(config.corpus).exists():
        options["corpus"] = str(expanded(config.corpus).resolve())  # a run may be resumed from anywhere
    content = {"format": RUN_FORMAT, "options": options, "text": facts, "environment": environment()}
    if config.resume is not None:
        before = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        old = flat_options(read_run_config(folder, "resume"))
        new = {name: value for name, value in options.items() if value != old[name]}
        changes = [*before.get("changes", []), *([{"after_step": step, "options": new}] if new else [])]
        content |= {"changes": changes} if changes else {}
    write_json(folder / CONFIG, content, 2)


def output_file(name: str, path: str | None, suffix: str = "") -> None:
    """Raises: ValueError for a file that has no folder, is one, is called as if it were of another format, or holds what a
    run has to keep, before the work for it is done; None is no file."""
    if path is None:
        return
    file = Path(path)
    if not file.parent.is_dir() or file.is_dir():
        raise ValueError(f"{name}: expected a file in an existing folder, got {path!r}")
    if not path.lower().endswith(suffix):
        raise ValueError(f"{name}: expected a name that ends in {suffix}, got {path!r}")
    if file.suffix in KEEPS and is_run(file.parent) and file.name in [own.name for own in own_files(file.parent)]:
        raise ValueError(f"{name}: expected a file that no run keeps, got {path!r}")


def own_files(folder: Path) -> list[Path]:
    """What a run has left in its folder."""
    names = [*FILES, *(attention_of(stack) for stack in STACKS)]
    numbered = [path for _, path in [*kept(folder), *best(folder), *snapshots(folder)]]
    return [folder / name for name in names if (folder / name).exists()] + numbered


def attention_of(stack: str, path: str = ATTENTION) -> str:
    """The name of one stack's picture: attention-cross.png."""
    return str(Path(path).with_stem(f"{Path(path).stem}-{stack}"))


def kept(folder: Path) -> list[tuple[int, Path]]:
    """Step and file of the models kept to be averaged, in order."""
    return _numbered(folder, "checkpoint")


def best(folder: Path) -> list[tuple[int, Path]]:
    """Step and file of the models that were the best so far, in order: the last is better than all before."""
    return _numbered(folder, "best")


def snapshots(folder: Path) -> list[tuple[int, Path]]:
    """Step and file of the models kept to be looked at, in order."""
    return _numbered(folder, "snapshot")


def model_of(folder: Path) -> Path:
    """The file of the finished model, or, as long as there is none, of the last that the run has kept."""
    finished = folder / MODEL
    unfinished = [*kept(folder), *snapshots(folder)]
    return finished if finished.exists() or not unfinished else max(unfinished)[1]


def _numbered(folder: Path, name: str) -> list[tuple[int, Path]]:
    found = [(re.fullmatch(rf"{name}-(\d{{8}})\.safetensors", path.name), path) for path in folder.glob(f"{name}-*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def environment() -> dict[str, Any]:
    """What the figures of a run depend on besides its options: versions, processor, number of cores."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
    }
    for package in ("twinformer", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a bare checkout
            found[package] = None
    return found


def load_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and values of the run's latest checkpoint for resuming.

    Raises: ValueError as load_arrays, and for numbers that are not finite."""
    arrays, extra = load_arrays(folder / STATE, "state")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{folder / STATE}: {name}: expected finite numbers, got NaN or inf")
    return arrays, extra


def text_of(folder: Path) -> dict[str, Any]:
    """What config.json says about the text that the run learns."""
    return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("text", {})


def references(folder: Path) -> dict[str, float]:
    """Losses to compare a run's curve with: what frequencies alone reach on its validation split, where that is noted."""
    text = text_of(folder)
    return {name: text[f"{name}_nats"] for name in ("unigram", "bigram") if f"{name}_nats" in text}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All records of log.jsonl in order; lines that are none, as a last one that a crash tore, are left out."""
    return read_records(folder / LOG, "step")


def read_records(path: Path, key: str) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file that have this key; other lines are left out, and a missing file has none."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and key in record:
                records.append(record)
    return records


def trim_log(folder: Path, step: int) -> None:
    """Drops what the log says about later than `step`, and the final figures: a resumed run writes them again."""
    kept = [record for record in read_log(folder) if record["step"] <= step and not record.get("exact", False)]
    write_atomically(folder / LOG, "".join(json.dumps(record) + "\n" for record in kept).encode())


def _first_free(name: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def _check_writable(folder: Path) -> None:
    """Finds out early, and without leaving anything, whether `folder` can be created and written."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"output: expected a folder, got {str(folder)!r}, where {str(existing)!r} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"output: expected a folder that can be written, got {str(folder)!r}")
