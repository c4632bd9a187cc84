"""Many small trainings: each in a process of its own, several at a time, what is finished kept in a file of JSON lines.

A job says all that was chosen for it, and its record is found again by that: a study that was interrupted goes on, and one
that is finished is only reported anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from train.configuration import TrainConfig, flat_options, train_config
from train.corpus import SOURCES, expanded
from train.faults import install
from train.progress import tqdm
from train.run_folder import read_records

PRELOADED = ["numpy", "torch", "torch._dynamo", "tyro", "safetensors.numpy"]  # slow to import, and not ours
OF_THE_CALL = ("preset", "output", "overwrite", "resume", "threads")  # change nothing in the result
Record = dict[str, Any]
Result = TypeVar("Result")


class Job(NamedTuple):
    """One training: its options by the names of the command line, its faults, and how often to look inside."""

    name: str
    options: dict[str, Any]
    faults: tuple[str, ...] = ()
    look_every: int = 0
    """Steps between looks at gradients and attention; 0 for none, and no sample at the end."""

    @property
    def key(self) -> str:
        """What was chosen, as a hash: options that differ from their defaults, faults, looks."""
        config, defaults = (flat_options(one) for one in (train_config(self.options, self.name), TrainConfig()))
        told = {name: value for name, value in config.items() if value != defaults[name] and name not in OF_THE_CALL}
        text = expanded(config["corpus"])
        if config["corpus"] not in SOURCES and text.is_file():  # the text of a name never changes
            told["corpus"] = hashlib.sha256(text.read_bytes()).hexdigest()
        content = json.dumps([told, sorted(self.faults), self.look_every], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def run_all(jobs: Sequence[Job], path: Path, at_a_time: int) -> dict[str, Record]:
    """The record of every job by its key, from the file or from a training, which is then added to the file.

    Raises: ValueError for options or faults that make no sense, before anything runs; OSError for a text that is missing."""
    wanted = {job.key: job for job in jobs}
    records = {record["key"]: record for record in read_records(path, "key") if record["key"] in wanted}
    missing = [job for key, job in wanted.items() if key not in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):  # a line that a crash tore: the next begins its own
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    stopped, writing = threading.Event(), threading.Lock()
    context = start_method()

    def run(job: Job) -> Record | None:
        if stopped.is_set():
            return None
        with tempfile.TemporaryDirectory(prefix="twinformer_") as folder:
            record = in_a_process(job.name, functools.partial(perform, Path(folder)), job, context)
        with writing, path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record

    with ThreadPoolExecutor(max(1, at_a_time)) as threads, tqdm(total=len(missing), unit="run", disable=None) as bar:
        futures = [threads.submit(run, job) for job in missing]
        try:
            for future in futures:
                record = future.result()
                assert record is not None
                records[record["key"]] = record
                bar.update()
        except BaseException as error:  # Ctrl-C, or a training that failed: no other is waited for
            stopped.set()
            while not all(future.done() for future in futures):  # one may just be starting
                for child in multiprocessing.active_children():
                    child.kill()
                time.sleep(0.01)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"stopped; the same command goes on from what is in {path}") from error
            raise
    return records


def perform(folder: Path, job: Job) -> Record:
    """Trains as the job says, in an empty folder and in this process, which must not have used the rooms of its faults
    before."""
    install(job.faults)
    from train.look import Look
    from train.loop import prepare

    options = {**job.options, "threads": 1, "output": str(folder / "run")}
    trainer = prepare(train_config(options, job.name))
    look, outcome, failure = Look(trainer, job.look_every), None, None
    try:
        outcome = trainer.run(look)
    except ValueError as error:  # the loss is not finite, which is a result here
        failure = str(error)
    finite = outcome is not None and math.isfinite(outcome.validation_loss)
    return {
        "key": job.key,
        "name": job.name,
        "seed": trainer.config.seed,
        "faults": list(job.faults),
        "loss": outcome.validation_loss if outcome is not None and finite else None,
        "scores": {} if outcome is None else {k: v for k, v in outcome.scores.items() if not isinstance(v, list)},
        "failure": failure,
        "cpu_seconds": time.process_time(),
        **look.report(finite),
    }


def in_a_process(name: str, function: Callable[[Any], Result], argument: Any, context: Any = None) -> Result:
    """What the function answers in a fresh process, silent. Raises: its ValueError or OSError as a ValueError, else a
    RuntimeError with all that it says; `name` stands in both."""
    context = context or start_method()
    answer, end = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, argument, end), daemon=True)
    process.start()
    end.close()
    try:
        result, failure, kind = answer.recv()
    except EOFError:
        process.join()
        result, failure, kind = None, f"the process ended with exit status {process.exitcode}", RuntimeError
    process.join()
    if failure:
        raise kind(f"{name}: {failure}")
    return result


def _child(function: Callable[[Any], Any], argument: Any, end: Connection) -> None:
    """Sends the result, or a text that says what went wrong and the kind of error to raise."""
    tqdm.set_lock(threading.RLock())  # its own would be shared among processes, and left behind when this one is stopped
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        try:
            end.send((function(argument), "", None))
        except (ValueError, OSError, MemoryError) as error:  # what a user can mend
            end.send((None, str(error), ValueError))
        except BaseException:
            end.send((None, traceback.format_exc(), RuntimeError))


def _end_with_the_parent() -> None:
    """Whoever is killed cannot stop us, and nobody else would read what we find."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def start_method() -> Any:
    """A way to start processes of one thread each. Where it can, a server that has imported what is slow forks them."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for us, who stop the others
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, previous)
    return context
