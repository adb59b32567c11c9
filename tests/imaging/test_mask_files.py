"""Label files: what they show is what is stored, whichever way a program coded it, and large ones cost nothing."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ultrarefiner_monai.core.image_file import RAS_FROM_LPS, ImageFile
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.mask_files import make_plain, read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_mask

H, W = 120, 170
YY, XX = np.mgrid[:H, :W]
LESION = ((YY - 45) / 25) ** 2 + ((XX - 110) / 34) ** 2 <= 1
MASK = LESION.astype(np.uint8)
WHITE = MASK * np.uint8(255)
SOFT = np.rint(255 * np.clip(15 * (1 - np.hypot((YY - 45) / 25, (XX - 110) / 34)) + 0.5, 0, 1)).astype(np.uint8)
WIDE = np.rint(255 / (1 + np.exp(-12 * (1 - np.hypot((YY - 45) / 25, (XX - 110) / 34))))).astype(np.uint8)


def rgb(colour: tuple[int, ...], rest: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
    """(H, W, C): one colour in the lesion, another around it."""
    return np.where(LESION[..., None], np.array(colour), np.array(rest)).astype(np.uint8)


def palette(index: int, colours: list[int], transparency: bytes | None = None) -> Image.Image:
    """A palette whose entry ``index`` is the lesion, the other one of 0 and 1 the rest."""
    image = Image.fromarray(np.where(LESION, index, 1 - index).astype(np.uint8)).convert("P")
    image.putpalette(colours + [0] * (768 - len(colours)))
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.fixture
def image_file(tmp_path: Path) -> ImageFile:
    Image.fromarray((YY % 251).astype(np.uint8)).save(tmp_path / "image.png")
    return read_image_file(tmp_path / "image.png")


SAME: dict[str, Any] = {
    "one bit": Image.fromarray(LESION),
    "coded 1": Image.fromarray(MASK),
    "coded 128": Image.fromarray(MASK * np.uint8(128)),
    "white": Image.fromarray(WHITE),
    "16 bits, 1": Image.fromarray(MASK.astype(np.uint16)),
    "16 bits, white": Image.fromarray(MASK.astype(np.uint16) * 65535),
    "red": Image.fromarray(rgb((255, 0, 0))),
    "dark colour": Image.fromarray(rgb((0, 1, 0))),
    "white first in the palette": palette(1, [0, 0, 0, 255, 255, 255]),
    "black first in the palette": palette(0, [255, 255, 255, 0, 0, 0]),
    "coloured palette": palette(0, [0, 200, 0, 0, 0, 0]),
    "quantised": Image.fromarray(rgb((255, 255, 255))).quantize(2),
    "opaque": Image.fromarray(rgb((255, 255, 255, 255), (0, 0, 0, 255))),
    "alike half transparent": Image.fromarray(rgb((255, 0, 0, 128), (0, 0, 0, 128))),
    "white in alpha": Image.fromarray(rgb((255, 255, 255, 255), (255, 255, 255, 0))),
    "black in alpha": Image.fromarray(rgb((0, 0, 0, 255), (0, 0, 0, 0))),
    "red in alpha on hidden white": Image.fromarray(rgb((255, 0, 0, 255), (255, 255, 255, 0))),
    "colours and alpha": Image.fromarray(rgb((255, 0, 0, 255), (0, 0, 0, 0))),
    "half transparent on black": Image.fromarray(rgb((255, 0, 0, 128), (0, 0, 0, 255))),
    "half alpha": Image.fromarray(rgb((0, 255, 0, 128), (0, 0, 0, 0))),
    "grey and alpha": Image.fromarray(np.dstack([np.full_like(WHITE, 90), WHITE]), "LA"),
    "transparent palette": palette(1, [255, 255, 255, 255, 255, 255], bytes([0, 255])),
    "transparent black of a palette": palette(1, [0, 0, 0, 255, 0, 0], bytes([0, 255])),
}


@pytest.mark.parametrize("name", SAME)
def test_a_picture_means_what_it_shows(name: str, image_file: ImageFile, tmp_path: Path) -> None:
    warnings: list[str] = []
    SAME[name].save(tmp_path / "l.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "l.png", image_file, warnings=warnings)[0], MASK)
    assert not warnings
    if SAME[name].mode in ("L", "RGB", "1", "P") and "transparency" not in SAME[name].info:
        for suffix in (".bmp", ".tif"):
            SAME[name].save(tmp_path / f"l{suffix}")
            np.testing.assert_array_equal(read_mask(tmp_path / f"l{suffix}", image_file)[0], MASK)


def test_transparency_of_one_grey(image_file: ImageFile, tmp_path: Path) -> None:
    """tRNS of a grey PNG: that grey is what one sees through."""
    Image.fromarray(MASK + np.uint8(7)).save(tmp_path / "l.png", transparency=7)
    np.testing.assert_array_equal(read_mask(tmp_path / "l.png", image_file)[0], MASK)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("name", SAME)
def test_a_plain_label_is_the_same_to_every_reader(
    name: str, suffix: str, image_file: ImageFile, tmp_path: Path
) -> None:
    """Clients show a label by its pixels: palettes and transparency are written anew, the others left as they came."""
    path = tmp_path / f"l{suffix}"
    if suffix != ".png" and (SAME[name].mode not in ("L", "RGB", "1", "P") or "transparency" in SAME[name].info):
        return
    SAME[name].save(path)
    before = path.read_bytes()
    make_plain(path, read_mask(path, image_file), image_file)
    with Image.open(path) as image:
        pixels = np.asarray(image)
        assert (
            image.mode in ("1", "L", "I;16") and image.format == {".png": "PNG", ".tif": "TIFF", ".bmp": "BMP"}[suffix]
        )
    np.testing.assert_array_equal(pixels > 0, LESION)
    np.testing.assert_array_equal(read_mask(path, image_file)[0], MASK)
    if name in ("one bit", "coded 1", "coded 128", "white", "16 bits, 1", "16 bits, white"):
        assert path.read_bytes() == before


@pytest.mark.parametrize("soft", ["PNG edges", "alpha edges", "noise"])
def test_soft_edges_and_noise_are_cut_with_a_warning(soft: str, image_file: ImageFile, tmp_path: Path) -> None:
    noise = np.clip(WHITE.astype(int) - 3 + np.random.default_rng(0).integers(0, 5, MASK.shape), 0, 255)
    image, expected = {
        "PNG edges": (Image.fromarray(SOFT), SOFT >= 128),
        "alpha edges": (Image.fromarray(np.dstack([np.full((H, W, 3), 255, np.uint8), SOFT])), SOFT >= 128),
        "noise": (Image.fromarray(noise.astype(np.uint8)), LESION),
    }[soft]
    image.save(tmp_path / "l.png")
    warnings: list[str] = []
    np.testing.assert_array_equal(read_mask(tmp_path / "l.png", image_file, warnings=warnings)[0], expected)
    assert "cut in the middle" in warnings[0]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_a_jpeg_keeps_its_outline(quality: int, mode: str, image_file: ImageFile, tmp_path: Path) -> None:
    Image.fromarray(WHITE).convert(mode).save(tmp_path / "l.jpg", quality=quality)
    found = read_mask(tmp_path / "l.jpg", image_file)[0]
    assert np.count_nonzero(found != MASK) <= 4
    Image.open(tmp_path / "l.jpg").save(tmp_path / "once.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "once.png", image_file)[0], found)
    Image.open(tmp_path / "l.jpg").save(tmp_path / "packed.tif", compression="jpeg", quality=95)
    assert np.count_nonzero(read_mask(tmp_path / "packed.tif", image_file)[0] != MASK) <= 4


RED, GREEN, YELLOW, CLEAR = (255, 0, 0, 255), (0, 255, 0, 255), (255, 255, 0, 255), (0, 0, 0, 0)
REFUSED: dict[str, tuple[Any, str]] = {
    "values 1 and 2": (
        np.where(YY > 90, 2, MASK).astype(np.uint8),
        "holds the values 0, 1, 2; expected 0 and one other",
    ),
    "two greys": (rgb((200, 200, 200), (100, 100, 100)), "holds the values 100, 200, none of them black"),
    "two colours, no black": (rgb((255, 0, 0), (0, 0, 255)), "2 colours .*#0000ff, #ff0000.*none of them black"),
    "red and green": (np.where((YY > 90)[..., None], [0, 255, 0], rgb((255, 0, 0))).astype(np.uint8), "3 colours"),
    "probabilities": (WIDE, "a probability map"),
    "a probability map in alpha": (np.dstack([np.full((H, W, 3), 255, np.uint8), WIDE]), "degrees of transparency"),
    "a picture": (np.random.default_rng(0).integers(0, 256, (H, W)).astype(np.uint8), "a picture"),
    "16 bits, three values": (np.where(YY > 90, 9, MASK).astype(np.uint16), r"several values \(1, 9\)"),
    "inverted": (np.where(YY < 5, 0, 255).astype(np.uint8), "marks 95.8 % of the picture: is it inverted"),
    "all white": (np.full((H, W, 3), 255, np.uint8), "marks 100 % of the picture: is it inverted"),
    "colours against alpha": (
        np.where((XX > 60)[..., None], rgb(RED, (0, 0, 0, 255)), np.array(CLEAR)).astype(np.uint8),
        "one thing in its colours and another in its transparency",
    ),
    "a hole": (rgb((255, 255, 255, 0), (0, 0, 0, 255)), "one thing in its colours"),
    "two colours in alpha": (np.where((XX > 110)[..., None], rgb(RED, CLEAR), rgb(GREEN, CLEAR)), "one thing in its"),
    "nothing to be seen": (rgb((255, 0, 0, 0), (255, 0, 0, 0)), "wholly transparent"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_is_no_mask_is_refused(name: str, image_file: ImageFile, tmp_path: Path) -> None:
    pixels, words = REFUSED[name]
    Image.fromarray(pixels).save(tmp_path / "l.png")
    with pytest.raises(InputError, match=rf"l\.png: its label .*{words}"):
        read_mask(tmp_path / "l.png", image_file)


@pytest.mark.parametrize("pixels", [np.zeros((H, W), np.uint8), rgb(CLEAR, CLEAR), np.zeros((H, W, 3), np.uint8)])
def test_nothing_drawn_is_no_lesion(pixels: np.ndarray, image_file: ImageFile, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "l.png")
    assert not read_mask(tmp_path / "l.png", image_file).any()


def test_a_jpeg_coded_0_and_1_is_refused_not_empty(image_file: ImageFile, tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "l.jpg", quality=95)
    with pytest.raises(InputError, match="holds the values 0, 1"):
        read_mask(tmp_path / "l.jpg", image_file)


def test_16_bits_a_colour_are_not_lost(image_file: ImageFile, tmp_path: Path) -> None:
    """Pillow keeps the upper 8 of them: 1 of 65535 would be black."""

    def png(value: int) -> bytes:
        import zlib

        rows = np.zeros((H, W, 3), ">u2")
        rows[LESION] = value
        raw = b"".join(b"\0" + row.tobytes() for row in rows)
        out = b"\x89PNG\r\n\x1a\n"
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(raw)),
            (b"IEND", b""),
        ):
            out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        return out

    (tmp_path / "l.png").write_bytes(png(65535))
    np.testing.assert_array_equal(read_mask(tmp_path / "l.png", image_file)[0], MASK)
    (tmp_path / "l.png").write_bytes(png(1))
    with pytest.raises(InputError, match="16 bits a colour"):
        read_mask(tmp_path / "l.png", image_file)


def test_white_is_0_in_a_tiff(image_file: ImageFile, tmp_path: Path) -> None:
    """PhotometricInterpretation 0, in 8 and in 16 bits: stored 0 shows white."""
    for pixels in (255 - WHITE, 65535 - MASK.astype(np.uint16) * 65535):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "TIFF")
        content = bytearray(buffer.getvalue())
        entry = content.index(struct.pack("<HHI", 262, 3, 1))
        assert content[entry + 8] == 1
        content[entry + 8] = 0
        (tmp_path / "l.tif").write_bytes(content)
        np.testing.assert_array_equal(read_mask(tmp_path / "l.tif", image_file)[0], MASK)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(1, 9), second=st.integers(0, 9), suffix=st.sampled_from([".nii.gz", ".nii", ".nrrd"]))
@pytest.mark.parametrize("kind", ["u1", "i2", "f4", "f8"])
def test_labelmaps(kind: str, first: int, second: int, suffix: str, image_file: ImageFile, tmp_path: Path) -> None:
    """0 and one other are the lesion in any format and type; two others are refused at the door."""
    grid = (MASK.T * first).astype(kind)
    if second:
        grid[:3, :3] = second
    path = tmp_path / f"l{suffix}"
    if suffix == ".nrrd":
        nrrd.write(str(path), grid)
    else:
        nibabel.save(nibabel.Nifti1Image(grid, np.eye(4)), path)
    if second in (0, first):
        assert read_mask(path, image_file).sum() == MASK.sum() + 9 * (second > 0)
        return
    with pytest.raises(InputError, match=r"l\.\S+: its label has several values"):
        read_mask(path, image_file)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_grids_that_are_no_label(suffix: str, image_file: ImageFile, tmp_path: Path) -> None:
    path = tmp_path / f"l{suffix}"

    def save(grid: np.ndarray) -> None:
        if suffix == ".nii.gz":
            nibabel.save(nibabel.Nifti1Image(grid, np.eye(4)), path)
        else:
            nrrd.write(str(path), grid)

    save((WIDE.T / 255).astype(np.float32))
    with pytest.raises(InputError, match="not whole .* a probability map is no label"):
        read_mask(path, image_file)
    save(np.where(MASK.T, -1, 0).astype(np.int16))
    with pytest.raises(InputError, match="negative"):
        read_mask(path, image_file)
    save(np.where(MASK.T, np.nan, 0).astype(np.float32))
    with pytest.raises(InputError, match="no numbers"):
        read_mask(path, image_file)
    save((YY.T > 5).astype(np.uint8))
    with pytest.raises(InputError, match=r"l\S+: its label marks 9.* % of the picture: is it inverted"):
        read_mask(path, image_file)
    assert read_mask(path, image_file, confirmed=True).mean() > 0.9


def test_a_segmentation_says_which_values_are_segments(image_file: ImageFile, tmp_path: Path) -> None:
    """3D Slicer's fields name them; without any, 1 and 2 are two labels, whatever the file is called."""
    grid, two = MASK.T.copy()[..., None], MASK.T.copy()[..., None]
    two[:9, :9] = 2
    fields = {"Segment0_LabelValue": "1", "Segment0_Name": "Segment_1"}
    fields |= {"Segment1_LabelValue": "2", "Segment1_Name": "Segment_2"}
    for name in ("l.nrrd", "l.seg.nrrd"):
        nrrd.write(str(tmp_path / name), two, {"custom": "x"})
        with pytest.raises(InputError, match=r"several values \(1, 2\)"):
            read_mask(tmp_path / name, image_file)
        nrrd.write(str(tmp_path / name), two, fields)
        assert read_mask(tmp_path / name, image_file).sum() == MASK.sum() + 81
        nrrd.write(str(tmp_path / name), two, {**fields, "Segment1_Name": "shadow"})
        with pytest.raises(InputError, match="several segments"):
            read_mask(tmp_path / name, image_file)
        nrrd.write(str(tmp_path / name), grid, {**fields, "Segment1_Name": "shadow"})
        np.testing.assert_array_equal(read_mask(tmp_path / name, image_file)[0], MASK)


