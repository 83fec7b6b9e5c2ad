"""Putting named tensors into a network: checked by name and shape first, then assigned without a second copy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..devices import usable_device
from ..errors import CheckpointError, SettingsError

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)
Shapes = Mapping[str, tuple[int, ...]]

# Ends of the names under which quantised files keep what their weights must be multiplied by.
SCALES = (".scale_weight", ".weight_scale")
SAMPLE = 256  # values of a tensor that are looked at


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {key: tuple(value.shape) for key, value in tensors.items()}


def side(shapes: Shapes, key: str, axis: int) -> int:
    """One side of a tensor. KeyError and IndexError name the tensor: it is missing, or has too few dimensions."""
    if axis >= len(shapes[key]):
        raise IndexError(f"{key} is {list(shapes[key])}")
    return shapes[key][axis]


@contextmanager
def reading_sizes(name: str, kind: str) -> Iterator[None]:
    """`CheckpointError` that names the file and the tensor, where no sizes can be read off the shapes."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(
            f"{name} looks like {kind} but lacks {error}; it is incomplete: download it again."
        ) from error
    except (IndexError, ValueError) as error:
        raise CheckpointError(f"{name} looks like {kind}, but {error}; it is damaged or of another kind.") from error


@contextmanager
def buildable_sizes(name: str) -> Iterator[None]:
    """`CheckpointError` that names the file, where a network of the sizes it asks for cannot be constructed."""
    try:
        yield
    except (TypeError, ValueError, LookupError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(
            f"{name} asks for sizes from which no network can be built ({reason}); it is damaged or of another kind."
        ) from error


def no_name(_: str) -> bool:
    """A rule for tensor names that holds for none."""
    return False


def build(make: Callable[..., Module], tensors: Mapping[str, Tensor], *, name: str, dtype: torch.dtype | None,
          device: Any, ops: Any = nn, fresh: Callable[[str], bool] = no_name,
          spare: Callable[[str], bool] = no_name) -> Module:
    """Build a network and give it its weights.

    make: called as make(ops=, dtype=, device=). name: of the file, for messages. dtype None: as stored, but float32 on
    the CPU. fresh: which missing tensors may be initialised anew (modules added for training). spare: which tensors of
    the file may be left out (modules taken away). Any other missing or left over tensor of the network's parts and any
    wrong shape is a `CheckpointError`: it is another network. What lies beside those parts is logged and left out.
    """
    # Checked against plain torch layers: a host's layers may have no weights before they are loaded.
    with buildable_sizes(name):
        expected = shapes_of(make(ops=nn, dtype=torch.float32, device="meta").state_dict())
    new = check(expected, tensors, name, fresh, spare)
    device = weights_device(device)
    dtype = chosen_dtype(dtype, tensors.values(), device)
    network = make(ops=ops, dtype=dtype, device="meta")
    # One tensor at a time: what is converted or moved is copied once, what is not stays a view of the file.
    weights = {key: tensors[key].to(device=device, dtype=dtype) for key in expected if key in tensors}
    refuse_damaged(weights, name)
    network.load_state_dict(weights, strict=False, assign=True)
    if new:
        initialise_missing(network, device)
    return network.eval()


def check(expected: Shapes, tensors: Mapping[str, Tensor], name: str, fresh: Callable[[str], bool] = no_name,
          spare: Callable[[str], bool] = no_name) -> list[str]:
    """Compare names and shapes as `build` says; return the missing names that may be initialised anew."""
    quantised = [key for key, value in tensors.items()
                 if key.endswith(SCALES) or (key in expected and not value.is_floating_point())]
    if quantised:
        raise CheckpointError(
            f"{name} holds quantised weights, which are not supported: {some(quantised)}; use the file in fp32, fp16, "
            "bf16 or fp8 without scales."
        )
    missing = [key for key in expected if key not in tensors]
    lacking = [key for key in missing if not fresh(key)]
    if lacking:
        raise CheckpointError(
            f"{name} is incomplete: {len(lacking)} of {len(expected)} tensors are missing, such as {some(lacking)}; "
            "download it again, or convert it again from the complete model."
        )
    for key, shape in expected.items():
        if key in tensors and tuple(tensors[key].shape) != shape:
            raise CheckpointError(
                f"{name}: the tensor {key} is {list(tensors[key].shape)}, but the rest of the file asks for "
                f"{list(shape)}; it belongs to another kind or size of network."
            )
    parts = {key.partition(".")[0] for key in expected}
    extra = [key for key in tensors if key not in expected]
    foreign = [key for key in extra if key.partition(".")[0] in parts and not spare(key)]
    if foreign:
        raise CheckpointError(
            f"{name}: {len(foreign)} of {len(tensors)} tensors have no place in this network, such as {some(foreign)}; "
            "it belongs to another kind of network, made from this one: use the original."
        )
    if extra:
        log.warning("%s: %d tensors have no place in this network and are left out, such as %s", name, len(extra),
                    some(extra))
    return missing


def some(names: Collection[str], limit: int = 3) -> str:
    """A few of many names."""
    return ", ".join(sorted(names)[:limit])


def refuse_damaged(weights: Mapping[str, Tensor], name: str) -> None:
    """`CheckpointError` if a weight is no number, by the first values of every tensor: more of a mapped file is not
    read before it is needed, and training that diverged spares no tensor.
    """
    sums = {key: value.flatten()[:SAMPLE].sum(dtype=torch.float32) for key, value in weights.items()
            if not value.is_meta}
    if sums and not torch.isfinite(torch.stack(list(sums.values()))).all():
        bad = [key for key, total in sums.items() if not total.isfinite()]
        raise CheckpointError(
            f"{name} is damaged: {len(bad)} tensors hold NaN or infinite values, such as {some(bad)}; download it "
            "again, or load it in bfloat16 or float32 if float16 was asked for."
        )


def weights_device(device: Any) -> torch.device:
    """Where weights are to lie: a device that computes here, or `meta`, which keeps their shapes alone.

    Errors: SettingsError for any other.
    """
    return torch.device("meta") if str(device) == "meta" else usable_device(device)


def chosen_dtype(dtype: Any, tensors: Collection[Tensor], device: Any) -> torch.dtype:
    """dtype; for None the type most weights are stored in, but float32 on the CPU, which computes slowly or not at all
    in half types. `SettingsError` for what is no floating-point type.
    """
    if dtype is not None:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise SettingsError(f"dtype is {dtype!r}; give a floating-point type such as torch.float16, or None")
        return dtype
    if torch.device(device).type == "cpu":
        return torch.float32
    stored = main_dtype(tensors)
    return stored if stored.itemsize >= 2 else torch.bfloat16


def main_dtype(tensors: Collection[Tensor]) -> torch.dtype:
    """The type most weights are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda kind: sizes[kind], default=torch.float32)


@torch.no_grad()
def initialise_missing(network: nn.Module, device: Any) -> None:
    """Give every layer that got no weights torch's usual initialisation; raw parameters become zero.

    Output layers of SeTe-VSR's modules become zero where the module is wholly new, so that the network computes what
    it did before the module was added.
    """
    from ..networks.initialise import zero_new_modules

    added = [module for module in network.modules() if has_parameters(module) and is_unset(module)]
    for module in network.modules():
        own = list(module.parameters(recurse=False)) + list(module.buffers(recurse=False))
        if not any(value.is_meta for value in own):
            continue
        module.to_empty(device=device, recurse=False)
        reset = getattr(module, "reset_parameters", None)
        for value in module.parameters(recurse=False):
            value.zero_()
        if callable(reset):
            reset()
    for module in added:
        zero_new_modules(module)


def has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def is_unset(module: nn.Module) -> bool:
    """Whether no parameter of the module has a value yet."""
    return all(value.is_meta for value in module.parameters())
