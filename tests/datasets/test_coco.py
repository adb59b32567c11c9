"""COCO annotation files as a data folder: polygons and run lengths become masks, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycoco

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.coco import mask_of
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.datasets.layouts import prepare
from ultrarefiner_monai.imaging.readers import read_mask

SIZE = (40, 60)
SQUARE = [[10, 5, 30, 5, 30, 25, 10, 25]]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, SIZE, dtype=np.uint8)


def lengths(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths, column by column, zeros first."""
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.r_[0, edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts if not flat[0] else [0, *counts]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    found = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def write(
    root: Path, images: dict[str, list[Any]], categories: tuple[str, ...] = ("benign lesion", "malignant")
) -> Path:
    """images: file name -> segmentations, of categories 1, 2, 1 ..."""
    (root / "images").mkdir(parents=True)
    found, annotations = [], []
    for k, (name, shapes) in enumerate(images.items()):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(k)).save(root / "images" / name)
        found.append({"id": k, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for n, shape in enumerate(shapes):
            one = {"id": len(annotations), "image_id": k, "category_id": n % len(categories) + 1, "segmentation": shape}
            annotations.append(one)
    named = [{"id": n + 1, "name": name} for n, name in enumerate(categories)]
    (root / "annotations").mkdir()
    path = root / "annotations" / "instances_train.json"
    path.write_text(json.dumps({"images": found, "annotations": annotations, "categories": named}))
    return path


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_run_lengths_are_the_mask_in_both_codings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(SIZE) < rng.random()
    for shape in (lengths(mask), compressed(mask)):
        assert np.array_equal(mask_of([{"segmentation": shape}], *SIZE), mask)


def test_a_folder_is_prepared(tmp_path: Path) -> None:
    other = np.zeros(SIZE, bool)
    other[30:35, 40:50] = True
    images = {"a.png": [SQUARE], "sub/b.png": [SQUARE, lengths(other)], "c.png": [compressed(other)], "d.png": []}
    write(tmp_path / "raw", images)
    summary = prepare("coco", tmp_path / "raw", tmp_path / "out")
    assert summary.written == 4
    items = {i.id: i for i in read_index(tmp_path / "out")}
    assert set(items) == {"a", "sub_b", "c", "d"}
    square = read_mask(items["a"].mask)[0] > 0
    assert square[15, 20] and not square[2, 2] and 380 <= square.sum() <= 441
    assert np.array_equal(read_mask(items["sub_b"].mask)[0] > 0, square | other)
    assert np.array_equal(read_mask(items["c"].mask)[0] > 0, other)
    assert [items[i].category for i in ("a", "sub_b", "c", "d")] == ["benign", "malignant", "benign", "normal"]
    assert not items["d"].has_lesion


def test_patients_stay_together(tmp_path: Path) -> None:
    path = write(tmp_path / "raw", {f"{k}.png": [SQUARE] for k in range(6)})
    values = json.loads(path.read_text())
    for image in values["images"]:
        image["patient_id"] = image["id"] // 2
    path.write_text(json.dumps(values))
    prepare("COCO", tmp_path / "raw", tmp_path / "out")
    items = {i.id: i for i in read_index(tmp_path / "out")}
    assert items["2"].group == items["3"].group != items["4"].group


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three points"),
        ([[1, 2, 3, 4, float("nan"), 6]], "not finite"),
        ([], "no polygons"),
        (None, "no polygons"),
        ({"size": [60, 40], "counts": [2400]}, r"the image has \[40, 60\]"),
        ({"size": [40, 60], "counts": [5, 5]}, "add up to 10"),
        ({"size": [40, 60], "counts": [-5, 2405]}, "whole numbers"),
        ({"size": [40, 60], "counts": "0"}, "do not add up"),
        ({"size": [40, 60], "counts": ""}, "do not add up"),
        ({"size": [40, 60], "counts": "\u00e9~"}, "no text of COCO's"),
        ([[1e8, 2, 3, 4, 5, 6]], "far outside"),
    ],
)
def test_outlines_that_are_none_are_named(tmp_path: Path, shape: Any, words: str) -> None:
    write(tmp_path / "raw", {"good.png": [SQUARE], "bad.png": [shape]})
    with pytest.raises(InputError, match=words):
        prepare("COCO", tmp_path / "raw", tmp_path / "out")
    summary = prepare("COCO", tmp_path / "raw", tmp_path / "kept", skip_bad=True)
    assert summary.written == 1 and summary.skipped[0][0] == "images/bad.png"


def test_categories_say_what_they_are(tmp_path: Path) -> None:
    """What is called normal marks no lesion; non-malignant is not malignant."""
    path = write(tmp_path / "raw", {"a.png": [SQUARE], "b.png": [SQUARE]}, ("normal", "non-malignant"))
    values = json.loads(path.read_text())
    values["annotations"][1]["category_id"] = 2
    path.write_text(json.dumps(values))
    (tmp_path / "raw" / "notes.json").write_text("{")
    prepare("COCO", tmp_path / "raw", tmp_path / "out")
    items = {i.id: i for i in read_index(tmp_path / "out")}
    assert items["a"].category == "normal" and not items["a"].has_lesion
    assert items["b"].category == "" and items["b"].has_lesion


def test_annotations_of_another_size_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "raw", {"t/a.png": [SQUARE]})
    values = json.loads(path.read_text())
    values["images"][0]["file_name"] = "t\\a.png"
    path.write_text(json.dumps(values))
    assert prepare("COCO", tmp_path / "raw", tmp_path / "out").written == 1, "a name of Windows"
    values["images"][0] |= {"width": 80, "height": 60}
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="is 60 x 40 pixels; its annotations are for 80 x 60"):
        prepare("COCO", tmp_path / "raw", tmp_path / "other")


def test_files_that_are_missing_or_contradict_themselves(tmp_path: Path) -> None:
    path = write(tmp_path / "raw", {"a.png": [SQUARE], "b.png": [SQUARE]})
    (tmp_path / "raw" / "images" / "b.png").unlink()
    with pytest.raises(InputError, match=r"names b.png, which is not in"):
        prepare("COCO", tmp_path / "raw", tmp_path / "out")
    assert prepare("COCO", tmp_path / "raw", tmp_path / "kept", skip_bad=True).written == 1
    values = json.loads(path.read_text())
    (tmp_path / "secret.png").write_bytes((tmp_path / "raw" / "images" / "a.png").read_bytes())
    outside = {**values, "images": [{**values["images"][0], "file_name": "../../secret.png"}, values["images"][1]]}
    for content, words in (
        (json.dumps(outside), "is not in"),
        (json.dumps({**values, "annotations": [{"image_id": 77}]}), "image 77, which is not among"),
        (json.dumps({**values, "images": [*values["images"], values["images"][0]]}), "two images have the id 0"),
        (json.dumps({**values, "images": [{"id": 3}]}), "needs id and file_name"),
        (json.dumps({**values, "images": [{"id": 3, "file_name": ""}]}), "needs id and file_name"),
        (json.dumps({**values, "images": [{"id": [], "file_name": "a.png"}]}), "needs id and file_name"),
        (json.dumps({**values, "categories": {"id": 1}}), "categories must be"),
        (json.dumps({**values, "categories": ["benign"]}), "categories must be"),
        ("{", "cannot be read as JSON"),
        ("[]", "instances JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=words):
            prepare("COCO", tmp_path / "raw", tmp_path / f"out{len(content)}")
    path.unlink()
    with pytest.raises(InputError, match="expected COCO's instances JSON"):
        prepare("COCO", tmp_path / "raw", tmp_path / "none")
