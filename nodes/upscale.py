"""Upscale Images and Upscale Video: the whole way in one node."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import InputImpl, io

from . import checks, compat, sockets, widgets
from .hosting import ComponentHandle, activation_memory, make_restorer

log = logging.getLogger(__name__)

MEMORY_REMEDY = "lower 'tile', then 'length', then 'scale'."
SMALLEST_TILE = 16
UNFINISHED = "setevsr_unfinished"
KEPT_DAYS = 30
"""Unfinished work that nobody has queued again for so long is dropped; it holds lossless video."""


def shared_widgets() -> list[Any]:
    """What both nodes ask for, most important first."""
    return [
        widgets.preset(),
        widgets.scale(),
        widgets.seed(),
        widgets.steps(),
        widgets.sampler(),
        widgets.strength(),
        widgets.length(),
        widgets.overlap(),
        widgets.scene_cuts(),
        widgets.fusion(),
        widgets.colour(),
        widgets.tile(),
        widgets.tile_overlap(),
        widgets.precision(),
    ]


def network_inputs() -> list[Any]:
    """Networks that take the place of the preset's."""
    replaces = "Takes the place of the preset's own; leave open to use the preset."
    return [
        sockets.Denoiser.Input("denoiser", optional=True, tooltip=replaces),
        sockets.TemporalVAE.Input("vae", optional=True, tooltip=replaces),
        sockets.SemanticEncoder.Input("encoder", optional=True, tooltip=replaces),
    ]


class UpscaleImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRUpscaleImages",
            display_name="Upscale Images (SeTe-VSR)",
            category=widgets.CATEGORY,
            description="Restores and enlarges the frames of a video, the whole way in one node. The result lies in "
            "memory; for long videos use Upscale Video.",
            search_aliases=widgets.ALIASES,
            inputs=[
                io.Image.Input("images", tooltip="Frames of one video, in order, or one picture. Alpha is kept."),
                *shared_widgets(),
                widgets.steady(),
                widgets.steady_result(),
                *network_inputs(),
                io.Audio.Input("audio", optional=True, tooltip="Passed through untouched, for a tidy graph."),
                sockets.VideoInfo.Input(
                    "video_info", optional=True, tooltip="Video info of VideoHelperSuite; passed through untouched."
                ),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The restored frames, as many as came in."),
                io.Audio.Output("audio", tooltip="The audio that was connected."),
                sockets.VideoInfo.Output("video_info", tooltip="The video info that was connected."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        preset: str,
        scale: float,
        audio: Any = None,
        video_info: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        from ..setevsr_core.video.resize import target_size
        from .progress import NodeProgress

        checks.require_frames(images)
        size = target_size(images.shape[1], images.shape[2], scale)
        checks.require_memory(len(images), size, images.shape[-1])
        progress = NodeProgress()

        def restore(restorer: Any, settings: dict[str, Any]) -> torch.Tensor:
            return restorer.restore(images, **settings, progress=progress.report, check_cancel=compat.check_interrupt)

        result = run_restorer(restore, size, preset=preset, scale=scale, **values)
        return io.NodeOutput(result.to(**compat.intermediate_options()), audio, video_info)


class UpscaleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRUpscaleVideo",
            display_name="Upscale Video (SeTe-VSR)",
            category=widgets.CATEGORY,
            description="Restores and enlarges a video of any length in constant memory: reads, restores and writes "
            "segment by segment. Sound is copied untouched, the frame rate stays exact. After a cancel or a crash, "
            "queueing the same prompt again continues where it stopped.",
            search_aliases=widgets.ALIASES,
            inputs=[
                io.Video.Input("video", tooltip="A video file (Load Video, Load Sample Video) or one of the graph."),
                *shared_widgets(),
                compat.widget(
                    io.Float,
                    "crf",
                    default=16.0,
                    min=0.0,
                    max=51.0,
                    step=1.0,
                    tooltip="Size against quality of the written H.264 file: 0 is lossless and huge, 16 looks the "
                    "same to the eye, 23 is half the size, 51 the worst. Save Video copies this file as it is.",
                ),
                compat.widget(
                    io.String,
                    "cluster",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Empty: computed here. The address of a Ray cluster (host:6379, ray://host:10001), or "
                    "'local' for all GPUs of this machine: its workers restore several segments at once, with the "
                    "same result. Needs the Python package ray.",
                ),
                widgets.steady(),  # last, in the order of their age: workflows keep the values of widgets by place
                widgets.steady_result(),
                *network_inputs(),
            ],
            outputs=[io.Video.Output("video", tooltip="The restored video, with the sound of the input.")],
        )

    @classmethod
    def execute(cls, video: Any, preset: str, scale: float, crf: float = 16.0, **values: Any) -> io.NodeOutput:
        from ..setevsr_core.video.resize import target_size
        from ..setevsr_core.video_job import Output, job_name, restore_video
        from .media import fitting_path, open_video
        from .progress import NodeProgress

        progress = NodeProgress()
        with open_video(video) as source:
            size = target_size(*source.size, scale)

            def restore(restorer: Any, settings: dict[str, Any]) -> Path:
                path = fitting_path(source, temporary_path("restored"))
                name = job_name(restorer, source, settings, path.suffix, crf)
                with unfinished_folder() as folder:
                    result = restore_video(
                        restorer, source, Output(path, quality=crf, journal=folder / name), settings,
                        progress=progress.report, check_cancel=compat.check_interrupt,
                    )  # fmt: skip
                return result.path

            path = run_restorer(restore, size, preset=preset, scale=scale, **values)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))


