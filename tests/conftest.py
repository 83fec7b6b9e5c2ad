"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LPIPS_WEIGHTS = "shared/data/weights/alexnet_features.safetensors"


@pytest.fixture(scope="session", autouse=True)
def _lpips_weights_beside_the_repository() -> None:
    """Measure LPIPS where its weights lie in or beside the repository; elsewhere the variable may name them."""
    for folder in (REPOSITORY, REPOSITORY.parent):
        if (folder / LPIPS_WEIGHTS).is_file():
            os.environ.setdefault("SETEVSR_LPIPS_WEIGHTS", str(folder / LPIPS_WEIGHTS))


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """A folder for pictures and logs that a person may want to look at after a test run."""
    folder = REPOSITORY / "tests" / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pack to train on."""
    from .training_helpers import write_pack

    return write_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny networks as native files."""
    from .training_helpers import write_networks

    return write_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="session")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16 for the losses, with random weights."""
    from .training_helpers import write_vgg

    pytest.importorskip("lpips")
    return write_vgg(tmp_path_factory.mktemp("vgg"))
