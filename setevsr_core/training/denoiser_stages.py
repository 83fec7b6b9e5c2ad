"""The paper's two stages of the denoiser (section III-D) and the training of a small semantic encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.denoiser import Denoiser
from ..networks.semantic_encoder import IMAGENET_MEAN, IMAGENET_STD, SemanticEncoder
from ..networks.temporal_vae import TemporalVAE
from ..sampling.schedules import NUM_TRAIN_TIMESTEPS, abar
from ..video.embeddings import principal_colours
from .batches import Batch
from .trainer import Stage, learn_alone
from .vae_stages import enlarge

NEW_IN_STAGE_2 = ("temporal_transformer.", "temporal_spatial.")
TRAINED_WITH_SD21 = ("semantic_attention.", ".spade.", "lr_encoder.")


class DenoiserStage(Stage):
    """Epsilon-MSE (paper Eq. 1) of the denoiser on latents of the frozen VAE.

    stage1: no temporal modules take part; the timestep is drawn per frame. What learns: everything (`trains="all"`,
    a network without pretrained base) or SeAM, SPADE and the LR encoder (`trains="new"`, on top of SD 2.1).
    stage2: only the temporal transformers and TSAM learn, the rest is frozen; one timestep per clip.
    draws: timesteps and noises per encoded frame; encoding costs a small network as much as learning from it.
    """

    def __init__(self, number: Literal[1, 2], denoiser: Denoiser, vae: TemporalVAE, encoder: SemanticEncoder | None, *,
                 trains: Literal["all", "new"] = "all", semantic_dropout: float = 0.1, draws: int = 1):
        self.name = f"stage{number}"
        self.number, self.denoiser, self.vae, self.encoder = number, denoiser, vae, encoder
        self.trains, self.semantic_dropout, self.draws = trains, semantic_dropout, draws
        self.networks: dict[str, nn.Module] = {"denoiser": denoiser}
        vae.requires_grad_(False)
        self._alphas = torch.tensor([abar(t) for t in range(NUM_TRAIN_TIMESTEPS)])
        learn_alone(denoiser, self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        def learns(name: str) -> bool:
            temporal = any(part in name for part in NEW_IN_STAGE_2)
            if self.number == 2:
                return temporal
            return not temporal and (self.trains == "all" or any(part in name for part in TRAINED_WITH_SD21))

        return [p for name, p in self.denoiser.named_parameters() if learns(name)]

    @torch.no_grad()
    def _conditions(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scaled latents of HR and LR frames, and the semantics (dropped for a share of the batches)."""
        scale = self.vae.config.scaling_factor
        mean, logvar, _ = self.vae.encode(batch.hr)
        latents = (mean + (0.5 * logvar).exp() * batch.randn(mean.shape)) * scale
        lr_latents = self.vae.encode(enlarge(batch.lr, batch.hr))[0] * scale
        if self.encoder is None or batch.chance() < self.semantic_dropout:
            return latents.float(), lr_latents.float(), None
        return latents.float(), lr_latents.float(), self.encoder((batch.lr.movedim(1, -1) + 1) / 2)

    def _predict(self, noisy: Tensor, timesteps: Tensor, lr_latents: Tensor, semantics: Tensor | None,
                 num_frames: int) -> Tensor:
        maps = self.denoiser.encode_lr(lr_latents, timesteps)
        return self.denoiser(noisy, timesteps, num_frames=num_frames, lr_maps=maps, semantics=semantics).float()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        latents, lr_latents, semantics = (
            None if x is None else x.repeat(self.draws, 1, 1, 1) for x in self._conditions(batch)
        )
        assert latents is not None and lr_latents is not None
        frames = 1 if self.number == 1 else batch.num_frames
        draws = batch.rand(len(latents) // frames).repeat_interleave(frames)
        timesteps = (draws * len(self._alphas)).long()
        alpha = self._alphas.to(latents.device, torch.float32)[timesteps][:, None, None, None]
        noise = batch.randn(latents.shape)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        return {"eps_mse": F.mse_loss(self._predict(noisy, timesteps, lr_latents, semantics, frames), noise)}

    @torch.no_grad()
    def finish(self, next_batch: Callable[[], Batch]) -> dict[str, Any]:
        """Loss of the averaged weights on fixed batches, to compare runs."""
        return {"final_eps_mse": sum(float(self.losses(next_batch())["eps_mse"]) for _ in range(8)) / 8}

    def sample(self, batch: Batch) -> list[Tensor]:
        from ..sampling.loop import denoise

        _, lr_latents, semantics = self._conditions(batch)
        scale, count = self.vae.config.scaling_factor, batch.num_frames
        lr_latents = lr_latents[:count]
        latents = denoise(self.denoiser, lr_latents, frame_indices=range(count), seed=0, steps=10, sampler="ddim",
                          strength=1.0, tile=0, semantics=None if semantics is None else semantics[:count])
        enlarged = enlarge(batch.lr, batch.hr)[:count]
        features = self.vae.encode(enlarged)[2]
        decode = [self.vae.decode(x / scale, features, num_frames=count) for x in (lr_latents, latents)]
        return [enlarged, *decode, batch.hr[:count]]


class VGGTeacher(nn.Module):
    """Deep features of clean frames: VGG16 up to relu4_3, at an eighth of the size.

    weights: as of `losses.PerceptualLoss`. device: where the frames will be.
    """

    channels = 512

    def __init__(self, weights: Path | None, device: torch.device | str = "cpu"):
        super().__init__()
        from .losses import vgg_metric

        self.net = vgg_metric(weights, "the semantic stage's teacher", device).net.requires_grad_(False)

    def forward(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels (N, 3, H, W) in -1..1 -> (N, 512, *grid), each feature of norm 1; frames are resized to fit the grid.
        """
        pixels = _resized(pixels, (8 * grid[0], 8 * grid[1]))
        mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        features = self.net(((pixels + 1) / 2 - mean) / std).relu4_3
        return F.normalize(features.float(), dim=1)


class EncoderTeacher(nn.Module):
    """The image embedding of clean frames by a trained semantic encoder, such as SAM 2's; it stays as it is."""

    channels = 256

    def __init__(self, encoder: SemanticEncoder):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

    def forward(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels (N, 3, H, W) in -1..1 -> (N, 256, *grid), each embedding of norm 1.

        The encoder resizes frames to a size of its own, so embeddings are what is resized to the grid here.
        """
        embeddings = self.encoder((pixels.movedim(1, -1) + 1) / 2)
        return F.normalize(_resized(embeddings.float(), grid), dim=1)


Teacher = VGGTeacher | EncoderTeacher


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


class SemanticStage(Stage):
    """A small Hiera encoder learns to see through degradation: from the degraded frame to features of the clean one.

    The teacher's features of the clean frame are predicted by a linear head from the 256-channel embedding; the head
    is thrown away. Loss: 1 - cosine similarity per position.
    """

    name = "semantic"

    def __init__(self, encoder: SemanticEncoder, teacher: Teacher):
        self.encoder, self.teacher = encoder, teacher
        self.head = nn.Conv2d(256, teacher.channels, 1, device=next(encoder.parameters()).device)
        self.networks: dict[str, nn.Module] = {"semantic_encoder": encoder, "head": self.head}

    def parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.head.parameters()]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"cosine": 1 - F.cosine_similarity(*self._features(batch), dim=1).mean()}

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the student predicts of the degraded frames, and what the teacher sees in the clean ones."""
        embedding = self.encoder((batch.lr.movedim(1, -1) + 1) / 2)
        with torch.no_grad():
            target = self.teacher(batch.hr, (embedding.shape[-2], embedding.shape[-1]))
        return self.head(embedding).float(), target

    def sample(self, batch: Batch) -> list[Tensor]:
        """Degraded frames, the student's features and the teacher's (like ones in like colours), and clean frames."""
        predicted, target = self._features(batch)
        size = (batch.hr.shape[-2], batch.hr.shape[-1])
        with torch.autocast("cpu", enabled=False):  # where the colours are computed, whatever the device
            colours = principal_colours(torch.cat([F.normalize(predicted, dim=1), target]), size)
        student, teacher = (colours.movedim(-1, 1) * 2 - 1).to(batch.hr).chunk(2)
        return [enlarge(batch.lr, batch.hr), student, teacher, batch.hr]

    @torch.no_grad()
    def finish(self, next_batch: Callable[[], Batch]) -> dict[str, Any]:
        return {"final_cosine": sum(float(self.losses(next_batch())["cosine"]) for _ in range(8)) / 8}
