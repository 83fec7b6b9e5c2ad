"""What is compared: bicubic, presets with settings, upscaler networks, folders of ready results.

Bicubic and upscaler networks go frame by frame; with `steady` they get frames averaged along their motion, and with
`steady_result` their results are averaged, as presets do it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import CheckpointError, InputError, SettingsError, require
from ..video.formats import VIDEO_ENDINGS
from ..video.layouts import is_sequence
from ..video.resize import upscale_bicubic
from ..video.steadying import MAX_RADIUS, steady_video
from .datasets import Clip, read_frames

TILE, TILE_MARGIN = 256, 16
"""Largest side in low-resolution pixels that an upscaler sees at once, and the margin that is cut off again."""


class Method(Protocol):
    """A way from a clip's low-resolution frames to frames at the truth's size."""

    name: str
    spec: str

    def fingerprint(self, clip: str) -> str:
        """Changes with the weights, files and settings behind the method, so that no stale figures are kept."""
        ...

    def prepare(self) -> None:
        """Loads what is needed, so that the time of a clip is the method's own."""
        ...

    def __call__(self, clip: Clip) -> Tensor:
        """(N, h * scale, w * scale, 3) in 0..1, on the CPU."""
        ...


def parse_method(spec: str, *, scale: int = 4, device: str | None = None) -> Method:
    """`bicubic`, `preset:NAME`, a weight file or a folder of results; `LABEL@` before it names it, and settings come
    after a last colon: for a preset those of `Restorer.restore` (`preset:nano:steps=4,strength=0.5`), for bicubic and a
    weight file `steady` and `steady_result`.

    Errors: SettingsError or CheckpointError naming the specification.
    """
    label, at, rest = spec.partition("@")
    if not at or "/" in label or ":" in label:
        label, rest = "", spec
    what, settings = _parts(rest, spec)
    shown = f" ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else ""
    if what.startswith("preset:"):
        preset = what.removeprefix("preset:")
        return Preset(label or Path(preset).name + shown, spec, preset, settings, scale, device)
    path = Path(what)
    if what == "bicubic":
        return _steadied(Bicubic(label or what + shown, spec, scale), settings)
    if path.is_file():
        return _steadied(Upscaler(label or path.stem + shown, spec, path, scale, device), settings)
    if path.is_dir() and not settings:
        return Results(label or path.name, spec, path)
    raise SettingsError(f"unknown method {rest!r}; give bicubic, preset:NAME, a weight file or a folder of results")