def run_restorer(
    restore: Callable[[Any, dict[str, Any]], Any],
    size: tuple[int, int],
    *,
    preset: str,
    scale: float,
    seed: int,
    steps: int = 0,
    sampler: str = widgets.PRESETS_OWN,
    strength: float = 0.0,
    length: int = 5,
    overlap: int = 2,
    scene_cuts: str = "auto",
    fusion: float = 1.0,
    colour: str = "wavelet",
    tile: int = 64,
    tile_overlap: int = 16,
    steady: int = 4,
    steady_result: int = 2,
    precision: str = "auto",
    denoiser: ComponentHandle | None = None,
    vae: ComponentHandle | None = None,
    encoder: ComponentHandle | None = None,
    cluster: str = "",
) -> Any:
    """`restore(restorer, settings)` as the widgets say; again with smaller tiles if the memory is full."""
    from .choices import cut_choice, sampling_choices

    networks = choose_networks(preset, precision, denoiser, vae, encoder)
    settings = {
        **sampling_choices(steps=steps, sampler=sampler, strength=strength),
        "scale": scale, "seed": seed, "length": length, "overlap": overlap, "cuts": cut_choice(scene_cuts),
        "fusion": fusion, "colour": colour, "tile": tile, "tile_overlap": tile_overlap,
        "steady": steady, "steady_result": steady_result,
    }  # fmt: skip

    if cluster.strip():
        from .cluster import cluster_restorer

        with cluster_restorer(cluster.strip(), *networks) as restorer:
            return restore(restorer, settings)

    def run(tile: int) -> Any:
        changed: dict[str, Any] = {}
        if tile != settings["tile"]:
            log.warning("SeTe-VSR: the memory was full, trying again with tiles of %d", tile)
            changed = {"tile": tile, "tile_overlap": min(tile_overlap, tile // 2)}
        memory = activation_memory(size, length, tile, networks[0].module.dtype)
        return restore(make_restorer(*networks, memory), {**settings, **changed})

    with compat.readable_memory_error(MEMORY_REMEDY):
        return compat.retry_smaller(run, tile, smallest=SMALLEST_TILE, start_at=64)


def choose_networks(
    preset: str,
    precision: str,
    denoiser: ComponentHandle | None,
    vae: ComponentHandle | None,
    encoder: ComponentHandle | None,
) -> tuple[ComponentHandle, ComponentHandle, ComponentHandle | None]:
    """The connected networks, and the preset's where none is connected; the preset is read only if it is needed."""
    if denoiser is not None and vae is not None and encoder is not None:
        return denoiser, vae, encoder
    from .loaders import load_preset

    own_denoiser, own_vae, own_encoder = load_preset(preset, precision)
    return denoiser or own_denoiser, vae or own_vae, encoder or own_encoder


@contextmanager
def unfinished_folder() -> Iterator[Path]:
    """Where unfinished work waits for the same prompt to be queued again. It lies in ComfyUI's output folder, because
    ComfyUI empties its temporary one when it starts; it goes away when nothing is unfinished.
    """
    import folder_paths

    from ..setevsr_core.video.journal import drop_abandoned

    folder = Path(folder_paths.get_output_directory()) / UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    for old in drop_abandoned(folder, KEPT_DAYS):
        log.warning("SeTe-VSR: unfinished work '%s' was not continued for %d days and is dropped", old, KEPT_DAYS)
    try:
        yield folder
    finally:
        with suppress(OSError):  # other work is still unfinished
            folder.rmdir()


def temporary_path(label: str, ending: str = ".mp4") -> Path:
    """A fresh file name in ComfyUI's temporary folder, which ComfyUI empties when it starts."""
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"setevsr_{label}_{uuid.uuid4().hex[:12]}{ending}"


NODES = [UpscaleVideo, UpscaleImages]
