"""Which of the labelled images validate: decided when an image's label comes first, and never again, so that figures of
different days can be compared. Quick and slow learning place new labels through ``placed``, under one lock.

A group is the images of one patient and their near-duplicates. An image goes where its group is; a new group validates
when the hash of its name is below SHARE. The fourth group with a lesion does in any case when none of the three before
does, so that a training on few labels can be validated at all.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import SELECT_FOLD
from ultrarefiner_monai.datasets.grouping import CORRELATION, components, near_duplicate_pairs, patient_pairs
from ultrarefiner_monai.studies.training_folder import TrainingFolder

log = logging.getLogger(__name__)

SHARE = 0.2  # of the groups that validate
UNVALIDATED = 3  # so many groups with a lesion are trained on before one has to validate
TRAIN_PART, LEFT_OUT = "train", "test"
Split = dict[str, dict[str, str]]


@dataclass(frozen=True)
class SplitImage:
    """What places one labelled image. patient: a hash, or empty. thumbnails: (n, D) of all its frames that are learnt from
    (``grouping.thumbnail``): a still may be any frame of a cine."""

    image: str
    patient: str
    thumbnails: np.ndarray
    has_lesion: bool


def placed(folder: TrainingFolder, images: Sequence[SplitImage], seed: int = 0) -> Split:
    """The split of ``folder`` with a place for each of ``images``; those that are new get theirs, for ever.

    images: all that have a label now, in any order. Raises InputError where one group lies on both sides, naming the
    images: what was validated on would be trained on.
    """
    images = sorted(images, key=lambda i: i.image)
    with folder.split_lock():
        split = folder.read_split()
        require_apart(split)
        alike = alike_pairs(images)
        _require_unlike(images, alike, split)
        if any(i.image not in split for i in images):
            lesions = {i.image for i in images if i.has_lesion}
            patients = {i.image: i.patient for i in images if i.patient}
            new = place([i.image for i in images], groups_of(images, alike), lesions, split, seed, patients)
            split |= new
            folder.write_split(split)
            log.info("%d new images have their place in the split", len(new))
    return split


def place(
    images: Sequence[str],
    groups: Sequence[int],
    lesions: set[str],
    split: Split,
    seed: int,
    patients: dict[str, str] | None = None,
) -> Split:
    """Group and part of each image that ``split`` does not know. groups: for each image the index of its group's first.
    lesions: images with a lesion. patients: image -> patient, where it is known.

    An image that is like known ones of both sides is left out: it would leak either way.
    """
    members: dict[int, list[str]] = {}
    for image, group in zip(images, groups, strict=True):
        members.setdefault(group, []).append(image)
    trained = {split[i]["group"] for i in lesions if i in split and split[i]["part"] == TRAIN_PART}
    validates = any(split[i]["part"] == SELECT_FOLD for i in lesions if i in split)
    found: Split = {}
    for names in members.values():
        fresh = [i for i in names if i not in split]
        known = [split[i] for i in names if i in split and split[i]["part"] != LEFT_OUT]
        parts = {k["part"] for k in known}
        if len(parts) > 1:
            sides = [next(i for i in names if i in split and split[i]["part"] == p) for p in (TRAIN_PART, SELECT_FOLD)]
            for image in fresh:
                log.warning("%s is left out of learning: it is like %s and %s, one of which validates", image, *sides)
        if known:
            goes = {"group": known[0]["group"], "part": parts.pop() if len(parts) == 1 else LEFT_OUT}
        else:
            name = next((patients[i] for i in names if i in patients), names[0]) if patients else names[0]
            marked = any(i in lesions for i in names)
            needed = marked and not validates and len(trained) >= UNVALIDATED
            part = SELECT_FOLD if needed or _hash(name, seed) < SHARE else TRAIN_PART
            goes = {"group": name, "part": part}
            if marked:
                validates |= part == SELECT_FOLD
                trained |= {name} if part == TRAIN_PART else set()
        found |= dict.fromkeys(fresh, goes)
    return found


def require_apart(split: Split) -> None:
    """Raise InputError for a split that has one group on both sides; it names the images."""
    sides: dict[str, dict[str, str]] = {}
    for image, row in sorted(split.items()):
        if row["part"] in (TRAIN_PART, SELECT_FOLD):
            sides.setdefault(row["group"], {}).setdefault(row["part"], image)
    both = [side for side in sides.values() if len(side) > 1]
    if both:
        raise _both_sides([(side[TRAIN_PART], side[SELECT_FOLD]) for side in both])


def _require_unlike(images: Sequence[SplitImage], alike: np.ndarray, split: Split) -> None:
    """Raise InputError where known images of both sides are alike now: a file was replaced, or its patient."""
    known = [k for k, i in enumerate(images) if split.get(i.image, {}).get("part", LEFT_OUT) != LEFT_OUT]
    sides: dict[int, dict[str, str]] = {}
    for k, group in zip(known, groups_of(images, alike, known), strict=True):
        sides.setdefault(group, {}).setdefault(split[images[k].image]["part"], images[k].image)
    both = [side for side in sides.values() if len(side) > 1]
    if both:
        raise _both_sides([(side[TRAIN_PART], side[SELECT_FOLD]) for side in both])


def _both_sides(pairs: Sequence[tuple[str, str]]) -> InputError:
    named = "; ".join(f"{one} is trained on and {other} validates" for one, other in pairs[:5])
    more = f" (and {len(pairs) - 5} more)" if len(pairs) > 5 else ""
    return InputError(
        f"images of one patient, or that are alike, lie on both sides of the validation split: {named}{more}. Nothing is "
        "learnt until one of each pair is forgotten (`ultrarefiner forget`; its label stays): it joins the other then"
    )


def alike_pairs(images: Sequence[SplitImage]) -> np.ndarray:
    """(N, 2) indices of images of which two frames are near-duplicates, the smaller first. All frames are compared."""
    if not images:
        return np.zeros((0, 2), dtype=int)
    frames = [np.atleast_2d(i.thumbnails) for i in images]
    return near_duplicate_pairs(np.concatenate(frames), np.repeat(np.arange(len(images)), [len(f) for f in frames]))


def likenesses(images: Sequence[SplitImage]) -> dict[str, str]:
    """Image -> one name for all that are near-duplicates, whoever's they are: they count once where labels are counted. Two
    pictures of one patient that differ are two."""
    bare = [replace(image, patient="") for image in images]
    groups = groups_of(bare, alike_pairs(bare))
    return {image.image: bare[k].image for image, k in zip(bare, groups, strict=True)}


def unlike(thumbnails: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) bool: which of ``thumbnails`` (n, D) are no near-duplicate of any of ``others`` (m, D)."""
    if not len(others):
        return np.ones(len(thumbnails), dtype=bool)
    return np.asarray((thumbnails @ others.T).max(axis=1) < CORRELATION)


def groups_of(images: Sequence[SplitImage], alike: np.ndarray, among: Sequence[int] | None = None) -> list[int]:
    """Of each image of ``among`` (indices; None: of all) the smallest index of its group: what is alike or one patient's, by
    way of images of ``among`` alone."""
    among = list(range(len(images)) if among is None else among)
    inside = np.zeros(len(images), dtype=bool)
    inside[among] = True
    patients = patient_pairs([image.patient if inside[k] else "" for k, image in enumerate(images)])
    groups = components(len(images), np.concatenate([alike[inside[alike].all(axis=1)], patients]))
    return [groups[k] for k in among]


def _hash(name: str, seed: int) -> float:
    """In [0, 1), of name and seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") / 2**64
