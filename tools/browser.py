"""The ComfyUI page in a headless Chromium: load a template as a person does, run it, take a picture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .client import Client

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1600, "height": 1000}
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # no tour, so that the page always starts in the same state
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0,  # text on nodes at any zoom
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
TIMEOUT_MS = 60_000


def chromium() -> str | None:
    """Path of an installed Chromium or Chrome (``CHROMIUM`` names another one), or None."""
    named = os.environ.get("CHROMIUM")
    names = ("chromium", "chromium-browser", "google-chrome")
    return named or next((found for found in map(shutil.which, names) if found), None)


@contextmanager
def comfyui_page(url: str) -> Iterator[Any]:
    """A Playwright page that shows the ComfyUI at ``url``; the page reaches no other host."""
    from playwright.sync_api import Route, sync_playwright

    def only_local(route: Route) -> None:
        local = route.request.url.startswith((url, "data:", "blob:"))
        route.continue_() if local else route.abort()

    Client(url).post("/api/settings", SETTINGS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            page = browser.new_page(viewport=SIZE)  # pyright: ignore[reportArgumentType]
            page.set_default_timeout(TIMEOUT_MS)
            page.route("**/*", only_local)
            page.goto(url)
            page.wait_for_function("window.app?.extensionManager && window.app.canvas && window.app.graph")
            page.get_by_test_id("queue-button").wait_for()
            yield page
        finally:
            browser.close()


def load_template(page: Any, pack: str, name: str) -> None:
    """Open the template browser, choose the pack's section and load one of its workflows."""
    page.evaluate("() => window.app.graph.clear()")
    page.get_by_text("Templates", exact=True).first.click()
    page.get_by_text(pack, exact=True).first.click()
    page.get_by_test_id(f"template-workflow-{name}").click()
    page.get_by_test_id("template-workflows-content").wait_for(state="hidden")
    page.wait_for_function("() => window.app.graph.nodes.length > 0")


def node_types(page: Any) -> list[str]:
    """The types of all nodes on the canvas."""
    return page.evaluate("() => window.app.graph.nodes.map(node => node.type)")


def unknown_nodes(page: Any) -> list[str]:
    """Types on the canvas that the page has no definition of (it draws them red)."""
    script = "() => window.app.graph.nodes.map(n => n.type).filter(t => !(t in LiteGraph.registered_node_types))"
    return page.evaluate(script)


def api_graph(page: Any) -> dict[str, Any]:
    """What the page would queue for the graph on the canvas, in API format."""
    return page.evaluate("async () => (await window.app.graphToPrompt()).output")


def set_widget(page: Any, node_type: str, widget: str, value: Any) -> None:
    """Set a widget of every node of one type.

    Raises:
        KeyError: there is no such node or widget on the canvas.
    """
    script = """([type, name, value]) => window.app.graph.nodes.filter(n => n.type === type)
        .flatMap(n => n.widgets).filter(w => w.name === name).map(w => { w.value = value; }).length"""
    if not page.evaluate(script, [node_type, widget, value]):
        raise KeyError(f"no widget {widget} on a node {node_type}")


def fit_view(page: Any) -> None:
    """Zoom so that the whole graph is in sight."""
    page.keyboard.press(".")
    page.wait_for_timeout(1000)


def run(page: Any, timeout_s: float = 300.0) -> str:
    """Press Run and wait for the end -> "execution_success", "execution_error" or "execution_interrupted"."""
    page.evaluate(
        """() => { window.__end = null; for (const kind of ['success', 'error', 'interrupted'])
            window.app.api.addEventListener('execution_' + kind, () => { window.__end = 'execution_' + kind; }); }"""
    )
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("() => window.__end !== null", timeout=1000 * timeout_s)
    return page.evaluate("() => window.__end")


def screenshot(page: Any, path: Path) -> None:
    """Save what the page shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(path))
