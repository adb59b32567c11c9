"""Every image format: what is read, where it lies, and that damaged files end in a plain refusal."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from ultrarefiner_monai.core.image_file import frame_axes, luminance, to_unit
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import Limits, read_image_file

H, W = 20, 34


def picture(seed: int = 0, height: int = H, width: int = W) -> np.ndarray:
    """(H, W) uint8 without any symmetry, spanning 0 to 255."""
    rng = np.random.default_rng(seed)
    image = rng.integers(20, 90, (height, width))
    image[2:7, 3:20] += 120
    image[0, 0], image[-1, -1] = 255, 0
    return image.astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.TIFF", "a.bmp", "a.Bmp"])
def test_lossless_pictures_keep_every_pixel(tmp_path: Path, name: str) -> None:
    image_file = read_image_file(saved(tmp_path / name, Image.fromarray(picture())))
    assert image_file.shape == (1, H, W) and not image_file.is_volume and image_file.spacing_mm is None
    assert image_file.frame().dtype == np.float32
    np.testing.assert_array_equal(np.rint(image_file.frame() * 255), picture())


def test_jpeg_is_close_and_ignores_exif_orientation(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, W), (H, 1)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    image_file = read_image_file(saved(tmp_path / "a.JPEG", Image.fromarray(smooth), quality=95, exif=exif))
    assert (image_file.height, image_file.width) == (H, W)
    assert np.abs(image_file.frame() * 255 - smooth).max() < 6
    assert any("EXIF" in w for w in image_file.warnings)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "PA", "CMYK"])
def test_grey_pictures_in_colour_modes_have_the_grey_values(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(picture())
    image = grey.convert("P") if mode == "P" else grey.convert("RGBA" if mode == "PA" else mode)
    name = "a.tif" if mode in ("CMYK", "PA") else "a.png"
    image_file = read_image_file(saved(tmp_path / name, image.convert(mode) if mode != "PA" else image))
    assert np.abs(image_file.frame() * 255 - picture()).max() <= 1


def test_alpha_does_not_hide_pixels(tmp_path: Path) -> None:
    rgba = np.dstack([picture()] * 3 + [np.zeros((H, W), np.uint8)])
    image_file = read_image_file(saved(tmp_path / "a.png", Image.fromarray(rgba)))
    np.testing.assert_array_equal(np.rint(image_file.frame() * 255), picture())


def test_colours_become_the_luminance_that_training_uses(tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (H, W, 3), dtype=np.uint8)
    image_file = read_image_file(saved(tmp_path / "a.png", Image.fromarray(rgb)))
    expected = np.asarray(Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(np.rint(image_file.frame() * 255), expected)
    np.testing.assert_array_equal(luminance(rgb), expected)


def test_sixteen_and_one_bit(tmp_path: Path) -> None:
    wide = picture().astype(np.uint16) * 257
    for name in ("a.png", "a.tif"):
        image_file = read_image_file(saved(tmp_path / name, Image.fromarray(wide)))
        np.testing.assert_allclose(image_file.frame(), wide / 65535, atol=1e-6)
    bits = picture() > 100
    image_file = read_image_file(saved(tmp_path / "b.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(image_file.frame(), bits)


def test_tiff_pages_are_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(picture(k)) for k in range(3)]
    odd = Image.fromarray(picture(9, 5, 7))
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=[*pages[1:], odd], compression="tiff_lzw")
    image_file = read_image_file(tmp_path / "a.tif")
    assert image_file.shape == (3, H, W) and image_file.is_volume and image_file.geometry.grid == (W, H, 3)
    assert any("another size" in w for w in image_file.warnings)
    np.testing.assert_array_equal(np.rint(image_file.frame(2) * 255), picture(2))
    with pytest.raises(InputError, match="frames 0 to 2"):
        image_file.frame(3)


def test_print_density_places_the_picture_but_measures_nothing(tmp_path: Path) -> None:
    image = Image.fromarray(picture())
    for name, expected in (("a.jpg", (0.1, 0.2)), ("a.tif", (0.1, 0.2)), ("a.png", (1, 1)), ("a.bmp", (1, 1))):
        image_file = read_image_file(saved(tmp_path / name, image, dpi=(254, 127)))
        assert image_file.spacing_mm is None
        np.testing.assert_allclose(np.diag(image_file.geometry.affine)[:2], [-expected[0], -expected[1]])


# --- volumes ----------------------------------------------------------------------------------------------------------


def oblique() -> np.ndarray:
    """A right-handed or left-handed affine with anisotropic spacing, flips and a turn by 30 degrees."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, -1]]) @ np.diag([-0.08, 0.11, 0.5])
    affine[:3, 3] = [12.5, -7, 33]
    return affine


