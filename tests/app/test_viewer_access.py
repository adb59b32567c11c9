"""Who gets in from another machine, over TLS; and whether the pages can be used by those who do not see well, or use no mouse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from app_server import ROOT, picture, save_tiny_system, start
from browser import chromium  # noqa: F401 (a fixture)
from orthanc import own_certificates
from PIL import Image
from ports import free_port
from test_access import own_address
from viewer_page import ViewerPage

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    Image.fromarray(picture(0)).save(folder / "plain.png")
    return folder


def test_from_another_machine_with_the_token_over_tls(studies: Path, tmp_path: Path, chromium) -> None:  # noqa: F811
    _, pair = own_certificates(tmp_path)
    port, weights = free_port(), save_tiny_system(tmp_path / "tiny.safetensors")
    command = [
        sys.executable,
        "-m",
        "ultrarefiner_monai.cli",
        "serve",
        str(studies),
        "--host",
        "0.0.0.0",
        "--port",
        str(port),
    ]
    command += ["--conf", f"weights={weights}", "--conf", "threads=1", "--conf", "learning.quick=false"]
    command += ["--conf", "learning.slow=false", "--tls-cert", str(pair), "--tls-key", str(pair)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        said = ""
        assert server.stdout is not None
        while "READY" not in said:
            line = server.stdout.readline()
            assert line, said
            said += line
        token = (studies / ".ultrarefiner" / "token").read_text().strip()
        assert f"https://127.0.0.1:{port}/" in said and token in said
        address = f"https://{own_address()}:{port}"
        stranger = chromium.new_page(ignore_https_errors=True)
        for path in ("/ultrarefiner/worklist", "/ohif/ultrarefiner", "/proxy/dicom/studies", "/"):
            assert stranger.request.get(address + path, ignore_https_errors=True).status == 401
        stranger.close()
        login = {"username": "anna", "password": token}
        page = ViewerPage(chromium, address, ignore_https_errors=True, http_credentials=login)
        page.open_from_worklist("plain")
        page.click(60, 40)
        page.accept()
        page.close()
        kept = requests.get(f"https://127.0.0.1:{port}/datastore/?output=all", verify=False, timeout=60).json()
        assert kept["objects"]["plain"]["labels"]["final"]["info"]["user"] == "anna"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def serious(page, context: str | None = None) -> list[str]:
    """What axe-core calls serious or critical, with the element."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=context).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:120]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_for_those_who_do_not_see_well(studies: Path, tmp_path: Path, chromium, scheme: str) -> None:  # noqa: F811
    server = start(studies, save_tiny_system(tmp_path / "tiny.safetensors"), tmp_path)
    try:
        page = ViewerPage(chromium, server.url, color_scheme=scheme)
        for path in ("", "ultrarefiner/worklist", "ultrarefiner/status"):
            page.page.goto(f"{server.url}/{path}")
            assert not serious(page.page), path
        page.open_from_worklist("plain")
        page.press("?")
        assert not serious(page.page, ".ultrarefiner")
        # Without a mouse: each button in its order, with a name, and Enter does it.
        page.page.get_by_role("button", name="Outline this frame").focus()
        names = []
        for _ in range(17):  # those of loops are not offered
            names.append(page.page.evaluate("document.activeElement.textContent"))
            page.press("Tab")
        assert names[0] == "Outline this frame" and len(set(names)) == 17 and "Accept: save as final" in names
        clear = page.page.get_by_role("button", name="Clear the frame")
        clear.focus()
        page.press("Enter")
        page.wait("Cleared")
        page.close()
    finally:
        server.stop()
