"""The ComfyUI page in a real browser: every bundled workflow loads from the template browser, one runs to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import browser
from tools.client import Client
from tools.comfyui import PACK_NAME, ComfyUIServer

from .conftest import LOW_QUALITY, REFERENCE, Material
from .graphs import NAMES, NODES, WORKFLOWS

pytestmark = [pytest.mark.comfy, pytest.mark.browser]

CONNECT_OWN_VIDEOS = """(files) => {
    const graph = window.app.graph;
    for (const sample of graph.nodes.filter(node => node.type === "SeTeVSRSampleVideo")) {
        const own = LiteGraph.createNode("LoadVideo");
        own.pos = [...sample.pos];
        graph.add(own);
        const version = sample.widgets.find(widget => widget.name === "version").value;
        own.widgets.find(widget => widget.name === "file").value = files[version];
        for (const id of [...sample.outputs[0].links]) {
            const link = graph.links.get(id);
            own.connect(0, graph.getNodeById(link.target_id), link.target_slot);
        }
        graph.remove(sample);
    }
}"""
"""Replaces every sample-video node on the canvas by Load Video, as the quickstart's note tells a person to."""


@pytest.fixture(scope="module")
def page(server: ComfyUIServer, material: Material) -> Iterator[Any]:
    """One page for all tests of this file."""
    pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if browser.chromium() is None:
        pytest.skip("no Chromium found: install it (Debian: apt install chromium) or set CHROMIUM to its path")
    with browser.comfyui_page(server.url) as opened:
        yield opened


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=NAMES)
def test_template_loads(page: Any, workflow: Path, client: Client, artifacts: Path) -> None:
    """Nothing on the canvas is unknown, and the page makes the same graph of it as comfy-cli does."""
    browser.load_template(page, PACK_NAME, workflow.stem)
    browser.fit_view(page)
    browser.screenshot(page, artifacts / f"template_{workflow.stem}.png")
    assert NODES.intersection(browser.node_types(page))
    assert browser.unknown_nodes(page) == []
    shown = {key: node["class_type"] for key, node in browser.api_graph(page).items()}
    converted = {key: node["class_type"] for key, node in client.to_prompt(workflow).items()}
    assert shown == converted


def test_quickstart_runs_to_its_end(page: Any, server: ComfyUIServer, artifacts: Path) -> None:
    """Load the quickstart, press Run, see it finish and its video appear."""
    before = set(server.output_folder.rglob("*.mp4"))
    browser.load_template(page, PACK_NAME, "quickstart")
    page.evaluate(CONNECT_OWN_VIDEOS, {"low quality": LOW_QUALITY, "reference": REFERENCE})
    assert browser.run(page) == "execution_success"
    browser.fit_view(page)
    browser.screenshot(page, artifacts / "browser_quickstart.png")
    assert set(server.output_folder.rglob("*.mp4")) - before
