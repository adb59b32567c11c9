"""Reads one picture in every DICOM coding and pydicom's own test files, and writes docs/it/compatibility.md.

python benchmarks/check_dicom.py --out docs/it/compatibility.md      (needs the extra `test`: imagecodecs encodes)
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import has_mark, open_dicom
from ultrarefiner_monai.imaging.readers import read_image_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from codings import Coded, every_coding  # noqa: E402

HEAD = """# Compatibility with DICOM files

Written by `python benchmarks/check_dicom.py --out docs/it/compatibility.md`; `tests/dicom/test_dicom_compat.py` reads the same
files. Versions: {versions}.

What is not read is refused with a message that names the file, the coding and what to do; the server offers it to nobody.

## One ultrasound picture in every coding

{width} x {height} pixels, smooth grey, a dark lesion, colour bars; read as grey by ITU-R 601-2. Difference: from the picture
before it was coded, in grey levels of 255, the 99th percentile. 12 bits in 8 cost up to 0.8; the lossy codings cost what they do.

| Transfer syntax | Read | Difference |
| --- | --- | --- |
"""
MIDDLE = """
HTJ2K needs the UIDs of DICOM 2023 and is decoded by OpenJPEG. YBR_PARTIAL_420 occurs in video only, which is refused.

## Values, frames, headers

| What the file says | What is done |
| --- | --- |
| More than 8 bits, a window | the first window that makes sense, linear or sigmoid; one that would show nearly nothing is not used, with a warning |
| More than 8 bits, a VOI look-up table and no window | the table |
| More than 8 bits, neither | white is the largest value of 8, 10, 12, 14 or 16 bits, the fewest that hold the values; with a warning where that is not BitsStored. One scale for all frames of a file and for all files of a series; colours alike |
| Values beyond BitsStored | scaled alike, with a warning; bits of an overlay above those stored are taken out |
| Signed values without a window | from the smallest to the largest, with a warning |
| A picture that is nearly black, white or one grey | read with a warning, in every format |
| NumberOfFrames smaller than what the pixels hold, or missing | as many frames as it says (one), as ITK and 3D Slicer show, with a warning |
| NumberOfFrames larger than what the pixels hold | refused as truncated |
| NumberOfFrames 0, negative or no number | one frame, with a warning |
| An offset table that does not fit the fragments | not used: frames are told by the beginnings of their streams |
| SamplesPerPixel, PhotometricInterpretation, BitsStored, PixelRepresentation, PlanarConfiguration, TransferSyntaxUID or Modality missing | read with the obvious default, with a warning |
| Rows, Columns or BitsAllocated missing | refused, it names them |
| A damaged element that is not needed (decimal comma, wrong VR, broken sequence) | read without it, with a warning where it would have counted |
| PixelRepresentation or PlanarConfiguration that is neither 0 nor 1; BitsStored beyond BitsAllocated | taken as missing, with a warning |
| A JPEG, JPEG-LS or JPEG 2000 stream of another size than Rows and Columns | refused before it is unpacked |
| Different pictures with one SOPInstanceUID | each is offered: the first under the UID, the others under the UID and a digest, for good |

## Ultrasound regions, spacing, series

| What the file says | What is done |
| --- | --- |
| One B-mode region of the whole screen, or no regions | the whole screen is used |
| Several B-mode regions, B-mode beside colour, spectrum or M-mode | each B-mode region by itself; nothing outside is ever lesion, a click there is refused |
| A colour box on a B-mode region | the region is used, box included: the tissue below it is still outlined |
| A spectrum drawn over a B-mode region | the region gives way to it |
| Regions, but none that is usable B-mode (Doppler only, off the screen, icons) | the whole screen is used, with a warning |
| Region spacing missing, 0, negative, NaN, below 1 µm or above 20 mm | PixelSpacing, then ImagerPixelSpacing, then the functional groups; without any: px instead of mm, with a warning where one was absurd |
| Regions of different spacing | lengths are those of the largest region, with a warning |
| Several instances of one size in a series | one image, frames by InstanceNumber; each frame measured with its own spacing |
| Instances of several sizes in a series | refused as a series, the sizes are named; each instance can be asked for by itself |
| Segmentation, report, key object, presentation state, PDF, waveform, radiotherapy object, DICOMDIR | never offered as an image |
| Deflated files | inflated up to 512 MB, refused beyond |

## Moving pictures

Read as cines: GIF and animated WebP; with the extra `video` (`pip install 'ultrarefiner_monai[video]'`) MP4, M4V, MOV, AVI,
MKV, WebM and WMV. 3D Slicer opens none of them, so its clients are handed a NIfTI of the frames, and masks lie on that grid.

