"""The public datasets' layouts -> one clean folder: images/ID.png, masks/ID.png, index.csv.

A layout only says which files belong together; reading, checking, grouping, splitting and writing are the same for all.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.data.grouping import assign_folds, near_duplicate_groups, thumbnail
from ultrarefiner_monai.files import replacing
from ultrarefiner_monai.types import InputError

log = logging.getLogger(__name__)
COLUMNS = "id dataset class patient group fold width height n_masks lesion_fraction spacing_mm".split()
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Raw:
    """One image of a raw dataset. coloured: the mask is RGB, green benign and red malignant. patient, category: or ""."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    patient: str = ""
    category: str = ""
    coloured: bool = False


@dataclass
class Summary:
    """What ``prepare`` did: images written, blank masks left out, groups of near-duplicates, images of each fold."""

    written: int = 0
    blank_left_out: list[str] = field(default_factory=list)
    duplicate_groups: int = 0
    folds: dict[str, int] = field(default_factory=dict)


# --- layouts ----------------------------------------------------------------------------------------------------------


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"expected the folder {folder}; it is not there. Is this the dataset's own layout?")
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    return sorted(found, key=lambda p: p.name)


def _busi(root: Path) -> Iterator[Raw]:
    for category in ("benign", "malignant", "normal"):
        files = _pictures(root / category)
        images = [p for p in files if not re.search(r"_mask(_\d+)?$", p.stem)]
        for image in images:
            masks = [p for p in files if re.fullmatch(re.escape(image.stem) + r"_mask(_\d+)?", p.stem)]
            number = re.search(r"\((\d+)\)", image.stem)
            name = f"{category}_{int(number[1]):04d}" if number else image.stem
            yield Raw(name, image, tuple(masks), category=category)


def _busbra(root: Path) -> Iterator[Raw]:
    table = next((p for p in sorted(root.glob("*.csv")) if p.name.lower().startswith("bus_data")), None)
    if table is None:
        raise InputError(f"expected bus_data.csv in {root}: it holds the case of each image, without which splits leak")
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = {row["ID"]: row for row in csv.DictReader(file)}
    for image in _pictures(root / "Images"):
        row = rows.get(image.stem)
        if row is None:
            raise InputError(f"{table} has no row for {image.stem}")
        mask = root / "Masks" / f"mask_{image.stem.removeprefix('bus_')}{image.suffix}"
        yield Raw(image.stem, image, (mask,), patient=row.get("Case", ""), category=row.get("Pathology", ""))


def _pairs(images: str, masks: str) -> Callable[[Path], Iterator[Raw]]:
    def layout(root: Path) -> Iterator[Raw]:
        by_stem = {p.stem: p for p in _pictures(root / masks)}
        for image in _pictures(root / images):
            mask = by_stem.get(image.stem) or by_stem.get(f"{image.stem}_GT") or by_stem.get(f"{image.stem}_mask")
            yield Raw(image.stem, image, () if mask is None else (mask,))

    return layout


def _uclm(root: Path) -> Iterator[Raw]:
    for raw in _pairs("images", "masks")(root):
        yield replace(raw, patient=re.split(r"[_-]", raw.name)[0], coloured=True)


LAYOUTS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    "BUSI": _busi,
    "BUSBRA": _busbra,
    "BUS": _pairs("original", "GT"),
    "UDIAT": _pairs("original", "GT"),
    "BUS_UC": _pairs("All/images", "All/masks"),
    "BUS_UCLM": _uclm,
}


# --- preparing --------------------------------------------------------------------------------------------------------


