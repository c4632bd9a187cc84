"""The command line: what it leaves, what it says, and that a mistake costs one line and nothing else."""

import functools
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from torch_impl.linear import PackedLinear
from train.cli import main, parse
from train.configuration import preset
from train.generate import BETWEEN
from train.tests.runs import records, snapshot, write_text

TINY = ["train", "--preset", "tiny", "--device", "cpu"]


def command(*arguments, cwd):
    """Runs `python -m train` as a user does, in another process."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "train", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def refused(capsys, *arguments) -> str:
    """The one line that a mistake costs."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("twinformer: error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err.removeprefix("twinformer: error: ").strip()


def test_train_leaves_a_run_folder_and_says_so(tmp_path):
    write_text(tmp_path / "text.txt")
    done = command(*TINY, "--corpus", "text.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny-1"
    assert set(snapshot(folder)) == {
        "config.json",
        "log.jsonl",
        "loss.png",
        "attention.png",
        "sample.txt",
        "model.safetensors",
        "state.safetensors",
    }
    exact = records(folder)[-1]["validation_loss"]
    assert f"exact validation loss {exact:.4f} nats per character" in done.stdout
    assert "bits per character" in done.stdout
    assert os.path.join("runs", "tiny-1") in done.stdout
    assert len((folder / "sample.txt").read_text()) == 101  # the newline that it starts from, and 100 characters
    assert "Warning" not in done.stderr
    again = command(*TINY, "--corpus", "text.txt", "--steps", "2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "runs" / "tiny-2").is_dir()


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_a_resumed_run_writes_the_files_of_an_unbroken_one(tmp_path, backend):
    """From the command line: half the steps first, then --resume with all of them."""
    text = str(write_text(tmp_path / "text.txt"))
    base = [*TINY, "--corpus", text, "--backend", backend, "--schedule", "constant"]
    assert main([*base, "--output", str(tmp_path / "unbroken")]) == 0
    assert main([*base, "--output", str(tmp_path / "broken"), "--steps", "20"]) == 0
    assert main(["train", "--resume", str(tmp_path / "broken"), "--steps", "50"]) == 0
    for name in ("sample.txt", "attention.png", "model.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    options_of = [json.loads((tmp_path / n / "config.json").read_text())["options"] for n in ("broken", "unbroken")]
    assert options_of[0] == options_of[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of {train, runs, generate, attention, check"),
        (["tarin"], "Unrecognized options: tarin; Available subcommands: train"),
        (
            ["train", "--stpes", "3"],
            "Unrecognized options: --stpes, 3; Perhaps you meant: --steps of train",
        ),
        (
            ["train", "--length", "3"],
            "Unrecognized or misplaced options: --length 3; Perhaps you meant: --length-penalty of train",
        ),
        (["train", "--steps", "many"], "--steps: expected a whole number, got 'many'"),
        (["train", "--steps"], "Missing value for argument '--steps'"),
        (["train", "--backend", "jax"], "invalid choice 'jax' for argument '--backend'"),
        (["train", "--device", "tpu"], "invalid choice 'tpu' for argument '--device'"),
        (["train", "--dtype", "int8"], "invalid choice 'int8' for argument '--dtype'"),
        (["train", "--heads", "3"], "heads: expected a divisor of the width 128, got 3"),
        (["train", "--steps", "0"], "steps: expected at least 1, got 0"),
        (["train", "--batch", str(2**63)], f"batch: expected at most {2**63 - 1}, got {2**63}"),
        (["train", "--learning-rate", "nan"], "learning_rate: expected a finite number above 0, got nan"),
        (["train", "--preset", "huge"], "preset: expected one of default, nanogpt-cpu, fast, tiny"),
        (["train", "--corpus", "no-such-text"], "corpus: expected one of shakespeare, tinyshakespeare, or the path"),
        (["train", "--resume", "no-such-run"], "resume: expected the folder of a run"),
        (["train", "--resume", "x", "--preset", "tiny"], "preset: expected none together with --resume"),
        (["generate"], "Missing from twinformer generate: --run STR"),
        (["generate", "--run", "no-such-run"], "run: expected the folder of a run"),
        (["generate", "--run", "x", "--temperature", "-1"], "temperature: expected a finite number of at least 0"),
        (["generate", "--run", "x", "--top-p", "0"], "top_p: expected above 0 and at most 1"),
        (["generate", "--run", "x", "--prompt", ""], "prompt: expected at least one character"),
        (["generate", "--run", "x", "--source", "a", "--prompt", "b"], "prompt: expected none beside a source, got 'b'"),
        (["generate", "--run", "x", "--beams", "3"], "beams: expected none without a source to answer, got 3"),
        (
            ["generate", "--run", "x", "--length-penalty", "0"],
            "length_penalty: expected none without a source",
        ),
        (["attention", "--run", "x", "--html", "x.html", "--view", "head"], "view: expected none beside html, whose page"),
        (
            ["generate", "--run", "x", "--backend", "numpy", "--dtype", "bfloat16"],
            "dtype: expected float32 for the numpy backend, got bfloat16",
        ),
        (["attention", "--run", "no-such-run", "--text", "x"], "run: expected the folder of a run"),
        (["check", "--sequences", "0"], "sequences: expected at least 1, got 0"),
        (["train", "--threads", "100000"], "threads: expected at most 1024, got 100000"),
        (["train", "--length-penalty", "600"], "length_penalty: expected at most 10, got 600"),
        (
            ["generate", "--run", "x", "--source", "a", "--length-penalty", "600"],
            "length_penalty: expected at least 0 and at most 10, got 600",
        ),
        (["train", "--corpus", "~nobody123/x"], "corpus: expected one of shakespeare, tinyshakespeare, or the path"),
        (["attention", "--run", "x", "--output", "nowhere/x.png"], "output: expected a file in an existing folder, got"),
        (["attention", "--run", "x", "--html", "nowhere/x"], "html: expected a file in an existing folder, got"),
        (["positions", "--output", "."], "output: expected a file in an existing folder, got '.'"),
        (["positions", "--output", "x.pdf"], "output: expected a name that ends in .png, got 'x.pdf'"),
    ],
)
def test_options_that_make_no_sense(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\n \n", "an empty file"),
        (bytes(range(256)) * 9, "a binary file"),
        (b"caf\xe9 " * 300, "byte 0xe9 at offset 3"),
        (b"To be or not to be", "context: expected fewer characters than the"),
        (b"To be or not to be. " * 7, "context: expected fewer characters than the validation split has"),
    ],
)
def test_texts_that_cannot_be_learnt(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_bytes(content)
    assert message in refused(capsys, *TINY, "--corpus", "text")
    assert snapshot(tmp_path) == {"text": content}
    assert not (tmp_path / "runs").exists()


def test_folders_that_cannot_be_written_or_hold_something(tmp_path, trained, capsys):
    text = str(trained.parent / "text.txt")
    write_text(trained.parent / "text.txt")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("the only copy")
    before = snapshot(tmp_path)
    train = [*TINY, "--corpus", text, "--output"]
    assert "where" in refused(capsys, *train, text)
    assert "is a file" in refused(capsys, *train, text + "/below/a/file")
    assert "holds a run already" in refused(capsys, *train, trained)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.json").write_bytes((trained / "config.json").read_bytes())
    shutil.copytree(trained, tmp_path / "foreign")  # another tool's model, whose files have the same names
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "gpt2"}')
    shutil.copyfile(text, trained / "sample.txt")
    before = snapshot(tmp_path)
    assert "holds a run without a checkpoint" in refused(capsys, *train, tmp_path / "killed")
    assert "holds something else" in refused(capsys, *train, tmp_path / "other")
    assert "holds something else" in refused(capsys, *train, tmp_path / "other", "--overwrite")
    assert "holds something else" in refused(capsys, *train, tmp_path / "foreign", "--overwrite")
    assert "corpus: expected a text outside of the run that is overwritten" in refused(
        capsys, *TINY, "--corpus", trained / "sample.txt", "--output", trained, "--overwrite"
    )
    assert "together with --resume" in refused(capsys, "train", "--resume", trained, "--output", tmp_path / "new")
    assert snapshot(tmp_path) == before


def test_the_last_of_two_presets_counts():
    config = parse(["train", "--preset", "tiny", "--preset", "fast"])
    assert (config.preset, config.model.width) == ("fast", preset("fast").model.width)


def test_a_name_is_no_formula(tmp_path):
    """Drawn as it is, whatever it has in it."""
    text = write_text(tmp_path / "we$ird_{x$.txt")
    assert main([*TINY, "--steps", "2", "--corpus", str(text), "--output", str(tmp_path / "run$_{$")]) == 0
    assert (tmp_path / "run$_{$" / "loss.png").exists()


@pytest.mark.parametrize("errors", [subprocess.PIPE, subprocess.STDOUT], ids=["output", "both"])
def test_a_reader_that_goes_stops_training_as_ctrl_c_does(tmp_path, errors):
    """As in `twinformer train | head -1`: a checkpoint is saved, and standard error says how to go on. After `2>&1 | head`
    nobody reads that either, and the status alone tells it."""
    text = write_text(tmp_path / "text.txt")
    own = ["--steps", "100000", "--evaluate-every", "2", "--corpus", str(text), "--output", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-m", "train", *TINY, *own], stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        said = None if process.stderr is None else process.stderr.read()
    assert process.returncode == 130
    assert said is None or "to go on: twinformer train --resume" in said.splitlines()[-1]
    assert (tmp_path / "run" / "state.safetensors").exists()


def test_a_text_of_one_line_can_be_gone_on_from(tmp_path, capsys):
    (tmp_path / "line.txt").write_text("abcd" * 200)
    assert main([*TINY, "--steps", "2", "--corpus", str(tmp_path / "line.txt"), "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["generate", "--run", str(tmp_path / "run"), "--length", "5", "--device", "cpu"]) == 0
    written = capsys.readouterr().out.removesuffix("\n")
    assert written[0] == "a"
    assert len(written) == 6


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_an_error_before_training(tmp_path, capsys):
    text = write_text(tmp_path / "text.txt")
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "can be written" in refused(capsys, *TINY, "--corpus", text, "--output", tmp_path / "locked" / "run")


def test_a_disk_that_refuses_is_an_error_before_training(tmp_path, monkeypatch, capsys):
    text = write_text(tmp_path / "text.txt")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert main([*TINY, "--corpus", str(text), "--output", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert captured.err.strip().splitlines()[-1] == "twinformer: error: [Errno 13] Permission denied"
    assert not (tmp_path / "run").exists()


def test_a_run_is_overwritten_only_when_asked_and_only_its_own_files(tmp_path, trained):
    text = str(write_text(tmp_path / "text.txt"))
    (trained / "notes.txt").write_text("mine")
    assert main([*TINY, "--steps", "2", "--corpus", text, "--output", str(trained), "--overwrite"]) == 0
    assert (trained / "notes.txt").read_text() == "mine"
    assert records(trained)[-1]["step"] == 2


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing"])
def test_damaged_runs(tmp_path, trained, capsys, name, damage):
    write_text(tmp_path / "text.txt")
    path = trained / name
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-5])
        case "foreign":
            path.write_bytes(b'{"from": "elsewhere"}')
        case "missing":
            path.unlink()
    before = snapshot(tmp_path)
    if name != "state.safetensors":
        assert "expected" in refused(capsys, "generate", "--run", trained)
        assert "expected" in refused(capsys, "attention", "--run", trained, "--text", "the", "--output", tmp_path / "a.png")
    if name != "model.safetensors":
        assert "expected" in refused(capsys, "train", "--resume", trained)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_texts_that_a_model_cannot_read(trained, capsys, tmp_path, backend):
    arguments = ["--run", trained, "--backend", backend]
    message = refused(capsys, "generate", *arguments, "--prompt", "the €")
    assert message == "prompt: character '€' (U+20AC) at position 4 is not in the vocabulary"
    output = ["--output", tmp_path / "a.png"]
    assert "text: character 'Q'" in refused(capsys, "attention", *arguments, *output, "--text", "the Q")
    assert "text: expected at most 13 characters" in refused(
        capsys, "attention", *arguments, *output, "--text", "the king " * 2
    )
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--optimizer", "adamw", "--momentum", "0.9"],
            "momentum: expected none here, since it is for optimizer muon, got 0.9",
        ),
        (["train", "--optimizer=adamw", "--adamw_learning_rate=1"], "adamw_learning_rate: expected none here"),
        (["train", "--schedule", "constant", "--minimum-learning-rate", "0"], "schedules cosine and stable_decay"),
        (
            ["train", "--preset", "nanogpt-cpu", "--decay", "3"],
            "decay: expected none here, since it is for schedule stable_decay",
        ),
        (["train", "--parallel", "fsdp"], "parallel: expected none here, since it is for several processes, which torchrun"),
        (["train", "--beams", "2"], "beams: expected none here, since it is for tasks on pairs, got 2"),
        (
            ["train", "--preset", "copy", "--corpus", "mine.txt"],
            "corpus: expected none here, since it is for tasks that read one",
        ),
        (["train", "--preset", "multi30k", "--batch", "2"], "batch: expected none here"),
        (["train", "--task", "masked_language_model", "--sample-length", "2"], "sample_length: expected none here"),
        (["generate", "--run", "x", "--source", "a", "--top-k", "3"], "top_k: expected none here"),
        (
            ["attention", "--run", "x", "--html", "x.html", "--head", "0"],
            "head: expected none here, since it is for views head and",
        ),
        (["attention", "--run", "x", "--html", "x.html", "--output", "x.png"], "output: expected none here"),
        (["generate", "--run", "x", "--temperature", "0", "--top-p", "0.5"], "is for temperatures above 0, got 0.5"),
        (
            ["generate", "--run", "x", "--source", "a", "--beams", "1", "--length-penalty", "2"],
            "length_penalty: expected none",
        ),
        (
            ["check", "--batch", "b.npz", "--length", "3"],
            "length: expected none here, since it is for a batch that",
        ),
        (["check", "--against", "twin", "--elements", "7"], "it is for witnesses differences and complex, got 7"),
    ],
)
def test_an_option_without_effect_is_refused(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize("option", [("--initial-deviation", "0.5"), ("--zero-projections",)])
def test_parameters_of_another_run_are_not_drawn(trained, capsys, option):
    assert "expected none here, since it is for parameters that are drawn, got" in refused(
        capsys, "train", "--init-from", trained, *option
    )


def test_a_preset_may_hold_what_another_option_makes_idle():
    """Only what somebody has typed is refused."""
    assert parse(["train", "--preset", "fast", "--schedule", "cosine", "--optimizer", "adamw"]).decay > 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "log.jsonl"])
def test_nothing_that_a_run_keeps_is_written_over(trained, capsys, tmp_path, name):
    path = trained / name
    before = path.read_bytes()
    assert "json: expected a file that no run keeps, got" in refused(capsys, "check", "--run", trained, "--json", path)
    assert path.read_bytes() == before
    message = refused(capsys, "attention", "--run", trained, "--text", "the", "--html", path)
    assert "html: expected a name that ends in .html, got" in message


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_attention_draws_a_picture(trained, capsys, tmp_path, backend):
    path = tmp_path / "a.png"
    arguments = ["--run", str(trained), "--backend", backend, "--text", "the king\nand", "--output", str(path)]
    assert main(["attention", *arguments]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(path)


def generated(capsys, run, *arguments) -> str:
    assert main(["generate", "--run", str(run), "--length", "60", *arguments]) == 0
    return capsys.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize("there", [True, False])
def test_the_format_that_a_model_writes_in(trained, capsys, monkeypatch, there):
    """float32 unless asked otherwise; auto is bfloat16 where the device multiplies in it."""
    used = set()

    def packed(layers, bfloat16, compiled):
        used.add(bfloat16)
        return PackedLinear(layers, bfloat16, compiled)

    monkeypatch.setattr("torch_impl.decode.PackedLinear", packed)
    monkeypatch.setattr("train.torch_backend.multiplies_bfloat16", lambda device: there)
    for arguments, bfloat16 in (((), False), (("--dtype", "bfloat16"), True), (("--dtype", "auto"), there)):
        text = generated(capsys, trained, "--prompt", "the king", *arguments)
        assert text.startswith("the king")
        assert len(text) == len("the king") + 60
        assert used == {bfloat16}
        used.clear()


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_several_texts_are_written_at_once(trained, capsys, backend):
    text = generated(capsys, trained, "--samples", "3", "--prompt", "the king", "--backend", backend)
    texts = text.split(BETWEEN)
    assert [len(each) for each in texts] == [68] * 3
    assert all(each.startswith("the king") for each in texts)
    assert len(set(texts)) > 1


def test_compiled_text_is_the_same(trained, capsys, monkeypatch):
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="eager"))
    plain = generated(capsys, trained, "--prompt", "the king")
    assert generated(capsys, trained, "--prompt", "the king", "--compile") == plain


