"""DICOM SEG: what it says, how others read it, and how theirs is read."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pydicom
import pytest
from segs import SPACING, change, cine, lesions, require, stills, viewers_seg

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import open_dicom
from ultrarefiner_monai.dicom.seg import make_seg
from ultrarefiner_monai.dicom.seg_reader import read_seg, seg_info


def saved(seg: Any, path: Path) -> Path:
    seg.save_as(path, enforce_file_format=True)
    return path


def dcmqi(path: Path, out: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(K, H, W) and the NRRD header that dcmqi makes of a SEG."""
    program = shutil.which("segimage2itkimage", path=f"{Path(sys.executable).parent}") or "segimage2itkimage"
    out.mkdir()
    command = [program, "--inputDICOM", str(path), "--outputDirectory", str(out), "-t", "nrrd"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    values, header = nrrd.read(str(out / "1.nrrd"))
    return values.transpose(2, 1, 0), header


def by_highdicom(path: Path, files: list[Path], count: int) -> np.ndarray:
    """(T, H, W) through highdicom's own reader."""
    import highdicom

    seg = highdicom.seg.segread(path)
    if len(files) == 1 and count > 1:
        uid = pydicom.dcmread(files[0], stop_before_pixels=True).SOPInstanceUID
        return seg.get_pixels_by_source_frame(uid, range(1, count + 1), assert_missing_frames_are_empty=True)[..., 0]
    uids = [pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files]
    return seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)[..., 0]


@pytest.mark.parametrize("make, count", [(cine, 5), (stills, 3), (stills, 1)])
@pytest.mark.parametrize("empty", [False, True])
def test_others_read_our_seg(tmp_path: Path, make: Any, count: int, empty: bool) -> None:
    files = make(tmp_path, count)
    mask = lesions(count) * (not empty)
    path = saved(make_seg(mask, files, "ultrarefiner", "1.2"), tmp_path / "seg")
    assert np.array_equal(by_highdicom(path, files, count), mask)
    assert np.array_equal(read_seg(pydicom.dcmread(path), files), mask)
    volume, header = dcmqi(path, tmp_path / "itk")
    first = 0 if empty else int(np.flatnonzero(mask.any((1, 2)))[0])
    assert np.array_equal(volume, mask[first : first + len(volume)]) and volume.sum() == mask.sum()
    assert np.allclose(header["space directions"], np.diag([SPACING, SPACING, 1]))
    assert header["space"] == "left-posterior-superior" and list(header["space origin"]) == [0, 0, first]


def test_it_says_what_it_is(tmp_path: Path) -> None:
    files = cine(tmp_path)
    seg = pydicom.dcmread(saved(make_seg(lesions(5), files, "sam_refiner", "7", made="SEMIAUTOMATIC"), tmp_path / "s"))
    source = pydicom.dcmread(files[0])
    segment = seg.SegmentSequence[0]
    codes = [
        segment[k][0].CodeValue
        for k in (
            "SegmentedPropertyCategoryCodeSequence",
            "SegmentedPropertyTypeCodeSequence",
            "AnatomicRegionSequence",
        )
    ]
    assert codes == ["49755003", "52988006", "76752008"]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("UltraRefiner sam_refiner", "7")
    assert (segment.SegmentAlgorithmType, seg.SegmentationType) == ("SEMIAUTOMATIC", "BINARY")
    assert seg.StudyInstanceUID == source.StudyInstanceUID and seg.PatientID == source.PatientID
    shown = [g.DerivationImageSequence[0].SourceImageSequence[0] for g in seg.PerFrameFunctionalGroupsSequence]
    assert [(i.ReferencedSOPClassUID, int(i.ReferencedFrameNumber)) for i in shown] == [
        (source.SOPClassUID, n) for n in (1, 3, 5)
    ]
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    # Two results about one image are about one lesion.
    other = make_seg(lesions(5) * 0, files, "sam_refiner", "8")
    assert other.SegmentSequence[0].TrackingUID == segment.TrackingUID and other.SOPInstanceUID != seg.SOPInstanceUID
    assert "FrameOfReferenceUID" not in source and other.FrameOfReferenceUID == seg.FrameOfReferenceUID


