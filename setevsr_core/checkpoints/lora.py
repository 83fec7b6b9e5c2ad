"""LoRA files on top of a denoiser: every common spelling of the names, the update of each weight, what did not match.

Read are the spellings of kohya's sd-scripts (`lora_unet_..._to_q.lora_down.weight`, over diffusers' or the original
SD names), of diffusers (`...processor.to_q_lora.down.weight`, `...to_q.lora.down.weight`) and of peft
(`...to_q.lora_A.weight`). LoRAs for SD 2.1 apply as they are, because its part of the U-Net keeps diffusers' names.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, SettingsError
from . import key_maps
from .building import Shapes, refuse_damaged, some
from .files import Source, TensorFile, folder_setting, open_source
from .registry import describe

log = logging.getLogger(__name__)

LoRA = tuple[Source | TensorFile, float]

# What may follow the name of a layer, and the part of the LoRA that it is.
ENDINGS = (
    (re.compile(r"[._]lora_up(\.weight)?$|\.lora_B(\.[^.]+)?\.weight$|[._]lora(_linear_layer)?\.up\.weight$"), "up"),
    (re.compile(r"[._]lora_down(\.weight)?$|\.lora_A(\.[^.]+)?\.weight$|[._]lora(_linear_layer)?\.down\.weight$"),
     "down"),
    (re.compile(r"\.lora_mid(\.weight)?$"), "mid"),
    (re.compile(r"\.alpha$"), "alpha"),
)
WRAPPERS = re.compile(r"^(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|lora_unet_|lycoris_|unet[._])")
TEXT = ("lora_te", "text_encoder", "te_", "lora_prior")
OTHER_KINDS = (
    (re.compile(r"\.hada_w1"), "a LoHa"),
    (re.compile(r"\.lokr_w"), "a LoKr"),
    (re.compile(r"\.dora_scale|\.lora_magnitude_vector"), "a DoRA"),
    (re.compile(r"\.oft_"), "an OFT"),
    (re.compile(r"\.diff(_b)?$"), "a file of full weight differences"),
)


@dataclass(frozen=True)
class Update:
    """The change of one weight: scale * up @ down, or with `mid` the three-part form that LoCon uses for convolutions.

    up (out, rank, ...), down (rank, in, ...), mid (rank, rank, kh, kw) or None; scale = alpha / rank.
    """

    up: Tensor
    down: Tensor
    mid: Tensor | None
    scale: float

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the change can be added to a weight of this shape."""
        up, down, mid = self.up.shape, self.down.shape, self.mid.shape if self.mid is not None else None
        pointwise = len(up) >= 2 and all(side == 1 for side in up[2:])
        inner = up[1:2] == down[:1] if mid is None else (up[1:2] == mid[:1] and mid[1:2] == down[:1])
        inputs = down[1:].numel() * (mid[2:].numel() if mid is not None else 1)
        return pointwise and inner and up[0] == shape[0] and up[0] * inputs == torch.Size(shape).numel()

    def require_fit(self, shape: Sequence[int], layer: str, name: str) -> None:
        """`CheckpointError` if the LoRA is for a layer of another size."""
        if not self.fits(shape):
            raise CheckpointError(
                f"{name} is a LoRA for another base model: for {layer} it has {list(self.up.shape)} and "
                f"{list(self.down.shape)}, but the layer's weight is {list(shape)}; use a LoRA of Stable Diffusion 2.1."
            )

    def delta(self, shape: Sequence[int]) -> Tensor:
        """The change as a float32 tensor of `shape`, which must fit."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        change = up @ down if self.mid is None else torch.einsum("or,rskl,si->oikl", up, self.mid.float(), down)
        return self.scale * change.reshape(tuple(shape))


def read_lora(source: Source | TensorFile, shapes: Shapes) -> tuple[str, dict[str, Update]]:
    """(file name, weight name -> its change) of a LoRA for a network with these tensors, under our names.

    Layers that the network does not have are named in the log; a file of which nothing fits, and one of another kind
    (LoHa, LoKr, DoRA) or for layers of other sizes, is a `CheckpointError`.
    """
    file = open_source(source)
    refuse_damaged(file.tensors, file.name)
    parts, strange = grouped(file.tensors)
    layers = aliases(shapes)
    settings = peft_settings(file)
    found: dict[str, Update] = {}
    unmatched = list(strange)
    for layer, tensors in parts.items():
        weight = layers.get(plain(layer))
        if "up" not in tensors or "down" not in tensors or weight is None:
            unmatched.append(layer)
        else:
            try:
                found[weight] = update(tensors, settings, weight)
            except (ValueError, IndexError, RuntimeError, ZeroDivisionError, re.error) as error:
                raise CheckpointError(f"{file.name} is a damaged LoRA: of {layer} rank or alpha cannot be read "
                                      f"({error}); download it again.") from error
            found[weight].require_fit(shapes[weight], weight, file.name)
    refuse_other_kinds(file, bool(found))
    unmatched = [layer for layer in unmatched if not layer.startswith(TEXT)]
    if not found and not unmatched:
        raise CheckpointError(f"{file.name} is a LoRA of a text encoder alone: it changes nothing in this denoiser.")
    if not found:
        raise CheckpointError(
            f"{file.name} changes nothing in this denoiser: {len(unmatched)} layers were not recognised, such as "
            f"{some(unmatched)}; use a LoRA of Stable Diffusion 2.1 or of this denoiser."
        )
    if unmatched:
        log.warning("%s: %d layers of the LoRA have no place in this denoiser and are left out: %s", file.name,
                    len(unmatched), some(unmatched, 8))
    return file.name, found


def apply_loras(tensors: Mapping[str, Tensor], loras: Iterable[LoRA]) -> dict[str, Tensor]:
    """The tensors with every (LoRA, strength) added, in the order given; changed weights keep their type.

    strength: any finite number, 1 as trained, 0 no change, negative values subtract.
    """
    changed = dict(tensors)
    for source, strength in map(_pair, loras):
        check_strength(strength)
        name, updates = read_lora(source, {key: tuple(value.shape) for key, value in changed.items()})
        for key, entry in updates.items():
            weight = changed[key]
            if not weight.is_meta:
                changed[key] = (weight.float() + strength * entry.delta(weight.shape)).to(weight.dtype)
        log.info("%s: %d layers changed with strength %g", name, len(updates), strength)
    return changed


def _pair(given: Any) -> LoRA:
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or len(given) != 2:
        raise SettingsError(f"loras must be pairs (file, strength), got {given!r}")
    return given[0], given[1]


def check_strength(strength: Any) -> None:
    """`SettingsError` unless the strength is a finite number of sensible size."""
    if not isinstance(strength, Real) or not -100 <= float(strength) <= 100:  # also refuses NaN
        raise SettingsError(f"the strength of a LoRA is {strength!r}; it must be a number from -100 to 100")


# ---- names ----------------------------------------------------------------------------------------------------------
def grouped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Layer name as the file spells it -> its parts (up, down, mid, alpha), and the keys that are no part of a LoRA."""
    parts: dict[str, dict[str, Tensor]] = {}
    strange: list[str] = []
    for key, value in tensors.items():
        for ending, part in ENDINGS:
            match = ending.search(key)
            if match:
                parts.setdefault(key[: match.start()], {})[part] = value
                break
        else:
            strange.append(key)
    return parts, strange


