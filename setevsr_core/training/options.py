"""The options of `setevsr train`: defaults per network size and stage, a file of one's own, the command line."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from .trainer import Bounds, TrainSettings, check_bounds

CONFIGS = Path(__file__).parent / "configs"
FILES = ("vae", "denoiser", "semantic", "teacher", "vgg", "text", "compact")
"""Options that name a file; each may be left out where the stage does not need it."""
TRAINS = ("all", "new")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text",
         list: "a list of whole numbers, such as [2, 4]", type(None): "the name of a file, or null"}
"""What a value of JSON must be, by the type of its default."""

BOUNDS: Bounds = {
    **dict.fromkeys(("draws", "lpips_images", "gan_channels"), (1, math.inf)),
    **dict.fromkeys(("l1_weight", "lpips_weight", "latent_weight", "flow_weight", "gan_weight", "gan_start",
                     "lpips_patch", "trunk", "refine", "teacher_steps"), (0, math.inf)),
    "lr_share": (0, 1),
}  # fmt: skip
"""Smallest and largest values of the stages' own options; those of the loop are in `trainer.BOUNDS`."""


def merged_options(stage: str, size: str, given: Mapping[str, Any], config: Path | None = None) -> argparse.Namespace:
    """All options of a run, the later winning: the size's defaults, the stage's, a JSON file, what was `given`.

    Errors: SettingsError for a file that is no JSON object, or names an option that does not exist, and for values of
    another kind or that no stage can have.
    """
    defaults = json.loads((CONFIGS / f"{size}.json").read_text(encoding="utf-8"))
    own = {} if config is None else _read(config)
    values = {"minutes": float("inf"), "device": "auto", **dict.fromkeys(FILES)}
    values |= defaults["common"] | defaults[stage]
    unknown = sorted(set(own) - set(values))
    if unknown:
        raise SettingsError(f"{config} sets {unknown[0]!r}, which is no option of training; options are "
                            f"{', '.join(sorted(values))}")
    for name, value in own.items():
        _require_kind(name, value, values[name])
    own = {name: Path(value) if name in FILES and value is not None else value for name, value in own.items()}
    values |= {**own, **given}
    check_bounds(values, BOUNDS)
    if values["trains"] not in TRAINS:
        raise SettingsError(f"trains is '{values['trains']}', choose {' or '.join(TRAINS)}")
    return argparse.Namespace(**values, stage=stage, size=size)


def _require_kind(name: str, value: Any, default: Any) -> None:
    """SettingsError for a value of another kind than the default; a whole number may stand for any number."""
    kinds = {float: (float, int), type(None): (str, type(None))}.get(type(default), (type(default),))
    if type(value) not in kinds or isinstance(value, list) and {type(item) for item in value} != {int}:
        raise SettingsError(f"{name} is {json.dumps(value)}, it must be {KINDS[type(default)]}")


def _read(config: Path) -> dict[str, Any]:
    try:
        own = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the configuration {config} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"the configuration {config} is no JSON ({error})") from error
    if not isinstance(own, dict):
        raise SettingsError(f"the configuration {config} must be one JSON object, such as {{\"steps\": 1000}}")
    return own


def recorded(options: argparse.Namespace) -> dict[str, Any]:
    """The options as a training keeps them: files by folder and name, without their place on this machine."""
    return {name: f"{value.absolute().parent.name}/{value.name}" if isinstance(value, Path) else value
            for name, value in vars(options).items()}


def train_settings(options: argparse.Namespace) -> TrainSettings:
    """The part of the options that the training loop itself needs."""
    return TrainSettings(**{field.name: getattr(options, field.name) for field in fields(TrainSettings)})
