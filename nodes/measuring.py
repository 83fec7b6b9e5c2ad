"""Nodes for judging: figures of a result, and lines of pixels over time."""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..setevsr_core.evaluation.names import FIGURES
from . import checks, compat, folders, widgets

USUAL = "psnr, psnr_y, ssim, ssim_y, lpips, tlpips, warping, niqe, sharpness"
"""What is measured unless asked for otherwise; the other figures take longer, or need packages of their own."""


class Measure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRMeasure",
            display_name="Measure (SeTe-VSR)",
            category=widgets.TOOLS,
            description="Figures of a result: PSNR, SSIM, LPIPS and tLPIPS against the original, warping error, NIQE "
            "and sharpness; on request DISTS, VMAF, BRISQUE, MUSIQ, CLIP-IQA and DOVER. Some need a package, or a "
            "file in models/setevsr (see the help page).",
            search_aliases=["psnr", "ssim", "lpips", "niqe", "vmaf", "brisque", "quality", "metric", "evaluate"],
            is_output_node=True,
            inputs=[
                io.Image.Input("result", tooltip="What is to be judged."),
                io.Image.Input(
                    "truth", optional=True,
                    tooltip="The original at the same size, with the same frames. Without it only the figures that "
                    "need no original are measured.",
                ),
                compat.widget(
                    io.String, "figures", default=USUAL, advanced=True,
                    tooltip=f"Which figures, separated by commas: {', '.join(FIGURES)}. Fewer take less time: PSNR is "
                    "the fastest, NIQE and LPIPS take about a second per megapixel and frame on a CPU. What cannot be "
                    "measured here says why.",
                ),
            ],
            outputs=[
                io.String.Output("text", tooltip="All figures as a table in Markdown."),
                io.Float.Output("psnr", tooltip="dB, higher is better; not a number (NaN) where not measured."),
                io.Float.Output("ssim", tooltip="Of the luma, 0 to 1, higher is better; NaN where not measured."),
                io.Float.Output("lpips", tooltip="Perceptual distance, lower is better; NaN where not measured."),
                io.Float.Output(
                    "warping_error",
                    tooltip="Change along the motion in 8-bit levels, lower is steadier; NaN where not measured.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> int:
        return folders.newest(folders.own_folders())

    @classmethod
    def execute(
        cls, result: torch.Tensor, truth: torch.Tensor | None = None, figures: str = USUAL
    ) -> io.NodeOutput:
        from ..setevsr_core.errors import SettingsError
        from ..setevsr_core.evaluation.measures import Equipment, Instruments

        checks.require_frames(result, "result")
        names = list(dict.fromkeys(name.strip().lower() for name in figures.split(",") if name.strip()))
        unknown = [name for name in names if name not in FIGURES]
        if unknown or not names:
            raise SettingsError(f"figures: {unknown[0] if unknown else 'nothing'!r} is none of {', '.join(FIGURES)}.")
        result = result[..., :3].float().cpu()
        if truth is not None:
            checks.require_frames(truth, "truth")
            truth = truth[..., :3].float().cpu()
        note = _shift_note(result, truth)
        place = f"the folder '{folders.own_folder()}'"
        instruments = Instruments.build(names, Equipment(folders.own_folders(), place=place))
        values = _measure(instruments, result, truth)
        text = _table(values, instruments.missing, note)
        numbers = [values.get(name, math.nan) for name in ("psnr", "ssim_y", "lpips", "warping")]
        return io.NodeOutput(text, *numbers, ui=ui.PreviewText(text))


def _shift_note(result: torch.Tensor, truth: torch.Tensor | None) -> str:
    """Raises InputError for clips that cannot be compared; a sentence where they are shifted against each other."""
    from ..setevsr_core.errors import InputError
    from ..setevsr_core.evaluation.alignment import CONFIDENCE, MAX_SHIFT, estimate_shift

    if truth is None:
        return "No original was given: only figures that need none."
    if result.shape != truth.shape:
        raise InputError(
            f"'result' is {len(result)} frames of {result.shape[2]}x{result.shape[1]}, 'truth' {len(truth)} of "
            f"{truth.shape[2]}x{truth.shape[1]}; figures need the same frames at the same size."
        )
    shift = estimate_shift(result, truth)
    if shift.distance - CONFIDENCE * shift.error <= MAX_SHIFT:
        return ""
    return (f"The result is shifted by {shift.x:+.2f} px to the right and {shift.y:+.2f} px down against the original: "
            "these figures say little, align them first.")


def _measure(instruments: Any, result: torch.Tensor, truth: torch.Tensor | None) -> dict[str, float]:
    """Frame by frame, so that Cancel is heard: most figures are means over frames or over pairs of neighbours."""
    from ..setevsr_core.evaluation.measures import MEASURES
    from .progress import NodeProgress

    names = instruments.expected(truth is not None, False, len(result))
    whole = [name for name in names if MEASURES[name].whole]
    moving = [name for name in names if MEASURES[name].temporal]
    still = [name for name in names if name not in (*whole, *moving)]
    reference = result if truth is None else truth
    sums: dict[str, list[float | None]] = {name: [] for name in names}
    progress = NodeProgress()
    for i in range(len(result)):
        parts = [(still, slice(i, i + 1))] + ([(moving, slice(i, i + 2))] if i + 1 < len(result) else [])
        for wanted, part in parts:
            for name, value in instruments.measure(wanted, result[part], reference[part]).items():
                sums[name].append(value)
        progress.count(i + 1, len(result))
    means = {name: _mean(values) for name, values in sums.items()} | instruments.measure(whole, result, reference)
    return {name: value for name, value in means.items() if value is not None}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _table(values: dict[str, float], missing: dict[str, str], note: str) -> str:
    from ..setevsr_core.evaluation.measures import MEASURES
    from ..setevsr_core.evaluation.tables import number, title

    lines = [note, ""] if note else []
    lines += ["| figure | value |", "|---|---|"]
    lines += [f"| {title(name)} | {number(value, name)} |" for name, value in values.items()]
    lines += [f"| {MEASURES[name].title} | not measured: {reason} |" for name, reason in missing.items()]
    return "\n".join(lines)


class TemporalProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return compat.schema(
            node_id="SeTeVSRTemporalProfile",
            display_name="Temporal Profile (SeTe-VSR)",
            category=widgets.TOOLS,
            description="One line of pixels over all frames, for one to four videos under one another. Steady motion "
            "gives clean slanted lines, flicker gives ragged ones.",
            search_aliases=["flicker", "temporal consistency", "slice", "profile"],
            inputs=[
                io.Image.Input("first", tooltip="Usually the input, enlarged; at least two frames."),
                io.Image.Input("second", optional=True, tooltip="A result: as many frames of the same size."),
                io.Image.Input("third", optional=True, tooltip="Another result."),
                io.Image.Input("fourth", optional=True, tooltip="Usually the original."),
                compat.widget(
                    io.String, "labels", default="input, restored",
                    tooltip="One label per video, separated by commas; missing ones are numbered.",
                ),
                compat.widget(
                    io.Combo, "direction", options=["row", "column"], default="row",
                    tooltip="row: a horizontal line, time runs down; shows sideways motion. column: a vertical line, "
                    "time runs to the right; shows motion up and down.",
                ),
                compat.widget(
                    io.Float, "position", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="Place of the line, from the upper or left edge (0) to the lower or right edge (1).",
                ),
                compat.widget(
                    io.Int, "thickness", default=0, min=0, max=64,
                    tooltip="Pixels that a frame takes along the time axis; 0 chooses it so that the picture is well "
                    "proportioned.",
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The profiles with their labels, one picture.")],
        )

    @classmethod
    def execute(
        cls,
        first: torch.Tensor,
        labels: str = "",
        direction: str = "row",
        position: float = 0.5,
        thickness: int = 0,
        second: torch.Tensor | None = None,
        third: torch.Tensor | None = None,
        fourth: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        from ..setevsr_core.errors import InputError
        from ..setevsr_core.evaluation.pictures import profile, temporal_profile

        named = {"first": first, "second": second, "third": third, "fourth": fourth}
        batches = {name: batch for name, batch in named.items() if batch is not None}
        for name, batch in batches.items():
            checks.require_frames(batch, name)
            if len(batch) < 2:
                raise InputError(f"'{name}' is a single picture; a temporal profile needs two frames or more.")
        written = [label.strip() for label in labels.split(",") if label.strip()]
        texts = [f"{i + 1}. {written[i]}" if written[:i].count(written[i]) else written[i]
                 for i in range(min(len(written), len(batches)))]
        texts += [f"{i + 1}" for i in range(len(texts), len(batches))]
        lines = {text: profile(batch, direction, position) for text, batch in zip(texts, batches.values(), strict=True)}
        image = temporal_profile(lines, direction, thickness)[None]
        return io.NodeOutput(image.to(**compat.intermediate_options()))


NODES = [Measure, TemporalProfile]
