"""Full-size networks from every layout of files: written with random weights, loaded, converted, run for one step.

    python -m benchmarks.full_size [--only native mgld-vsr] [--latent 64] [--frames 5] [--sam2 large] [--threads N]
    python -m benchmarks.full_size --tiny                # small networks: to try the way itself

For each layout: files with the names, shapes and number types of the published ones in a temporary folder; in a
process of its own they are loaded in bfloat16 (in float32 where the processor would have to emulate that) and stored as
native files, which must load as the same network; then a segment of `--frames` frames is encoded, read by SAM 2 where
the layout has it, denoised by one step and decoded on the CPU (64 latents are 512 pixels). The files are deleted before
the next layout: at most about 10 GB lie on the disk. Random weights show that the way is whole, what it takes in memory
and how long; their pictures mean nothing. The peak is the most that the process had; while a file is converted, the
network and the one read back are both there. With --tiny the networks are small, but for SAM 2 in its own files, which
has no small size; MGLD-VSR's files, whose shapes are a list, are left out.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from setevsr_core.networks.denoiser import DenoiserConfig
from setevsr_core.networks.temporal_vae import VAEConfig
from setevsr_core.precision import automatic_dtype
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

from . import process_memory
from .measuring import begin

DENOISER, VAE, ENCODER, LORA = "denoiser", "vae", "semantic_encoder", "lora"
SCALE = 4
Files = dict[str, Path]
"""Kind of network, or LORA on top of the denoiser -> the file or folder that holds it."""


@dataclass(frozen=True)
class Sizes:
    """Of the networks in the files: plain Stable Diffusion, and all of them as native files hold them."""

    unet: DenoiserConfig
    vae: VAEConfig
    sam2: str
    natives: Callable[[str], dict[str, nn.Module | None]]

    @classmethod
    def full(cls, sam2: str) -> Sizes:
        return cls(PLAIN_SD, PLAIN_VAE, sam2, full_size_networks)

    @classmethod
    def tiny(cls, sam2: str) -> Sizes:
        narrow: dict[str, Any] = {"channels": (64, 64, 64, 64), "context_dim": 64}
        return cls(replace(PLAIN_SD, **narrow), replace(PLAIN_VAE, channels=(32, 32, 32, 32)), sam2, tiny_networks)


def full_size_networks(sam2: str) -> dict[str, nn.Module | None]:
    from setevsr_core.estimate import full_size_on_meta

    return full_size_on_meta(torch.bfloat16, sam2)


def tiny_networks(_: str) -> dict[str, nn.Module | None]:
    from setevsr_core.estimate import networks_on_meta

    return networks_on_meta("nano", torch.bfloat16)[0]


# ---- files with random weights --------------------------------------------------------------------------------------
def random_weight(key: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Values that keep activations near one: scaled by the number of inputs; norms are one, biases and scalars zero."""
    if len(shape) < 2:
        return (torch.ones if key.endswith("weight") else torch.zeros)(shape, dtype=dtype)
    return torch.randn(shape, generator=generator).mul_(1 / math.sqrt(math.prod(shape[1:]))).to(dtype)


def random_weights(shapes: Shapes, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: random_weight(key, shape, dtype, generator) for key, shape in shapes.items()}


def write_safetensors(path: Path, shapes: Shapes) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_weights(shapes), path)
    return path


def write_ckpt(path: Path, shapes: Shapes, key: str = "state_dict") -> Path:
    torch.save({key: random_weights(shapes), "epoch": 3, "global_step": 42000}, path)
    return path


def sam2_shapes(size: str) -> Shapes:
    from setevsr_core.networks.semantic_encoder import SemanticEncoder, SemanticEncoderConfig

    return meta_shapes(SemanticEncoder(SemanticEncoderConfig.sam2(size))) | {"maskmem_tpos_enc": (7, 1, 1, 64)}


def native(folder: Path, sizes: Sizes) -> Files:
    """This project's own files in bfloat16, with every module of SeTe-VSR."""
    from setevsr_core.checkpoints.native import save_native

    files = {}
    for name, network in sizes.natives(sizes.sam2).items():
        kind = ENCODER if name == "encoder" else name
        assert network is not None
        network.load_state_dict(random_weights(meta_shapes(network), torch.bfloat16), assign=True)
        files[kind] = save_native(network, folder / f"{kind}.safetensors")
    return files


