"""The real server of any checkout of this project, on a copy of some studies, asked over HTTP.

Nothing of the package is imported here: the server imports its own checkout's.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import requests
from answer_records import kept

START_SECONDS, REQUEST_SECONDS = 240, 1200
NO_IMAGES = {".md", ".csv", ".json", ".txt"}


def chosen_files(folder: Path, limit: int | None) -> list[Path]:
    """The files to copy, relative: images in any depth, ``limit`` of them evenly spaced by name, with their labels."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    files = sorted(p for p in found if not any(part.startswith(".") for part in p.parts))
    images = [p for p in files if p.parts[0] != "labels" and p.suffix.lower() not in NO_IMAGES]
    if limit is not None and limit < len(images):
        images = [images[k] for k in np.linspace(0, len(images) - 1, limit).round().astype(int)]
    stems = {p.name.split(".")[0] for p in images}
    return images + [p for p in files if p.parts[0] == "labels" and p.name.split(".")[0] in stems]


@dataclass
class Server:
    """A running server. ``places``: what stands for its folders and address in a record."""

    url: str
    places: dict[str, str]
    session: requests.Session = field(default_factory=requests.Session)

    def ask(self, method: str, path: str, form: object = None, masks: bool = False, **options: Any) -> dict[str, Any]:
        """The recorded reply. form: the field ``params``, as text or to be JSON; masks: a file in the reply is a mask."""
        if form is not None:
            options["data"] = {"params": form if isinstance(form, str) else json.dumps(form)}
        answer = self.session.request(method, self.url + path, timeout=REQUEST_SECONDS, **options)
        return kept(answer, self.places, masks and answer.ok)


def check_package(checkout: Path, environment: dict[str, str], folder: Path) -> None:
    """SystemExit when another copy of the package than the checkout's would answer."""
    code = "import ultrarefiner_monai; print(ultrarefiner_monai.__file__)"
    command = [sys.executable, "-c", code]
    asked = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if not asked.stdout.startswith(str(checkout) + os.sep):
        raise SystemExit(f"{checkout}: the package there was expected, python imports {asked.stdout or asked.stderr}")


@contextmanager
def serving(checkout: Path, studies: Path, folder: Path, conf: list[list[str]]) -> Iterator[Server]:
    """The checkout's server on these studies, until the block ends. folder: temporary, for its log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    check_package(checkout, environment, folder)
    app = checkout / "apps" / "ultrarefiner"
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for name, value in [["threads", "1"], *conf]:
        command += ["--conf", name, value]
    places = {
        f"127.0.0.1:{port}": "SERVER",
        str(studies): "STUDIES",
        str(folder): "FOLDER",
        str(checkout): "CHECKOUT",
        tempfile.gettempdir(): "TMP",
    }
    server = Server(f"http://127.0.0.1:{port}", places)
    server.session.trust_env = False  # no proxy between us
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_up(server, process, folder)
        yield server
    except requests.RequestException as error:
        raise SystemExit(f"{error}\nthe end of the server's log:\n{tail(folder)}") from error
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def wait_until_up(server: Server, process: subprocess.Popen, folder: Path) -> None:
    """Returns when the server answers; SystemExit with the end of its log when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if server.session.get(f"{server.url}/info/", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.3)
    raise SystemExit(f"the server did not start:\n{tail(folder)}")


def tail(folder: Path) -> str:
    return (folder / "server.log").read_text(errors="replace")[-4000:]
