"""A video spread over a Ray cluster: the bits of one machine, and a worker that dies costs one segment."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from setevsr_core import Restorer
from setevsr_core import cluster as cluster_module
from setevsr_core.checkpoints.native import save_native
from setevsr_core.cluster import ClusterRestorer
from setevsr_core.errors import ClusterError, SettingsError
from setevsr_core.video.reading import VideoReader
from setevsr_core.video_job import Output, footage_of, restore_video

from .tiny_networks import tiny_denoiser, tiny_vae
from .video_helpers import make_clip

pytest.importorskip("ray", reason="the optional package ray is not installed")
psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {"scale": 2, "length": 5, "overlap": 2, "cuts": (9,)}


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preset")
    for network, name in ((tiny_denoiser(), "denoiser"), (tiny_vae(), "vae")):
        save_native(network, folder / f"{name}.safetensors")
    values = {"name": "tiny", "defaults": {"steps": 2, "sampler": "ddim"}}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def cluster(preset: Path) -> Iterator[ClusterRestorer]:
    with ClusterRestorer("local", preset, device="cpu", dtype="float32", workers=2) as restorer:
        yield restorer


@pytest.fixture
def alone(preset: Path) -> Restorer:
    torch.set_num_threads(1)
    return Restorer.from_preset(str(preset), "cpu", torch.float32)


def worker_processes() -> list[Any]:
    return [process for process in psutil.Process().children(recursive=True)
            if "Worker" in " ".join(process.cmdline()[:1])]


def test_a_cluster_gives_the_bits_of_one_machine(cluster: ClusterRestorer, alone: Restorer) -> None:
    frames = torch.rand(17, 8, 12, 3, generator=torch.Generator().manual_seed(0))
    spread = torch.cat(list(cluster.stream(frames, **SETTINGS)))
    assert torch.equal(spread, alone.restore(frames, **SETTINGS))
    assert cluster.fingerprint(**SETTINGS) == alone.fingerprint(**SETTINGS)


def test_a_run_begun_on_one_machine_is_continued_by_a_cluster_that_loses_a_worker(
    cluster: ClusterRestorer, alone: Restorer, tmp_path: Path
) -> None:
    source = make_clip(tmp_path / "in.mp4", count=24, size=(16, 24))

    def run(restorer: Any, name: str, after: int = 1000, stop: Any = None) -> int:
        seen = 0

        def on_frames(count: int) -> None:
            nonlocal seen
            seen += count
            if seen == after:
                stop()

        output = Output(tmp_path / name, journal=tmp_path / f"{name}.setevsr")
        with VideoReader(source) as reader:
            return restore_video(restorer, footage_of(reader), output, SETTINGS, on_frames=on_frames).resumed

    class Stop(Exception):
        pass

    def interrupt() -> None:
        raise Stop

    def kill_a_worker() -> None:
        os.kill(worker_processes()[0].pid, signal.SIGKILL)

    assert run(alone, "whole.mp4") == 0
    with pytest.raises(Stop):
        run(alone, "parts.mp4", 4, interrupt)
    assert len(worker_processes()) == 2
    assert run(cluster, "parts.mp4", 8, kill_a_worker) > 0
    assert (tmp_path / "parts.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_cancel_gets_through_while_the_workers_compute(cluster: ClusterRestorer) -> None:
    class Cancel(Exception):
        pass

    def cancel() -> None:
        raise Cancel

    with pytest.raises(Cancel):
        list(cluster.stream(torch.rand(9, 8, 8, 3), check_cancel=cancel, **SETTINGS))
    assert len(torch.cat(list(cluster.stream(torch.rand(6, 8, 8, 3), **SETTINGS)))) == 6


def test_what_a_worker_says_arrives_as_one_sentence(cluster: ClusterRestorer) -> None:
    with pytest.raises(ClusterError, match="a worker of the cluster failed: the text embedding is 5 wide"):
        list(cluster.stream(torch.rand(3, 8, 8, 3), text=torch.zeros(1, 3, 5), **SETTINGS))
    with pytest.raises(SettingsError, match="overlap is|overlap must"):
        cluster.stream(torch.rand(3, 8, 8, 3), length=2, overlap=2)


def test_there_may_be_more_workers_than_processors(cluster: ClusterRestorer, preset: Path) -> None:
    import ray

    count = int(ray.cluster_resources()["CPU"]) + 1
    with ClusterRestorer("local", preset, device="cpu", dtype="float32", workers=count) as crowded:
        assert crowded.fingerprint(**SETTINGS) == cluster.fingerprint(**SETTINGS)


@pytest.mark.parametrize("gpus", range(1, 9))
def test_the_shares_of_all_workers_fit_the_gpus(gpus: int) -> None:
    for workers in range(1, 40):
        each = 1 / cluster_module._gpu_share(workers, gpus)
        assert each == pytest.approx(round(each)) and round(each) * gpus >= workers > (round(each) - 1) * gpus
    assert cluster_module._gpu_share(3, 0) == 0


class WaitingRay:
    """A cluster that starts one worker of those it is asked for."""

    def wait(self, references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return references[:1], references[1:]


def test_workers_that_find_no_place_are_an_error_that_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "START_LIMIT", 0.05)
    with pytest.raises(ClusterError, match="1 of 3 workers of the cluster were ready after .* with --workers 1"):
        cluster_module._wait_for(WaitingRay(), ["a", "b", "c"], None)


def test_a_cancel_gets_through_while_the_workers_start(cluster: ClusterRestorer, preset: Path) -> None:
    class Cancel(Exception):
        pass

    def cancel() -> None:
        raise Cancel

    with pytest.raises(Cancel):
        ClusterRestorer("local", preset, device="cpu", dtype="float32", workers=1, check_cancel=cancel)


@pytest.mark.usefixtures("cluster")
def test_a_device_that_no_worker_has_is_named(preset: Path) -> None:
    with pytest.raises(ClusterError, match="a worker of the cluster failed: device is 'cuda:77', which cannot compute"):
        ClusterRestorer("local", preset, device="cuda:77", workers=1)


def test_an_address_where_nobody_answers_is_named(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match="no Ray cluster answers at '127.0.0.1:1'"):
        ClusterRestorer("127.0.0.1:1", preset)
    with pytest.raises(SettingsError, match="workers is 0"):
        ClusterRestorer("local", preset, workers=0)


def test_a_cluster_that_cannot_be_started_here_is_named() -> None:
    class SlowRay:
        def init(self, **_: Any) -> None:
            raise Exception("The current node timed out during startup")  # noqa: TRY002 - as Ray does

    with pytest.raises(ClusterError, match="could be started on this machine .The current node timed out.*without one"):
        cluster_module._connect(SlowRay(), "local")
