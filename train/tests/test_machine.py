"""What the trainer tells the libraries about the machine."""

import os

import pytest

from train import machine

ZEN5 = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512bw avx512cd avx512dq avx512vl avx512_bf16\n"


@pytest.fixture
def environment(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OPENBLAS_CORETYPE"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    return monkeypatch


def test_openblas_is_told_of_avx512_on_amd(environment, tmp_path):
    (tmp_path / "cpuinfo").write_text(ZEN5)
    machine.prepare_libraries(tmp_path / "cpuinfo")
    assert os.environ["OPENBLAS_CORETYPE"] == "SkylakeX"


@pytest.mark.parametrize("text", [ZEN5.replace("AuthenticAMD", "GenuineIntel"), ZEN5.replace("avx512vl", ""), "", None])
def test_openblas_chooses_for_itself_elsewhere(environment, tmp_path, text):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    machine.prepare_libraries(tmp_path / "cpuinfo")
    assert "OPENBLAS_CORETYPE" not in os.environ


def test_what_the_user_set_stays(environment, tmp_path):
    environment.setenv("OPENBLAS_CORETYPE", "Zen")
    (tmp_path / "cpuinfo").write_text(ZEN5)
    machine.prepare_libraries(tmp_path / "cpuinfo")
    assert os.environ["OPENBLAS_CORETYPE"] == "Zen"
