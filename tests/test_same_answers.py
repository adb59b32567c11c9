"""benchmarks/same_answers.py: what is left out of a record, masks packed there and back, and what counts as a difference."""

from __future__ import annotations

import copy
import gzip
import importlib
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("answer_records")


@pytest.fixture
def script(records: ModuleType) -> ModuleType:
    return importlib.import_module("same_answers")


def mask(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((7, 5, 3)) > 0.6).astype(np.uint8)


def record_of(records: ModuleType) -> dict[str, Any]:
    found = {"status": 200, "type": "multipart/form-data", "json": {"area": 3.5, "unit": "px"}}
    return {"replies": {"a: x, automatic": {**found, "mask": records.pack(mask())}, "a: GET /info/": {"status": 200}}}


def test_times_paths_and_ids_are_left_out_and_their_keys_stay(records: ModuleType) -> None:
    session = "12345678-1234-1234-1234-123456789abc"
    reply = {
        "timings": {"read": 0.25, "cached": 1.0},
        "objects": [{"path": "/tmp/run-1/studies/x.png", "ts": 17, "text": "/tmp/run-1/studies/x.png is cut off"}],
        "detail": f"no session {session}",
        "area": 3.5,
    }
    assert records.without_volatile(reply, {"/tmp/run-1/studies": "STUDIES"}) == {
        "timings": {"read": records.LEFT_OUT, "cached": records.LEFT_OUT},
        "objects": [{"path": records.LEFT_OUT, "ts": records.LEFT_OUT, "text": "STUDIES/x.png is cut off"}],
        "detail": "no session UUID",
        "area": 3.5,
    }


def test_a_mask_is_packed_there_and_back(records: ModuleType) -> None:
    packed = json.loads(json.dumps(records.pack(mask())))
    np.testing.assert_array_equal(records.unpack(packed), mask() > 0)
    assert packed["shape"] == [7, 5, 3] and packed["dtype"] == "uint8"


def test_a_file_keeps_its_values_and_where_it_lies(records: ModuleType) -> None:
    affine = np.diag([-0.25, -0.5, 1.0, 1.0])
    image: Any = nibabel.Nifti1Image(mask(), affine)
    stream = io.BytesIO()
    Image.fromarray(mask()[..., 0]).save(stream, "PNG")
    nifti, png = records.packed_file(gzip.compress(image.to_bytes())), records.packed_file(stream.getvalue())
    np.testing.assert_array_equal(records.unpack(nifti), mask() > 0)
    np.testing.assert_array_equal(records.unpack(png), mask()[..., 0] > 0)
    assert nifti["header"]["affine"] == affine.tolist() and png["header"]["mode"] == "L"
    with pytest.raises(ValueError, match="a mask was expected"):
        records.packed_file(b"no mask at all")


def test_equal_records_pass(records: ModuleType) -> None:
    assert records.compare(record_of(records), copy.deepcopy(record_of(records))) == {}


def test_each_kind_of_difference_is_found(records: ModuleType) -> None:
    a = record_of(records)

    def found(**change: Any) -> list[str]:
        b = copy.deepcopy(a)
        b["replies"]["a: x, automatic"].update(change)
        (lines,) = records.compare(a, b).values()
        return lines

    one_more = mask()
    one_more[0, 0, 0] ^= 1
    (line,) = found(mask=records.pack(one_more))
    assert line.startswith("mask: 1 pixels differ") and "Dice 0.9" in line
    assert found(mask=records.pack(mask() * 255)) == ["mask: the same pixels, with other values or another type"]
    assert found(mask=records.pack(mask()[:, :, :2])) == ["mask.shape[2]: 3 -> 2"]
    assert found(status=404) == ["status: 200 -> 404"]
    assert found(json={"area": 3.5}) == ['json.unit: only in A: "px"']
    assert found(json={"area": 4, "unit": "px"}) == ["json.area: 3.5 -> 4"]
    fewer = {"replies": {"a: GET /info/": {"status": 200}}}
    assert records.compare(a, fewer) == {"a: x, automatic": ["asked in A only"]}


def test_the_exit_code_says_whether_records_differ(
    script: ModuleType, records: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(record_of(records)))
    b.write_text(json.dumps({"replies": {**record_of(records)["replies"], "a: GET /info/": {"status": 503}}}))
    assert script.report(a, a) == 0 and script.report(a, b) == 1
    assert capsys.readouterr().out.splitlines() == [
        "2 of 2 replies are the same, 1 of 1 masks",
        "a: GET /info/",
        "    status: 200 -> 503",
        "1 of 2 replies are the same, 1 of 1 masks",
    ]


def test_clicks_lie_on_the_grid_and_a_cine_gets_questions_of_its_own(script: ModuleType) -> None:
    one, many = script.questions(130, 96, 1), script.questions(130, 96, 5)
    assert len({q.name for q in many}) == len(many) > len(one)
    refused = {"far outside", "no such frame", "at the border"}
    for question in many:
        for point in [*question.params.get("foreground", []), *question.params.get("background", [])]:
            inside = 0 <= point[0] < 130 and 0 <= point[1] < 96 and (len(point) == 2 or 0 <= point[2] < 5)
            assert inside or question.name in refused


def test_a_limit_takes_images_evenly_and_their_labels(script: ModuleType, tmp_path: Path) -> None:
    for name in [f"{k:02d}.png" for k in range(9)] + ["README.md", ".work/x.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("04.nii.gz", "05.nii.gz"):
        (tmp_path / "labels" / "final").mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / "final" / name).write_bytes(b"x")
    chosen = [str(p) for p in script.chosen_files(tmp_path, 3)]
    assert chosen == ["00.png", "04.png", "08.png", "labels/final/04.nii.gz"]
    assert len(script.chosen_files(tmp_path, None)) == 11
