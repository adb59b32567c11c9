"""One server for the whole session, and MONAI Label's own client to drive it."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_server import Server, save_tiny_system, start, write_studies
from small_studies import LABEL, PNG


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_system(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path):
    """One server for the whole session; its studies' path has a space in it."""
    folder = tmp_path_factory.mktemp("server")
    write_studies(folder / "my studies")
    running = start(folder / "my studies", checkpoint, folder, max_upload_mb=8)
    yield running
    running.stop()


@pytest.fixture
def client(server: Server, tmp_path: Path):
    from monailabel.client import MONAILabelClient

    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="test-client")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two pictures, a and b."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(PNG)
    return folder


@pytest.fixture
def label(tmp_path: Path) -> str:
    """A label of these pictures."""
    (tmp_path / "label.png").write_bytes(LABEL)
    return str(tmp_path / "label.png")
