"""The real server as a subprocess on a free port, with a tiny random checkpoint and studies of every file type."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import torch
from PIL import Image
from ports import free_port

from ultrarefiner_monai.config import CoarseConfig, PpnConfig, SamConfig, SystemConfig
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import build_points, save_system
from ultrarefiner_monai.models.sam.network import build_sam

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "apps" / "ultrarefiner"
sys.path.insert(0, str(APP))  # MONAI Label puts the app's folder there while it loads main.py
START_SECONDS = 240
OBLIQUE = np.array([[-0.1, 0.02, 0, 5], [0.02, -0.2, 0, -7], [0, 0, 1.5, 3], [0, 0, 0, 1.0]])

# Ultrasound has no public files this small: pydicom's own test card in the codings that scanners use.
COLOUR_DICOM = {
    "rgb.dcm": "SC_rgb_rle.dcm",
    "ybr.dcm": "SC_rgb_jpeg_dcmtk.dcm",
    "ybr422.dcm": "SC_ybr_full_422_uncompressed.dcm",
    "jpeg2000.dcm": "SC_rgb_gdcm_KY.dcm",
}


def save_tiny_system(path: Path, seed: int = 1, points: bool = False) -> Path:
    """A whole system of random weights whose masks are neither empty nor full. points: with a network that proposes some."""
    config = SystemConfig(
        coarse=CoarseConfig(
            arch="compact",
            image_size=64,
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            mlp_dim=64,
            decoder_channels=(16, 16, 8),
        ),
        sam=SamConfig(
            arch="compact",
            image_size=64,
            embed_dim=32,
            depth=2,
            num_heads=2,
            window_size=2,
            global_attn_indexes=(1,),
        ),
        ppn=PpnConfig(points=5, width=16, blocks=1) if points else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        coarse = build_coarse(config.coarse)
        with torch.no_grad():
            coarse.head.weight.mul_(20)
            coarse.presence.bias.fill_(6)
        assert config.sam is not None
        sam = build_sam(config.sam)
        ppn = build_points(config) if points else None
        if ppn is not None:
            ppn.role.data = torch.tensor([5.0, 5.0, -5.0, -5.0, 5.0])  # labels of both kinds
        return save_system(path, config, coarse, sam, {"note": "random weights of a test"}, ppn=ppn)


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What ``condition`` returns as soon as that is true; AssertionError when it has not become so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it never came")


def picture(seed: int, height: int = 96, width: int = 130) -> np.ndarray:
    return make_phantom(np.random.default_rng(seed), height, width, "benign").image


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write_studies(folder: Path) -> None:
    """One file of every type in clients' lists, some named to be trouble, three that cannot be read."""
    from pydicom.data import get_testdata_file

    grey = [Image.fromarray(picture(n)) for n in range(8)]
    files = {
        "grey.png": encoded(grey[0], "PNG"),
        "colour.png": encoded(grey[1].convert("RGB"), "PNG"),
        "palette.png": encoded(grey[2].convert("P"), "PNG"),
        "UPPER.PNG": encoded(grey[3], "PNG"),
        "photo.jpg": encoded(grey[4], "JPEG"),
        "photo2.JPEG": encoded(grey[5], "JPEG"),
        "page.tif": encoded(grey[6], "TIFF"),
        "page2.tiff": encoded(grey[0], "TIFF"),
        "bitmap.bmp": encoded(grey[1], "BMP"),
        "same.png": encoded(grey[2], "PNG"),
        "same.jpg": encoded(grey[3], "JPEG"),
        "name with space é.png": encoded(grey[7], "PNG"),
        "frame.dcm": dicom_bytes(picture(10)[None], 1, 0.08),
        "cine.dcm": dicom_bytes(np.stack([picture(20 + k) for k in range(4)]), 2, 0.08),
        "long.dcm": dicom_bytes(np.stack([picture(40 + k) for k in range(60)]), 3, 0.08),
        "broken.png": encoded(grey[0], "PNG")[:500],
        "broken.dcm": dicom_bytes(picture(10)[None], 4, 0.08)[:900],
        "nothing.jpg": b"",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name, source in COLOUR_DICOM.items():
        found = get_testdata_file(source, download=False)
        assert found is not None
        shutil.copyfile(found, folder / name)
    flat = picture(11).T[..., None]
    volume = np.stack([picture(30 + k).T for k in range(3)], -1)
    nibabel.save(nibabel.Nifti1Image(flat, OBLIQUE), folder / "flat.nii.gz")
    nibabel.save(nibabel.Nifti1Image(volume, OBLIQUE), folder / "volume.nii")
    space = {
        "space": "left-posterior-superior",
        "space directions": np.diag([0.1, 0.2, 1.0]),
        "space origin": [1, 2, 3],
    }
    nrrd.write(str(folder / "volume2.nrrd"), volume, space)


_NO_LEARNING = {"learning.quick": "false", "learning.slow": "false"}
UNREADABLE = {"broken", "broken.dcm", "broken.png", "nothing"}


@dataclass
class Server:
    """A running server. ``log``: its output so far."""

    url: str
    studies: Path
    checkpoint: Path
    log_file: Path
    process: subprocess.Popen

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


def start(
    studies: Path, checkpoint: Path, folder: Path, host: str = "127.0.0.1", path: str = "/info/", **conf: object
) -> Server:
    """`monailabel start_server` as a user types it, with --conf for each of ``conf``; returns when it answers.

    host: an address that 127.0.0.1 is one of; path: what is asked to know it. Learning is off unless a test switches it on:
    its processes take the cores that the tests need. ULTRAREFINER_OHIF: the viewer's files (`make ohif-check`).
    """
    port = free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", str(studies)]
    command += ["--host", host, "--port", str(port), "--conf", "weights", str(checkpoint)]
    ohif = {"ohif": os.environ["ULTRAREFINER_OHIF"]} if "ULTRAREFINER_OHIF" in os.environ else {}
    for name, value in {"threads": 1, **_NO_LEARNING, **ohif, **conf}.items():
        command += ["--conf", name, str(value)]
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"}
    log_file = folder / f"server-{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", studies, checkpoint, log_file, process)
    deadline = time.monotonic() + START_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{server.log[-4000:]}")
        try:
            with direct.open(server.url + path, timeout=5) as answer:
                if answer.status == 200:
                    return server
        except OSError:
            time.sleep(0.2)
    server.stop()
    raise RuntimeError(f"the server did not answer in {START_SECONDS} s:\n{server.log[-4000:]}")
