"""Files of a folder as ultrasound objects: conforming (judged by dciodvfy), and the same pixels."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from app_server import picture
from PIL import Image
from segs import require

from ultrarefiner_monai.dicomweb.wrapped import as_file, rendered, uids_of, wrapped
from ultrarefiner_monai.imaging.readers import read_image_file


def write(kind: str, folder: Path) -> Path:
    colour = np.stack([picture(0)] * 3, -1)
    colour[5:20, 5:30] = (200, 30, 30)
    path = folder / kind
    if kind == "volume.nii.gz":
        frames = np.stack([picture(30 + k).T for k in range(3)], -1)
        nibabel.save(nibabel.Nifti1Image(frames, np.diag([-0.2, 0.1, 1, 1])), path)
    elif kind == "frames.gif":
        Image.fromarray(colour).save(path, save_all=True, append_images=[Image.fromarray(colour[:, ::-1])])
    else:
        Image.fromarray({"colour.png": colour, "odd.png": picture(0)[:95, :129]}.get(kind, picture(0))).save(path)
    return path


@pytest.mark.parametrize("kind", ["grey.png", "odd.png", "colour.png", "frames.gif", "volume.nii.gz"])
def test_a_conforming_object_with_the_pixels_of_the_file(kind: str, tmp_path: Path) -> None:
    image_file = read_image_file(write(kind, tmp_path))
    content = as_file(wrapped(image_file, kind, uids_of("here", kind, "as it is")))
    dataset = pydicom.dcmread(io.BytesIO(content))
    shown = dataset.pixel_array if image_file.n_frames > 1 else dataset.pixel_array[None]
    assert np.array_equal(shown, np.stack([rendered(image_file, k) for k in range(image_file.n_frames)]))
    require("dciodvfy", "dicom3tools")
    (tmp_path / "object.dcm").write_bytes(content)
    told = subprocess.run(["dciodvfy", tmp_path / "object.dcm"], capture_output=True, text=True, timeout=60).stderr
    assert "Error" not in told, told
