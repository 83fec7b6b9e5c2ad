"""The SeTe U-Net: SD 2.1's U-Net with SPADE in every residual block and SeTe-VSR's modules at every attention site.

Module names are diffusers' for all that SD 2.1 has, so its weights map one to one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .baseline_temporal import TemporalAttention, TemporalConv
from .config import Config
from .layers import TimeEmbedding
from .residual import Downsample, ResidualBlock, Upsample
from .spatial_transformer import AttentionSite, KeysValues, SiteModules
from .temporal_transformer import TimePositions, time_positions

Sites = Literal["all", "up", "mid", "none"]


@dataclass(frozen=True)
class DenoiserConfig(Config):
    """Sizes of the U-Net and of the LR encoder.

    `*_sites`: which attention sites carry a module. `*_pooling`: keys and values of SeAM, and of TSAM's spatial branch,
    are averaged over so many tokens each way; this makes a step cheaper and leaves the weights as they are.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    head_dim: int = 64
    context_dim: int = 1024
    latent_channels: int = 4
    spade: bool = True
    map_channels: int = 256
    spade_hidden: int = 128
    lr_channels: tuple[int, ...] = (256, 256, 512, 512)
    lr_layers: int = 2
    lr_heads: int = 4
    baseline_temporal: bool = True
    semantic_levels: tuple[int, ...] = (0, 1, 2, 3)
    semantic_pooling: int = 1
    temporal_sites: Sites = "all"
    temporal_spatial_sites: Sites = "all"
    temporal_spatial_pooling: int = 1

    @classmethod
    def sd21(cls, **changes: Any) -> DenoiserConfig:
        """Full size: SD 2.1's U-Net, MGLD-VSR's LR encoder."""
        return cls(**changes)

    @classmethod
    def nano(cls, **changes: Any) -> DenoiserConfig:
        """The small size that ships with the package and runs on a CPU."""
        sizes: dict[str, Any] = {
            "channels": (64, 64, 96, 128), "head_dim": 32, "context_dim": 32, "map_channels": 64, "spade_hidden": 64,
            "lr_channels": (64, 64, 64, 64), "lr_layers": 1, "baseline_temporal": False,
        }
        return cls(**{**sizes, **changes})

    def lighter(self) -> DenoiserConfig:
        """The same network at less work a step: TSAM on the way up only, keys of SeAM and TSAM pooled two by two.

        It adds no weights and changes none, so any file loads; weights that were trained in full were not made for it.
        """
        sites: Sites = "up" if self.temporal_spatial_sites == "all" else self.temporal_spatial_sites
        return replace(self, temporal_spatial_sites=sites, semantic_pooling=max(2, self.semantic_pooling),
                       temporal_spatial_pooling=max(2, self.temporal_spatial_pooling))

    @property
    def spade_sizes(self) -> tuple[int, int] | None:
        """Channels of the LR maps and of SPADE's hidden layer; None without SPADE."""
        return (self.map_channels, self.spade_hidden) if self.spade else None

    def site(self, part: Literal["down", "mid", "up"], level: int) -> SiteModules:
        """The modules of a site; `level` counts from the finest, the mid block is the level after the coarsest."""

        def chosen(sites: Sites) -> bool:
            return sites == "all" or sites == part

        return SiteModules(level in self.semantic_levels, chosen(self.temporal_sites),
                           chosen(self.temporal_spatial_sites), self.semantic_pooling, self.temporal_spatial_pooling)


