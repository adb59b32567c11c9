"""The measurement report, read back by highdicom and by DCMTK."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scipy import ndimage
from segs import SPACING, change, cine, lesions, require, stills

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.seg import make_seg
from ultrarefiner_monai.dicom.sr import contour, make_sr
from ultrarefiner_monai.masks.measure import measure


def values(group: Any) -> dict[str, tuple[float, str]]:
    return {m.name.meaning: (float(m.value), m.unit.value) for m in group.get_measurements()}


def read(sr: Any, path: Path) -> Any:
    import highdicom

    sr.save_as(path, enforce_file_format=True)
    return highdicom.sr.srread(path)


def test_read_back_by_highdicom(tmp_path: Path) -> None:
    files, mask = cine(tmp_path), lesions(5)
    mask[4, 50:55, 3:9] = 1  # a second lesion on the last frame: the SEG's frame shows both
    seg = make_seg(mask, files, "sam_refiner", "3", made="SEMIAUTOMATIC")
    sr = read(make_sr(mask, files, seg, "sam_refiner", "3", made="SEMIAUTOMATIC", author="Roe^Jane"), tmp_path / "sr")
    groups = sr.content.get_planar_roi_measurement_groups()
    assert [g.tracking_identifier for g in groups] == [
        f"frame {k} lesion {n}" for k, n in ((1, 1), (3, 1), (5, 1), (5, 2))
    ]
    assert len({g.tracking_uid for g in groups}) == 4
    by_hand = measure(mask[2], (SPACING, SPACING))
    got = values(groups[1])
    assert got["Long Axis"] == (pytest.approx(by_hand.long_axis, abs=1e-3), "mm")
    assert got["Short Axis"] == (pytest.approx(by_hand.short_axis, abs=1e-3), "mm")
    assert got["Area"] == (pytest.approx(by_hand.area, abs=1e-3), "mm2")
    segment = groups[1].referenced_segmentation_frame
    assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID and segment[0].referenced_frame_numbers == [2]
    assert segment.source_image_for_segmentation.referenced_frame_numbers == [3]
    assert groups[2].referenced_segmentation_frame is None and groups[2].roi.graphic_type.value == "POLYLINE"
    series = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {i.ReferencedSOPInstanceUID for s in series for i in s.ReferencedSOPSequence}
    assert named == {seg.SOPInstanceUID, pydicom.dcmread(files[0]).SOPInstanceUID}


def test_read_back_by_dcmtk(tmp_path: Path) -> None:
    require("dsrdump", "dcmtk")
    files = stills(tmp_path)
    for path in files:
        change(path, SequenceOfUltrasoundRegions=None)  # no pixel size: pixels
    read(make_sr(lesions(3), files, author="Łucja", made="MANUAL"), tmp_path / "sr")
    done = subprocess.run(["dsrdump", "+Pc", "+Pt", str(tmp_path / "sr")], capture_output=True, timeout=60)
    text = done.stdout.decode()
    told = [line for line in done.stderr.decode().splitlines() if "VR checker" not in line]  # it has no UTF-8
    assert done.returncode == 0 and not told, told
    area = int(lesions(3)[0].sum())
    assert f'(42798000,SCT,"Area")="{area}.0" ({{pixels}},UCUM,"pixels")' in text, text
    assert "Łucja" in text and "TID 1500" in text and text.count('(42798000,SCT,"Area")') == 2


def test_a_conforming_object(tmp_path: Path) -> None:
    require("dciodvfy", "dicom3tools")
    files, mask = cine(tmp_path), lesions(5)
    seg = make_seg(mask, files, "sam_refiner", "3", made="SEMIAUTOMATIC")
    for sr in (make_sr(mask, files, seg, "sam_refiner", "3", author="Łukasz^Ä"), make_sr(mask, files, made="MANUAL")):
        read(sr, tmp_path / "sr")
        told = subprocess.run(["dciodvfy", tmp_path / "sr"], capture_output=True, timeout=60).stderr.decode(
            errors="replace"
        )
        assert "Error" not in told and "Warning" not in told, told


def test_nothing_to_report(tmp_path: Path) -> None:
    files = cine(tmp_path)
    assert make_sr(lesions(5) * 0, files) is None
    with pytest.raises(InputError, match=r"\(5, 61, 83\)"):
        make_sr(lesions(3), files)


def test_the_outline_holds_the_lesion() -> None:
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(5)
    blobs = ndimage.gaussian_filter(rng.standard_normal((40, 50)), 2) > 0.05
    labels, count = ndimage.label(blobs, np.ones((3, 3)))
    diagonal = np.zeros((6, 6), int)
    diagonal[1, 1] = diagonal[2, 2] = diagonal[3, 1] = 1  # pixels that touch at corners only
    for lesion in [*(labels == n for n in range(1, count + 1)), diagonal]:
        points = contour(lesion)
        assert np.array_equal(points[0], points[-1])
        x, y = points.T
        filled = ndimage.binary_fill_holes(lesion)
        assert abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2 == filled.sum()
        canvas = Image.new("1", (500, 400))
        ImageDraw.Draw(canvas).polygon([tuple(p) for p in (points * 10).tolist()], fill=1)
        middles = np.asarray(canvas)[5::10, 5::10]
        assert np.array_equal(middles[: lesion.shape[0], : lesion.shape[1]], filled)