| What the file says | What is done |
| --- | --- |
| Codec | H.264, HEVC, AV1, VP8, VP9, MPEG-1, -2, -4, MS-MPEG-4, WMV, VC-1, MJPEG, JPEG 2000, PNG, DV, raw, HuffYUV, FFV1, Ut Video, RLE, Cinepak; others are refused |
| Colours | Y of YCbCr, brought from 16-235 to 0-255 where the video says so or nothing; RGB by ITU-R 601-2 |
| Frames of a GIF | composed as viewers show them, black where transparent |
| Number of frames | those that can be decoded; a warning where the file announces more, or frames are damaged |
| Rate, rotation, pixels that are not square | not applied; the latter two with a warning |
| Pixel size | unknown: sizes are given in pixels |
| Playlists, links to other files | never followed: the container is the one that the extension says |
| Animated PNG | its first picture alone, with a warning |
| Without the extra `video` | not offered; the log says what to install |

## pydicom's test files

The files that pydicom {pydicom} brings along, {total} of them: {read} read, {refused} refused, none with another error.
They are mostly CT, MR and secondary captures, read with a warning about the modality.

| File | Modality | Transfer syntax, photometric interpretation | Result |
| --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Outcome:
    """What came of reading one file. problem: the refusal's message, "" when it was read."""

    problem: str = ""
    shape: tuple[int, ...] = ()
    difference: float | None = None


def try_coding(coded: Coded, folder: Path) -> Outcome:
    """Read one coding, all frames."""
    path = folder / "file.dcm"
    path.write_bytes(coded.content)
    try:
        frames = read_image_file(path).frames * 255
    except InputError as error:
        return Outcome(str(error))
    if coded.expected is None:
        return Outcome("", frames.shape)
    return Outcome("", frames.shape, float(np.quantile(np.abs(frames - coded.expected), 0.99)))


def shipped_files() -> Iterator[Path]:
    """pydicom's test files that are DICOM: by their mark, or by their extension."""
    root = Path(pydicom.data.__file__).parent / "test_files"
    for path in sorted(root.rglob("*")):
        if path.is_file() and (has_mark(path) or path.suffix == ".dcm"):
            yield path


def try_file(path: Path) -> Outcome:
    """Read one file, its first and last frame."""
    try:
        image_file = read_image_file(path)
        image_file.frame(0)
        image_file.frame(image_file.n_frames - 1)
    except InputError as error:
        return Outcome(str(error))
    return Outcome("", image_file.shape)


def describe(path: Path) -> tuple[str, str]:
    """(modality, transfer syntax and photometric interpretation) as far as the header says."""
    try:
        header = open_dicom(path, header_only=True)
    except Exception:  # refused or damaged: the result says so
        return "-", "-"
    syntax = header.file_meta.get("TransferSyntaxUID")
    name = "-" if syntax is None else str(getattr(syntax, "name", syntax))
    return str(header.get("Modality", "") or "-"), f"{name}, {header.get('PhotometricInterpretation', '-')}"


def compatibility() -> str:
    """The page."""
    from importlib.metadata import version

    names = ("pydicom", "pillow", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle")
    with tempfile.TemporaryDirectory() as folder:
        codings = [(c, try_coding(c, Path(folder))) for c in every_coding()]
    files = [(path, try_file(path)) for path in shipped_files()]
    height, width = next(o.shape[1:] for _, o in codings if o.shape)
    page = HEAD.format(versions=", ".join(f"{n} {version(n)}" for n in names), width=width, height=height)
    page += "".join(_coding_rows(codings))
    refused = sum(bool(o.problem) for _, o in files)
    counts = {"total": len(files), "refused": refused, "read": len(files) - refused}
    return page + MIDDLE.format(pydicom=version("pydicom"), **counts) + "".join(_file_rows(files))


def _coding_rows(codings: list[tuple[Coded, Outcome]]) -> Iterator[str]:
    for syntax in dict.fromkeys(c.syntax for c, _ in codings):
        rows = [(c, o) for c, o in codings if c.syntax == syntax]
        read = [f"{c.photometric} ({c.note})" if c.note else c.photometric for c, o in rows if not o.problem]
        problems = [o.problem.removeprefix("file.dcm ") for _, o in rows if o.problem]
        differences = [o.difference for _, o in rows if o.difference is not None]
        shown = ", ".join(read) + "; ".join(f"refused: {p}" for p in problems)
        yield f"| {syntax} | {shown} | {f'{max(differences):.1f}' if differences else ''} |\n"


def _file_rows(files: list[tuple[Path, Outcome]]) -> Iterator[str]:
    """One row a file; the many alike of one folder share a row."""
    root = Path(pydicom.data.__file__).parent / "test_files"
    alike: dict[tuple[str, ...], list[str]] = {}
    for path, outcome in files:
        problem = outcome.problem.removeprefix(path.name).lstrip(": ").replace("|", "/")
        result = f"refused: {problem[:160]}" if problem else " x ".join(map(str, outcome.shape[::-1]))
        name, folder = str(path.relative_to(root)), str(path.parent.relative_to(root))
        alike.setdefault((folder if folder != "." else name, *describe(path), result), []).append(name)
    for (place, modality, coding, result), names in alike.items():
        shown = names[0] if len(names) == 1 else f"{len(names)} files in {place}"
        yield f"| {shown} | {modality} | {coding} | {result} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with replacing(options.out, "w") as file:
        file.write(compatibility())


if __name__ == "__main__":
    main()
