"""Degrade Video and Upscale Video on files: frame times and sound of any kind, in a file that ComfyUI can save.

Needs a ComfyUI tree, like test_nodes.py, whose tiny networks are used here.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import test_nodes as shared  # type: ignore[attr-defined]

from .test_formats import uneven_clip
from .video_helpers import make_clip, stream_facts

pack, nodes, handles = shared.pack, shared.nodes, shared.handles

NODES = ["SeTeVSRDegradeVideo", "SeTeVSRUpscaleVideo"]


def run(name: str, nodes: dict[str, Any], handles: dict[str, Any], source: Path) -> Any:
    """The VIDEO that the node makes of a file."""
    from comfy_api.latest import InputImpl

    video = InputImpl.VideoFromFile(str(source))
    if name == "SeTeVSRDegradeVideo":
        return nodes[name].execute(video, 1, 0).result[0]
    settings: dict[str, Any] = {**shared.SAMPLING, "sampler": "none (decoder only)", "length": 3, "overlap": 1}
    with torch.inference_mode():
        return nodes[name].execute(video, "none needed", 1.0, scene_cuts="off", **settings, **handles).result[0]


@pytest.mark.parametrize(("kind", "option"), [("output", "--output-directory"), ("temp", "--temp-directory")])
def test_a_folder_of_comfyui_that_cannot_be_made_is_named(
    kind: str, option: str, nodes: dict[str, Any], handles: dict[str, Any], pack: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import folder_paths

    source, place = make_clip(tmp_path / "in.mp4", 3, (16, 24)), tmp_path / "a file"
    place.write_bytes(b"")
    monkeypatch.setattr(folder_paths, f"{kind}_directory", str(place / "folder"))
    with pytest.raises(shared.part(pack, "setevsr_core.errors").VideoError, match=rf"a file.*cannot be made.*{option}"):
        run("SeTeVSRUpscaleVideo", nodes, handles, source)


def test_sound_of_the_graph_that_cannot_be_written_leaves_nothing(
    pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    def full(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    media = shared.part(pack, "nodes.media")
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    monkeypatch.setattr(media, "_encode_sound", full)
    with pytest.raises(shared.part(pack, "setevsr_core.errors").VideoError, match="sound.*cannot be written: No space"):
        media.write_sound({"waveform": torch.zeros(1, 1, 4800), "sample_rate": 48000})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NODES)
def test_frames_keep_their_own_times(name: str, nodes: dict[str, Any], handles: dict[str, Any], tmp_path: Path) -> None:
    source, times = uneven_clip(tmp_path / "in.mkv")
    result = Path(run(name, nodes, handles, source).get_stream_source())
    assert stream_facts(result)["times"] == times


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize(("codec", "suffix", "becomes"), [("pcm_u8", ".mkv", "flac"), ("adpcm_ms", ".avi", "aac")])
def test_sound_that_mp4_cannot_hold_is_saved_with_the_video(
    name: str, codec: str, suffix: str, becomes: str, nodes: dict[str, Any], handles: dict[str, Any], tmp_path: Path
) -> None:
    import av

    source = make_clip(tmp_path / f"in{suffix}", count=5, size=(16, 24), audio=codec, rate=Fraction(10))
    video = run(name, nodes, handles, source)
    saved = tmp_path / "saved.mp4"
    video.save_to(str(saved))
    with av.open(str(saved)) as container:
        assert container.streams.audio[0].codec_context.name == becomes
        seconds = sum(frame.samples for frame in container.decode(audio=0)) / 48000
    assert seconds == pytest.approx(0.5, abs=0.12)  # in AVI the sound begins a frame before the first picture


@pytest.mark.parametrize(
    ("channels", "kept", "rate", "written"), [(8, 6, 48000, 48000), (4, 4, 44100, 44100), (2, 2, 192000, 96000)]
)
def test_sound_of_the_graph_keeps_its_channels_and_may_have_any_rate(
    channels: int, kept: int, rate: int, written: int, pack: Any
) -> None:
    """Each channel is as loud as it was: none is left out, or mixed with another unless there are more than six."""
    import av

    loudness = torch.linspace(0.1, 0.8, channels)
    tone = torch.sin(torch.arange(rate // 2) * (2 * torch.pi * 50 / rate))
    waveform = (loudness[:, None] * tone)[None]
    path = shared.part(pack, "nodes.media").write_sound({"waveform": waveform, "sample_rate": rate})
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == written
        samples = torch.cat([torch.from_numpy(frame.to_ndarray()) for frame in container.decode(audio=0)], dim=1)
    assert samples.shape[0] == kept and samples.shape[1] / written == pytest.approx(0.5, abs=0.05)
    heard = samples[:, written // 8 : written * 3 // 8].square().mean(1).mul(2).sqrt()
    if kept == channels:
        assert heard.tolist() == pytest.approx(loudness.tolist(), abs=0.03)
    assert heard.min() > 0.03


def test_sound_of_the_graph_that_is_no_sound(pack: Any) -> None:
    """Empty Audio of 0 seconds is silence; NaN is a mistake of the node before, which no encoder takes."""
    media = shared.part(pack, "nodes.media")
    temporary = Path(shared.part(pack, "nodes.folders").temporary_path("x")).parent
    before = set(temporary.iterdir())
    assert media.write_sound({"waveform": torch.zeros(1, 2, 0), "sample_rate": 44100}) is None
    noiseless = torch.zeros(1, 2, 5000)
    for waveform, rate in ((noiseless * torch.nan, 44100), (noiseless[0], 44100), (noiseless, 0), (noiseless, -1)):
        with pytest.raises(media.InputError, match="The video's sound"):
            media.write_sound({"waveform": waveform, "sample_rate": rate})
    assert set(temporary.iterdir()) == before


def test_transparency_of_the_graph_that_is_dropped_is_said(pack: Any, caplog: pytest.LogCaptureFixture) -> None:
    from comfy_api.latest import InputImpl, Types

    for images, said in ((shared.clip(2, channels=4), True), (shared.clip(2), False)):
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(24)))
        caplog.clear()
        with shared.part(pack, "nodes.media").open_video(video) as footage:
            assert next(iter(footage.frames)).shape[-1] == 3
        assert ("transparency" in caplog.text) == said


@torch.inference_mode()
def test_a_video_of_the_graph_is_written_with_its_depth(
    nodes: dict[str, Any], handles: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create Video's bit_depth of 10, which older versions do not have."""
    from comfy_api.latest import InputImpl, Types

    parts = Types.VideoComponents(images=shared.clip(3), frame_rate=Fraction(24))
    for depth, pixels in ((8, "yuv420p"), (10, "yuv420p10le")):
        video = InputImpl.VideoFromComponents(parts)
        monkeypatch.setattr(video, "get_bit_depth", lambda depth=depth: depth, raising=False)
        sampling = {**shared.SAMPLING, "sampler": "none (decoder only)", "length": 3, "overlap": 1}
        (result,) = nodes["SeTeVSRUpscaleVideo"].execute(video, "none needed", 1.0, **sampling, **handles).result
        assert stream_facts(Path(result.get_stream_source()))["pix_fmt"] == pixels
