"""ITK is the judge: 3D Slicer shows image and reply as ITK reads them, and sends labels back on ITK's grid."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from itk_files import AXES, EVERY_SPACING, FILES, PLAIN, STORAGE, H, T, W, dicom, nifti, nrrd_file, png
from pydicom._uid_dict import UID_dictionary

from ultrarefiner_monai.core.image_file import RAS_FROM_LPS, ImageFile
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.mask_files import make_plain
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask, write_mask
from ultrarefiner_monai.imaging.writers import lost_position, write_frames

sitk = pytest.importorskip("SimpleITK")
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def in_space(image: Any) -> Any:
    """Three axes, as 3D Slicer reads every file; of colours the first."""
    if image.GetNumberOfComponentsPerPixel() > 1:
        image = sitk.VectorIndexSelectionCast(image, 0)
    return sitk.JoinSeries(image, 0.0, 1.0) if image.GetDimension() == 2 else image


def lesion(image: Any) -> Any:
    """1 where ITK sees the lesion, on its grid."""
    top = float(sitk.GetArrayViewFromImage(image).max())
    return image > top / 2


def dice(a: Any, b: Any) -> float:
    x, y = (sitk.GetArrayFromImage(image) > 0 for image in (a, b))
    return 2 * float((x & y).sum()) / float(x.sum() + y.sum())


def overlaid(reply: Any, image: Any) -> Any:
    """The reply as it is shown over the image: by the two files' own positions."""
    return sitk.Resample(reply, image, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor, 0)


def outlined(image_file: ImageFile) -> np.ndarray:
    frames = image_file.frames
    return (frames > frames.max() / 2).astype(np.uint8)


@pytest.fixture(params=sorted(FILES))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ImageFile, Any]:
    """(the image file, ITK's image) of each file."""
    suffix, write = FILES[request.param]
    path = tmp_path / f"image{suffix}"
    write(path)
    return read_image_file(path), in_space(sitk.ReadImage(str(path)))


