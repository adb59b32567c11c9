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
_BLOCK = 512  # thumbnails that are compared with all others at once: some ten megabytes


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
    """(N, D) thumbnails -> for each image the smallest index of its group: what is alike or one patient's."""
    pairs = near_duplicate_pairs(thumbnails, threshold=threshold)
    return components(len(thumbnails), np.concatenate([pairs, patient_pairs(patients or ())]))


def near_duplicate_pairs(
    thumbnails: np.ndarray, owners: np.ndarray | None = None, threshold: float = CORRELATION
) -> np.ndarray:
    """(N, D) thumbnails -> (M, 2) indices of images of which two thumbnails are near-duplicates, the smaller first.

    owners: (N,) the image of each thumbnail; None: each is an image of its own. Seconds for 5000.
    """
    owners = np.arange(len(thumbnails)) if owners is None else owners
    found = [np.zeros((0, 2), dtype=int)]
    for start in range(0, len(thumbnails), _BLOCK):
        rows, columns = np.nonzero(thumbnails[start : start + _BLOCK] @ thumbnails[start:].T >= threshold)
        pairs = np.sort(np.stack([owners[start + rows], owners[start + columns]], axis=1), axis=1)
        found.append(np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0))
    return np.unique(np.concatenate(found), axis=0)


def patient_pairs(patients: Sequence[str]) -> np.ndarray:
    """(M, 2) indices: each image of a named patient beside the patient's first."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(patient, k), k) for k, patient in enumerate(patients) if patient]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def components(count: int, pairs: np.ndarray) -> list[int]:
    """Of each of ``count`` images the smallest index of those that ``pairs`` (M, 2) connect it with."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs), dtype=bool), pairs.T), shape=(count, count))
    numbers = connected_components(graph, directed=False)[1]
    _, firsts, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return [int(k) for k in firsts[inverse]]


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
