"""What a weight file is: known formats are told by their tensor names.

A format turns its tensors into this project's names; sizes are read off the shapes afterwards, so one reader serves
every format (see denoiser.py, vae.py, semantic.py). Nothing here copies or computes on tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import CheckpointError
from . import key_maps
from .building import reading_sizes
from .files import Source, TensorFile, open_source
from .strangers import LOOKALIKES, OTHERS, UNET_PREFIXES, VAE_LOOKALIKES, Tensors, stranger

DENOISER, VAE, SEMANTIC = "denoiser", "vae", "semantic_encoder"
KINDS = (DENOISER, VAE, SEMANTIC)
KIND_TITLES = {DENOISER: "a denoiser", VAE: "a VAE", SEMANTIC: "a SAM 2 image encoder"}
EXPECTED = {
    DENOISER: "a SeTe-VSR denoiser, mgldvsr_unet.ckpt of MGLD-VSR, or Stable Diffusion 2.1-base (original or "
              "diffusers layout)",
    VAE: "a SeTe-VSR VAE, video_vae_cfw.ckpt of MGLD-VSR, or the VAE of Stable Diffusion 2.1 (alone or in its "
         "checkpoint)",
    SEMANTIC: "a SeTe-VSR semantic encoder or an official SAM 2 / SAM 2.1 checkpoint (sam2.1_hiera_*.pt or "
              ".safetensors, also in the layout of the transformers package)",
}
COMPONENTS = {DENOISER: ("unet", "denoiser"), VAE: ("vae",), SEMANTIC: ("semantic_encoder", "sam2")}
ALL_COMPONENTS = tuple(part for kind in KINDS for part in COMPONENTS[kind])


@dataclass(frozen=True)
class Format:
    """One layout of one kind of weights.

    `find` returns the prefix under which the weights stand, None when the file is something else; `convert` takes the
    tensors and that prefix and returns them under this project's names.
    """

    kind: str
    layout: str
    title: str
    find: Callable[[Tensors], str | None]
    convert: Callable[[Tensors, str], dict[str, Tensor]]


@dataclass(frozen=True)
class FileInfo:
    """What a file is. `kind` is one of `KINDS` or "unknown"; `modules` names everything usable in it."""

    kind: str
    layout: str
    description: str
    name: str
    dtype: str
    parameters: int
    tensors: int
    modules: tuple[str, ...]


def _first(tensors: Tensors, prefixes: tuple[str, ...], *names: str, lacking: int = 0) -> str | None:
    """The first prefix under which the names exist. lacking: how many of them may be missing from a damaged file, of
    which the reader of sizes says what it lacks.
    """
    return next((p for p in prefixes if sum(p + name in tensors for name in names) >= len(names) - lacking), None)


def under(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, named without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


# ---- denoiser -------------------------------------------------------------------------------------------------------
LR_PREFIX = "structcond_stage_model."
UNET_PARTS = ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out.")


def _find_native_denoiser(tensors: Tensors) -> str | None:
    return _first(tensors, ("", "model.", "denoiser."), "unet.conv_in.weight", "lr_encoder.conv_in.weight")


def _find_mgld(tensors: Tensors) -> str | None:
    return _first(tensors, UNET_PREFIXES, "input_blocks.0.0.weight", "input_blocks.1.0.spade.mlp_gamma.weight")


def _find_sd_original(tensors: Tensors) -> str | None:
    names = "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.0.weight", "out.2.weight"
    return _first(tensors, UNET_PREFIXES, *names, lacking=1)


def _find_sd_diffusers(tensors: Tensors) -> str | None:
    names = "conv_in.weight", "time_embedding.linear_1.weight", "conv_norm_out.weight"
    return _first(tensors, UNET_PREFIXES, *names, lacking=1)


def convert_original_unet(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """U-Net (and LR encoder, where there is one) of an original-layout file, under our names."""
    unet = {key: value for key, value in under(tensors, prefix).items() if key.startswith(UNET_PARTS)}
    table = key_maps.unet_table(key_maps.read_depth(unet))
    converted = {f"unet.{key_maps.rename(key, table)}": value for key, value in unet.items()}
    encoder = under(tensors, LR_PREFIX)
    if encoder:
        table = key_maps.lr_encoder_table(key_maps.read_depth(encoder))
        converted |= {f"lr_encoder.{key_maps.rename(key, table)}": value for key, value in encoder.items()}
    return converted


def _diffusers_unet(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """A diffusers U-Net under our names; counters beside its modules are left out."""
    return {f"unet.{key}": value for key, value in under(tensors, prefix).items() if "." in key}


# ---- VAE ------------------------------------------------------------------------------------------------------------
VAE_PREFIXES = ("", "first_stage_model.", "vae.", "model.")
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


def _find_diffusers_vae(tensors: Tensors) -> str | None:
    names = "encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight"
    return _first(tensors, VAE_PREFIXES, *names, lacking=1)


def _find_original_vae(tensors: Tensors) -> str | None:
    names = "encoder.down.0.block.0.norm1.weight", "decoder.up.0.block.0.norm1.weight"
    return _first(tensors, VAE_PREFIXES, *names, lacking=1)


def _find_video_vae(tensors: Tensors) -> str | None:
    prefix = _find_original_vae(tensors)
    return prefix if prefix is not None and any(".temporal_mixing." in key for key in tensors) else None


def convert_original_vae(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """An LDM or MGLD-VSR autoencoder under our names; training-only parts (loss.*) are left out."""
    kept = {key: value for key, value in under(tensors, prefix).items() if key.startswith(VAE_PARTS)}
    table = key_maps.vae_table(
        levels=key_maps.count(kept, "encoder.down."), blocks=key_maps.count(kept, "encoder.down.0.block.")
    )
    return {key_maps.rename(key, table): _flat_attention(key, value) for key, value in kept.items()}


def convert_diffusers_vae(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """An AutoencoderKL file of any diffusers version under our names."""
    kept = {key: value for key, value in under(tensors, prefix).items() if key.startswith(VAE_PARTS)}
    table = key_maps.old_diffusers_vae_table()
    return {key_maps.rename(key, table): _flat_attention(key, value) for key, value in kept.items()}


def _flat_attention(key: str, value: Tensor) -> Tensor:
    """Attention projections stored as 1x1 convolutions [C, C, 1, 1] become [C, C]; a view, no copy."""
    pointwise = value.ndim == 4 and value.shape[2:] == (1, 1)
    return value.flatten(1) if pointwise and (".mid.attn_1." in key or ".attentions." in key) else value


# ---- semantic encoder -----------------------------------------------------------------------------------------------
def _find_sam2(tensors: Tensors) -> str | None:
    names = "image_encoder.trunk.patch_embed.proj.weight", "image_encoder.neck.convs.0.conv.weight"
    if any("image_encoder.trunk.body." in key for key in tensors):
        return None  # EdgeTAM's: SAM 2's neck on another trunk
    return _first(tensors, ("", "model.", "sam2.", "sam_model."), *names, lacking=1)


def _convert_sam2(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {key: value for key, value in under(tensors, prefix).items() if key.startswith("image_encoder.")}


def _find_transformers_sam2(tensors: Tensors) -> str | None:
    names = "backbone.patch_embed.projection.weight", "neck.convs.0.weight"
    return _first(tensors, ("vision_encoder.", "", "detector_model.vision_encoder."), *names, lacking=1)


def _convert_transformers_sam2(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """A SAM 2 image encoder of the transformers package under official names."""
    kept = {key: value for key, value in under(tensors, prefix).items() if key.startswith(("backbone.", "neck."))}
    table = key_maps.transformers_sam2_table(
        blocks=key_maps.count(kept, "backbone.blocks."), levels=key_maps.count(kept, "neck.convs.")
    )
    return {key_maps.rename(key, table): value for key, value in kept.items()}


FORMATS = (
    Format(DENOISER, "native", "SeTe-VSR denoiser", _find_native_denoiser, under),
    Format(DENOISER, "mgld-vsr", "MGLD-VSR U-Net with LR encoder", _find_mgld, convert_original_unet),
    Format(DENOISER, "sd-original", "Stable Diffusion 2.1 U-Net, original layout", _find_sd_original,
           convert_original_unet),
    Format(DENOISER, "sd-diffusers", "Stable Diffusion 2.1 U-Net, diffusers layout", _find_sd_diffusers,
           _diffusers_unet),
    Format(VAE, "mgld-vsr", "MGLD-VSR temporal VAE", _find_video_vae, convert_original_vae),
    Format(VAE, "sd-original", "Stable Diffusion VAE, original layout", _find_original_vae, convert_original_vae),
    Format(VAE, "sd-diffusers", "Stable Diffusion VAE, diffusers layout", _find_diffusers_vae, convert_diffusers_vae),
    Format(SEMANTIC, "sam2", "SAM 2 image encoder", _find_sam2, _convert_sam2),
    Format(SEMANTIC, "sam2-transformers", "SAM 2 image encoder, transformers layout", _find_transformers_sam2,
           _convert_transformers_sam2),
)
# Native files say their kind; their tensors already have our names.
NATIVE = {kind: Format(kind, "native", f"SeTe-VSR {kind.replace('_', ' ')}", lambda _: "", under)
          for kind in KINDS}


# ---- looking up -----------------------------------------------------------------------------------------------------
def match(file: TensorFile, kind: str) -> tuple[Format, str] | None:
    """The format in which a file holds a kind of weights, and the prefix they stand under."""
    stored = file.metadata.get("setevsr.kind")
    if stored is not None:
        return (NATIVE[kind], "") if stored == kind else None
    if stranger(file.tensors, {DENOISER: LOOKALIKES, VAE: VAE_LOOKALIKES}.get(kind, ())):
        return None
    for entry in FORMATS:
        if entry.kind == kind:
            prefix = entry.find(file.tensors)
            if prefix is not None:
                return entry, prefix
    return None


def converted(file: TensorFile, entry: Format, prefix: str) -> dict[str, Tensor]:
    """The tensors of what `match` found, under our names. `CheckpointError` where their names cannot be read."""
    with reading_sizes(file.name, KIND_TITLES[entry.kind]):
        return entry.convert(file.tensors, prefix)


def find(file: TensorFile, kind: str) -> tuple[Format, str]:
    """Like `match`, but raises a `CheckpointError` that says what the file is and what was expected."""
    found = match(file, kind)
    if found is not None:
        return found
    info = describe(file)
    raise CheckpointError(f"{file.name} is {info.description}; expected {EXPECTED[kind]}.")


def describe(file: TensorFile) -> FileInfo:
    """What an opened file is."""
    found = [entry for entry in (match(file, kind) for kind in KINDS) if entry is not None]
    tensors = file.tensors
    modules = tuple(f"{entry.kind} ({entry.layout})" for entry, _ in found)
    if found:
        first = found[0][0]
        kind, layout, description = first.kind, first.layout, f"{KIND_TITLES[first.kind]} ({first.title})"
        beside = None if layout == "native" else stranger(tensors, LOOKALIKES)
        if beside is not None:  # a complete checkpoint of which the VAE is usable and the rest is not
            description = f"{beside}, with {description}"
    else:
        kind, layout = "unknown", "unknown"
        known = stranger(tensors, LOOKALIKES + VAE_LOOKALIKES + OTHERS)
        some = ", ".join(sorted(tensors)[:3])
        description = known or f"of an unknown kind ({len(tensors)} tensors, such as {some})"
    kinds = {value.dtype for value in tensors.values() if value.is_floating_point()}
    dtypes = sorted(str(kind).removeprefix("torch.") for kind in kinds)
    return FileInfo(
        kind, layout, description, file.name, "+".join(dtypes) or "none",
        sum(value.numel() for value in tensors.values()), len(tensors), modules,
    )


def identify(source: Source | TensorFile) -> FileInfo:
    """What a file, folder or state dict is, without building a network. Raises `CheckpointError` if unreadable."""
    return describe(open_source(source, ALL_COMPONENTS))
