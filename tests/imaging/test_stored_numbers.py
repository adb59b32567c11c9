"""What the numbers in a file mean, where decoders give them without their sign, upside down, or go by a file's name."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from ultrarefiner_monai.datasets.raw_pictures import read_image
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask

H, W = 24, 40
GREY = np.random.default_rng(0).integers(0, 256, (H, W)).astype(np.uint8)
GREY[0, 0], GREY[0, 1] = 0, 255
MASK = np.zeros((H, W), np.uint8)
MASK[3:9, 20:33] = 1


def tiff(path: Path, pixels: np.ndarray, white_is_zero: bool = False) -> Path:
    """One strip, little endian, with the sample format of ``pixels``."""
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    raw = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    height, width = pixels.shape
    tags = [
        *((256, width), (257, height), (258, pixels.dtype.itemsize * 8), (259, 1), (262, 0 if white_is_zero else 1)),
        *((273, 8), (277, 1), (278, height), (279, len(raw)), (339, kind)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    )
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_tiff_with_white_as_zero_is_shown_upright_whatever_its_bits(bits: int, tmp_path: Path) -> None:
    white = 2**bits - 1
    values = np.rint(GREY / 255 * white)
    kind = np.uint8 if bits == 8 else np.uint16
    upright = read_image_file(tiff(tmp_path / "a.tif", values.astype(kind))).frame()
    inverted = read_image_file(tiff(tmp_path / "b.tif", (white - values).astype(kind), white_is_zero=True)).frame()
    np.testing.assert_allclose(inverted, upright, atol=1e-6)
    np.testing.assert_allclose(inverted, GREY / 255, atol=1 / 255)
    np.testing.assert_allclose(read_image(tmp_path / "b.tif", []), GREY, atol=1)  # what prepare makes of it


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint32])
def test_the_sign_of_a_tiffs_numbers_is_the_files(kind: type, tmp_path: Path) -> None:
    span = np.iinfo(kind)
    values = np.rint(span.min + GREY / 255.0 * (float(span.max) - span.min)).astype(np.int64)
    image_file = read_image_file(tiff(tmp_path / "a.tif", values.astype(kind)))
    np.testing.assert_allclose(image_file.frame(), GREY / 255, atol=1 / 255)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", []), GREY, atol=1)


def test_a_label_of_32_bits_is_a_label(tmp_path: Path) -> None:
    label = tiff(tmp_path / "label.tif", MASK.astype(np.uint32) * np.uint32(2**32 - 1))
    np.testing.assert_array_equal(read_mask(label)[0], MASK)


def dicom(path: Path, stored: np.ndarray, **values: int) -> Path:
    path.write_bytes(dicom_bytes(GREY[None], 1, 0.1))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.dtype.itemsize
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].is_undefined_length, dataset["PixelData"].VR = False, "OW"
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 1
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("filled", [True, False])
def test_the_sign_of_fewer_bits_than_a_dicom_value_takes_is_read(bits: int, filled: bool, tmp_path: Path) -> None:
    """Writers leave the bits above the sign 0, or fill them with it."""
    values = (GREY.astype(np.int32) - 128) * 2 ** (bits - 8)
    stored = values.astype("<i2") if filled else (values & (2**bits - 1)).astype("<u2")
    image_file = read_image_file(dicom(tmp_path / "a.dcm", stored, BitsStored=bits, HighBit=bits - 1))
    np.testing.assert_allclose(image_file.frame(), GREY / 255, atol=1e-6)
    assert any("signed" in text for text in image_file.warnings)


def test_values_that_are_called_signed_and_are_not_keep_their_black(tmp_path: Path) -> None:
    grey = np.clip(GREY, 40, 230)
    image_file = read_image_file(dicom(tmp_path / "a.dcm", grey.astype("<i2")))
    np.testing.assert_allclose(image_file.frame(), grey / 255, atol=1e-6)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_nifti_is_read_by_its_content_as_itk_does(name: str, packed: bool, tmp_path: Path) -> None:
    for values in (GREY, MASK):
        content = nibabel.Nifti1Image(values.T[..., None], np.diag([-1.0, -1, 1, 1])).to_bytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
        image_file = read_image_file(tmp_path / name)
        np.testing.assert_allclose(image_file.frame(), values / 255, atol=1e-6)
    np.testing.assert_array_equal(read_mask(tmp_path / name, image_file)[0], MASK)


def png16(path: Path, values: np.ndarray) -> Path:
    """(H, W) uint16 -> an RGB picture of 16 bits a colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(("white", "dark"), [(65535, False), (4095, True), (255, True)])
def test_small_values_of_16_bits_a_colour_are_said(white: int, dark: bool, tmp_path: Path) -> None:
    """In serving and by prepare."""
    path = png16(tmp_path / "a.png", np.rint(GREY / 255 * white).astype(np.uint16))
    prepared: list[str] = []
    read_image(path, prepared)
    for said in (read_image_file(path).warnings, prepared):
        assert any("16 bits a colour" in text for text in said) == dark


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_prepare_says_where_a_picture_shows_nothing(mode: str, tmp_path: Path) -> None:
    said: list[str] = []
    Image.fromarray(GREY // 32).convert(mode).save(tmp_path / "a.png")
    read_image(tmp_path / "a.png", said)
    assert said == [text for text in read_image_file(tmp_path / "a.png").warnings if "nearly" in text] and said
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.png")
    said.clear()
    read_image(tmp_path / "a.png", said)
    assert not said
