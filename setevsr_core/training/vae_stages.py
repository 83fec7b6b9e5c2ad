"""Losses on decoded pictures, and the stage `vae`: encoder, decoder and fusion together, from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.temporal_vae import TemporalVAE
from .batches import Batch
from .losses import (
    PatchDiscriminator,
    PerceptualLoss,
    hinge_discriminator,
    is_fake,
    kl_to_standard_normal,
)
from .processes import Processes
from .trainer import Curves, Stage, learn_alone


def enlarge(lr: Tensor, hr: Tensor) -> Tensor:
    """The LR frames at HR size, as the encoder sees them: bicubic, clamped to -1..1."""
    return F.interpolate(lr, hr.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)


class PixelLoss:
    """L1 on whole pictures, and LPIPS (VGG) on windows of at most `images` of them.

    LPIPS costs several times what a small decoder costs. A window of `patch` pixels (0: the whole picture) at a random
    place of each picture buys more, and more varied, pictures for the same time; LPIPS itself was fitted on 64 px.
    """

    def __init__(self, perceptual: PerceptualLoss | None, weight: float, images: int, patch: int = 0,
                 l1_weight: float = 1.0):
        self.perceptual, self.weight, self.images, self.patch = perceptual, weight, images, patch
        self.l1_weight = l1_weight

    def __call__(self, prediction: Tensor, target: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = {"l1": self.l1_weight * F.l1_loss(prediction, target)}
        if self.perceptual is not None and self.weight:
            stride = math.ceil(len(prediction) / self.images)
            seen = random_windows(prediction[::stride], target[::stride], self.patch, batch)
            losses["lpips"] = self.weight * self.perceptual(*seen)
        return losses


def random_windows(prediction: Tensor, target: Tensor, side: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """The same random window of `side` pixels of each prediction and target (N, 3, H, W); 0 or too large: all of it.

    Fake tensors draw no places: they show the upper left window, which takes the same memory.
    """
    height, width = prediction.shape[-2:]
    if not 0 < side < min(height, width):
        return prediction, target
    drawn = torch.rand(len(prediction), 2, generator=batch.generator)  # on the CPU: a GPU would have to be waited for
    room = torch.tensor([height - side + 1, width - side + 1])
    places = [[0, 0]] * len(prediction) if is_fake(drawn) else (drawn * room).long().tolist()
    return tuple(  # type: ignore[return-value]
        torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(pictures, places, strict=True)])
        for pictures in (prediction, target)
    )


class Adversary:
    """A patch discriminator with its own optimiser, whose say starts at `start` steps."""

    def __init__(self, weight: float, start: int, learning_rate: float, device: torch.device | str,
                 channels: int = 48):
        self.weight, self.start, self.active = weight, start, False
        with torch.device(device):
            self.network = PatchDiscriminator(channels)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate, betas=(0.5, 0.9))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Inside, its say counts from the first step and nothing in it changes: for a step without data."""
        active, self.active = self.active, True
        self.network.eval()  # in training, spectral normalisation goes a step on whenever it is used
        try:
            yield
        finally:
            self.active = active
            self.network.train()

    def loss(self, prediction: Tensor) -> Tensor:
        """What the generator pays; the discriminator's own gradients from it are thrown away at its next step."""
        if not self.active:
            return prediction.new_zeros(())
        return -self.weight * self.network(prediction).mean()

    def judge(self, prediction: Tensor, target: Tensor) -> Tensor:
        """What the discriminator pays, in fp32 whatever autocast says: its gradients go without loss scaling."""
        with torch.autocast(prediction.device.type, enabled=False):
            return hinge_discriminator(self.network(target.float()), self.network(prediction.detach().float()))

    def learn(self, prediction: Tensor, target: Tensor, step: int, processes: Processes) -> Curves:
        """One step of the discriminator on pictures (N, 3, H, W); returns its loss for the curves."""
        self.active = step >= self.start
        if step < self.start - 100:  # it warms up before its word counts
            return {"discriminator": 0.0}
        loss = self.judge(prediction, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.average(self.network.parameters())
        self.optimizer.step()
        return {"discriminator": loss.detach()}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "active": self.active}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.active = state["active"]