def test_a_conforming_object(tmp_path: Path) -> None:
    require("dciodvfy", "dicom3tools")
    for name, files, mask in (("a", cine(tmp_path), lesions(5)), ("b", stills(tmp_path), lesions(3) * 0)):
        path = saved(make_seg(mask, files, "ultrarefiner", "1", author="Łukasz^Ä"), tmp_path / name)
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, timeout=60).stderr.decode(errors="replace")
        assert "Error" not in told and "Warning" not in told, told


def test_frames_with_a_place_keep_it(tmp_path: Path) -> None:
    files = stills(tmp_path)
    for k, path in enumerate(files):  # against the slices' normal
        place = {"ImagePositionPatient": [1.5, 2.5, 30.0 - k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        change(path, FrameOfReferenceUID="1.2.3", PositionReferenceIndicator="", **place)
    mask = lesions(3)
    seg = make_seg(mask, files, "x", "1")
    assert seg.FrameOfReferenceUID == "1.2.3"
    groups = seg.PerFrameFunctionalGroupsSequence
    assert [g.PlanePositionSequence[0].ImagePositionPatient[2] for g in groups] == [30, 28], "in the mask's order"
    path = saved(seg, tmp_path / "seg")
    assert np.array_equal(by_highdicom(path, files, 3), mask) and np.array_equal(read_seg(seg, files), mask)


def test_poor_headers(tmp_path: Path) -> None:
    """What scanners leave out, and what they write instead."""
    files = cine(tmp_path)
    change(files[0], PatientID=None, PatientSex="W", StudyDate="yesterday", StudyTime="25:00", StudyID=None)
    change(files[0], SpecificCharacterSet="ISO_IR 192", SOPClassUID="1.2.840.10008.5.1.4.1.1.3")  # retired class
    change(files[0], PatientName="Müller^Łucja=山田^花子", SequenceOfUltrasoundRegions=None)
    seg = pydicom.dcmread(saved(make_seg(lesions(5), files, "x", "1"), tmp_path / "seg"))
    assert seg.PatientName == "Müller^Łucja=山田^花子" and seg.PatientSex == "" and seg.PatientID == ""
    assert "1 mm stands for it" in seg.ContentDescription
    shared = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert list(shared.PixelSpacing) == [1, 1]
    assert np.array_equal(read_seg(seg, files), lesions(5))


def test_refused_masks_and_files(tmp_path: Path) -> None:
    files = cine(tmp_path)
    with pytest.raises(InputError, match="83 x 61 with 4 frame"):
        make_seg(lesions(4), files)
    with pytest.raises(InputError, match="SeriesInstanceUID"):
        make_seg(lesions(5), [*files, *stills(tmp_path, 1)])
    (tmp_path / "text").write_text("no DICOM")
    with pytest.raises(InputError, match="not a DICOM file"):
        make_seg(lesions(1), [tmp_path / "text"])


# --- those of others --------------------------------------------------------------------------------------------------


def test_any_viewers_seg(tmp_path: Path) -> None:
    """Segments that overlap, one that is no lesion, frames in any order, some missing.

    Written and read after each change: pydicom may take new pixels at an old address for those that it has decoded.
    """

    from ultrarefiner_monai.dicom.seg import code

    files = stills(tmp_path)
    ds = viewers_seg(lesions(3), files)
    other = lesions(3)[:, ::-1]
    lobe = np.ones_like(other)
    base = make_seg(lesions(3), files)
    more = make_seg(other, files)
    ours = read_seg(ds, files)
    assert np.array_equal(ours, lesions(3))

    # Three segments in one object: lesion, mass, and a muscle that does not count.
    names = [("52988006", "Lesion"), ("4147007", "Mass"), ("71616004", "Skeletal and/or smooth muscle")]
    frames, groups, bits = [], [], []
    for number, seg in enumerate((base, more, make_seg(lobe, files)), start=1):
        values = seg.pixel_array.reshape(-1, 61, 83)
        for group, value in zip(seg.PerFrameFunctionalGroupsSequence, values):
            group = deepcopy(group)
            segment = pydicom.Dataset()
            segment.ReferencedSegmentNumber = number
            group.SegmentIdentificationSequence = [segment]
            groups.append(group), bits.append(value), frames.append(number)
    order = np.random.default_rng(3).permutation(len(groups))
    first = ds.SegmentSequence[0]
    ds.SegmentSequence = []
    for number, (value, meaning) in enumerate(names, start=1):
        segment = deepcopy(first)
        segment.SegmentNumber, segment.SegmentLabel = number, meaning
        segment.SegmentedPropertyTypeCodeSequence = [code(value, meaning)]
        ds.SegmentSequence.append(segment)
    ds.PerFrameFunctionalGroupsSequence = [groups[k] for k in order]
    ds.NumberOfFrames = len(groups)
    ds.PixelData = pydicom.pixels.pack_bits(np.concatenate([bits[k].ravel() for k in order]))
    expected = (lesions(3) | other).astype(np.uint8)
    assert np.array_equal(read_seg(pydicom.dcmread(saved(ds, tmp_path / "again")), files), expected)

    # The same as fractions: at least half of the largest value.
    ds.SegmentationType, ds.MaximumFractionalValue, ds.SegmentationFractionalType = "FRACTIONAL", 200, "PROBABILITY"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelData = b"".join((bits[k] * np.uint8(120) + (1 - bits[k]) * np.uint8(99)).tobytes() for k in order)
    ds.PixelData += b"\0" * (len(ds.PixelData) % 2)
    assert np.array_equal(read_seg(pydicom.dcmread(saved(ds, tmp_path / "again")), files), expected)

    # A mask of 0 and 1 that calls itself a fraction of 255.
    ds.MaximumFractionalValue, ds.PixelData = 255, b"".join(bits[k].tobytes() for k in order)
    ds.PixelData += b"\0" * (len(ds.PixelData) % 2)
    assert np.array_equal(read_seg(pydicom.dcmread(saved(ds, tmp_path / "again")), files), expected)

    ds.SegmentSequence = [ds.SegmentSequence[2]]
    with pytest.raises(InputError, match="none of the SEG's segments is a lesion"):
        read_seg(ds, files)


def fractional(values: np.ndarray, files: list[Path], largest: int = 255) -> Any:
    """A viewer's SEG of fractions (T, H, W)."""
    ds = viewers_seg(np.ones_like(values), files)
    ds.SegmentationType, ds.MaximumFractionalValue, ds.SegmentationFractionalType = "FRACTIONAL", largest, "PROBABILITY"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = values.tobytes() + b"\0" * (values.size % 2)
    return ds


def test_fractions_are_an_outline_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = stills(tmp_path)
    y, x = np.mgrid[:61, :83]
    edge = np.stack([15 + k - np.hypot(y - 30, x - 40) for k in range(3)])
    soft = np.rint(255 * np.clip(edge + 0.5, 0, 1)).astype(np.uint8)
    assert np.array_equal(read_seg(fractional(soft, files), files), soft >= 128)
    assert "cut at the half" in caplog.text
    map_of = np.rint(255 / (1 + np.exp(-edge / 3))).astype(np.uint8)
    for values in (map_of, np.where(edge > 0, 60, 0).astype(np.uint8)):
        with pytest.raises(InputError, match="the SEG: its fractions .* a probability map is no label"):
            read_seg(fractional(values, files), files)


def test_a_seg_that_marks_nearly_everything_is_refused_unless_it_is_ours(tmp_path: Path) -> None:
    files = cine(tmp_path)
    mask = lesions(5)
    mask[2] = 1
    with pytest.raises(InputError, match="the SEG: its label marks 100 % of frame 2: is it inverted"):
        read_seg(viewers_seg(mask, files), files)
    assert np.array_equal(read_seg(make_seg(mask, files, "x", "1"), files), mask)


@pytest.mark.parametrize("options", [(), ("--segmentationType", "labelmap"), ("--compress", "deflate")])
def test_what_dcmqi_writes(tmp_path: Path, options: tuple[str, ...]) -> None:
    """3D Slicer writes its SEGs with it. It needs frames with a place in the patient."""
    files, mask = stills(tmp_path), lesions(3)
    for k, path in enumerate(files):
        place = {"ImagePositionPatient": [5, 6, float(k)], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        change(path, FrameOfReferenceUID="1.2.3", PositionReferenceIndicator="", PixelSpacing=[0.1, 0.1], **place)
    space = {"space": "left-posterior-superior", "space directions": np.diag([0.1, 0.1, 1]), "space origin": [5, 6, 0]}
    nrrd.write(str(tmp_path / "mask.nrrd"), mask.transpose(2, 1, 0), space)
    tissue = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    segment = {"labelID": 1, "SegmentAlgorithmType": "MANUAL", "SegmentDescription": "Segment_1"}
    segment |= {"SegmentedPropertyCategoryCodeSequence": tissue, "SegmentedPropertyTypeCodeSequence": tissue}
    meta = {"ContentCreatorName": "Roe^Jane", "SeriesDescription": "Segmentation", "segmentAttributes": [[segment]]}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    program = shutil.which("itkimage2segimage", path=f"{Path(sys.executable).parent}") or "itkimage2segimage"
    command = [program, "--inputImageList", str(tmp_path / "mask.nrrd"), "--inputMetadata", str(tmp_path / "meta.json")]
    command += ["--inputDICOMList", ",".join(map(str, files)), "--outputDICOM", str(tmp_path / "seg"), *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    seg = open_dicom(tmp_path / "seg")
    assert seg_info(seg).author == "Roe Jane" and not seg_info(seg).ours
    assert np.array_equal(read_seg(seg, files), mask)


def test_author_and_time(tmp_path: Path) -> None:
    ds = viewers_seg(lesions(5), cine(tmp_path), ContentDate="20240501", ContentTime="101112.5")
    ds.SeriesDate, ds.InstanceCreationDate, ds.TimezoneOffsetFromUTC = "20240430", "29990101", "+0200"
    info = seg_info(ds)
    assert info.author == "Roe Jane" and info.manufacturer == "A viewer's maker" and not info.ours
    assert info.time == datetime.fromisoformat("2024-05-01T10:11:12.500+02:00")
    del ds.ContentCreatorName
    ds.OperatorsName = ["Doe^John", "X"]
    assert seg_info(ds).author == "Doe John"
    ours = seg_info(make_seg(lesions(5), cine(tmp_path), "x", "1"))
    assert ours.ours and ours.automatic and ours.time and abs(ours.time.timestamp() - datetime.now().timestamp()) < 60


def test_refused_segs(tmp_path: Path) -> None:
    files = stills(tmp_path)
    ds = viewers_seg(lesions(3), files)
    with pytest.raises(InputError, match="no longer exist"):
        read_seg(ds, files[1:])
    gone = pydicom.dcmread(files[0]).SOPInstanceUID
    assert np.array_equal(read_seg(ds, files[1:], elsewhere={gone}), lesions(3)[1:])
    loop = cine(tmp_path)
    long = viewers_seg(lesions(5), loop)
    long.PerFrameFunctionalGroupsSequence[2].DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = 6
    with pytest.raises(InputError, match="no longer exist"):
        read_seg(long, loop)

    def broken(message: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=message):
            read_seg(viewers_seg(lesions(3), files, **changes), files)

    broken("60 x 61 pixels", Columns=60)
    broken("does not describe each", NumberOfFrames=3)
    broken("cannot be decoded", PixelData=b"\0\0")
    broken("expected a DICOM segmentation", Modality="US")
    for group in ds.PerFrameFunctionalGroupsSequence:
        group.DerivationImageSequence = []
    with pytest.raises(InputError, match="does not say on which frames"):
        read_seg(ds, files)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)  # the test's own SEGs can be stored
    assert pydicom.dcmread(io.BytesIO(buffer.getvalue())).Modality == "SEG"