def test_an_intercept_counts(image_file: ImageFile, tmp_path: Path) -> None:
    """scl_slope and scl_inter: stored -1 and 0 are 0 and 1."""
    image = nibabel.Nifti1Image(MASK.T.astype(np.int16) - 1, np.eye(4))
    image.header.set_slope_inter(1, 1)
    image.to_filename(tmp_path / "l.nii.gz")
    raw = bytearray(gzip.decompress((tmp_path / "l.nii.gz").read_bytes()))
    raw[112:120] = struct.pack("<ff", 1.0, 1.0)
    raw[352:] = (MASK.T.astype(np.int16) - 1).tobytes("F")
    (tmp_path / "l.nii").write_bytes(raw)
    np.testing.assert_array_equal(read_mask(tmp_path / "l.nii", image_file)[0], MASK)


def test_an_outline_of_the_whole_frame_is_asked_about(image_file: ImageFile, tmp_path: Path) -> None:
    """Less than nine tenths, but all four corners: said, not refused."""
    Image.fromarray(255 - WHITE).save(tmp_path / "l.png")
    warnings: list[str] = []
    assert read_mask(tmp_path / "l.png", image_file, warnings=warnings).mean() < 0.9
    assert "all four corners of the picture: is it inverted?" in warnings[0]


def test_messages_hold_no_folder(image_file: ImageFile, tmp_path: Path) -> None:
    for suffix in (".nii.gz", ".nii", ".nrrd", ".png", ".tif"):
        path = tmp_path / f"damaged{suffix}"
        for content in (b"not what it says", b"", b"\x1f\x8b" + b"\0" * 400):
            path.write_bytes(content)
            with pytest.raises(InputError, match="damaged") as error:
                read_mask(path, image_file)
            assert str(tmp_path) not in str(error.value)
            with pytest.raises(InputError) as error:
                read_image_file(path)
            assert str(tmp_path) not in str(error.value)


