"""``python -m tools.thumbnails``: the templates' pictures, taken in the real page.

Writes workflows/<name>.jpg (what the template browser shows) and docs/images/quickstart.jpg (the graph in the README).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from . import browser
from .comfyui import PACK_NAME, REPOSITORY, ComfyUIServer

if TYPE_CHECKING:
    from PIL import Image

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
CANVAS = (64, 90, 1600, 1000)  # the graph without the page's bars: left, top, right, bottom
THUMBNAIL = (800, 455)


def main() -> None:
    from PIL import Image

    with ComfyUIServer() as server, browser.comfyui_page(server.url) as page:
        for workflow in WORKFLOWS:
            browser.load_template(page, PACK_NAME, workflow.stem)
            browser.fit_view(page)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop(CANVAS)
            save(picture.resize(THUMBNAIL, Image.Resampling.LANCZOS), workflow.with_suffix(".jpg"))
            if workflow.stem == "quickstart":
                save(picture, REPOSITORY / "docs" / "images" / "quickstart.jpg")


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=88)


if __name__ == "__main__":
    main()
