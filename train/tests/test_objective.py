"""What train/objective.py makes of a model: divided among processes, or compiled, with tables that are constants."""

import pytest
import torch

from reference_numpy.config import ModelConfig
from torch_impl.block import Block
from torch_impl.model import Transformer
from train.cli import main
from train.configuration import TrainConfig
from train.loop import prepare
from train.objective import objective
from train.tests.runs import options


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_fsdp_gathers_one_block_at_a_time(monkeypatch, kind):
    divided = []
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, **_: divided.append(module))
    model = Transformer(ModelConfig(kind=kind, vocabulary=7, width=4, heads=2, layers=3, context=5))
    objective(model, TrainConfig(parallel="fsdp"), processes=2)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert len(blocks) == (6 if kind == "encoder_decoder" else 3)
    assert divided == [*blocks, model]  # what is outside the blocks comes last


@pytest.mark.parametrize("compiles", [True, False])
@pytest.mark.parametrize("command", ["train", "generate"])
def test_what_is_asked_to_be_compiled_is_with_constant_tables(tmp_path, trained, monkeypatch, command, compiles):
    told = []
    monkeypatch.setattr(torch.compiler, "assume_constant_result", lambda tables: told.append(tables.__name__))
    monkeypatch.setattr(torch, "compile", lambda module, **_: told.append("compile") or module)
    if command == "train":
        prepare(options(tmp_path / "other", compile=compiles))
    else:
        assert main(["generate", "--run", str(trained), "--length", "3", *(["--compile"] if compiles else [])]) == 0
    assert told == (["_sinusoidal", "_rotary", "_alibi", "compile"] if compiles else [])
