"""A mask -> DICOM Segmentation that references the frames it was drawn on.

Ultrasound frames have no place in the patient, and highdicom's constructor refuses several frames without one. Such
frames get a frame of reference of the SEG's own: frame k lies at (0, 0, k) mm, rows down, as ITK (so 3D Slicer) places
the picture. It says nothing about the patient, conforms (PS3.3 A.51: the geometry may be there beside the Derivation
Image macro), and lets programs read the SEG that know it by geometry only, dcmqi among them. What binds the SEG to the
picture are the references: SOP instance and frame number of every frame, same pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ultrarefiner_monai import __version__
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import SINGLE_FRAME
from ultrarefiner_monai.dicom.source import Source, SourceFrame, read_source

MANUFACTURER, MODEL_NAME = "ultrarefiner_monai", "UltraRefiner"
TRACKING_ID = "lesion"
UID_ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's, for UIDs made of hashes
# SNOMED CT, CID 7150 and CID 7159.
_CATEGORY = ("49755003", "Morphologically Altered Structure")
_TYPES = {"lesion": ("52988006", "Lesion"), "mass": ("4147007", "Mass")}
_BREAST = ("76752008", "Breast")
_ARTIFICIAL_INTELLIGENCE = ("123109", "Artificial Intelligence")
# Ultrasound Image Storage: highdicom copies the patient's and the study's attributes of what it knows only.
_KNOWN_CLASS = SINGLE_FRAME
_REQUIRED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
_COPIED = (
    *_REQUIRED,
    *("StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyDescription"),
    *("Modality", "Rows", "Columns", "PatientAge", "PatientSize", "PatientWeight", "IssuerOfPatientID"),
)

Made = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]


def make_seg(
    mask: np.ndarray,
    files: Sequence[Path],
    algorithm_name: str = "",
    version: str = "",
    *,
    made: Made = "AUTOMATIC",
    kind: Literal["lesion", "mass"] = "lesion",
    author: str = "",
    time: datetime | None = None,
    description: str = "",
) -> Any:
    """A highdicom Segmentation (BINARY, one segment) of ``mask`` (T, H, W), non-zero inside the lesion.

    files: the DICOM files whose frames, one after the other, are the mask's. made: MANUAL needs no algorithm. author:
    who drew or approved it (ContentCreatorName). time: when, now by default. Frames without a lesion are left out, as
    the standard has it; an empty mask keeps its first frame, so that it says: looked at, nothing found. Raises
    InputError for files that are no images of one size and series, and for a mask of another size.
    """
    import highdicom as hd

    source = read_source(files)
    mask = np.asarray(mask) > 0
    if mask.shape != source.shape:
        (t, h, w), (st, sh, sw) = (mask.shape if mask.ndim == 3 else (1, *mask.shape)), source.shape
        raise InputError(f"the mask is {w} x {h} with {t} frame(s), its DICOM files hold {sw} x {sh} with {st}")
    kept = np.flatnonzero(mask.any(axis=(1, 2)))
    kept = kept if len(kept) else np.array([0])
    shown, donors = [source.frames[k] for k in kept], [_donor(source, int(k)) for k in kept]
    seg: Any = hd.seg.Segmentation(
        source_images=donors,
        pixel_array=mask[kept].astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(kind, made, algorithm_name, version, source)],
        series_instance_uid=hd.UID(),
        series_number=series_number(source),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        device_serial_number="software",
        content_label="LESION" if mask.any() else "NO_LESION",
        content_description=description[:64] or _description(bool(mask.any()), source.spacing_mm is not None),
        content_creator_name=person_name(author) or None,
        omit_empty_frames=False,
        series_description=f"{MODEL_NAME} {'proposal' if made == 'AUTOMATIC' else 'label'}",
    )
    if "ContentCreatorName" not in seg:  # type 2 (PS3.3, Content Identification Macro): there, if only empty
        seg.ContentCreatorName = ""
    _in_order(seg, donors)
    _reference(seg, shown, donors)
    stamp(seg, time or datetime.now())
    return hd.seg.Segmentation.from_dataset(seg, copy=False)


def _description(found: bool, measured: bool) -> str:
    text = "Breast lesion" if found else "No breast lesion found"
    return text if measured else f"{text}; pixel size unknown, 1 mm stands for it"


def _segment(kind: str, made: str, algorithm_name: str, version: str, source: Source) -> Any:
    import highdicom as hd

    algorithm = None
    if made != "MANUAL":
        # A viewer that corrects a proposal keeps this name: by it the correction is told from another program's result.
        known = MODEL_NAME.lower() in algorithm_name.lower()
        algorithm = hd.AlgorithmIdentificationSequence(
            name=(algorithm_name if known else f"{MODEL_NAME} {algorithm_name}").strip()[:64],
            family=code(*_ARTIFICIAL_INTELLIGENCE, scheme="DCM"),
            version=(version or __version__)[:64],
        )
    return hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=kind.capitalize(),
        segmented_property_category=code(*_CATEGORY),
        segmented_property_type=code(*_TYPES[kind]),
        algorithm_type=made,
        algorithm_identification=algorithm,
        tracking_id=TRACKING_ID,
        tracking_uid=tracking_uid(source),
        anatomic_regions=[code(*_BREAST)],
    )


def code(value: str, meaning: str, scheme: str = "SCT") -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(value, scheme, meaning)


def tracking_uid(source: Source, lesion: str = "lesion") -> str:
    """The same for every SEG and SR of one image: what they say is about the same lesion."""
    return _uid(f"{source.headers[0].SOPInstanceUID} {lesion}")


def _uid(text: str) -> str:
    return UID_ROOT + str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:15], "big"))


def series_number(source: Source) -> int:
    """Behind the image's own, where viewers list it beside it."""
    try:
        return int(source.headers[0].get("SeriesNumber", None) or 0) % 10_000 + 90_000
    except (TypeError, ValueError):
        return 90_000