def labels_of_clients(truth: Any) -> list[tuple[str, Any]]:
    """(file name, label) as clients save it: on the image's grid, and cropped as 3D Slicer's segmentations are."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(truth)
    box = shape.GetBoundingBox(1)
    cropped = sitk.RegionOfInterest(truth, box[3:], box[:3])
    return [("label.nrrd", truth), ("label.nii.gz", truth), ("cut.seg.nrrd", cropped)]


def test_a_reply_lies_on_its_image_and_a_label_comes_back(
    opened: tuple[ImageFile, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image_file, image = opened
    truth, mask = lesion(image), outlined(image_file)
    assert 100 < mask.sum() < mask.size / 4
    for suffix in (".nrrd", ".seg.nrrd", ".nii.gz"):
        write_mask(tmp_path / f"reply{suffix}", mask, image_file)
        reply = in_space(sitk.ReadImage(str(tmp_path / f"reply{suffix}")))
        assert dice(overlaid(reply, image), truth) == 1, suffix
        np.testing.assert_array_equal(read_mask(tmp_path / f"reply{suffix}", image_file), mask)
    caplog.clear()
    for name, label in labels_of_clients(truth):
        sitk.WriteImage(label, str(tmp_path / name))
        np.testing.assert_array_equal(read_mask(tmp_path / name, image_file), mask, err_msg=name)
    assert not [record for record in caplog.records if "voxel by voxel" in record.message or "moved" in record.message]


def test_a_click_is_on_the_voxel_that_the_client_shows(opened: tuple[ImageFile, Any]) -> None:
    image_file, image = opened
    seen = sitk.GetArrayFromImage(lesion(image)).T  # [i, j, k]
    assert seen.shape == image_file.geometry.grid
    ours = outlined(image_file)
    for ijk in np.random.default_rng(0).integers(0, seen.shape, (60, 3)):
        frame, x, y = image_file.geometry.to_frame_xy(ijk)
        assert ours[frame, int(y), int(x)] == seen[tuple(ijk)]
        place = image.TransformIndexToPhysicalPoint([int(n) for n in ijk])
        np.testing.assert_allclose(
            (RAS_FROM_LPS @ image_file.geometry.affine @ [*ijk, 1])[:3], place, rtol=1e-4, atol=1e-4
        )


def test_sizes_follow_the_frame_or_are_pixels_with_the_reason(opened: tuple[ImageFile, Any]) -> None:
    image_file, image = opened
    if image_file.kind == "dicom":  # measured by the ultrasound regions, which ITK does not know
        return
    column, row, _ = image_file.geometry.axes
    shown = (image.GetSpacing()[row], image.GetSpacing()[column])
    if image_file.spacing_mm is not None:
        np.testing.assert_allclose(image_file.spacing_mm, shown, rtol=1e-5)
    elif not np.allclose(shown, 1) and not np.allclose(shown, 25.4 / 72):  # 72 dpi is what every JPEG says
        assert any("in pixels" in text for text in image_file.warnings)


# Every storage class of images but that of optical tomography of the eye, which GDCM turns by rules of its own.
CLASSES = sorted(u[len(STORAGE) :] for u, v in UID_dictionary.items() if u.startswith(STORAGE) and "Image" in v[0])
CLASSES.remove("77.1.5.4")


@pytest.mark.parametrize("uid", CLASSES)
def test_a_file_of_any_class_lies_where_itk_has_it(uid: str, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    for count, groups in ((1, None), (T, None), (T, {"PixelSpacing": [0.7, 0.8], "SpacingBetweenSlices": 2})):
        dicom(uid, count, groups, **EVERY_SPACING, **AXES)(path)
        try:
            image, image_file = in_space(sitk.ReadImage(str(path))), read_image_file(path)
        except (RuntimeError, InputError):  # one of the two does not read it
            continue
        for ijk in ((0, 0, 0), (W - 1, 0, 0), (0, H - 1, 0), (W - 1, H - 1, count - 1)):
            place = image.TransformIndexToPhysicalPoint(list(ijk))
            np.testing.assert_allclose((RAS_FROM_LPS @ image_file.geometry.affine @ [*ijk, 1])[:3], place, atol=1e-4)


def test_a_png_reply_has_the_size_of_its_picture(tmp_path: Path) -> None:
    for name in ("png", "png scale", "png 16", "jpeg inch", "tiff cm", "bmp", "us", "nifti no codes"):
        suffix, write = FILES[name]
        write(tmp_path / f"image{suffix}")
        image_file = read_image_file(tmp_path / f"image{suffix}")
        image = in_space(sitk.ReadImage(str(image_file.path)))
        write_mask(tmp_path / "reply.png", outlined(image_file), image_file)
        reply = in_space(sitk.ReadImage(str(tmp_path / "reply.png")))
        assert dice(overlaid(reply, image), lesion(image)) == 1, name
        np.testing.assert_array_equal(read_mask(tmp_path / "reply.png", image_file), outlined(image_file))


def test_a_reply_that_cannot_lie_on_its_image_says_so(opened: tuple[ImageFile, Any], tmp_path: Path) -> None:
    """And one that says nothing lies on it."""
    image_file, image = opened
    mask = outlined(image_file)
    for suffix in (".nrrd", ".nii.gz", ".nii") if image_file.is_volume else (".nrrd", ".nii.gz", ".nii", ".png"):
        write_mask(tmp_path / f"reply{suffix}", mask, image_file)
        reply = in_space(sitk.ReadImage(str(tmp_path / f"reply{suffix}")))
        lies = dice(overlaid(reply, image), lesion(image)) == 1
        assert lies == (lost_position(suffix, image_file) == ""), suffix


def test_axes_that_are_not_at_right_angles_are_no_nifti(tmp_path: Path) -> None:
    skew = "space directions: (0.1,0,0) (0.05,0.2,0) (0,0,0.7)\nspace origin: (5,6,7)"
    nrrd_file(skew)(tmp_path / "image.nrrd")
    image_file = read_image_file(tmp_path / "image.nrrd")
    image = in_space(sitk.ReadImage(str(image_file.path)))
    write_mask(tmp_path / "reply.nrrd", outlined(image_file), image_file)
    reply = in_space(sitk.ReadImage(str(tmp_path / "reply.nrrd")))
    assert dice(overlaid(reply, image), lesion(image)) == 1 and lost_position(".nrrd", image_file) == ""
    assert "right angles" in lost_position(".nii.gz", image_file)


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("nifti") and "vector" not in n])
def test_a_label_in_another_programs_frame_is_taken_voxel_by_voxel(name: str, tmp_path: Path) -> None:
    """A tool that reads the image with nibabel saves its label with nibabel's position, not with ITK's."""
    FILES[name][1](tmp_path / "image.nii")
    image_file = read_image_file(tmp_path / "image.nii")
    image: Any = nibabel.load(tmp_path / "image.nii")
    mask = outlined(image_file)
    values = image_file.geometry.to_grid(mask).reshape(image.shape)
    nibabel.save(nibabel.Nifti1Image(values, image.affine), tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(read_mask(tmp_path / "label.nii.gz", image_file), mask)
    nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(read_mask(tmp_path / "label.nii.gz", image_file), mask)


def test_where_a_label_of_the_images_size_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Identity says nothing; whole voxels are what the header says; half a voxel cannot be meant."""
    nifti("xy1", sform=PLAIN, codes=(0, 1))(tmp_path / "image.nii")
    image_file = read_image_file(tmp_path / "image.nii")
    image = sitk.ReadImage(str(image_file.path))
    truth, mask = lesion(image), outlined(image_file)

    def taken(spacing: float = 1.0, voxels: float = 0.0, plain: bool = False) -> np.ndarray:
        label = sitk.Image(truth)
        if plain:
            label = sitk.GetImageFromArray(sitk.GetArrayFromImage(truth))
        else:
            label.SetSpacing([spacing * s for s in truth.GetSpacing()])
            label.SetOrigin(truth.TransformContinuousIndexToPhysicalPoint([voxels, 0.0, 0.0]))
        sitk.WriteImage(label, str(tmp_path / "label.nrrd"))
        caplog.clear()
        return read_mask(tmp_path / "label.nrrd", image_file)

    np.testing.assert_array_equal(taken(plain=True), mask)
    assert "voxel by voxel" in caplog.text
    np.testing.assert_array_equal(taken(voxels=2), np.roll(mask, 2, 2))
    assert "moved" in caplog.text
    np.testing.assert_array_equal(taken(voxels=0.1), mask)
    assert not caplog.text
    for wrong in ({"voxels": 0.5}, {"spacing": 1.5}, {"voxels": 2.0 * W}):
        np.testing.assert_array_equal(taken(**wrong), mask)
        assert "voxel by voxel" in caplog.text


