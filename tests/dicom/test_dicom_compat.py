"""Every coding of docs/it/compatibility.md is read as the page says, and pydicom's own files never end in another error."""

from __future__ import annotations

import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from coded_file import NATIVE, card, dicom
from codings import Coded, every_coding

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom import file as dicomfile
from ultrarefiner_monai.dicom.file import DEFLATED, open_dicom
from ultrarefiner_monai.imaging.readers import read_image_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from check_dicom import shipped_files, try_coding, try_file  # noqa: E402

PAGE = (ROOT / "docs" / "it" / "compatibility.md").read_text(encoding="utf-8")
CODINGS = list(every_coding())
FILES = list(shipped_files())
READ = {"ExplVR_BigEnd.dcm", "image_dfl.dcm", "693_J2KI.dcm", "JPGExtended.dcm", "SC_rgb_rle_32bit_2frame.dcm"}
# A stream that breaks its standard, and one cut where pydicom takes image data for an end mark.
BROKEN = {"JPEG-lossy.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "MR_truncated.dcm"}


@pytest.mark.parametrize("coded", CODINGS, ids=lambda c: c.name)
def test_every_coding(coded: Coded, tmp_path: Path) -> None:
    outcome = try_coding(coded, tmp_path)
    assert f"| {coded.syntax} |" in PAGE
    if coded.expected is None:
        assert "export it" in outcome.problem
    else:
        assert not outcome.problem and outcome.shape == coded.expected.shape
        assert outcome.difference is not None and outcome.difference <= coded.tolerance


def test_the_codings_are_many_and_their_names_differ() -> None:
    assert len({c.name for c in CODINGS}) == len(CODINGS) > 110
    assert {c.photometric for c in CODINGS} >= {"MONOCHROME1", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_422", "PALETTE COLOR"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_pydicoms_own_files_are_read_or_refused(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = try_file(path)
        if path.name in READ:
            assert not outcome.problem
        elif outcome.problem:
            assert path.name in outcome.problem
            header = open_dicom_or_none(path)
            picture = header is not None and "Rows" in header and dicomfile.not_an_image(header) is None
            assert not picture or path.name in BROKEN, outcome.problem


def open_dicom_or_none(path: Path) -> object:
    try:
        return open_dicom(path, header_only=True)
    except InputError:
        return None


def test_the_page_names_pydicoms_files() -> None:
    assert len(FILES) > 100
    root = FILES[0].parent
    for path in FILES:
        assert f"| {path.relative_to(root)} |" in PAGE or f"files in {path.parent.relative_to(root)} |" in PAGE


def test_a_deflated_file_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.dcm"
    content = dicom(DEFLATED, "RGB", card())
    path.write_bytes(content)
    assert int(open_dicom(path, header_only=True).Rows) == card().shape[0]
    for cut in (content[:-200], content[:400]):
        path.write_bytes(cut)
        with pytest.raises(InputError, match="a.dcm"):
            read_image_file(path)
    path.write_bytes(content)
    monkeypatch.setattr(dicomfile, "_INFLATED_BYTES", 10_000)
    with pytest.raises(InputError, match="inflates to more than"):
        read_image_file(path)


def test_the_pixels_of_a_cine_are_kept_once(tmp_path: Path) -> None:
    frames = np.stack([card(k) for k in range(40)])
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(NATIVE["Explicit VR Little Endian"], "RGB", frames, NumberOfFrames=40))
    read_image_file(path)  # imports what it needs
    tracemalloc.start()
    try:
        image_file = read_image_file(path)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert image_file.kept_bytes == frames.nbytes <= held < 1.2 * frames.nbytes
