"""GPT-2's published weights as the model of a run: the logits are those of GPT-2 written out in its own layouts."""

import json
import re
import shutil

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional as F

from reference_numpy.model import model_forward
from train.cli import main
from train.tests.runs import WORDS
from train.trained import load_trained

SHAPE = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "n_positions": 16,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "layer_norm_epsilon": 1e-5,
}


def write_weights(folder):
    """A small GPT-2 in the files that the real one comes in."""
    folder.mkdir()
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=byte_level.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    V, D = tokenizer.get_vocab_size(), SHAPE["n_embd"]
    (folder / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": V}))
    shapes = {"wte.weight": (V, D), "wpe.weight": (SHAPE["n_positions"], D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for layer in range(SHAPE["n_layer"]):
        own = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D)}
        for name, (inputs, outputs) in own.items():
            shapes |= {f"h.{layer}.{name}.weight": (inputs, outputs), f"h.{layer}.{name}.bias": (outputs,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{name}.weight": (D,), f"h.{layer}.{name}.bias": (D,)}
        shapes[f"h.{layer}.attn.bias"] = (1, 1, 16, 16)  # a causal mask, in some files
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_weights(tmp_path / "weights")


def logits(weights, tokens):
    """GPT-2 as its authors' code has it, in float64."""
    w = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    D = SHAPE["n_embd"]

    def norm(x, name):
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"], SHAPE["layer_norm_epsilon"])

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]
    for layer in range(SHAPE["n_layer"]):
        h = f"h.{layer}"
        three = linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").split(D, dim=-1)
        query, key, value = (part.view(len(tokens), SHAPE["n_head"], -1).transpose(0, 1) for part in three)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + linear(attended.transpose(0, 1).flatten(1), f"{h}.attn.c_proj")
        inner = F.gelu(linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc"), approximate="tanh")
        x = x + linear(inner, f"{h}.mlp.c_proj")
    return (norm(x, "ln_f") @ w["wte.weight"].T).numpy()


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_logits_are_those_of_gpt2(folder, tmp_path, capsys, prefix):
    weights = load_file(folder / "model.safetensors")
    save_file({prefix + name: array for name, array in weights.items()}, folder / "model.safetensors")
    run = tmp_path / "run"
    assert main(["gpt2", "--weights", str(folder), "--output", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"twinformer generate --run {run} --prompt ")
    trained = load_trained(str(run), "numpy", "cpu")
    tokens = trained.vocabulary.encode(" the king and  queen ")
    assert trained.vocabulary.decode(tokens) == " the king and  queen "  # no space is lost, unlike in translation
    parameters = {name: array.astype(np.float64) for name, array in trained.backend.parameters().items()}
    ours, _ = model_forward(parameters, trained.model, tokens[None])
    np.testing.assert_allclose(ours[0], logits(weights, torch.from_numpy(tokens)), rtol=1e-11, atol=1e-11)


def test_it_writes_and_is_looked_at(folder, tmp_path, capsys):
    run, page = str(tmp_path / "run"), tmp_path / "page.html"
    assert main(["gpt2", "--weights", str(folder), "--output", run]) == 0
    capsys.readouterr()
    for backend in ("numpy", "torch"):
        assert main(["generate", "--run", run, "--backend", backend, "--prompt", "my lord", "--length", "20"]) == 0
    first, second = (text for text in capsys.readouterr().out.split("my lord")[1:])
    assert first == second  # both twins, on beyond the 16 tokens of the context
    assert main(["generate", "--run", run, "--length", "3"]) == 0
    assert main(["attention", "--run", run, "--text", "the king and", "--html", str(page)]) == 0
    assert "What the run run attends to" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "weights: expected a folder with .* got no tokenizer.json in"),
        (lambda f: shutil.rmtree(f), "weights: expected a folder with .* got no config.json in"),
        (lambda f: (f / "config.json").write_text("[]"), "weights: expected the config.json of GPT-2, got another"),
        (
            lambda f: (f / "config.json").write_text(json.dumps(SHAPE | {"model_type": "llama"})),
            r"weights: expected the config.json of GPT-2, got another in .* \(llama with gelu_new\)",
        ),
        (
            lambda f: (f / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": 11})),
            "weights: expected 11 tokens in tokenizer.json, got 281",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"?"), "weights: expected those of GPT-2 in .* got others"),
        (lambda f: save_file({"wte.weight": np.ones(1)}, f / "model.safetensors"), r"got others \('wpe.weight'\)"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "subwords: expected a vocabulary that tokenizers wrote"),
        (
            lambda f: (f / "config.json").write_text(json.dumps(SHAPE | {"n_embd": 24, "vocab_size": 281})),
            r"token_embedding.weight: expected \(281, 24\), got \(281, 12\)",
        ),
    ],
)
def test_what_is_no_gpt2_costs_one_line(folder, tmp_path, capsys, change, message):
    change(folder)
    assert main(["gpt2", "--weights", str(folder), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(folder, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["gpt2", "--weights", str(folder), "--output", run]) == 0
    assert main(["gpt2", "--weights", str(folder), "--output", run]) == 2
    assert "holds a run without a checkpoint; choose another, or add --overwrite" in capsys.readouterr().err
    assert main(["gpt2", "--weights", str(folder), "--output", run, "--overwrite"]) == 0
