"""What a person meets first: the lists of packages, the bundled clip, the way to a ComfyUI, the demo's pictures."""

from __future__ import annotations

import re
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tools import client, figures, install_comfyui, pictures
from tools.clips import read_clip, write_clip

REPOSITORY = Path(__file__).resolve().parent.parent


def listed_dependencies() -> list[str]:
    text = (REPOSITORY / "pyproject.toml").read_text()
    match = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert match
    return re.findall(r'"([^"]+)"', match[1])


def test_requirements_are_the_project_dependencies_and_unpinned() -> None:
    requirements = (REPOSITORY / "requirements.txt").read_text().split()
    assert requirements == listed_dependencies()
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in requirements)


def test_bundled_clip_and_its_original_fit_together() -> None:
    """Same frames at 4 times the size; enlarged, the bad clip shows the same scene, and is clearly worse."""
    bad, good = (read_clip(REPOSITORY / "assets" / f"city_{name}.mp4") for name in ("lq", "reference"))
    assert bad.frames.shape == (30, 96, 160, 3)
    assert good.frames.shape == (30, 384, 640, 3)
    assert bad.rate == good.rate == Fraction(25, 2)
    smaller = good.frames[::10].reshape(3, 96, 4, 160, 4, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    assert figures.measure(bad.frames[::10], smaller)["psnr_db"] > 18
    enlarged = pictures.resized(bad.frames[::10], (384, 640))
    assert figures.measure(enlarged, None)["sharpness"] < 0.6 * figures.measure(good.frames[::10], None)["sharpness"]


def test_clip_round_trip(tmp_path: Path) -> None:
    """Frames, an odd rate and the length of the sound survive; the same frames give the same bytes."""
    y, x = np.mgrid[0:32, 0:48]
    frames = np.stack([np.stack([4 * x, 4 * y, 2 * (x + y) + i], axis=-1) for i in range(6)]).astype(np.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, frames, Fraction(30000, 1001), crf=2, tone_hz=440)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.rate == Fraction(30000, 1001)
    assert clip.audio_s == pytest.approx(6 * 1001 / 30000, abs=0.05)
    assert np.abs(clip.frames.astype(int) - frames).mean() < 3


def test_comfyui_path_must_be_a_comfyui_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(install_comfyui.ComfyUINotFound, match="no ComfyUI folder"):
        install_comfyui.locate()
    (tmp_path / "comfy").mkdir()
    for name in ("main.py", "requirements.txt"):
        (tmp_path / name).touch()
    assert install_comfyui.locate() == tmp_path.resolve()


def test_other_versions_lie_beside_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(install_comfyui, "CACHED_TREE", tmp_path / "ComfyUI")
    for version, name in (("", "ComfyUI"), ("0.30.0", "ComfyUI"), ("0.16.3", "ComfyUI-0.16.3")):
        monkeypatch.setenv("COMFYUI_VERSION", version)
        assert install_comfyui.cached_tree() == tmp_path / name
    with pytest.raises(install_comfyui.ComfyUINotFound, match="No ComfyUI 0.16.3 found"):
        install_comfyui.locate()
    monkeypatch.setenv("COMFYUI_VERSION", "0.1")
    with pytest.raises(install_comfyui.ComfyUINotFound, match="take one of 0.16.3, 0.20.1, 0.30.0"):
        install_comfyui.install_from_archive(tmp_path / "ComfyUI-0.1")


def make_archive(folder: Path, names: list[str]) -> Path:
    archive = folder / "made.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return archive


def test_another_archive_is_refused(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, ["x/vendor/ComfyUI/main.py"])
    with pytest.raises(install_comfyui.ComfyUINotFound, match="sha256"):
        install_comfyui.extract_tree(archive, tmp_path / "ComfyUI", "0" * 64)
    assert not (tmp_path / "ComfyUI").exists()


def test_only_the_comfyui_folder_is_unpacked(tmp_path: Path) -> None:
    inside = ["main.py", "requirements.txt", "comfy/model.py", "../../escaped.py"]
    archive = make_archive(tmp_path, ["x/setup.py", *(f"x/vendor/ComfyUI/{name}" for name in inside)])
    checksum = install_comfyui.hashlib.sha256(archive.read_bytes()).hexdigest()
    target = tmp_path / "cache" / "ComfyUI"
    target.parent.mkdir()
    install_comfyui.extract_tree(archive, target, checksum)
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert files == ["comfy/model.py", "main.py", "requirements.txt"]
    assert not list(tmp_path.rglob("escaped.py"))


def test_set_input_names_what_is_missing() -> None:
    prompt: client.Prompt = {"1": {"class_type": "A", "inputs": {"x": 1}}}
    client.set_input(prompt, "A", x=2)
    assert prompt["1"]["inputs"] == {"x": 2}
    with pytest.raises(KeyError, match="no node B"):
        client.set_input(prompt, "B", x=2)
    with pytest.raises(KeyError, match="no input y"):
        client.set_input(prompt, "A", y=2)


def test_pictures_are_put_beside_each_other() -> None:
    red, blue = (np.full((40, 60, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    both = pictures.row([red, blue])
    assert both.shape == (40, 120 + pictures.GAP, 3)
    assert both[0, 59].tolist() == [255, 0, 0] and both[0, -60].tolist() == [0, 0, 255]
    assert pictures.column([red, blue]).shape == (80 + pictures.GAP, 60, 3)
    named = pictures.labelled(red, "red")
    assert named.shape == (40 + pictures.LABEL_HEIGHT, 60, 3)
    assert (named[pictures.LABEL_HEIGHT :] == red).all() and named[: pictures.LABEL_HEIGHT].max() > 200


def test_crop_is_enlarged_without_new_colours() -> None:
    picture = np.arange(40 * 60 * 3, dtype=np.int64).reshape(40, 60, 3) % 251
    crop = pictures.enlarged_crop(picture.astype(np.uint8), 0.5, 0.5, part=0.5)
    assert crop.shape == (40, 60, 3)
    assert crop[0, 0].tolist() == picture[20, 30].tolist()
    assert set(map(tuple, crop.reshape(-1, 3))) == set(map(tuple, picture[20:, 30:].reshape(-1, 3)))
