"""Several DICOM files as one image: order, sizes, geometry, B-mode regions."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.dicom.series import (
    frame_order,
    frames_in,
    read_series,
    sha256_of_image,
    sort_instances,
    state_of,
)
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import Limits, read_image_file
from ultrarefiner_monai.imaging.writers import write_mask

H, W = 40, 60
PDF = "1.2.840.10008.5.1.4.1.1.104.1"


def picture(seed: int, height: int = H, width: int = W) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def written(path: Path, seed: int = 0, instance: int = 1, spacing: float = 0.1, size=(H, W), **values) -> Path:
    """One frame of series 1; ``regions`` goes to the sample's maker, other values are set on the dataset."""
    content = dicom_bytes(
        picture(seed, *size)[None], 1, spacing, instance=instance, regions=values.pop("regions", None)
    )
    dataset = pydicom.dcmread(io.BytesIO(content))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def grey(frame: np.ndarray) -> np.ndarray:
    return np.rint(frame * 255).astype(np.uint8)


def test_frames_follow_the_instance_numbers_not_the_names(tmp_path: Path) -> None:
    files = [written(tmp_path / name, seed=k, instance=k) for name, k in (("a.dcm", 10), ("b", 2), ("c.dcm", 7))]
    (tmp_path / "DICOMDIR").write_bytes(files[0].read_bytes())
    (tmp_path / "notes.txt").write_text("no DICOM")
    image_file = read_image_file(tmp_path)
    assert image_file.shape == (3, H, W) and image_file.is_volume and image_file.path == tmp_path
    for k, seed in enumerate((2, 7, 10)):
        np.testing.assert_array_equal(grey(image_file.frame(k)), picture(seed))
    assert sort_instances(files) == [files[1], files[2], files[0]]
    twice = written(tmp_path / "copy.dcm", seed=2, instance=2)
    assert len(sort_instances([*files, twice])) == 3


def test_different_pictures_with_one_uid_are_frames_of_their_own(tmp_path: Path) -> None:
    for k in range(3):
        written(tmp_path / f"{k}", seed=k, instance=1)
    written(tmp_path / "copy", seed=0, instance=1, PatientName="OTHER")
    image_file, order = read_image_file(tmp_path), frame_order(sorted(tmp_path.iterdir()))
    assert image_file.n_frames == frames_in(order) == len(set(order)) == 3
    found = {grey(image_file.frame(k)).tobytes() for k in range(3)}
    assert found == {picture(k).tobytes() for k in range(3)}
    (tmp_path / "copy").unlink()
    (tmp_path / "0").rename(tmp_path / "9")
    assert frame_order(sorted(tmp_path.iterdir())) == order


def test_frames_are_counted_as_they_are_read(tmp_path: Path) -> None:
    for k, said in enumerate((None, 0, 3)):
        content = dicom_bytes(np.stack([picture(n) for n in range(5)]), 1, 0.1, instance=k + 1)
        dataset = pydicom.dcmread(io.BytesIO(content))
        dataset.NumberOfFrames = said
        if said is None:
            del dataset.NumberOfFrames
        dataset.save_as(tmp_path / f"{k}")
    image_file = read_image_file(tmp_path)
    assert image_file.n_frames == frames_in(frame_order(sorted(tmp_path.iterdir()))) == 5
    assert sum("pixels for 5 frames" in w for w in image_file.warnings) == 3


def test_a_cine_among_single_frames(tmp_path: Path) -> None:
    cine = np.stack([np.full((H, W), 40 * k, np.uint8) for k in range(3)])
    (tmp_path / "cine.dcm").write_bytes(dicom_bytes(cine, 1, 0.1, instance=2))
    written(tmp_path / "first.dcm", seed=5, instance=1)
    written(tmp_path / "last.dcm", seed=6, instance=3)
    image_file = read_image_file(tmp_path)
    assert image_file.n_frames == 5
    np.testing.assert_array_equal(grey(image_file.frame(0)), picture(5))
    assert [int(grey(image_file.frame(k)).mean()) for k in (1, 2, 3)] == [0, 40, 80]
    np.testing.assert_array_equal(grey(image_file.frame(4)), picture(6))


def test_a_folder_has_the_known_spacing_and_its_mask_comes_back(tmp_path: Path) -> None:
    files = [written(tmp_path / "s" / f"{k}", seed=k, instance=k, spacing=0.08) for k in (1, 2)]
    image_file = read_image_file(tmp_path / "s")
    np.testing.assert_allclose(np.diag(image_file.geometry.affine), [-0.08, -0.08, 1, 1])
    assert image_file.spacing_mm == pytest.approx((0.08, 0.08))
    as_itk = read_series(files)
    np.testing.assert_allclose(np.diag(as_itk.geometry.affine), [-1, -1, 1, 1])
    mask = np.zeros(image_file.shape, np.uint8)
    mask[1, 5:9, 20:33] = 1
    write_mask(tmp_path / "m.nii.gz", mask, image_file)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", image_file), mask)


def test_several_sizes_are_named(tmp_path: Path) -> None:
    for k in (1, 2):
        written(tmp_path / f"{k}", instance=k)
    written(tmp_path / "3", instance=3, size=(32, 48))
    with pytest.raises(InputError, match="2 of 60 x 40, 1 of 48 x 32.*SOPInstanceUID"):
        read_image_file(tmp_path)


def test_what_is_no_picture_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no DICOM files"):
        read_image_file(tmp_path)
    with pytest.raises(InputError, match="got none"):
        read_series([])
    pdf = written(tmp_path / "report", SOPClassUID=PDF, Modality="OT")
    with pytest.raises(InputError, match="PDF"):
        read_image_file(tmp_path)
    with pytest.raises(InputError, match="PDF"):
        read_image_file(pdf)
    written(tmp_path / "report")
    written(tmp_path / "other", SeriesInstanceUID="1.2.3", instance=2)
    with pytest.raises(InputError, match="one series, got those of 2"):
        read_image_file(tmp_path)
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 100)
    with pytest.raises(InputError, match="junk.dcm"):
        read_image_file(tmp_path)


