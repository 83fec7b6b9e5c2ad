"""One segment after another through all stages, with what consecutive segments share computed once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from . import stages, vae_tiles
from .memory import ShrinkingTiles
from .progress import SegmentProgress
from .settings import RestoreSettings
from .streaming import Segments
from .video.resize import target_size
from .video.segments import Span

log = logging.getLogger(__name__)

SMALLEST_TILE = 16  # latents along one side of the denoiser's tiles, where the memory is full
STEP_NUMBERS = 20  # that a step holds at least, for each latent of its tile and each channel of the finest level
FEATURE_BUDGET = 2 * 2**30  # bytes of skip features kept per segment; beyond it they are computed twice instead

Value = TypeVar("Value")


class Networks(Protocol):
    """What a run needs of a `Restorer`."""

    denoiser: Any
    vae: Any
    encoder: Any
    device: torch.device
    vae_device: torch.device
    free_memory: Callable[[torch.device], int]
    prepare: Callable[[str], None]
    preview: Callable[[Tensor, Tensor], Tensor]


def reads_semantics(networks: Networks, settings: RestoreSettings) -> bool:
    """Whether somebody gives semantics and somebody looks at them."""
    return networks.encoder is not None and bool(settings.steps and networks.denoiser.config.semantic_levels)


def denoiser_tiles(
    denoiser: Any, tile: int, latents: Tensor, device: torch.device, free_memory: Callable[[torch.device], int],
    remedy: str,
) -> ShrinkingTiles:  # fmt: skip
    """The denoiser's tiles for a segment's `latents` (T,4,h,w), to be chosen when its weights are loaded.

    On a GPU a tile is not tried whose step is sure to find too little memory. On a processor every tile is: what is
    free there changes all the time, and goes on in the swap.
    """
    frames, _, *grid = latents.shape
    tiles = ShrinkingTiles(tile, max(grid), SMALLEST_TILE, device, "the denoiser", remedy, "tile")
    if device.type in ("cuda", "xpu"):
        each = STEP_NUMBERS * frames * denoiser.config.channels[0] * denoiser.dtype.itemsize
        tiles.fit(lambda side: each * math.prod(min(side or whole, whole) for whole in grid), free_memory(device))
    return tiles


class SegmentRun:
    """The state of one restoration: latents, features and semantics of the last segment's frames, by frame index."""

    def __init__(
        self,
        networks: Networks,
        settings: RestoreSettings,
        bar: SegmentProgress,
        text: Tensor | None = None,
        check_cancel: Callable[[], None] | None = None,
    ) -> None:
        self._networks = networks
        self._settings = settings
        self._bar = bar
        self._text = text
        self._check_cancel = check_cancel
        self._encoded: dict[int, stages.EncodedFrames] = {}
        self._semantics: dict[int, Tensor] = {}
        self._keep_features = vae_tiles.uses_features(networks.vae.config, settings.fusion)
        self._tiles: dict[int, vae_tiles.FittingTiles] = {}  # by the frames that are computed together
        self._denoising: ShrinkingTiles | None = None

    def compute(self, segments: Segments) -> Iterator[tuple[Span, Callable[[], Tensor]]]:
        """`streaming.Compute` in this process: a segment is restored when its pictures are asked for."""
        for span, segment in segments:
            yield span, partial(self.restore, span, segment)

    def reporting(self, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        """`blocks` as they are; after the last one the log says which setting was too large for the memory."""
        yield from blocks
        for tiles in (self._denoising, *self._tiles.values()):
            if tiles is not None:
                tiles.report()

    def restore(self, span: Span, segment: Tensor) -> Tensor:
        """One segment (T,H,W,3|4) all the way to pictures (T,sH,sW,3|4). Segments come in rising order: what two of
        them share is computed once.
        """
        networks, settings, bar = self._networks, self._settings, self._bar
        bar.begin(span.stop)
        colours = segment[..., :3]
        encoded = self._encode(span, colours)
        semantics = self._read_semantics(span, colours)
        latents = self._denoise(span, encoded, semantics) if settings.steps else encoded.latents
        networks.prepare("vae")
        bar.update("decode", 0.0, "decoding")

        def decode(tile: int) -> Tensor:
            return stages.decode_span(
                networks.vae,
                latents,
                colours,
                settings.scale,
                features=encoded.features,
                fusion=settings.fusion,
                colour=settings.colour,
                steady_result=settings.steady_result,
                tile=tile,
                device=networks.vae_device,
                check_cancel=self._check_cancel,
            )

        pictures = self._fitting(encoded.size, settings.length).run(decode)
        bar.update("decode", 1.0, "decoded")
        if segment.shape[-1] == 4:
            pictures = torch.cat([pictures, stages.upscale_alpha(segment[..., 3:], settings.scale)], dim=-1)
        return pictures.clone()  # outside inference mode: an ordinary tensor for the caller

    def _encode(self, span: Span, frames: Tensor) -> stages.EncodedFrames:
        """Latents of the segment, with skip features if they fit the budget; only new frames are computed."""

        networks, scale = self._networks, self._settings.scale
        tiles = self._fitting(target_size(frames.shape[1], frames.shape[2], scale), 1)
        options = {"device": networks.vae_device, "check_cancel": self._check_cancel}

        def encode(frame: Tensor) -> stages.EncodedFrames:
            keep = self._keep_features
            encoded = tiles.run(
                lambda tile: stages.encode_latents(networks.vae, frame, scale, keep_features=keep, tile=tile, **options)
            )
            kept = sum(feature.nbytes for feature in encoded.features or ()) * self._settings.length
            if kept <= FEATURE_BUDGET:
                return encoded
            log.info("skip features of a segment take %.1f GiB: they are computed again to decode", kept / 2**30)
            self._keep_features = False
            return replace(encoded, features=None)

        return stages.join_frames(self._fill(self._encoded, "vae", "encode", span, frames, encode))

    def _denoise(self, span: Span, encoded: stages.EncodedFrames, semantics: Tensor | None) -> Tensor:
        """Restored latents of the segment, in smaller tiles where the memory is full."""
        networks, bar = self._networks, self._bar

        def on_step(index: int, steps: int, noisy: Tensor, clean: Tensor) -> None:
            picture = networks.preview(clean[:1], encoded.preview_matrix)[0].cpu()
            bar.update("denoise", (index + 1) / steps, f"step {index + 1} of {steps}", picture)

        def denoise(tile: int) -> Tensor:
            settings = self._settings.in_tiles(tile)
            return stages.denoise_span(
                networks.denoiser,
                encoded.latents,
                semantics,
                span.indices,
                seed=settings.seed,
                steps=settings.steps,
                sampler=settings.sampler,
                strength=settings.strength,
                text=self._text,
                tile=settings.tile,
                tile_overlap=settings.tile_overlap,
                content=encoded.content,
                device=networks.device,
                on_step=on_step,
                check_cancel=self._check_cancel,
            )

        networks.prepare("denoiser")
        if self._denoising is None:
            self._denoising = denoiser_tiles(
                networks.denoiser, self._settings.tile, encoded.latents, networks.device, networks.free_memory,
                "lower 'length' (frames that are restored together) or 'scale'.",
            )  # fmt: skip
        return self._denoising.run(denoise)

    def _fitting(self, size: tuple[int, int], length: int) -> vae_tiles.FittingTiles:
        """The VAE's tiles for `length` frames at once, chosen when they are first used: then the weights are loaded."""
        if length not in self._tiles:
            networks = self._networks
            self._tiles[length] = vae_tiles.FittingTiles(
                networks.vae, size, length, networks.vae_device, networks.free_memory
            )
        return self._tiles[length]

    def _read_semantics(self, span: Span, frames: Tensor) -> Tensor | None:
        """Semantics of the segment, None where nobody would use them."""
        encoder = self._networks.encoder
        if not reads_semantics(self._networks, self._settings):
            return None

        def read(frame: Tensor) -> Tensor:
            return stages.encode_semantics(
                encoder, frame, device=self._networks.device, check_cancel=self._check_cancel
            )

        return torch.cat(self._fill(self._semantics, "encoder", "semantics", span, frames, read))

    def _fill(
        self,
        known: dict[int, Value],
        network: str,
        stage: str,
        span: Span,
        frames: Tensor,
        compute: Callable[[Tensor], Value],
    ) -> list[Value]:
        """Values of all frames of the segment; forgets frames before it and computes those that are new."""
        for index in [index for index in known if index < span.start]:
            del known[index]
        new = [index for index in span.indices if index not in known]
        if new:
            self._networks.prepare(network)
        for done, index in enumerate(new, 1):
            place = index - span.start
            known[index] = compute(frames[place : place + 1])
            self._bar.update(stage, done / len(new), {"encode": "encoding"}.get(stage, "reading semantics"))
        return [known[index] for index in span.indices]