def _parts(rest: str, spec: str) -> tuple[str, dict[str, Any]]:
    """What is before the settings, and these."""
    # A path may have colons and "=" too (C:\presets): settings are what makes no path that is there.
    what, colon, tail = rest.rpartition(":")
    if not colon or "=" not in tail or Path(rest.removeprefix("preset:")).exists():
        return rest, {}
    settings: dict[str, Any] = {}
    for pair in filter(None, tail.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SettingsError(f"'{pair}' in the method '{spec}' is no setting; write key=value, as in steps=0")
        settings[key.strip()] = _value(value.strip())
    if "scale" in settings:
        raise SettingsError(f"the method '{spec}' sets the scale; it is one for all methods: --scale")
    return what, settings


def parse_methods(specs: Sequence[str], *, scale: int = 4, device: str | None = None) -> list[Method]:
    """All of them; SettingsError where two would have the same name in the tables."""
    methods = [parse_method(spec, scale=scale, device=device) for spec in specs]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1 or name == "truth":
            raise SettingsError(f"two methods are called {name!r}; put a name of your own before one: NAME@SPEC")
    return methods


@dataclass
class Bicubic:
    name: str
    spec: str
    scale: int

    def fingerprint(self, clip: str) -> str:
        return ""

    def prepare(self) -> None:
        pass

    def __call__(self, clip: Clip) -> Tensor:
        return enlarge(clip.lr, self.scale)


def enlarge(frames: Tensor, scale: int) -> Tensor:
    """Frames (N, h, w, 3) enlarged by bicubic interpolation."""
    return torch.cat([upscale_bicubic(frame[None].movedim(-1, 1), scale).movedim(1, -1) for frame in frames])


@dataclass
class Preset:
    """A preset of this project; settings as for `Restorer.restore` (steps=0 is the decoder alone)."""

    name: str
    spec: str
    preset: str
    settings: dict[str, Any]
    scale: int
    device: str | None
    _restorer: Any = field(default=None, repr=False)

    def fingerprint(self, clip: str) -> str:
        from ..checkpoints.presets import preset_folder

        folder = preset_folder(self.preset)
        files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        return stamp(files, *(f"{key}={value!r}" for key, value in sorted(self.settings.items())))

    def prepare(self) -> None:
        if self._restorer is None:
            from ..restorer import Restorer

            self._restorer = Restorer.from_preset(self.preset, device=self.device)
            self._restorer.settings(scale=self.scale, **self.settings)

    def __call__(self, clip: Clip) -> Tensor:
        self.prepare()
        return self._restorer.restore(clip.lr, scale=self.scale, **self.settings)


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass
class Upscaler:
    """A network file that `spandrel` knows (Real-ESRGAN, SwinIR, ...), frame by frame, in tiles with a margin."""

    name: str
    spec: str
    path: Path
    scale: int
    device: str | None
    _model: Any = field(default=None, repr=False)

    def fingerprint(self, clip: str) -> str:
        return stamp([self.path])

    def prepare(self) -> None:
        self._load()

    def __call__(self, clip: Clip) -> Tensor:
        model = self._load()
        size = tuple(side * self.scale for side in clip.lr.shape[1:3])
        frames = []
        for frame in clip.lr:
            large = tiled(model, frame.movedim(-1, 0)[None], model.scale).clamp(0, 1)
            if tuple(large.shape[2:]) != size:  # a network of another factor: brought to the size that is measured
                large = F.interpolate(large, size=size, mode="bicubic", antialias=True).clamp(0, 1)
            frames.append(large[0].movedim(0, -1))
        return torch.stack(frames)

    def _load(self) -> Any:
        if self._model is None:
            self._model = load_upscaler(self.path, self.device or "cpu")
        return self._model


def load_upscaler(path: Path, device: str) -> Any:
    """spandrel's descriptor of a network file, callable on RGB pictures (N, 3, h, w) in 0..1.

    Errors: CheckpointError for a file that it does not know, or of another kind.
    """
    spandrel = require("spandrel", purpose="an upscaler file as a method")
    try:
        model = spandrel.ModelLoader(device=device).load_from_file(path)
    except Exception as error:  # noqa: BLE001 - it raises whatever the file makes it stumble over
        raise CheckpointError(f"'{path}' is no upscaler that spandrel can load: {error}") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.input_channels != 3:
        raise CheckpointError(f"'{path}' is no network that takes an RGB picture and gives one")
    return model.eval()


@torch.inference_mode()
def tiled(network: Any, picture: Tensor, factor: int, tile: int = TILE, margin: int = TILE_MARGIN) -> Tensor:
    """`network` on (1, 3, h, w), in tiles of at most `tile` pixels with `margin` around each, joined edge to edge."""
    device = getattr(network, "device", picture.device)
    height, width = picture.shape[2:]
    result = torch.empty(0)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x = max(0, top - margin), max(0, left - margin)
            part = picture[:, :, y : min(bottom + margin, height), x : min(right + margin, width)]
            large = network(part.to(device)).float().cpu()
            if not result.numel():
                result = large.new_empty((1, large.shape[1], height * factor, width * factor))
            inner = large[:, :, (top - y) * factor : (bottom - y) * factor, (left - x) * factor : (right - x) * factor]
            result[:, :, top * factor : bottom * factor, left * factor : right * factor] = inner
    return result


def _steadied(method: Method, settings: dict[str, Any]) -> Method:
    """The method, on steadied frames where the settings say so. Errors: SettingsError for any other setting."""
    for key, value in settings.items():
        if key not in ("steady", "steady_result"):
            raise SettingsError(f"'{key}' in the method '{method.spec}' is no setting of it: it has steady and "
                                "steady_result")
        if not isinstance(value, int) or not 0 <= value <= MAX_RADIUS:
            raise SettingsError(f"{key} in the method '{method.spec}' must be a whole number from 0 to {MAX_RADIUS}")
    return Steadied(method.name, method.spec, method, **settings) if settings else method


@dataclass
class Steadied:
    """Another method, on frames averaged along their motion over `steady` neighbours each way, and its results over
    `steady_result`: what a method that sees single frames gains by it.
    """

    name: str
    spec: str
    method: Method
    steady: int = 0
    steady_result: int = 0

    def fingerprint(self, clip: str) -> str:
        return stamp([], self.method.fingerprint(clip), f"steady {self.steady}, result {self.steady_result}")

    def prepare(self) -> None:
        self.method.prepare()

    def __call__(self, clip: Clip) -> Tensor:
        steadied = replace(clip, lr=steady_video(clip.lr, self.steady))
        return steady_video(self.method(steadied), self.steady_result)


@dataclass
class Results:
    """Ready results: one video or folder of frames per clip, by the clip's name."""

    name: str
    spec: str
    folder: Path

    def fingerprint(self, clip: str) -> str:
        path = self._find(clip)
        return stamp(sorted(path.iterdir()) if path.is_dir() else [path])

    def prepare(self) -> None:
        pass

    def __call__(self, clip: Clip) -> Tensor:
        """Whole frames are cut like the truth; results of the cut size are taken as they are."""
        path = self._find(clip.name)
        frames = read_frames(path, len(clip.lr))
        top, left, height, width = clip.window
        if len(frames) < len(clip.lr):
            raise InputError(f"{clip.name} of {self.name}: '{path}' has {len(frames)} frames, the clip {len(clip.lr)}")
        if tuple(frames.shape[1:3]) in (clip.full, _on_grid(clip.full, clip)):
            return frames[:, top : top + height, left : left + width].clone()
        return frames

    def _find(self, clip: str) -> Path:
        candidates = [self.folder / clip, *(self.folder / f"{clip}{suffix}" for suffix in VIDEO_ENDINGS)]
        found = [path for path in candidates if path.exists() and is_sequence(path)]
        if not found:
            raise InputError(f"'{self.folder}' has no result for the clip {clip!r}; it should be a folder or a video "
                             "of that name")
        return found[0]


def _on_grid(full: tuple[int, int], clip: Clip) -> tuple[int, int]:
    """`full` without the rows and columns that no whole low-resolution pixel covers."""
    scale = clip.window[2] // clip.lr.shape[1]
    return full[0] // scale * scale, full[1] // scale * scale


def stamp(paths: Sequence[Path], *more: str) -> str:
    """A short digest of names, sizes and times of change, and of what else decides the result."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    for text in more:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:16]
