"""`setevsr train preset`: finished networks, their records and curves become a preset folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import save_native
from .building import load

FILE_NAMES = {"vae": "vae", "denoiser": "denoiser", "semantic": "semantic_encoder"}


def gather_preset(out: Path, networks: Mapping[str, Path | None], runs: Sequence[Path]) -> None:
    """Write the given networks in fp16 to `out`, with the records of the folders they lie in and of further `runs`."""
    given = {kind: path for kind, path in networks.items() if path is not None}
    for kind, path in given.items():
        save_native(load(kind, path, torch.device("cpu")), out / f"{FILE_NAMES[kind]}.safetensors", dtype=torch.float16)
    record: dict[str, Any] = {}
    for run in sorted({*runs, *(path.parent for path in given.values())}):
        if (run / "record.json").is_file():
            record[run.name] = json.loads((run / "record.json").read_text())
            (out / f"curve_{run.name}.csv").write_text((run / "log.csv").read_text())
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
