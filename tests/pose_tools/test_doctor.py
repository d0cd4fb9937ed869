"""The doctor: one line for the torch build, what is missing with its remedy, and a non-zero status only for what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pose_tools import doctor


def test_the_torch_line_is_torchs_own_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--torch"]) == 0
    line = capsys.readouterr().out
    assert f"torch {torch.__version__} " in line and ("CUDA" in line) == bool(torch.version.cuda)


def test_what_is_missing_is_not_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "peft" else installed(name))
    monkeypatch.setattr(doctor, "ASSETS", tmp_path)
    assert doctor.main([]) == 0
    report = capsys.readouterr().out
    assert "lacks peft" in report and "pip install -e '.[train]'" in report
    assert f"is not in {tmp_path / 'hand_detector'}" in report and "scripts/train_detector.py" in report
    assert "mano.is.tue.mpg.de" in report


def test_the_shipped_weights_are_all_looked_for() -> None:
    assert {path.parent.name for path in doctor.ASSETS.glob("*/*.safetensors")} == set(doctor.SMALL_WEIGHTS)


def test_a_missing_core_package_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "scipy" else installed(name))
    assert doctor.main([]) == 1
    report = capsys.readouterr().out
    assert "missing: scipy" in report and "broken: core" in report


def test_a_body_model_that_cannot_be_read_is_broken_and_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = tmp_path / "MANO_RIGHT.pkl"
    wrong.write_bytes(b"not a body model")
    assert doctor.main(["--mano", str(wrong)]) == 1
    report = capsys.readouterr().out
    assert str(wrong) in report and "stand-in" in report