@pytest.mark.parametrize("shape", [(W, H), (W, H, 1), (W, H, 3), (W, H, 1, 3), (W, H, 1, 1), (W, H, 3, 1, 1)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_nifti_keeps_axes_and_spacing(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, oblique()), tmp_path / f"a{suffix.lower()}")
    path = (tmp_path / f"a{suffix.lower()}").rename(tmp_path / f"b{suffix}")
    image_file = read_image_file(path)
    frames = 3 if 3 in shape else 1
    assert image_file.shape == (frames, H, W) and image_file.geometry.shape == shape
    np.testing.assert_allclose(image_file.spacing_mm, (0.11, 0.08), rtol=1e-5)
    last = values.reshape(W, H, frames)[..., -1].T
    np.testing.assert_array_equal(np.rint(image_file.frame(frames - 1) * 255), last)


@pytest.mark.parametrize("shape", [(1, W, H), (W, 1, H), (W, H, 1)])
def test_single_slices_in_any_plane(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, oblique()), tmp_path / "a.nii")
    image_file = read_image_file(tmp_path / "a.nii")
    assert image_file.shape == (1, H, W)
    np.testing.assert_array_equal(np.rint(image_file.frame() * 255), values.reshape(W, H).T)


def test_clicks_and_voxels_agree() -> None:
    for grid in ((W, H, 3), (1, W, H), (W, 1, H)):
        from ultrarefiner_monai.core.image_file import Geometry

        geometry = Geometry(grid, np.eye(4), frame_axes(grid))
        values = np.random.default_rng(0).integers(0, 256, grid)
        frames = geometry.to_frames(values)
        np.testing.assert_array_equal(geometry.to_grid(frames), values)
        ijk = tuple(n - 1 for n in grid)
        frame, x, y = geometry.to_frame_xy(ijk)
        assert frames[frame, int(y), int(x)] == values[ijk]
        assert geometry.to_ijk(frame, x, y) == ijk
    assert Geometry((W, H, 3), np.eye(4)).to_frame_xy([5, 6]) == (0, 5, 6)


def test_colour_nifti(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (W, H, 1, 3), dtype=np.uint8)
    record = rgb.copy().view([("R", "u1"), ("G", "u1"), ("B", "u1")]).reshape(W, H, 1)
    nibabel.save(nibabel.Nifti1Image(record, oblique()), tmp_path / "record.nii")
    nibabel.save(nibabel.Nifti1Image(rgb.reshape(W, H, 1, 1, 3), oblique()), tmp_path / "vector.nii")
    for name in ("record.nii", "vector.nii"):
        image_file = read_image_file(tmp_path / name)
        assert image_file.shape == (1, H, W) and image_file.geometry.shape == (W, H, 1)
        np.testing.assert_array_equal(np.rint(image_file.frame() * 255), luminance(rgb[:, :, 0]).T)


def test_nan_and_missing_spacing_are_told(tmp_path: Path) -> None:
    values = picture().T.astype(np.float32)
    values[0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    image_file = read_image_file(tmp_path / "a.nii")
    assert image_file.spacing_mm is None and image_file.frame()[0, 0] == 0
    assert any("not finite" in w for w in image_file.warnings) and any("1 mm" in w for w in image_file.warnings)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_nrrd_axes_encodings_and_colour(tmp_path: Path, encoding: str) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (W, H, 2)).astype(">u2")
    values[0, 0, 0] = 4095
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([0.2, 0.3, 1.0]),
        "space origin": [1, 2, 3],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), values, header | {"encoding": encoding, "endian": "big"})
    image_file = read_image_file(tmp_path / "a.nrrd")
    np.testing.assert_allclose(image_file.spacing_mm, (0.3, 0.2))
    np.testing.assert_allclose(image_file.frames, values.transpose(2, 1, 0) / 4095, atol=1e-6)
    np.testing.assert_allclose(image_file.geometry.affine @ [1, 0, 0, 1], [-1.2, -2, 3, 1])

    rgb = np.random.default_rng(1).integers(0, 256, (3, W, H, 1), dtype=np.uint8)
    directions = np.vstack([[np.nan] * 3, np.diag([0.2, 0.3, 1.0])])
    colour = {"kinds": ["RGB-color", "domain", "domain", "domain"], "space directions": directions}
    nrrd.write(str(tmp_path / "c.nrrd"), rgb, header | colour)
    image_file = read_image_file(tmp_path / "c.nrrd")
    assert image_file.geometry.shape == (W, H, 1)
    np.testing.assert_array_equal(np.rint(image_file.frame() * 255), luminance(np.moveaxis(rgb, 0, -1))[..., 0].T)