class PictureStage(Stage):
    """A stage whose losses look at decoded pictures, with an optional discriminator beside them."""

    def __init__(self, networks: dict[str, nn.Module], pixel_loss: PixelLoss, adversary: Adversary | None):
        self.networks, self.pixel_loss, self.adversary = networks, pixel_loss, adversary
        self._last: tuple[Tensor, Tensor] | None = None

    def helpers(self) -> list[nn.Module]:
        """The networks that its losses compute with."""
        found = (self.pixel_loss.perceptual, self.adversary and self.adversary.network)
        return [network for network in found if network is not None]

    def picture_losses(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """L1, LPIPS and what the discriminator says of a prediction (N, 3, H, W) of the batch's clean frames."""
        self._last = (prediction.detach(), batch.hr)
        losses = self.pixel_loss(prediction, batch.hr, batch)
        if self.adversary:
            losses["adversarial"] = self.adversary.loss(prediction)
        return losses

    def judge(self) -> Tensor | None:
        """What the discriminator pays for the pictures that the losses saw last; None without one, or without any."""
        return self.adversary.judge(*self._last) if self.adversary and self._last else None

    def after_step(self, batch: Batch, step: int) -> Curves:
        assert self._last is not None
        return self.adversary.learn(*self._last, step, self.processes) if self.adversary else {}

    def state(self) -> dict[str, Any]:
        return {"adversary": self.adversary.state()} if self.adversary else {}

    def load_state(self, state: dict[str, Any]) -> None:
        if self.adversary:
            self.adversary.load_state(state["adversary"])


class VAEStage(PictureStage):
    """Encoder and decoder with skip fusion, together: reconstruct HR from its latents and the LR features.

    In a share of the batch the latents are those of the LR frame (`lr_share`: the decoder must do well where no
    diffusion has run) and in another share fusion is off (`plain_share`: latents must suffice, but for the frame's own
    pixels where the VAE is residual). `finish` measures the latents and sets `scaling_factor` to 1 / standard
    deviation.
    """

    name = "vae"

    def __init__(self, vae: TemporalVAE, pixel_loss: PixelLoss, adversary: Adversary | None = None, *,
                 kl_weight: float = 1e-4, lr_share: float = 0.35, plain_share: float = 0.15):
        super().__init__({"vae": vae}, pixel_loss, adversary)
        self.vae = vae
        self.kl_weight, self.lr_share, self.plain_share = kl_weight, lr_share, plain_share
        learn_alone(vae, self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.vae.named_parameters() if "temporal" not in name]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        vae = self.vae
        mean, logvar, _ = vae.encode(batch.hr)
        lr_mean, _, features = vae.encode(enlarge(batch.lr, batch.hr))
        # All items of a batch share the decoder; which latents one gets is drawn per item.
        from_lr = batch.rand(len(batch.hr), 1, 1, 1) < self.lr_share
        sampled = mean + (0.5 * logvar).exp() * batch.randn(mean.shape)
        latents = torch.where(from_lr, lr_mean, sampled.to(lr_mean.dtype))
        fused = max(1, round(len(latents) * (1 - self.plain_share)))
        prediction = vae.decode(latents[:fused], [f[:fused] for f in features], num_frames=1)
        if fused < len(latents):
            plain = vae.decode(sampled[fused:].to(lr_mean.dtype), [f[fused:] for f in features], num_frames=1, fusion=0)
            prediction = torch.cat([prediction, plain])
        prediction = prediction.float()
        return self.picture_losses(prediction, batch) | {"kl": self.kl_weight * kl_to_standard_normal(mean, logvar)}

    def finish(self, next_batch: Callable[[], Batch]) -> dict[str, Any]:
        latents = torch.cat([self.vae.encode(next_batch().hr)[0].float() for _ in range(8)])
        factor = 1.0 / float(latents.std())
        self.vae.config = type(self.vae.config).from_dict({**self.vae.config.to_dict(), "scaling_factor": factor})
        return {"scaling_factor": factor}

    def sample(self, batch: Batch) -> list[Tensor]:
        mean, _, _ = self.vae.encode(batch.hr)
        enlarged = enlarge(batch.lr, batch.hr)
        lr_mean, _, features = self.vae.encode(enlarged)
        return [enlarged, self.vae.decode(lr_mean, features, num_frames=1),
                self.vae.decode(mean, features, num_frames=1),
                self.vae.decode(mean, features, num_frames=1, fusion=0), batch.hr]
