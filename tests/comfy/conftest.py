"""One real ComfyUI for all tests of this folder, and a tiny clip in its input folder."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tools.client import Client, Prompt, Run
from tools.clips import Clip, read_clip, write_clip
from tools.comfyui import REPOSITORY, ComfyUINotFound, ComfyUIServer, locate

from .graphs import use_clip

LOW_QUALITY, REFERENCE = "tiny_lq.mp4", "tiny_reference.mp4"
SCALE = 4
TOP, LEFT, HEIGHT, WIDTH = 32, 8, 32, 48
FRAMES = 12
RATE = Fraction(30000, 1001)


@dataclass(frozen=True)
class Material:
    """A 32x48 clip of 12 frames with sound, and its 4 times larger original, as read back from the input folder."""

    low_quality: Clip
    reference: Clip


@pytest.fixture(scope="session")
def server(artifacts: Path) -> Iterator[ComfyUIServer]:
    """A running ComfyUI with this repository as its only node pack."""
    try:
        locate()
    except ComfyUINotFound as error:
        pytest.skip(str(error))
    with ComfyUIServer() as running:
        yield running
        shutil.copy(running.log_file, artifacts / "comfyui.log")


@pytest.fixture(scope="session")
def client(server: ComfyUIServer) -> Client:
    return Client(server.url)


@pytest.fixture(scope="session")
def material(server: ComfyUIServer) -> Material:
    """Cut a corner out of the bundled clip and its original, at an odd frame rate and with a tone as sound."""
    return make_material(server.input_folder)


def make_material(folder: Path) -> Material:
    low_quality = read_clip(REPOSITORY / "assets" / "city_lq.mp4").frames[:FRAMES]
    reference = read_clip(REPOSITORY / "assets" / "city_reference.mp4").frames[:FRAMES]
    low_quality = low_quality[:, TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]
    reference = reference[:, SCALE * TOP :, SCALE * LEFT :][:, : SCALE * HEIGHT, : SCALE * WIDTH]
    write_clip(folder / LOW_QUALITY, low_quality, RATE, crf=4, tone_hz=440)
    write_clip(folder / REFERENCE, reference, RATE, crf=4, tone_hz=440)
    return Material(read_clip(folder / LOW_QUALITY), read_clip(folder / REFERENCE))


@pytest.fixture(scope="session")
def prepared(client: Client, material: Material) -> Callable[[Path], Prompt]:
    """A function: bundled workflow -> its API graph on the tiny clip."""

    def prepare(workflow: Path) -> Prompt:
        prompt = client.to_prompt(workflow)
        use_clip(prompt, LOW_QUALITY, REFERENCE)
        return prompt

    return prepare


@dataclass(frozen=True)
class Finished:
    """A workflow that ran: what the server says, and the videos it saved."""

    run: Run
    videos: list[Clip]


@pytest.fixture(scope="session")
def run_graph(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Prompt], Finished]:
    """A function: API graph -> what the server says, and the videos it saved."""

    def execute(prompt: Prompt) -> Finished:
        run = client.run(prompt)
        folder = tmp_path_factory.mktemp("graph")
        return Finished(run, [_fetch(client, f, folder) for f in run.files() if _is_video(f)])

    return execute


@pytest.fixture(scope="session")
def finished(client: Client, prepared: Callable[[Path], Prompt], tmp_path_factory: pytest.TempPathFactory):
    """A function: bundled workflow -> what it made of the tiny clip; each runs once a session."""
    done: dict[Path, Finished] = {}

    def finish(workflow: Path) -> Finished:
        if workflow not in done:
            run = client.run(prepared(workflow))
            folder = tmp_path_factory.mktemp(workflow.stem)
            done[workflow] = Finished(run, [_fetch(client, f, folder) for f in run.files() if _is_video(f)])
        return done[workflow]

    return finish


def _is_video(file: dict[str, str]) -> bool:
    return file["filename"].endswith((".mp4", ".mkv", ".webm"))


def _fetch(client: Client, file: dict[str, str], folder: Path) -> Clip:
    path = folder / file["filename"]
    path.write_bytes(client.view(file))
    return read_clip(path)


def read_picture(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 of an encoded picture."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