def test_nrrd_never_follows_another_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(12)))
    (tmp_path / "a.nrrd").write_text(
        f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 4 3\nencoding: raw\ndata file: {tmp_path / 'secret'}\n\n"
    )
    with pytest.raises(InputError, match="another file"):
        read_image_file(tmp_path / "a.nrrd")


def test_to_unit_rules() -> None:
    np.testing.assert_allclose(to_unit(np.array([0, 255], np.uint16)), [0, 1])
    np.testing.assert_allclose(to_unit(np.array([0, 4000], np.uint16)), [0, 4000 / 4095], rtol=1e-6)
    np.testing.assert_allclose(to_unit(np.array([0.0, 0.5])), [0, 0.5])
    np.testing.assert_allclose(to_unit(np.array([-10, 10], np.int16)), [0, 1])
    np.testing.assert_allclose(to_unit(np.array([7.5, 7.5e6])), [0, 1])
    np.testing.assert_array_equal(to_unit(np.zeros(3, np.int32)), 0)


# --- DICOM ------------------------------------------------------------------------------------------------------------


def changed(tmp_path: Path, frames: np.ndarray, **values: object) -> Path:
    """An uncompressed ultrasound file with other elements; None removes one."""
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(frames, 1, 0.1)))
    dataset.PixelData = frames.tobytes() + b"\0" * (frames.size % 2)
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
            if dataset[keyword].VR == "US or SS":
                dataset[keyword].VR = "US"
    dataset.save_as(tmp_path / "x.dcm")
    return tmp_path / "x.dcm"


def test_rle_frame_and_its_region_spacing(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(picture()[None], 1, 0.08))
    image_file = read_image_file(tmp_path / "a.dcm")
    assert image_file.spacing_mm == pytest.approx((0.08, 0.08)) and image_file.patient == "PHANTOM-01"
    np.testing.assert_array_equal(np.rint(image_file.frame() * 255), picture())
    np.testing.assert_allclose(image_file.geometry.affine, np.diag([-1, -1, 1, 1]))  # what ITK makes of it


def test_jpeg_cine_frame_by_frame(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 200, W), (H, 1))
    frames = np.stack([ramp + 10 * k for k in range(5)]).astype(np.uint8)
    (tmp_path / "cine").write_bytes(dicom_bytes(frames, 2, 0.08))  # found without an extension
    image_file = read_image_file(tmp_path / "cine")
    assert image_file.shape == (5, H, W) and image_file.geometry.grid == (W, H, 5)
    assert np.abs(image_file.frames * 255 - frames).max() < 5


def test_rle_cine(tmp_path: Path) -> None:
    frames = np.stack([picture(k) for k in range(4)])
    dataset = pydicom.dcmread(changed(tmp_path, frames[:1], NumberOfFrames=4, PixelData=frames.tobytes()))
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(np.rint(read_image_file(tmp_path / "a.dcm").frames * 255), frames)