# --- sizes ------------------------------------------------------------------------------------------------------------


def nifti(path: Path, shape: tuple[int, ...], kind: Any) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(kind)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(path, "wb", 1) as file:
        file.write(header.binaryblock + b"\0" * 4)
        for _ in range(shape[0]):
            file.write(bytes(int(np.prod(shape[1:])) * np.dtype(kind).itemsize))


def hostile(path: Path, kind: str) -> Path:
    """A small file that unpacks to 32 MB or more."""
    if kind == "nifti":
        nifti(path / "l.nii.gz", (2000, 2000), np.float64)
        return path / "l.nii.gz"
    if kind == "nrrd":
        nrrd.write(str(path / "l.nrrd"), np.zeros((2000, 2000), np.float64))
        return path / "l.nrrd"
    if kind == "layers":
        header = {"kinds": ["list", "domain", "domain"]}
        nrrd.write(str(path / "l.seg.nrrd"), np.zeros((2000, W, H), np.uint8), header)
        return path / "l.seg.nrrd"
    if kind == "pages":
        page = Image.new("1", (W, H))
        page.save(path / "l.tif", save_all=True, append_images=[page] * 300, compression="group4")
        return path / "l.tif"
    image = Image.new("RGBA" if kind == "png" else "RGB", (4000, 3000))
    image.save(path / f"l.{kind}")
    return path / f"l.{kind}"


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "layers", "png", "jpg", "tif", "bmp", "pages"])
def test_a_large_label_is_refused_before_it_is_unpacked(kind: str, image_file: ImageFile, tmp_path: Path) -> None:
    path = hostile(tmp_path, kind)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"{W}|limit"):
            read_mask(path, image_file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3e6, f"{peak / 1e6:.1f} MB"


def test_a_label_longer_than_its_image_in_any_axis_is_refused(image_file: ImageFile, tmp_path: Path) -> None:
    for shape in ((W + 1, H, 1), (H, W + 1), (W, H, 2), (1, H + 1, W), (W + 1, 1, 1)):
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), tmp_path / "l.nii")
        with pytest.raises(InputError, match=f"does not lie on its image of {W} x {H} x 1: it is longer"):
            read_mask(tmp_path / "l.nii", image_file)
    Image.fromarray(WHITE).save(tmp_path / "l.tif", save_all=True, append_images=[Image.fromarray(WHITE)])
    with pytest.raises(InputError, match=r"with (more than 1|2) frame"):
        read_mask(tmp_path / "l.tif", image_file)


