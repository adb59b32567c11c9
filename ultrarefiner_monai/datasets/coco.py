"""COCO's annotation files: instances as polygons or run lengths, joined to one mask for each image.

The format: https://cocodataset.org/#format-data. Decoding is pycocotools'. Looked for are ``*.json`` in the folder and in
``annotations``; images lie where the file says, from the folder or from one of its folders on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.types import InputError

log = logging.getLogger(__name__)
_CLASSES = ("benign", "malignant")  # in a category's name


def annotation_files(root: Path) -> list[Path]:
    """The annotation files of a dataset. Raises InputError where there is none."""
    found = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    kept = [path for path in found if _is_instances(path)]
    if not kept:
        there = f"; {', '.join(p.name for p in found[:3])} hold no images and annotations" if found else ""
        raise InputError(f"expected COCO's instances JSON in {root} or {root / 'annotations'}{there}")
    return kept


def _is_instances(path: Path) -> bool:
    values = _read(path)
    return isinstance(values, dict) and all(isinstance(values.get(k), list) for k in ("images", "annotations"))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def images_of(path: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], str]]:
    """(image, its annotations, class or "") of each image in a file. An image without annotations is called normal: in
    COCO's format that says that there is nothing. Raises InputError for a file that contradicts itself."""
    values = _read(path)
    names = {c.get("id"): str(c.get("name", "")) for c in values.get("categories") or []}
    images: dict[Any, dict[str, Any]] = {}
    for image in values["images"]:
        if not isinstance(image, dict) or "id" not in image or not isinstance(image.get("file_name"), str):
            raise InputError(f"{path}: an image needs id and file_name, got {str(image)[:120]}")
        if image["id"] in images:
            raise InputError(f"{path}: two images have the id {image['id']}")
        images[image["id"]] = image
    own: dict[Any, list[dict[str, Any]]] = {number: [] for number in images}
    for annotation in values["annotations"]:
        number = annotation.get("image_id") if isinstance(annotation, dict) else None
        if number not in own:
            raise InputError(f"{path}: an annotation is for image {number!r:.40}, which is not among the images")
        own[number].append(annotation)
    others = sorted({n for n in names.values() if not any(c in n.lower() for c in (*_CLASSES, "lesion", "normal"))})
    if others:
        log.warning("%s: instances of %s are taken as lesions", path.name, ", ".join(others[:5]))
    bare = sum(not found for found in own.values())
    if bare:
        log.warning("%s: %d images have no annotation: they count as lesion-free", path.name, bare)
    for number, image in images.items():
        yield image, own[number], _class_of(own[number], names)


def _class_of(annotations: list[dict[str, Any]], names: Mapping[Any, str]) -> str:
    said = {c for a in annotations for c in _CLASSES if c in names.get(a.get("category_id"), "").lower()}
    if not annotations:
        return "normal"
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
                if not np.isfinite(np.concatenate([np.asarray(p, dtype=float) for p in shape])).all():
                    raise ValueError("a polygon has coordinates that are not finite")
                lengths = coco.merge(coco.frPyObjects(shape, height, width))
            elif isinstance(shape, dict) and tuple(shape.get("size", ())) == (height, width):
                lengths = shape if isinstance(shape.get("counts"), str) else _packed(coco, shape, height, width)
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
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError("run lengths are whole numbers from 0")
    if sum(counts) != height * width:
        raise ValueError(f"its run lengths add up to {sum(counts)} pixels, the image has {height * width}")
    return coco.frPyObjects(shape, height, width)


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
