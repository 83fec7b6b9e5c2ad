"""The node pack inside a real ComfyUI, over its HTTP and websocket interface."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools import figures, pictures
from tools.client import Client, Prompt, PromptRejected, set_input
from tools.comfyui import PACK_NAME, ComfyUINotFound, ComfyUIServer, locate

from .conftest import Finished, Material, make_material
from .graphs import NAMES, NODES, REPOSITORY, WORKFLOWS, use_clip

pytestmark = pytest.mark.comfy

QUICKSTART = REPOSITORY / "workflows" / "quickstart.json"
ON_THE_BAD_CLIP = ("quickstart", "composed")
"""Workflows that restore the low-quality clip itself; the others make a bad clip of their own."""
OPTIONAL_PACKAGES = ("sam2", "hydra", "omegaconf", "iopath", "diffusers", "cv2", "scenedetect", "lpips")


THROUGH_COMPONENTS = ("composed",)
"""Workflows that take the sound from ComfyUI's own Get Video Components."""


def sound_is_whole(client: Client) -> bool:
    """Whether Get Video Components gives the whole sound: that of ComfyUI 0.16.3 gives one packet (0.20.1 does not)."""
    version = client.get("/system_stats")["system"]["comfyui_version"].split(".")
    return (int(version[0]), int(version[1])) >= (0, 20)


def own_nodes(client: Client) -> dict[str, Any]:
    return {name: info for name, info in client.object_info().items() if name.startswith("SeTeVSR")}


def test_every_node_is_listed(client: Client) -> None:
    assert set(own_nodes(client)) == NODES


def test_every_node_explains_itself(client: Client) -> None:
    """A description on every node, a tooltip on every widget, one category."""
    silent = []
    for name, info in own_nodes(client).items():
        assert info["category"].split("/")[0] == "SeTe-VSR"
        if not info["description"]:
            silent.append(name)
        for inputs in info["input"].values():
            for key, spec in inputs.items():
                is_widget = isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
                if is_widget and not (len(spec) > 1 and spec[1].get("tooltip")):
                    silent.append(f"{name}.{key}")
    assert silent == []


def test_templates_and_their_pictures_are_served(server: ComfyUIServer, client: Client) -> None:
    assert sorted(client.get("/workflow_templates")[PACK_NAME]) == NAMES
    for name in NAMES:
        with urllib.request.urlopen(f"{server.url}/api/workflow_templates/{PACK_NAME}/{name}.jpg") as answer:
            assert answer.read(3) == b"\xff\xd8\xff"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=NAMES)
def test_workflow_restores_the_clip(
    workflow: Path, client: Client, finished: Callable[[Path], Finished], material: Material, artifacts: Path
) -> None:
    """As many frames, 4 times the size, the same rate, sound kept, and a picture that is neither blank nor bicubic."""
    done = finished(workflow)
    assert done.run.status == "success", done.run.error
    truth = material.reference
    results = [video for video in done.videos if video.frames.shape == truth.frames.shape]
    assert results, f"no saved video of {truth.frames.shape}: {[v.frames.shape for v in done.videos]}"
    bicubic = pictures.resized(material.low_quality.frames, truth.frames.shape[1:3])
    for result in results:
        assert abs(float(result.rate / truth.rate) - 1) < 1e-3
        assert "SeTeVSR" in result.metadata["prompt"]  # dropped on ComfyUI, the file is the graph again
        if sound_is_whole(client) or workflow.stem not in THROUGH_COMPONENTS:
            assert result.audio_s == pytest.approx(truth.audio_s, abs=0.1)
        assert abs(result.frames.mean() - truth.frames.mean()) < 10
        assert result.frames.std(axis=(1, 2)).min() > 5
        assert np.abs(result.frames.astype(int) - bicubic).mean() > 1
        rows = [pictures.row([c[i] for c in (bicubic, result.frames, truth.frames)]) for i in (0, -1)]
        _save(artifacts / f"{workflow.stem}.png", pictures.column(rows))


