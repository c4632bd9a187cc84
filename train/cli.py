"""The command `twinformer`: reads the options, runs a subcommand, and turns what went wrong into one line.

Exit status: 0 done, 1 `check` found a tensor out of bounds, 2 an error that the user can mend, 130 stopped by Ctrl-C.
Nothing heavy is imported before a subcommand runs, so that help is quick.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from train.configuration import (
    AblateConfig,
    AttentionConfig,
    BenchConfig,
    CheckConfig,
    ComplexityConfig,
    GenerateConfig,
    InductionConfig,
    LadderConfig,
    ParametersConfig,
    PitfallsConfig,
    PositionsConfig,
    TrainConfig,
    preset,
    read_run_config,
)
from train.parallel import speaks

DESCRIPTION = (
    "A transformer written twice: train it on a text, let it write, look into it, check the twins against each other."
)
Command = (
    TrainConfig
    | GenerateConfig
    | AttentionConfig
    | CheckConfig
    | ComplexityConfig
    | ParametersConfig
    | PositionsConfig
    | AblateConfig
    | InductionConfig
    | PitfallsConfig
    | LadderConfig
    | BenchConfig
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    try:
        return run(parse(sys.argv[1:] if arguments is None else list(arguments)))
    except BrokenPipeError:  # the reader of our output has seen enough, as in `twinformer check | head`
        from train.progress import discard_output

        discard_output()
        return 0
    except (ValueError, OSError, MemoryError) as error:
        if speaks():
            print(f"twinformer: error: {' '.join(str(error).split()) or 'not enough memory'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        if speaks():
            print(f"twinformer: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130


def parse(arguments: list[str]) -> Command:
    """The configuration that the arguments describe. Raises: ValueError for arguments that make no sense."""
    subcommand = tyro.conf.subcommand
    # A variable, since a type checker cannot follow defaults that are known at run time only.
    commands: Any = (
        Annotated[TrainConfig, subcommand("train", default=_starting_point(arguments))]
        | Annotated[GenerateConfig, subcommand("generate")]
        | Annotated[AttentionConfig, subcommand("attention")]
        | Annotated[CheckConfig, subcommand("check")]
        | Annotated[ComplexityConfig, subcommand("complexity")]
        | Annotated[ParametersConfig, subcommand("parameters")]
        | Annotated[AblateConfig, subcommand("ablate")]
        | Annotated[InductionConfig, subcommand("induction")]
        | Annotated[PitfallsConfig, subcommand("pitfalls")]
        | Annotated[LadderConfig, subcommand("ladder")]
        | Annotated[PositionsConfig, subcommand("positions")]
        | Annotated[BenchConfig, subcommand("bench")]
    )
    with _parse_errors_as_value_errors():
        return tyro.cli(
            commands, prog="twinformer", description=DESCRIPTION, args=arguments, config=(tyro.conf.OmitArgPrefixes,)
        )


def run(command: Command) -> int:
    """Runs a subcommand and returns the exit status."""
    # A thread of torch's libgomp that waits for the others spins before it sleeps. On an idle machine 2000 turns cost a step
    # of training nothing against the default, and beside one other busy process on two cores it took 0.65 of the time. From
    # one short product of decoding to the next that is not enough: with 5000 a character takes 0.7 to 0.85 of the time.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000" if isinstance(command, GenerateConfig | BenchConfig) else "2000")
    # The same for NumPy's OpenBLAS, whose threads would otherwise spin for 2^26 cycles: torch's product of 1,024 x 1,024
    # matrices right after NumPy's took twice its time so. 2^20 cycles, 0.4 ms, last from one token to the next: with 2^18
    # decoding took a tenth longer, with 2^14 a fifth.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    match command:
        case TrainConfig():
            return _train(command)
        case GenerateConfig():
            return _generate(command)
        case AttentionConfig():
            return _attention(command)
        case CheckConfig():
            return _check(command)
        case ComplexityConfig():
            return _complexity(command)
        case ParametersConfig():
            return _parameters(command)
        case AblateConfig():
            return _ablate(command)
        case InductionConfig():
            return _induction(command)
        case PitfallsConfig():
            return _pitfalls(command)
        case LadderConfig():
            return _ladder(command)
        case PositionsConfig():
            return _positions(command)
        case BenchConfig():
            return _bench(command)


def _train(config: TrainConfig) -> int:
    if config.threads:  # read by the BLAS library under NumPy when it is loaded, which is later
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(config.threads)
    from train.report import train_and_report

    train_and_report(config)
    return 0


def _generate(config: GenerateConfig) -> int:
    from train.generate import generate

    print(generate(config))
    return 0


def _attention(config: AttentionConfig) -> int:
    from train.attention import attention

    for path in attention(config):
        print(path)
    return 0


def _check(config: CheckConfig) -> int:
    from train.check import check

    return check(config)


def _parameters(config: ParametersConfig) -> int:
    from train.models import parameters

    print(parameters(config))
    return 0


def _positions(config: PositionsConfig) -> int:
    from train.positions import positions

    print(positions(config))
    return 0


def _complexity(config: ComplexityConfig) -> int:
    from train.complexity import complexity

    print(complexity(config))
    return 0


def _ablate(config: AblateConfig) -> int:
    from train.ablate import ablate

    print(ablate(config))
    return 0


def _induction(config: InductionConfig) -> int:
    from train.induction import induction

    print(induction(config))
    return 0


def _pitfalls(config: PitfallsConfig) -> int:
    from train.pitfalls import pitfalls

    print(pitfalls(config))
    return 0


def _ladder(config: LadderConfig) -> int:
    from train.ladder import ladder

    print(ladder(config))
    return 0


def _bench(config: BenchConfig) -> int:
    from train.benchmarks.bench import bench

    print(bench(config))
    return 0


def _starting_point(arguments: list[str]) -> TrainConfig:
    """What the options of `train` override: a preset, or the options of the run to resume."""
    resume, name = _value_of("--resume", arguments), _value_of("--preset", arguments)
    if arguments[:1] != ["train"]:
        return TrainConfig()
    if resume is None:
        return preset(name or "default")
    if name is not None:
        raise ValueError("preset: expected none together with --resume, whose run has options of its own")
    return replace(read_run_config(Path(resume)), resume=resume)


def _value_of(option: str, arguments: list[str]) -> str | None:
    """The last value that `option` has among the arguments, as tyro has it, looked up before tyro reads them."""
    value = None
    for position, argument in enumerate(arguments):
        if argument == option and position + 1 < len(arguments):
            value = arguments[position + 1]
        if argument.startswith(option + "="):
            value = argument.removeprefix(option + "=")
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
    hint = " ".join(sections[1]) if len(sections) > 1 and sections[1][0].startswith(("Perhaps", "Available")) else ""
    return "; ".join(part for part in (message, hint) if part)
