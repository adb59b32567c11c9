"""Any image file as a DICOM viewer gets it over DICOMweb: DICOM as it is stored, all others wrapped as an Ultrasound (Multi-frame)
Image (PS3.3 A.6, A.7). Nothing is written; the file stays as it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import ImageFile
from ultrarefiner_monai.dicom.file import MULTI_FRAME, SINGLE_FRAME, open_dicom
from ultrarefiner_monai.dicom.header import element
from ultrarefiner_monai.imaging.colour import colour_frame

EXPLICIT = "1.2.840.10008.1.2.1"
_NATIVE = ("1.2.840.10008.1.2", EXPLICIT)
# What viewers in a browser decode: JPEG baseline and lossless, JPEG-LS, JPEG 2000, RLE, High-Throughput JPEG 2000.
_PACKED = {
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    "1.2.840.10008.1.2.5",
}
_NAMESPACE = uuid.UUID("5a3df8f4-3a0c-4f62-a5c6-7a4c3f0c9a55")
_MILLISECONDS = "50"  # from frame to frame, where a file does not say
_LARGEST = 1024  # bytes of an element that goes into metadata
_BYTES_VR = ("OB", "OW", "OD", "OF", "OL", "OV", "UN")


@dataclass(frozen=True)
class Instance:
    """dataset: without its pixels and what else is large, with the three UIDs. frame: number from 0 -> its bytes in
    ``transfer_syntax``. size: bytes of the pixels that it keeps in memory."""

    dataset: Any
    frames: int
    transfer_syntax: str
    frame: Callable[[int], bytes]
    size: int = 1

    def metadata(self) -> dict[str, Any]:
        """As DICOM JSON (PS3.18 F)."""
        found: dict[str, Any] = self.dataset.to_json_dict(suppress_invalid_tags=True)
        found["00083002"] = {"vr": "UI", "Value": [self.transfer_syntax]}  # AvailableTransferSyntaxUID
        return found


def derived_uid(*parts: str) -> str:
    """A UID that the same parts always give (PS3.5 B.2: a UUID as a number)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"


def uids_of(owner: str, image_id: str, state: str) -> tuple[str, str, str]:
    """(study, series, instance) of an image that has none. owner: names the studies folder; state: changes with the file, and
    with it the instance's UID alone."""
    return (
        derived_uid(owner, image_id, "study"),
        derived_uid(owner, image_id, "series"),
        derived_uid(owner, image_id, "instance", state),
    )


def stored(path: Path) -> Instance | None:
    """A DICOM file as it is stored; None where browsers do not read it: another transfer syntax, pixels that are missing or cut
    off. It is then wrapped as a picture is. Raises InputError for what is no DICOM file."""
    dataset = open_dicom(path)
    syntax = str(element(getattr(dataset, "file_meta", None) or {}, "TransferSyntaxUID", ""))
    if "PixelData" not in dataset or (syntax not in _NATIVE and syntax not in _PACKED):
        return None
    try:
        count = max(1, int(element(dataset, "NumberOfFrames", 1) or 1))
        frame = _native(dataset, count) if syntax in _NATIVE else _packed(dataset, count)
    except (TypeError, ValueError, AttributeError):
        return None
    if frame is None:
        return None
    size = len(dataset.PixelData)
    del dataset.PixelData
    dataset.walk(_drop_large)
    return Instance(dataset, count, EXPLICIT if syntax in _NATIVE else syntax, frame, size)


def _native(dataset: Any, count: int) -> Callable[[int], bytes] | None:
    bits = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated)
    pixels, size = bytes(dataset.PixelData), bits // 8
    if bits % 8 or not size or len(pixels) < size * count:
        return None
    return lambda k: pixels[k * size : (k + 1) * size]


def _packed(dataset: Any, count: int) -> Callable[[int], bytes] | None:
    from pydicom.encaps import generate_frames

    parts = list(generate_frames(dataset.PixelData, number_of_frames=count))
    return None if len(parts) < count else lambda k: parts[k]


