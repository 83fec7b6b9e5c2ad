"""`setevsr train preset`: finished networks, their records and curves become a preset folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import save_native
from ..checkpoints.presets import preset_config
from ..errors import SettingsError
from ..networks.temporal_vae import VAEConfig
from .building import load

FILE_NAMES = {"vae": "vae", "denoiser": "denoiser", "semantic": "semantic_encoder"}


def gather_preset(
    out: Path, networks: Mapping[str, Path | None], runs: Sequence[Path], mixed: tuple[Path, float] | None = None,
    sharpen: float | None = None, descreen: bool | None = None,
) -> None:
    """Write the given networks in fp16 to `out`, with the records of the folders they lie in and of further `runs`.

    A preset among the folders hands on the records of what it was made of and, where `out` has no `config.json`, its
    restore settings (of several the first one's, in the order of networks and runs). `out` may be one of them.
    mixed: a second VAE and its share, for network interpolation (ESRGAN, section 3.4): between weights from before and
    after a stage that adds texture lies a network with less of its artefacts.
    descreen, sharpen: what the VAE does with what it decodes (`VAEConfig`); None leaves it as it is.
    Errors: SettingsError for a share outside 0..1, a negative amount, a VAE of other sizes or without folds, and for
    two runs of one name.
    """
    given = {kind: path for kind, path in networks.items() if path is not None}
    ending = {name: v for name, v in {"descreen": descreen, "sharpen": sharpen}.items() if v is not None}
    folders = [folder.resolve() for folder in (*(path.parent for path in given.values()), *runs)]
    records, curves = _records(list(dict.fromkeys(folders)))
    record: dict[str, Any] = {}
    for kind, path in given.items():
        network: Any = load(kind, path, torch.device("cpu"))
        if kind == "vae" and mixed is not None:
            other: Any = load(kind, mixed[0], torch.device("cpu"))
            network.load_state_dict(mixture(network.state_dict(), other.state_dict(), mixed[1]))
            first, second = (f"{file.parent.name}/{file.name}" for file in (path, mixed[0]))
            record["mixed"] = {"vae": first, "with": second, "share": mixed[1]}
        if kind == "vae" and ending:
            network.config = config = ended(network.config, ending)
            record["ending"] = {"vae": f"{path.parent.name}/{path.name}", "descreen": config.descreen,
                                "sharpen": config.sharpen}
        save_native(network, out / f"{FILE_NAMES[kind]}.safetensors", dtype=torch.float16)
    for name, curve in curves.items():
        if curve != out.resolve() / name:
            (out / name).write_bytes(curve.read_bytes())
    (out / "training.json").write_text(json.dumps(records | record, indent=1) + "\n")
    if not (out / "config.json").is_file():
        presets = [preset_config(folder) for folder in folders if (folder / "config.json").is_file()]
        defaults = presets[0].get("defaults", {}) if presets else {}
        config = {"name": out.resolve().name, "defaults": defaults}
        (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def _records(folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Records of all runs by name, and where the curves lie by the name that they get.

    A run among the folders counts before one of its name that a preset hands on, and of presets the first one.
    Errors: SettingsError for two runs of one name.
    """
    runs: dict[str, Path] = {}
    for folder in folders:
        if (folder / "record.json").is_file() and runs.setdefault(folder.name, folder) != folder:
            raise SettingsError(f"'{runs[folder.name]}' and '{folder}' have one name, by which a preset keeps their "
                                "records; rename one of them")
    records = {name: json.loads((folder / "record.json").read_text()) for name, folder in runs.items()}
    curves = {f"curve_{name}.csv": folder / "log.csv" for name, folder in runs.items()
              if (folder / "log.csv").is_file()}  # a run of fewer steps than --log-every has none
    for folder in folders:
        if (folder / "training.json").is_file():
            handed = json.loads((folder / "training.json").read_text())
            curves = {f"curve_{name}.csv": folder / f"curve_{name}.csv" for name in handed
                      if name not in records and (folder / f"curve_{name}.csv").is_file()} | curves
            records = handed | records
    return records, curves


def ended(config: VAEConfig, changes: Mapping[str, Any]) -> VAEConfig:
    """The config with another ending of the decoder. Errors: as `gather_preset`."""
    if changes.get("sharpen", 0) < 0:
        raise SettingsError(f"sharpen is {changes['sharpen']:g}; it must be 0 or more")
    if changes.get("descreen") and config.patch == 1:
        raise SettingsError("this VAE does not fold pixels (its patch is 1): there is nothing to descreen")
    return replace(config, **changes)


@torch.no_grad()
def mixture(weights: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) * weights + share * other, tensor by tensor (network interpolation, ESRGAN section 3.4).

    Errors: SettingsError for a share outside of 0..1, and for networks of different sizes.
    """
    if not 0 <= share <= 1:
        raise SettingsError(f"a mix takes a share between 0 and 1, not {share:g}")
    if {key: value.shape for key, value in weights.items()} != {key: value.shape for key, value in other.items()}:
        raise SettingsError("the two networks have different sizes; only trainings of one network can be mixed")
    return {key: torch.lerp(value, other[key], share) for key, value in weights.items()}


def mix_of(path: str, share: str) -> tuple[Path, float]:
    """The two words of an option that mixes. Errors: SettingsError for a share that is no number."""
    try:
        return Path(path), float(share)
    except ValueError:
        raise SettingsError(f"a mix takes a file and a share between 0 and 1, not '{share}'") from None
