"""The final labels of a studies folder as a clean data folder, with a validation split that never moves.

Each labelled frame becomes images/IMAGE@FRAME.png (8 bits of luminance) and masks/IMAGE@FRAME.png. Where an image goes is
decided when its label comes first (``label_split``).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.image_file import ImageFile, Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import SELECT_FOLD
from ultrarefiner_monai.datasets.grouping import thumbnail
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.learning.label_split import LEFT_OUT, TRAIN_PART, Split, SplitImage, placed
from ultrarefiner_monai.studies.corrections import Labelled, chosen_frames, training_parts
from ultrarefiner_monai.studies.training_folder import Row, TrainingFolder

log = logging.getLogger(__name__)

LEAST_LESIONS = 4
# From an image's id to what stands in the studies now; None: it has no final label any more.
Lookup = Callable[[str], Labelled | None]
# Goes up when an image or a label of the same bytes comes to mean something else: copies of before are made anew.
_MEANING = "m2"
_TRIES = 3  # a label that is replaced while it is read is read so often


@dataclass(frozen=True)
class Prepared:
    """What a training can use, in images with and without a lesion; the frames of a cine count as one image.

    groups: patients with a lesion, near-duplicates as one, that validate. left_out: ids of images
    whose label was removed, or replaced again and again, while the labels were read. leaks: ids of images that are like
    ones of both sides of the split.
    """

    train: int
    select: int
    lesions: int
    left_out: tuple[str, ...] = ()
    groups: int = 0
    leaks: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.train} images to train on, {self.select} to validate, {self.lesions} of them with a lesion"
        if self.left_out:
            text += f"; left out, since image or label changed meanwhile: {', '.join(self.left_out)}"
        if self.leaks:
            text += (
                f"; left out, since they are like images that validate and others that do not: {', '.join(self.leaks)}"
            )
        return text


def prepare_labels(
    labelled: Sequence[Labelled],
    folder: TrainingFolder,
    limits: Limits | None = None,
    seconds: float | None = None,
    seed: int = 0,
    lookup: Lookup | None = None,
) -> Prepared | None:
    """Bring ``folder.data`` in line with the final labels; only what is new or changed is read.

    lookup: asked where a file is gone or was replaced since ``labelled`` was made; then the label of now is read, or the
    image left out. Without it the image is left out where its files are gone. seconds: None is returned when the copying
    takes longer; another call goes on. Raises InputError, naming the labels, for such that cannot be used, and when there
    are too few.
    """
    if not labelled:
        raise InputError("there is no final label yet: save some (Submit Label), then train")
    end = time.monotonic() + seconds if seconds is not None else None
    before: dict[str, list[Row]] = {}
    for row in folder.read_rows():
        before.setdefault(row["image"], []).append(row)
    for name in ("images", "masks"):
        (folder.data / name).mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    problems: list[str] = []
    left_out: list[str] = []
    late = False
    for pair in labelled:
        known = before.get(pair.image_id, [])
        if end is not None and time.monotonic() > end and not _up_to_date(pair, known, folder):
            late = True
            break
        try:
            found = _rows_of(pair, known, folder, limits or Limits(), lookup or _still_there(pair))
        except InputError as error:
            problems.append(f"{pair.image_id}: {str(error).removeprefix(f'{pair.label.name}: ')}")
            continue
        if found is None:
            log.warning("%s is left out: image or label was removed or replaced while it was read", pair.image_id)
            left_out.append(pair.image_id)
        rows += found or []
    if late:  # keep what was copied before and is still to be looked at
        done = {row["image"] for row in rows}
        rows += [row for image, old in before.items() if image not in done for row in old]
    if problems:
        folder.write_rows(rows)
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise InputError(
            f"{len(problems)} final label(s) cannot be trained on; correct and save them again, or remove them: "
            + "; ".join(problems[:5])
            + more
        )
    if not late:
        rows = _assign(rows, folder, seed)
    folder.write_rows(rows)
    if late:
        return None
    _remove_others(rows, folder)
    return _count(rows, left_out)


def _up_to_date(pair: Labelled, known: Sequence[Row], folder: TrainingFolder) -> list[Row]:
    """The rows of copies that are still those of the pair's files; [] when it has to be copied."""
    state = pair_state(pair)
    kept = [row for row in known if row["state"] == state]
    return kept if all(path.is_file() for row in kept for path in folder.pair(row["id"])) else []


def _rows_of(
    pair: Labelled, known: Sequence[Row], folder: TrainingFolder, limits: Limits, lookup: Lookup
) -> list[Row] | None:
    """The rows of one image, copied where that is needed; None when its label is gone, or replaced at every try.

    Raises InputError for image and label that stay as they are and cannot be used.
    """
    now: Labelled | None = pair
    failed: tuple[Labelled, str] | None = None
    for _ in range(_TRIES):
        if now is None:
            return None
        pair, state = now, pair_state(now)
        try:
            return _up_to_date(pair, known, folder) or _copy(pair, state, folder, limits)
        except Exception:  # whatever a reader says between the old and the new file
            now = lookup(pair.image_id)
            # Twice: two states within one tick of the file system's clock look the same.
            if now == pair and state and failed == (pair, state) and pair_state(pair) == state:
                raise
            failed = (pair, state)
    return None


