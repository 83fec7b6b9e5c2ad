"""Files with the layouts and full sizes of published weights; their gigabytes are holes (sparse files, stride 0)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from setevsr_core import checkpoints
from setevsr_core.checkpoints import tiny_decoder
from setevsr_core.errors import CheckpointError, InputError
from setevsr_core.networks.denoiser import Denoiser, DenoiserConfig
from setevsr_core.networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig
from setevsr_core.networks.temporal_vae import VAEConfig
from tools.layouts import (
    PLAIN_SD,
    PLAIN_VAE,
    Shapes,
    meta_shapes,
    mgld_shapes,
    original_vae,
    sd21_lora,
    sd21_single_file,
    sd21_unet,
    sd21_vae,
)


def write_sparse(path: Path, shapes: Shapes, metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of float32 zeros that takes no room on the disk."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for key, shape in shapes.items():
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + 4 * math.prod(shape)]}
        offset += 4 * math.prod(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)
    return path


def hollow(shapes: Shapes) -> dict[str, Tensor]:
    """Full-size tensors that share one number, so that torch.save writes a small file."""
    return {key: torch.zeros(1, dtype=torch.float16).expand(shape) if math.prod(shape) > 1 else torch.zeros(shape)
            for key, shape in shapes.items()}


def size(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


# ---- Stable Diffusion 2.1 -------------------------------------------------------------------------------------------
def test_the_single_file_has_the_published_names() -> None:
    """Names that anyone can look up in v2-1_512-ema-pruned, its middle block among them."""
    shapes = sd21_single_file()
    unet = {key for key in shapes if key.startswith("model.diffusion_model.")}
    assert len(unet) == 686
    for key, shape in {
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 1024),
        "middle_block.2.out_layers.3.weight": (1280, 1280, 3, 3),
        "output_blocks.8.2.conv.weight": (640, 640, 3, 3), "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3), "out.2.weight": (4, 320, 3, 3),
    }.items():
        assert shapes[f"model.diffusion_model.{key}"] == shape, key
    assert shapes["first_stage_model.encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_sd21_single_file(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"v2-1_512-ema-pruned{ending}"
    if ending == ".safetensors":
        write_sparse(path, sd21_single_file())
    else:
        torch.save({"state_dict": hollow(sd21_single_file()), "global_step": 875000}, path)
    info = checkpoints.identify(path)
    assert info.modules == ("denoiser (sd-original)", "vae (sd-original)")
    # The ckpt goes to the meta device: in float32 its 865 million numbers would fill real memory.
    device = "cpu" if ending == ".safetensors" else "meta"
    denoiser = checkpoints.load_denoiser(path, device=device)
    assert (denoiser.config, size(denoiser)) == (PLAIN_SD, 865_910_724)
    vae = checkpoints.load_temporal_vae(path, device=device)
    assert (vae.config, size(vae)) == (PLAIN_VAE, 83_653_863)


def test_sd21_diffusers_folder_and_files(tmp_path: Path) -> None:
    for name, shapes in (("unet", sd21_unet()), ("vae", sd21_vae())):
        (tmp_path / name).mkdir()
        write_sparse(tmp_path / name / "diffusion_pytorch_model.safetensors", shapes)
    for source in (tmp_path, tmp_path / "unet", tmp_path / "unet" / "diffusion_pytorch_model.safetensors"):
        assert checkpoints.load_denoiser(source).config == PLAIN_SD
    for source in (tmp_path, tmp_path / "vae", tmp_path / "vae" / "diffusion_pytorch_model.safetensors"):
        assert size(checkpoints.load_temporal_vae(source)) == 83_653_863


def test_a_vae_of_the_original_layout_as_a_file_by_itself(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "vae-ft-mse-840000-ema-pruned.safetensors", original_vae())
    assert checkpoints.identify(path).layout == "sd-original"
    assert checkpoints.load_temporal_vae(path, device="meta").config == PLAIN_VAE


def test_without_an_empty_prompt_the_error_says_what_to_connect(tmp_path: Path) -> None:
    write_sparse(tmp_path / "unet.safetensors", sd21_unet())
    denoiser = checkpoints.load_denoiser(tmp_path / "unet.safetensors", device="meta")
    assert denoiser.empty_text is None
    with pytest.raises(InputError, match="no embedding of the empty prompt.*CONDITIONING"):
        denoiser(torch.zeros(1, 4, 8, 8), torch.tensor([1]), num_frames=1, lr_maps=[])


def test_a_full_size_lora_finds_all_its_layers(tmp_path: Path) -> None:
    """A LoRA on every linear layer and 3x3 convolution of SD 2.1, in kohya's spelling: none may be left out."""
    from setevsr_core.checkpoints import lora

    layers = {key for key, shape in sd21_unet().items() if key.endswith(".weight") and len(shape) >= 2}
    path = write_sparse(tmp_path / "lora.safetensors", sd21_lora())
    full = DenoiserConfig.sd21()
    for config in (PLAIN_SD, full):
        target = meta_shapes(Denoiser(config, device="meta"))
        _, updates = lora.read_lora(path, target)
        assert set(updates) == {f"unet.{layer}" for layer in layers}
        assert all(update.fits(target[key]) for key, update in updates.items())