def test_no_pixels_truncated_and_too_large(tmp_path: Path) -> None:
    for k in (1, 2, 3):
        written(tmp_path / f"{k}", instance=k)
    with pytest.raises(InputError, match="limit"):
        read_image_file(tmp_path, Limits(total_pixels=2 * H * W))
    bare = pydicom.dcmread(tmp_path / "2")
    del bare.PixelData
    bare.save_as(tmp_path / "2")
    with pytest.raises(InputError, match="2 holds no pixels"):
        read_image_file(tmp_path)
    damaged = pydicom.dcmread(tmp_path / "3")
    damaged.PixelData = b"\0" * 8
    damaged["PixelData"].is_undefined_length = False
    damaged.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    damaged.save_as(tmp_path / "3")
    (tmp_path / "2").unlink()
    with pytest.raises(InputError, match="truncated"):
        read_image_file(tmp_path)


def test_each_frame_is_measured_with_its_own_spacing(tmp_path: Path) -> None:
    written(tmp_path / "a", instance=1, spacing=0.1)
    written(tmp_path / "b", instance=2, spacing=0.2)
    written(tmp_path / "c", instance=3, regions=[])
    image_file = read_image_file(tmp_path)
    assert image_file.spacing_mm is None and any("differ in pixel size" in w for w in image_file.warnings)
    assert [image_file.spacing_of(k) for k in range(3)] == [pytest.approx((0.1, 0.1)), pytest.approx((0.2, 0.2)), None]


def test_state_and_sum_follow_the_files(tmp_path: Path) -> None:
    files = [written(tmp_path / "s" / name, seed=k, instance=k) for name, k in (("a", 2), ("b", 1))]
    whole, state = sha256_of_image(tmp_path / "s"), state_of(tmp_path / "s")
    files[0].rename(tmp_path / "s" / "z")
    assert sha256_of_image(tmp_path / "s") == whole and state_of(tmp_path / "s") != state
    files[1].unlink()
    assert sha256_of_image(tmp_path / "s") == sha256_of_image(tmp_path / "s" / "z") != whole


# --- regions ----------------------------------------------------------------------------------------------------------

WHOLE = (0, 0, 59, 39, "tissue")
LEFT, RIGHT = (0, 4, 27, 35, "tissue"), (30, 4, 57, 35, "tissue")


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([], []),
        ([WHOLE], []),
        ([(0, 0, 60, 40, "tissue")], []),  # ends behind the last pixel: usual mistake
        ([RIGHT, LEFT], [(0, 4, 28, 36), (30, 4, 58, 36)]),  # dual B-mode
        ([LEFT, (30, 4, 57, 35, "colour")], [(0, 4, 28, 36)]),  # colour Doppler beside it
        ([LEFT, (5, 10, 20, 20, "colour")], [(0, 4, 28, 36)]),  # a colour box on it
        ([(0, 0, 59, 19, "tissue"), (0, 20, 59, 39, "spectrum")], [(0, 0, 60, 20)]),
        ([WHOLE, (0, 24, 59, 39, "spectrum")], [(0, 0, 60, 24)]),  # the spectrum is drawn over the picture
        ([LEFT, (4, 8, 20, 30, "tissue")], [(0, 4, 28, 36)]),  # one within another
        ([(0, 0, 27, 200, "tissue")], [(0, 0, 28, 40)]),
    ],
)
def test_regions_of_the_screen(tmp_path: Path, regions: list, expected: list) -> None:
    image_file = read_image_file(written(tmp_path / "a", regions=regions))
    found = [(c.start, r.start, c.stop, r.stop) for r, c in image_file.regions]
    assert found == expected and not any("B-mode" in w for w in image_file.warnings)


@pytest.mark.parametrize(
    "regions",
    [
        [(0, 0, 59, 39, "spectrum")],
        [(10, 10, 14, 14, "tissue")],
        [(500, 0, 900, 30, "tissue")],
        [(30, 9, 5, 2, "tissue")],
    ],
)
def test_unusable_regions_are_said(tmp_path: Path, regions: list) -> None:
    image_file = read_image_file(written(tmp_path / "a", regions=regions))
    assert image_file.regions == () and any("B-mode" in w for w in image_file.warnings)


def test_odd_values_in_a_region_do_not_stop_the_reading(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(written(tmp_path / "a", regions=[LEFT, RIGHT]))
    dataset.SequenceOfUltrasoundRegions[0].RegionLocationMaxX1 = [27, 28]
    dataset.SequenceOfUltrasoundRegions[1].PhysicalDeltaX = [0.01, 0.02]
    dataset.save_as(tmp_path / "a")
    image_file = read_image_file(tmp_path / "a")
    assert len(image_file.regions) == 1 and image_file.spacing_mm == pytest.approx((0.1, 0.1))
    assert any("cannot be" in w for w in image_file.warnings)


def test_regions_may_differ_from_file_to_file(tmp_path: Path) -> None:
    written(tmp_path / "a", instance=1)
    written(tmp_path / "b", instance=2, regions=[LEFT, RIGHT])
    image_file = read_image_file(tmp_path)
    assert image_file.regions == () and image_file.regions_of(0) == () and len(image_file.regions_of(1)) == 2
    written(tmp_path / "a", instance=1, regions=[LEFT, RIGHT])
    image_file = read_image_file(tmp_path)
    assert image_file.regions == image_file.regions_of(0) == image_file.regions_of(1) and len(image_file.regions) == 2
