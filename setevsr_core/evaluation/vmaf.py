"""VMAF by an ffmpeg that has libvmaf, run as a program of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor

from ..errors import InputError, MissingPackageError, VideoError
from .metrics import check_pair


class VMAF:
    """VMAF v0.6.1, 0 to 100, higher is better: the mean over the frames.

    ffmpeg: path of the program; None looks at the package `imageio-ffmpeg`, then at the search path.
    Errors: MissingPackageError where no ffmpeg with libvmaf is found.
    """

    def __init__(self, ffmpeg: str | None = None, threads: int = 1) -> None:
        self.threads = threads
        candidates = [ffmpeg] if ffmpeg else [*_from_package(), *filter(None, [shutil.which("ffmpeg")])]
        self.program = next((program for program in candidates if _has_vmaf(program)), "")
        if not self.program:
            tried = f"'{ffmpeg}'" if ffmpeg else "imageio-ffmpeg's and the search path's"
            raise MissingPackageError(f"VMAF needs an ffmpeg with the filter libvmaf, and {tried} has none; "
                                      "pip install imageio-ffmpeg, or name one with --ffmpeg")

    def __call__(self, result: Tensor, truth: Tensor) -> float:
        """Of clips (N, H, W, 3). Errors: InputError for frames below 18x18, VideoError where ffmpeg fails."""
        check_pair(result, truth)
        if min(result.shape[1:3]) < 18:
            raise InputError(f"VMAF needs frames of 18x18 or more, got {result.shape[2]}x{result.shape[1]}")
        # yuv420p halves the sides of the chroma planes: odd sides lose their last line.
        height, width = (side // 2 * 2 for side in result.shape[1:3])
        with tempfile.TemporaryDirectory() as folder:
            source = []
            for name, clip in (("result", result), ("truth", truth)):
                with (Path(folder) / name).open("wb") as file:
                    for frame in clip[:, :height, :width]:
                        file.write((frame.clamp(0, 1) * 255).round().byte().cpu().contiguous().numpy().tobytes())
                source += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25", "-i", name]
            convert = "scale=out_color_matrix=bt709:out_range=tv:sws_flags=accurate_rnd+full_chroma_int,format=yuv420p"
            graph = (f"[0:v]{convert}[a];[1:v]{convert}[b];"
                     f"[a][b]libvmaf=log_fmt=json:log_path=vmaf.json:n_threads={self.threads}")
            command = [self.program, "-hide_banner", "-nostdin", *source, "-lavfi", graph, "-f", "null", "-"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            log = Path(folder) / "vmaf.json"
            if done.returncode or not log.exists():
                last = (done.stderr.strip() or "no output").splitlines()[-1]
                raise VideoError(f"'{self.program}' could not measure VMAF: {last}")
            return float(json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"])


def _from_package() -> list[str]:
    try:
        import imageio_ffmpeg

        return [imageio_ffmpeg.get_ffmpeg_exe()]
    except (ImportError, RuntimeError):
        return []


def _has_vmaf(program: str) -> bool:
    try:
        done = subprocess.run([program, "-hide_banner", "-filters"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return any(line.split()[1:2] == ["libvmaf"] for line in done.stdout.splitlines())


