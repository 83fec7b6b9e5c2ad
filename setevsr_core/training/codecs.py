"""Compression of frames as a degradation: JPEG pictures and a video encoder, both in memory.

Frames are float32 (H, W, 3) RGB in 0..255; the results are again float32 in that range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

from ..errors import VideoError, require

_SMALLEST_SIDE = 16
"""Encoders are fed at least one macroblock; smaller frames are padded and cropped again."""

_ENCODERS = {"libx264": "libx264", "h264": "libx264", "mpeg4": "mpeg4"}
"""`h264` is FFmpeg's name for its first H.264 encoder; pinned to x264 so that bytes do not depend on the build."""

# RGB 0..255 -> Y'CbCr code values of BT.601 in the limited range that video uses (Y 16..235, Cb and Cr 16..240).
_TO_YCBCR = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float32
) / np.float32(255)
_OFFSET = np.array([16, 128, 128], dtype=np.float32)
_FROM_YCBCR = np.linalg.inv(_TO_YCBCR.astype(np.float64)).astype(np.float32)

_DECODERS = {"libx264": "h264", "h264": "h264", "mpeg4": "mpeg4"}


def to_uint8(frame: np.ndarray) -> np.ndarray:
    """Clip to 0..255, then round: a bare cast would wrap the overshoots of noise and sharp filters around."""
    return np.rint(np.clip(frame, 0, 255)).astype(np.uint8)


def jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    """One frame through JPEG with 4:2:0 chroma; `quality` 1..100."""
    cv2 = require("cv2", "opencv-python-headless", "degrading frames")
    bgr = np.ascontiguousarray(to_uint8(frame)[..., ::-1])  # OpenCV pictures are BGR
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32)


def video(frames: Iterable[np.ndarray], codec: str, bits_per_frame: int) -> Iterator[np.ndarray]:
    """Frames through a lossy video codec at a mean rate of `bits_per_frame`, one for one and in order.

    The first frame sets the size: later frames of another size are resized to it (the random resize before
    this step lets the size wander). Encoder and decoder run on one thread, so the result is reproducible.
    `codec` is libx264, h264 or mpeg4. Memory is bounded by the encoder's look-ahead.
    """
    cv2 = require("cv2", "opencv-python-headless", "degrading frames")
    av = require("av", "av", "video compression as a degradation")
    encoder = decoder = None
    height = width = given = returned = 0
    for frame in frames:
        if encoder is None or decoder is None:
            height, width = frame.shape[:2]
            padded = (_padded(height), _padded(width))
            encoder, decoder = _open(av, codec, padded, bits_per_frame)
        elif frame.shape[:2] != (height, width):
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        border = ((0, _padded(height) - height), (0, _padded(width) - width), (0, 0))
        planes = rgb_to_planes(np.pad(frame, border, mode="edge"))
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        picture.pts = given
        given += 1
        for packet in encoder.encode(picture):
            for decoded in decoder.decode(packet):
                yield planes_to_rgb(decoded.to_ndarray(format="yuv420p"))[:height, :width]
                returned += 1
    if encoder is None or decoder is None:
        return
    for packet in [*encoder.encode(None), None]:
        for decoded in decoder.decode(packet):
            yield planes_to_rgb(decoded.to_ndarray(format="yuv420p"))[:height, :width]
            returned += 1
    if returned != given:
        raise VideoError(f"the {codec} codec returned {returned} of {given} frames; use another FFmpeg build (PyAV).")


def _padded(side: int) -> int:
    """The next even side (4:2:0 chroma needs it) that is not below one macroblock."""
    return max(_SMALLEST_SIDE, side + side % 2)


def _open(av, codec: str, size: tuple[int, int], bits_per_frame: int):
    """Encoder and decoder contexts, one thread each, at 1 frame per second so that bit/s equals bit/frame."""
    try:
        encoder = av.CodecContext.create(_ENCODERS[codec], "w")
    except KeyError:
        raise VideoError(f"'{codec}' is not a codec of the degradation; use one of {sorted(_ENCODERS)}.") from None
    except av.error.FFmpegError as error:
        raise VideoError(f"this build of PyAV has no {codec} encoder ({error}); install av from PyPI.") from error
    encoder.height, encoder.width = size
    encoder.pix_fmt = "yuv420p"
    encoder.time_base = Fraction(1, 1)
    encoder.framerate = Fraction(1, 1)
    encoder.bit_rate = max(1000, int(bits_per_frame))  # x264 counts whole kilobits
    encoder.thread_count = 1
    if _ENCODERS[codec] == "libx264":
        # x264's macroblock tree reads past small frames in its SIMD code: the bytes would depend on freed memory.
        encoder.options = {"x264-params": "mbtree=0"}
    else:
        # Left alone, FFmpeg's MPEG-4 starts near its best quality and learns the rate only over many frames.
        encoder.options = {"maxrate": str(encoder.bit_rate), "bufsize": str(4 * encoder.bit_rate)}
    decoder = av.CodecContext.create(_DECODERS[codec], "r")
    decoder.thread_count = 1
    return encoder, decoder


def rgb_to_planes(frame: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) 0..255 with even sides -> 4:2:0 planes stacked as (H * 3/2, W) uint8, PyAV's layout.

    Written out because FFmpeg's fast conversions round down and place chroma differently on the way back: each
    pass would darken and shift colours, and a network trained on that learns to undo it.
    """
    cv2 = require("cv2", "opencv-python-headless", "degrading frames")
    height, width = frame.shape[:2]
    codes = np.clip(frame, 0, 255).astype(np.float32) @ _TO_YCBCR.T + _OFFSET
    chroma = cv2.resize(codes[..., 1:], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.concatenate([to_uint8(codes[..., 0]), to_uint8(chroma).transpose(2, 0, 1).reshape(-1, width)])


def planes_to_rgb(planes: np.ndarray) -> np.ndarray:
    """The inverse of `rgb_to_planes`: float32 (H, W, 3) RGB in 0..255, chroma interpolated linearly."""
    cv2 = require("cv2", "opencv-python-headless", "degrading frames")
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    codes = np.empty((height, width, 3), np.float32)
    codes[..., 0] = planes[:height]
    for i in (0, 1):
        codes[..., i + 1] = cv2.resize(chroma[i].astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip((codes - _OFFSET) @ _FROM_YCBCR.T, 0, 255)
