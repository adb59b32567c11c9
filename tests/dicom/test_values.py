"""Greys follow the values, frames are counted, and a header that lacks or spoils what is not needed refuses nothing."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from coded_file import NATIVE, card, dicom, palette, tables, ybr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from ultrarefiner_monai.core.image_file import luminance
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file

GREY = luminance(card())
H, W = GREY.shape
LITTLE = NATIVE["Explicit VR Little Endian"]
ONE_GREY = 1 / 255 + 1e-6


def written(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", uid: str = LITTLE, **values: Any) -> Path:
    path.write_bytes(dicom(uid, photometric, pixels, **values))
    return path


def edited(path: Path, *without: str, **values: Any) -> Path:
    dataset = pydicom.dcmread(path)
    for keyword in without:
        delattr(dataset, keyword)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def says(image_file: Any, *texts: str) -> bool:
    return all(any(text in warning for warning in image_file.warnings) for text in texts)


# --- values -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(held=st.sampled_from((8, 10, 12, 14, 16)), said=st.integers(8, 16), syntax=st.sampled_from(list(NATIVE)))
def test_the_grey_is_that_of_the_values_whatever_is_said(held: int, said: int, syntax: str) -> None:
    white = GREY.copy()
    white[0, 0] = 255
    values = (white.astype(np.uint32) * (2**held - 1) // 255).astype(np.uint16)
    content = dicom(NATIVE[syntax], "MONOCHROME2", values, BitsStored=said, HighBit=said - 1)
    image_file = read_bytes(content)
    assert np.abs(image_file.frame() - white / 255.0).max() <= ONE_GREY
    assert says(image_file, "scaled by") == (held != said)


def read_bytes(content: bytes) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.dcm")
        path.write_bytes(content)
        return read_image_file(path)


def test_low_values_in_sixteen_bits_in_every_colour(tmp_path: Path) -> None:
    rgb = card()
    for photometric, pixels, expected in (
        ("RGB", rgb.astype(np.uint16), luminance(rgb)),
        ("YBR_FULL", ybr(rgb).astype(np.uint16), ybr(rgb)[..., 0]),
        ("MONOCHROME1", GREY.astype(np.uint16), 255 - GREY),
        ("MONOCHROME2", GREY.astype(np.uint32), GREY),
    ):
        image_file = read_image_file(written(tmp_path / "a.dcm", pixels, photometric))
        assert np.abs(image_file.frame() - expected / 255.0).max() <= ONE_GREY, photometric
        assert says(image_file, "values up to"), photometric
    grey, expected = palette(GREY)
    low = tables(16)
    for colour in ("Red", "Green", "Blue"):
        key = f"{colour}PaletteColorLookupTableData"
        low[key] = (np.frombuffer(low[key], "<u2") >> 4).tobytes()  # twelve bits
    image_file = read_image_file(written(tmp_path / "a.dcm", grey, "PALETTE COLOR", **low))
    assert np.abs(image_file.frame() * 255 - expected[0]).max() <= 1


def test_all_frames_of_a_cine_and_of_a_series_have_one_scale(tmp_path: Path) -> None:
    frames = np.stack([np.full((H, W), v, np.uint16) + np.arange(W, dtype=np.uint16) for v in (50, 3000, 100)])
    image_file = read_image_file(written(tmp_path / "a.dcm", frames, NumberOfFrames=3))
    np.testing.assert_allclose(image_file.frames, frames / 4095, atol=1e-6)
    (tmp_path / "s").mkdir()
    for k in range(3):
        written(tmp_path / "s" / f"{k}.dcm", frames[k], SOPInstanceUID=f"1.2.{k}", InstanceNumber=k)
    series = read_image_file(tmp_path / "s")
    np.testing.assert_allclose(series.frames, frames / 4095, atol=1e-6)
    for syntax in (RLELossless,):
        coded = pydicom.dcmread(tmp_path / "a.dcm")
        coded.compress(syntax)
        coded.save_as(tmp_path / "b.dcm")
        np.testing.assert_allclose(read_image_file(tmp_path / "b.dcm").frames, frames / 4095, atol=1e-6)


def test_signed_values_and_bits_above_those_stored(tmp_path: Path) -> None:
    signed = GREY.astype(np.int16) - 100
    image_file = read_image_file(written(tmp_path / "a.dcm", signed, PixelRepresentation=1))
    low, high = int(signed.min()), int(signed.max())
    np.testing.assert_allclose(image_file.frame(), (signed - low) / (high - low), atol=1e-6)
    assert says(image_file, "signed")
    # Old files keep an overlay in the bits above those of the picture.
    deep = GREY.astype(np.uint16) * 16
    deep[0, :5] |= 0x8000
    path = written(tmp_path / "b.dcm", deep, BitsStored=12, HighBit=11)
    dataset = pydicom.dcmread(path)
    dataset.add_new((0x6000, 0x0102), "US", 15)
    dataset.save_as(path)
    image_file = read_image_file(path)
    np.testing.assert_allclose(image_file.frame(), (deep & 0xFFF) / 4095, atol=1e-6)
    assert not says(image_file, "scaled by")


def test_windows_tables_and_what_of_them_is_used(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 16
    twelve: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
    plain = deep / 4095

    def image_file(**values: Any) -> Any:
        return read_image_file(written(tmp_path / "a.dcm", deep, **twelve, **values))

    several = image_file(WindowCenter=[1000, 5], WindowWidth=[1000, 5])
    np.testing.assert_allclose(several.frame(), np.clip(deep / 1000 - 0.5, 0, 1), atol=1e-5)
    second = image_file(WindowCenter=[0, 1000], WindowWidth=[0, 1000])
    np.testing.assert_array_equal(second.frame(), several.frame())
    sigmoid = image_file(WindowCenter=2000, WindowWidth=1500, VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(sigmoid.frame(), 1 / (1 + np.exp(-4 * (deep - 2000.0) / 1500)), atol=1e-5)
    for centre, width in ((50000, 100), (-500, 20)):
        empty = image_file(WindowCenter=centre, WindowWidth=width)
        np.testing.assert_allclose(empty.frame(), plain, atol=1e-6)
        assert says(empty, "would show nearly nothing")
    for centre, width in ((100, 0), (100, -5)):
        senseless = image_file(WindowCenter=centre, WindowWidth=width)
        np.testing.assert_allclose(senseless.frame(), plain, atol=1e-6)
        assert says(senseless, "window makes no sense")
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 8], (255 - np.arange(4096) // 16).astype("<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    np.testing.assert_allclose(image_file(VOILUTSequence=[item]).frame(), (255 - deep // 16) / 255, atol=1e-6)


def test_eight_bits_are_what_they_were(tmp_path: Path) -> None:
    image_file = read_image_file(written(tmp_path / "a.dcm", GREY, WindowCenter=40, WindowWidth=10))
    np.testing.assert_array_equal(np.rint(image_file.frame() * 255), GREY)
    assert not says(image_file, "window") and not says(image_file, "scaled")


# --- nothing to see ---------------------------------------------------------------------------------------------------


def saved_as(path: Path, pixels: np.ndarray) -> Path:
    """(H, W) uint8 in the format of the extension."""
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(pixels.T[..., None], np.eye(4)), path)
    elif path.suffix == ".nrrd":
        nrrd.write(str(path), pixels.T[..., None])
    elif path.suffix == ".dcm":
        path.write_bytes(dicom_bytes(pixels[None], 1, 0.1))
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.jpg", "a.gif", "a.webp", "a.nii.gz", "a.nrrd", "a.dcm"])
def test_a_picture_that_shows_nothing_is_said_in_every_format(tmp_path: Path, name: str) -> None:
    picture = make_phantom(np.random.default_rng(0), 120, 160, "benign").image
    assert not says(read_image_file(saved_as(tmp_path / name, picture)), "nearly")
    assert not says(read_image_file(saved_as(tmp_path / name, picture // 3)), "nearly")
    for pixels, what in (
        (picture // 40, "nearly black"),
        (250 + picture // 60, "nearly white"),
        (picture * 0 + 90, "one grey"),
    ):
        assert says(read_image_file(saved_as(tmp_path / name, pixels.astype(np.uint8))), what), what


def test_empty_frames_of_a_cine_are_named(tmp_path: Path) -> None:
    picture = make_phantom(np.random.default_rng(0), 120, 160, "benign").image
    frames = np.stack([picture * 0, picture, picture, picture, picture * 0])
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(frames, 1, 0.1))
    assert says(read_image_file(tmp_path / "a.dcm"), "frames 0, 4 are nearly black")


# --- how many frames --------------------------------------------------------------------------------------------------

FRAMES = np.stack([np.roll(GREY, 6 * k, 1) for k in range(5)])


def jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def cine(path: Path, coding: str, said: Any) -> Path:
    """FRAMES in a coding, saying that they are ``said``; None: not saying it."""
    path.write_bytes(dicom(LITTLE, "MONOCHROME2", FRAMES, NumberOfFrames=5))
    dataset = pydicom.dcmread(path)
    if coding == "rle":
        dataset.compress(RLELossless)
    elif coding != "native":
        streams = [jpeg(f) for f in FRAMES]
        fragments = 3 if "fragments" in coding else 1
        dataset.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot="table" in coding)
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    if said is None:
        del dataset.NumberOfFrames
    else:
        dataset.NumberOfFrames = 5
    dataset.save_as(path)
    if said not in (None, 5):
        content, text = path.read_bytes(), str(said).encode()
        old = struct.pack("<HH2sH", 0x28, 8, b"IS", 2) + b"5 "
        text += b" " * (len(text) % 2)
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, struct.pack("<HH2sH", 0x28, 8, b"IS", len(text)) + text))
    return path


CODINGS = ["native", "rle", "jpeg", "jpeg table", "jpeg fragments", "jpeg fragments table"]


@pytest.mark.parametrize("coding", CODINGS)
def test_frames_beyond_those_announced_are_said(tmp_path: Path, coding: str) -> None:
    whole = read_image_file(cine(tmp_path / "a.dcm", coding, 5))
    assert whole.n_frames == 5 and not says(whole, "NumberOfFrames")
    for said, shown in ((3, 3), (1, 1), (None, 1), (0, 1), (-2, 1), ("five", 1)):
        image_file = read_image_file(cine(tmp_path / "b.dcm", coding, said))
        assert image_file.n_frames == shown, said
        assert says(image_file, "pixels for 5 frames"), said
        assert says(image_file, "is taken as 1") == (said in (0, -2, "five")), said
        np.testing.assert_array_equal(image_file.frames, whole.frames[:shown])
    for said in (7, 2_000_000_000):
        with pytest.raises(InputError, match="b.dcm"):
            read_image_file(cine(tmp_path / "b.dcm", coding, said))


def test_a_single_frame_needs_no_number(tmp_path: Path) -> None:
    image_file = read_image_file(written(tmp_path / "a.dcm", GREY))
    assert image_file.n_frames == 1 and not says(image_file, "NumberOfFrames")


def test_an_offset_table_that_lies_is_not_believed(tmp_path: Path) -> None:
    path = cine(tmp_path / "a.dcm", "jpeg table", 5)
    whole = read_image_file(path).frames
    content = path.read_bytes()
    at = content.index(b"\xfe\xff\x00\xe0" + struct.pack("<I", 20)) + 8
    for table in ((0, 8, 16, 24, 32), (0, 0, 0, 0, 0), (4, 3, 2, 1, 0)):
        path.write_bytes(content[:at] + struct.pack("<5I", *table) + content[at + 20 :])
        np.testing.assert_array_equal(read_image_file(path).frames, whole)


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keyword", ["PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit"]
)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "RGB"])
def test_what_has_an_obvious_default_may_be_missing(tmp_path: Path, keyword: str, photometric: str) -> None:
    pixels = GREY if photometric == "MONOCHROME2" else card()
    path = written(tmp_path / "a.dcm", pixels, photometric)
    whole = read_image_file(path)
    image_file = read_image_file(edited(path, keyword))
    np.testing.assert_array_equal(image_file.frame(), whole.frame())
    assert says(image_file, keyword) == (keyword != "HighBit")  # nothing depends on that one


def test_flags_that_mean_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", card(), "RGB")
    whole = read_image_file(path)
    image_file = read_image_file(edited(path, PixelRepresentation=7, PlanarConfiguration=9, BitsStored=0))
    np.testing.assert_array_equal(image_file.frame(), whole.frame())
    assert says(image_file, "PixelRepresentation is 7", "PlanarConfiguration is 9", "BitsStored is 0")


def test_planes_modality_and_coding_may_be_missing(tmp_path: Path) -> None:
    whole = read_image_file(written(tmp_path / "a.dcm", card(), "RGB"))
    image_file = read_image_file(edited(tmp_path / "a.dcm", "PlanarConfiguration", "Modality"))
    np.testing.assert_array_equal(image_file.frame(), whole.frame())
    assert says(image_file, "PlanarConfiguration", "modality unknown")
    for syntax, uid in NATIVE.items():
        if "Deflated" not in syntax:
            content = dicom(uid, "MONOCHROME2", GREY)
            (tmp_path / "b.dcm").write_bytes(content[dataset_start(content) :])
            image_file = read_image_file(tmp_path / "b.dcm")
            np.testing.assert_array_equal(np.rint(image_file.frame() * 255), GREY)
            assert says(image_file, "TransferSyntaxUID"), syntax
    for coding in ("rle", "jpeg"):
        whole = read_image_file(cine(tmp_path / "c.dcm", coding, 5))
        content = (tmp_path / "c.dcm").read_bytes()
        (tmp_path / "d.dcm").write_bytes(content[dataset_start(content) :])
        image_file = read_image_file(tmp_path / "d.dcm")
        np.testing.assert_array_equal(image_file.frames, whole.frames)
        assert says(image_file, "TransferSyntaxUID")


def dataset_start(content: bytes) -> int:
    """Where the elements behind the group 2 begin."""
    length = struct.unpack("<I", content[140:144])[0]
    return 144 + length


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "BitsAllocated"])
def test_what_has_no_default_is_named(tmp_path: Path, keyword: str) -> None:
    path = edited(written(tmp_path / "a.dcm", GREY), keyword)
    with pytest.raises(InputError, match=f"a.dcm lacks {keyword}"):
        read_image_file(path)


DAMAGE = {
    "WindowCenter": b"127,5 ",
    "WindowWidth": b"2\\x\\9 ",
    "RescaleSlope": b"1,0 ",
    "RescaleIntercept": b"- ",
    "PixelSpacing": b"0,1\\0,1 ",
    "ImagerPixelSpacing": b"0,1\\0,1 ",
    "ImageOrientationPatient": b"1\\0\\0\\0\\1,0 ",
    "ImagePositionPatient": b"a\\b\\c ",
    "InstanceNumber": b"1.5 ",
    "StudyDate": b"yesterday ",
    "PatientBirthDate": b"31.12.1970",
    "PatientAge": b"??",
    "SeriesNumber": b"one ",
    "FrameTime": b"40,0",
}


@pytest.mark.parametrize("keyword", list(DAMAGE))
@pytest.mark.parametrize("bits", [8, 16])
def test_a_damaged_element_that_is_not_needed_refuses_nothing(tmp_path: Path, keyword: str, bits: int) -> None:
    pixels = GREY if bits == 8 else GREY.astype(np.uint16)
    path = written(tmp_path / "a.dcm", pixels)
    if keyword.startswith("Window"):
        edited(path, **{"WindowWidth" if keyword == "WindowCenter" else "WindowCenter": 100})
    insert(path, pydicom.tag.Tag(keyword), pydicom.datadict.dictionary_VR(keyword), DAMAGE[keyword])
    image_file = read_image_file(path)
    np.testing.assert_array_equal(np.rint(image_file.frame() * 255), GREY)
    if bits == 8:
        assert not says(image_file, "window")
    elif keyword in ("WindowCenter", "WindowWidth"):
        assert says(image_file, "makes no sense") or says(image_file, keyword)


def insert(path: Path, tag: tuple[int, int], vr: str, value: bytes) -> None:
    """Put an element into a file as pydicom would not write it."""
    following = next(e for e in pydicom.dcmread(path) if e.tag > pydicom.tag.Tag(tag))
    content = path.read_bytes()
    at = content.index(struct.pack("<HH2s", following.tag.group, following.tag.element, following.VR.encode()), 132)
    length = struct.pack("<HI", 0, len(value)) if vr == "SQ" else struct.pack("<H", len(value))
    path.write_bytes(
        content[:at]
        + struct.pack("<HH2s", *divmod(int(pydicom.tag.Tag(tag)), 1 << 16), vr.encode())
        + length
        + value
        + content[at:]
    )


JUNK = {
    "empty": b"",
    "no tags": b"\xff" * 16,
    "too long": b"\xfe\xff\x00\xe0\xff\xff\xff\x7f" + b"x" * 8,
    "text": b"text, no items!!",
}


@pytest.mark.parametrize("junk", list(JUNK))
@pytest.mark.parametrize(
    "tag", [(0x0018, 0x6011), (0x0009, 0x1010), (0x5200, 0x9229), (0x0028, 0x3010), (0x0040, 0x0275)]
)
def test_a_broken_sequence_refuses_nothing(tmp_path: Path, tag: tuple[int, int], junk: str) -> None:
    path = written(tmp_path / "a.dcm", GREY)
    insert(path, tag, "SQ", JUNK[junk])
    np.testing.assert_array_equal(np.rint(read_image_file(path).frame() * 255), GREY)


@pytest.mark.parametrize(
    "inside", [b"text, no items!!", b"\xfe\xff\x00\xe0\x10\0\0\0" + b"\x08\0\x60\0??" + b"\xff" * 10]
)
def test_a_broken_sequence_without_a_length_is_passed_over(tmp_path: Path, inside: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(GREY[None], 1, 0.08))
    dataset = pydicom.dcmread(path)
    dataset["SequenceOfUltrasoundRegions"].is_undefined_length = True
    dataset.save_as(path)
    whole, content = read_image_file(path), path.read_bytes()
    broken = struct.pack("<HH2sHI", 0x0009, 0x1010, b"SQ", 0, 0xFFFFFFFF) + inside
    at = content.index(struct.pack("<HH2s", 0x10, 0x10, b"PN"))
    path.write_bytes(content[:at] + broken + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) + content[at:])
    image_file = read_image_file(path)
    np.testing.assert_array_equal(image_file.frame(), whole.frame())
    assert image_file.spacing_mm == whole.spacing_mm and image_file.patient == whole.patient


def test_regions_with_a_damaged_value_give_way_to_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(
        dicom_bytes(np.stack([GREY]), 1, 0.08, regions=[(0, 0, 40, 95, "tissue"), (60, 0, 143, 95, "tissue")])
    )
    whole = read_image_file(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    head = struct.pack("<HH2sH", 0x18, 0x602C, b"FD", 8)  # PhysicalDeltaX of the first region
    (tmp_path / "a.dcm").write_bytes(content.replace(head, head.replace(b"FD", b"DS"), 1))
    image_file = read_image_file(tmp_path / "a.dcm")
    np.testing.assert_array_equal(image_file.frame(), whole.frame())
    assert image_file.regions == whole.regions and image_file.spacing_mm == whole.spacing_mm
