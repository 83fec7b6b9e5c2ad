"""What can be written: codecs with their quality scales and pixel formats, and the containers that hold them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingPackageError, SettingsError, VideoError, require

_MP4 = {"movflags": "use_metadata_tags+faststart"}
# file name ending -> (FFmpeg's name of the container, muxer options)
CONTAINERS: dict[str, tuple[str, dict[str, str]]] = {
    ".mp4": ("mp4", _MP4),
    ".m4v": ("mp4", _MP4),
    ".mov": ("mov", _MP4),
    ".mkv": ("matroska", {}),
    ".webm": ("webm", {}),
}

VIDEO_ENDINGS = (*CONTAINERS, ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp", ".y4m")
"""What counts as a video in a folder; a file that is named by itself may end as it likes."""


def is_hidden(path: Path) -> bool:
    """True for what no folder is meant to show, such as the `._clip.mp4` that macOS lays beside `clip.mp4`."""
    return path.name.startswith(".")


def is_video(path: Path) -> bool:
    """True for a file that counts as a video in a folder, by its name."""
    return path.suffix.lower() in VIDEO_ENDINGS and not is_hidden(path)


# Encoders split their work by the number of threads, and the bits follow the split: a fixed number gives the same
# file on every machine.
THREADS = 4


@dataclass(frozen=True)
class Codec:
    """How one kind of video is encoded.

    `options(quality)` are the encoder's own; `qualities` is (low, high), and the low end is what `quality_is` says;
    `default` is the quality that looks like the source. The pixel formats are for (8, 10) bit; `odd` is for sizes with
    an odd side, `alpha` for pictures with transparency (empty: it cannot hold any).
    """

    encoder: str
    options: Callable[[float], dict[str, str]]
    qualities: tuple[float, float]
    default: float
    even: tuple[str, str]
    odd: tuple[str, str]
    alpha: tuple[str, ...] = ()
    containers: tuple[str, ...] = tuple(CONTAINERS)
    quality_is: str = "best"

    def pixel_format(self, size: tuple[int, int], depth: int, alpha: bool) -> str:
        """The pixel format for pictures of `size` (H, W) with `depth` bits a channel."""
        deep = int(depth > 8)
        if alpha and self.alpha:
            return self.alpha[min(deep, len(self.alpha) - 1)]
        return (self.odd if size[0] % 2 or size[1] % 2 else self.even)[deep]


_SUBSAMPLED, _FULL = ("yuv420p", "yuv420p10le"), ("yuv444p", "yuv444p10le")
_X265 = f"pools={THREADS}:frame-threads=2:log-level=error"
_MOVIES = (".mp4", ".m4v", ".mov", ".mkv")

CODECS: dict[str, Codec] = {
    "h264": Codec(
        "libx264", lambda crf: {"crf": f"{crf:g}", "preset": "medium"}, (0, 51), 18, _SUBSAMPLED, _FULL,
        containers=_MOVIES,
    ),
    "h265": Codec(
        "libx265",
        lambda crf: {"crf": f"{crf:g}", "preset": "medium", "x265-params": _X265},
        (0, 51), 20, _SUBSAMPLED, _FULL, containers=_MOVIES,
    ),
    "av1": Codec(
        "libsvtav1", lambda crf: {"crf": f"{crf:g}", "preset": "6", "svtav1-params": f"lp={THREADS}"},
        (1, 63), 24, _SUBSAMPLED, _SUBSAMPLED, containers=(".mp4", ".mkv", ".webm"),
    ),
    "vp9": Codec(
        "libvpx-vp9", lambda crf: {"crf": f"{crf:g}", "b": "0", "row-mt": "0"}, (0, 63), 24,
        ("yuv420p", "yuv420p"), ("yuv444p", "yuv444p"), ("yuva420p",), (".mp4", ".mkv", ".webm"),
    ),
    "ffv1": Codec(
        "ffv1", lambda _: {"level": "3"}, (0, 0), 0, _FULL, _FULL, ("yuva444p", "yuva444p10le"), (".mkv",),
    ),
    "prores": Codec(
        "prores_ks", lambda profile: {"profile": f"{profile:g}", "vendor": "apl0"}, (0, 5), 3,
        ("yuv422p10le", "yuv422p10le"), ("yuv444p10le", "yuv444p10le"), ("yuva444p10le",), (".mov", ".mkv"), "worst",
    ),
}  # fmt: skip


def codec_for(path: Path, name: str | None) -> str:
    """The codec by name; without one the usual one of the container.

    Errors: SettingsError for an unknown name, VideoError when the ending is unknown or does not go with the codec.
    """
    ending = path.suffix.lower()
    if ending not in CONTAINERS:
        raise VideoError(f"'{path}' has no known ending; name the video with one of {', '.join(CONTAINERS)}, or give "
                         "pictures a numbered name in a new folder, as in restored/%06d.png")  # fmt: skip
    name = name or ("vp9" if ending == ".webm" else "h264")
    if name not in CODECS:
        raise SettingsError(f"codec is {name!r}; choose one of {', '.join(CODECS)}")
    if ending not in CODECS[name].containers:
        raise VideoError(f"'{path}' cannot hold {name}; name it {' or '.join(CODECS[name].containers)}")
    return name


def is_high_10(name: str, pixel_format: str) -> bool:
    """True for H.264 with 10 bits a channel, which its profile High 10 (or 4:4:4) is for and few players are."""
    return name == "h264" and pixel_format.endswith("10le")


def check_quality(name: str, quality: float | None) -> float:
    """`quality`, or the codec's own default. Errors: SettingsError outside the scale of the codec."""
    codec = CODECS[name]
    quality = codec.default if quality is None else quality
    low, high = codec.qualities
    if name == "ffv1":
        return 0  # lossless: there is nothing to choose
    if not low <= quality <= high:
        raise SettingsError(f"quality is {quality:g}; for {name} it is {low:g} ({codec.quality_is}) to {high:g}")
    return quality


def require_encoder(name: str) -> None:
    """Errors: MissingPackageError when this PyAV was built without the encoder of codec `name`."""
    av = require("av", "av", "writing a video")
    try:
        av.Codec(CODECS[name].encoder, "w")
    except ValueError as error:  # PyAV's UnknownCodecError
        raise MissingPackageError(
            f"this PyAV has no encoder '{CODECS[name].encoder}' for {name}; choose another codec, "
            "or install the 'av' wheels of PyPI with: pip install av"
        ) from error


def takes(container: str, add: Callable[[Any], Any]) -> bool:
    """True if a file of the kind `container` (FFmpeg's name) can begin with the stream that `add(output)` adds to it.

    The muxer is asked by a trial: its list of codecs does not tell what needs more than the right codec.
    """
    av = require("av", "av", "writing a video")
    try:
        with av.open(io.BytesIO(), mode="w", format=container) as output:
            add(output)
            output.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return False
    return True