def test_a_label_larger_than_its_image_is_refused(tmp_path: Path) -> None:
    png()(tmp_path / "image.png")
    image_file = read_image_file(tmp_path / "image.png")
    truth = lesion(in_space(sitk.ReadImage(str(image_file.path))))
    for axis in range(3):
        more = [0, 0, 0]
        more[axis] = 1
        sitk.WriteImage(sitk.ConstantPad(truth, [0, 0, 0], more), str(tmp_path / "label.nrrd"))
        with pytest.raises(InputError, match="its image"):
            read_mask(tmp_path / "label.nrrd", image_file)


def test_what_the_pacs_client_is_handed_lies_where_the_image_file_says(tmp_path: Path) -> None:
    from ultrarefiner_monai.dicom.series import read_series

    for name in ("us", "us cine", "class 6.1 x 3", "captures"):
        FILES[name][1](tmp_path / "a.dcm")
        image_file = read_series([tmp_path / "a.dcm"], region_spacing=True)
        with (tmp_path / "image.nii.gz").open("wb") as file:
            write_frames(file, image_file)
        image = in_space(sitk.ReadImage(str(tmp_path / "image.nii.gz")))
        write_mask(tmp_path / "reply.nrrd", outlined(image_file), image_file)
        assert dice(overlaid(sitk.ReadImage(str(tmp_path / "reply.nrrd")), image), lesion(image)) == 1
        sitk.WriteImage(lesion(image), str(tmp_path / "label.nii.gz"))
        np.testing.assert_array_equal(read_mask(tmp_path / "label.nii.gz", image_file), outlined(image_file))


@pytest.mark.parametrize(
    "kind", ["other frame", "identity", "NIfTI-2", "packed .nii", "bzip2", "half a voxel", "shifted"]
)
def test_a_stored_label_is_shown_on_its_image(kind: str, tmp_path: Path) -> None:
    """It is handed out again: what was taken voxel by voxel, or is in a format that ITK does not read, is written anew."""
    nifti("xyt", codes=(0, 0))(tmp_path / "image.nii")
    image_file = read_image_file(tmp_path / "image.nii")
    image = in_space(sitk.ReadImage(str(image_file.path)))
    mask = outlined(image_file)
    label, values = tmp_path / "label.nii.gz", np.ascontiguousarray(image_file.geometry.to_grid(mask))
    itks = image_file.geometry.affine
    away = itks.copy()
    away[:3, 3] += itks[:3, 0] * {"half a voxel": 0.5, "shifted": 2}.get(kind, 0)
    if kind == "other frame":
        nibabel.save(nibabel.Nifti1Image(values, nibabel.load(image_file.path).affine), label)
    elif kind == "NIfTI-2":
        nibabel.save(nibabel.Nifti2Image(values, itks), label)
    elif kind == "packed .nii":
        label = tmp_path / "label.nii"
        label.write_bytes(gzip.compress(nibabel.Nifti1Image(values, itks).to_bytes()))
    elif kind == "bzip2":
        label = tmp_path / "label.nrrd"
        place = RAS_FROM_LPS @ itks
        fields = {"space": "left-posterior-superior", "space directions": place[:3, :3].T, "space origin": place[:3, 3]}
        nrrd.write(str(label), values, {**fields, "encoding": "bzip2"})
    else:
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if kind == "identity" else away), label)
    taken, before = read_mask(label, image_file), label.read_bytes()
    make_plain(label, taken, image_file)
    shown = in_space(sitk.ReadImage(str(label)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(overlaid(shown, image)), taken)
    np.testing.assert_array_equal(read_mask(label, image_file), taken)
    assert (label.read_bytes() == before) == (kind == "shifted")  # that one is where its header says


def test_a_stored_label_that_lies_on_its_image_stays_as_it_came(opened: tuple[ImageFile, Any], tmp_path: Path) -> None:
    image_file, image = opened
    truth, mask = lesion(image), outlined(image_file)
    for name, label in labels_of_clients(truth):
        sitk.WriteImage(label, str(tmp_path / name))
        before = (tmp_path / name).read_bytes()
        make_plain(tmp_path / name, mask, image_file)
        assert (tmp_path / name).read_bytes() == before, name
