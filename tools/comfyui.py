"""A private, headless ComfyUI with this repository mounted as a node pack, for the demo and the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from .install_comfyui import REPOSITORY, ComfyUINotFound, locate

__all__ = ["PACK_NAME", "REPOSITORY", "ComfyUINotFound", "ComfyUIServer", "ServerFailed", "locate"]

PACK_NAME = "setevsr"


class ServerFailed(RuntimeError):
    """ComfyUI did not start or died; the message ends with the last lines of its log."""


def free_port() -> int:
    """A TCP port on the loopback that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ComfyUIServer:
    """Context manager around one ``main.py`` process with a base folder of its own.

    The base folder holds ``custom_nodes/`` (only a link to ``pack``), ``input/``, ``output/``, ``temp/`` and ``user/``;
    a temporary one is removed on exit. Nothing of the ComfyUI tree is written to.

    Args:
        pack: folder of the node pack to mount; None mounts nothing.
        base: base folder to use and keep; None makes a temporary one.
        tree: ComfyUI folder; None asks :func:`locate`.
        device: "cpu", "gpu", or "auto" (a GPU if torch sees one).
        arguments: more arguments for main.py.
        environment: variables set on top of the current environment.
    """

    def __init__(
        self,
        pack: Path | None = REPOSITORY,
        *,
        base: Path | None = None,
        tree: Path | None = None,
        device: str = "cpu",
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        start_timeout_s: float = 180.0,
    ) -> None:
        self.tree = tree or locate()
        self.pack = pack
        self.base = base or Path(tempfile.mkdtemp(prefix="comfyui-"))
        self.port = free_port()
        self._remove_base = base is None
        self._device = device
        self._arguments = list(arguments)
        self._environment = environment or {}
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def input_folder(self) -> Path:
        return self.base / "input"

    @property
    def output_folder(self) -> Path:
        return self.base / "output"

    @property
    def log_file(self) -> Path:
        return self.base / "comfyui.log"

    def log(self) -> str:
        """Everything the server has printed so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def __enter__(self) -> ComfyUIServer:
        self._prepare_base()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self._environment}
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), cwd=self.tree, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the process and remove a temporary base folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._remove_base:
            shutil.rmtree(self.base, ignore_errors=True)

    def _prepare_base(self) -> None:
        for name in ("custom_nodes", "input", "output", "temp", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / PACK_NAME
        if link.is_symlink():
            link.unlink()
        if self.pack is not None:
            link.symlink_to(self.pack.resolve(), target_is_directory=True)

    def _command(self) -> list[str]:
        command = [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--base-directory", str(self.base)]
        command += ["--database-url", "sqlite:///:memory:"]
        if self._device == "cpu" or (self._device == "auto" and not _gpu_is_there()):
            command.append("--cpu")
        return command + self._arguments

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerFailed(f"ComfyUI ended with code {self._process.returncode}:\n{self._log_tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise ServerFailed(f"ComfyUI was not ready after {self._start_timeout_s:.0f} s:\n{self._log_tail()}")

    def _log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log().splitlines()[-lines:])


def _gpu_is_there() -> bool:
    import torch

    return torch.cuda.is_available()
