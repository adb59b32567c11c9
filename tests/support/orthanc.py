"""A real Orthanc with the DICOMweb plugin as a subprocess, on loopback and free ports, with a configuration of ours.

Fixtures (through tests/conftest.py): ``orthanc``, an archive that is empty when the test begins; ``orthanc_login``, the
same with a user and a password; ``run_orthanc``, a function that starts more of them, alive until the session ends.
``in_front``: a web server before an archive, as hospitals have it, for https (Debian's Orthanc 1.10 dies of it) and tokens.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from ports import free_port

from ultrarefiner_monai.datasets.samples import dicom_bytes

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "radiology", "only for tests: é"
START_SECONDS = 60


@dataclass
class Orthanc:
    """A running archive. ``url``: its DICOMweb address. ``login``: (user, password) or None."""

    folder: Path
    port: int
    login: tuple[str, str] | None = None
    process: subprocess.Popen | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
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
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
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


@contextlib.contextmanager
def in_front(archive: Orthanc, tls: Path | None = None, token: Callable[[], str] | None = None) -> Iterator[str]:
    """The DICOMweb address of a web server that hands requests on to ``archive``.

    tls: certificate and key (PEM) for https. token: what the bearer has to know at the moment; 401 otherwise.
    """

    class Handler(BaseHTTPRequestHandler):
        def hand_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            if token is not None and self.headers["Authorization"] != f"Bearer {token()}":
                self._reply(401, b"", "text/plain")
                return
            request = urllib.request.Request(archive.root + self.path, body, method=self.command)
            for name in ("Accept", "Content-Type"):
                if self.headers[name]:
                    request.add_header(name, self.headers[name])
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    self._reply(answer.status, answer.read(), answer.headers["Content-Type"])
            except urllib.error.HTTPError as error:
                self._reply(error.code, error.read(), error.headers["Content-Type"])

        def _reply(self, status: int, body: bytes, kind: str | None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind or "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = hand_on  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/dicom-web"
        server.shutdown()


def us_file(pixels: np.ndarray, number: int, spacing: float, **changes: object) -> bytes:
    """An ultrasound file of (T, H, W) uint8 (``dicom_bytes``) with some DICOM keywords changed."""
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(pixels, number, spacing)))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def own_certificates(folder: Path) -> tuple[Path, Path]:
    """(the authority's certificate, certificate and key of 127.0.0.1 signed by it), made with openssl."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=CA",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "host.key", "-out", "host.csr", "-subj", "/CN=pacs")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    openssl("x509", "-req", "-in", "host.csr", "-out", "host.pem", *signing)
    both = folder / "both.pem"
    both.write_text((folder / "host.pem").read_text() + (folder / "host.key").read_text())
    return folder / "ca.pem", both


def _binary() -> str | None:
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


def require_orthanc() -> None:
    """Skip, saying what is missing; fail in CI, where it may not be left out."""
    if _binary() is None or not PLUGIN.is_file():
        text = "this test needs Orthanc with its DICOMweb plugin: apt-get install orthanc orthanc-dicomweb"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


@pytest.fixture(scope="session")
def run_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Orthanc]]:
    """run_orthanc(login=None, **options): a new empty archive; options go into Orthanc's configuration."""
    require_orthanc()
    running: list[Orthanc] = []

    def run(login: tuple[str, str] | None = None, **options: Any) -> Orthanc:
        folder = tmp_path_factory.mktemp("orthanc")
        running.append(Orthanc(folder, free_port(), login, options=options))
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