def prepare(dataset: str, raw_dir: str | Path, out: str | Path, seed: int = 0, keep_blank: bool = False) -> Summary:
    """Write a clean folder from a raw dataset.

    Several masks of an image are joined by OR, a mask's pixel counts above 127. Images that the dataset itself calls
    normal stay in; other blank masks are counted and left out unless ``keep_blank``. Groups (patient where known, and
    near-duplicates always) go whole into "test" (20 %) or folds 0 to 4, seeded and independent of the listing's order.
    """
    if dataset not in LAYOUTS:
        raise InputError(f"unknown dataset {dataset!r}; known: {', '.join(LAYOUTS)}")
    raw_dir, out = Path(raw_dir), Path(out)
    if not raw_dir.is_dir():
        raise InputError(f"no folder {raw_dir}")
    if (out / "index.csv").exists():
        raise InputError(
            f"{out} holds a prepared dataset already; its split is never drawn again. Choose another folder"
        )
    for sub in ("images", "masks"):
        (out / sub).mkdir(parents=True, exist_ok=True)
    summary, rows, thumbnails = Summary(), [], []
    ids: set[str] = set()  # in small letters: some file systems know no others
    for raw in sorted(LAYOUTS[dataset](raw_dir), key=lambda r: r.name):
        row = _write_pair(raw, dataset, out, keep_blank)
        if row is None:
            summary.blank_left_out.append(raw.name)
            continue
        if row["id"].lower() in ids:
            raise InputError(f"{raw.image}: another image has the id {row['id']} too; rename one of them")
        ids.add(row["id"].lower())
        thumbnails.append(row.pop("thumbnail"))
        rows.append(row)
    if not rows:
        raise InputError(f"no images found in {raw_dir} with the layout of {dataset}")
    groups = near_duplicate_groups(np.stack(thumbnails), [r["patient"] for r in rows])
    names = [rows[g]["id"] for g in groups]  # a group is named after its first image
    folds = assign_folds(names, [r["class"] for r in rows], seed)
    for row, group, fold in zip(rows, names, folds, strict=True):
        row.update(group=group, fold=fold)
    _write_index(out / "index.csv", rows)
    summary.written = len(rows)
    summary.duplicate_groups = sum(names.count(g) > 1 for g in set(names))
    summary.folds = {f: folds.count(f) for f in sorted(set(folds))}
    return summary


def _write_pair(raw: Raw, dataset: str, out: Path, keep_blank: bool) -> dict[str, Any] | None:
    from PIL import Image

    pixels = _read(raw.image)
    mask, category = np.zeros(pixels.shape[:2], bool), raw.category
    if not raw.masks and category != "normal" and not keep_blank:
        log.warning("%s has no mask: left out", raw.image.name)
        return None
    for path in raw.masks:
        values = _read(path)
        if values.shape[:2] != mask.shape:
            raise InputError(
                f"{path} is {values.shape[1]} x {values.shape[0]} pixels, its image {mask.shape[1]} x {mask.shape[0]}"
            )
        if raw.coloured:
            category = category or _colour_category(values)
        mask |= (values if values.ndim == 2 else values.max(axis=2)) > 127
    if not mask.any() and category != "normal" and not keep_blank:
        return None
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", raw.name).strip("._") or "image"
    Image.fromarray(pixels).save(out / "images" / f"{name}.png")
    Image.fromarray(mask).save(out / "masks" / f"{name}.png")
    return {
        "id": name,
        "dataset": dataset,
        "class": category,
        "patient": raw.patient and f"{dataset}:{raw.patient}",
        "width": mask.shape[1],
        "height": mask.shape[0],
        "n_masks": len(raw.masks),
        "lesion_fraction": f"{mask.mean():.5f}" if not mask.any() or mask.mean() > 5e-6 else f"{mask.mean():.3g}",
        "spacing_mm": "",
        "thumbnail": thumbnail(pixels),
    }


def _read(path: Path) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8; three equal channels become one. Raises InputError when it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error
    same = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    return pixels[..., 0].copy() if same else pixels


def _colour_category(values: np.ndarray) -> str:
    """BUS-UCLM's masks: green benign, red malignant, black normal."""
    if values.ndim == 2:  # no colour in it: black, or marked without saying as what
        return "" if (values > 127).any() else "normal"
    green, red = int((values[..., 1] > 127).sum()), int((values[..., 0] > 127).sum())
    return "normal" if green == red == 0 else ("malignant" if red > green else "benign")


def _write_index(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path, "w") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