def person_name(author: str) -> str:
    """A DICOM person name from what a client gave; a login or client id counts as the family name."""
    name = "".join(c for c in author if c.isprintable() and c not in "\\=")[:60]
    return name if "^" in name or not name else f"{name}^"


def stamp(dataset: Any, time: datetime) -> None:
    """UTF-8, and when it was made, in local time as everything in an archive. No distance from UTC: it would hold for
    the study's time too, which is copied from files that mostly do not say."""
    local = time.astimezone()
    for date, clock in (("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime")):
        setattr(dataset, date, local.strftime("%Y%m%d"))
        setattr(dataset, clock, local.strftime("%H%M%S.%f"))
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = dataset.ContentDate, dataset.ContentTime
    dataset.SpecificCharacterSet = "ISO_IR 192"


# --- what highdicom sees, and what the SEG says in the end ------------------------------------------------------------


def header_like(header: Any) -> Any:
    """A Dataset of what highdicom copies from an image's header; what is missing is empty, what is no date is gone."""
    import pydicom

    out: Any = pydicom.Dataset()
    out.SOPClassUID, out.SOPInstanceUID = _KNOWN_CLASS, header.SOPInstanceUID
    for keyword in _COPIED:
        if keyword in header:
            value = header[keyword].value  # text as Unicode: the SEG's character set is its own
            setattr(out, keyword, str(value) if header[keyword].VR == "PN" else value)
        elif keyword in _REQUIRED:
            setattr(out, keyword, "")
    for keyword, form in (("StudyDate", "%Y%m%d"), ("PatientBirthDate", "%Y%m%d")):
        if not _is_date(str(out.get(keyword, "") or ""), form):
            setattr(out, keyword, None)
    clock = str(out.get("StudyTime", "") or "").split(".")[0]
    if not any(_is_date(clock, form) for form in ("%H%M%S", "%H%M", "%H")):
        out.StudyTime = None
    out.PatientSex = out.PatientSex if out.PatientSex in ("M", "F", "O") else ""
    out.Modality = header.get("Modality", None) or "US"
    return out


def _is_date(text: str, form: str) -> bool:
    try:
        datetime.strptime(text, form)
    except ValueError:
        return False
    return True


