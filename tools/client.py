"""A small client of ComfyUI's HTTP and websocket interface: queue a graph, follow it, fetch what it made."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]
"""An API-format graph: node id -> {"class_type": name, "inputs": {input: value or [node id, slot]}}."""

EventHandler = Callable[[str, dict[str, Any]], None]


class PromptRejected(RuntimeError):
    """The server refused a graph; ``details`` is its answer with the errors of every node."""

    def __init__(self, details: dict[str, Any]) -> None:
        self.details = details
        messages = [details.get("error", {}).get("message", "")]
        for node in details.get("node_errors", {}).values():
            messages += [f"{node.get('class_type')}: {e['message']} {e['details']}".strip() for e in node["errors"]]
        super().__init__("; ".join(message for message in messages if message))


@dataclass(frozen=True)
class Run:
    """What became of one queued graph.

    Attributes:
        status: "success", "error" or "interrupted".
        outputs: node id -> what the node reported to the page (lists of files under "images", texts under "text", ...).
        events: every websocket event of the run, as (type, data), in order.
        previews: how many binary preview frames came in.
        error: the message of the exception that ended the run, else "".
    """

    prompt_id: str
    status: str
    outputs: dict[str, dict[str, Any]]
    events: list[tuple[str, dict[str, Any]]] = field(repr=False)
    previews: int
    error: str

    def files(self) -> list[dict[str, str]]:
        """Every file the graph saved or previewed, as {filename, subfolder, type}."""
        found = []
        for output in self.outputs.values():
            for entries in output.values():
                found += [e for e in entries if isinstance(e, dict) and "filename" in e]
        return found


class Client:
    """Talks to one ComfyUI server.

    Args:
        url: address such as ``http://127.0.0.1:8188``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex

    def get(self, path: str, **query: str) -> Any:
        """GET a route and decode its JSON."""
        return json.loads(self._request(path, query))

    def post(self, path: str, data: Any = None) -> Any:
        """POST JSON to a route and decode its JSON answer (None if the answer is empty)."""
        body = self._request(path, {}, json.dumps(data if data is not None else {}).encode())
        return json.loads(body) if body.strip() else None

    def object_info(self) -> dict[str, Any]:
        """Every node the server knows, by id."""
        return self.get("/object_info")

    def view(self, file: dict[str, str]) -> bytes:
        """The bytes of a file named in a run's outputs."""
        names = {key: file.get(key, "") for key in ("filename", "subfolder", "type")}
        return self._request("/view", names)

    def interrupt(self) -> None:
        """Ask the running graph to stop."""
        self.post("/interrupt")

    def queue(self, prompt: Prompt) -> str:
        """Queue a graph and return its id.

        Raises:
            PromptRejected: the server found errors in the graph.
        """
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": self.client_id})["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRejected(json.loads(error.read())) from error

    def run(self, prompt: Prompt, on_event: EventHandler | None = None, timeout_s: float = 600.0) -> Run:
        """Queue a graph and follow it to its end. ``on_event(type, data)`` sees every event as it comes."""
        return asyncio.run(asyncio.wait_for(self._follow(prompt, on_event), timeout_s))

    def to_prompt(self, workflow: Path) -> Prompt:
        """Convert a saved graph (the page's own format) to the API format with comfy-cli and the server's node list."""
        address = urllib.parse.urlsplit(self.url)
        command = [str(Path(sys.executable).with_name("comfy")), "--skip-prompt", "--where", "local", "run"]
        command += ["--workflow", str(workflow), "--print-prompt", "--json"]
        command += ["--host", str(address.hostname), "--port", str(address.port)]
        with tempfile.TemporaryDirectory() as home:
            (Path(home) / ".config").mkdir()
            environment = {**os.environ, "HOME": home, "DO_NOT_TRACK": "1", "NO_COLOR": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise RuntimeError(f"comfy-cli could not convert {workflow.name}: {done.stderr or done.stdout}")
        return json.loads(done.stdout.splitlines()[-1])["data"]["prompt"]

    def _request(self, path: str, query: dict[str, str], data: bytes | None = None) -> bytes:
        address = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        headers = {"Content-Type": "application/json"} if data is not None else {}
        with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=60) as answer:
            return answer.read()

    async def _follow(self, prompt: Prompt, on_event: EventHandler | None) -> Run:
        import aiohttp

        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            prompt_id = await asyncio.to_thread(self.queue, prompt)
            events: list[tuple[str, dict[str, Any]]] = []
            previews = 0
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    previews += 1
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                if data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                events.append((kind, data))
                if on_event is not None:
                    await asyncio.to_thread(on_event, kind, data)
                # "execution_success" is sent before the history is written; this one is sent after.
                if kind == "executing" and data.get("node") is None and "prompt_id" in data:
                    break
        history = (await asyncio.to_thread(self.get, f"/history/{prompt_id}"))[prompt_id]
        return Run(prompt_id, _status(events), history["outputs"], events, previews, _error(events))


def _status(events: list[tuple[str, dict[str, Any]]]) -> str:
    kinds = {kind for kind, _ in events}
    for kind in ("error", "interrupted", "success"):
        if f"execution_{kind}" in kinds:
            return kind
    return "unknown"


def _error(events: list[tuple[str, dict[str, Any]]]) -> str:
    return next((data.get("exception_message", "") for kind, data in events if kind == "execution_error"), "")


def nodes_of(prompt: Prompt, class_type: str) -> list[str]:
    """Ids of all nodes of one class in a graph."""
    return [key for key, node in prompt.items() if node["class_type"] == class_type]


def set_input(prompt: Prompt, class_type: str, **values: Any) -> None:
    """Set widget values on every node of one class.

    Raises:
        KeyError: the graph has no node of that class, or the node has no such input.
    """
    keys = nodes_of(prompt, class_type)
    if not keys:
        raise KeyError(f"The graph has no node {class_type}.")
    for key in keys:
        for name, value in values.items():
            if name not in prompt[key]["inputs"]:
                raise KeyError(f"{class_type} has no input {name}: {sorted(prompt[key]['inputs'])}")
            prompt[key]["inputs"][name] = value
