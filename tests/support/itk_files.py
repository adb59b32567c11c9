"""Image files of every kind with one off-centre lesion on a grid that is not square, for tests with ITK as the judge."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.pictures import with_png_scale

H, W, T = 42, 60, 3
YY, XX = np.mgrid[:H, :W]
STORAGE = "1.2.840.10008.5.1.4.1.1."
Writer = Callable[[Path], Any]


def cine() -> np.ndarray:
    """(T, H, W) uint8: 30, and 220 in a lesion that moves; no frame is like another turned around."""
    frames = [((YY - 12) / 6) ** 2 + ((XX - 41 + 5 * k) / 10) ** 2 <= 1 for k in range(T)]
    return (np.stack(frames) * 190 + 30).astype(np.uint8)


PX = cine()[0]


def turned(spacing: tuple[float, float, float], flips: tuple[int, int, int], angle: float = 0.0) -> np.ndarray:
    """(4, 4) RAS, turned by ``angle`` about two axes, with an origin off the voxels' raster."""
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    about_z, about_x = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]), np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    matrix[:3, :3] = about_z @ about_x @ np.diag(np.multiply(spacing, flips))
    matrix[:3, 3] = 5.3, -61.7, 7.5
    return matrix


# --- pictures ---------------------------------------------------------------------------------------------------------


