"""The command `twinformer`: reads the options, runs a subcommand, and turns what went wrong into one line.

Exit status: 0 done, 1 `check` found a tensor out of bounds or an exercise is not right, 2 an error that the user can mend,
130 stopped by Ctrl-C or another signal to end.
Nothing heavy is imported before a subcommand runs, so that help is quick.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import operator
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from train.commands import (
    AblateConfig,
    AttentionConfig,
    BenchConfig,
    CheckConfig,
    ComplexityConfig,
    ExercisesConfig,
    GenerateConfig,
    GPT2Config,
    InductionConfig,
    LadderConfig,
    ParametersConfig,
    PitfallsConfig,
    PositionsConfig,
    RunsConfig,
    without_effect,
)
from train.configuration import TrainConfig, preset, read_run_config
from train.parallel import reports_error

DESCRIPTION = (
    "A transformer written twice: train it on a text, let it write, look into it, check the twins against each other."
)
# Subcommand -> its options, and the module and function that carry it out, which are imported when it runs.
SUBCOMMANDS: dict[str, tuple[type, str, str]] = {
    "train": (TrainConfig, "train.report", "train_and_report"),
    "runs": (RunsConfig, "train.runs", "runs"),
    "generate": (GenerateConfig, "train.generate", "generate"),
    "attention": (AttentionConfig, "train.attention", "attention"),
    "check": (CheckConfig, "train.check", "check"),
    "exercises": (ExercisesConfig, "train.exercises", "exercises"),
    "gpt2": (GPT2Config, "train.gpt2", "gpt2"),
    "complexity": (ComplexityConfig, "train.complexity", "complexity"),
    "parameters": (ParametersConfig, "train.models", "parameters"),
    "ablate": (AblateConfig, "train.ablate", "ablate"),
    "induction": (InductionConfig, "train.induction", "induction"),
    "pitfalls": (PitfallsConfig, "train.pitfalls", "pitfalls"),
    "ladder": (LadderConfig, "train.ladder", "ladder"),
    "positions": (PositionsConfig, "train.positions", "positions"),
    "bench": (BenchConfig, "train.benchmarks.bench", "bench"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is open is closed in order
    try:
        return run(parse(sys.argv[1:] if arguments is None else list(arguments)))
    except BrokenPipeError:  # the reader of our output has seen enough, as in `twinformer check | head`
        from train.progress import discard_output

        discard_output()
        return 0
    except (ValueError, OSError, MemoryError) as error:
        _say(f"error: {' '.join(str(error).split()) or 'not enough memory'}")
        return 2
    except RuntimeError as error:
        from train.backend import out_of_memory

        what = str(error).partition("\n")[0]
        if out_of_memory(error):
            _say(f"error: not enough memory ({what})")
        elif lacks_compiler(error):
            _say(f"error: compile: expected a C++ compiler that torch can call, got: {what}")
        else:
            raise
        return 2
    except KeyboardInterrupt as interrupt:
        _say(str(interrupt) or "interrupted")
        return 130


def lacks_compiler(error: RuntimeError) -> bool:
    """Whether torch.compile means that the machine has no compiler for what it writes; the type has no public name."""
    return type(error).__name__ == "InductorError" and "compiler" in str(error).lower()


def _say(message: str) -> None:
    """One line to whoever reads the errors, if anybody does: after `2>&1 | head` nobody may."""
    if not reports_error():
        return
    try:
        print(f"twinformer: {message}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        from train.progress import discard_output

        discard_output()


def parse(arguments: list[str]) -> Any:
    """The configuration that the arguments describe. Raises: ValueError for arguments that make no sense."""
    defaults: dict[str, Any] = {"train": {"default": _starting_point(arguments)}}
    kinds = [
        Annotated[options, tyro.conf.subcommand(name, **defaults.get(name, {}))]
        for name, (options, _, _) in SUBCOMMANDS.items()
    ]
    any_of_them: Any = functools.reduce(operator.or_, kinds)  # Any: no type checker knows it
    with _parse_errors_as_value_errors():
        config = tyro.cli(
            any_of_them, prog="twinformer", description=DESCRIPTION, args=arguments, config=(tyro.conf.OmitArgPrefixes,)
        )
    for name, meant in without_effect(config).items():
        if any(argument.split("=")[0].replace("_", "-") == f"--{name.replace('_', '-')}" for argument in arguments):
            value = getattr(config if hasattr(config, name) else config.model, name)
            raise ValueError(f"{name}: expected none here, since it is for {meant}, got {value}")
    return config


def run(config: Any) -> int:
    """Runs the subcommand whose options these are and returns the exit status. What it returns is printed if it is a text,
    and is the status if it is a number.

    Raises: ValueError for several processes, where only one can do the work, and as what carries the subcommand out."""
    if not isinstance(config, TrainConfig) and (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"processes: expected one, since only `train` is shared by those of torchrun, got {count}")
    # A thread of torch's libgomp that waits for the others spins before it sleeps. On an idle machine 2000 turns cost a step
    # of training nothing against the default, and beside one other busy process on two cores it took 0.65 of the time. From
    # one short product of decoding to the next that is not enough: with 5000 a character takes 0.7 to 0.85 of the time.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000" if isinstance(config, GenerateConfig | BenchConfig) else "2000")
    # The same for NumPy's OpenBLAS, whose threads would otherwise spin for 2^26 cycles: torch's product of 1,024 x 1,024
    # matrices right after NumPy's took twice its time so. 2^20 cycles, 0.4 ms, last from one token to the next: with 2^18
    # decoding took a tenth longer, with 2^14 a fifth.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    if isinstance(config, TrainConfig) and config.threads:  # read by NumPy's BLAS library when it is loaded, which is later
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(config.threads)
    module, function = next(home for options, *home in SUBCOMMANDS.values() if isinstance(config, options))
    result = getattr(importlib.import_module(module), function)(config)
    if isinstance(result, str):
        print(result)
    return result if isinstance(result, int) else 0


def _starting_point(arguments: list[str]) -> TrainConfig:
    """What the options of `train` override: a preset, with the model of the run to begin with if there is one; or the
    options of the run to resume."""
    resume, name = _value_of("--resume", arguments), _value_of("--preset", arguments)
    if arguments[:1] != ["train"]:
        return TrainConfig()
    if resume is None:
        fresh, begin = preset(name or "default"), _value_of("--init-from", arguments)
        if begin is None:
            return fresh
        shape = read_run_config(Path(begin), "init_from").model
        return replace(fresh, model=replace(shape, dropout=fresh.model.dropout))
    if name is not None:
        raise ValueError("preset: expected none together with --resume, whose run has options of its own")
    return replace(read_run_config(Path(resume), "resume"), resume=resume)


def _value_of(option: str, arguments: list[str]) -> str | None:
    """The last value that `option` has among the arguments, as tyro has it, looked up before tyro reads them."""
    value = None
    for position, argument in enumerate(arguments):
        name, equals, given = argument.partition("=")
        if name.replace("_", "-") != option:
            continue
        if equals:
            value = given
        elif position + 1 < len(arguments):
            value = arguments[position + 1]
    return value


@contextlib.contextmanager
def _parse_errors_as_value_errors() -> Iterator[None]:
    """tyro draws a box of many lines on stderr and exits with status 2; this makes a ValueError of one line of it."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            yield
    except SystemExit as exit_:
        if exit_.code != 2:
            raise
        raise ValueError(_one_line(captured.getvalue())) from None


