"""COCO's annotation files: instances as polygons or run lengths, joined to one mask for each image.

The format: https://cocodataset.org/#format-data. Decoding is pycocotools'. Looked for are ``*.json`` in the folder and in
``annotations``; images lie where the file says, from the folder or from one of its folders on.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.types import InputError

log = logging.getLogger(__name__)
_CLASSES = ("benign", "malignant")  # in a category's name
_NORMAL = re.compile(r"\bnormal\b", re.IGNORECASE)  # what is called so marks no lesion


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def annotation_files(root: Path) -> list[Path]:
    """The annotation files of a dataset. Raises InputError where there is none."""
    found = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    kept, others = [], []
    for path in found:
        try:
            values = _read(path)
        except InputError as error:
            others.append(str(error))
            continue
        if isinstance(values, dict) and all(isinstance(values.get(k), list) for k in ("images", "annotations")):
            kept.append(path)
        else:
            others.append(f"{path.name} holds no images and annotations")
    if not kept:
        there = "; " + "; ".join(others[:3]) if others else ""
        raise InputError(f"expected COCO's instances JSON in {root} or {root / 'annotations'}{there}")
    for other in others:
        log.warning("passed over: %s", other)
    return kept


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def images_of(path: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], str]]:
    """(image, its annotations, class or "") of each image in a file. An image without annotations is called normal: in
    COCO's format that says that there is nothing. Raises InputError for a file that contradicts itself."""
    values = _read(path)
    categories = values.get("categories") or []
    if not isinstance(categories, list) or not all(isinstance(c, dict) and _is_id(c.get("id")) for c in categories):
        raise InputError(f"{path}: categories must be a list of objects with id and name")
    names = {c["id"]: str(c.get("name", "")) for c in categories}
    images: dict[Any, dict[str, Any]] = {}
    for image in values["images"]:
        named = (
            isinstance(image, dict) and isinstance(image.get("file_name"), str) and bool(Path(image["file_name"]).name)
        )
        if not named or not _is_id(image.get("id")):
            raise InputError(f"{path}: an image needs id and file_name, got {str(image)[:120]}")
        if image["id"] in images:
            raise InputError(f"{path}: two images have the id {image['id']}")
        images[image["id"]] = image
    own: dict[Any, list[dict[str, Any]]] = {number: [] for number in images}
    for annotation in values["annotations"]:
        number = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not _is_id(number) or number not in own:
            raise InputError(f"{path}: an annotation is for image {number!r:.40}, which is not among the images")
        if not _NORMAL.search(_category(annotation, names)):
            own[number].append(annotation)
    others = sorted({n for n in names.values() if not any(c in n.lower() for c in (*_CLASSES, "lesion", "normal"))})
    if others:
        log.warning("%s: instances of %s are taken as lesions", path.name, ", ".join(others[:5]))
    bare = sum(not found for found in own.values())
    if bare:
        log.warning("%s: %d images have no annotation: they count as lesion-free", path.name, bare)
    for number, image in images.items():
        yield image, own[number], _class_of(own[number], names)


def _category(annotation: Mapping[str, Any], names: Mapping[Any, str]) -> str:
    """The name of an annotation's category, "" where it has none."""
    number = annotation.get("category_id")
    return names.get(number, "") if _is_id(number) else ""


def _class_of(annotations: list[dict[str, Any]], names: Mapping[Any, str]) -> str:
    if not annotations:
        return "normal"
    own = [_category(annotation, names).lower() for annotation in annotations]
    said = {c for name in own for c in _CLASSES if re.search(rf"(?<!non[-_ ])(?<!non)\b{c}", name)}
    return "malignant" if "malignant" in said else "benign" if said else ""


def mask_of(annotations: list[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """(height, width) bool: all instances of an image. Raises InputError for what is no outline, and without pycocotools."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise InputError(
            "COCO's masks need the package pycocotools: pip install 'ultrarefiner_monai[train]'"
        ) from error
    mask = np.zeros((height, width), bool)
    for annotation in annotations:
        shape = annotation.get("segmentation")
        try:
            if isinstance(shape, list) and shape:
                if any(len(polygon) < 6 or len(polygon) % 2 for polygon in shape):
                    raise ValueError("a polygon needs three points or more, x and y of each")
                corners = np.concatenate([np.asarray(p, dtype=float) for p in shape])
                if not np.isfinite(corners).all():
                    raise ValueError("a polygon has coordinates that are not finite")
                if np.abs(corners).max() > 2 * max(height, width):
                    raise ValueError("a polygon lies far outside the image")
                lengths = coco.merge(coco.frPyObjects(shape, height, width))
            elif isinstance(shape, dict) and tuple(shape.get("size", ())) == (height, width):
                lengths = _packed(coco, shape, height, width)
            elif isinstance(shape, dict):
                raise ValueError(f"run lengths of {shape.get('size')}, the image has [{height}, {width}]")
            else:
                raise ValueError("it has no polygons and no run lengths")
            mask |= coco.decode(lengths).astype(bool)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"annotation {annotation.get('id')} has no usable segmentation: {error}") from error
    return mask


def _packed(coco: Any, shape: dict[str, Any], height: int, width: int) -> Any:
    counts = shape.get("counts")
    if isinstance(counts, str):
        if sum(_unpacked(counts)) != height * width:
            raise ValueError(f"its run lengths do not add up to the image's {height * width} pixels")
        return {"size": [height, width], "counts": counts}
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError("run lengths are whole numbers from 0")
    if sum(counts) != height * width:
        raise ValueError(f"its run lengths add up to {sum(counts)} pixels, the image has {height * width}")
    return coco.frPyObjects(shape, height, width)


def _unpacked(text: str) -> list[int]:
    """Run lengths from COCO's text: five bits a character, signed, from the third on as differences to the last but one."""
    counts: list[int] = []
    at = 0
    while at < len(text):
        value = shift = 0
        more = True
        while more:
            if at == len(text) or not 48 <= ord(text[at]) < 112:
                raise ValueError("its run lengths are no text of COCO's")
            bits = ord(text[at]) - 48
            value |= (bits & 0x1F) << shift
            more, at, shift = bool(bits & 0x20), at + 1, shift + 5
            if not more and bits & 0x10:
                value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    if any(n < 0 for n in counts):
        raise ValueError("a run length is negative")
    return counts


def image_path(root: Path, name: str) -> Path | None:
    """Where an image lies: as named from ``root``, or from ``images`` or another of its folders on; None for nowhere.

    A name that leads out of ``root`` is nowhere.
    """
    folders = [root, root / "images", *sorted(p for p in root.iterdir() if p.is_dir() and p.name != "images")]
    for folder in folders:
        path = folder / name
        if path.is_file() and path.resolve().is_relative_to(root.resolve()):
            return path
    return None