@dataclass(frozen=True)
class Conditions:
    """All that a level needs besides its features: time (N, 4C), LR maps finest first, keys/values per site, and the
    frames' places in time.
    """

    time: Tensor
    lr_maps: list[Tensor]
    text: tuple[KeysValues, ...]
    semantics: tuple[KeysValues | None, ...]
    num_frames: int
    positions: TimePositions


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by an attention site where the level has attention."""

    def __init__(self, config: DenoiserConfig, in_channels: list[int], channels: int, first_site: int | None,
                 part: Literal["down", "up"], level: int, **kw: Any):
        super().__init__()
        self.first_site = first_site
        time_dim = 4 * config.channels[0]
        self.resnets = nn.ModuleList([
            ResidualBlock(n, channels, time_dim, config.spade_sizes, **kw) for n in in_channels
        ])
        self.attentions = nn.ModuleList([] if first_site is None else [
            _site(config, channels, part, level, **kw) for _ in in_channels
        ])

    def step(self, i: int, x: Tensor, level: int, c: Conditions) -> Tensor:
        """Residual block i and, where there is one, its attention site."""
        x = self.resnets[i](x, c.time, c.lr_maps[level] if c.lr_maps else None)
        if self.first_site is not None:
            x = _visit(self.attentions[i], self.first_site + i, x, c)
        return x


class DownBlock(Level):
    def __init__(self, *args: Any, downsample: bool, **kw: Any):
        super().__init__(*args, **kw)
        self.downsamplers = nn.ModuleList([Downsample(args[2], **kw)] if downsample else [])


class UpBlock(Level):
    def __init__(self, *args: Any, upsample: bool, **kw: Any):
        super().__init__(*args, **kw)
        self.upsamplers = nn.ModuleList([Upsample(args[2], **kw)] if upsample else [])


class MidBlock(nn.Module):
    """Residual block, attention site, residual block; MGLD-VSR's three temporal layers in between."""

    def __init__(self, config: DenoiserConfig, site: int, **kw: Any):
        super().__init__()
        channels, time_dim = config.channels[-1], 4 * config.channels[0]
        self.site = site
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels, time_dim, config.spade_sizes, **kw)
                                      for _ in range(2)])
        self.attentions = nn.ModuleList([_site(config, channels, "mid", len(config.channels) - 1, **kw)])
        baseline = config.baseline_temporal
        self.temporal_convs = nn.ModuleList([TemporalConv(channels, **kw) for _ in range(2)] if baseline else [])
        self.temporal_attentions = nn.ModuleList(
            [TemporalAttention(channels, config.head_dim, **kw)] if baseline else []
        )

    def forward(self, x: Tensor, c: Conditions) -> Tensor:
        lr_map = c.lr_maps[-1] if c.lr_maps else None
        x = self.resnets[0](x, c.time, lr_map)
        if len(self.temporal_convs):
            x = self.temporal_convs[0](x, c.num_frames)
        site = self.attentions[0]
        assert isinstance(site, AttentionSite)
        x = site(x, c.text[self.site], c.semantics[self.site])
        if len(self.temporal_attentions):
            x = self.temporal_attentions[0](x, c.num_frames)
        x = site.after(x, c.num_frames, c.positions)
        x = self.resnets[1](x, c.time, lr_map)
        if len(self.temporal_convs):
            x = self.temporal_convs[1](x, c.num_frames)
        return x


def _site(config: DenoiserConfig, channels: int, part: Literal["down", "mid", "up"], level: int, **kw: Any
          ) -> AttentionSite:
    return AttentionSite(channels, config.head_dim, config.context_dim, config.site(part, level), **kw)


def _visit(module: nn.Module, site: int, x: Tensor, c: Conditions) -> Tensor:
    assert isinstance(module, AttentionSite)
    return module.after(module(x, c.text[site], c.semantics[site]), c.num_frames, c.positions)


