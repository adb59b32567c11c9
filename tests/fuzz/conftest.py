from __future__ import annotations

import pytest
from app_server import Server, save_tiny_system, start
from seeds import images

STUDIES = ("grey.png", "frame.dcm", "cine.dcm", "flat.nii.gz", "raw.nrrd")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A server of one's own: whoever fuzzes it removes, saves and starts what it likes."""
    folder = tmp_path_factory.mktemp("fuzz")
    studies = folder / "st udies"
    studies.mkdir()
    for name, content in images().items():
        if name in STUDIES:
            (studies / name).write_bytes(content)
    running: Server = start(studies, save_tiny_system(folder / "tiny.safetensors"), folder, max_upload_mb=64)
    yield running
    running.stop()