# ---- MGLD-VSR -------------------------------------------------------------------------------------------------------
def test_mgld_files_as_lightning_checkpoints(tmp_path: Path) -> None:
    unet, vae = tmp_path / "mgldvsr_unet.ckpt", tmp_path / "video_vae_cfw.ckpt"
    torch.save({"state_dict": hollow(mgld_shapes("unet")), "epoch": 3, "global_step": 42000}, unet)
    torch.save({"state_dict": hollow({**mgld_shapes("vae"), "loss.logvar": (1,)})}, vae)
    baseline = DenoiserConfig.sd21(semantic_levels=(), temporal_sites="none", temporal_spatial_sites="none")
    assert checkpoints.load_denoiser(unet, device="meta").config == baseline
    assert checkpoints.identify(vae).layout == "mgld-vsr"
    assert checkpoints.load_temporal_vae(vae, device="meta").config == VAEConfig.sd21()


# ---- SAM 2 ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "small", "base_plus", "large"])
def test_sam2_files_of_every_size(name: str, tmp_path: Path) -> None:
    """Official .pt of SAM 2.1 (and 2.0, whose encoder has the same tensors), and its safetensors in models/sam2."""
    pytest.importorskip("sam2")
    shapes = meta_shapes(SemanticEncoder(SemanticEncoderConfig.sam2(name)))
    rest: Shapes = {"maskmem_tpos_enc": (7, 1, 1, 64), "no_mem_embed": (1, 1, 256), "memory_encoder.fuser.weight": (8,)}
    official, node_pack = tmp_path / f"sam2.1_hiera_{name}.pt", tmp_path / f"sam2_hiera_{name}.safetensors"
    torch.save({"model": hollow({**shapes, **rest, "no_obj_embed_spatial": (1, 64)})}, official)
    write_sparse(node_pack, {**shapes, **rest})
    for path in (official, node_pack):
        assert checkpoints.identify(path).layout == "sam2"
        assert checkpoints.load_semantic_encoder(path, dtype=torch.float32).config == SemanticEncoderConfig.sam2(name)


@pytest.mark.slow
@torch.no_grad()
def test_sam2_of_transformers_gives_the_same_embedding() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sam2")
    if not hasattr(transformers, "Sam2VisionModel"):
        pytest.skip("this version of transformers has no SAM 2")
    torch.manual_seed(0)
    reference = transformers.Sam2VisionModel(transformers.Sam2VisionConfig()).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, 0.0, 0.02)
    state = {f"vision_encoder.{key}": value for key, value in reference.state_dict().items()}
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    assert checkpoints.identify(state).layout == "sam2-transformers"
    encoder = checkpoints.load_semantic_encoder(state)
    assert encoder.config == SemanticEncoderConfig.sam2("tiny")
    frames = torch.rand(1, 48, 64, 3)
    pixels = nn.functional.interpolate(frames.movedim(-1, 1), (1024, 1024), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = reference((pixels - mean) / deviation).fpn_hidden_states[-1]
    torch.testing.assert_close(encoder(frames), expected)


# ---- TAESD ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def taesd() -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny().eval()


@pytest.mark.parametrize("layout", ["diffusers", "authors"])
@torch.no_grad()
def test_tiny_decoder_of_both_layouts(layout: str, taesd: Any, tmp_path: Path) -> None:
    state = taesd.state_dict()
    if layout == "authors":  # one Sequential, counted from the clamp
        start = "decoder.layers."
        parts = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        state = {f"{int(key.split('.', 1)[0]) + 1}.{key.split('.', 1)[1]}": value for key, value in parts.items()}
    path = tmp_path / "taesd_decoder.safetensors"
    save_file(state, path)
    assert checkpoints.identify(path).description == "a TAESD preview decoder"
    decoder = tiny_decoder.load_tiny_decoder(path)
    latents = torch.randn(2, 4, 6, 8)
    pictures = decoder(latents)
    assert pictures.shape == (2, 48, 64, 3)
    torch.testing.assert_close(pictures, taesd.decoder(latents).add(1).div(2).clamp(0, 1).movedim(1, -1))
    with pytest.raises(CheckpointError, match="latents of 4 channels, the VAE has 16"):
        tiny_decoder.load_tiny_decoder(path, latent_channels=16)


def test_what_is_no_tiny_decoder() -> None:
    with pytest.raises(CheckpointError, match="is of an unknown kind.*expected a TAESD decoder"):
        tiny_decoder.load_tiny_decoder({"weight": torch.zeros(1)})


def test_info_and_convert_at_full_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`setevsr info` on a 5 GB file reads no tensor; `setevsr convert` writes its VAE as a native file."""
    from setevsr_core import cli

    source = write_sparse(tmp_path / "v2-1_512-ema-pruned.safetensors", sd21_single_file())
    assert cli.main(["info", str(source)]) == 0
    text = capsys.readouterr().out
    assert "denoiser.unet: 865,910,724" in text and "usable as: denoiser (sd-original), vae (sd-original)" in text
    target = tmp_path / "vae.safetensors"
    assert cli.main(["convert", str(source), str(target), "--kind", "vae", "--dtype", "float16"]) == 0
    info = checkpoints.identify(target)
    assert (info.kind, info.layout, info.dtype, info.parameters) == ("vae", "native", "float16", 83_653_863)
