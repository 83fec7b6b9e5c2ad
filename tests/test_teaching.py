"""Training data with another network's targets: `setevsr teach`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("cv2")
pytest.importorskip("spandrel")

from benchmarks.regressor import compact  # noqa: E402
from setevsr_core import cli  # noqa: E402
from setevsr_core.checkpoints.upscalers import load_upscaler  # noqa: E402
from setevsr_core.errors import CheckpointError, SettingsError  # noqa: E402
from setevsr_core.training.data import PackedDataset  # noqa: E402
from setevsr_core.training.packing import steady_frames, store_shard, write_plan  # noqa: E402
from setevsr_core.training.teaching import teach  # noqa: E402
from setevsr_core.video.steadying import steady  # noqa: E402


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Two shards of two segments of three frames, 64 px, four times as large as the degraded ones."""
    folder, rng = tmp_path / "pack", np.random.default_rng(0)
    folder.mkdir()
    write_plan(folder, {"format": 1, "sources": [], "settings": {
        "segments": 4, "frames": 3, "size": 64, "scale": 4, "shard_segments": 2, "steady": 0}})  # fmt: skip
    for index in range(2):
        lr = np.repeat(rng.integers(60, 200, (2, 1, 16, 16, 3), np.uint8), 3, axis=1)
        lr += rng.integers(0, 12, lr.shape, np.uint8)
        hr = rng.integers(0, 255, (2, 3, 64, 64, 3), np.uint8)
        store_shard(folder, index, hr, lr, [{"source": f"{index}.mp4"}] * 2)
    return folder


def upscaler(path: Path, scale: int = 4) -> Path:
    torch.manual_seed(0)
    network = compact(8, 2, scale)
    for parameter in network.parameters():  # something to learn: more than repeated pixels
        parameter.data += 0.01 * torch.randn_like(parameter)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path


def test_targets_are_the_teachers_averaged_over_the_segment(pack: Path, tmp_path: Path) -> None:
    file = upscaler(tmp_path / "teacher.safetensors")
    taught = PackedDataset(teach(pack, tmp_path / "taught", file, steady=2))
    assert len(taught) == 4 and taught.meta["settings"]["steady"] == 2
    assert taught.meta["teacher"]["file"] == "teacher.safetensors" and len(taught.meta["teacher"]["sha256"]) == 64
    network = load_upscaler(file)
    for index in range(4):
        plain, (lr, hr) = PackedDataset(pack).segment(index), taught.segment(index)
        assert np.array_equal(lr, steady_frames(plain[0], 2)) and not np.array_equal(lr, plain[0])
        with torch.inference_mode():
            large = network(torch.from_numpy(lr / np.float32(255)).movedim(-1, 1)).clamp(0, 1).movedim(1, -1)
        assert np.abs(hr - (steady(large, 4) * 255).numpy()).max() <= 1
        assert not np.array_equal(hr, plain[1])
    records = json.loads((tmp_path / "taught" / "shard_00001" / "meta.json").read_text())["segments"]
    assert records == [{"source": "1.mp4"}] * 2


def test_what_is_there_stays_and_workers_write_the_same_bytes(pack: Path, tmp_path: Path) -> None:
    file = upscaler(tmp_path / "teacher.safetensors")
    first = teach(pack, tmp_path / "a", file, segments=1)
    assert len(PackedDataset(first)) == 2
    kept = (first / "shard_00000" / "hr.npy").stat().st_mtime_ns
    assert len(PackedDataset(teach(pack, first, file))) == 4
    assert (first / "shard_00000" / "hr.npy").stat().st_mtime_ns == kept
    other = teach(pack, tmp_path / "b", file, workers=2)
    for shard in ("shard_00000", "shard_00001"):
        assert (other / shard / "hr.npy").read_bytes() == (first / shard / "hr.npy").read_bytes()


def test_wrong_packs_and_teachers_are_refused(pack: Path, tmp_path: Path) -> None:
    file, out = upscaler(tmp_path / "teacher.safetensors"), tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"half\.safetensors' enlarges by 2, the pack .* needs 4"):
        teach(pack, out, upscaler(tmp_path / "half.safetensors", 2))
    (tmp_path / "text.safetensors").write_text("no network")
    with pytest.raises(CheckpointError, match=r"text\.safetensors' is no upscaler"):
        teach(pack, out, tmp_path / "text.safetensors")
    with pytest.raises(SettingsError, match="steady=5"):
        teach(pack, out, file, steady=5)
    assert not out.exists()
    teach(pack, out, file, steady=1, segments=2)
    with pytest.raises(SettingsError, match="other settings"):
        teach(pack, out, file, steady=2)
    with pytest.raises(SettingsError, match="targets of a teacher already"):
        teach(out, tmp_path / "twice", file)


def test_the_command_and_the_record_of_a_training(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = upscaler(tmp_path / "teacher.safetensors"), tmp_path / "out"
    assert cli.main(["teach", str(pack), str(out), "--teacher", str(file), "--steady", "1"]) == 0
    assert "4 segments with targets of teacher.safetensors" in capsys.readouterr().out
    arguments = ["vae", "--size", "nano", "--data", str(out), "--out", str(tmp_path / "vae"), "--steps", "1", "--batch",
                 "1", "--crop", "32", "--lpips-weight", "0", "--device", "cpu", "--precision", "fp32"]  # fmt: skip
    assert cli.main(["train", *arguments]) == 0
    record = json.loads((tmp_path / "vae" / "record.json").read_text())
    assert record["pack"]["steady"] == 1 and record["pack"]["teacher"]["file"] == "teacher.safetensors"
