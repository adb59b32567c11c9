"""Masks come back on the grid, at the place and with the values that they were given."""

from __future__ import annotations

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ultrarefiner_monai.core.image_file import ImageFile
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask, write_mask

H, W, T = 11, 17, 3
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(
    flips: tuple[int, int, int] = (1, 1, 1), spacing: tuple[float, float, float] = (0.1, 0.2, 0.7)
) -> np.ndarray:
    affine = np.diag([*(f * s for f, s in zip(flips, spacing, strict=True)), 1.0])
    affine[:3, 3] = [5, -60, 7.5]
    return affine


def image_files(folder: Path) -> list[ImageFile]:
    """One image file of each kind, none of them square."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (T, H, W), dtype=np.uint8)
    image = Image.fromarray(frames[0])
    for name in ("a.png", "a.jpg", "a.bmp", "one.tif"):
        image.save(folder / name, dpi=(254, 127))
    image.save(folder / "three.tif", save_all=True, append_images=[Image.fromarray(f) for f in frames[1:]])
    for name, shape in (("flat", (W, H)), ("one", (W, H, 1)), ("volume", (W, H, T)), ("side", (1, W, H))):
        values = rng.integers(0, 256, shape, dtype=np.uint8)
        nibabel.save(nibabel.Nifti1Image(values, turned((-1, 1, -1))), folder / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(frames.transpose(2, 1, 0)[:, :, None], turned()), folder / "time.nii")
    for space, sign in (("left-posterior-superior", 1), ("right-anterior-superior", -1)):
        header = {"space": space, "space directions": turned()[:3, :3] * sign, "space origin": [1.0, 2.0, 3.0]}
        nrrd.write(str(folder / f"{space}.nrrd"), frames.transpose(2, 1, 0), header)
    nrrd.write(str(folder / "plain.nrrd"), frames[0].T, {"spacings": [0.1, 0.2]})
    (folder / "a.dcm").write_bytes(dicom_bytes(frames[:1], 1, 0.1))
    (folder / "cine.dcm").write_bytes(dicom_bytes(frames, 2, 0.1))
    return [read_image_file(path) for path in sorted(folder.iterdir())]


def one_pixel(image_file: ImageFile, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros(image_file.shape, np.uint8)
    mask[tuple(rng.integers(0, n) for n in image_file.shape)] = 1
    return mask


@pytest.mark.parametrize("suffix", [".nrrd", ".seg.nrrd", ".nii.gz", ".nii", ".png"])
def test_every_kind_of_image_file_gets_its_mask_back(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    for seed, image_file in enumerate(image_files(tmp_path / "in")):
        path = tmp_path / f"mask{suffix}"
        mask = one_pixel(image_file, seed)
        if suffix == ".png" and image_file.is_volume:
            with pytest.raises(InputError, match="frames"):
                write_mask(path, mask, image_file)
            continue
        write_mask(path, mask, image_file)
        np.testing.assert_array_equal(read_mask(path, image_file), mask, err_msg=image_file.path.name)
        write_mask(path, np.zeros_like(mask), image_file)
        assert read_mask(path, image_file).sum() == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", f"mask{suffix}"]  # nothing left beside


def test_nifti_masks_have_the_shape_and_affine_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for image_file in image_files(tmp_path / "in"):
        if image_file.kind != "nifti":
            continue
        write_mask(tmp_path / "mask.nii.gz", one_pixel(image_file), image_file)
        image, mask = nibabel.load(image_file.path), nibabel.load(tmp_path / "mask.nii.gz")
        assert mask.shape == image.shape and mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-6)


def test_nrrd_masks_have_the_header_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for image_file in image_files(tmp_path / "in"):
        if image_file.kind != "nrrd":
            continue
        write_mask(tmp_path / "mask.nrrd", one_pixel(image_file), image_file)
        header, wanted = (nrrd.read_header(str(p)) for p in (tmp_path / "mask.nrrd", image_file.path))
        for key in ("sizes", "space", "space directions", "space origin", "spacings"):
            assert (key in header) == (key in wanted)
            if key in wanted and key != "space":
                np.testing.assert_array_equal(header[key], wanted[key])
        assert header.get("space") == wanted.get("space")


def test_a_picture_answers_in_x_y_order_with_lps_directions(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "a.png")
    image_file = read_image_file(tmp_path / "a.png")
    mask = np.zeros((H, W), np.uint8)
    mask[2, 9] = 1  # row 2, column 9
    for compress in (True, False):
        write_mask(tmp_path / "m.nrrd", mask, image_file, compress=compress)
        values, header = nrrd.read(str(tmp_path / "m.nrrd"))
        assert values.shape == (W, H, 1) and values.dtype == np.uint8 and values[9, 2, 0] == 1 and values.sum() == 1
        assert header["space"] == "left-posterior-superior"
        assert header["encoding"] == ("gzip" if compress else "raw")
        np.testing.assert_array_equal(header["space directions"], np.eye(3))
        np.testing.assert_array_equal(header["space origin"], [0, 0, 0])
    write_mask(tmp_path / "m.png", mask, image_file)
    stored = np.asarray(Image.open(tmp_path / "m.png"))
    assert set(np.unique(stored)) == {0, 1} and stored[2, 9] == 1


def test_physical_places_agree_between_formats(tmp_path: Path) -> None:
    """The lesion's voxel has one place in the world, whichever format carries it."""
    (tmp_path / "in").mkdir()
    for seed, image_file in enumerate(image_files(tmp_path / "in")):
        mask = one_pixel(image_file, seed)
        write_mask(tmp_path / "m.nii.gz", mask, image_file)
        write_mask(tmp_path / "m.nrrd", mask, image_file)
        image = nibabel.load(tmp_path / "m.nii.gz")
        index = [*np.argwhere(np.asarray(image.dataobj))[0], 0, 0][:4]
        index = [index[0], index[1], index[3] if len(image.shape) == 4 else index[2], 1]
        frame, row, column = np.argwhere(mask)[0]
        assert tuple(index[:3]) == image_file.geometry.to_ijk(frame, column, row)
        values, header = nrrd.read(str(tmp_path / "m.nrrd"))
        if values.ndim == 3:
            position = np.argwhere(values)[0] @ np.asarray(header["space directions"]) + header["space origin"]
            ras = position if header["space"].startswith("right") else LPS[:3, :3] @ position
            axes = min(len(image.shape), 3)  # ITK puts flat NIfTI files at depth 0, nibabel where the matrix says
            np.testing.assert_allclose(ras[:axes], (image.affine @ index)[:axes], atol=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.tuples(*[st.sampled_from((1, -1))] * 3),
    order=st.permutations([0, 1, 2]),
    back=st.tuples(*[st.booleans()] * 3),
    seed=st.integers(0, 1000),
)
def test_reoriented_labels_find_their_voxel(
    tmp_path: Path, flips: tuple[int, int, int], order: list[int], back: tuple[bool, bool, bool], seed: int
) -> None:
    """A client may save the label with swapped and reversed axes, as long as the affine says so."""
    nibabel.save(nibabel.Nifti1Image(np.zeros((W, H, T), np.uint8), turned(flips)), tmp_path / "image.nii")
    image_file = read_image_file(tmp_path / "image.nii")
    mask = one_pixel(image_file, seed)
    write_mask(tmp_path / "label.nii", mask, image_file)
    label = nibabel.load(tmp_path / "label.nii")
    turn = np.array([[axis, -1 if reverse else 1] for axis, reverse in zip(order, back, strict=True)])
    nibabel.save(
        label.as_reoriented(np.array([[order.index(a), turn[order.index(a), 1]] for a in range(3)])), tmp_path / "t.nii"
    )
    np.testing.assert_array_equal(read_mask(tmp_path / "t.nii", image_file), mask)


