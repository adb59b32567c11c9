"""Which images a checkpoint has seen: digests of their pixels, which hold whatever a folder or a file is called.

A checkpoint's meta carries ``digests``, of all images that it, or a checkpoint it started from, was trained on or selected
by. Older checkpoints have none: for them the names of their sets and the fold that they held out decide. Both are kept as
``seen_before`` in every checkpoint that started from one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.threads import in_threads
from ultrarefiner_monai.datasets.datalist import JOINT, Item
from ultrarefiner_monai.imaging.readers import read_image_file

BYTES = 8  # of a SHA-256: among 10^4 images two agree by chance with a probability of 10^-12
DIGESTS, BEFORE = "digests", "seen_before"
_NAMES = ("data", "fold", "left_out")


def digest_of(image: np.ndarray) -> bytes:
    """Eight bytes that stand for the grey pixels of image (H, W), float in [0, 1], at 8 bits, and for its shape."""
    pixels = np.ascontiguousarray((np.asarray(image) * 255).round().clip(0, 255).astype(np.uint8))
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode())
    digest.update(pixels.data)
    return digest.digest()[:BYTES]


def digests_of(items: Iterable[Item]) -> set[bytes]:
    """The digests of the items' images, a few milliseconds each; kept while the process lives and the file is the same."""
    return set(in_threads(lambda item: _of_file(item.image, item.image.stat().st_mtime_ns), items))


@lru_cache(maxsize=20_000)
def _of_file(path: Path, _mtime: int) -> bytes:
    return digest_of(read_image_file(path).frame(0))


def pack(digests: Iterable[bytes]) -> str:
    """Digests -> text, sorted: 11 bytes for each."""
    return base64.b64encode(b"".join(sorted(set(digests)))).decode("ascii")


def unpack(meta: Mapping[str, Any]) -> set[bytes] | None:
    """The digests in a checkpoint's meta; None where there are none, or none that can be read."""
    text = meta.get(DIGESTS)
    if not isinstance(text, str):
        return None
    try:
        joined = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return {joined[k : k + BYTES] for k in range(0, len(joined), BYTES)}


def about_seen(own: Iterable[bytes] | None, starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a new checkpoint's meta: what it has seen itself (``own``) and what the checkpoints it started from have.

    own: None for one that was only put together from ``starts`` (``weights join``); what lacks digests is then named.
    """
    digests, known = set(own or ()), own is not None
    before: list[dict[str, Any]] = []
    for meta in starts:
        found = unpack(meta)
        known |= found is not None
        digests |= found or set()
        before += [record for record in name_records(meta) if record not in before]
    about: dict[str, Any] = {DIGESTS: pack(digests)} if known else {}
    return {**about, **({BEFORE: before} if before else {})}


def name_records(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What of a checkpoint's past is known by names alone: {data, fold, left_out} each."""
    own = {k: meta[k] for k in _NAMES if k in meta}
    return ([own] if unpack(meta) is None and own else []) + [dict(r) for r in meta.get(BEFORE, [])]


def named_sets(meta: Mapping[str, Any], name: str) -> bool | None:
    """Whether the set ``name`` was trained on; None where the meta does not name it. BUSI and busi are one set: the same
    dataset lies in a folder of either name."""
    name, data = name.casefold(), str(meta.get("data", "")).casefold()
    if name != data and name not in data.split(JOINT):
        return None
    return name not in str(meta.get("left_out", "")).casefold().split(JOINT)


def seen_by_name(meta: Mapping[str, Any], name: str, fold: str) -> bool | None:
    """Whether a checkpoint without digests has seen the fold of the set ``name``; None where that is not known."""
    trained = named_sets(meta, name)
    if trained is None or "fold" not in meta:
        return None
    return trained and fold not in (str(meta["fold"]), "test")


def count_seen(meta: Mapping[str, Any], images: Iterable[bytes]) -> int | None:
    """How many of the images the checkpoint has seen; None for one without digests."""
    seen = unpack(meta)
    return None if seen is None else sum(image in seen for image in images)


def seen(meta: Mapping[str, Any], items: Sequence[Item], images: Sequence[bytes]) -> bool | None:
    """Whether the checkpoint has seen any of ``items``, by their digests ``images`` and what is known by names alone; None
    where it cannot be told."""
    if count_seen(meta, images):
        return True
    records = name_records(meta)
    if unpack(meta) is None and not records:
        return None
    answers = [seen_by_name(r, name, fold) for r in records for name, fold in {(i.set, i.fold) for i in items}]
    return True if True in answers else None if None in answers else False