def test_native_cine_and_monochrome1(tmp_path: Path) -> None:
    frames = np.stack([picture(k, 5, 7) for k in range(3)])  # frames of an odd number of bytes
    path = changed(tmp_path, frames[:1], NumberOfFrames=3, PixelData=frames.tobytes() + b"\0")
    np.testing.assert_array_equal(np.rint(read_image_file(path).frames * 255), frames)
    path = changed(tmp_path, picture()[None], PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(np.rint(read_image_file(path).frame() * 255), 255 - picture())


def test_dicom_without_a_preamble(tmp_path: Path) -> None:
    content = changed(tmp_path, picture()[None]).read_bytes()
    (tmp_path / "bare.dcm").write_bytes(content[132:])
    np.testing.assert_array_equal(np.rint(read_image_file(tmp_path / "bare.dcm").frame() * 255), picture())


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colours(tmp_path: Path, bits: int) -> None:
    table = np.arange(256)[::-1].copy()
    values: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        values[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        data = table.astype("u1") if bits == 8 else (table * 257).astype("<u2")
        values[f"{colour}PaletteColorLookupTableData"] = data.tobytes()
    image_file = read_image_file(changed(tmp_path, picture()[None], **values))
    np.testing.assert_array_equal(np.rint(image_file.frame() * 255), 255 - picture())


def test_twelve_bits_with_a_window(tmp_path: Path) -> None:
    wide = picture().astype("<u2") * 16
    deep = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelData": wide.tobytes()}
    path = changed(tmp_path, picture()[None], **deep)
    np.testing.assert_allclose(read_image_file(path).frame(), wide / 4095, atol=1e-6)
    image_file = read_image_file(changed(tmp_path, picture()[None], **deep, WindowCenter=1000, WindowWidth=1000))
    np.testing.assert_allclose(image_file.frame(), np.clip((wide / 1000.0) - 0.5, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cr.dcm",  # JPEG in RGB
        "SC_rgb_dcmtk_+eb+cy+np.dcm",  # JPEG, YBR_FULL_422
        "SC_rgb_jpeg_dcmtk.dcm",  # JPEG, YBR_FULL
        "SC_rgb_jpeg_lossy_gdcm.dcm",  # JPEG, header says RGB, stream is subsampled YCbCr
        "SC_rgb_jpeg_gdcm.dcm",  # JPEG lossless
        "SC_rgb_gdcm_KY.dcm",  # JPEG 2000
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_16bit.dcm",
    ],
)
def test_one_colour_card_in_every_coding(name: str) -> None:
    """pydicom's test card: bars of pure colours. Its luminance must not depend on how it was coded."""
    path = get_testdata_file(name, download=False)
    assert path is not None
    frame = read_image_file(path).frame()
    bars = frame[5:100:10, 50]
    expected = [0.299, 0.587, 0.114]
    np.testing.assert_allclose(bars[[0, 2, 4]], expected, atol=0.02)


def test_unmarked_rgb_jpeg_is_not_taken_for_ycbcr() -> None:
    coded, plain = (get_testdata_file(n, download=False) for n in ("SC_rgb_jpeg.dcm", "SC_rgb_jpeg_dcmd.dcm"))
    assert coded is not None and plain is not None
    np.testing.assert_allclose(read_image_file(coded).frame(), read_image_file(plain).frame(), atol=0.01)


def test_lossless_codings_agree() -> None:
    names = ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"]
    paths = [get_testdata_file(n, download=False) for n in names]
    frames = [read_image_file(p).frame() for p in paths if p is not None]
    assert len(frames) == 4 and all(np.array_equal(frames[0], f) for f in frames)
    assert frames[0].max() > frames[0].min()


def region(delta: tuple[float, float], units: int = 3, kind: int = 1, size: int = 10) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, kind, 0
    item.RegionLocationMinX0 = item.RegionLocationMinY0 = 0
    item.RegionLocationMaxX1 = item.RegionLocationMaxY1 = size
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta
    return item


@pytest.mark.parametrize(
    ("regions", "pixel_spacing", "expected"),
    [
        ([region((0.01, 0.02))], None, (0.2, 0.1)),
        ([region((0.01, 0.02))], [0.5, 0.5], (0.2, 0.1)),
        ([region((0.5, 0.5), units=4, kind=3, size=30), region((0.01, 0.02))], None, (0.2, 0.1)),  # Doppler beside it
        ([region((0.03, 0.03), size=5), region((0.01, 0.01), size=9)], None, (0.1, 0.1)),
        ([], [0.3, 0.4], (0.3, 0.4)),
        ([region((0.0, 0.01))], None, None),
        ([region((-0.01, 0.01))], None, None),
        ([region((float("nan"), 0.01))], [0.3, 0.4], (0.3, 0.4)),
        ([], [0, 0], None),
        ([], None, None),
        ([], [0.3, 0.4, 0.5], None),
    ],
)
def test_spacing_of_dicom(tmp_path: Path, regions: list, pixel_spacing: list | None, expected: tuple | None) -> None:
    values: dict = {"SequenceOfUltrasoundRegions": regions}
    if pixel_spacing is not None:
        values["PixelSpacing"] = pixel_spacing
    image_file = read_image_file(changed(tmp_path, picture()[None], **values))
    assert image_file.spacing_mm == (None if expected is None else pytest.approx(expected))
    absurd = any(not 0 < d < 1 for r in regions for d in (r.PhysicalDeltaX, r.PhysicalDeltaY))
    absurd = absurd or pixel_spacing in ([0, 0], [0.3, 0.4, 0.5])
    assert any("cannot be" in w for w in image_file.warnings) == absurd
    assert any("in pixels" in w for w in image_file.warnings) == (expected is None)


def test_a_spacing_that_is_no_number_does_not_stop_the_reading(tmp_path: Path) -> None:
    path = changed(tmp_path, picture()[None], PixelSpacing=[0.11, 0.11], SequenceOfUltrasoundRegions=[])
    path.write_bytes(path.read_bytes().replace(b"0.11\\0.11", b"0,11\\0,11"))
    image_file = read_image_file(path)
    assert image_file.spacing_mm is None and any("cannot be" in w for w in image_file.warnings)


def test_dicom_without_pixels_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pixels"):
        read_image_file(changed(tmp_path, picture()[None], PixelData=None))
    with pytest.raises(InputError, match="segmentation"):
        read_image_file(changed(tmp_path, picture()[None], Modality="SEG"))


# --- refusals ---------------------------------------------------------------------------------------------------------


def every_format(folder: Path) -> list[Path]:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    image = Image.fromarray(noise)
    paths = [saved(folder / f"a.{e}", image) for e in ("png", "jpg", "tif", "bmp")]
    paths.append(saved(folder / "lzw.tif", image, compression="tiff_lzw"))
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(noise.T, np.eye(4)), folder / name)
        paths.append(folder / name)
    for encoding in ("raw", "gzip"):
        nrrd.write(str(folder / f"{encoding}.nrrd"), noise.T, {"encoding": encoding})
        paths.append(folder / f"{encoding}.nrrd")
    (folder / "rle.dcm").write_bytes(dicom_bytes(noise[None], 1, 0.1))
    (folder / "cine.dcm").write_bytes(dicom_bytes(np.stack([noise] * 4), 1, 0.1))
    jpeg = pydicom.dcmread(folder / "cine.dcm")
    jpeg.NumberOfFrames, jpeg.PixelData = 1, encapsulate([(folder / "a.jpg").read_bytes()])
    jpeg["PixelData"].is_undefined_length = True
    jpeg.save_as(folder / "jpeg.dcm")
    changed(folder, noise[None])
    return [*paths, folder / "rle.dcm", folder / "cine.dcm", folder / "jpeg.dcm", folder / "x.dcm"]


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    for path in every_format(tmp_path):
        assert read_image_file(path).frames.shape[1:] == (60, 80), path.name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError) as error:
            _ = read_image_file(path).frames
        assert path.name in str(error.value)