def test_cropped_layers_of_a_segmentation(tmp_path: Path) -> None:
    """3D Slicer stores a .seg.nrrd on the smallest extent, overlapping segments as layers."""
    nibabel.save(nibabel.Nifti1Image(np.zeros((W, H, T), np.uint8), turned((-1, -1, 1))), tmp_path / "image.nii")
    image_file = read_image_file(tmp_path / "image.nii")
    local = LPS @ image_file.geometry.affine
    layers = np.zeros((2, 4, 5, 1), np.uint8)
    layers[0, 1, 2, 0], layers[1, 3, 4, 0] = 1, 3
    header = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": np.vstack([[np.nan] * 3, local[:3, :3].T]),
        "space origin": (local @ [6, 3, 2, 1])[:3],
    }
    nrrd.write(str(tmp_path / "a.seg.nrrd"), layers, header)
    mask = read_mask(tmp_path / "a.seg.nrrd", image_file)
    np.testing.assert_array_equal(np.argwhere(mask), [[2, 5, 7], [2, 7, 9]])


def test_a_segmentation_without_a_voxel_is_an_empty_label(tmp_path: Path) -> None:
    """3D Slicer writes it as a single voxel anywhere; a single marked one is a label of another size."""
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "a.png")
    image_file = read_image_file(tmp_path / "a.png")
    space = {"space": "left-posterior-superior", "space directions": np.eye(3), "space origin": [99.5, 99.5, 99.5]}
    nrrd.write(str(tmp_path / "none.seg.nrrd"), np.zeros((1, 1, 1), np.uint8), space)
    assert read_mask(tmp_path / "none.seg.nrrd", image_file).shape == image_file.shape
    assert not read_mask(tmp_path / "none.seg.nrrd", image_file).any()
    nrrd.write(str(tmp_path / "one.seg.nrrd"), np.ones((1, 1, 1), np.uint8), space)
    with pytest.raises(InputError, match="1 x 1 x 1"):
        read_mask(tmp_path / "one.seg.nrrd", image_file)