def _one_line(box: str) -> str:
    """The first section of tyro's box as one line, with the option or the subcommands that it suggests.

    A box is a title on its first line, then sections with horizontal rules between them, drawn in Unicode or in ASCII."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        content = line.strip(" │|")
        if re.fullmatch(r"[─╰╯+-]+", content):
            sections.append([])
        elif content:
            sections[-1].append(content)
    sections = [section for section in sections if section] or [["the arguments make no sense; see --help"]]
    message = " ".join(sections[0])
    # Values that the dataclass itself refused come with the name of an inner class before the message that we wrote.
    message = re.sub(r"^Error parsing (--[\w-]+)?[^:]*: ", lambda match: f"{match[1]}: " if match[1] else "", message)
    message = message.replace("invalid literal for int() with base 10: ", "expected a whole number, got ")
    message = message.replace("could not convert string to float: ", "expected a number, got ")
    message = re.sub(r" \(applied to [^)]*\)| Arguments are applied to the directly preceding subcommand.*", "", message)
    hint = " ".join(sections[1]) if len(sections) > 1 and sections[1][0].startswith(("Perhaps", "Available")) else ""
    if hint.startswith("Perhaps"):  # each option with its help, once for every subcommand that has it
        meant, option = [], ""
        for found, subcommand in re.findall(r"(--(?!help)[\w-]+)|in twinformer (\w+) --help", hint):
            option = found or option
            meant += [f"{option} of {subcommand}"] if subcommand else []
        hint = f"Perhaps you meant: {', '.join(meant)}"
    return "; ".join(part for part in (message, hint) if part)