def _still_there(pair: Labelled) -> Lookup:
    return lambda _: pair if pair_state(pair) else None


def _copy(pair: Labelled, state: str, folder: TrainingFolder, limits: Limits) -> list[Row]:
    """Write the chosen frames of one image and its label, each B-mode region by itself; rows without group and fold."""
    from PIL import Image

    image_file = read_image_file(pair.image, limits)
    mask = read_mask(pair.label, image_file, limits, pair.confirmed)
    if pair_state(pair) != state:
        raise InputError("image or label changed while it was read; try again")
    parts = [(k, *part) for k in chosen_frames(mask) for part in training_parts(pair.image_id, image_file, k, mask[k])]
    rows = []
    for k, item, region in parts:
        image_path, mask_path = folder.pair(item)
        pixels = np.rint(image_file.frame(k)[region] * 255).astype(np.uint8)
        inside = mask[k][region].astype(bool)
        for array, path in ((pixels, image_path), (inside, mask_path)):
            with replacing(path) as file:
                Image.fromarray(array).save(file, "PNG")
        fraction = float(inside.mean())
        rows.append(
            {
                "id": item,
                "image": pair.image_id,
                "state": state,
                "patient": patient_hash(image_file),
                "class": "lesion" if fraction else "normal",
                "group": "",
                "fold": "",
                "width": str(pixels.shape[1]),
                "height": str(pixels.shape[0]),
                "lesion_fraction": f"{fraction:.6g}",
                "view": image_file.view,
            }
        )
    return rows


def patient_hash(image_file: ImageFile) -> str:
    """A hash: the copies need to know who belongs together, not who it is."""
    return hashlib.sha256(image_file.patient.encode()).hexdigest()[:12] if image_file.patient else ""


def pair_state(pair: Labelled) -> str:
    """Changes with image and label file, and with what they mean (``_MEANING``); empty when one of them is gone."""
    parts = [_MEANING]
    for path in (pair.image, pair.label):
        try:
            stat = path.stat()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise InputError(f"{path.name} cannot be opened: {error.strerror}") from error
        parts.append(f"{stat.st_mtime_ns:x}-{stat.st_size:x}")
    return "-".join(parts)


def _remove_others(rows: Sequence[Row], folder: TrainingFolder) -> None:
    """Copies of labels that are gone."""
    keep = {path for row in rows for path in folder.pair(row["id"])}
    for name in ("images", "masks"):
        for path in (folder.data / name).iterdir():
            if path not in keep:
                path.unlink()


# --- the split --------------------------------------------------------------------------------------------------------


def _assign(rows: Sequence[Row], folder: TrainingFolder, seed: int) -> list[Row]:
    """The rows with group and fold; the split file gets the images that are new. InputError when there are too few."""
    images = sorted({row["image"] for row in rows})
    lesions = {row["image"] for row in rows if row["class"] == "lesion"}
    frames: dict[str, list[Row]] = {}
    for row in rows:
        frames.setdefault(row["image"], []).append(row)
    split = placed(folder, [_split_image(frames[image], lesions, folder) for image in images], seed)
    _require_enough(images, lesions, split)
    return [{**row, "group": split[row["image"]]["group"], "fold": split[row["image"]]["part"]} for row in rows]


def _split_image(rows: Sequence[Row], lesions: set[str], folder: TrainingFolder) -> SplitImage:
    from PIL import Image

    pixels = []
    for row in rows:
        with Image.open(folder.pair(row["id"])[0]) as image:
            pixels.append(thumbnail(np.asarray(image)))
    return SplitImage(rows[0]["image"], rows[0]["patient"], np.stack(pixels), rows[0]["image"] in lesions)


def _require_enough(images: Sequence[str], lesions: set[str], split: Split) -> None:
    """Raise InputError where the labels are too few to train and to validate."""
    if len(lesions) < LEAST_LESIONS:
        raise InputError(
            f"{len(lesions)} final label(s) with a lesion, of {len(images)} in all: at least {LEAST_LESIONS} are needed"
        )
    groups = {split[image]["group"] for image in lesions if split[image]["part"] != LEFT_OUT}
    if len(groups) < LEAST_LESIONS:
        raise InputError(
            f"the {len(lesions)} labels with a lesion belong to {len(groups)} patient(s) or are alike: label images of "
            f"others, of {LEAST_LESIONS} at least, so that some can validate what is learned from the rest"
        )
    for part, what in ((TRAIN_PART, "to train on"), (SELECT_FOLD, "to validate")):
        if not any(split[image]["part"] == part for image in lesions):
            raise InputError(
                f"no label with a lesion is left {what}, since images keep their place and some were forgotten or have no "
                "label any more: label images of other patients"
            )


def _count(rows: Sequence[Row], left_out: Sequence[str]) -> Prepared:
    parts = {row["image"]: row["fold"] for row in rows}
    lesions = {row["image"] for row in rows if row["class"] == "lesion" and row["fold"] != LEFT_OUT}
    groups = {row["group"] for row in rows if row["fold"] == SELECT_FOLD and row["image"] in lesions}
    leaks = tuple(sorted(image for image, part in parts.items() if part == LEFT_OUT))
    counts = list(parts.values())
    return Prepared(
        counts.count(TRAIN_PART), counts.count(SELECT_FOLD), len(lesions), tuple(left_out), len(groups), leaks
    )
