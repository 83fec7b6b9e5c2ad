"""The figures that an evaluation can hold: what each needs, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, InputError, SeTeVSRError, SettingsError
from . import metrics

Figure = Callable[[Tensor, Tensor], float]
"""(result, reference) -> figure; the reference is the truth wherever a measure needs one."""


@dataclass(frozen=True)
class Equipment:
    """What measures are built from. weights: folders that hold weight files; ffmpeg: None looks for one; device: where
    the learned ones compute; place: these folders, in words that tell a user where to put a file.
    """

    weights: Sequence[Path] = ()
    ffmpeg: str | None = None
    device: str | None = None
    threads: int = 1
    place: str = "the folders given with --weights"

    def find(self, *patterns: str) -> Path:
        """The first file or folder of that name. Errors: CheckpointError that says which file is wanted."""
        for folder in self.weights:
            for pattern in patterns:
                for path in sorted(folder.glob(pattern)):
                    return path
        raise CheckpointError(f"no file {' or '.join(patterns)} in {self.place}")


@dataclass(frozen=True)
class Measure:
    """name: on the command line; better: "higher", "lower" or "" (to be read beside the truth's).

    temporal: needs two frames; whole: of the whole clip, and no mean over its frames or pairs of neighbours.
    """

    name: str
    title: str
    better: str
    build: Callable[[Equipment], Figure]
    needs_truth: bool = True
    temporal: bool = False
    whole: bool = False


def _lpips(equipment: Equipment) -> metrics.LPIPS:
    return metrics.LPIPS(equipment.find("alexnet_features*.safetensors"), equipment.device)


def _tlpips(equipment: Equipment) -> Figure:
    distance = _lpips(equipment).distance
    return lambda result, truth: metrics.temporal_distance(distance, result, truth)


def _dists(equipment: Equipment) -> Figure:
    from .dists import DISTS

    return DISTS(equipment.find("vgg16_features*.safetensors"), equipment.device)


def _vmaf(equipment: Equipment) -> Figure:
    from .vmaf import VMAF

    return VMAF(equipment.ffmpeg, equipment.threads)


def _niqe(equipment: Equipment) -> Figure:
    from .naturalness import NIQE

    return _alone(NIQE(equipment.find("niqe_pris_params.npz")))


def _brisque(equipment: Equipment) -> Figure:
    from .naturalness import BRISQUE

    return _alone(BRISQUE())


def _musiq(equipment: Equipment) -> Figure:
    from .no_reference import FromPyiqa

    return _alone(FromPyiqa("musiq", equipment.find("musiq_koniq*.pth"), equipment.device))


def _clipiqa(equipment: Equipment) -> Figure:
    from .no_reference import FromPyiqa

    return _alone(FromPyiqa("clipiqa", equipment.find("RN50.pt"), equipment.device))


def _dover(equipment: Equipment) -> Figure:
    from .no_reference import DOVER

    return _alone(DOVER(equipment.find("DOVER"), equipment.device))


def _alone(figure: Callable[[Tensor], float]) -> Figure:
    return lambda result, reference: figure(result)


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("psnr", "PSNR", "higher", lambda _: metrics.psnr),
        Measure("psnr_y", "PSNR-Y", "higher", lambda _: lambda a, b: metrics.psnr(a, b, of_luma=True)),
        Measure("ssim", "SSIM", "higher", lambda _: lambda a, b: metrics.ssim(a, b, of_luma=False)),
        Measure("ssim_y", "SSIM-Y", "higher", lambda _: metrics.ssim),
        Measure("lpips", "LPIPS", "lower", _lpips),
        Measure("dists", "DISTS", "lower", _dists),
        Measure("vmaf", "VMAF", "higher", _vmaf, whole=True),
        Measure("tlpips", "tLPIPS", "lower", _tlpips, temporal=True),
        Measure("warping", "E_warp", "lower", lambda _: metrics.warping_error, needs_truth=False, temporal=True),
        Measure("niqe", "NIQE", "lower", _niqe, needs_truth=False),
        Measure("brisque", "BRISQUE", "lower", _brisque, needs_truth=False),
        Measure("musiq", "MUSIQ", "higher", _musiq, needs_truth=False),
        Measure("clipiqa", "CLIP-IQA", "higher", _clipiqa, needs_truth=False),
        Measure("dover", "DOVER", "higher", _dover, needs_truth=False, whole=True),
        Measure("sharpness", "sharpness", "", lambda _: _alone(metrics.sharpness), needs_truth=False),
    )
}


@dataclass
class Instruments:
    """The measures that could be built, ready to use, and the others with the reason."""

    figures: dict[str, Figure] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def build(cls, names: Iterable[str], equipment: Equipment) -> Instruments:
        """Errors: SettingsError for an unknown name; a package or file that is missing only lands in `missing`."""
        instruments = cls()
        for name in names:
            if name not in MEASURES:
                raise SettingsError(f"unknown metric {name!r}; choose from {', '.join(MEASURES)}")
            try:
                instruments.figures[name] = MEASURES[name].build(equipment)
            except SeTeVSRError as error:
                instruments.missing[name] = str(error)
        return instruments

    def expected(self, has_truth: bool, is_truth: bool, frames: int) -> list[str]:
        """The measures that make sense here: the truth is not compared with itself, one frame has no motion."""
        return [name for name in self.figures
                if not (MEASURES[name].needs_truth and (is_truth or not has_truth))
                and not (MEASURES[name].temporal and frames < 2)]

    def measure(self, names: Iterable[str], result: Tensor, reference: Tensor) -> dict[str, float | None]:
        """The named figures; None where a picture does not suit the measure (too small, without texture). A figure is
        left out where its program failed, so that a later run tries it again. The reason is in `missing` then.
        """
        figures: dict[str, float | None] = {}
        for name in names:
            try:
                figures[name] = self.figures[name](result, reference)
            except SeTeVSRError as error:
                if isinstance(error, InputError):
                    figures[name] = None
                self.missing.setdefault(name, f"not everywhere: {error}")
        return figures