def test_labels_of_pictures(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "a.png")
    image_file = read_image_file(tmp_path / "a.png")
    mask = np.zeros((H, W), np.uint8)
    mask[2:5, 9:14] = 1
    Image.fromarray(mask).save(tmp_path / "one.png")
    Image.fromarray(mask * 255).save(tmp_path / "full.png")
    Image.fromarray(mask * 255).save(tmp_path / "full.bmp")
    Image.fromarray(mask * 7).save(tmp_path / "seven.tif")
    Image.fromarray(mask.astype(bool)).save(tmp_path / "bits.png")
    Image.fromarray(np.dstack([mask * 0, mask * 255, mask * 0])).save(tmp_path / "green.png")
    coarse = np.kron(mask, np.ones((8, 8), np.uint8))  # JPEG rings around edges
    Image.fromarray(coarse * 255).save(tmp_path / "lossy.jpg", quality=80)
    for name in ("one.png", "full.png", "full.bmp", "seven.tif", "bits.png", "green.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, image_file)[0], mask, err_msg=name)
    np.testing.assert_array_equal(read_mask(tmp_path / "lossy.jpg")[0], coarse)


def test_volumes_as_clients_save_them(tmp_path: Path) -> None:
    """(W, H) and (W, H, 1), with the image's position, with none, with a float type."""
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "a.png")
    image_file = read_image_file(tmp_path / "a.png")
    grid = np.zeros((W, H, 1))
    grid[9, 2] = 2
    for affine in (LPS, np.eye(4), np.diag([0.3, 0.3, 1, 1])):
        for values in (grid, grid[..., 0]):
            nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), tmp_path / "l.nii.gz")
            assert np.argwhere(read_mask(tmp_path / "l.nii.gz", image_file)).tolist() == [[0, 2, 9]]
    assert np.argwhere(read_mask(tmp_path / "l.nii.gz")).tolist() == [[0, 2, 9]]


def test_labels_of_another_size_are_refused_with_both_sizes(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "a.png")
    image_file = read_image_file(tmp_path / "a.png")
    Image.fromarray(np.ones((W, H), np.uint8)).save(tmp_path / "turned.png")
    with pytest.raises(InputError, match=rf"{H} x {W}.*{W} x {H}"):
        read_mask(tmp_path / "turned.png", image_file)
    nibabel.save(nibabel.Nifti1Image(np.ones((H, W, 1), np.uint8), np.eye(4)), tmp_path / "turned.nii")
    with pytest.raises(InputError, match=rf"{H} x {W} x 1.*{W} x {H} x 1"):
        read_mask(tmp_path / "turned.nii", image_file)


