"""The whole way of a video, from frames to enlarged frames, in bounded memory.

`stream` is the only implementation; `restore` feeds it a tensor and collects the blocks, so both give the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import memory, stages
from .devices import usable_device
from .errors import InputError, SettingsError
from .precision import automatic_dtype, warn_of_emulation
from .progress import Progress, SegmentProgress
from .sampling.loop import text_for
from .segment_run import SegmentRun, reads_semantics
from .settings import RestoreSettings, resolve_settings
from .streaming import FROM_START, Resume, fill, restored_blocks
from .video.resize import target_size

RESULT_VERSION = 2
"""Raise it with every change of the code that changes the bits of a result: unfinished work of another version starts
afresh, for no video shall be half of one and half of the other."""


class Restorer:
    """A denoiser, a temporal VAE and (optionally) a semantic encoder, ready to restore.

    device: where the networks compute; frames and results stay where the frames are. dtype: None leaves the networks
    as they are. defaults: a preset's own settings, used where a call leaves them open. place: False leaves moving and
    casting of the modules to their owner. prepare(name): called with "vae", "encoder" or "denoiser" before each is
    used, for an owner that loads networks only when needed. preview(latents, matrix): makes the pictures for progress,
    as `stages.preview`, which is the default. vae_device: where the VAE computes, if elsewhere than the rest.
    free_memory(device): bytes that computations can take there, by which the VAE's tiles are chosen. identity: which
    weights these are, for an owner that changes them for a while (patches); None looks at them when it is asked.
    `denoiser` may be None if every call sets steps to 0.
    """

    def __init__(
        self,
        denoiser: Any,
        vae: Any,
        encoder: Any = None,
        *,
        device: Any = "cpu",
        vae_device: Any = None,
        dtype: torch.dtype | None = None,
        defaults: dict[str, Any] | None = None,
        place: bool = True,
        prepare: Callable[[str], None] | None = None,
        preview: Callable[[Tensor, Tensor], Tensor] | None = None,
        free_memory: Callable[[torch.device], int] = memory.free_bytes,
        identity: str | None = None,
    ) -> None:
        _check_networks(denoiser, vae, encoder)
        self.device = torch.device(device)
        self.vae_device = torch.device(device if vae_device is None else vae_device)
        self.free_memory = free_memory
        self.denoiser, self.vae, self.encoder = denoiser, vae, encoder
        self.defaults = dict(defaults or {})
        self.prepare = prepare or (lambda name: None)
        self.preview = preview or stages.preview
        self.identity = identity
        if place:
            for module, where in ((denoiser, self.device), (vae, self.vae_device), (encoder, self.device)):
                _place(module, where, dtype)

    @classmethod
    def from_preset(cls, name: str = "nano", device: Any = None, dtype: torch.dtype | None = None) -> Restorer:
        """A preset by name or folder. device None: CUDA if there is one; dtype None: `precision.automatic_dtype`."""
        from .checkpoints import load_preset

        device = usable_device(device)
        dtype = dtype or automatic_dtype(device)
        warn_of_emulation(device, dtype)
        preset = load_preset(name, dtype=dtype, device=device)
        return cls(preset.denoiser, preset.vae, preset.encoder, device=device, dtype=dtype, defaults=preset.defaults)

    def settings(self, **chosen: Any) -> RestoreSettings:
        """The settings a call with these arguments would use (None = the preset's value, else the class default)."""
        settings = resolve_settings(chosen, self.defaults)
        if settings.steps and self.denoiser is None:
            raise SettingsError("steps must be 0 without a denoiser; load one to use diffusion")
        return settings

    def restore(
        self,
        frames: Tensor,
        *,
        scale: float | None = None,
        steps: int | None = None,
        seed: int | None = None,
        strength: float | None = None,
        sampler: str | None = None,
        length: int | None = None,
        overlap: int | None = None,
        cuts: str | Sequence[int] | None = None,
        fusion: float | None = None,
        colour: str | None = None,
        tile: int | None = None,
        tile_overlap: int | None = None,
        steady: int | None = None,
        steady_result: int | None = None,
        text: Tensor | None = None,
        progress: Progress | None = None,
        check_cancel: Callable[[], None] | None = None,
    ) -> Tensor:
        """Frames (N,H,W,3) or (N,H,W,4) in 0..1 -> (N, round(H*scale), round(W*scale), same C) fp32, on their device.

        Settings: see `RestoreSettings`; None takes the preset's value (scale 4, 50 steps and so on without a preset).
        A fourth channel (alpha) is enlarged by bicubic and kept. text: (1,n,ctx) embedding, None = empty prompt.
        progress(done 0..1, message, preview (h,w,3) or None); check_cancel() is called at least once per denoising
        step, per frame that is encoded or read and per segment that is decoded, and stops everything by raising.
        Errors: InputError for frames, SettingsError for settings, each in one sentence.
        """
        settings = self.settings(
            scale=scale, steps=steps, seed=seed, strength=strength, sampler=sampler, length=length, overlap=overlap,
            cuts=cuts, fusion=fusion, colour=colour, tile=tile, tile_overlap=tile_overlap, steady=steady,
            steady_result=steady_result,
        )  # fmt: skip
        stages.check_frames(frames, channels=(3, 4))
        count, height, width, channels = frames.shape
        size = target_size(height, width, settings.scale)
        result = torch.empty((count, *size, channels), dtype=torch.float32, device=frames.device)
        fill(result, self._blocks(frames, settings, count, text, progress, check_cancel))
        return result

    def stream(
        self,
        frames: Iterable[Tensor],
        *,
        num_frames: int | None = None,
        resume: Resume = FROM_START,
        on_carry: Callable[[Resume], None] | None = None,
        text: Tensor | None = None,
        progress: Progress | None = None,
        check_cancel: Callable[[], None] | None = None,
        **settings: Any,
    ) -> Iterator[Tensor]:
        """Like `restore`, over frames (H,W,3|4) that come one by one: yields finished blocks (k,sH,sW,C), k >= 1.

        Holds about two segments, whatever the length of the video. num_frames: total for progress, if known.
        resume: yields the frames from `resume.first_frame` on, with the same bits as if all had been restored; `frames`
        still begin at the video's first one, which the plan of the segments and the search for cuts need.
        on_carry: called with what a later call needs as `resume`, as `streaming.restored_blocks` says.
        The settings and the text are checked here and now, the frames as they come.
        """
        checked = self.settings(**settings)
        if not isinstance(frames, Iterable | Tensor):
            raise InputError(f"frames must be an iterable of tensors (H,W,3) or (H,W,4), got {type(frames).__name__}")
        return self._blocks(frames, checked, num_frames, text, progress, check_cancel, resume, on_carry)

    def fingerprint(self, *, text: Tensor | None = None, **chosen: Any) -> str:
        """What decides the bits of `stream` besides the frames: settings, text, the identity of the networks, the kind
        of device and the version of the code. Equal for equal networks, wherever their files lie.
        """
        networks = self.identity
        if networks is None:
            networks = " ".join(network_identity(network) for network in (self.denoiser, self.vae, self.encoder))
        digest = hashlib.sha256(repr((RESULT_VERSION, self.settings(**chosen), self.device.type, networks)).encode())
        if text is not None:
            digest.update(repr(text.float().flatten().tolist()).encode())
        return digest.hexdigest()

    def _blocks(
        self,
        frames: Iterable[Tensor],
        settings: RestoreSettings,
        total: int | None,
        text: Tensor | None,
        progress: Progress | None,
        check_cancel: Callable[[], None] | None,
        resume: Resume = FROM_START,
        on_carry: Callable[[Resume], None] | None = None,
    ) -> Iterator[Tensor]:
        if settings.steps:  # an error before the first frame is encoded
            if text is not None and not isinstance(text, Tensor):
                raise InputError(f"text must be an embedding, a tensor (1, tokens, width), got {type(text).__name__}")
            text_for(self.denoiser, text)
        bar = SegmentProgress(progress, total, settings.steps, reads_semantics(self, settings))
        bar.begin(resume.first_frame)
        run = SegmentRun(self, settings, bar, text, check_cancel)
        return run.reporting(bar.finishing(restored_blocks(frames, settings, run.compute, resume, on_carry)))


def network_identity(network: Any) -> str:
    """Which weights a network holds, and how it computes: sizes, number types and a sample of every weight, as a hash.

    Weights on the meta device count by their shape. "" for None and for what is no module.
    """
    if not isinstance(network, torch.nn.Module):
        return ""
    facts = (getattr(network, "dtype", None), getattr(network, "config", None))
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in network.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.device.type != "meta":
            digest.update(repr(value.flatten()[:16].float().tolist()).encode())
    return digest.hexdigest()


def _check_networks(denoiser: Any, vae: Any, encoder: Any) -> None:
    """`SettingsError` for what is no network of the kind it is given as, and for two that do not fit together."""
    given = {"denoiser": (denoiser, "encode_lr", "load_denoiser"), "vae": (vae, "decode", "load_temporal_vae"),
             "encoder": (encoder, "__call__", "load_semantic_encoder")}
    for name, (network, method, loader) in given.items():
        if not hasattr(network, method) and (network is not None or name == "vae"):
            raise SettingsError(f"{name} is a {type(network).__name__}; give what checkpoints.{loader} returns")
    makes, takes = (getattr(getattr(part, "config", None), "latent_channels", None) for part in (vae, denoiser))
    if makes is not None and takes is not None and makes != takes:
        raise SettingsError(f"the VAE makes latents of {makes} channels, the denoiser takes {takes}; give the VAE that "
                            "belongs to the denoiser")


def _place(module: Any, device: torch.device, dtype: torch.dtype | None) -> None:
    if module is None:
        return
    module.to(device=device, dtype=dtype)
    if dtype is not None:
        module.dtype = dtype  # the networks keep the type they compute in beside their weights
    module.eval()
    module.requires_grad_(False)