@pytest.mark.parametrize("shape", [(100, 90, 3), (W, 90, 3), (W, H, 2), (W, H, 1), (10, 10, 1)])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_label_that_was_resized_is_no_crop(shape: tuple[int, int, int], suffix: str, tmp_path: Path) -> None:
    """It begins where its image begins: it would be stored in a corner, or on the wrong frame, or as no lesion."""
    frames = [Image.fromarray(((YY + k) % 251).astype(np.uint8)) for k in range(3)]
    frames[0].save(tmp_path / "cine.tif", save_all=True, append_images=frames[1:])
    image_file, label = read_image_file(tmp_path / "cine.tif"), tmp_path / f"l{suffix}"

    def save(values: np.ndarray, start: int) -> None:
        lps = np.eye(4)
        lps[0, 3] = start
        if suffix == ".nrrd":
            fields = {"space": "left-posterior-superior", "space directions": lps[:3, :3], "space origin": lps[:3, 3]}
            nrrd.write(str(label), values, fields)
        else:
            nibabel.save(nibabel.Nifti1Image(values, RAS_FROM_LPS @ lps), label)

    for values in (
        np.zeros(shape, np.uint8),
        np.pad(np.ones((4, 4, 1), np.uint8), [(0, n - k) for n, k in zip(shape, (4, 4, 1))]),
    ):
        save(values, 0)
        with pytest.raises(InputError, match="on the image's grid"):
            read_mask(label, image_file)
    if shape[0] < W:  # a crop: it begins elsewhere
        save(values, 7)
        found = read_mask(label, image_file)
        assert found.sum() == values.sum() and found[0, :4, 7:11].all()


