"""Writes the sample data: phantom studies in the formats that hospitals have, ready to be served.

    python -m ultrarefiner_monai.datasets.samples OUT --seed 0

The same seed writes the same pictures. Some come with a label in ``labels/final``, where MONAI Label's datastore looks.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.datasets.phantoms import Phantom, make_phantom
from ultrarefiner_monai.dicom.file import MULTI_FRAME, SINGLE_FRAME
from ultrarefiner_monai.imaging.readers import read_image_file, write_mask
from ultrarefiner_monai.imaging.writers import write_bytes

# file name, (height, width), kind, spacing in mm where the format has one, label saved with it
STUDIES: tuple[tuple[str, tuple[int, int], str, float | None, bool], ...] = (
    ("phantom_01.png", (400, 400), "benign", None, True),
    ("phantom_02.png", (360, 520), "malignant", None, True),
    ("phantom_03.png", (400, 400), "none", None, True),
    ("phantom_04.jpg", (380, 460), "benign", None, True),
    ("phantom_05.dcm", (384, 512), "malignant", 0.09, False),
    ("phantom_06.dcm", (256, 320), "benign", 0.12, False),
    ("phantom_07.nii.gz", (320, 400), "malignant", 0.1, True),
    ("phantom_08.png", (420, 420), "malignant", None, False),
    ("phantom_09.png", (460, 380), "benign", None, False),
    ("phantom_10.jpg", (400, 500), "none", None, False),
)
CINE_FRAMES = 12
Box = tuple[int, int, int, int, str]
# RegionSpatialFormat and RegionDataType
_REGION_KINDS = {"tissue": (1, 1), "colour": (1, 2), "spectrum": (3, 3), "m-mode": (2, 1)}
_ROOT_UID = "1.2.826.0.1.3680043.8.498."  # pydicom's, for UIDs made of hashes


def write_samples(folder: str | Path, seed: int = 0) -> list[Path]:
    """Write all studies and their labels below ``folder``; returns the images' paths."""
    folder = Path(folder)
    (folder / "labels" / "final").mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (name, (height, width), kind, spacing, labelled) in enumerate(STUDIES, start=1):
        rng = np.random.default_rng([seed, number])
        path = folder / name
        if name.endswith("06.dcm"):
            frames, masks = make_cine(rng, height, width, CINE_FRAMES, kind)
            write_bytes(path, dicom_bytes(frames, number, spacing or 1.0, seed))
        else:
            phantom = make_phantom(rng, height, width, kind)  # type: ignore[arg-type]
            write_bytes(path, _encode(phantom, path, number, spacing, seed))
            masks = phantom.mask[None]
        if labelled:
            write_mask(folder / "labels" / "final" / f"{name.split('.')[0]}.nii.gz", masks, read_image_file(path))
        paths.append(path)
    return paths


def make_cine(
    rng: np.random.Generator, height: int, width: int, frames: int, lesion: str
) -> tuple[np.ndarray, np.ndarray]:
    """The probe slides along a phantom: images and masks, both (T, height, width) uint8."""
    step = max(1, width // 60)
    wide = make_phantom(rng, height, width + step * (frames - 1), lesion)  # type: ignore[arg-type]
    windows = [slice(k * step, k * step + width) for k in range(frames)]
    images = np.stack([wide.image[:, window] for window in windows]).astype(np.float32)
    images *= 1 + 0.04 * rng.standard_normal(images.shape, dtype=np.float32)
    return np.clip(images, 0, 255).astype(np.uint8), np.stack([wide.mask[:, window] for window in windows])


def _encode(phantom: Phantom, path: Path, number: int, spacing: float | None, seed: int) -> bytes:
    from PIL import Image

    if path.suffix == ".dcm":
        return dicom_bytes(phantom.image[None], number, spacing or 1.0, seed)
    if path.name.endswith(".nii.gz"):
        return _nifti_bytes(phantom.image, spacing or 1.0)
    buffer = io.BytesIO()
    picture = Image.fromarray(phantom.image)
    if path.suffix == ".png":
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _nifti_bytes(image: np.ndarray, spacing: float) -> bytes:
    import gzip

    import nibabel

    volume: Any = nibabel.Nifti1Image(image.T[..., None], np.diag([-spacing, -spacing, 1.0, 1.0]))
    volume.header.set_xyzt_units("mm")
    return gzip.compress(volume.to_bytes(), 9, mtime=0)


def dicom_bytes(
    frames: np.ndarray,
    number: int,
    spacing: float,
    seed: int = 0,
    instance: int = 1,
    regions: Sequence[Box] | None = None,
) -> bytes:
    """An ultrasound DICOM file of (T, H, W) uint8: RLE for one frame, JPEG for a cine.

    spacing: mm. number: of the patient, study and series; instance: within the series. regions: (x0, y0, x1, y1, kind)
    each, the last pixels inside; kind is "tissue", "colour", "spectrum" or "m-mode". Default: one of tissue, all over.
    """
    from PIL import Image
    from pydicom import Dataset, FileDataset
    from pydicom.encaps import encapsulate
    from pydicom.filebase import DicomBytesIO
    from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless, generate_uid

    count, height, width = frames.shape
    sop_class = MULTI_FRAME if count > 1 else SINGLE_FRAME
    uids = [generate_uid(_ROOT_UID, entropy_srcs=[f"phantom-{seed}-{number}-{part}"]) for part in range(3)]
    if instance != 1:
        uids[0] = generate_uid(_ROOT_UID, entropy_srcs=[f"phantom-{seed}-{number}-0-{instance}"])
    meta: Any = Dataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, uids[0]
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds: Any = FileDataset("", {}, file_meta=_file_meta(meta), preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID = sop_class, *uids
    ds.PatientName, ds.PatientID = f"PHANTOM^{number:02d}", f"PHANTOM-{number:02d}"
    ds.PatientBirthDate, ds.PatientSex, ds.StudyDate, ds.StudyTime = "", "O", "20000101", "000000"
    ds.AccessionNumber, ds.ReferringPhysicianName, ds.StudyID = "", "", str(number)
    ds.Modality, ds.Manufacturer, ds.SeriesNumber, ds.InstanceNumber = "US", "ultrarefiner_monai phantom", 1, instance
    ds.StudyDescription, ds.BurnedInAnnotation = "Simulated breast ultrasound, no patient", "NO"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = height, width, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    whole: Box = (0, 0, width - 1, height - 1, "tissue")
    ds.SequenceOfUltrasoundRegions = [_region(box, spacing) for box in ([whole] if regions is None else regions)]
    if count == 1:
        ds.PixelData = frames.tobytes()
        ds.compress(RLELossless, generate_instance_uid=False)
    else:
        ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = count, "50", 0x00181063
        parts = []
        for frame in frames:
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "JPEG", quality=88)
            parts.append(buffer.getvalue())
        ds.PixelData = encapsulate(parts)
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_10918_1"
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    out = DicomBytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _file_meta(values: Any) -> Any:
    from pydicom.dataset import FileMetaDataset

    return FileMetaDataset(values)


def _region(box: Box, spacing: float) -> Any:
    from pydicom import Dataset

    region: Any = Dataset()
    region.RegionSpatialFormat, region.RegionDataType = _REGION_KINDS[box[4]]
    region.RegionFlags = 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = box[:2]
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = box[2:4]
    seconds = box[4] in ("spectrum", "m-mode")
    region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 4 if seconds else 3, 3  # cm
    region.PhysicalDeltaX = region.PhysicalDeltaY = spacing / 10
    return region


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write phantom studies in the formats that hospitals have.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    write_samples(options.out, options.seed)


if __name__ == "__main__":
    main()
