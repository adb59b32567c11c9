"""3D Slicer's own code (PyPI: slicer-core) reads what the server sends, and writes what it gets: `make slicer-check`.

It lives in an environment of its own, whose Python ULTRAREFINER_SLICER_PYTHON names.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import requests
import SimpleITK
from app_server import ROOT, picture, save_tiny_system, start
from PIL import Image
from slicer_module import Slicer, Volume

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.masks.runs import mask_of
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor

PYTHON = os.environ.get("ULTRAREFINER_SLICER_PYTHON", "")
JUDGE = ROOT / "tests" / "support" / "judge_in_slicer.py"
pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON, reason="3D Slicer's own code has an environment of its own: make slicer-check"),
]
NAMES = ["plain.png", "flipped.nii.gz", "turned.nrrd", "single.dcm", "cine.dcm"]


def in_slicer(*arguments: str | Path) -> None:
    done = subprocess.run([PYTHON, str(JUDGE), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    studies = folder / "studies"
    studies.mkdir()
    Image.fromarray(picture(0)).save(studies / "plain.png")
    flipped = picture(1, 140, 60).T[:, ::-1, None]
    nibabel.save(nibabel.Nifti1Image(flipped, np.diag([-0.2, 0.1, 1, 1])), studies / "flipped.nii.gz")
    turned = {"space": "left-posterior-superior", "space origin": [5, 6, 7]}
    turned["space directions"] = np.array([[0, 0.1, 0], [-0.2, 0, 0], [0, 0, 1.0]])
    nrrd.write(str(studies / "turned.nrrd"), picture(2, 64, 150).T[..., None], turned)
    (studies / "single.dcm").write_bytes(dicom_bytes(picture(3)[None], 3, 0.07))
    (studies / "cine.dcm").write_bytes(dicom_bytes(np.stack([picture(k) for k in (4, 5, 6)]), 4, 0.07))
    running = start(studies, save_tiny_system(folder / "tiny.safetensors"), folder)
    yield running
    running.stop()


def grid_of(frames: np.ndarray, values: np.ndarray):
    """(K, J, I) of Slicer -> (T, H, W) of the file: which axes it turns and flips, found by the greys themselves."""
    values = np.asarray(values, float)
    values = values.mean(axis=-1) if values.ndim == 4 else values
    for turned in (False, True):
        seen = values.transpose(0, 2, 1) if turned else values
        for axes in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
            if seen.shape == frames.shape and np.abs(np.flip(seen, axes) / 255 - frames).max() < 0.02:

                def way(mask: np.ndarray, turned: bool = turned, axes: tuple[int, ...] = axes) -> np.ndarray:
                    return np.flip(mask.transpose(0, 2, 1) if turned else mask, axes)

                def back(mask: np.ndarray, turned: bool = turned, axes: tuple[int, ...] = axes) -> np.ndarray:
                    found = np.flip(mask, axes)
                    return found.transpose(0, 2, 1) if turned else found

                return way, back
    raise AssertionError("Slicer does not show the file's greys")


@pytest.mark.parametrize("name", NAMES)
def test_slicer_shows_the_mask_on_its_image_and_its_labels_come_back(server, tmp_path: Path, name: str) -> None:
    image = name.split(".")[0]
    slicer = Slicer(server.url, tmp_path / "slicer")
    answer = requests.get(f"{server.url}/datastore/image", {"image": image}, timeout=60)
    sent = tmp_path / answer.headers["content-disposition"].split("filename=")[1].strip('"')
    sent.write_bytes(answer.content)
    if sent.suffix == ".png":  # slicer-core comes without ITK's reader of pictures, which 3D Slicer has
        sent = sent.with_suffix(".nrrd")
        SimpleITK.WriteImage(Volume(sent.with_suffix(".png")).image, str(sent))
    image_file = read_image_file(server.studies / name)
    frames = np.stack([image_file.frame(k) for k in range(image_file.n_frames)])

    # What the server replies lies on what it hands out, and is the network's answer in these very pixels.
    mask, _ = slicer.infer("ultrarefiner", image)
    in_slicer("read", sent, mask.path, tmp_path / "seen.npz")
    seen = np.load(tmp_path / "seen.npz")
    assert (
        np.allclose(seen["mask_place"], seen["volume_place"], atol=1e-5)
        and seen["mask"].shape == seen["volume"].shape[:3]
    )
    way, back = grid_of(frames, seen["volume"])
    predictor = Predictor(load_system(server.checkpoint))
    own = np.stack([predictor.propose(frame).mask > 0 for frame in frames])
    assert np.array_equal(way(seen["mask"]) > 0, own)
    click = np.argwhere(back(np.indices(frames.shape)[2] == 40) & back(np.indices(frames.shape)[1] == 20))
    k, j, i = click[0]
    clicked, _ = slicer.click(image, [[int(i), int(j), int(k)]], [])
    in_slicer("read", sent, clicked.path, tmp_path / "clicked.npz")
    shown = way(np.load(tmp_path / "clicked.npz")["mask"]) > 0
    frame = int(np.argwhere(way(np.indices(seen["mask"].shape)[0] == k).any((1, 2)))[0, 0])
    assert np.array_equal(shown[frame], predictor.interact(frames[frame], Clicks(((40.0, 20.0),))).mask > 0)

    # What Slicer saves comes back to the same pixels.
    drawn = np.zeros(frames.shape, np.uint8)
    drawn[-1, 12:30, 25:50] = drawn[0, 40, 10] = 1
    np.save(tmp_path / "drawn.npy", back(drawn))
    for form in (".seg.nrrd", ".nii.gz"):
        in_slicer("write", sent, tmp_path / "drawn.npy", tmp_path / f"saved{form}")
        slicer.submit(image, tmp_path / f"saved{form}")
        masks = requests.get(f"{server.url}/ultrarefiner/viewer/label", {"image": image}, timeout=60).json()["masks"]
        kept = np.zeros_like(drawn)
        for number, text in masks.items():
            kept[int(number)] = mask_of(text, drawn.shape[1:])
        assert np.array_equal(kept, drawn), form