def test_pages_of_a_cine(tmp_path: Path) -> None:
    frames = [Image.fromarray(((YY + k) % 251).astype(np.uint8)) for k in range(3)]
    frames[0].save(tmp_path / "cine.tif", save_all=True, append_images=frames[1:])
    image_file = read_image_file(tmp_path / "cine.tif")
    pages = [Image.fromarray(np.roll(WHITE, k)) for k in range(3)]
    pages[0].save(tmp_path / "l.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_mask(tmp_path / "l.tif", image_file), [np.roll(MASK, k) for k in range(3)])
    pages[1] = pages[1].convert("P")
    pages[1].putpalette([0, 0, 0] + [9] * 762 + [255, 0, 0])
    pages[0].save(tmp_path / "l.tif", save_all=True, append_images=pages[1:])
    make_plain(tmp_path / "l.tif", read_mask(tmp_path / "l.tif", image_file), image_file)
    np.testing.assert_array_equal(read_mask(tmp_path / "l.tif", image_file), [np.roll(MASK, k) for k in range(3)])
    pages[2] = Image.fromarray(np.full((H, W), 255, np.uint8))
    pages[0].save(tmp_path / "l.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="100 % of frame 2"):
        read_mask(tmp_path / "l.tif", image_file)
    write_mask(tmp_path / "l.nii.gz", np.stack([MASK] * 3), image_file)
    assert read_mask(tmp_path / "l.nii.gz", image_file).sum() == 3 * MASK.sum()
