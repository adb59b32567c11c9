"""Which of the labelled images validate: decided when an image's label comes first, and never again, so that figures of
different days can be compared.

An image goes with its near-duplicates and its patient's other images where these have a place, else by a seeded hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import SELECT_FOLD

SHARE = 0.2  # of the images that validate
TRAIN_PART, LEFT_OUT = "train", "test"
Split = dict[str, dict[str, str]]


def place(images: Sequence[str], groups: Sequence[int], lesions: set[str], split: Split, seed: int) -> Split:
    """Group and part of each image that ``split`` does not know. groups: for each image the index of its group's first.

    Images like known ones go with them; when those lie in both parts, the new one is left out, since it would leak either
    way. Otherwise a seeded hash of the group's name decides, but for the first draw, which takes the same order and sees
    to it that both parts hold a lesion.
    """
    members: dict[int, list[str]] = {}
    for image, group in zip(images, groups, strict=True):
        members.setdefault(group, []).append(image)
    found: Split = {}
    fresh: list[list[str]] = []
    for names in members.values():
        known = [split[i] for i in names if i in split]
        parts = {k["part"] for k in known} - {LEFT_OUT}
        if not known:
            fresh.append(names)
            continue
        goes = {"group": known[0]["group"], "part": parts.pop() if len(parts) == 1 else LEFT_OUT}
        found |= {i: goes for i in names if i not in split}
    chosen = {n[0] for n in fresh if _hash(n[0], seed) < SHARE} if split else _first_draw(fresh, lesions, seed)
    for names in fresh:
        part = SELECT_FOLD if names[0] in chosen else TRAIN_PART
        found |= {i: {"group": names[0], "part": part} for i in names}
    return found


def _first_draw(groups: Sequence[list[str]], lesions: set[str], seed: int) -> set[str]:
    """Names of about SHARE of the groups, of those with a lesion and of the others."""
    chosen: set[str] = set()
    for marked in (True, False):
        names = [g[0] for g in groups if any(i in lesions for i in g) == marked]
        if marked and len(names) < 2:
            raise InputError(
                "all labels with a lesion belong to one patient or are alike: label images of others, so that some can "
                "validate what is learned from the rest"
            )
        names.sort(key=lambda n: _hash(n, seed))
        chosen |= set(names[: max(round(SHARE * len(names)), int(marked))])
    return chosen


def _hash(name: str, seed: int) -> float:
    """In [0, 1), of name and seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") / 2**64
