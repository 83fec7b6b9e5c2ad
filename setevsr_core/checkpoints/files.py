"""Reading weight files without running what is in them: safetensors, torch zip files, diffusers folders.

Tensors stay memory-mapped views of the file wherever the format allows it, so opening a 6 GB file costs no memory
until a tensor is used.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

log = logging.getLogger(__name__)

Source = str | Path | Mapping[str, Any]

EXTENSIONS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
# Names under which training programs nest the weights, most specific first.
NESTED = ("state_dict", "model_state_dict", "params_ema", "params", "model")
# What wrappers add to the names: DataParallel and AveragedModel before them, torch.compile before those it wraps.
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
# One of the files that a large model is split into: name, place, number of files, ending.
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})((?:\.\w+)+)")
LISTED = 8  # names of a folder in a message
# First bytes of archives that people download weights in.
ARCHIVES = (b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")
WEIGHT_NAMES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
    "model.safetensors",
)


@dataclass(frozen=True)
class TensorFile:
    """Named tensors, the text metadata stored with them, and a name for messages."""

    tensors: dict[str, Tensor]
    name: str
    metadata: dict[str, str] = field(default_factory=dict)
    path: Path | None = None


def open_source(source: Source | TensorFile, component: tuple[str, ...] = ()) -> TensorFile:
    """Open a path, a folder or a state dict; of a model in several files (`...-00001-of-00002...`), any of them.

    `component` names the subfolders or native files that are tried inside a folder, e.g. ("unet", "denoiser").
    Raises `CheckpointError` naming the file, what is wrong with it and what to do.
    """
    if isinstance(source, TensorFile):
        return source
    if isinstance(source, Mapping):
        return TensorFile(plain_tensors(source, "the given state dict"), "the given state dict")
    try:
        path = Path(source).expanduser()
    except TypeError as error:
        raise CheckpointError(f"Weights cannot be read from a {type(source).__name__}; give the path of a file or "
                              "folder, or a state dict.") from error
    if os.path.isdir(path):  # Path.is_dir raises where a name is longer than the file system takes
        path = file_in_folder(path, component)
    parts = [read_file(part) for part in shards(path)]
    tensors = {key: value for part in parts for key, value in part.tensors.items()}
    return TensorFile(tensors, str(path), parts[0].metadata, path)


def shards(path: Path) -> list[Path]:
    """All files of the model that a file is a part of; a whole file is the only one."""
    found = SHARD.fullmatch(path.name)
    if found is None:
        return [path]
    name, _, count, ending = found.groups()
    return [path.with_name(f"{name}-{place:05d}-of-{count}{ending}") for place in range(1, int(count) + 1)]


def read_file(path: Path) -> TensorFile:
    """Read one weight file; what it is is told by its first bytes, not by its name."""
    try:
        with open(path, "rb") as stream:
            head, rest = stream.read(64), stream.read(448)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: no file can have that name
        raise CheckpointError(missing_message(path)) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    name = str(path)
    if not head:
        raise CheckpointError(f"{name} is empty (0 bytes); download or copy it again.")
    # First, because a safetensors file starts with the length of its JSON header, which may spell any other signature.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return safetensors_file(path)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{name} is a git-lfs pointer, not the weights; run 'git lfs pull' or download the file.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise CheckpointError(f"{name} is a web page, not weights; the download link led to a page: download it again.")
    if head.startswith(b"GGUF"):
        raise CheckpointError(f"{name} is a GGUF file, which is not supported; use a .safetensors or .ckpt file.")
    if head.startswith((b"PK", b"\x80")):
        return TensorFile(plain_tensors(read_pickle(path), name), name, path=path)
    if head.startswith(ARCHIVES) or rest[193:198] == b"ustar":  # a tar file says so at byte 257
        raise CheckpointError(f"{name} is a packed archive, not the weights; unpack it and use the weight file in it.")
    if not any(head + rest):
        raise CheckpointError(f"{name} begins with zeros alone; its download was not finished: download it again.")
    is_text = all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    if path.suffix == ".safetensors" and not is_text:
        return safetensors_file(path)
    if is_text and path.suffix in (".json", ".yaml"):
        raise CheckpointError(f"{name} is a settings file, not the weights; pick the weight file beside it.")
    kind = " but text, perhaps what a server answered instead of the file" if is_text else ""
    raise CheckpointError(
        f"{name} is neither a safetensors file nor a torch file{kind} (it starts with {head[:32]!r}); "
        f"expected one of {', '.join(EXTENSIONS)}."
    )


def safetensors_file(path: Path) -> TensorFile:
    tensors, metadata = read_safetensors(path)
    return TensorFile(plain_tensors(tensors, str(path)), str(path), metadata, path)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Memory-mapped tensors and metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            metadata = dict(handle.metadata() or {})
            return {key: handle.get_tensor(key) for key in handle.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}); it was probably cut off: download or copy it again."
        ) from error


def read_pickle(path: Path) -> Mapping[str, Any]:
    """Read a .ckpt/.pt/.pth file with torch's weights-only reader: tensors and plain containers, no code.

    Lightning files carry a few harmless records besides the weights; those are read as empty stand-ins.
    """
    if torch.__version__ < "2.6":  # CVE-2025-32434; compared as versions, not as text
        raise CheckpointError(
            f"{path} was refused: PyTorch before 2.6 (here {torch.__version__}) can be made to run code by such a "
            "file, even when asked for weights only; update PyTorch, or get the weights as .safetensors."
        )
    try:
        with harmless_records():
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):  # files older than torch 1.6 are no zip files and cannot be mapped
                    raise
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(refusal(path, str(error))) from error
    except Exception as error:  # what the reader raises for a damaged pickle depends on the byte it stumbles over
        refuse_other_zip(path)
        raise CheckpointError(
            f"{path} is not a complete torch file ({first_line(error)}); it was probably cut off: "
            "download or copy it again."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named weights; expected a state dict.")
    return content


def refuse_other_zip(path: Path) -> None:
    """`CheckpointError` for a complete zip file that torch.save did not write: an archive, or TorchScript."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path} is a zip archive, not the weights, with {', '.join(names[:3]) or 'nothing'}; "
                              "unpack it and use the weight file in it.")
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript program, not weights alone; get the weights as .safetensors.")


