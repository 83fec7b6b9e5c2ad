"""SeTe-VSR for ComfyUI: video super-resolution with semantic and temporal-spatial guidance.

Importing this package is cheap on purpose: ComfyUI calls `comfy_entrypoint`, everything else is imported there.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension object that lists the nodes (ComfyUI V3 entry point)."""
    from .nodes import SeTeVSRExtension

    return SeTeVSRExtension()
