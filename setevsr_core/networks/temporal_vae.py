"""The temporal VAE: SD 2.1's autoencoder, with temporal convolutions and skip fusion in the decoder.

The encoder gives latents and two tapped features of the (enlarged) low-resolution frame; the decoder fuses those
features back in, which carries the fidelity that eight-fold compression loses. A plain SD VAE is the same network
with `temporal` and `fusion` off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .baseline_temporal import TemporalConv
from .config import Config
from .descreening import descreen
from .residual import Upsample
from .sharpening import unsharp_mask


@dataclass(frozen=True)
class VAEConfig(Config):
    """Sizes of the autoencoder.

    patch: pixels are folded (`pixel_unshuffle`) by this factor before the first convolution and unfolded after the
    last, so that hardly a convolution runs at full resolution (1 at full size).
    fusion_levels: encoder levels, finest = 0, whose outputs are tapped and fused; growth: width of the dense blocks.
    residual: the decoder predicts what the encoder's pixels lack; the folded pixels ride along with the finest
    feature. A small decoder then learns detail from its first step on, instead of learning to copy.
    decoder_channels: widths of the decoder's levels where they are not the encoder's `channels`; as many as those.
    trunk, trunk_channels: inner convolutions of a plain network (`Trunk`) after the last level, and their width. It
    works on folded pixels, so with `patch` equal to the enlargement on the grid of the low-resolution frame, and makes
    most of a small decoder's detail.
    refine: channels of a residual refinement at full resolution, after the unfolding (0 for none). Pixels that lie in
    one fold come from different channels of one convolution; only here are they neighbours, so only here can a
    pattern of the fold's period be smoothed.
    descreen: what is decoded loses the detail that neighbouring folds have in common (needs a patch above 1).
    sharpen: amount of an unsharp mask (sigma 1 pixel) on what is decoded. What a small decoder is unsure of comes out
    soft, even where its training asked for sharper frames.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    patch: int = 1
    mid_attention: bool = True
    temporal: bool = True
    fusion_levels: tuple[int, ...] = (1, 2)
    growth: int = 32
    residual: bool = False
    decoder_channels: tuple[int, ...] = ()
    trunk: int = 0
    trunk_channels: int = 128
    refine: int = 0
    descreen: bool = False
    sharpen: float = 0.0
    scaling_factor: float = 0.18215

    def __post_init__(self) -> None:
        """Errors: ValueError for a decoder of more or fewer levels than the encoder."""
        if self.decoder_channels and len(self.decoder_channels) != len(self.channels):
            raise ValueError(f"decoder_channels {self.decoder_channels} and the encoder's channels {self.channels} are "
                             "of different numbers of levels")

    @property
    def downscale(self) -> int:
        """Pixels per latent, along one side."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @classmethod
    def sd21(cls, **changes: Any) -> VAEConfig:
        return cls(**changes)

    @classmethod
    def nano(cls, **changes: Any) -> VAEConfig:
        sizes: dict[str, Any] = {"channels": (96, 128), "patch": 4, "mid_attention": False, "fusion_levels": (0,),
                                 "growth": 8, "residual": True, "decoder_channels": (32, 32), "trunk": 37}
        return cls(**{**sizes, **changes})


class ResnetBlock(nn.Module):
    """GN, SiLU, conv, GN, SiLU, conv, + skip. `shortcut` is the skip convolution's name in the checkpoints."""

    def __init__(self, in_channels: int, out_channels: int, *, shortcut: str = "conv_shortcut", ops: Any = nn,
                 dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.norm1 = ops.GroupNorm(32, in_channels, eps=1e-6, **kw)
        self.conv1 = ops.Conv2d(in_channels, out_channels, 3, padding=1, **kw)
        self.norm2 = ops.GroupNorm(32, out_channels, eps=1e-6, **kw)
        self.conv2 = ops.Conv2d(out_channels, out_channels, 3, padding=1, **kw)
        self.shortcut = shortcut if in_channels != out_channels else None
        if self.shortcut:
            self.add_module(shortcut, ops.Conv2d(in_channels, out_channels, 1, **kw))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (getattr(self, self.shortcut)(x) if self.shortcut else x)


class MidAttention(nn.Module):
    """Self-attention over the pixels of a frame, one head."""

    def __init__(self, channels: int, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.group_norm = ops.GroupNorm(32, channels, eps=1e-6, **kw)
        self.to_q = ops.Linear(channels, channels, **kw)
        self.to_k = ops.Linear(channels, channels, **kw)
        self.to_v = ops.Linear(channels, channels, **kw)
        self.to_out = nn.ModuleList([ops.Linear(channels, channels, **kw)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        # Four dimensions, so that the memory-efficient kernels apply.
        query, key, value = (f(tokens).unsqueeze(1) for f in (self.to_q, self.to_k, self.to_v))
        attended = self.to_out[0](F.scaled_dot_product_attention(query, key, value).squeeze(1))
        return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])


class MidBlock(nn.Module):
    def __init__(self, channels: int, attention: bool, temporal: bool, **kw: Any):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, **kw) for _ in range(2)])
        self.attentions = nn.ModuleList([MidAttention(channels, **kw)] if attention else [])
        self.temporal_convs = nn.ModuleList([TemporalConv(channels, **kw)] if temporal else [])

    def forward(self, x: Tensor, num_frames: int = 1) -> Tensor:
        x = self.resnets[0](x)
        for layer in self.temporal_convs:
            x = layer(x, num_frames)
        for layer in self.attentions:
            x = layer(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    """Half the size; the picture is padded right and below only, as SD's encoder does."""

    def __init__(self, channels: int, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class EncoderLevel(nn.Module):
    def __init__(self, in_channels: int, channels: int, layers: int, downsample: bool, **kw: Any):
        super().__init__()
        self.resnets = nn.ModuleList([
            ResnetBlock(in_channels if i == 0 else channels, channels, **kw) for i in range(layers)
        ])
        self.downsamplers = nn.ModuleList([Downsample(channels, **kw)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) -> moments (N, 2 * latent_channels, H/f, W/f) and the features of the tapped levels."""

    def __init__(self, config: VAEConfig, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw: dict[str, Any] = {"ops": ops, "dtype": dtype, "device": device}
        channels = config.channels
        last = len(channels) - 1
        self.config = config
        self.conv_in = ops.Conv2d(3 * config.patch**2, channels[0], 3, padding=1, dtype=dtype, device=device)
        self.down_blocks = nn.ModuleList([
            EncoderLevel(channels[max(i - 1, 0)], width, config.layers, i < last, **kw)
            for i, width in enumerate(channels)
        ])
        self.mid_block = MidBlock(channels[-1], config.mid_attention, False, **kw)
        self.conv_norm_out = ops.GroupNorm(32, channels[-1], eps=1e-6, dtype=dtype, device=device)
        self.conv_out = ops.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1, dtype=dtype,
                                   device=device)

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        folded = F.pixel_unshuffle(pixels, self.config.patch)
        x = self.conv_in(folded)
        features = []
        for i, level in enumerate(self.down_blocks):
            x = level(x)
            if i in self.config.fusion_levels:
                features.append(x)
            for downsample in level.downsamplers:  # type: ignore[union-attr]
                x = downsample(x)
        x = self.mid_block(x)
        if self.config.residual:
            features[0] = torch.cat([features[0], folded], dim=1)
        return self.conv_out(F.silu(self.conv_norm_out(x))), features


class DenseBlock(nn.Module):
    """Residual dense block: five convolutions that each see all before them, LeakyReLU 0.2, residual times 0.2."""

    def __init__(self, channels: int, growth: int, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        for i in range(5):
            width = growth if i < 4 else channels
            self.add_module(f"conv{i + 1}", ops.Conv2d(channels + i * growth, width, 3, padding=1, **kw))

    def forward(self, x: Tensor) -> Tensor:
        *growing, last = (getattr(self, f"conv{i + 1}") for i in range(5))
        seen = [x]
        for conv in growing:
            seen.append(F.leaky_relu(conv(torch.cat(seen, dim=1)), 0.2))
        return x + 0.2 * last(torch.cat(seen, dim=1))


class Fusion(nn.Module):
    """Decoder feature + weight * f(encoder feature, decoder feature): skip fusion of the low-resolution frame."""

    def __init__(self, encoder_channels: int, channels: int, growth: int, **kw: Any):
        super().__init__()
        self.encode_enc_1 = ResnetBlock(encoder_channels + channels, channels, shortcut="conv_out", **kw)
        self.encode_enc_2 = nn.ModuleList([DenseBlock(channels, growth, **kw) for _ in range(2)])
        self.encode_enc_3 = ResnetBlock(channels, channels, **kw)

    def forward(self, encoded: Tensor, decoded: Tensor, weight: float) -> Tensor:
        x = self.encode_enc_1(torch.cat([encoded, decoded], dim=1))
        for block in self.encode_enc_2:
            x = block(x)
        return decoded + weight * self.encode_enc_3(x)


class DecoderLevel(nn.Module):
    def __init__(self, in_channels: int, channels: int, layers: int, temporal: bool, upsample: bool, **kw: Any):
        super().__init__()
        self.resnets = nn.ModuleList([
            ResnetBlock(in_channels if i == 0 else channels, channels, **kw) for i in range(layers)
        ])
        self.temporal_convs = nn.ModuleList([TemporalConv(channels, **kw) for _ in range(layers)] if temporal else [])
        self.upsamplers = nn.ModuleList([Upsample(channels, **kw)] if upsample else [])

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if len(self.temporal_convs):
                x = self.temporal_convs[i](x, num_frames)
        return x


class Trunk(nn.Module):
    """Folded pixels and the decoder's last feature -> better folded pixels: 3x3 convolutions and PReLU without norms,
    as in Real-ESRGAN's compact network.

    A new trunk is an identity (`initialise.zero_new_modules`). Training may compute it piece by piece (`PIECE` inner
    convolutions) twice, about the root of nano's 37: inputs of the pieces and one piece's inside are kept at a time.
    """

    PIECE = 6

    def __init__(self, config: VAEConfig, feature_channels: int, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw = {"padding": 1, "dtype": dtype, "device": device}
        folded, width = 3 * config.patch**2, config.trunk_channels
        self.conv_in = ops.Conv2d(folded, width, 3, **kw)
        self.join = ops.Conv2d(feature_channels, width, 3, **kw)
        self.convs = nn.ModuleList([ops.Conv2d(width, width, 3, **kw) for _ in range(config.trunk)])
        self.slopes = nn.Parameter(torch.full((config.trunk + 1, width), 0.25, dtype=dtype, device=device))
        self.conv_out = ops.Conv2d(width, folded, 3, **kw)
        self.skip = ops.Conv2d(folded, folded, 3, **kw)

    def forward(self, folded: Tensor, feature: Tensor) -> Tensor:
        """folded (N, 3 patch^2, h, w) near -1..1, feature (N, C, h, w) -> the shape of `folded`.

        A processor takes frame by frame: what one convolution leaves is still in its cache for the next, and glibc
        keeps blocks of that size. Training takes all at once.
        """
        if folded.device.type == "cpu" and not torch.is_grad_enabled():
            return torch.cat([self._frames(*frame) for frame in zip(folded.split(1), feature.split(1), strict=True)])
        return self._frames(folded, feature)

    def _frames(self, folded: Tensor, feature: Tensor) -> Tensor:
        x = self.conv_in(folded) + self.join(feature)
        slopes = self.slopes.to(x)
        for start in range(0, len(self.convs), self.PIECE):
            x = self.piece(x, slopes, start)
        return self.skip(folded) + self.conv_out(F.prelu(x, slopes[-1]))

    def piece(self, x: Tensor, slopes: Tensor, start: int) -> Tensor:
        """The next inner convolutions from `start` on, (N, width, h, w) -> the same."""
        for i in range(start, min(start + self.PIECE, len(self.convs))):
            x = self.convs[i](F.prelu(x, slopes[i]))
        return x


class Refinement(nn.Module):
    """Pixels + f(pixels, what the decoder unfolds for it), two convolutions at full resolution.

    `conv2` starts at zero (`initialise.zero_new_modules`), which makes a fresh module an identity.
    """

    def __init__(self, channels: int, width: int, patch: int, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw = {"padding": 1, "dtype": dtype, "device": device}
        self.patch = patch
        self.unfold = ops.Conv2d(channels, width * patch**2, 3, **kw)
        self.conv1 = ops.Conv2d(3 + width, width, 3, **kw)
        self.conv2 = ops.Conv2d(width, 3, 3, **kw)

    def forward(self, pixels: Tensor, hidden: Tensor) -> Tensor:
        """pixels (N, 3, H, W), hidden (N, C, H/patch, W/patch) -> pixels of the same shape."""
        unfolded = F.pixel_shuffle(self.unfold(hidden), self.patch)
        return pixels + self.conv2(F.silu(self.conv1(torch.cat([pixels, unfolded], dim=1))))


class Decoder(nn.Module):
    """Latents (B*T, latent_channels, h, w) -> pixels (B*T, 3, H, W)."""

    def __init__(self, config: VAEConfig, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw: dict[str, Any] = {"ops": ops, "dtype": dtype, "device": device}
        channels = config.decoder_channels or config.channels
        self.config = config
        self.conv_in = ops.Conv2d(config.latent_channels, channels[-1], 3, padding=1, dtype=dtype, device=device)
        self.mid_block = MidBlock(channels[-1], config.mid_attention, config.temporal, **kw)
        self.up_blocks = nn.ModuleList()
        previous = channels[-1]
        for i, width in reversed(list(enumerate(channels))):
            self.up_blocks.append(DecoderLevel(previous, width, config.layers + 1, config.temporal, i > 0, **kw))
            previous = width
        # The numbers in these names count levels from the finest, as the released checkpoints do.
        for level in config.fusion_levels:
            fusion = Fusion(config.channels[level], channels[level], config.growth, **kw)
            self.add_module(f"fusion_layer_{level}", fusion)
        # A residual decoder has no last norm: while its corrections are still bad, training would silence them all by
        # one huge activation in a corner, which the norm spreads over the frame, and never come back from there.
        self.conv_norm_out = nn.Identity() if config.residual else ops.GroupNorm(
            32, channels[0], eps=1e-6, dtype=dtype, device=device
        )
        self.conv_out = ops.Conv2d(channels[0], 3 * config.patch**2, 3, padding=1, dtype=dtype, device=device)
        if config.trunk:
            self.trunk = Trunk(config, channels[0], **kw)
        if config.refine:
            self.refinement = Refinement(channels[0], config.refine, config.patch, **kw)

    def forward(self, latents: Tensor, features: list[Tensor] | None, num_frames: int, fusion: float) -> Tensor:
        base = None
        if self.config.residual and features is not None:
            width = self.config.channels[self.config.fusion_levels[0]]
            base, features = features[0][:, width:], [features[0][:, :width], *features[1:]]
        x = self.mid_block(self.conv_in(latents), num_frames)
        for k, block in enumerate(self.up_blocks):
            level = len(self.up_blocks) - 1 - k
            x = block(x, num_frames)
            if features is not None and fusion and level in self.config.fusion_levels:
                feature = features[self.config.fusion_levels.index(level)]
                x = getattr(self, f"fusion_layer_{level}")(feature, x, fusion)
            for upsample in block.upsamplers:  # type: ignore[union-attr]
                x = upsample(x)
        hidden = F.silu(self.conv_norm_out(x))
        folded = self.conv_out(hidden) if base is None else self.conv_out(hidden) + base
        if self.config.trunk:
            folded = self.trunk(folded, hidden)
        pixels = F.pixel_shuffle(folded, self.config.patch)
        return self.refinement(pixels, hidden) if self.config.refine else pixels


class TemporalVAE(nn.Module):
    """Autoencoder between pixels in -1..1 and *unscaled* latents; `config.scaling_factor` scales them for diffusion."""

    def __init__(self, config: VAEConfig, *, ops: Any = nn, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        kw: dict[str, Any] = {"ops": ops, "dtype": dtype, "device": device}
        latents = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, **kw)
        self.decoder = Decoder(config, **kw)
        self.quant_conv = ops.Conv2d(2 * latents, 2 * latents, 1, dtype=dtype, device=device)
        self.post_quant_conv = ops.Conv2d(latents, latents, 1, dtype=dtype, device=device)
        self.dtype = dtype or torch.get_default_dtype()

    def get_dtype(self) -> torch.dtype:
        return self.dtype

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Pixels (N, 3, H, W) in -1..1 -> mean, log-variance (N, 4, H/f, W/f) and the tapped features, finest first.

        At full size f = 8 and the features are (N, 256, H/2, W/2) and (N, 512, H/4, W/4).
        """
        moments, features = self.encoder(pixels)
        mean, logvar = self.quant_conv(moments).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0), features

    def decode(self, latents: Tensor, features: list[Tensor] | None, *, num_frames: int, fusion: float = 1.0) -> Tensor:
        """Unscaled latents (B*T, 4, h, w) and features of `encode` -> pixels (B*T, 3, H, W) near -1..1.

        fusion 0 decodes the latents without the fused features (a residual VAE still adds its pixels), features None
        the latents alone; 1 is what the decoder was trained with.
        """
        if num_frames < 1 or latents.shape[0] % num_frames:
            raise InputError(f"{latents.shape[0]} latents are no whole number of videos of num_frames={num_frames}")
        pixels = self.decoder(self.post_quant_conv(latents), features, num_frames, fusion)
        if self.config.descreen:
            pixels = descreen(pixels, self.config.patch)
        return unsharp_mask(pixels, self.config.sharpen)