class SeTeUNet(nn.Module):
    """Noisy latents (B*T, 4, h, w) -> predicted noise, the same shape; h and w are multiples of 2^(levels-1).

    Attention is at every level but the coarsest, and in the mid block: 16 sites at full size, numbered in the order
    in which a frame meets them.
    """

    def __init__(self, config: DenoiserConfig, *, ops: Any = nn, dtype: torch.dtype | None = None,
                 device: Any = None):
        super().__init__()
        kw: dict[str, Any] = {"ops": ops, "dtype": dtype, "device": device}
        channels, layers, levels = config.channels, config.layers, len(config.channels)
        self.config = config
        self.time_embedding = TimeEmbedding(channels[0], **kw)
        self.conv_in = ops.Conv2d(config.latent_channels, channels[0], 3, padding=1, dtype=dtype, device=device)

        site = 0
        skips = [channels[0]]
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(channels):
            attention = i < levels - 1
            inputs = [channels[max(i - 1, 0)]] + [width] * (layers - 1)
            self.down_blocks.append(DownBlock(config, inputs, width, site if attention else None, "down", i,
                                              downsample=attention, **kw))
            skips += [width] * layers + ([width] if attention else [])
            site += layers * attention

        self.mid_block = MidBlock(config, site, **kw)
        site += 1

        self.up_blocks = nn.ModuleList()
        previous = channels[-1]
        for i, width in reversed(list(enumerate(channels))):
            attention = i < levels - 1
            inputs = [(previous if j == 0 else width) + skips.pop() for j in range(layers + 1)]
            self.up_blocks.append(UpBlock(config, inputs, width, site if attention else None, "up", i,
                                          upsample=i > 0, **kw))
            site += (layers + 1) * attention
            previous = width

        self.conv_norm_out = ops.GroupNorm(32, channels[0], eps=1e-5, dtype=dtype, device=device)
        self.conv_out = ops.Conv2d(channels[0], config.latent_channels, 3, padding=1, dtype=dtype, device=device)

    def sites(self) -> list[AttentionSite]:
        """All attention sites in their numbering."""
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [site for block in blocks for site in block.attentions]  # type: ignore[union-attr]

    def forward(self, latents: Tensor, timesteps: Tensor, *, num_frames: int, lr_maps: list[Tensor],
                text: tuple[KeysValues, ...], semantics: tuple[KeysValues | None, ...]) -> Tensor:
        """timesteps (B*T,); lr_maps finest first, [] without SPADE; text and semantics: one entry per site."""
        multiple = 2 ** (len(self.config.channels) - 1)
        if latents.shape[-1] % multiple or latents.shape[-2] % multiple:
            raise InputError(f"latents of {latents.shape[-1]}x{latents.shape[-2]} do not fit the U-Net: "
                             f"pad both sides to a multiple of {multiple}")
        if num_frames < 1 or latents.shape[0] % num_frames:
            raise InputError(f"{latents.shape[0]} latents are no whole number of videos of num_frames={num_frames}")
        if self.config.spade and len(lr_maps) != len(self.config.channels):
            raise InputError(f"lr_maps has {len(lr_maps)} maps, this denoiser needs {len(self.config.channels)}: give "
                             "what encode_lr returns")
        time = self.time_embedding(timesteps, latents.dtype)
        widths = set(self.config.channels) if self.config.temporal_sites != "none" else set()
        if self.config.temporal_spatial_sites != "none":
            widths |= {channels // 2 for channels in self.config.channels}
        positions = {channels: time_positions(channels, num_frames, latents) for channels in widths}
        c = Conditions(time, lr_maps, text, semantics, num_frames, positions)
        x = self.conv_in(latents)
        skips = [x]
        for level, block in enumerate(self.down_blocks):
            for i in range(len(block.resnets)):  # type: ignore[arg-type]
                x = block.step(i, x, level, c)  # type: ignore[operator]
                skips.append(x)
            for downsample in block.downsamplers:  # type: ignore[union-attr]
                x = downsample(x)
                skips.append(x)
        x = self.mid_block(x, c)
        for k, block in enumerate(self.up_blocks):
            level = len(self.up_blocks) - 1 - k
            for i in range(len(block.resnets)):  # type: ignore[arg-type]
                x = block.step(i, torch.cat([x, skips.pop()], dim=1), level, c)  # type: ignore[operator]
            for upsample in block.upsamplers:  # type: ignore[union-attr]
                x = upsample(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
