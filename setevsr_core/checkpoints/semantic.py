"""Loading the SAM 2 image encoder, with its size told by its shapes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..networks.semantic_encoder import SAM2_SIZES, SemanticEncoder, SemanticEncoderConfig
from .building import (
    Shapes,
    buildable_sizes,
    check,
    chosen_dtype,
    reading_sizes,
    refuse_damaged,
    shapes_of,
    side,
    weights_device,
)
from .files import Source, TensorFile, open_source
from .key_maps import count
from .native import stored_config
from .registry import COMPONENTS, SEMANTIC, converted, find

log = logging.getLogger(__name__)

TRUNK = "image_encoder.trunk"


def load_semantic_encoder(source: Source | TensorFile, *, dtype: torch.dtype | None = None, device: Any = "cpu",
                          ops: Any = nn) -> SemanticEncoder:
    """Load the image encoder of SAM 2 or SAM 2.1 (official .pt, or safetensors) or a native one.

    The rest of a SAM 2 file (memory, mask decoder) is not read. `ops` is accepted for symmetry with the other loaders;
    the encoder is built from the `sam2` package's own layers.
    Raises `CheckpointError` for a wrong file and `MissingPackageError` without the `sam2` package.
    """
    file = open_source(source, COMPONENTS[SEMANTIC])
    entry, prefix = find(file, SEMANTIC)
    tensors = converted(file, entry, prefix)
    stored = stored_config(file)
    config = (SemanticEncoderConfig.from_dict(stored) if stored is not None
              else read_config(shapes_of(tensors), file.name))
    device = weights_device(device)
    dtype = chosen_dtype(dtype, tensors.values(), device)
    # Built on the CPU: Hiera computes numbers while it is constructed, which meta tensors do not allow.
    with buildable_sizes(file.name):
        network = SemanticEncoder(config, dtype=dtype, device="cpu")
    check(shapes_of(network.state_dict()), tensors, file.name)
    weights = {key: value.to(device=device, dtype=dtype) for key, value in tensors.items()}
    refuse_damaged(weights, file.name)
    network.load_state_dict(weights, strict=False, assign=True)
    log.info("%s: %s", file.name, entry.title)
    return network.to(device).eval()


def read_config(shapes: Shapes, name: str) -> SemanticEncoderConfig:
    """Which published SAM 2 size a file is; head counts and windows follow from it, no tensor shows them."""
    with reading_sizes(name, "a SAM 2 encoder"):
        width, stages = side(shapes, f"{TRUNK}.patch_embed.proj.weight", 0), stage_lengths(shapes)
    for size, values in SAM2_SIZES.items():
        if values["embed_dim"] == width and tuple(values["stages"]) == stages:
            return SemanticEncoderConfig.sam2(size)
    raise CheckpointError(
        f"{name} is a SAM 2 encoder of an unknown size (width {width}, stages {list(stages)}); expected "
        f"{', '.join(SAM2_SIZES)}."
    )


def stage_lengths(shapes: Shapes) -> tuple[int, ...]:
    """Blocks per stage: a stage starts at block 0 and wherever a block widens its input (it has `proj`)."""
    blocks = count(shapes, f"{TRUNK}.blocks.")
    starts = [0] + [i for i in range(1, blocks) if f"{TRUNK}.blocks.{i}.proj.weight" in shapes]
    return tuple(stop - start for start, stop in zip(starts, [*starts[1:], blocks], strict=True))
