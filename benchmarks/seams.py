"""Which way of joining segments shows least: seam energy at segment borders against the same moments inside a segment.

    python -m benchmarks.seams CLIP... [--frames 17] [--crop 384x256] [--length 5] [--overlap 2] [--steps N]

Clips are degraded with fixed seeds and restored by every way of joining, and once as one long segment. The energy of a
moment is the mean absolute difference between the result's change from one frame to the next and the original's: what
flickers that should not. A border's moments are those in which the share of its two segments changes. The last column
divides the energy there by that of the same moments in the one long segment, where nothing is joined.

- hard cut: no overlap.
- crossfade: overlapping segments, decoded frames blended by a raised cosine (what the package does).
- latents per step: the predictions of overlapping segments are blended at every denoising step, then as above.
- known latents: the overlap starts and stays, at every step, at the latents that the segment before arrived at; the
  decoded frames are blended as above.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setevsr_core import Restorer, stages
from setevsr_core.sampling import schedules
from setevsr_core.sampling.noise import START, frames_noise
from setevsr_core.settings import RestoreSettings
from setevsr_core.training.degradation import Degradation
from setevsr_core.training.sources import read_window
from setevsr_core.video.segments import Span, plan_spans
from setevsr_core.video.stitch import Stitcher, crossfade_weights

from .measuring import begin

SCALE = 4


@dataclass
class Clip:
    """A clip with everything that does not depend on the segments."""

    restorer: Restorer
    settings: RestoreSettings
    frames: Tensor  # (T, h, w, 3)
    latents: Tensor
    semantics: Tensor | None
    noise: Tensor
    timesteps: tuple[int, ...]

    def predict(self, noisy: Tensor, span: Span, timestep: int) -> Tensor:
        """The noise that the denoiser sees in the frames of `span`; noisy: their latents."""
        net, part = self.restorer.denoiser, slice(span.start, span.stop)
        times = torch.full((len(span),), timestep, dtype=torch.long)
        semantics = None if self.semantics is None else net.project_semantics(self.semantics[part].to(net.dtype))
        maps = net.encode_lr(self.latents[part].to(net.dtype), times)
        return net(noisy.to(net.dtype), times, num_frames=len(span), lr_maps=maps,
                   text=net.project_text(net.empty_text), semantics=semantics).float()  # fmt: skip

    def decode(self, latents: Tensor, span: Span) -> Tensor:
        frames = self.frames[span.start : span.stop]
        return stages.decode_span(self.restorer.vae, latents, frames, SCALE, colour=self.settings.colour)


def separately(clip: Clip, spans: Sequence[Span]) -> list[Tensor]:
    """Latents of every segment, each denoised by itself."""
    return [_denoise(clip, span, None) for span in spans]


def with_known(clip: Clip, spans: Sequence[Span]) -> list[Tensor]:
    """As `separately`; where a segment overlaps the one before, it keeps that one's latents at every step."""
    results: list[Tensor] = []
    for span, before in zip(spans, [None, *spans], strict=False):
        known = None if before is None else results[-1][span.start - before.start :]
        results.append(_denoise(clip, span, known))
    return results


def _denoise(clip: Clip, span: Span, known: Tensor | None) -> Tensor:
    part = slice(span.start, span.stop)
    noise = clip.noise[part]
    noisy = schedules.add_noise(clip.latents[part], noise, clip.timesteps[0])
    for timestep, previous in _moves(clip):
        if known is not None:
            noisy[: len(known)] = schedules.add_noise(known, noise[: len(known)], timestep)
        noisy = schedules.ddim_step(noisy, clip.predict(noisy, span, timestep), timestep, previous)
    if known is not None:
        noisy[: len(known)] = known
    return noisy


def blended_per_step(clip: Clip, spans: Sequence[Span]) -> list[Tensor]:
    """All segments go through every step together; where they overlap, their predictions are blended."""
    noisy = schedules.add_noise(clip.latents, clip.noise, clip.timesteps[0])
    for timestep, previous in _moves(clip):
        eps = torch.zeros_like(noisy)
        end = 0
        for span in spans:
            seen = clip.predict(noisy[span.start : span.stop], span, timestep)
            overlap = max(0, end - span.start)
            if overlap:
                weights = crossfade_weights(overlap).view(-1, 1, 1, 1)
                seen[:overlap] = torch.lerp(eps[span.start : end], seen[:overlap], weights)
            eps[span.start : span.stop], end = seen, span.stop
        noisy = schedules.ddim_step(noisy, eps, timestep, previous)
    return [noisy[span.start : span.stop] for span in spans]