def mgld_vsr(folder: Path, sizes: Sizes) -> Files:
    """Two Lightning checkpoints and SAM 2's own .pt."""
    return {
        DENOISER: write_ckpt(folder / "mgldvsr_unet.ckpt", mgld_shapes("unet")),
        VAE: write_ckpt(folder / "video_vae_cfw.ckpt", mgld_shapes("vae")),
        ENCODER: write_ckpt(folder / f"sam2.1_hiera_{sizes.sam2}.pt", sam2_shapes(sizes.sam2), "model"),
    }


def sd21_safetensors(folder: Path, sizes: Sizes) -> Files:
    """Stable Diffusion's single file, and SAM 2 as node packs for ComfyUI keep it."""
    single = write_safetensors(folder / "v2-1_512-ema-pruned.safetensors", sd21_single_file(sizes.unet, sizes.vae))
    encoder = write_safetensors(folder / f"sam2_hiera_{sizes.sam2}.safetensors", sam2_shapes(sizes.sam2))
    return {DENOISER: single, VAE: single, ENCODER: encoder}


def sd21_ckpt(folder: Path, sizes: Sizes) -> Files:
    single = write_ckpt(folder / "v2-1_512-ema-pruned.ckpt", sd21_single_file(sizes.unet, sizes.vae))
    return {DENOISER: single, VAE: single}


def sd21_folder(folder: Path, sizes: Sizes) -> Files:
    """The folder of diffusers."""
    for part, shapes in (("unet", sd21_unet(sizes.unet)), ("vae", sd21_vae(sizes.vae))):
        write_safetensors(folder / part / "diffusion_pytorch_model.safetensors", shapes)
    return {DENOISER: folder, VAE: folder}


def sd21_files(folder: Path, sizes: Sizes) -> Files:
    """A U-Net of diffusers and a VAE of the original layout, a file each."""
    unet = write_safetensors(folder / "diffusion_pytorch_model.safetensors", sd21_unet(sizes.unet))
    vae = write_safetensors(folder / "vae-ft-mse-840000-ema-pruned.safetensors", original_vae(sizes.vae))
    return {DENOISER: unet, VAE: vae}


def sd21_with_lora(folder: Path, sizes: Sizes) -> Files:
    """The same two files, and a LoRA on top of the U-Net."""
    return {**sd21_files(folder, sizes), LORA: write_safetensors(folder / "lora.safetensors", sd21_lora(8, sizes.unet))}


LAYOUTS: dict[str, Callable[[Path, Sizes], Files]] = {
    "native": native, "mgld-vsr": mgld_vsr, "sd21-safetensors": sd21_safetensors, "sd21-ckpt": sd21_ckpt,
    "sd21-folder": sd21_folder, "sd21-files": sd21_files, "sd21-lora": sd21_with_lora,
}  # fmt: skip


