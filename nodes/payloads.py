"""What travels over our sockets, and the checks that two of them belong to the same video."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..setevsr_core.errors import InputError
from ..setevsr_core.video.resize import target_size
from ..setevsr_core.video.segments import Span

LATENT_KEY = "setevsr"
"""Key inside a ComfyUI LATENT under which `LatentNote` rides along."""


@dataclass(frozen=True)
class VideoIdentity:
    """Which frames something was computed from: a fingerprint of their content, and their shape."""

    fingerprint: str
    num_frames: int
    height: int
    width: int

    @classmethod
    def of(cls, frames: Tensor) -> VideoIdentity:
        """Identity of `frames` (N,H,W,C): a hash over a sparse grid of pixels of every frame."""
        count, height, width = frames.shape[:3]
        grid = frames[:, :: max(1, height // 32), :: max(1, width // 32)].to(device="cpu", dtype=torch.float32)
        digest = hashlib.blake2b(grid.contiguous().numpy().tobytes(), digest_size=8)
        return cls(digest.hexdigest(), count, height, width)

    def __str__(self) -> str:
        return f"{self.num_frames} frames of {self.width}x{self.height}"


@dataclass(frozen=True)
class SegmentSet:
    """SEGMENTS: the low-resolution frames (N,H,W,C, 0..1), the spans over them, and, once decoded, each span's result.

    `decoded[i]` is (len(spans[i]), scale*H, scale*W, 3), 0..1, before colour correction.
    """

    frames: Tensor
    spans: tuple[Span, ...]
    scale: float
    identity: VideoIdentity
    decoded: tuple[Tensor, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the enlarged frames."""
        return target_size(self.identity.height, self.identity.width, self.scale)


@dataclass(frozen=True)
class SemanticSet:
    """SEMANTICS: one embedding (N,256,gh,gw) per low-resolution frame."""

    embeddings: Tensor
    identity: VideoIdentity


@dataclass(frozen=True)
class LatentNote:
    """What a LATENT of ours knows beyond its samples.

    Before denoising the batch is one latent per frame; afterwards one per frame of every span, in order. `scaled` are
    the latents as the networks take them: `samples` holds them divided by `factor`, as ComfyUI's convention wants,
    and multiplying back would not always give the same bits. `content`, `preview_matrix`: see `EncodedFrames`.
    """

    identity: VideoIdentity
    spans: tuple[Span, ...]
    scale: float
    factor: float
    scaled: Tensor
    content: tuple[float, float]
    preview_matrix: Tensor
    denoised: bool = False

    @property
    def batch(self) -> int:
        """How many latents belong to this note."""
        return sum(len(span) for span in self.spans) if self.denoised else self.identity.num_frames

    def latent(self) -> dict[str, Any]:
        """The ComfyUI LATENT that carries this note."""
        return {"samples": self.scaled / self.factor, LATENT_KEY: self}


def read_latent(latent: Mapping[str, Any], *, wanted_from: str) -> LatentNote:
    """The note of a LATENT of ours, with `scaled` as its samples are now (another node may have changed them).

    `InputError` for a foreign LATENT, and for one whose batch was cut, repeated or resized on the way.
    """
    note = latent.get(LATENT_KEY)
    if not isinstance(note, LatentNote):
        raise InputError(f"These latents do not come from SeTe-VSR; connect the output of '{wanted_from}'.")
    samples = latent["samples"]
    if samples.shape != note.scaled.shape or len(samples) != note.batch:
        raise InputError(
            f"The latents have the shape {tuple(samples.shape)}, but their video has {tuple(note.scaled.shape)}; "
            "do not cut, repeat or resize latents between SeTe-VSR nodes."
        )
    samples = samples.to(note.scaled)
    if torch.equal(samples, note.scaled / note.factor):
        return note
    return replace(note, scaled=samples * note.factor)


def require_same_video(first: VideoIdentity, second: VideoIdentity, names: tuple[str, str]) -> None:
    """`InputError` if two inputs were computed from different frames."""
    if first == second:
        return
    sizes = f"{first} and {second}" if str(first) != str(second) else f"both {first}, but not the same pictures"
    raise InputError(
        f"{names[0]} and {names[1]} come from different videos ({sizes}); feed both from one 'Split Segments' node."
    )


def require_same_plan(segments: SegmentSet, note: LatentNote) -> None:
    """`InputError` if latents were made with other frames, another scale or another segment layout."""
    require_same_video(segments.identity, note.identity, ("Segments", "latents"))
    if segments.scale != note.scale or segments.spans != note.spans:
        raise InputError(
            f"Segments (scale {segments.scale:g}, {len(segments.spans)} spans) and latents (scale {note.scale:g}, "
            f"{len(note.spans)} spans) were planned differently; feed both from the same 'Split Segments' node."
        )