def png(scale: bytes | None = None, mode: str = "L", **options: Any) -> Writer:
    """A PNG; ``scale``: the content of an sCAL chunk."""

    def write(path: Path) -> None:
        buffer = io.BytesIO()
        image = Image.fromarray(PX.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(PX).convert(mode)
        image.save(buffer, "PNG", **options)
        content = buffer.getvalue()
        if scale is not None:
            chunk = struct.pack(">I", len(scale)) + b"sCAL" + scale + struct.pack(">I", zlib.crc32(b"sCAL" + scale))
            content = content[:33] + chunk + content[33:]
        path.write_bytes(content)

    return write


def jpeg(unit: int, x: int, y: int) -> Writer:
    def write(path: Path) -> None:
        Image.fromarray(PX).save(path, quality=98, dpi=(72, 72))
        content = bytearray(path.read_bytes())
        at = content.index(b"JFIF") + 7
        content[at : at + 5] = struct.pack(">BHH", unit, x, y)
        path.write_bytes(content)

    return write


def saved(pages: int = 1, mode: str = "L", **options: Any) -> Writer:
    images = [Image.fromarray(frame).convert(mode) for frame in cine()[:pages]]
    more = {"save_all": True, "append_images": images[1:]} if pages > 1 else {}
    return lambda path: images[0].save(path, **more, **options)


def exif(**options: Any) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[282], tags[283], tags[296] = 6, 300.0, 300.0, 2
    return tags


PICTURES: dict[str, tuple[str, Writer]] = {
    "png": (".png", png()),
    "png printed": (".png", png(dpi=(72, 72))),
    "png scale": (".png", png(b"\x010.07\x000.09")),
    "png scale radian": (".png", png(b"\x020.07\x00.09")),
    "png scale metres": (".png", png(b"\x017e-5\x007e-05")),
    "png scale unknown": (".png", png(b"\x000.07\x000.09")),
    "png scale damaged": (".png", png(b"\x010,07\x000,09")),
    "png 16": (".png", png(b"\x010.07\x000.09", "I;16")),
    "png palette": (".png", png(b"\x010.07\x000.09", "P")),
    "png rgb": (".png", png(b"\x010.07\x000.09", "RGB")),
    "png rgba": (".png", png(mode="RGBA")),
    "png exif": (".png", png(exif=exif())),
    "jpeg": (".jpg", saved(quality=98)),
    "jpeg inch": (".jpg", jpeg(1, 254, 127)),
    "jpeg cm": (".jpg", jpeg(2, 100, 50)),
    "jpeg ratio": (".jpg", jpeg(0, 2, 1)),
    "jpeg exif": (".jpg", saved(quality=98, exif=exif())),
    "jpeg rgb": (".jpg", saved(mode="RGB", quality=98, dpi=(72, 72))),
    "tiff": (".tif", saved()),
    "tiff inch": (".tif", saved(dpi=(254, 127))),
    "tiff cm": (".tif", saved(resolution=100.0, resolution_unit=3)),
    "tiff no unit": (".tif", saved(resolution=100.0, resolution_unit=1)),
    "tiff rgb lzw": (".tiff", saved(mode="RGB", compression="tiff_lzw")),
    "tiff pages": (".tif", saved(T, dpi=(254, 127))),
    **{f"tiff orientation {k}": (".tif", saved(tiffinfo={274: k})) for k in range(2, 9)},
    "tiff lzw orientation 6": (".tif", saved(tiffinfo={274: 6}, compression="tiff_lzw")),
    "bmp": (".bmp", saved(dpi=(254, 127))),
    "bmp rgb": (".bmp", saved(mode="RGB")),
    "with_png_scale": (
        ".png",
        lambda path: (png()(path), path.write_bytes(with_png_scale(path.read_bytes(), 0.1, 0.2))),
    ),
}


# --- NIfTI ------------------------------------------------------------------------------------------------------------


def nifti(
    shape: str = "xyt",
    qform: np.ndarray | None = None,
    sform: np.ndarray | None = None,
    codes: tuple[int, int] = (0, 0),
    **fields: Any,
) -> Writer:
    """Raw header fields: nibabel's own writing would mend them."""

    def write(path: Path) -> None:
        frames = cine()
        values = {
            "xy": frames[0].T,
            "xy1": frames[0].T[..., None],
            "xyt": frames.transpose(2, 1, 0),
            "1xy": frames[0].T[None],
            "vector": np.stack([frames[0].T] * 3, -1)[:, :, None, None],
        }[shape]
        header = nibabel.Nifti1Header()
        header.set_data_shape(values.shape)
        header.set_data_dtype(np.uint8)
        header["pixdim"][1:4] = 0.1, 0.2, 0.7
        if qform is not None:
            header.set_qform(qform, 1)
        if sform is not None:
            header["srow_x"], header["srow_y"], header["srow_z"] = sform[:3]
        header["qform_code"], header["sform_code"], header["xyzt_units"] = *codes, 2
        header["magic"], header["vox_offset"] = b"n+1", 352
        for name, value in fields.items():
            header[name] = [*value, *header[name][len(value) :]] if isinstance(value, list) else value
        if shape == "vector":
            header["intent_code"] = 1007
        path.write_bytes(header.binaryblock + b"\0" * 4 + values.tobytes("F"))

    return write


PLAIN, FLAT = turned((0.1, 0.2, 0.7), (-1, -1, 1)), turned((0.1, 0.2, 0.7), (1, 1, 1))
OBLIQUE = turned((0.1, 0.2, 0.7), (-1, 1, -1), 0.3)
MIRROR = PLAIN @ np.diag([-1.0, 1.0, 1.0, 1.0])


def off(millimetres: float) -> np.ndarray:
    matrix = PLAIN.copy()
    matrix[0, 3] += millimetres
    return matrix


NIFTI: dict[str, tuple[str, Writer]] = {
    "nifti no codes": (".nii", nifti("xy1")),
    "nifti no codes, cine": (".nii", nifti()),
    "nifti qform": (".nii", nifti(qform=OBLIQUE, codes=(1, 0))),
    "nifti sform": (".nii", nifti(sform=OBLIQUE, codes=(0, 1))),
    "nifti sform 2": (".nii", nifti(sform=FLAT, codes=(0, 2))),
    **{f"nifti forms {mm} mm apart": (".nii", nifti("xy1", off(mm), PLAIN, (1, 2))) for mm in (5e-5, 0.2, 4.0)},
    "nifti forms apart, scanner": (".nii", nifti("xy1", off(4.0), PLAIN, (1, 1))),
    "nifti forms mirrored": (".nii", nifti("xy1", MIRROR, PLAIN, (1, 2))),
    "nifti forms turned": (".nii", nifti("xyt", OBLIQUE, PLAIN, (1, 4))),
    "nifti skew sform, qform": (".nii", nifti("xyt", PLAIN, PLAIN + np.eye(4, k=1) * 0.05, (1, 1))),
    "nifti metres": (".nii", nifti(sform=OBLIQUE, codes=(0, 1), xyzt_units=1)),
    "nifti microns": (".nii", nifti(qform=PLAIN, codes=(1, 0), xyzt_units=3)),
    "nifti no units": (".nii", nifti(sform=PLAIN, codes=(0, 1), xyzt_units=0)),
    "nifti pixdim unlike sform": (".nii", nifti(sform=OBLIQUE, codes=(0, 1), pixdim=[1, 0.5, 0.4, 2])),
    "nifti pixdim 0": (".nii", nifti(pixdim=[1, 0, 0, 0])),
    "nifti pixdim negative": (".nii", nifti(sform=PLAIN, codes=(0, 1), pixdim=[1, -0.1, 0.2, 0.7])),
    "nifti pixdim negative, no codes": (".nii", nifti(pixdim=[1, 0.1, -0.2, 0.7])),
    "nifti qfac -1": (".nii", nifti(qform=OBLIQUE @ np.diag([1, 1, -1.0, 1]), codes=(1, 0))),
    "nifti flat": (".nii", nifti("xy", sform=PLAIN, codes=(0, 1))),
    "nifti flat, tilted": (".nii", nifti("xy", sform=OBLIQUE, codes=(0, 1))),
    "nifti side": (".nii", nifti("1xy", sform=OBLIQUE, codes=(0, 1))),
    "nifti vector": (".nii", nifti("vector", sform=PLAIN, codes=(0, 1))),
    "nifti slope": (".nii", nifti(sform=PLAIN, codes=(0, 1), scl_slope=1.0)),
}


# --- NRRD -------------------------------------------------------------------------------------------------------------


def nrrd_file(fields: str, shape: str = "xyt", space: str = "LPS") -> Writer:
    def write(path: Path) -> None:
        frames = cine()
        values = {
            "xyt": frames.transpose(2, 1, 0),
            "xy": frames[0].T,
            "cxyt": np.stack([frames.transpose(2, 1, 0)] * 3),
            "xytc": np.stack([frames.transpose(2, 1, 0)] * 3, -1),
            "cxy": np.stack([frames[0].T] * 3),
            "xy1t": frames.transpose(2, 1, 0)[:, :, None],
        }[shape]
        sizes = " ".join(map(str, values.shape))
        head = f"NRRD0005\ntype: uint8\ndimension: {values.ndim}\nsizes: {sizes}\nencoding: raw\nendian: little\n"
        head += (f"space: {space}\n" if space else "") + fields.strip() + "\n\n"
        path.write_bytes(head.encode() + values.tobytes("F"))

    return write


DIRECTIONS = "(0.08,0.06,0) (-0.12,0.16,0) (0,0,-0.7)"
ORIGIN = "\nspace origin: (5.3,6.1,-7)"
PLACE = f"space directions: {DIRECTIONS}{ORIGIN}"
NRRD: dict[str, tuple[str, Writer]] = {
    **{f"nrrd {s}": (".nrrd", nrrd_file(PLACE, space=s)) for s in ("LPS", "RAS", "LAS", "scanner-xyz")},
    "nrrd long name": (".nrrd", nrrd_file(PLACE, space="Right-Anterior-Superior")),
    "nrrd capitals": (".nrrd", nrrd_file("SPACE: RAS\n" + PLACE, space="")),
    "nrrd dimension": (".nrrd", nrrd_file("space dimension: 3\n" + PLACE, space="")),
    "nrrd no origin": (".nrrd", nrrd_file(f"space directions: {DIRECTIONS}")),
    "nrrd plain": (".nrrd", nrrd_file("", space="")),
    "nrrd spacings": (".nrrd", nrrd_file("spacings: 0.1 0.2 nan", space="")),
    "nrrd negative spacing": (".nrrd", nrrd_file("spacings: 0.1 -0.2 0.7", space="")),
    "nrrd mins": (".nrrd", nrrd_file("spacings: 0.1 0.2 0.7\naxis mins: 5 6 7", space="")),
    "nrrd mins node": (".nrrd", nrrd_file("spacings: .1 .2 .7\naxismins: 5 6 7\ncenters: node node node", space="")),
    "nrrd mins maxs": (".nrrd", nrrd_file("axis mins: 0 0 0\naxis maxs: 30 21 6", space="")),
    "nrrd flat": (".nrrd", nrrd_file("spacings: 0.1 0.2\naxis mins: 5 6", "xy", "")),
    "nrrd flat space": (
        ".nrrd",
        nrrd_file("space dimension: 2\nspace directions: (0,0.1) (0.2,0)\nspace origin: (5,6)", "xy", ""),
    ),
    "nrrd colour first": (
        ".nrrd",
        nrrd_file(f"kinds: RGB-color domain domain domain\nspace directions: none {DIRECTIONS}{ORIGIN}", "cxyt"),
    ),
    "nrrd colour last": (
        ".nrrd",
        nrrd_file(f"kinds: domain domain domain vector\nspace directions: {DIRECTIONS} none{ORIGIN}", "xytc"),
    ),
    "nrrd colour, spacings": (
        ".nrrd",
        nrrd_file("kinds: RGB-color domain domain\nspacings: nan .1 .2\naxis mins: nan 5 6", "cxy", ""),
    ),
    "nrrd time": (
        ".nrrd",
        nrrd_file(f"kinds: domain domain time\nspace directions: (0.1,0,0) (0,0.2,0) none{ORIGIN}"),
    ),
    "nrrd thicknesses, frame": (
        ".nrrd",
        nrrd_file(PLACE + "\nthicknesses: nan nan 2\nmeasurement frame: (0,1,0) (1,0,0) (0,0,1)"),
    ),
    "nrrd a key like a field": (".nrrd", nrrd_file(PLACE + "\nspacings:=3 3 3\nspace:=RAS")),
}


# --- DICOM ------------------------------------------------------------------------------------------------------------


def dicom(uid: str = "6.1", frames: int = 1, groups: dict | None = None, **values: Any) -> Writer:
    """An uncompressed file of a class, with the same values in all of the places for a spacing, each its own."""

    def write(path: Path) -> None:
        dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(cine()[:1], 1, 0.1)))
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = STORAGE + uid
        dataset.NumberOfFrames = frames
        dataset.PixelData = cine()[:frames].tobytes()
        dataset["PixelData"].is_undefined_length = False
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        if groups is not None:
            dataset.SharedFunctionalGroupsSequence = Sequence([_shared(**groups)])
            dataset.PerFrameFunctionalGroupsSequence = Sequence(
                [_nested("PlanePositionSequence", ImagePositionPatient=[1, 2 + 1.5 * k, 3]) for k in range(frames)]
            )
        dataset.save_as(path)

    return write


