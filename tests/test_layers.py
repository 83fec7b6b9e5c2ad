"""Layers of the denoiser: what would cost time without changing a result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from setevsr_core.errors import InputError
from setevsr_core.networks.descreening import descreen
from setevsr_core.networks.layers import FeedForward, SelfAttention
from setevsr_core.networks.sharpening import unsharp_mask
from setevsr_core.networks.temporal_spatial import TemporalSpatialAwareness
from setevsr_core.networks.temporal_transformer import TemporalTransformer
from setevsr_core.networks.temporal_vae import Trunk, VAEConfig

from .tiny_networks import tiny_denoiser, tiny_vae

FRAMES = 3


@pytest.mark.parametrize("kind", [lambda: TemporalTransformer(64, 16), lambda: TemporalSpatialAwareness(64)],
                         ids=["temporal transformer", "TSAM"])  # fmt: skip
@torch.no_grad()
def test_no_linear_layer_copies_its_weights_for_every_pixel(kind: Any) -> None:
    """`Linear` does so with tokens that are not contiguous: it makes a batched product of them."""
    module: nn.Module = kind()
    copies = []

    def look(layer: nn.Module, arguments: Any) -> None:
        copies.append(1 if arguments[0].is_contiguous() else len(arguments[0]))

    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(look)
    module(torch.randn(FRAMES, 64, 4, 5), FRAMES)
    assert copies and max(copies) <= FRAMES


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Flash attention kernel")
def test_every_attention_takes_a_fused_kernel() -> None:
    """Otherwise all scores of all frames lie in memory at once; a fused kernel wants a head's channels side by side."""
    denoiser = tiny_denoiser()
    latents, times = torch.randn(FRAMES, 4, 16, 16), torch.full((FRAMES,), 10)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with pytest.raises(RuntimeError), pytest.warns(UserWarning, match="stride 1"):
            strided = torch.randn(1, 2, 8, 5).transpose(-1, -2)
            nn.functional.scaled_dot_product_attention(strided, strided, strided)
        maps = denoiser.encode_lr(latents, times)
        result = denoiser(latents, times, num_frames=FRAMES, lr_maps=maps, text=torch.randn(1, 3, 8),
                          semantics=torch.randn(FRAMES, 256, 4, 4))  # fmt: skip
    assert result.shape == latents.shape


@torch.no_grad()
def test_attention_over_time_is_attention_of_every_pixel_by_itself() -> None:
    torch.manual_seed(0)
    videos, tokens, channels = 2, 6, 16
    layer, x = SelfAttention(channels, 8), torch.randn(videos * FRAMES, tokens, channels)
    expected = torch.empty_like(x)
    for video in range(videos):
        frames = slice(video * FRAMES, (video + 1) * FRAMES)
        for token in range(tokens):
            expected[frames, token] = layer(x[frames, token][None])[0]
    torch.testing.assert_close(layer.over_time(x, FRAMES), expected)


def test_a_feed_forward_gives_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, tokens = FeedForward(16), torch.randn(2, 7, 16)
    whole = layer(tokens)  # gradients are wanted: one piece
    seen: list[int] = []
    layer.net[0].register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    monkeypatch.setattr(FeedForward, "PIECE", 8 * 16 * 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), whole)
    assert seen == [4, 4, 4, 2]


def test_an_unsharp_mask_strengthens_detail_alone() -> None:
    assert unsharp_mask(flat := torch.full((1, 3, 9, 11), 0.25), 0.0) is flat
    torch.testing.assert_close(unsharp_mask(flat, 2.0), flat)
    pixels = torch.rand(2, 3, 12, 17)
    functional = pytest.importorskip("torchvision.transforms.functional")
    soft = functional.gaussian_blur(pixels, [7, 7], [1.0, 1.0])
    torch.testing.assert_close(unsharp_mask(pixels, 1.5), pixels + 1.5 * (pixels - soft))


def test_descreening_takes_the_repeated_tile_and_leaves_the_picture() -> None:
    pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 10, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, (64, 80), mode="bicubic")
    grain = 0.05 * torch.randn(1, 3, 64, 80, generator=generator)
    tile = 0.05 * torch.randn(1, 1, 4, 4, generator=generator)
    weave = (tile - tile.mean()).repeat(1, 1, 16, 20)
    left = descreen(picture + weave, 4) - descreen(picture, 4)
    assert left.square().mean() < 0.1 * weave.square().mean()
    assert (descreen(picture, 4) - picture).square().mean() < 1e-3 * picture.var()
    assert (descreen(grain, 4) - grain).square().mean() < 0.1 * grain.var()


def test_a_trunk_gives_the_same_frame_by_frame_as_all_at_once() -> None:
    trunk = Trunk(VAEConfig.nano(trunk=8, trunk_channels=16), 32)
    sizes: list[int] = []
    trunk.conv_out.register_forward_hook(lambda layer, given, made: sizes.append(len(made)))
    folded, feature = torch.randn(FRAMES, 48, 6, 10), torch.randn(FRAMES, 32, 6, 10)
    together = trunk(folded, feature)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(folded, feature), together)
    assert sizes == [FRAMES] + FRAMES * [1]


def test_frames_and_maps_that_do_not_belong_together_are_refused() -> None:
    denoiser, vae = tiny_denoiser(), tiny_vae()
    latents, timesteps = torch.randn(4, 4, 8, 8), torch.full((4,), 7)
    with torch.no_grad():
        maps = denoiser.encode_lr(latents, timesteps)
        with pytest.raises(InputError, match="4 latents are no whole number of videos of num_frames=3"):
            denoiser(latents, timesteps, num_frames=3, lr_maps=maps)
        with pytest.raises(InputError, match="lr_maps has 0 maps, this denoiser needs 4: give what encode_lr returns"):
            denoiser(latents, timesteps, num_frames=4, lr_maps=[])
        with pytest.raises(InputError, match="num_frames=0"):
            vae.decode(latents, None, num_frames=0)
