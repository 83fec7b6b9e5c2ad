"""Where weight files and presets are looked for, what the combos list, and where results are written."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ..setevsr_core.errors import CheckpointError, VideoError

MODELS = "setevsr"
"""Our own folder key: `models/setevsr`, and whatever `extra_model_paths.yaml` adds under this name."""

WEIGHT_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
NO_FILE = "(no weight file found)"

LORA = "lora"
DIFFUSERS = "diffusers"
SHARED = {
    "denoiser": ("diffusion_models", "checkpoints", DIFFUSERS), "vae": ("vae", "checkpoints", DIFFUSERS),
    "semantic_encoder": ("sam2",), LORA: ("loras",),
}
"""Standard folders that may hold a component already, searched after our own."""
PARTS = {"denoiser": "unet", "vae": "vae"}
"""Subfolder of a diffusers model in which a component stands."""
TITLES = {"semantic_encoder": "semantic encoder", "vae": "VAE", LORA: "LoRA"}


def register() -> None:
    """Make `models/setevsr` (and `models/sam2`, if no other pack has) known to ComfyUI; keeps the user's own paths."""
    for key in (MODELS, "sam2"):
        folder_paths.add_model_folder_path(key, str(Path(folder_paths.models_dir) / key))
        paths, endings = folder_paths.folder_names_and_paths[key]
        if endings or key == MODELS:  # without any, the pack that registered the folder wants to see every file
            folder_paths.folder_names_and_paths[key] = (paths, {*endings, *WEIGHT_FILES})


def weight_files(kind: str) -> list[str]:
    """Names of the files that may hold a component of `kind`, our own folder first; never empty."""
    names: dict[str, None] = {}
    presets = preset_folders()
    for key in _folders(kind):
        for name in _diffusers_files(PARTS[kind]) if key == DIFFUSERS else folder_paths.get_filename_list(key):
            inside_preset = key == MODELS and Path(name).parts[0] in presets
            if name.lower().endswith(WEIGHT_FILES) and not inside_preset:
                names.setdefault(name)
    return list(names) or [NO_FILE]


def find_weights(kind: str, name: str) -> str:
    """Full path of the file `name` for a component of `kind`; `CheckpointError` says where the file belongs."""
    for key in _folders(kind):
        path = folder_paths.get_full_path(key, name)
        if path is not None:
            return path
    wanted = "No weight file was found" if name == NO_FILE else f"The weight file '{name}' was not found"
    raise CheckpointError(f"{wanted} for the {TITLES.get(kind, kind)}; put it into {own_folder()} and press R.")


def own_folders() -> list[Path]:
    """All folders of this pack's own weight files, the user's main one first."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(MODELS)]


def newest(folders: Iterable[Path]) -> int:
    """The newest time stamp of folders and what lies directly in them: changes when a file does, comes or goes."""
    found = [path for folder in folders if folder.is_dir() for path in (folder, *folder.iterdir())]
    return max((path.stat().st_mtime_ns for path in found if path.exists()), default=0)


def own_folder() -> Path:
    """The folder a user should put weight files into."""
    return Path(folder_paths.get_folder_paths(MODELS)[0])


def preset_folders() -> dict[str, Path]:
    """User presets by name: every folder below `models/setevsr` that holds a `config.json` of a preset."""
    found: dict[str, Path] = {}
    for folder in folder_paths.get_folder_paths(MODELS):
        for config in sorted(Path(folder).glob("*/config.json")):
            if not _is_foreign(config):
                found.setdefault(config.parent.name, config.parent)
    return found


def preset_names(default: str) -> list[str]:
    """All presets, `default` first, then the other bundled ones, then the user's own."""
    from ..setevsr_core.checkpoints.presets import list_presets

    return list(dict.fromkeys([default, *list_presets(), *preset_folders()]))


def preset_folder(name: str) -> Path:
    """The folder of a preset by name: the user's own first, then the bundled ones."""
    from ..setevsr_core.checkpoints.presets import preset_folder as bundled_folder

    own = preset_folders()
    return own[name] if name in own else bundled_folder(name)


def temporary_path(label: str, ending: str = ".mp4") -> Path:
    """A fresh file name in ComfyUI's temporary folder, which ComfyUI empties when it starts."""
    folder = made_folder(Path(folder_paths.get_temp_directory()), "--temp-directory")
    return folder / f"setevsr_{label}_{uuid.uuid4().hex[:12]}{ending}"


def made_folder(folder: Path, option: str) -> Path:
    """The folder, made if need be; `VideoError` that names ComfyUI's option for another one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoError(
            f"The folder '{folder}' cannot be made: {error.strerror}; start ComfyUI with {option} and one that can be "
            "written."
        ) from error
    return folder


def _folders(kind: str) -> list[str]:
    keys = (MODELS, *SHARED[kind])
    return [key for key in keys if key in folder_paths.folder_names_and_paths]


def _diffusers_files(part: str) -> list[str]:
    """Files of one part of the models in `models/diffusers`, of which ComfyUI lists folders alone."""
    found = (name for folder in folder_paths.get_folder_paths(DIFFUSERS)
             for name in folder_paths.recursive_search(folder)[0])
    return sorted(name for name in found if Path(name).parent.name == part)


def _is_foreign(config: Path) -> bool:
    """Whether a config.json is that of a model of diffusers or transformers."""
    try:
        values = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and ("_class_name" in values or "model_type" in values)