def _nested(sequence: str, **values: Any) -> Dataset:
    outer, inner = Dataset(), Dataset()
    for keyword, value in values.items():
        setattr(inner, keyword, value)
    setattr(outer, sequence, Sequence([inner]))
    return outer


def _shared(**measures: Any) -> Dataset:
    group = _nested("PixelMeasuresSequence", **measures)
    plane = _nested("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 0, 1])
    group.PlaneOrientationSequence = plane.PlaneOrientationSequence
    return group


EVERY_SPACING: dict[str, Any] = {
    "PixelSpacing": [0.1, 0.2],
    "ImagerPixelSpacing": [0.3, 0.4],
    "NominalScannedPixelSpacing": [0.5, 0.6],
    "SpacingBetweenSlices": 2.5,
    "FrameTime": 30,
    "FrameIncrementPointer": 0x00181063,
    "PixelAspectRatio": [3, 4],
}
AXES = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [11, 12, 13]}
DICOM: dict[str, tuple[str, Writer]] = {
    "us": (".dcm", dicom()),
    "us cine": (".dcm", dicom("3.1", T)),
    **{
        f"class {uid} x {count}": (".dcm", dicom(uid, count, **EVERY_SPACING, **AXES))
        for uid in ("6.1", "3.1", "6.2", "7", "7.2", "7.4", "1", "1.1", "1.2", "77.1.1", "77.1.4", "2", "4")
        for count in (1, T)
    },
    "us imager": (".dcm", dicom(ImagerPixelSpacing=[0.3, 0.4])),
    "us groups": (".dcm", dicom("3.1", T, {"PixelSpacing": [0.3, 0.4]})),
    "us orientation alone": (".dcm", dicom(ImageOrientationPatient=AXES["ImageOrientationPatient"])),
    "us position alone": (".dcm", dicom(ImagePositionPatient=[11, 12, 13])),
    "us axes not unit": (".dcm", dicom(ImageOrientationPatient=[0, 2, 0, 3, 0, 0])),
    "us axes skew": (".dcm", dicom(ImageOrientationPatient=[0, 1, 0, 0.6, 0.8, 0])),
    "us axes nearly right": (".dcm", dicom(ImageOrientationPatient=[0, 1, 0, 1, 0.0005, 0])),
    "us negative spacing": (".dcm", dicom(PixelSpacing=[0.1, -0.2])),
    "capture nominal": (".dcm", dicom("7", NominalScannedPixelSpacing=[0.5, 0.6])),
    "capture one value": (".dcm", dicom("7", PixelSpacing=[0.3])),
    "capture zero": (".dcm", dicom("7", PixelSpacing=[0, 0.3])),
    "captures": (".dcm", dicom("7.4", T, {"PixelSpacing": [0.3, 0.4]}, **EVERY_SPACING)),
    "captures, single": (".dcm", dicom("7.2", 1, {"PixelSpacing": [0.3, 0.4], "SpacingBetweenSlices": 2})),
    "captures, single, no depth": (".dcm", dicom("7.2", 1, {"PixelSpacing": [0.3, 0.4]})),
}

FILES = {**PICTURES, **NIFTI, **NRRD, **DICOM}