@pytest.mark.parametrize("command", ["generate", "train"])
def test_without_a_compiler_for_c_there_is_one_line(trained, capsys, monkeypatch, tmp_path, command):
    def fails(*_, **__):
        raise CompilerError(
            "InvalidCxxCompiler: No working C++ compiler found in (None, 'g++')\n\nSet TORCHDYNAMO_VERBOSE=1"
        )

    class CompilerError(RuntimeError):
        pass

    CompilerError.__name__ = "InductorError"
    monkeypatch.setattr("torch.compile", lambda *_, **__: fails)
    corpus = ["--corpus", str(write_text(tmp_path / "text.txt"))]
    more = ["--run", str(trained)] if command == "generate" else [*TINY[1:], *corpus, "--output", str(tmp_path / "other")]
    assert main([command, "--compile", *more]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message == (
        "twinformer: error: compile: expected a C++ compiler that torch can call, "
        "got: InvalidCxxCompiler: No working C++ compiler found in (None, 'g++')"
    )


def test_too_many_texts_cost_one_line(trained, capsys, monkeypatch):
    def fails(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nand more")

    monkeypatch.setattr("train.generate.write", fails)
    message = refused(capsys, "generate", "--run", trained, "--samples", "1000000")
    assert message == "not enough memory (DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes)"
    message = refused(capsys, "generate", "--run", trained, "--samples", "1000001")
    assert message.startswith("samples: expected at least 1 and at most 1000000, got 1000001")


def test_generation_follows_its_options_and_is_the_same_with_either_twin(trained, capsys):
    variants = {
        (): None,
        ("--seed", "1"): None,
        ("--temperature", "0"): None,
        ("--top-k", "2"): None,
        ("--top-p", "0.3"): None,
        ("--prompt", "the king", "--length", "7"): None,
    }
    for arguments in variants:
        texts = {backend: generated(capsys, trained, *arguments, "--backend", backend) for backend in ("torch", "numpy")}
        assert texts["torch"] == texts["numpy"]
        variants[arguments] = texts["torch"]
    assert len(set(variants.values())) == len(variants)
    assert len(variants[()]) == 61
    assert variants[("--prompt", "the king", "--length", "7")].startswith("the king")
    assert len(variants[("--prompt", "the king", "--length", "7")]) == 15
    assert generated(capsys, trained, "--temperature", "0", "--seed", "9") == variants[("--temperature", "0")]
    assert generated(capsys, trained, "--top-k", "1") == variants[("--temperature", "0")]
    assert generated(capsys, trained, "--seed", "1") == variants[("--seed", "1")]


def test_a_finished_run_says_that_nothing_is_trained(trained, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    assert main(["train", "--resume", str(again)]) == 0
    steps = records(again)[-1]["step"]
    assert f"all {steps} steps were done before: nothing is trained; --steps N goes on\n" in capsys.readouterr().out
    assert main(["train", "--resume", str(again), "--steps", str(steps + 1)]) == 0
    assert "nothing is trained" not in capsys.readouterr().out


def test_only_training_is_shared_by_several_processes(monkeypatch, capsys):
    """Else each would do all of the work, and all would write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["parameters", "--model", "gpt2"]) == 2
    assert "processes: expected one, since only `train` is shared by those of torchrun, got 2" in capsys.readouterr().err


def test_ctrl_c_ends_with_status_130_and_one_line(tmp_path, capsys, monkeypatch):
    text = write_text(tmp_path / "text.txt")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.text.random_batch", interrupt)
    assert main([*TINY, "--corpus", str(text), "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "twinformer: interrupted"


def test_the_first_step_waits_for_nothing_heavy(tmp_path):
    """What a step needs is torch alone; it brings its compiler along, since its AdamW asks for it."""
    code = (
        "import sys; from train.cli import parse; from train.loop import prepare\n"
        f"config = parse({[*TINY, '--corpus', str(write_text(tmp_path / 'text.txt')), '--output', str(tmp_path / 'run')]})\n"
        "heavy = {'matplotlib', 'hypothesis', 'tokenizers', 'sacrebleu', 'num2words'}\n"
        "def look(step):\n    assert not heavy & set(sys.modules), heavy & set(sys.modules)\n    sys.exit(0)\n"
        "prepare(config).run(look)\n"
        "sys.exit('no step')"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from train.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "assert not {'torch', 'matplotlib', 'numpy', 'safetensors', 'tqdm'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--learning-rate" in done.stdout