def test_bad_masks_and_labels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "a.png")
    image_file = read_image_file(tmp_path / "a.png")
    with pytest.raises(ValueError, match="0 and 1"):
        write_mask(tmp_path / "m.nrrd", np.full((H, W), 255, np.uint8), image_file)
    with pytest.raises(ValueError, match="0 and 1"):
        write_mask(tmp_path / "m.nrrd", np.full((H, W), 0.5), image_file)
    with pytest.raises(ValueError, match="mask is"):
        write_mask(tmp_path / "m.nrrd", np.zeros((W, H), np.uint8), image_file)
    with pytest.raises(InputError, match=".jpg"):
        write_mask(tmp_path / "m.jpg", np.zeros((H, W), np.uint8), image_file)
    assert not list(tmp_path.glob("*m.*"))
    for suffix in (".png", ".nii.gz", ".nrrd"):
        path = tmp_path / f"l{suffix}"
        noise = (np.random.default_rng(0).random((H, W)) < 0.5).astype(np.uint8)
        write_mask(path, noise, image_file)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="l."):
            read_mask(path, image_file)
    (tmp_path / "l.doc").write_text("no")
    with pytest.raises(InputError, match="expected a label"):
        read_mask(tmp_path / "l.doc")


def test_same_mask_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image_file = image_files(tmp_path / "in")[0]
    for suffix in (".nrrd", ".nii.gz"):
        for name in ("x", "y"):
            write_mask(tmp_path / f"{name}{suffix}", one_pixel(image_file), image_file)
        assert (tmp_path / f"x{suffix}").read_bytes() == (tmp_path / f"y{suffix}").read_bytes()


def test_itk_lays_mask_over_image(tmp_path: Path) -> None:
    """The reader behind 3D Slicer sees image and answer on one grid."""
    sitk = pytest.importorskip("SimpleITK")
    (tmp_path / "in").mkdir()
    for image_file in image_files(tmp_path / "in"):
        if image_file.path.name in ("side.nii.gz", "time.nii"):
            continue  # 4-D grids stay 4-D in ITK
        image = sitk.ReadImage(str(image_file.path))
        for suffix in (".nrrd", ".nii.gz"):
            write_mask(tmp_path / f"m{suffix}", one_pixel(image_file), image_file)
            mask = sitk.ReadImage(str(tmp_path / f"m{suffix}"))
            dims = min(image.GetDimension(), mask.GetDimension())
            assert image.GetSize()[:dims] == mask.GetSize()[:dims], (image_file.path.name, suffix)
            np.testing.assert_allclose(image.GetSpacing()[:dims], mask.GetSpacing()[:dims], rtol=1e-5)
            np.testing.assert_allclose(image.GetOrigin()[:dims], mask.GetOrigin()[:dims], atol=1e-5)
            turn, wanted = (np.reshape(x.GetDirection(), (x.GetDimension(),) * 2) for x in (mask, image))
            np.testing.assert_allclose(turn[:dims, :dims], wanted[:dims, :dims], atol=1e-6)


@pytest.mark.parametrize("matrix", [np.full((3, 4), np.nan), np.zeros((3, 4)), np.diag([0.1, 0.2, 0.0, 1.0])[:3]])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_headers_whose_position_makes_no_sense(tmp_path: Path, matrix: np.ndarray, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7), np.uint8)
    header = nibabel.Nifti1Header()
    header.set_data_shape(pixels.shape)
    header.set_data_dtype(np.uint8)
    header["sform_code"], header["magic"], header["vox_offset"] = 1, b"n+1", 352
    header["srow_x"], header["srow_y"], header["srow_z"] = matrix
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + b"\0" * 4 + pixels.tobytes("F"))
    image_file = read_image_file(path)
    mask = np.zeros(image_file.shape, np.uint8)
    mask[0, 2:5, 3] = 1
    write_mask(tmp_path / f"m{suffix}", mask, image_file)
    np.testing.assert_array_equal(read_mask(tmp_path / f"m{suffix}", image_file), mask)
    path.write_bytes(header.binaryblock + b"\0" * 4 + (pixels // 128).tobytes("F"))
    # Such a label is taken voxel by voxel.
    np.testing.assert_array_equal(read_mask(path, image_file)[0].T, pixels // 128)
    if matrix[0, 0] > 0:  # only the third axis has no length
        assert image_file.spacing_mm == pytest.approx((0.2, 0.1)) and not image_file.warnings
    else:
        assert image_file.spacing_mm is None and "no sense" in image_file.warnings[0]
