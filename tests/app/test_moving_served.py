"""Moving pictures through the real server: what 3D Slicer is handed, and that masks and labels lie on it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from app_server import APP, picture, start
from coded_file import NATIVE, dicom
from PIL import Image
from slicer_module import Slicer, opened_with, write_label

from lib.store.datastore import StudiesFolder
from ultrarefiner_monai.config import ServeConfig, load_yaml
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.studies.work_folder import WorkFolder, forget

H, W, T = 60, 84, 5
FRAMES = np.stack([picture(k, H, W) for k in range(T)])


def film(path: Path, frames: np.ndarray = FRAMES) -> Path:
    """(T, H, W) uint8 as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape, "yuv420p"
        for grey in frames:
            frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def animation(frames: np.ndarray = FRAMES) -> bytes:
    buffer = io.BytesIO()
    images = [Image.fromarray(f) for f in frames]
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:])
    return buffer.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path):
    folder = tmp_path_factory.mktemp("video")
    studies = folder / "studies"
    studies.mkdir()
    film(studies / "film 1.mp4")
    film(studies / "film 2.mov")
    (studies / "clip.GIF").write_bytes(animation())
    (studies / "broken.avi").write_bytes(b"RIFF" * 100)
    native = NATIVE["Explicit VR Little Endian"]
    values = {"Rows": H, "Columns": W}
    (studies / "beyond.dcm").write_bytes(dicom(native, "MONOCHROME2", FRAMES, **values, NumberOfFrames=3))
    (studies / "black.dcm").write_bytes(dicom(native, "MONOCHROME2", FRAMES[0] * 0, **values))
    server = start(studies, checkpoint, folder)
    yield server
    server.stop()


@pytest.mark.server
@pytest.mark.parametrize(("name", "local"), [("film 1.mp4", True), ("film 2.mov", False), ("clip.GIF", False)])
def test_slicer_gets_frames_outlines_and_keeps_its_label(served, tmp_path: Path, name: str, local: bool) -> None:
    slicer, wanted = Slicer(served.url, tmp_path / "slicer"), Path(name).stem
    image_file = read_image_file(served.studies / name)
    sample, volume = next(s for s in (slicer.next_sample(local=local) for _ in range(8)) if s[0]["id"] == wanted)
    assert volume.path.name.endswith(".nii.gz") and opened_with(volume.path) == [volume.path.name]
    np.testing.assert_array_equal(volume.values, np.rint(image_file.frames * 255))
    direct = requests.get(f"{served.url}/datastore/image", {"image": wanted}, timeout=60)
    assert direct.status_code == 200 and ".nii.gz" in direct.headers["content-disposition"]
    check = {"image": wanted, "check_sum": sample["checksum"]}
    assert requests.head(f"{served.url}/datastore/image", params=check, timeout=60).status_code == 200
    mask, reply = slicer.click(wanted, [[40, 30, 2]], [])
    assert reply["n_frames"] == T and mask.values.shape == (T, H, W)
    np.testing.assert_allclose(mask.affine, volume.affine)
    drawn = np.zeros((T, H, W), np.uint8)
    drawn[3, [11, 12, 13, 13], [52, 52, 52, 53]] = 1
    answer = slicer.submit(wanted, write_label(tmp_path / "label.nii.gz", volume, drawn))
    assert not answer.get("warnings")
    stored = served.studies / "labels" / "final" / f"{wanted}.nii.gz"
    np.testing.assert_array_equal(read_mask(stored, image_file), drawn)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(stored))), drawn)


@pytest.mark.server
def test_warnings_reach_the_user_and_the_log(served, tmp_path: Path) -> None:
    slicer = Slicer(served.url, tmp_path / "slicer")
    for name, text in (("beyond", "pixels for 5 frames"), ("black", "nearly black")):
        mask, reply = slicer.infer("ultrarefiner", name)
        assert any(text in w for w in reply["warnings"]), name
        assert any(text in line and name in line for line in served.log.splitlines()), name
        assert mask.values.shape == read_image_file(served.studies / f"{name}.dcm").shape


@pytest.mark.server
def test_a_broken_video_is_not_offered_and_a_sent_one_is_checked(served, tmp_path: Path) -> None:
    slicer = Slicer(served.url, tmp_path / "slicer")
    assert "broken" not in {slicer.next_sample(local=False)[0]["id"] for _ in range(8)}
    assert "broken is not offered: broken.avi cannot be opened as a video" in served.log
    for path in ("/datastore/image?image=broken", "/infer/ultrarefiner?image=broken"):
        answer = requests.request("POST" if "infer" in path else "GET", served.url + path, timeout=60)
        assert answer.status_code == 400 and str(served.studies) not in answer.text, path
    for content, status in ((film(tmp_path / "new.mp4").read_bytes(), 200), (b"#EXTM3U\nfile:///etc/passwd\n", 400)):
        answer = requests.put(
            f"{served.url}/datastore/?image=sent{status}", files={"file": ("new.mp4", content)}, timeout=60
        )
        assert answer.status_code == status, answer.text


# --- the files for clients --------------------------------------------------------------------------------------------


def test_the_file_for_clients_follows_the_video_and_goes_with_it(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    (studies / "clip.gif").write_bytes(animation())
    work = WorkFolder.of(studies)
    store = StudiesFolder(
        str(studies), work, load_yaml(ServeConfig, APP / "config.yaml").extensions, read_image_file, False
    )
    first = store.client_path("clip")
    assert first.name == "clip.nii.gz" and store.client_path("clip") == first == Path(store.get_image_uri("clip"))
    state = first.stat().st_mtime_ns
    assert Path(store.get_image_uri("clip")).stat().st_mtime_ns == state, "made once"
    (studies / "clip.gif").write_bytes(animation(FRAMES[:2, :40]))
    os.utime(studies / "clip.gif", ns=(1, 1))
    second = store.client_path("clip")
    assert sitk.ReadImage(str(second)).GetSize() == (W, 40, 2) and not first.exists()
    forget(studies, "clip")
    assert not second.exists()
    third = store.client_path("clip")
    store.remove_image("clip")
    assert not third.exists() and not (studies / "clip.gif").exists()
