"""README.md: its figures are those of the committed runs, its links lead somewhere, its commands exist."""

import re

from train.evidence import README, renewed

TEXT = README.read_text(encoding="utf-8")
COMMANDS = (
    *("train", "runs", "generate", "gpt2", "attention", "check", "complexity", "exercises", "parameters"),
    *("positions", "ablate", "pitfalls", "induction", "ladder"),
)


def test_figures_are_those_of_the_committed_runs():
    assert renewed(TEXT) == TEXT, "run `python -m train.evidence`"


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", TEXT) + re.findall(r'src="([^"]+)"', TEXT)
    assert targets
    for target in targets:
        assert (README.parent / target).exists(), target


def test_the_library_does_what_it_is_shown_to_do():
    lines = TEXT.split("**Use.**")[1].split("**Train.**")[0].splitlines()
    names = {}
    exec("\n".join(line[4:] for line in lines if line.startswith("    ")), names)
    assert names["gradients"].keys() == dict(names["model"].named_parameters()).keys()
    assert round(float(names["loss"]), 9) == round(float(names["twin_loss"].detach()), 9)
    assert all((array == names["parameters"][name]).all() for name, array in names["trained"].parameters_as_numpy().items())
    assert len(names["vocabulary"]) == names["config"].vocabulary


def test_commands_exist():
    from train.cli import parse

    for words in re.findall(r"`twinformer (\w+)", TEXT):
        assert words in COMMANDS, words
    assert parse(["generate", "--run", "runs/default-1", "--prompt", "ROMEO:", "--temperature", "0.8", "--top-k", "20"])
    assert parse(["attention", "--run", "runs/default-1", "--text", "To be, or not to be"])
    assert parse(["check", "--run", "runs/default-1", "--plot", "check.png"])
    assert parse(["ablate", "--study", "heads", "--seeds", "3", "--jobs", "2"])
