"""The real server in a process group of its own, what it answers, and the same answer computed here from its files."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import ModuleType

import nrrd
import numpy as np
import psutil
import requests
from PIL import Image
from requests_toolbelt import MultipartDecoder

from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.learning.quick.overlay import load_quick
from ultrarefiner_monai.learning.registry import CONFIGURED, Registry
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "apps" / "ultrarefiner"
START_SECONDS = 240


def tests_support(name: str) -> ModuleType:
    """A module of tests/support."""
    if str(ROOT / "tests" / "support") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests" / "support"))
    return importlib.import_module(name)


def png(mask: np.ndarray) -> bytes:
    """(H, W) bool as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


class Forked:
    """`monailabel start_server` on ``studies``, forked off this process, which imports once what takes seconds.

    No thread of this process may run while it is made. It leads a process group: ``kill`` ends all of it. SystemExit with
    the end of the log where it does not answer.
    """

    def __init__(self, studies: Path, weights: Path, folder: Path, options: dict[str, object], app: Path = APP) -> None:
        import monailabel.interfaces.app  # noqa: F401 (what the server imports)
        import monailabel.main

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "server.log"
        arguments = ["start_server", "--app", str(app), "--studies", str(studies), "--port", str(port)]
        arguments += ["--host", "127.0.0.1", "--conf", "weights", str(weights)]
        for name, value in options.items():
            arguments += ["--conf", name, str(value)]
        self.begun = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.setsid()
                log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.chdir(folder)
                os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
                sys.argv = ["monailabel", *arguments]
                monailabel.main.Main().run()
            finally:
                os._exit(1)
        self.process = psutil.Process(self.pid)
        self._wait()

    def _wait(self) -> None:
        while time.monotonic() < self.begun + START_SECONDS:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
            try:
                if requests.get(f"{self.url}/info/", timeout=5).ok:
                    self.seconds = time.monotonic() - self.begun
                    return
            except requests.RequestException:
                time.sleep(0.1)
        raise SystemExit(f"the server did not come up:\n{self.log.read_text(errors='replace')[-4000:]}")

    def children(self) -> list[psutil.Process]:
        """What it has started, oldest first."""
        try:
            return sorted(self.process.children(recursive=True), key=lambda p: p.create_time())
        except psutil.NoSuchProcess:
            return []

    def child(self, word: str) -> bool:
        """Whether one of these has ``word`` in its command."""
        for process in self.children():
            try:
                if any(word in part for part in process.cmdline()):
                    return True
            except psutil.NoSuchProcess:
                continue
        return False

    def kill(self) -> None:
        """SIGKILL to the server and to all that it started, at once."""
        for process in [self.process, *self.children()]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        os.waitpid(self.pid, 0)

    def stop(self) -> None:
        """As an administrator stops it; killed when it takes more than a minute."""
        self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return
            time.sleep(0.1)
        self.kill()


def infer(url: str, model: str, image: str, **params: object) -> tuple[str, np.ndarray]:
    """(version, mask (H, W)) of one reply, and the mask as (rows, columns) of the image."""
    data = {"params": json.dumps({"result_extension": ".nrrd", **params})}
    answer = requests.post(f"{url}/infer/{model}?image={image}", data=data, timeout=300)
    if not answer.ok:
        raise requests.RequestException(f"{answer.status_code}: {answer.text[:300]}")
    parts = MultipartDecoder.from_response(answer).parts
    reply = next(json.loads(p.text) for p in parts if b"json" in p.headers.get(b"content-type", b""))
    file = next(p.content for p in parts if b"json" not in p.headers.get(b"content-type", b""))
    stream = io.BytesIO(file)
    header = nrrd.read_header(stream)
    return str(reply["version"]), np.squeeze(nrrd.read_data(header, stream)).T


def served_system(registry: Registry, configured: Path) -> Predictor:
    """What the pointer names, loaded from its files."""
    pointer = registry.pointer()
    champion = load_system(configured if pointer.name == CONFIGURED else registry.get(pointer.name).path)
    if pointer.quick:
        champion = load_quick(champion, registry.quick_path(pointer.quick))
    return Predictor(champion)


def predict_as_served(registry: Registry, configured: Path, image: Path) -> tuple[str, np.ndarray]:
    """(version, automatic mask (H, W)) that the pointer's model gives for a picture."""
    predictor = served_system(registry, configured)
    return predictor.system.version, predictor.propose(read_image_file(image).frame(0)).mask


def shipped_or(weights: str) -> Path:
    """The file of shipped weights by their name, or the path itself."""
    shipped = APP / "model" / f"{weights}.safetensors"
    return shipped if shipped.is_file() else Path(weights).resolve()
