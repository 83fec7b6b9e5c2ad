"""Stages that run the sampler inside training.

`decoder`: the decoder learns on latents that the denoiser made. `turbo`: the denoiser learns to arrive in a few steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints.vae import is_added
from ..errors import SettingsError
from ..networks.denoiser import Denoiser
from ..networks.semantic_encoder import SemanticEncoder
from ..networks.temporal_vae import TemporalVAE
from ..sampling import schedules
from .batches import Batch
from .losses import flow_consistency, temporal_difference
from .trainer import Curves, learn_alone
from .vae_stages import Adversary, PictureStage, PixelLoss, enlarge


def rollout(denoiser: Denoiser, lr_latents: Tensor, noise: Tensor, timesteps: tuple[int, ...], *, num_frames: int,
            semantics: Tensor | None) -> Tensor:
    """DDIM over `timesteps` from scaled LR latents (B*T, 4, h, w) to restored ones, with gradients.

    The same arithmetic as `sampling.loop.denoise` without tiles; all clips of a batch go through together.
    """
    assert denoiser.empty_text is not None, "checked when the stage was built"
    text, keys = denoiser.project_text(denoiser.empty_text), denoiser.project_semantics(semantics)
    noisy = schedules.add_noise(lr_latents, noise, timesteps[0])
    for timestep, previous in zip(timesteps, schedules.previous_timesteps(timesteps), strict=True):
        times = torch.full((len(noisy),), timestep, dtype=torch.long, device=noisy.device)
        maps = denoiser.encode_lr(lr_latents, times)
        eps = denoiser(noisy, times, num_frames=num_frames, lr_maps=maps, text=text, semantics=keys).float()
        noisy = schedules.ddim_step(noisy, eps, timestep, previous)
    return noisy


class RolloutStage(PictureStage):
    """What both stages share: the conditions of a batch, a rollout of `steps` at `strength`, losses on whole clips.

    difference_weight, flow_weight: of the losses on frame-to-frame changes and along the optical flow.
    """

    def __init__(self, vae: TemporalVAE, denoiser: Denoiser, encoder: SemanticEncoder | None, pixel_loss: PixelLoss,
                 adversary: Adversary | None, *, lr_share: float, strength: float, steps: tuple[int, ...],
                 difference_weight: float = 0.5, flow_weight: float = 0.5):
        super().__init__({"vae": vae}, pixel_loss, adversary)
        self.vae, self.denoiser, self.encoder = vae, denoiser, encoder
        self.lr_share, self.runs = lr_share, [schedules.linspace_timesteps(n, strength) for n in steps]
        self.difference_weight, self.flow_weight = difference_weight, flow_weight

    @torch.no_grad()
    def conditions(self, batch: Batch) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Scaled latents and features of the LR frames, and their semantics."""
        latents, _, features = self.vae.encode(enlarge(batch.lr, batch.hr))
        semantics = None if self.encoder is None else self.encoder((batch.lr.movedim(1, -1) + 1) / 2)
        return latents.float() * self.vae.config.scaling_factor, features, semantics

    def restore(self, batch: Batch, lr_latents: Tensor, noise: Tensor, semantics: Tensor | None) -> Tensor:
        """Scaled latents after one of the stage's runs, drawn at random."""
        run = self.runs[int(batch.chance() * len(self.runs))]
        return rollout(self.denoiser, lr_latents, noise, run, num_frames=batch.num_frames, semantics=semantics)

    def decode(self, latents: Tensor, features: list[Tensor], batch: Batch) -> Tensor:
        """Pictures of scaled latents."""
        return self.vae.decode(latents / self.vae.config.scaling_factor, features, num_frames=batch.num_frames).float()

    def clip_losses(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The losses on single pictures and on their change over time."""
        losses = self.picture_losses(prediction, batch)
        losses["difference"] = self.difference_weight * temporal_difference(prediction, batch.hr, batch.num_frames)
        if self.flow_weight:
            losses["flow"] = self.flow_weight * flow_consistency(prediction, batch.hr, batch.num_frames)
        return losses

    def sample(self, batch: Batch) -> list[Tensor]:
        lr_latents, features, semantics = self.conditions(batch)
        made = self.restore(batch, lr_latents, batch.randn(lr_latents.shape), semantics)
        return [enlarge(batch.lr, batch.hr), self.decode(lr_latents, features, batch),
                self.decode(made, features, batch), batch.hr]


@dataclass(frozen=True)
class Learning:
    """Which of the decoder's weights learn.

    everything: all, or only what SD's decoder has not: temporal and fusion layers (the baseline's choice), trunk and
    refinement.
    freeze_trunk: a trunk keeps what it has, but for `join`, by which it hears of the latents.
    """

    everything: bool = False
    freeze_trunk: bool = False

    def of(self, vae: TemporalVAE) -> list[nn.Parameter]:
        return [parameter for name, parameter in vae.named_parameters() if self._takes(name)]

    def _takes(self, name: str) -> bool:
        if not name.startswith(("decoder.", "post_quant_conv.")) or not (self.everything or is_added(name)):
            return False
        return not self.freeze_trunk or not name.startswith("decoder.trunk.") or ".join." in name


class DecoderStage(RolloutStage):
    """The temporal decoder on segments, with latents as the denoiser makes them (MGLD-VSR's second training).

    A share of the batches decodes LR latents, so that the decoder also serves without diffusion.
    """

    name = "decoder"

    def __init__(self, vae: TemporalVAE, denoiser: Denoiser, encoder: SemanticEncoder | None, pixel_loss: PixelLoss,
                 adversary: Adversary | None = None, *, learning: Learning = Learning(), lr_share: float = 0.25,
                 strength: float = 1.0, steps: tuple[int, ...] = (2, 4), flow_weight: float = 0.5):
        super().__init__(vae, denoiser, encoder, pixel_loss, adversary, lr_share=lr_share, strength=strength,
                         steps=steps, flow_weight=flow_weight)
        self.learning = learning
        denoiser.requires_grad_(False)
        learn_alone(vae, self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        return self.learning.of(self.vae)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        latents, features, semantics = self.conditions(batch)
        if batch.chance() >= self.lr_share:
            with torch.no_grad():
                latents = self.restore(batch, latents, batch.randn(latents.shape), semantics)
        return self.clip_losses(self.decode(latents, features, batch), batch)


class TurboStage(RolloutStage):
    """The denoiser learns to arrive in a few steps: its own rollout, from noise to picture, is what the loss sees.

    The latents it arrives at are drawn to those of the clean frame or, with `teacher_steps`, to where the frozen
    `teacher` arrives from the same noise in so many steps. With `pixels` the decoded pictures count too; with
    `with_decoder` the decoder learns along, on a share of LR latents as in the stage `decoder`. Step counts and names
    of the network stay the same, so a preset gains a fast mode by its settings alone.
    Errors: SettingsError for a decoder that would learn without pictures.
    """

    name = "turbo"

    def __init__(self, vae: TemporalVAE, denoiser: Denoiser, encoder: SemanticEncoder | None, pixel_loss: PixelLoss,
                 adversary: Adversary | None = None, *, strength: float = 1.0, steps: tuple[int, ...] = (4,),
                 lr_share: float = 0.25, latent_weight: float = 1.0, pixels: bool = True, with_decoder: bool = False,
                 learning: Learning = Learning(), teacher: Denoiser | None = None, teacher_steps: int = 0,
                 flow_weight: float = 0.5):
        if with_decoder and not pixels:
            raise SettingsError("the decoder cannot learn along from latents alone: give --pixels beside "
                                "--with-decoder, or leave --with-decoder out")
        super().__init__(vae, denoiser, encoder, pixel_loss, adversary, lr_share=lr_share, strength=strength,
                         steps=steps, flow_weight=flow_weight)
        self.latent_weight, self.pixels, self.with_decoder, self.learning = (
            latent_weight, pixels, with_decoder, learning
        )
        self.teacher = None if teacher is None else teacher.requires_grad_(False)
        self.teacher_run = schedules.linspace_timesteps(teacher_steps, strength) if teacher is not None else ()
        learn_alone(vae, self._decoder_parameters())
        denoiser.requires_grad_(True)
        self.networks: dict[str, nn.Module] = {"denoiser": denoiser}
        if with_decoder:
            self.networks["vae"] = vae

    def parameters(self) -> list[nn.Parameter]:
        return [*self.denoiser.parameters(), *self._decoder_parameters()]

    def _decoder_parameters(self) -> list[nn.Parameter]:
        return self.learning.of(self.vae) if self.with_decoder else []

    def gradient_path(self) -> list[nn.Module]:
        return [*super().gradient_path(), *([self.vae.decoder] if self.pixels and not self.with_decoder else [])]

    @torch.no_grad()
    def _target(self, batch: Batch, lr_latents: Tensor, noise: Tensor, semantics: Tensor | None) -> Tensor:
        if self.teacher is not None:
            return rollout(self.teacher, lr_latents, noise, self.teacher_run, num_frames=batch.num_frames,
                           semantics=semantics)
        return self.vae.encode(batch.hr)[0].float() * self.vae.config.scaling_factor

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        lr_latents, features, semantics = self.conditions(batch)
        if self.with_decoder and batch.chance() < self.lr_share:
            losses = self.clip_losses(self.decode(lr_latents, features, batch), batch)
            return {"latent": lr_latents.new_zeros(()), **losses}
        noise = batch.randn(lr_latents.shape)
        made = self.restore(batch, lr_latents, noise, semantics)
        target = self._target(batch, lr_latents, noise, semantics)
        losses = {"latent": self.latent_weight * F.mse_loss(made, target)}
        return losses | (self.clip_losses(self.decode(made, features, batch), batch) if self.pixels else {})

    def after_step(self, batch: Batch, step: int) -> Curves:
        return super().after_step(batch, step) if self.pixels else {}