def plain(layer: str) -> str:
    """A layer's name without wrappers and with one spelling for all: underscores, no processors."""
    while True:
        shorter = WRAPPERS.sub("", layer)
        if shorter == layer:
            break
        layer = shorter
    layer = layer.replace(".processor.", ".")
    layer = re.sub(r"[._]to_out$", ".to_out.0", layer)
    return layer.replace(".", "_")


def aliases(shapes: Shapes) -> dict[str, str]:
    """Every spelling of a layer, as `plain` gives it -> the name of its weight here (`unet. ...` or `lr_encoder. ...`).

    Layers of the U-Net are known by our (diffusers') names and by the original ones of SD 2.1 and of MGLD-VSR.
    """
    weights = [key for key, shape in shapes.items() if key.endswith(".weight") and len(shape) >= 2]
    levels = key_maps.count(weights, "unet.down_blocks.")
    blocks = key_maps.count(weights, "unet.down_blocks.0.resnets.")
    depth = key_maps.Depth(levels, blocks, tuple(
        any(key.startswith(f"unet.down_blocks.{level}.attentions.") for key in weights) for level in range(levels)))
    tables = [key_maps.flipped(key_maps.unet_table(replace(depth, mid=mid))) for mid in ((0, 2, 4), (0, 1, 2))]
    known: dict[str, str] = {}
    # Where two spellings meet (middle_block.2), the later one counts: SD 2.1's before MGLD-VSR's, ours before both.
    for table in tables:
        for key in weights:
            if key.startswith("unet."):
                known[plain(key_maps.rename(key.removeprefix("unet."), table).removesuffix(".weight"))] = key
    return known | {plain(key.removesuffix(".weight")): key for key in weights}


# ---- numbers --------------------------------------------------------------------------------------------------------
def update(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], weight: str) -> Update:
    """The change that the parts of one layer describe. settings: of peft, for a layer without an alpha of its own."""
    rank = tensors["down"].shape[0]
    stored = tensors.get("alpha")
    scale = peft_scale(settings, weight, rank) if stored is None or stored.is_meta else float(stored) / rank
    return Update(tensors["up"], tensors["down"], tensors.get("mid"), scale)


def peft_settings(file: TensorFile) -> dict[str, Any]:
    """What peft keeps outside the tensors, in the file's metadata (diffusers) or in adapter_config.json; else empty."""
    try:
        stored = json.loads(file.metadata.get("lora_adapter_metadata", "{}"))
        settings = {key.removeprefix("unet."): value for key, value in stored.items()}
    except (ValueError, AttributeError):
        log.warning("%s: its LoRA metadata is damaged and is not used", file.name)
        settings = {}
    if not settings and file.path is not None:
        keys = ("lora_alpha", "alpha_pattern", "use_rslora")
        settings = {key: folder_setting(file.path, "adapter_config.json", key) for key in keys}
    return settings


def peft_scale(settings: Mapping[str, Any], weight: str, rank: int) -> float:
    """Scale of a layer by peft's settings: alpha / rank, with rsLoRA alpha / sqrt(rank); 1 where no alpha is set."""
    layer = weight.removesuffix(".weight").removeprefix("unet.")
    patterns = settings.get("alpha_pattern") or {}
    own = (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer))
    alpha = next(own, settings.get("lora_alpha"))
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def refuse_other_kinds(file: TensorFile, some_fit: bool) -> None:
    """`CheckpointError` for adapters that are no LoRA, and for a file that is no adapter at all."""
    for part, kind in OTHER_KINDS:
        if any(part.search(key) for key in file.tensors):
            raise CheckpointError(f"{file.name} is {kind}, which is not supported; expected a LoRA (up and down "
                                  "matrices, with or without alpha).")
    if not some_fit and not any("lora" in key for key in file.tensors):
        raise CheckpointError(f"{file.name} is {describe(file).description}; expected a LoRA.")
    if any("lora_te2" in key or "_input_blocks_7_1_transformer_blocks_9_" in key for key in file.tensors):
        raise CheckpointError(f"{file.name} is a LoRA of Stable Diffusion XL; expected one of Stable Diffusion 2.1.")

