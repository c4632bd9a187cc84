"""Faults in training: they can be made, they act in the process that asks for them, and nothing on disk changes."""

import ast
import subprocess
import sys

import pytest

from parity_tests.mutants import BY_NAME, ROOT, mutated_files
from train.faults import FAULTS, fault


@pytest.mark.parametrize("own", FAULTS, ids=lambda own: own.name)
def test_every_fault_can_be_made(own):
    ((file, text),) = mutated_files((own,)).items()
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    assert own.name not in BY_NAME


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"expected the name of a fault in .*, got 'no_such_fault'"):
        fault("no_such_fault")


SCRIPT = """
from train.faults import install
install(["twin_without_norms", "twin_no_residual"])
import torch
from torch_impl import normalization
x = torch.ones(2, 3)
norm = normalization.Norm(__import__("reference_numpy.config").config.ModelConfig(), 3)
assert norm(x) is x
import torch_impl.block, inspect
print(torch_impl.block.__file__)
try:
    install(["twin_without_feed_forward"])
except AssertionError as error:
    print(error)
"""


def test_a_fault_acts_where_it_is_installed():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    file, refusal = done.stdout.splitlines()
    assert file == str(ROOT / "torch_impl" / "block.py")
    assert refusal == "['torch_impl.block']: imported before the fault was made"