def refusal(path: Path, reason: str) -> str:
    """Why a pickle was not opened, naming what it asked for."""
    wanted = re.search(r"GLOBAL ([\w.]+)", reason) or re.search(r"(?:class|function|global) ([\w.]+\.[\w.]+)", reason)
    if wanted is None:
        cause = first_line(reason.rpartition("WeightsUnpickler error:")[2])
        return (
            f"{path} was refused: it is no torch weight file but some other Python pickle ({cause}), and opening it "
            "could execute code from the file; get the weights as .safetensors."
        )
    return (
        f"{path} was refused: besides tensors it asks to run '{wanted[1]}', and opening it would execute code from "
        "the file; get the weights as .safetensors, or save the bare state dict from the program that made it."
    )


def first_line(error: object) -> str:
    """The first line of a message, at most 160 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


class _Record:
    """Stand-in for a Lightning record that carries no weights; keeps nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


@contextmanager
def harmless_records() -> Iterator[None]:
    """Let the weights-only reader pass over the records of PyTorch Lightning and NumPy numbers.

    SD 2.1 and other Lightning files name a ModelCheckpoint callback and NumPy scalars (best score); the callback is
    read as an empty stand-in, so nothing of Lightning is imported or run.
    """
    allowed: list[Any] = [
        (_Record, f"{package}.callbacks.model_checkpoint.ModelCheckpoint")
        for package in ("pytorch_lightning", "lightning.pytorch")
    ]
    allowed += numpy_numbers()
    with torch.serialization.safe_globals(allowed):
        yield


def numpy_numbers() -> list[Any]:
    """What a pickled NumPy scalar needs; all of it only builds numbers."""
    import _codecs

    import numpy

    core: Any = getattr(numpy, "_core", None) or getattr(numpy, "core")  # noqa: B009 - its name changed in NumPy 2
    scalar = core.multiarray.scalar
    kinds = {type(numpy.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")}
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        numpy.dtype,
        *kinds,
        _codecs.encode,
    ]


def plain_tensors(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The tensors of a possibly nested state dict, without the prefixes of training wrappers.

    Entries that are no tensors (step counters, hyper-parameters, optimiser states) are dropped.
    """
    tensors = nested_tensors(content)
    if not tensors:
        several = [str(key) for key, value in content.items() if isinstance(value, Mapping) and nested_tensors(value)]
        what = "is the state of an optimizer" if "param_groups" in content else (
            f"holds several groups of tensors ({', '.join(several[:3])})" if several else "holds no named tensors")
        raise CheckpointError(f"{name} {what}; expected a state dict of weights.")
    return {WRAPPERS.sub("", key): value for key, value in tensors.items()}


def nested_tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under a name in `NESTED`, else those of `content` itself, else those of its only entry with any."""
    inner = {key: nested_tensors(value) for key, value in content.items() if isinstance(value, Mapping)}
    for key in NESTED:
        if inner.get(key):
            return inner[key]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    filled = [found for found in inner.values() if found]
    return filled[0] if not tensors and len(filled) == 1 else tensors


def file_in_folder(folder: Path, component: tuple[str, ...]) -> Path:
    """The weight file of one component inside a folder (diffusers model folder, its subfolder, or a preset)."""
    places = [folder / part for part in component] + [folder]
    for place in places:
        for name in map(Path, WEIGHT_NAMES):
            for found in (place / name, *sorted(place.glob(f"{name.stem}-00001-of-*{name.suffix}"))):
                if found.is_file():
                    return found
    for part in component:
        if (folder / f"{part}.safetensors").is_file():
            return folder / f"{part}.safetensors"
    tried = "".join(f"{part}/, " for part in component)
    raise CheckpointError(
        f"The folder {folder} holds no {WEIGHT_NAMES[0]}{f' (looked in {tried}the folder itself)' if tried else ''}"
        f"; it has: {listing(folder)}. Pick the weight file itself, or a complete diffusers folder."
    )


def missing_message(path: Path) -> str:
    """What to say when a file does not exist: the folder it belongs to and what is there instead."""
    if os.path.islink(path):
        return f"{path} is a link to {os.readlink(path)}, which does not exist: put the file there or link to another."
    folder = path.parent if str(path.parent) else Path(".")
    if not folder.is_dir():
        return f"There is no file {path}: the folder {folder.absolute()} does not exist; create it and put it there."
    return (f"There is no file named {path.name} in the folder {folder.absolute()}, which has: {listing(folder)}. "
            "Put it there.")


def listing(folder: Path) -> str:
    """The first few names in a folder, as one phrase."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) + more) or "nothing"


def folder_setting(path: Path, relative: str, key: str) -> Any:
    """One value of a JSON file near a weight file (diffusers folders), None when there is none."""
    for base in (path.parent, path.parent.parent):
        try:
            return json.loads((base / relative).read_text("utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            continue
    return None
