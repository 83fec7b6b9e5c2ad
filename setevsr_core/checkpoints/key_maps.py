"""Tensor names of other programs and of this one, as rules.

SD 2.1 parts follow the names of diffusers. A name is renamed by its longest known module prefix (a table built from
the depth of the network) and, inside a residual or attention block, by a short table of layer names. The tables are
one to one, so `flipped` turns a table for reading into one for writing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

# Layer names inside a block: other name -> our name.
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_RESNET = {"nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# AutoencoderKL files written before diffusers 0.17, the published SD 2.1 ones among them.
OLD_DIFFUSERS_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Blocks of SAM 2's Hiera trunk in the transformers package: its name -> the official one.
TRANSFORMERS_HIERA = {
    "layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.proj_in": "mlp.layers.0", "mlp.proj_out": "mlp.layers.1",
}
SAME: dict[str, str] = {}

# prefix -> (renamed prefix, layer table)
Table = dict[str, tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class Depth:
    """How deep an original-layout (LDM) U-Net is: `blocks` residual blocks at each of `levels` levels.

    `attention` says for each level whether it has transformers. `mid` holds the places of residual block,
    transformer, residual block in the middle: (0, 1, 2) in SD 2.1; (0, 2, 4) in MGLD-VSR, which put temporal layers
    at 1, 3 and 5.
    """

    levels: int
    blocks: int
    attention: tuple[bool, ...]
    mid: tuple[int, int, int] = (0, 1, 2)


def count(keys: Iterable[str], prefix: str) -> int:
    """How many modules of a list there are: one more than the highest index behind the prefix."""
    return 1 + max((int(key[len(prefix) :].split(".", 1)[0]) for key in keys if key.startswith(prefix)), default=-1)


def read_depth(keys: Collection[str]) -> Depth:
    """Depth of an original-layout U-Net or LR encoder from its key names (without prefix)."""
    inputs = count(keys, "input_blocks.")
    downs = [index for index in range(inputs) if f"input_blocks.{index}.0.op.weight" in keys]
    levels, blocks = len(downs) + 1, (downs[0] if downs else inputs) - 1
    attention = tuple(
        f"input_blocks.{1 + level * (blocks + 1)}.1.norm.weight" in keys for level in range(levels)
    )
    moved = "middle_block.4.in_layers.0.weight" in keys
    return Depth(levels, blocks, attention, (0, 2, 4) if moved else (0, 1, 2))


def unet_table(depth: Depth) -> Table:
    """Original U-Net prefixes -> diffusers names, with the MGLD-VSR middle layers beside them."""
    table = _down_path(depth)
    table |= {"out.0": ("conv_norm_out", SAME), "out.2": ("conv_out", SAME)}
    first, attention, second = depth.mid
    table |= {
        f"middle_block.{first}": ("mid_block.resnets.0", RESNET),
        f"middle_block.{attention}": ("mid_block.attentions.0", SAME),
        f"middle_block.{second}": ("mid_block.resnets.1", RESNET),
    }
    if depth.mid == (0, 2, 4):
        table |= {
            "middle_block.1": ("mid_block.temporal_convs.0", SAME),
            "middle_block.3": ("mid_block.temporal_attentions.0", SAME),
            "middle_block.5": ("mid_block.temporal_convs.1", SAME),
        }
    for block in range(depth.levels):
        has_attention = depth.attention[depth.levels - 1 - block]
        for index in range(depth.blocks + 1):
            place = f"output_blocks.{block * (depth.blocks + 1) + index}"
            table[f"{place}.0"] = (f"up_blocks.{block}.resnets.{index}", RESNET)
            if has_attention:
                table[f"{place}.1"] = (f"up_blocks.{block}.attentions.{index}", SAME)
        last = block * (depth.blocks + 1) + depth.blocks
        if block < depth.levels - 1:
            table[f"output_blocks.{last}.{2 if has_attention else 1}"] = (f"up_blocks.{block}.upsamplers.0", SAME)
    return table


def lr_encoder_table(depth: Depth) -> Table:
    """MGLD-VSR `structcond_stage_model` prefixes -> names below `lr_encoder`."""
    table = _down_path(depth)
    table |= {
        "middle_block.0": ("mid_block.resnets.0", RESNET),
        "middle_block.1": ("mid_block.attentions.0", SAME),
        "middle_block.2": ("mid_block.resnets.1", RESNET),
    }
    return table | {f"fea_tran.{level}": (f"taps.{level}", RESNET) for level in range(depth.levels)}


def _down_path(depth: Depth) -> Table:
    """Time embedding, first convolution and the downward half, which U-Net and LR encoder share."""
    table: Table = {
        "time_embed.0": ("time_embedding.linear_1", SAME),
        "time_embed.2": ("time_embedding.linear_2", SAME),
        "input_blocks.0.0": ("conv_in", SAME),
    }
    for level in range(depth.levels):
        for index in range(depth.blocks):
            place = f"input_blocks.{1 + level * (depth.blocks + 1) + index}"
            table[f"{place}.0"] = (f"down_blocks.{level}.resnets.{index}", RESNET)
            if depth.attention[level]:
                table[f"{place}.1"] = (f"down_blocks.{level}.attentions.{index}", SAME)
        if level < depth.levels - 1:
            place = f"input_blocks.{(level + 1) * (depth.blocks + 1)}.0.op"
            table[place] = (f"down_blocks.{level}.downsamplers.0.conv", SAME)
    return table


def vae_table(levels: int, blocks: int = 2) -> Table:
    """Original VAE prefixes -> diffusers names, with temporal mixing and skip fusion of the MGLD-VSR decoder.

    `blocks` residual blocks per encoder level; the decoder has one more. The decoder counts its levels from the
    finest in the original and from the coarsest in diffusers.
    """
    table: Table = {"decoder.temporal_mixing": ("decoder.mid_block.temporal_convs.0", SAME)}
    for part in ("encoder", "decoder"):
        table |= {
            f"{part}.mid.block_1": (f"{part}.mid_block.resnets.0", VAE_RESNET),
            f"{part}.mid.attn_1": (f"{part}.mid_block.attentions.0", VAE_ATTENTION),
            f"{part}.mid.block_2": (f"{part}.mid_block.resnets.1", VAE_RESNET),
            f"{part}.norm_out": (f"{part}.conv_norm_out", SAME),
        }
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for index in range(blocks):
            table[f"encoder.down.{level}.block.{index}"] = (f"{down}.resnets.{index}", VAE_RESNET)
        for index in range(blocks + 1):
            table[f"decoder.up.{level}.block.{index}"] = (f"{up}.resnets.{index}", VAE_RESNET)
            table[f"decoder.up.{level}.temporal_mixing.{index}"] = (f"{up}.temporal_convs.{index}", SAME)
        table[f"encoder.down.{level}.downsample"] = (f"{down}.downsamplers.0", SAME)
        table[f"decoder.up.{level}.upsample"] = (f"{up}.upsamplers.0", SAME)
    return table


def transformers_sam2_table(blocks: int, levels: int) -> Table:
    """Prefixes of the transformers package's `Sam2VisionModel` -> those of the official SAM 2 checkpoints.

    `blocks` of the trunk; `levels` of the neck, in the same order in both.
    """
    trunk = "image_encoder.trunk"
    table: Table = {"backbone": (trunk, SAME), "backbone.patch_embed.projection": (f"{trunk}.patch_embed.proj", SAME)}
    table |= {f"backbone.blocks.{i}": (f"{trunk}.blocks.{i}", TRANSFORMERS_HIERA) for i in range(blocks)}
    return table | {f"neck.convs.{i}": (f"image_encoder.neck.convs.{i}.conv", SAME) for i in range(levels)}


def old_diffusers_vae_table() -> Table:
    """AutoencoderKL names of old diffusers files -> today's."""
    places = [f"{part}.mid_block.attentions.0" for part in ("encoder", "decoder")]
    return {place: (place, OLD_DIFFUSERS_ATTENTION) for place in places}


def rename(key: str, table: Table) -> str:
    """One tensor name through a table; a name no rule covers is returned as it is."""
    parts = key.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        entry = table.get(".".join(parts[:cut]))
        if entry is not None:
            prefix, layers = entry
            rest = parts[cut:]
            layer = ".".join(rest[:-1])
            return ".".join(part for part in (prefix, layers.get(layer, layer), rest[-1]) if part)
    return key


def flipped(table: Table) -> Table:
    """The same table in the other direction."""
    return {ours: (other, {new: old for old, new in layers.items()}) for other, (ours, layers) in table.items()}
