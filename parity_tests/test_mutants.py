"""The faults of mutants.toml fit today's source, the runner tells dead from alive, and the report is of these faults."""

import ast
import json
import re

import pytest

from parity_tests import generic, mutate
from parity_tests.generic import faults_in
from parity_tests.mutants import BY_NAME, MUTANTS, ROOT, SPEC, TWICE, TWIN, mutated_files
from parity_tests.mutate import Change, Verdict


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_can_be_made(mutant):
    """Its text occurs exactly once, and what comes out is another program, and one that Python can read."""
    ((file, text),) = mutated_files((mutant,)).items()
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse((ROOT / file).read_text(encoding="utf-8")))


def test_names_and_sentences():
    assert len(MUTANTS) >= 60
    assert len(BY_NAME) == len(MUTANTS)
    assert not BY_NAME.keys() & TWICE.keys()
    for mutant in MUTANTS:
        assert re.fullmatch("[a-z0-9]+(_[a-z0-9]+)*", mutant.name)
        assert mutant.mistake.endswith(".")
        assert mutant.file.startswith(f"{TWIN}/" if mutant.name.startswith("twin_") else f"{SPEC}/")
    for package in (SPEC, TWIN):
        rooms = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py", "config.py"}
        assert {mutant.file.split("/")[1] for mutant in MUTANTS if mutant.file.startswith(package)} == rooms


def test_the_same_mistake_twice():
    for name, twice in TWICE.items():
        assert name.startswith("both_")
        files = mutated_files(tuple(BY_NAME[part] for part in twice.parts))
        assert {file.split("/")[0] for file in files} == {SPEC, TWIN}


def test_the_report_is_of_these_faults():
    """MUTANTS.md is the text of mutants.json, and that is about today's faults, all of them; no survivor is unexplained."""
    contents = json.loads(mutate.RECORD.read_text(encoding="utf-8"))
    assert mutate.REPORT.read_text(encoding="utf-8") == mutate.report(contents)
    names = [result["name"] for result in contents["results"]]
    assert names == [*BY_NAME, *TWICE], "run make mutants"
    for result in contents["results"]:
        verdict = Verdict(*(result[field] for field in Verdict._fields))
        assert result == mutate.described(verdict), f"{verdict.name} has changed since: run make mutants"
        assert verdict.outcome != "survived" or result["reason"]


TOY = {
    "pyproject.toml": "[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib']\n",
    "toy/__init__.py": "",
    "toy/room.py": "def half(x):\n    return x / 2\n",
    "parity_tests/test_other.py": "from toy.room import half\ndef test_zero():\n    assert half(0) == 0\n",
    "parity_tests/test_room.py": "from toy.room import half\ndef test_half():\n    assert half(6) == 3, half(6)\n",
}
OUTCOMES = {
    "return x / 2": Verdict("", "survived", "", "", 0),
    "return x / 3": Verdict("", "killed", "parity_tests/test_room.py::test_half", "AssertionError: 2.0", 0),
    "return (": Verdict("", "killed", "parity_tests/test_room.py", "SyntaxError: '(' was never closed", 0),
    "import os; os._exit(3)": Verdict("", "killed", "", "the process ended without an answer, exit status 3", 0),
    "while True: pass": Verdict("", "timeout", "", "no verdict after 2 s of work", 0),
}


def test_the_runner_tells_dead_from_alive(tmp_path):
    """A toy repository with a fault of each kind; faults do not see each other, and nothing is left behind."""
    for file, text in TOY.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    changes = [Change(line, {"toy/room.py": TOY["toy/room.py"].replace("return x / 2", line)}) for line in OUTCOMES]
    packages = "toy", "parity_tests"
    verdicts = list(mutate.judge_all(changes[:-1], tmp_path, packages, jobs=2, limit=300))
    verdicts += mutate.judge_all(changes[-1:], tmp_path, packages, limit=2)
    for line, verdict in zip(OUTCOMES, verdicts, strict=True):
        assert verdict._replace(seconds=0) == OUTCOMES[line]._replace(name=line)
    assert {file: (tmp_path / file).read_text(encoding="utf-8") for file in TOY} == TOY


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        mutate.main(["--only", "no_such_fault"])
    assert "expected the name of a fault in parity_tests/mutants.toml, got no_such_fault" in capsys.readouterr().err


def test_generic_faults_change_what_runs_and_nothing_else():
    pytest.importorskip("cosmic_ray", reason="only `make generic-mutants` needs it")
    text = '''"""1 + 1"""
def half(x: int | None = 2) -> "1 < 2":
    if x < 0:
        raise ValueError(f"x: expected at least {0}, got {x}")
    assert x is not None
    return x / 2
'''
    found = {(fault.line.split()[0], fault.changed.replace(" ", "")) for fault in faults_in("room.py", text)}
    for expected in ("returnx*2", "returnx/3", "returnx/1", "ifx<=0:", "ifx>=0:", "ifnotx<0:"):
        assert any(changed == expected for _, changed in found), expected
    assert {first for first, _ in found} == {"def", "if", "return"}  # nothing of what is said, to a reader or a user
    assert {changed for first, changed in found if first == "def"} == {
        f'defhalf(x:int|None={default})->"1<2":' for default in (1, 3)
    }


def test_every_survivor_has_a_reason():
    """GENERIC_MUTANTS.md is the text of generic_mutants.json; the share of the killed is what was asked for."""
    contents = json.loads(generic.RECORD.read_text(encoding="utf-8"))
    assert generic.REPORT.read_text(encoding="utf-8") == generic.report(contents)
    assert "not explained" not in generic.report(contents)
    survivors = sum(row["outcome"] == "survived" for row in contents["results"])
    assert survivors <= 0.05 * len(contents["results"])


def test_reasons_are_about_lines_that_there_are():
    files = [path for package in (SPEC, TWIN) for path in (ROOT / package).glob("*.py")]
    for reason in generic.REASONS:
        texts = [path.read_text(encoding="utf-8") for path in files if path.as_posix().endswith(reason.file)]
        assert any(reason.line in text and (reason.line or reason.changed[0] in text) for text in texts), reason


def test_a_share_with_its_uncertainty():
    low, high = generic.wilson(95, 100)
    assert low < 0.95 < high
    assert generic.wilson(0, 0) == (0.0, 1.0)
    contents = {"command": "c", "date": "d", "faults": 2, "results": [TOY_SURVIVOR]}
    text = generic.report(contents)
    assert "**0 of 1 killed, 0.0 %**" in text
    assert "not explained" in text


TOY_SURVIVOR = {
    "outcome": "survived",
    "file": "toy/room.py",
    "line": "a | b",
    "changed": "a & b",
    "name": "toy",
    "message": "",
}
