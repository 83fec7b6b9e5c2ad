"""``make demo``: a bad clip becomes a better one inside a real ComfyUI; everything lands under demo/."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import figures, pictures
from .client import Client, Run
from .clips import Clip, read_clip, write_clip
from .comfyui import REPOSITORY, ComfyUINotFound, ComfyUIServer, ServerFailed

ASSETS = REPOSITORY / "assets"
INPUT, REFERENCE = ASSETS / "city_lq.mp4", ASSETS / "city_reference.mp4"
WORKFLOW = REPOSITORY / "workflows" / "quickstart.json"
VIDEO_ENDINGS = (".mp4", ".mkv", ".webm")


class DemoFailed(RuntimeError):
    """The demo cannot go on; the message says why."""


def progress_printer() -> Callable[[str, dict[str, Any]], None]:
    """An event handler that prints every tenth of every node's progress."""
    seen: set[tuple[str, int]] = set()

    def on_event(kind: str, data: dict[str, Any]) -> None:
        if kind != "progress" or not data.get("max"):
            return
        tenth = int(10 * data["value"] / data["max"])
        if (data["node"], tenth) not in seen:
            seen.add((data["node"], tenth))
            print(f"  node {data['node']}: {10 * tenth} %", flush=True)

    return on_event


def restore_in_comfyui(folder: Path) -> tuple[Path, float]:
    """Run the bundled workflow on the bundled clip in a real ComfyUI -> (result video under ``folder``, seconds)."""
    print("Starting ComfyUI ...", flush=True)
    with ComfyUIServer(device="auto") as server:
        shutil.copy(INPUT, server.input_folder)
        client = Client(server.url)
        prompt = client.to_prompt(WORKFLOW)
        print(f"ComfyUI runs at {server.url}; running workflows/{WORKFLOW.name} ...", flush=True)
        started = time.monotonic()
        run = client.run(prompt, progress_printer(), timeout_s=1200)
        seconds = time.monotonic() - started
        shutil.copy(server.log_file, folder / "comfyui.log")
        return save_video(client, run, folder), seconds


def save_video(client: Client, run: Run, folder: Path) -> Path:
    """Fetch the video a run saved."""
    if run.status != "success":
        raise DemoFailed(f"The workflow ended with {run.status}: {run.error.strip()} (see demo/comfyui.log)")
    for file in run.files():
        if file["filename"].endswith(VIDEO_ENDINGS) and file["type"] == "output":
            path = (folder / "result").with_suffix(Path(file["filename"]).suffix)
            path.write_bytes(client.view(file))
            return path
    raise DemoFailed(f"The workflow saved no video: {run.outputs}")


def compare(folder: Path, source: Clip, result: Clip, reference: Clip) -> None:
    """Write side_by_side.png (one frame, whole and enlarged) and side_by_side.mp4."""
    size = (reference.frames.shape[1], reference.frames.shape[2])
    columns = {
        "input, enlarged by bicubic": pictures.resized(source.frames, size),
        "SeTe-VSR nano": result.frames,
        "original": reference.frames,
    }
    middle = len(reference.frames) // 2
    whole = pictures.row([pictures.labelled(frames[middle], text) for text, frames in columns.items()])
    crops = pictures.row([pictures.enlarged_crop(frames[middle], 0.45, 0.02) for frames in columns.values()])
    save_picture(folder / "side_by_side.png", pictures.column([whole, crops]))
    rows = [
        pictures.row([pictures.labelled(frames[i], text) for text, frames in columns.items()])
        for i in range(len(reference.frames))
    ]
    write_clip(folder / "side_by_side.mp4", np.stack(rows), reference.rate, crf=18)


def save_picture(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path)


def measure(source: Clip, result: Clip, reference: Clip, seconds: float) -> dict[str, Any]:
    """Figures of the bicubic enlargement and of the result against the original."""
    size = (reference.frames.shape[1], reference.frames.shape[2])
    lpips, reason = figures.lpips_metric()
    table: dict[str, Any] = {"seconds": seconds, "seconds_per_frame": seconds / len(result.frames)}
    if lpips is None:
        table["lpips_not_measured"] = reason
    table["bicubic"] = figures.measure(pictures.resized(source.frames, size), reference.frames, lpips)
    table["result"] = figures.measure(result.frames, reference.frames, lpips)
    table["original"] = figures.measure(reference.frames, None)
    return table


def print_table(table: dict[str, Any]) -> None:
    names = {"psnr_db": "PSNR in dB (more is closer)", "ssim": "SSIM (more is closer)"}
    names |= {"lpips": "LPIPS (less is closer)", "sharpness": "sharpness (mean step between pixels)"}
    print(f"\n{'':38}{'bicubic':>10}{'SeTe-VSR':>10}{'original':>10}")
    for key, label in names.items():
        values = [table[clip].get(key) for clip in ("bicubic", "result", "original")]
        if any(value is not None for value in values):
            print(f"{label:38}" + "".join(f"{'' if v is None else format(v, '.3f'):>10}" for v in values))
    if "lpips_not_measured" in table:
        print(f"LPIPS: not measured ({table['lpips_not_measured']})")
    print(f"{table['seconds']:.1f} s in ComfyUI, {table['seconds_per_frame']:.2f} s a frame")


def run_demo(folder: Path) -> None:
    """The whole demo; results in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    source, reference = read_clip(INPUT), read_clip(REFERENCE)
    path, seconds = restore_in_comfyui(folder)
    result = read_clip(path)
    if result.frames.shape != reference.frames.shape:
        raise DemoFailed(f"The result is {result.frames.shape}, expected {reference.frames.shape}.")
    shutil.copy(INPUT, folder / "input.mp4")
    compare(folder, source, result, reference)
    table = measure(source, result, reference, seconds)
    (folder / "figures.json").write_text(json.dumps(table, indent=2) + "\n")
    print_table(table)
    print(f"\nResult: {path}\nSide by side: {folder / 'side_by_side.png'}, {folder / 'side_by_side.mp4'}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Restore the bundled clip inside a real ComfyUI.")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "demo", help="folder for the results")
    arguments = parser.parse_args()
    try:
        run_demo(arguments.output)
    except (DemoFailed, ComfyUINotFound, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