@pytest.mark.parametrize("name", [name for name in NAMES if name in ON_THE_BAD_CLIP])
def test_workflow_is_closer_to_the_original(
    name: str, finished: Callable[[Path], Finished], material: Material
) -> None:
    """In LPIPS, the result is nearer to the original than bicubic enlargement is."""
    lpips, reason = figures.lpips_metric()
    if lpips is None:
        pytest.skip(f"LPIPS: {reason}")
    truth = figures.as_tensor(material.reference.frames)
    bicubic = figures.as_tensor(pictures.resized(material.low_quality.frames, (truth.shape[1], truth.shape[2])))
    results = [
        v.frames
        for v in finished(WORKFLOWS[NAMES.index(name)]).videos
        if v.frames.shape == material.reference.frames.shape
    ]
    assert results
    distance, bicubic_distance = lpips(figures.as_tensor(results[0]), truth), lpips(bicubic, truth)
    assert distance < bicubic_distance


def test_cancel_in_the_middle(client: Client, prepared: Callable[[Path], Prompt]) -> None:
    """Interrupting a long run stops it within a few seconds, and the server goes on working."""
    prompt = prepared(QUICKSTART)
    set_input(prompt, "SeTeVSRUpscaleVideo", steps=500, sampler="ddpm")
    asked: list[float] = []

    def interrupt_once(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and not asked:
            asked.append(time.monotonic())
            client.interrupt()

    run = client.run(prompt, interrupt_once, timeout_s=300)
    assert asked, "the run reported no progress"
    assert run.status == "interrupted"
    assert time.monotonic() - asked[0] < 10
    set_input(prompt, "SeTeVSRUpscaleVideo", steps=1)
    assert client.run(prompt).status == "success"


def test_the_same_prompt_goes_on_where_it_was_interrupted(
    server: ComfyUIServer, client: Client, prepared: Callable[[Path], Prompt]
) -> None:
    prompt = prepared(QUICKSTART)
    set_input(prompt, "SeTeVSRUpscaleVideo", steps=2, sampler="ddim", seed=77, length=4, overlap=1)
    unfinished = server.output_folder / "setevsr_unfinished"
    asked: list[str] = []

    def interrupt_after_a_chunk(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and not asked:
            asked.extend(path.name for path in unfinished.glob("*/*.chunk"))
            if asked:
                client.interrupt()

    assert client.run(prompt, interrupt_after_a_chunk).status == "interrupted"
    kept = {path.name for path in unfinished.glob("*/*.chunk")}
    assert kept >= set(asked) and asked
    before = len(server.log())
    assert client.run(prompt).status == "success"
    frames = sum(int(name[10:19]) - int(name[:9]) for name in kept)
    assert f"continuing an unfinished run: {frames} frames are there already" in server.log()[before:]
    assert not unfinished.exists()


@pytest.mark.parametrize("prefix", ["../../escaped/clip", "/tmp/escaped/clip"])
def test_a_result_outside_the_output_folder_is_refused_and_written_nowhere(
    server: ComfyUIServer, client: Client, prepared: Callable[[Path], Prompt], prefix: str
) -> None:
    prompt = prepared(QUICKSTART)
    set_input(prompt, "SeTeVSRUpscaleVideo", steps=1, sampler="ddim")
    set_input(prompt, "SaveVideo", filename_prefix=prefix)
    run = client.run(prompt)
    assert run.status == "error" and "outside" in run.error
    assert not (server.output_folder / prefix).resolve().parent.exists()


def test_out_of_range_is_refused_before_it_runs(client: Client, prepared: Callable[[Path], Prompt]) -> None:
    prompt = prepared(QUICKSTART)
    set_input(prompt, "SeTeVSRUpscaleVideo", scale=100)
    with pytest.raises(PromptRejected, match="scale"):
        client.run(prompt)


@pytest.mark.slow
def test_nodes_register_without_optional_packages(tmp_path: Path, artifacts: Path) -> None:
    """With only ComfyUI's own packages every node is there, and running one names what to install."""
    try:
        locate()
    except ComfyUINotFound as error:
        pytest.skip(str(error))
    search_path = [str(Path(__file__).with_name("without_packages")), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(search_path), "BLOCKED_PACKAGES": ",".join(OPTIONAL_PACKAGES)}
    with ComfyUIServer(base=tmp_path, environment=environment) as server:
        client = Client(server.url)
        assert set(own_nodes(client)) == NODES
        make_material(server.input_folder)
        prompt = client.to_prompt(QUICKSTART)
        use_clip(prompt, "tiny_lq.mp4", "tiny_reference.mp4")
        run = client.run(prompt)
        (artifacts / "comfyui_without_packages.log").write_text(server.log())
    assert run.status == "error"
    assert "pip install" in run.error and any(name in run.error for name in (*OPTIONAL_PACKAGES, "opencv")), run.error


def _save(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path)
