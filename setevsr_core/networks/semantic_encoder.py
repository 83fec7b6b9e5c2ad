"""SAM 2's image encoder (Hiera trunk and FPN neck), the source of SeAM's semantic embeddings (paper Eq. 2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from .config import Config

STRIDE = 16  # pixels of the resized frame along one side of a token
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# SAM 2 and 2.1 share these sizes (their published configurations).
SAM2_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "heads": 1, "stages": (1, 2, 7, 2), "global_blocks": (5, 7, 9)},
    "small": {"embed_dim": 96, "heads": 1, "stages": (1, 2, 11, 2), "global_blocks": (7, 10, 13)},
    "base_plus": {"embed_dim": 112, "heads": 2, "stages": (2, 3, 16, 3), "global_blocks": (12, 16, 20),
                  "position_grid": (14, 14)},
    "large": {"embed_dim": 144, "heads": 2, "stages": (2, 6, 36, 4), "global_blocks": (23, 33, 43),
              "windows": (8, 4, 16, 8)},
}


@dataclass(frozen=True)
class SemanticEncoderConfig(Config):
    """Sizes of the Hiera encoder. image_size: frames are resized to this square (aspect not kept, as SAM 2 does)."""

    embed_dim: int = 96
    heads: int = 1
    stages: tuple[int, ...] = (1, 2, 7, 2)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    position_grid: tuple[int, int] = (7, 7)
    image_size: int = 1024

    @classmethod
    def sam2(cls, size: str) -> SemanticEncoderConfig:
        """size: tiny, small, base_plus or large."""
        return cls(**SAM2_SIZES[size])

    @classmethod
    def nano(cls, **changes: Any) -> SemanticEncoderConfig:
        sizes: dict[str, Any] = {"embed_dim": 32, "heads": 1, "stages": (1, 1, 2, 1), "global_blocks": (3,),
                                 "windows": (8, 4, 8, 4), "image_size": 256}
        return cls(**{**sizes, **changes})


@contextmanager
def _hydra_untouched() -> Iterator[None]:
    """Importing `sam2` initialises hydra's global state, which breaks other packages that use hydra: put it back."""
    singletons = require("hydra.core.singleton", "hydra-core", "the SAM 2 encoder").Singleton
    state = singletons.get_state()
    try:
        yield
    finally:
        singletons.set_state(state)


def _build_sam2_encoder(config: SemanticEncoderConfig) -> nn.Module:
    with _hydra_untouched():
        purpose = "the SAM 2 encoder"
        hiera = require("sam2.modeling.backbones.hieradet", "sam2", purpose)
        encoder = require("sam2.modeling.backbones.image_encoder", "sam2", purpose)
    trunk = hiera.Hiera(embed_dim=config.embed_dim, num_heads=config.heads, stages=config.stages,
                        global_att_blocks=config.global_blocks, window_spec=config.windows,
                        window_pos_embed_bkg_spatial_size=config.position_grid)
    # Position encodings are only used by SAM 2's mask decoder; an identity saves computing them.
    neck = encoder.FpnNeck(position_encoding=nn.Identity(), d_model=256,
                           backbone_channel_list=trunk.channel_list, fpn_top_down_levels=[2, 3],
                           fpn_interp_model="nearest")
    return encoder.ImageEncoder(trunk, neck, scalp=1)


class SemanticEncoder(nn.Module):
    """Frames (N, H, W, 3) in 0..1 -> SAM 2 image embeddings (N, 256, s/16, s/16), s = config.image_size.

    The embedding is the raw neck output of stride 16: no memory, no no-memory offset. Parameter names are those of
    SAM 2's checkpoints (`image_encoder.trunk.*`, `image_encoder.neck.*`).
    device: None is the CPU, where it is constructed in any case: the same seed gives the same weights everywhere.
    """

    def __init__(self, config: SemanticEncoderConfig, *, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        self.config = config
        with torch.device("cpu"):  # Hiera computes with numbers while it is constructed, which not every device has
            self.image_encoder = _build_sam2_encoder(config)
        self.to(device=device, dtype=dtype)
        self.dtype = dtype or torch.get_default_dtype()

    def get_dtype(self) -> torch.dtype:
        return self.dtype

    def forward(self, frames: Tensor) -> Tensor:
        size = (self.config.image_size,) * 2
        pixels = frames.movedim(-1, 1).float()
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        mean = torch.tensor(IMAGENET_MEAN, device=pixels.device)[:, None, None]
        std = torch.tensor(IMAGENET_STD, device=pixels.device)[:, None, None]
        return self.image_encoder(((pixels - mean) / std).to(self.dtype))["vision_features"]
