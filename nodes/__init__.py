"""The ComfyUI face of SeTe-VSR: the list of node classes. Only this folder imports `comfy*` and `folder_paths`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    compare,
    decode,
    denoise,
    estimate,
    folders,
    loaders,
    measuring,
    sampling,
    segments,
    semantics,
    upscale,
    video,
)

NODES: list[type[io.ComfyNode]] = [
    node
    for module in (
        upscale, loaders, segments, semantics, denoise, decode, sampling, video, compare, measuring, estimate,
    )
    for node in module.NODES
]


class SeTeVSRExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()
        return NODES