def wrapped(image_file: ImageFile, image_id: str, uids: tuple[str, str, str], header: Any = None) -> Instance:
    """An image file as an ultrasound image: 8 bits, grey, or RGB where the picture has colours.

    header: a DICOM dataset whose patient and study it keeps, with ``uids``. Sizes: as the file knows them, by region.
    """
    from pydicom import Dataset

    colours = None if header is not None else colour_frame(image_file)
    ds: Any = Dataset()
    several = image_file.n_frames > 1
    ds.SOPClassUID = MULTI_FRAME if several else SINGLE_FRAME
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = uids
    ds.PatientName, ds.PatientID = image_id[:64], image_id[:64]
    ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ds.StudyID = ds.Manufacturer = ""
    ds.StudyDescription = image_file.path.name[:64]
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "StudyDescription",
    ):
        if header is not None and keyword in header:
            setattr(ds, keyword, element(header, keyword, ""))
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "US", 1, 1
    ds.Laterality = ds.PatientOrientation = ""  # asked for, and not known
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.Rows, ds.Columns = image_file.height, image_file.width
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (1, "MONOCHROME2") if colours is None else (3, "RGB")
    if colours is not None:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    if several:
        ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = image_file.n_frames, _MILLISECONDS, 0x00181063
    if image_file.spacing_mm is not None:
        ds.SequenceOfUltrasoundRegions = _regions(image_file)
    return Instance(ds, image_file.n_frames, EXPLICIT, partial(_pixels, image_file, colours is not None))


def _pixels(image_file: ImageFile, colour: bool, index: int) -> bytes:
    shown = rendered(image_file, index) if colour else _grey(image_file, index)
    grey_too = colour and shown.ndim == 2  # a frame without colours among others
    return (np.repeat(shown[..., None], 3, axis=2) if grey_too else shown).tobytes()


def _regions(image_file: ImageFile) -> list[Any]:
    """Regions of tissue (PS3.3 C.8.5.5) that say how large a pixel is: those of the file, or one all over."""
    from pydicom import Dataset

    whole = (slice(0, image_file.height), slice(0, image_file.width))
    found = []
    assert image_file.spacing_mm is not None
    for rows, columns in image_file.regions or (whole,):
        region: Any = Dataset()
        region.RegionSpatialFormat = region.RegionDataType = 1
        region.RegionFlags = 0
        region.RegionLocationMinX0, region.RegionLocationMinY0 = columns.start, rows.start
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = columns.stop - 1, rows.stop - 1
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
        region.PhysicalDeltaY, region.PhysicalDeltaX = (mm / 10 for mm in image_file.spacing_mm)
        found.append(region)
    return found


def as_file(instance: Instance) -> bytes:
    """The whole object as a DICOM file."""
    import io
    from copy import deepcopy

    from pydicom import FileDataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate

    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID = instance.dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = instance.dataset.SOPInstanceUID
    meta.TransferSyntaxUID = instance.transfer_syntax
    ds: Any = FileDataset("", deepcopy(instance.dataset), file_meta=meta, preamble=b"\0" * 128)
    parts = [instance.frame(k) for k in range(instance.frames)]
    if instance.transfer_syntax == EXPLICIT:
        pixels = b"".join(parts)
        ds.PixelData = pixels + b"\0" * (len(pixels) % 2)
        ds["PixelData"].VR = "OW" if int(ds.BitsAllocated) > 8 else "OB"
    else:
        ds.PixelData = encapsulate(parts)
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def rendered(image_file: ImageFile, index: int) -> np.ndarray:
    """Frame ``index`` as it is shown: (H, W) uint8, or (H, W, 3) where the picture has colours."""
    colours = colour_frame(image_file, index)
    return _grey(image_file, index) if colours is None else colours


def _grey(image_file: ImageFile, index: int) -> np.ndarray:
    return np.rint(image_file.frame(index) * 255).astype(np.uint8)


def _drop_large(dataset: Any, item: Any) -> None:
    if item.VR in _BYTES_VR and item.value is not None and len(item.value) > _LARGEST:
        del dataset[item.tag]
