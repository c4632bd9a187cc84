"""The exercises: a file of stubs, and what is said about one that is filled."""

import ast
import os

import numpy as np
import pytest

from parity_tests.parity import OPERATIONS
from train.cli import main
from train.exercises import functions_of, text
from train.tests.test_cli import refused


def verdicts(path, capsys):
    """Exit status, and what is said of each operation."""
    status = main(["exercises", "--check", str(path)])
    *lines, total = capsys.readouterr().out.splitlines()
    return status, dict(line.split(maxsplit=1) for line in lines), total


def test_the_file_has_every_operation_and_no_solution(tmp_path, capsys):
    path = tmp_path / "mine.py"
    assert main(["exercises", "--output", str(path)]) == 0
    assert capsys.readouterr().out.strip() == f"twinformer exercises --check {path}"
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == [name for each in OPERATIONS for name in functions_of(each)]
    for function in functions:
        _, body = function.body
        assert len(ast.get_docstring(function)) > 10, function.name
        assert ast.unparse(body) == "raise NotImplementedError"
    status, said, total = verdicts(path, capsys)
    assert status == 1
    assert said == dict.fromkeys(OPERATIONS, "output to be written")
    assert total == f"0 of {2 * len(OPERATIONS)} right"


def test_the_spec_solves_all(tmp_path, capsys):
    path = tmp_path / "solved.py"
    lines = ["from parity_tests.parity import OPERATIONS"]
    for operation in OPERATIONS:
        for function, part in zip(functions_of(operation), ("forward", "backward"), strict=True):
            lines.append(f"{function} = OPERATIONS[{operation!r}].{part}")
    path.write_text("\n".join(lines))
    status, said, total = verdicts(path, capsys)
    assert status == 0
    assert said == dict.fromkeys(OPERATIONS, "output right, gradients right")
    assert total == f"{2 * len(OPERATIONS)} of {2 * len(OPERATIONS)} right"


def test_what_is_wrong_is_said(tmp_path, capsys):
    """Also in a file that has some of the functions only, and others, too."""
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "gelu_tanh_forward = 5\n"
        "def embedding_forward(tokens, weight): raise SystemExit(0)\n"
        "def relu_forward(x): return np.maximum(x, 0), x\n"
        "def relu_backward(d, x): return d\n"
        "def softmax_forward(x): return np.exp(x), None\n"
        "def silu_forward(x): return x.nothing\n"
        "def gelu_forward(x, y): pass\n"
        "def rms_norm_forward(x, weight): return x * weight / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5), 0\n"
        "def dropout_forward(x, rate, keep): raise AssertionError('mine')\n"
        "def layer_norm_forward(x, w, b):\n"
        "    c = x - x.mean(2, keepdims=True)\n"
        "    return w * c / np.sqrt((c * c).mean(2, keepdims=True) + 1e-5) + b, 0\n"
        "def cross_entropy_forward(z, t):\n"
        "    z = z - z.max(-1, keepdims=True)\n"
        "    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)\n"
        "    p = np.take_along_axis(p, np.maximum(t, 0)[..., None], -1)[..., 0]\n"
        "    return np.asarray(-np.log(p)[t >= 0].mean()), 0\n"
    )
    status, said, total = verdicts(path, capsys)
    assert status == 1
    assert said["relu"].startswith("output right, gradients wrong: d_x[")
    assert said["softmax"].startswith("output wrong: output[0, 0]: inf, expected 0.73")
    assert said["silu"] == "output fails: AttributeError: 'numpy.ndarray' object has no attribute 'nothing' (line 7)"
    assert said["gelu_tanh"] == "output fails: expected a function, got 5"
    assert said["embedding"] == "output fails: SystemExit: 0 (line 3)"
    assert said["dropout"] == "output fails: AssertionError: mine (line 10)"
    assert said["layer_norm"].startswith("output fails of one axis: AxisError: axis 2 is out of bounds")
    assert said["cross_entropy"].startswith("output wrong of a target without a chance: output: inf, expected 334.")
    assert said["gelu"].startswith("output fails: ValueError: function: expected one that takes x, got one with (x, y)")
    assert said["rms_norm"] == "output right, gradients to be written"
    assert said["linear"] == "output to be written"
    assert total == f"2 of {2 * len(OPERATIONS)} right"


def test_a_change_is_seen_at_once(tmp_path, capsys):
    """Also one that leaves the length of the file and, to the second, its time: so nothing compiled is kept."""
    path = tmp_path / "mine.py"
    for sign, right in (("<", "wrong"), (">", "right")):
        path.write_text(f"import numpy as np\ndef relu_forward(x): return np.where(x {sign} 0, x, 0), x\n")
        os.utime(path, (1, 1))
        assert verdicts(path, capsys)[1]["relu"].startswith(f"output {right}")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"]


def test_the_first_lines_of_a_learner_are_enough():
    """A stub can be filled as it is: it has NumPy, and the arguments of the operation."""
    namespace = {}
    filled = text("mine.py").replace("raise NotImplementedError", "return np.maximum(x, 0), x")
    exec(compile(filled, "mine.py", "exec"), namespace)
    assert namespace["layer_norm_forward"].__defaults__ == (1e-5,)
    assert namespace["relu_forward"](np.array([-1.0, 2.0]))[0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "check: expected a Python file, got"),
        ("def", "check: expected a file that Python can run, got SyntaxError: invalid syntax"),
        ("raise SystemExit(0)", "check: expected a file that Python can run, got SystemExit: 0"),
        ("\nraise KeyError('x')", "check: expected a file that Python can run, got KeyError: 'x' (line 2)"),
    ],
)
def test_a_file_that_cannot_be_judged(tmp_path, capsys, content, message):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    assert refused(capsys, "exercises", "--check", path).startswith(message)


def test_mistakes_cost_a_line(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("mine")
    assert "expected a new file" in refused(capsys, "exercises", "--output", path)
    assert path.read_text() == "mine"
    assert "expected a name that ends in .py" in refused(capsys, "exercises", "--output", tmp_path / "mine.txt")
    (tmp_path / "mine.txt").touch()
    assert "whose name ends in .py" in refused(capsys, "exercises", "--check", tmp_path / "mine.txt")
    for arguments in ((), ("--output", "a.py", "--check", "b.py")):
        assert refused(capsys, "exercises", *arguments).startswith("output: expected it or check, one of the two, got")
