"""A real Orthanc with the DICOMweb plugin as a subprocess, on loopback and free ports, with a configuration of ours.

Fixtures (through tests/conftest.py): ``orthanc``, an archive that is empty when the test begins; ``orthanc_login``, the
same with a user and a password; ``run_orthanc``, a function that starts more of them, alive until the session ends.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "radiology", "only for tests: é"
START_SECONDS = 60


@dataclass
class Orthanc:
    """A running archive. ``url``: its DICOMweb address. ``login``: (user, password) or None."""

    folder: Path
    port: int
    login: tuple[str, str] | None = None
    ca_file: Path | None = None
    process: subprocess.Popen | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> str:
        return f"http{'s' if self.ca_file else ''}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/dicom-web"

    @property
    def log(self) -> str:
        return (self.folder / "orthanc.log").read_text(errors="replace")

    def start(self) -> Orthanc:
        """Start it (again): the same port, the same storage. Returns when it answers."""
        config = {
            "Name": "test",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [str(PLUGIN)],
            "RemoteAccessAllowed": False,
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "AuthenticationEnabled": self.login is not None,
            "RegisteredUsers": dict([self.login]) if self.login else {},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False, "Ssl": self.ca_file is not None},
            **self.options,
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(config))
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen([_binary(), str(path)], stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"Orthanc ended with {self.process.returncode}:\n{self.log[-4000:]}")
            try:
                self.rest("GET", "/system")
                return self
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"Orthanc did not answer in {START_SECONDS} s:\n{self.log[-4000:]}")

    def stop(self) -> None:
        """Stop it; what it stores stays, ``start`` brings it back."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def rest(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Orthanc's own REST interface: the answer's JSON, or its bytes where it is none."""
        request = urllib.request.Request(self.root + path, body, method=method)
        if self.login:
            token = base64.b64encode(":".join(self.login).encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        trust = ssl.create_default_context(cafile=str(self.ca_file)) if self.ca_file else None
        handlers: list[Any] = [urllib.request.ProxyHandler({})]
        if trust:
            handlers.append(urllib.request.HTTPSHandler(context=trust))
        with urllib.request.build_opener(*handlers).open(request, timeout=30) as answer:
            content = answer.read()
        try:
            return json.loads(content)
        except ValueError:
            return content

    def add(self, *instances: bytes | Path) -> list[str]:
        """Store DICOM files as a modality would; Orthanc's own ids of them."""
        contents = [i if isinstance(i, bytes) else i.read_bytes() for i in instances]
        return [self.rest("POST", "/instances", content)["ID"] for content in contents]

    def instances(self) -> list[str]:
        """Orthanc's own ids of what it stores."""
        return list(self.rest("GET", "/instances"))

    def file(self, instance: str) -> bytes:
        """The DICOM file of an instance, by Orthanc's own id."""
        return self.rest("GET", f"/instances/{instance}/file")

    def clear(self) -> None:
        """Remove all that it stores."""
        for patient in self.rest("GET", "/patients"):
            self.rest("DELETE", f"/patients/{patient}")


def _binary() -> str | None:
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


def require_orthanc() -> None:
    """Skip, saying what is missing; fail in CI, where it may not be left out."""
    if _binary() is None or not PLUGIN.is_file():
        text = "this test needs Orthanc with its DICOMweb plugin: apt-get install orthanc orthanc-dicomweb"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def run_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Orthanc]]:
    """run_orthanc(login=None, ca_file=None, **options): a new empty archive; options go into Orthanc's configuration."""
    require_orthanc()
    running: list[Orthanc] = []

    def run(login: tuple[str, str] | None = None, ca_file: Path | None = None, **options: Any) -> Orthanc:
        folder = tmp_path_factory.mktemp("orthanc")
        running.append(Orthanc(folder, free_port(), login, ca_file, options=options))
        return running[-1].start()

    yield run
    for archive in running:
        archive.stop()


@pytest.fixture(scope="session")
def _archives(run_orthanc: Callable[..., Orthanc]) -> dict[bool, Orthanc]:
    return {}


def _emptied(archives: dict[bool, Orthanc], run: Callable[..., Orthanc], login: bool) -> Orthanc:
    if login not in archives:
        archives[login] = run(login=(USER, PASSWORD) if login else None)
    elif archives[login].process is None or archives[login].process.poll() is not None:  # the test before stopped it
        archives[login].start()
    archives[login].clear()
    return archives[login]


@pytest.fixture
def orthanc(_archives: dict[bool, Orthanc], run_orthanc: Callable[..., Orthanc]) -> Orthanc:
    """One archive for the session, emptied before each test. Who needs one for longer: ``run_orthanc()``."""
    return _emptied(_archives, run_orthanc, False)


@pytest.fixture
def orthanc_login(_archives: dict[bool, Orthanc], run_orthanc: Callable[..., Orthanc]) -> Orthanc:
    """The same behind ``USER`` and ``PASSWORD`` (basic authentication)."""
    return _emptied(_archives, run_orthanc, True)