def _moves(clip: Clip) -> list[tuple[int, int]]:
    return list(zip(clip.timesteps, schedules.previous_timesteps(clip.timesteps), strict=True))


def stitched(clip: Clip, spans: Sequence[Span], latents: Sequence[Tensor]) -> Tensor:
    stitcher = Stitcher()
    blocks = [stitcher.push(span, clip.decode(part, span)) for span, part in zip(spans, latents, strict=True)]
    return torch.cat([*blocks, stitcher.finish()])


def energies(result: Tensor, truth: Tensor) -> Tensor:
    """(T-1,): levels of 255 by which the change between two frames differs from the original's."""
    return 255 * (result.diff(dim=0) - truth.diff(dim=0)).abs().mean(dim=(1, 2, 3))


def border_moments(spans: Sequence[Span]) -> list[int]:
    """The t whose change from frame t to t+1 lies in or at the edge of a border."""
    return sorted({t for old, new in zip(spans, spans[1:], strict=False) for t in range(new.start - 1, old.stop)})


@torch.inference_mode()
def prepare(restorer: Restorer, path: Path, args: argparse.Namespace, seed: int) -> tuple[Clip, Tensor]:
    """The degraded clip, and the original (T, H, W, 3) in 0..1."""
    width, height = (int(side) for side in args.crop.split("x"))
    window = read_window(path, 0.0, args.frames)
    top, left = (window[0].shape[0] - height) // 2, (window[0].shape[1] - width) // 2
    clean = [frame[top : top + height, left : left + width] for frame in window]
    bad = torch.stack([torch.from_numpy(f.copy()) for f in Degradation().stream(iter(clean), seed, SCALE)])
    frames = bad.float() / 255
    settings = restorer.settings(scale=SCALE, steps=args.steps, sampler="ddim")
    encoded = stages.encode_latents(restorer.vae, frames, SCALE)
    semantics = stages.encode_semantics(restorer.encoder, frames) if restorer.encoder is not None else None
    noise = frames_noise(0, range(len(frames)), START, encoded.latents.shape[1:])
    timesteps = schedules.linspace_timesteps(settings.steps, settings.strength)
    clip = Clip(restorer, settings, frames, encoded.latents.float(), semantics, noise, timesteps)
    return clip, torch.stack([torch.from_numpy(f.copy()) for f in clean]).float() / 255


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--crop", default="384x256", help="size of the original's centre, multiples of 64")
    parser.add_argument("--length", type=int, default=5)
    parser.add_argument("--overlap", type=int, default=2)
    parser.add_argument("--steps", type=int, help="default: the preset's")
    args = parser.parse_args(arguments)
    restorer = Restorer.from_preset("nano", "cpu", torch.float32)
    begin(f"{len(args.clips)} clips, {args.frames} frames, centre {args.crop}, segments of {args.length}, nano with "
          f"{restorer.settings(steps=args.steps).steps} steps", dtype=torch.float32, seed="degradation 1000..")
    ways: dict[str, tuple[int, Callable[..., Any]]] = {
        "hard cut": (0, separately),
        **{f"crossfade, overlap {n}": (n, separately) for n in sorted({1, args.overlap, args.length - 1})},
        f"latents per step, overlap {args.overlap}": (args.overlap, blended_per_step),
        f"known latents, overlap {args.overlap}": (args.overlap, with_known),
    }
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in ways}
    for seed, path in enumerate(args.clips, 1000):
        clip, truth = prepare(restorer, path, args, seed)
        whole = (Span(0, len(truth)),)
        inside = energies(stitched(clip, whole, separately(clip, whole)), truth)
        for name, (overlap, way) in ways.items():
            spans = plan_spans(len(truth), args.length, overlap)
            found, moments = energies(stitched(clip, spans, way(clip, spans)), truth), border_moments(spans)
            sums[name] += torch.tensor([found[moments].mean(), inside[moments].mean(), found.mean()])
    print("| joined by | energy at borders | the same moments, not joined | energy everywhere | seam |")
    print("|---|---|---|---|---|")
    for name, values in sums.items():
        border, inside, everywhere = (values / len(args.clips)).tolist()
        print(f"| {name} | {border:.2f} | {inside:.2f} | {everywhere:.2f} | {border / inside:.3f} |")


if __name__ == "__main__":
    main()