def test_damaged_bytes_never_end_in_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for path in every_format(tmp_path):
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(12):
            damaged = content.copy()
            head = rng.integers(0, min(400, len(damaged)), 3)
            damaged[np.append(head, rng.integers(0, len(damaged)))] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                frames = read_image_file(path).frames
            except InputError:
                refused += 1
            else:
                assert frames.dtype == np.float32 and frames.min() >= 0 and frames.max() <= 1
    assert refused > 20


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.nii", "a.nii.gz", "a.nrrd", "a.dcm", "a.txt", "a"]
)
def test_junk_empty_and_missing_files_are_refused(tmp_path: Path, name: str) -> None:
    for content in (b"", b"junk" * 100, b"\0" * 500):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_image_file(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_image_file(tmp_path / f"missing-{name}")


def test_huge_pictures_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    small = Limits(frame_pixels=1000, total_pixels=2000)
    for path in every_format(tmp_path):
        with pytest.raises(InputError, match="limit"):
            read_image_file(path, small)
    bomb = b"NRRD0004\ntype: double\ndimension: 3\nsizes: 60000 60000 60000\nencoding: gzip\n\n"
    (tmp_path / "bomb.nrrd").write_bytes(bomb)
    with pytest.raises(InputError, match="limit"):
        read_image_file(tmp_path / "bomb.nrrd")


def test_postscript_is_not_a_picture(tmp_path: Path) -> None:
    """Pillow would hand it to Ghostscript."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(InputError):
        read_image_file(tmp_path / "a.png")


@pytest.mark.parametrize(
    "fields",
    ["sizes: 0 5", "sizes: -4 -4", "sizes: 400 400", "sizes: 4 4\nbyte skip: 9999999999", "sizes: 4 4\nbyte skip: -9"],
)
def test_nrrd_headers_never_unpack_more_than_the_limit(tmp_path: Path, fields: str) -> None:
    path = tmp_path / "a.nrrd"
    header = f"NRRD0004\ntype: double\ndimension: 2\n{fields}\nencoding: gzip\n\n"
    path.write_bytes(header.encode() + gzip.compress(b"\0" * 2_000_000))
    with pytest.raises(InputError, match="pixels|byte skip"):
        read_image_file(path, Limits(total_pixels=100_000))
