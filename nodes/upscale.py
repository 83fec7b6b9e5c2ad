"""Upscale Images and Upscale Video: the whole way in one node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import InputImpl, io

from . import checks, compat, folders, sockets, widgets
from .denoise import text_of
from .hosting import ENCODER_MEMORY, ComponentHandle, denoiser_memory, make_restorer, vae_memory
from .loaders import load_preset, preset_stamp

log = logging.getLogger(__name__)

MEMORY_REMEDY = "lower 'tile', then 'length', then 'scale'."
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
        sockets.Denoiser.Input("denoiser", optional=True, tooltip=f"{replaces} Comes with the VAE it was made for."),
        sockets.TemporalVAE.Input("vae", optional=True, tooltip=replaces),
        sockets.SemanticEncoder.Input(
            "encoder", optional=True,
            tooltip="Takes the place of the preset's own, which only serves the preset's denoiser; with another one, "
            "semantic attention is off while this is open.",
        ),
    ]  # fmt: skip


def text_input() -> Any:
    """The text that a denoiser without an empty prompt of its own needs."""
    return io.Conditioning.Input(
        "conditioning", optional=True,
        tooltip="Text of the denoiser's own base model (SD 2.1's text encoder), as a rule the empty prompt; without it "
        "the empty prompt that the weights bring along. Full-size files of others bring none, nano brings its own.",
    )  # fmt: skip


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
                text_input(),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The restored frames, as many as came in."),
                io.Audio.Output("audio", tooltip="The audio that was connected."),
                sockets.VideoInfo.Output("video_info", tooltip="The video info that was connected."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, preset: str | None, **others: Any) -> int:
        return preset_stamp(preset)

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
        from ..setevsr_core.streaming import fill
        from ..setevsr_core.video.resize import target_size
        from .progress import NodeProgress

        checks.require_frames(images)
        size = target_size(images.shape[1], images.shape[2], scale)
        checks.require_memory(len(images), size, images.shape[-1])
        result = torch.empty((len(images), *size, images.shape[-1]), **compat.intermediate_options())
        progress = NodeProgress()

        def restore(restorer: Any, settings: dict[str, Any]) -> None:
            blocks = restorer.stream(
                images, num_frames=len(images), **settings,
                progress=progress.report, check_cancel=compat.check_interrupt,
            )  # fmt: skip
            fill(result, blocks)  # in ComfyUI's type at once, which may be half as wide

        run_restorer(restore, size, preset=preset, scale=scale, **values)
        return io.NodeOutput(result, audio, video_info)


class UpscaleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRUpscaleVideo",
            display_name="Upscale Video (SeTe-VSR)",
            category=widgets.CATEGORY,
            description="Restores and enlarges a video of any length in constant memory: reads, restores and writes "
            "segment by segment. Sound is copied (encoded again only where MP4 cannot hold it), the frame rate stays "
            "exact. After a cancel or a crash, queueing the same prompt again continues where it stopped.",
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
                text_input(),
            ],
            outputs=[io.Video.Output("video", tooltip="The restored video, with the sound of the input.")],
        )

    @classmethod
    def fingerprint_inputs(cls, preset: str | None, **others: Any) -> int:
        return preset_stamp(preset)

    @classmethod
    def execute(cls, video: Any, preset: str, scale: float, crf: float = 16.0, **values: Any) -> io.NodeOutput:
        from ..setevsr_core.video.resize import target_size
        from ..setevsr_core.video_job import Output, job_name, restore_video
        from .media import open_video
        from .progress import NodeProgress

        progress = NodeProgress()
        with open_video(video) as source:
            size = target_size(*source.size, scale)

            def restore(restorer: Any, settings: dict[str, Any]) -> Path:
                path = folders.temporary_path("restored")
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
    conditioning: list[Any] | None = None,
    cluster: str = "",
) -> Any:
    """`restore(restorer, settings)` as the widgets say."""
    from ..setevsr_core.settings import resolve_settings
    from .choices import cut_choice, sampling_choices

    networks = choose_networks(preset, precision, denoiser, vae, encoder)
    settings = {
        **sampling_choices(steps=steps, sampler=sampler, strength=strength),
        "scale": scale, "seed": seed, "length": length, "overlap": overlap, "cuts": cut_choice(scene_cuts),
        "fusion": fusion, "colour": colour, "tile": tile, "tile_overlap": tile_overlap,
        "steady": steady, "steady_result": steady_result,
    }  # fmt: skip
    text = text_of(conditioning)
    if resolve_settings(settings, networks[0].defaults).steps:
        require_denoising(*networks, text)
    settings["text"] = text

    if cluster.strip():
        from .cluster import cluster_restorer

        with cluster_restorer(cluster.strip(), *networks) as restorer:
            return restore(restorer, settings)

    memory = {"denoiser": denoiser_memory(size, length, tile, networks[0].module.dtype),
              "vae": vae_memory(networks[1], size, length), "encoder": ENCODER_MEMORY}
    with compat.readable_memory_error(MEMORY_REMEDY):
        return restore(make_restorer(*networks, memory), settings)


def choose_networks(
    preset: str,
    precision: str,
    denoiser: ComponentHandle | None,
    vae: ComponentHandle | None,
    encoder: ComponentHandle | None,
) -> tuple[ComponentHandle, ComponentHandle, ComponentHandle | None]:
    """The connected networks, and the preset's where none is connected; the preset is read only if it is needed.

    The preset's encoder serves the preset's own denoiser (also behind Load LoRA) and no other: another one was trained
    with other meanings, or with none. No encoder is given where the denoiser does not look at semantics.
    """
    if denoiser is None or vae is None or (encoder is None and denoiser.name == preset):
        own_denoiser, own_vae, own_encoder = load_preset(preset, precision)
        denoiser, vae = denoiser or own_denoiser, vae or own_vae
        if denoiser.name == own_denoiser.name:
            encoder = encoder or own_encoder
    return denoiser, vae, encoder if denoiser.module.config.semantic_levels else None


def require_denoising(
    denoiser: ComponentHandle, vae: ComponentHandle, encoder: ComponentHandle | None, text: torch.Tensor | None
) -> None:
    """`InputError` for what would fail, or ruin the result, only after the first frames were encoded."""
    from ..setevsr_core.sampling.loop import text_for

    if denoiser.name != vae.name:  # networks of one preset, or of one file, belong together
        checks.require_pair(denoiser.module, vae.module)
    text_for(denoiser.module, text)
    if encoder is None and denoiser.module.config.semantic_levels:
        log.warning("SeTe-VSR: no semantic encoder is connected for %s: its semantic attention is off", denoiser.name)


@contextmanager
def unfinished_folder() -> Iterator[Path]:
    """Where unfinished work waits for the same prompt to be queued again. It lies in ComfyUI's output folder, because
    ComfyUI empties its temporary one when it starts; it goes away when nothing is unfinished.
    """
    import folder_paths

    from ..setevsr_core.video.journal import drop_abandoned

    folder = folders.made_folder(Path(folder_paths.get_output_directory()) / UNFINISHED, "--output-directory")
    for old in drop_abandoned(folder, KEPT_DAYS):
        log.warning("SeTe-VSR: unfinished work '%s' was not continued for %d days and is dropped", old, KEPT_DAYS)
    try:
        yield folder
    finally:
        with suppress(OSError):  # other work is still unfinished
            folder.rmdir()


NODES = [UpscaleVideo, UpscaleImages]
