"""Every count in a header is bounded by what its file can hold: small files cost little time and memory, as image and as
label, whatever they announce."""

from __future__ import annotations

import bz2
import gzip
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.nrrd import read_nrrd_array
from ultrarefiner_monai.imaging.readers import Limits, read_image_file, read_mask

MB = 2**20
SMALL = Limits(total_pixels=100_000)
SECONDS = 5.0  # of one core; a reader that follows such a count needs minutes, or never ends


def refused(path: Path, read: Callable[[Path], Any], match: str = ".") -> None:
    """InputError with the file's name, soon and in little memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(InputError, match=match) as error:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.name in str(error.value) and str(path.parent) not in str(error.value)
    assert time.process_time() - start < SECONDS
    assert peak < 8 * MB, f"{peak / MB:.0f} MB"


READS = [lambda p: read_image_file(p, SMALL), lambda p: read_mask(p, None, SMALL)]


# --- NRRD -------------------------------------------------------------------------------------------------------------


def nrrd_bytes(fields: str, data: bytes = bytes(12), sizes: str = "4 3", dimension: int = 2) -> bytes:
    head = f"NRRD0004\ntype: uint8\ndimension: {dimension}\nsizes: {sizes}\nencoding: raw\n"
    return (head + fields.strip() + "\n").replace("\n\n", "\n").encode() + b"\n" + data


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    "content",
    [
        nrrd_bytes("line skip: 1000000000000000000"),
        nrrd_bytes("lineskip: 1000000"),
        nrrd_bytes("line skip: -1"),
        nrrd_bytes("byte skip: 1000000000000000000"),
        nrrd_bytes("byteskip: -2"),
        nrrd_bytes("", sizes="1 " * 100_000, dimension=100_000),
        nrrd_bytes("", dimension=10**6),
        nrrd_bytes("", sizes="300 300"),
        nrrd_bytes("", sizes="4000000000 4000000000"),
        b"NRRD0004\n" + b"x" * (5 * MB),
        b"NRRD0004\n" + b"# a comment\n" * (MB // 2),
        b"NRRD0004\n",
    ],
)
def test_nrrd(tmp_path: Path, content: bytes, read: Callable[[Path], Any]) -> None:
    (tmp_path / "a.nrrd").write_bytes(content)
    refused(tmp_path / "a.nrrd", read)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_nrrd_that_unpacks_to_more(tmp_path: Path, pack: Callable[[bytes], bytes], read: Callable[[Path], Any]) -> None:
    """What comes after the announced pixels is not unpacked, in one stream or in several."""
    name = "gzip" if pack is gzip.compress else "bzip2"
    many = pack(bytes(16 * MB))
    for data in (many, pack(bytes(12)) + many * 4):
        head = f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 4 3\nencoding: {name}\n\n".encode()
        (tmp_path / "a.nrrd").write_bytes(head + data)
        tracemalloc.start()
        values, _ = read_nrrd_array(tmp_path / "a.nrrd")
        assert values.shape == (4, 3) and tracemalloc.get_traced_memory()[1] < 8 * MB
        tracemalloc.stop()
    (tmp_path / "a.nrrd").write_bytes(head.replace(b"sizes: 4 3", b"sizes: 40000 40000") + pack(bytes(1000)))
    refused(tmp_path / "a.nrrd", read, "limit")
    if name == "gzip":
        refused(tmp_path / "a.nrrd", lambda p: read_nrrd_array(p), "truncated")


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_an_empty_label_packs_as_small_as_can_be(tmp_path: Path, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else bz2.compress
    head = f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 6000 7500\nencoding: {encoding}\n\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + pack(bytes(45_000_000)))
    assert not read_nrrd_array(tmp_path / "a.nrrd")[0].any()


def test_nrrd_skips_that_are_meant(tmp_path: Path) -> None:
    pixels = bytes(range(12))
    for fields, data in (
        ("line skip: 2", b"one\ntwo\n" + pixels),
        ("byte skip: 5", b"12345" + pixels),
        ("line skip: 1\nbyte skip: 3", b"one\n123" + pixels),
        ("byte skip: -1", b"whatever" + pixels),
    ):
        (tmp_path / "a.nrrd").write_bytes(nrrd_bytes(fields, data))
        np.testing.assert_array_equal(read_nrrd_array(tmp_path / "a.nrrd")[0].ravel("F"), np.arange(12), fields)


# --- NIfTI ------------------------------------------------------------------------------------------------------------


def nifti_bytes(shape: tuple[int, ...] = (4, 3, 1), extension: bytes = b"", data: int = 12, **fields: Any) -> bytes:
    second = max(shape) > 2**15
    header: Any = (nibabel.Nifti2Header if second else nibabel.Nifti1Header)()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = (544 if second else 352) + len(extension)
    header["magic"] = header.single_magic
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + (b"\1\0\0\0" if extension else bytes(4)) + extension + bytes(data)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        nifti_bytes(vox_offset=1e18),
        nifti_bytes(vox_offset=float("nan")),
        nifti_bytes(vox_offset=-1e9),
        nifti_bytes((30_000, 30_000, 30_000)),
        nifti_bytes((10**12, 10**6, 1)),
        nifti_bytes((300, 300, 1)),
        nifti_bytes(dim=[3, -4, -3, 1, 1, 1, 1, 1]),
        nifti_bytes(dim=[9, 4, 3, 1, 1, 1, 1, 1]),
        nifti_bytes(extension=struct.pack("<ii", 2**31 - 16, 6) + bytes(24)),
        nifti_bytes(extension=struct.pack("<ii", 0, 6) + bytes(24)),
        nifti_bytes(extension=struct.pack("<ii", -32, 6) + bytes(24)),
        nifti_bytes()[:200],
    ],
)
def test_nifti(tmp_path: Path, content: bytes, packed: bool, read: Callable[[Path], Any]) -> None:
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    refused(path, read)


@pytest.mark.parametrize("read", READS)
def test_nifti_does_not_unpack_its_way_to_the_voxels(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    much = gzip.compress(bytes(64 * MB)) * 16
    extension = struct.pack("<ii", 2**30, 6) + bytes(24)
    for content in (nifti_bytes(vox_offset=1e9), nifti_bytes(extension=extension, vox_offset=1e9)):
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content) + much)
        refused(tmp_path / "a.nii.gz", read, "damaged")


@pytest.mark.parametrize("read", READS)
def test_nifti_of_many_doubles(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    """3 MB of gzip that are 3 GB of numbers."""
    content = nifti_bytes((20_000, 20_000), datatype=64, bitpix=64, data=0)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content) + gzip.compress(bytes(64 * MB)) * 4)
    refused(tmp_path / "a.nii.gz", read, "limit")


def test_nifti_extensions_that_are_meant(tmp_path: Path) -> None:
    extension = struct.pack("<ii", 32, 6) + b"a comment".ljust(24, b"\0")
    (tmp_path / "a.nii").write_bytes(nifti_bytes(extension=extension * 2))
    assert read_image_file(tmp_path / "a.nii").shape == (1, 3, 4)


# --- pictures ---------------------------------------------------------------------------------------------------------


def tiff_bytes(pages: int, loop: bool = False) -> bytes:
    """A 4 x 3 picture and as many directories, all of them of the same pixels."""
    tags = [(256, 4), (257, 3), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 3), (279, 12)]
    size = 2 + 12 * len(tags) + 4
    head = struct.pack("<2sHI", b"II", 42, 20) + bytes(range(12))
    out = [head]
    for k in range(pages):
        following = 20 + (k + 1) * size if k + 1 < pages else (20 if loop else 0)
        body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        out.append(struct.pack("<H", len(tags)) + body + struct.pack("<I", following))
    return b"".join(out)


def test_tiff_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes(3))
    assert read_image_file(path).n_frames == 3
    path.write_bytes(tiff_bytes(3, loop=True))
    assert read_image_file(path).n_frames == 3
    path.write_bytes(tiff_bytes(10_500))
    refused(path, lambda p: read_image_file(p), "pages")
    path.write_bytes(tiff_bytes(9000))
    refused(path, lambda p: read_image_file(p, Limits(total_pixels=12 * 8000)), "limit")


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_picture_sizes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    if suffix == "png":
        content[16:24] = struct.pack(">II", 30_000, 30_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        content[18:26] = struct.pack("<ii", 30_000, 30_000)
    path.write_bytes(content)
    refused(path, lambda p: read_image_file(p, SMALL), "limit")
