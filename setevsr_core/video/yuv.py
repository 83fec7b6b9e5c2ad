"""Video colours: the tags of a stream, and the exact conversion between its Y'CbCr and RGB.

The matrix arithmetic is done here in float32 rather than by swscale, whose defaults (BT.601, silent range guesses,
8-bit rounding) differ between versions and shift colours by several levels. Numbers are the code points of ITU-T
H.273, which FFmpeg uses as well.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

BT709, UNSPECIFIED, BT470BG, SMPTE170M, BT2020 = 1, 2, 5, 6, 9
# matrix code point -> weights of red and blue in luma (H.273 table 4)
_LUMA_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),
    BT470BG: (0.299, 0.114),
    SMPTE170M: (0.299, 0.114),
    7: (0.212, 0.087),
    BT2020: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}


@dataclass(frozen=True)
class ColourTags:
    """How the numbers of a video mean colours (H.273 code points); `full_range` is 0..255 rather than 16..235."""

    matrix: int
    primaries: int
    transfer: int
    full_range: bool = False

    @staticmethod
    def for_size(height: int, width: int) -> ColourTags:
        """What players assume of an untagged video: BT.709 for HD (wider than 1279 or higher than 576 pixels), else
        BT.601.
        """
        if width >= 1280 or height > 576:
            return ColourTags(BT709, BT709, BT709)
        return ColourTags(SMPTE170M, SMPTE170M, SMPTE170M)


def tags_of(frame: Any, context: Any = None) -> ColourTags:
    """The tags of a decoded PyAV frame; what is missing is filled in by its size.

    context: the stream's codec context, which knows primaries and transfer where frames do not (PyAV before 17).
    """
    default = ColourTags.for_size(frame.height, frame.width)
    matrix = int(frame.colorspace)
    if matrix not in _LUMA_WEIGHTS:
        if matrix not in (0, UNSPECIFIED):  # 0 is RGB, which needs no matrix
            logger.warning("colour matrix %d is not supported; the video is read as matrix %d", matrix, default.matrix)
        matrix = default.matrix
    teller = frame if hasattr(frame, "color_primaries") else context
    known = {"primaries": getattr(teller, "color_primaries", 0), "transfer": getattr(teller, "color_trc", 0)}
    primaries, transfer = (
        int(known[name]) if known[name] not in (0, UNSPECIFIED) else 0 for name in ("primaries", "transfer")
    )
    name = frame.format.name
    # Grey and "yuvj" pictures are full range unless they say otherwise; all else is limited unless it says full. Of RGB
    # "full" says nothing about the Y'CbCr that is made of it: limited is what every player takes.
    told = frame.color_range == 2 and _is_yuv(frame.format)
    full = told or name.startswith("yuvj") or (name.startswith("gray") and frame.color_range != 1)
    return ColourTags(matrix, primaries or default.primaries, transfer or default.transfer, full)


def bit_depth(frame: Any) -> int:
    """Bits per channel of a PyAV frame."""
    return max(component.bits for component in frame.format.components)


def has_alpha(frame: Any) -> bool:
    """True if a PyAV frame holds transparency."""
    return frame.format.name.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya"))


def is_transparent(frame: Any) -> bool:
    """True if something can be seen through a PyAV frame."""
    return has_alpha(frame) and float(_alpha(frame).min()) < 1


def frame_to_rgb(frame: Any, tags: ColourTags, alpha: bool = False) -> Tensor:
    """PyAV frame -> RGB (H,W,3) float32 in 0..1, rotation not applied; (H,W,4) with `alpha` (1 where it has none)."""
    depth = bit_depth(frame)
    if alpha:
        return torch.cat([frame_to_rgb(frame, tags), _alpha(frame)], dim=-1)
    if _is_yuv(frame.format):
        return yuv_to_rgb(_yuv_planes(frame, depth, tags.full_range), depth, tags)
    deep = depth > 8
    packed = frame.reformat(format="rgb48le" if deep else "rgb24")
    pixels = _plane(packed, 0, frame.width * 3)
    scale = 65535 if deep else 255
    return torch.from_numpy(pixels.astype(np.float32).reshape(frame.height, frame.width, 3)).div_(scale)


def _alpha(frame: Any) -> Tensor:
    """(H,W,1) float32 in 0..1."""
    if not has_alpha(frame):
        return torch.ones(frame.height, frame.width, 1)
    depth = bit_depth(frame)
    deep = depth > 8
    if frame.format.name.startswith("yuva"):
        plane = _plane(frame, 3).astype(np.float32)
        return torch.from_numpy(plane / (2**depth - 1))[..., None]
    packed = frame.reformat(format="rgba64le" if deep else "rgba")
    pixels = _plane(packed, 0, frame.width * 4).astype(np.float32)
    return torch.from_numpy(pixels.reshape(frame.height, frame.width, 4)[..., 3:]).div(65535 if deep else 255)


def rgb_to_frame(picture: Tensor, pixel_format: str, tags: ColourTags) -> Any:
    """RGB (H,W,3) or RGBA (H,W,4) in 0..1 -> tagged PyAV frame of a planar Y'CbCr `pixel_format` (yuv420p,
    yuva444p10le, ...) or a packed RGB one (rgb24, rgba, rgb48be, rgba64be).
    """
    import av

    if pixel_format.startswith("rgb"):
        return _packed_frame(picture, pixel_format)
    depth = av.VideoFormat(pixel_format, 16, 16).components[0].bits
    height, width = picture.shape[:2]
    transparent = pixel_format.startswith("yuva")
    planes = list(rgb_to_yuv(picture[..., :3], depth, tags).cpu().numpy())
    if transparent:
        planes.append(picture[..., 3].float().clamp(0, 1).mul(2**depth - 1).round().to(torch.int32).cpu().numpy())
    frame = av.VideoFrame(width, height, _full_chroma(depth, transparent))
    for index, source in enumerate(planes):
        _plane(frame, index)[:] = source
    colour_range = 2 if tags.full_range else 1
    if frame.format.name != pixel_format:
        frame = frame.reformat(format=pixel_format, src_color_range=colour_range, dst_color_range=colour_range)
    tag_frame(frame, tags)
    return frame


def tag_frame(frame: Any, tags: ColourTags) -> None:
    """Writes `tags` into a PyAV frame; pictures that are RGB themselves need none."""
    if frame.format.name.startswith("rgb"):
        return
    frame.colorspace, frame.color_range = tags.matrix, 2 if tags.full_range else 1
    if hasattr(frame, "color_primaries"):  # PyAV 17; before, only the stream carries these two
        frame.color_primaries, frame.color_trc = tags.primaries, tags.transfer


def _packed_frame(picture: Tensor, pixel_format: str) -> Any:
    import av

    deep = pixel_format.endswith("be")
    codes = picture.float().clamp(0, 1).mul(65535 if deep else 255).round().to(torch.int32).cpu().numpy()
    pixels: Any = codes.astype(np.uint16 if deep else np.uint8)
    return av.VideoFrame.from_ndarray(pixels, format=pixel_format)


def yuv_to_rgb(planes: Tensor, depth: int, tags: ColourTags) -> Tensor:
    """Code values (3,H,W), any number type, of `depth` bits -> RGB (H,W,3) float32 clamped to 0..1."""
    red, blue = _LUMA_WEIGHTS[tags.matrix]
    luma_offset, luma_scale, chroma_offset, chroma_scale = _quantisation(depth, tags.full_range)
    luma = (planes[0].float() - luma_offset) / luma_scale
    cb = (planes[1].float() - chroma_offset) / chroma_scale
    cr = (planes[2].float() - chroma_offset) / chroma_scale
    r = luma + 2 * (1 - red) * cr
    b = luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return torch.stack([r, g, b], dim=-1).clamp_(0, 1)


def rgb_to_yuv(picture: Tensor, depth: int, tags: ColourTags) -> Tensor:
    """RGB (H,W,3) in 0..1 (clamped) -> code values (3,H,W) of `depth` bits, int32."""
    red, blue = _LUMA_WEIGHTS[tags.matrix]
    luma_offset, luma_scale, chroma_offset, chroma_scale = _quantisation(depth, tags.full_range)
    r, g, b = picture.float().clamp(0, 1).unbind(-1)
    luma = red * r + (1 - red - blue) * g + blue * b
    cb = (b - luma) / (2 * (1 - blue))
    cr = (r - luma) / (2 * (1 - red))
    codes = torch.stack(
        [luma * luma_scale + luma_offset, cb * chroma_scale + chroma_offset, cr * chroma_scale + chroma_offset]
    )
    return codes.round_().clamp_(0, 2**depth - 1).to(torch.int32)


def _quantisation(depth: int, full_range: bool) -> tuple[int, int, int, int]:
    """(luma offset, luma scale, chroma offset, chroma scale), H.273 equations 20-25 and 26-28."""
    unit = 2 ** (depth - 8)
    if full_range:
        return 0, 2**depth - 1, 128 * unit, 2**depth - 1
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


def _is_yuv(pixel_format: Any) -> bool:
    name = pixel_format.name
    return name.startswith(("yuv", "nv", "p0", "p2", "p4", "y2", "uyvy", "yvyu", "gray"))


def _full_chroma(depth: int, alpha: bool = False) -> str:
    name = "yuva444p" if alpha else "yuv444p"
    return name if depth == 8 else f"{name}{depth}le"


def _yuv_planes(frame: Any, depth: int, full_range: bool) -> Tensor:
    """(3,H,W) float32 code values with chroma at full resolution; no colour conversion takes place."""
    if frame.format.name.startswith("gray"):
        luma = _plane(frame, 0).astype(np.float32)
        neutral = np.full_like(luma, 128 * 2 ** (depth - 8))
        return torch.from_numpy(np.stack([luma, neutral, neutral]))
    colour_range = 2 if full_range else 1  # the same on both sides: swscale then only resamples the chroma
    # PyAV before 17 takes "yuvj" for full and "yuv" for limited whatever it is told: stay in the family.
    target = "yuvj444p" if frame.format.name.startswith("yuvj") else _full_chroma(depth)
    full = frame.reformat(format=target, src_color_range=colour_range, dst_color_range=colour_range)
    planes = [_plane(full, index) for index in range(len(full.planes))]
    return torch.from_numpy(np.stack(planes).astype(np.float32))


def _plane(frame: Any, index: int, width: int | None = None) -> np.ndarray:
    """A view (height, width) on the memory of a frame's plane, without the padding at the end of its rows; None: as
    wide as the frame. Samples of more than 8 bits have two bytes, in the order that the pixel format says.
    """
    plane, order = frame.planes[index], ">" if frame.format.is_big_endian else "<"
    values = np.frombuffer(plane, f"{order}u2" if bit_depth(frame) > 8 else np.uint8)
    return values.reshape(-1, plane.line_size // values.itemsize)[: frame.height, : width or frame.width]