# ---- one layout, in a process of its own ----------------------------------------------------------------------------
@dataclass
class Measured:
    """seconds: by stage. peak: most resident bytes of the process. disk: bytes of the files."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak: float = 0.0
    disk: float = 0.0
    parameters: int = 0

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def load(kind: str, path: Path, **options: Any) -> nn.Module:
    from setevsr_core import checkpoints

    loaders: dict[str, Any] = {
        DENOISER: checkpoints.load_denoiser, VAE: checkpoints.load_temporal_vae,
        ENCODER: checkpoints.load_semantic_encoder,
    }  # fmt: skip
    return loaders[kind](path, dtype=automatic_dtype("cpu"), **options)


def converted(kind: str, network: nn.Module, folder: Path) -> None:
    """Store a network as a native file; the file must load as the same network."""
    from setevsr_core.checkpoints.native import save_native

    path = save_native(network, folder / f"converted_{kind}.safetensors")
    again = load(kind, path)
    if again.config != network.config:  # type: ignore[union-attr]
        raise SystemExit(f"the {kind} came back from its native file with another configuration")
    theirs = again.state_dict()
    for key, value in network.state_dict().items():
        if not torch.equal(value, theirs[key]):
            raise SystemExit(f"{key} of the {kind} came back from its native file with other values")
    path.unlink()


@torch.inference_mode()
def run(files: Files, folder: Path, latent: int, frames: int) -> Measured:
    """Load, convert, and send one segment the whole way; the weights of all networks stay in memory."""
    from setevsr_core import stages

    found, networks = Measured(), {}
    for kind, path in files.items():
        if kind == LORA:
            continue
        options = {"loras": [(files[LORA], 1.0)]} if kind == DENOISER and LORA in files else {}
        with found.clock("load"):
            networks[kind] = load(kind, path, **options)
        with found.clock("convert"):
            converted(kind, networks[kind], folder)
    found.parameters = sum(value.numel() for network in networks.values() for value in network.parameters())
    side = latent * networks[VAE].config.downscale // SCALE
    pictures = torch.rand(frames, side, side, 3, generator=torch.Generator().manual_seed(0))
    with found.clock("encode"):
        encoded = stages.encode_latents(networks[VAE], pictures, SCALE, keep_features=True)
    semantics = None
    if ENCODER in networks:
        with found.clock("semantics"):
            semantics = stages.encode_semantics(networks[ENCODER], pictures)
    text = torch.randn(1, 77, networks[DENOISER].config.context_dim, generator=torch.Generator().manual_seed(1))
    with found.clock("denoise"):
        restored = stages.denoise_span(networks[DENOISER], encoded.latents, semantics, range(frames), steps=1,
                                       sampler="ddim", text=text, tile=0, tile_overlap=0, content=encoded.content)
    if not restored.isfinite().all():
        raise SystemExit("the denoiser gave values that are not finite")
    with found.clock("decode"):
        result = stages.decode_span(networks[VAE], restored, pictures, SCALE, features=encoded.features)
    if result.shape != (frames, latent * 8, latent * 8, 3) or not result.isfinite().all():
        raise SystemExit(f"the decoder gave {tuple(result.shape)}, or values that are not finite")
    found.peak = process_memory.peak()
    return found


def sizes_of(args: argparse.Namespace) -> Sizes:
    return (Sizes.tiny if args.tiny else Sizes.full)(args.sam2)


def measure(name: str, args: argparse.Namespace) -> Measured:
    folder = Path(tempfile.mkdtemp(prefix="setevsr-full-size-", dir=args.folder))
    try:
        files = process_memory.in_own_process(args.threads, LAYOUTS[name], folder, sizes_of(args))
        disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found = process_memory.in_own_process(args.threads, run, files, folder, args.latent, args.frames)
        found.disk = disk
        return found
    finally:
        shutil.rmtree(folder)


def row(name: str, found: Measured, frames: int) -> str:
    spent = found.seconds
    each = [f"{spent[stage] / frames:.2f}" if stage in spent else "-" for stage in
            ("encode", "semantics", "denoise", "decode")]
    cells = [name, f"{found.parameters / 1e6:.0f}", f"{found.disk / 1e9:.2g}", f"{spent['load']:.1f}",
             f"{spent['convert']:.1f}", *each, f"{found.peak / 2**30:.1f}"]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(LAYOUTS), help="these layouts (default: all)")
    parser.add_argument("--latent", type=int, default=64, help="side of the latents, an eighth of the picture's")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--sam2", default="large", choices=("tiny", "small", "base_plus", "large"))
    parser.add_argument("--tiny", action="store_true", help="small networks instead; all layouts but mgld-vsr")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    args = parser.parse_args(arguments)
    if args.latent < 8 or args.latent % 8:
        parser.error("--latent must be a multiple of 8")
    possible = [name for name in LAYOUTS if not (args.tiny and name == "mgld-vsr")]
    if not set(args.only or ()) <= set(possible):
        parser.error("--tiny has no mgld-vsr")
    begin(f"{args.frames} frames of {args.latent * 8}x{args.latent * 8}, SAM 2 {args.sam2}",
          dtype=automatic_dtype("cpu"), threads=args.threads)  # fmt: skip
    print("| layout | million parameters | files, GB | load, s | convert, s | encode, s/frame | SAM 2, s/frame "
          "| one step, s/frame | decode, s/frame | peak memory, GB |")
    print("|" + "---|" * 10)
    for name in args.only or possible:
        print(row(name, measure(name, args), args.frames), flush=True)


if __name__ == "__main__":
    main()
