"""Which number type is chosen, and that emulated ones are not taken in silence."""

from __future__ import annotations

import logging

import pytest
import torch

from setevsr_core import precision
from setevsr_core.errors import SettingsError
from setevsr_core.training.trainer import TrainSettings

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(precision, "cpu_computes_bfloat16", lambda: request.param)
    return request.param


def settings(name: str) -> TrainSettings:
    return TrainSettings(steps=1, batch=1, crop=16, frames=1, learning_rate=1e-3, precision=name)


def test_training_on_a_processor_takes_bf16_only_where_it_is_native(native: bool) -> None:
    chosen = settings("auto").on(CPU)
    assert (chosen.precision, chosen.autocast_dtype) == (("bf16", torch.bfloat16) if native else ("fp32", None))
    assert settings("bf16").on(CPU).precision == "bf16"  # what was asked for stays


def test_a_gpu_takes_fp16_only_where_bf16_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device.index == 1 else (7, 5))
    assert [precision.automatic_dtype(name) for name in ("cuda:1", "cuda:0")] == [torch.bfloat16, torch.float16]
    assert [precision.training_precision(name) for name in ("cuda:1", "cuda:0")] == ["bf16", "fp16"]
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert precision.automatic_dtype("cuda:0") == torch.bfloat16


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SettingsError, match="precision is 'half', choose auto, fp32, bf16, fp16"):
        settings("half")


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_emulation_is_said(native: bool, dtype: torch.dtype | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        precision.warn_of_emulation(CPU, dtype)
        precision.warn_of_emulation("cuda", dtype)
    half = dtype in (torch.float16, torch.bfloat16)
    assert len(caplog.records) == (1 if half and not native else 0)
    if caplog.records:
        assert str(dtype).removeprefix("torch.") in caplog.text and "float32" in caplog.text
