"""The public datasets' layouts -> one clean folder: images/ID.png, masks/ID.png, index.csv.

A layout only says which files belong together; reading, checking, grouping, splitting and writing are the same for all.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.coco import annotation_files, image_path, images_of, mask_of
from ultrarefiner_monai.datasets.grouping import assign_folds, near_duplicate_groups, thumbnail
from ultrarefiner_monai.datasets.raw_pictures import read_image, read_label
from ultrarefiner_monai.masks.label_values import MOST_MARKED, check_share

log = logging.getLogger(__name__)
COLUMNS = "id dataset class patient group fold width height n_masks lesion_fraction spacing_mm".split()
SKIPPED = ("file", "reason")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Raw:
    """One image of a raw dataset. coloured: the mask is RGB, green benign and red malignant. patient, category: or "".
    instances: COCO's annotations, in place of masks; said_size: (H, W) that goes with them, None where it is not said. problem: why it
    cannot be taken."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    patient: str = ""
    category: str = ""
    coloured: bool = False
    problem: str = ""
    instances: tuple[dict[str, Any], ...] = ()
    said_size: tuple[Any, ...] = (None, None)

    @property
    def id(self) -> str:
        """What it is called in the clean folder."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.name).strip("._") or "image"


@dataclass
class Summary:
    """What ``prepare`` did: images written, blank masks left out, groups of near-duplicates, images of each fold.

    skipped: (file, reason) of the bad ones. warnings: for each, the names of the images that it is about.
    """

    written: int = 0
    blank_left_out: list[str] = field(default_factory=list)
    duplicate_groups: int = 0
    folds: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    def warn(self, warning: str, name: str) -> None:
        log.warning("%s: %s", name, warning)
        self.warnings.setdefault(warning, []).append(name)


# --- layouts ----------------------------------------------------------------------------------------------------------


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"expected the folder {folder}; it is not there. Is this the dataset's own layout?")
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    return sorted(found, key=lambda p: p.name)


def _busi(root: Path) -> Iterator[Raw]:
    folders = [root / category for category in ("benign", "malignant", "normal")]
    there = [folder for folder in folders if folder.is_dir()] or folders
    for folder in folders:
        if folder not in there:
            log.warning("%s is not there: are its images missing?", folder)
    for folder in there:
        category, files = folder.name, _pictures(folder)
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
            yield Raw(image.stem, image, (), problem=f"{table} has no row for {image.stem}")
            continue
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


def _coco(root: Path) -> Iterator[Raw]:
    for file in annotation_files(root):
        for image, instances, category in images_of(file):
            file_name = image["file_name"].replace("\\", "/")
            name, path = str(Path(file_name).with_suffix("")), image_path(root, file_name)
            patient = str(image.get("patient_id") or image.get("patient") or "")
            if path is None:
                missing = f"{file.name} names {file_name}, which is not in {root}"
                yield Raw(name, root / Path(file_name).name, (), problem=missing)
            else:
                said = tuple(image.get(key) for key in ("height", "width"))
                yield Raw(name, path, (), patient, category, instances=tuple(instances), said_size=said)


LAYOUTS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    "BUSI": _busi,
    "BUSBRA": _busbra,
    "BUS": _pairs("original", "GT"),
    "UDIAT": _pairs("original", "GT"),
    "BUS_UC": _pairs("All/images", "All/masks"),
    "BUS_UCLM": _uclm,
    "COCO": _coco,
}


# --- preparing --------------------------------------------------------------------------------------------------------


def prepare(
    dataset: str, raw_dir: str | Path, out: str | Path, seed: int = 0, keep_blank: bool = False, skip_bad: bool = False
) -> Summary:
    """Write a clean folder from a raw dataset.

    Several masks of an image are joined by OR; what a mask's values mean: ``label_values``, with soft edges cut in the
    middle. Images that the dataset itself calls normal stay in; other blank masks are counted and left out unless
    ``keep_blank``. Groups (patient where known, and near-duplicates always) go whole into "test" (20 %) or folds 0 to 4,
    seeded and independent of the listing's order. skip_bad: what cannot be read is left out and listed in skipped.csv;
    else it ends in InputError.
    """
    dataset = next((name for name in LAYOUTS if name.lower() == dataset.lower()), dataset)
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
        try:
            if raw.id.lower() in ids:
                raise InputError(f"{raw.image}: another image has the id {raw.id} too; rename one of them")
            row = _write_pair(raw, dataset, out, keep_blank, summary)
        except InputError as error:
            if not skip_bad:
                raise InputError(f"{error}. Mend or remove it, or leave such images out with --skip-bad") from error
            log.warning("left out: %s", error)
            summary.skipped.append((raw.image.relative_to(raw_dir).as_posix(), str(error)))
            continue
        if row is None:
            summary.blank_left_out.append(raw.name)
            continue
        ids.add(row["id"].lower())
        thumbnails.append(row.pop("thumbnail"))
        rows.append(row)
    if summary.skipped:
        _write_table(out / "skipped.csv", [dict(zip(SKIPPED, pair, strict=True)) for pair in summary.skipped], SKIPPED)
    if not rows:
        bad = f"; {len(summary.skipped)} cannot be read, see {out / 'skipped.csv'}" if summary.skipped else ""
        raise InputError(f"no images found in {raw_dir} with the layout of {dataset}{bad}")
    groups = near_duplicate_groups(np.stack(thumbnails), [r["patient"] for r in rows])
    names = [rows[g]["id"] for g in groups]  # a group is named after its first image
    folds = assign_folds(names, [r["class"] for r in rows], seed)
    for row, group, fold in zip(rows, names, folds, strict=True):
        row.update(group=group, fold=fold)
    _write_table(out / "index.csv", rows, COLUMNS)
    summary.written = len(rows)
    summary.duplicate_groups = sum(names.count(g) > 1 for g in set(names))
    summary.folds = {f: folds.count(f) for f in sorted(set(folds))}
    return summary


def _write_pair(raw: Raw, dataset: str, out: Path, keep_blank: bool, summary: Summary) -> dict[str, Any] | None:
    """Its row of the index, None where it is left out as blank. InputError where it is bad: then nothing is written."""
    from PIL import Image

    if raw.problem:
        raise InputError(raw.problem)
    warnings: list[str] = []
    pixels = read_image(raw.image, warnings)
    height, width = (int(n) for n in pixels.shape[:2])
    mask, category = np.zeros((height, width), bool), raw.category
    if any(said not in (None, is_) for said, is_ in zip(raw.said_size, (height, width), strict=True)):
        told = f"{raw.said_size[1]} x {raw.said_size[0]}"
        raise InputError(f"{raw.image} is {width} x {height} pixels; its annotations are for {told}")
    if raw.instances:
        try:
            mask = mask_of(list(raw.instances), height, width)
        except InputError as error:
            raise InputError(f"{raw.image}: {error}") from error
    elif not raw.masks and category != "normal" and not keep_blank:
        log.warning("%s has no mask: left out", raw.image.name)
        return None
    for path in raw.masks:
        marked, said = read_label(path, mask.shape, raw.coloured, warnings)  # type: ignore[arg-type]
        mask |= marked
        category = category or said
    if mask.mean() > MOST_MARKED:
        warnings.append(f"the mask marks more than {100 * MOST_MARKED:.0f} % of the picture: is it inverted?")
    check_share(mask[None], mask.mean() > MOST_MARKED, warnings)
    for warning in dict.fromkeys(warnings):
        summary.warn(warning, raw.name)
    if not mask.any() and category != "normal" and not keep_blank:
        return None
    Image.fromarray(pixels).save(out / "images" / f"{raw.id}.png")
    Image.fromarray(mask).save(out / "masks" / f"{raw.id}.png")
    return {
        "id": raw.id,
        "dataset": dataset,
        "class": category,
        "patient": raw.patient and f"{dataset}:{raw.patient}",
        "width": width,
        "height": height,
        "n_masks": len(raw.masks) or len(raw.instances),
        "lesion_fraction": f"{mask.mean():.5f}" if not mask.any() or mask.mean() > 5e-6 else f"{mask.mean():.3g}",
        "spacing_mm": "",
        "thumbnail": thumbnail(pixels),
    }


def _write_table(path: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    with replacing(path, "w") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