def _donor(source: Source, index: int) -> Any:
    """Frame ``index`` as a single-frame image with a place, which is all that highdicom can take several of."""
    header = source.frames[index].header
    donor = header_like(header)
    donor.SOPInstanceUID = _uid(f"{header.SOPInstanceUID} frame {index}")
    if source.positions is not None:
        donor.FrameOfReferenceUID = header.FrameOfReferenceUID
        donor.PositionReferenceIndicator = header.get("PositionReferenceIndicator", None)
        donor.ImagePositionPatient, donor.ImageOrientationPatient = source.positions[index]
    else:
        donor.FrameOfReferenceUID = _uid(f"{header.SeriesInstanceUID} frames")
        donor.PositionReferenceIndicator = None
        donor.ImagePositionPatient, donor.ImageOrientationPatient = [0.0, 0.0, float(index)], [1, 0, 0, 0, 1, 0]
        donor.SpacingBetweenSlices = 1
    donor.PixelSpacing = [round(v, 12) for v in source.spacing_mm or (1.0, 1.0)]
    donor.SliceThickness = header.get("SliceThickness", None) or 1
    if header.get("LossyImageCompression", None) == "01":
        donor.LossyImageCompression = "01"
        donor.LossyImageCompressionRatio = header.get("LossyImageCompressionRatio", None) or _ratio(header)
        donor.LossyImageCompressionMethod = header.get("LossyImageCompressionMethod", None) or "ISO_10918_1"
    return donor


def _ratio(header: Any) -> float:
    """How much smaller the file is than its pixels; files that were compressed often do not say."""
    samples = int(header.get("SamplesPerPixel", 1)) * int(header.get("NumberOfFrames", None) or 1)
    bits = int(header.Rows) * int(header.Columns) * samples * int(header.get("BitsAllocated", 8))
    return round(max(1.0, bits / 8 / max(1, Path(header.filename).stat().st_size)), 2)


def _in_order(seg: Any, donors: list[Any]) -> None:
    """Put the frames in the order of the mask's: highdicom sorts them by place, and (from 0.24 on) a cine would begin with its last."""
    from pydicom.pixels import pack_bits

    groups = list(seg.PerFrameFunctionalGroupsSequence)
    order = np.argsort([_donor_of(group, donors) for group in groups], kind="stable")
    # The index along the slices counts in the order in which the frames now stand.
    indices = [list(group.FrameContentSequence[0].DimensionIndexValues) for group in groups]
    for k, index in zip(order, indices):
        groups[k].FrameContentSequence[0].DimensionIndexValues = index
    pixels = seg.pixel_array.reshape(len(groups), int(seg.Rows), int(seg.Columns))
    seg.PerFrameFunctionalGroupsSequence = [groups[k] for k in order]
    seg.PixelData = pack_bits(np.ascontiguousarray(pixels[order]))


def _donor_of(group: Any, donors: list[Any]) -> int:
    """Which donor a frame of the SEG is of: the one at its place."""
    places = np.array([donor.ImagePositionPatient for donor in donors], float)
    place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
    return int(np.linalg.norm(places - place, axis=1).argmin())


def _reference(seg: Any, shown: list[SourceFrame], donors: list[Any]) -> None:
    """Put the true SOP classes and frame numbers where highdicom wrote those of the donors."""
    import pydicom

    def reference(frame: SourceFrame) -> Any:
        item: Any = pydicom.Dataset()
        item.ReferencedSOPClassUID = frame.header.SOPClassUID
        item.ReferencedSOPInstanceUID = frame.header.SOPInstanceUID
        return item

    once = list({frame.key[0]: frame for frame in shown}.values())
    seg.SourceImageSequence = [reference(frame) for frame in once]
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [reference(frame) for frame in once]
    for group in seg.PerFrameFunctionalGroupsSequence:
        frame = shown[_donor_of(group, donors)]
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = frame.header.SOPClassUID, frame.key[0]
        if frame.number:
            item.ReferencedFrameNumber = frame.number
