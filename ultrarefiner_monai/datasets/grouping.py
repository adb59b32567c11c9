"""Which images must stay together, and which fold they go to.

Random splits of the public breast-ultrasound datasets leak: the same lesion is there as several screenshots. Images
whose thumbnails correlate almost perfectly, and images of one patient, form one group, and a group is never divided.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

SIDE = 32  # thumbnails' side in pixels
CORRELATION = 0.92  # on BUSI this finds the groups that were drawn up by hand, and few others
TEST_SHARE = 0.2
FOLDS = 5


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 -> (SIDE * SIDE,) float32 of mean 0 and norm 1 (a flat image: zeros)."""
    from PIL import Image

    small = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32).ravel()
    values = values - values.mean()
    norm = float(np.linalg.norm(values))
    return values / norm if norm > 0 else values


def thumbnail_of(frame: np.ndarray) -> np.ndarray:
    """``thumbnail`` of a frame as readers give it: (H, W) in [0, 1]."""
    return thumbnail(np.rint(frame * 255).astype(np.uint8))


def near_duplicate_groups(
    thumbnails: np.ndarray, patients: Sequence[str] | None = None, threshold: float = CORRELATION
) -> list[int]:
    """(N, D) thumbnails -> for each image the smallest index of its group (connected components of "alike")."""
    count = len(thumbnails)
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = sorted((root(i), root(j)))
        parent[b] = a

    for i in range(count):
        for j in np.flatnonzero(thumbnails[i + 1 :] @ thumbnails[i] >= threshold):
            join(i, i + 1 + int(j))
    first: dict[str, int] = {}
    for i, patient in enumerate(patients or ()):
        if patient:
            join(first.setdefault(patient, i), i)
    return [root(i) for i in range(count)]


def assign_folds(groups: Sequence[str], categories: Sequence[str], seed: int) -> list[str]:
    """A fold for each image: "test" for about TEST_SHARE of them, "0" to "4" for the rest; groups stay whole.

    Groups are taken large ones first and otherwise in the order of a seeded hash of their name, each into the fold that
    lacks most of its class. The order of the input does not matter.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    order = sorted(members, key=lambda g: (-len(members[g]), hashlib.sha256(f"{seed}:{g}".encode()).hexdigest()))
    target = {"test": TEST_SHARE, **{str(k): (1 - TEST_SHARE) / FOLDS for k in range(FOLDS)}}
    counts: dict[tuple[str, str], int] = {}
    folds = [""] * len(groups)
    for group in order:
        category = categories[members[group][0]]
        fold = min(target, key=lambda f: (counts.get((f, category), 0) + 0.5) / target[f])
        for i in members[group]:
            folds[i] = fold
            counts[fold, categories[i]] = counts.get((fold, categories[i]), 0) + 1
    return folds
