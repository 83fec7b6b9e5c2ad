"""Learned quality without a truth: MUSIQ and CLIP-IQA through `pyiqa`, DOVER through its authors' repository.

None of them is a dependency: pyiqa and DOVER's code are for noncommercial use and bring much along. Whoever has them
names the weight files; nothing is ever downloaded from here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, VideoError, require
from ..memory import is_out_of_memory
from ..video.writing import VideoWriter

_DOVER_SCORE = re.compile(r"overall score.*?:\s*([0-9.eE+-]+)\s*$", re.MULTILINE)


class FromPyiqa:
    """A metric of `pyiqa` on local weights: its constructors download only where no file is named.

    name: "musiq" (a KonIQ-10k file) or "clipiqa" (OpenAI's CLIP RN50).
    Errors: MissingPackageError without pyiqa, CheckpointError for a file that does not fit.
    """

    def __init__(self, name: str, weights: Path, device: str | None = None) -> None:
        self.name = name
        pyiqa: Any = require("pyiqa", purpose=name.upper())
        options: dict[str, Any] = {"backbone": str(weights)}
        try:
            if name == "musiq":
                # pyiqa unpickles whatever the file holds; this refuses a file that holds more than tensors.
                torch.load(weights, map_location="cpu", weights_only=True)
                options = {"pretrained": False, "pretrained_model_path": str(weights)}
            self.metric = pyiqa.create_metric(name, device=torch.device(device or "cpu"), **options)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, ImportError) as error:
            raise CheckpointError(f"{name} cannot be built from '{weights}': {_first_line(error)}") from error
        except Exception as error:  # noqa: BLE001 - unpickling errors have no common base
            raise CheckpointError(f"'{weights}' is no weight file for {name}: {_first_line(error)}") from error

    @torch.inference_mode()
    def __call__(self, clip: Tensor) -> float:
        """Mean over the frames (N, H, W, 3). Errors: InputError for frames that the metric cannot take."""
        try:
            scores = [float(self.metric(frame.float().clamp(0, 1).movedim(-1, 0)[None])) for frame in clip]
        except (RuntimeError, ValueError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(f"{self.name} cannot judge frames of {clip.shape[2]}x{clip.shape[1]}: "
                             f"{_first_line(error)}") from error
        return sum(scores) / len(scores)


class DOVER:
    """Fused DOVER score (Wu et al. 2023), 0 to 1, by the authors' `evaluate_one_video.py` in a process of its own.

    repository: a copy of the DOVER repository, set up as its README says, with its weights in `pretrained_weights/`.
    Errors: CheckpointError for a folder that is none; VideoError with the script's last line where it fails.
    """

    def __init__(self, repository: Path, device: str | None = None) -> None:
        self.repository, self.device = repository.resolve(), device or "cpu"
        for needed in ("evaluate_one_video.py", "dover.yml"):
            if not (self.repository / needed).is_file():
                raise CheckpointError(f"'{repository}' is no DOVER repository: it has no {needed}")
        if not any((self.repository / "pretrained_weights").glob("*.pth")):
            raise CheckpointError(f"'{repository}' has no weights: put DOVER.pth into its folder pretrained_weights")

    def __call__(self, clip: Tensor) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            with VideoWriter(path, 25, (clip.shape[1], clip.shape[2]), quality=4) as writer:
                writer.write(clip)
            command = [sys.executable, "evaluate_one_video.py", "-v", str(path), "-d", self.device, "-f"]
            done = subprocess.run(command, cwd=self.repository, capture_output=True, text=True, check=False)
        score = _DOVER_SCORE.search(done.stdout)
        if done.returncode or score is None:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise VideoError(f"DOVER's evaluate_one_video.py failed: {last}")
        return float(score.group(1))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


