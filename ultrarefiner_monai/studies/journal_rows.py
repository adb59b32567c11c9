"""What the rows of the journal are in Python, and how values become columns."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from ultrarefiner_monai.masks.pixels import pack_mask, unpack_mask

# In a correction's info: it came late, another label was in its place already and stayed there.
BESIDE = "beside"
# The columns of a StoredCorrection, as ``correction_of`` takes them.
CORRECTION = (
    "id, created, image_id, image_hash, proposal_id, author, client, info, shape, mask, shown, first_proposal_id"
)


@dataclass(frozen=True)
class Packed:
    """A mask as the tables keep it. Long cines take a while: packed before the journal is locked for others."""

    shape: str
    bits: bytes

    @classmethod
    def of(cls, mask: np.ndarray) -> Packed:
        return cls(json.dumps(mask.shape), pack_mask(mask))


def answered_frames(reply: dict[str, Any], count: int) -> list[int]:
    """Of a mask's ``count`` frames those that the reply was about. One to `frame=k` holds that frame alone: the others of its
    mask are empty without meaning it."""
    if count == 1:
        return [0]
    frames = {row.get("frame") for row in reply.get("frames") or []} or {reply.get("frame", 0)}
    return [k for k in range(count) if k in frames]


@dataclass(frozen=True)
class StoredProposal:
    """One reply. image_hash: sha256 of the image file. prompts: frame -> clicks and box (``Clicks.to_dict``), empty for an
    automatic one. cache_keys: what the embedding cache calls its frames."""

    id: int
    created: str
    image_id: str
    image_hash: str
    model: str
    version: str
    client: str
    prompts: dict[str, Any]
    reply: dict[str, Any]
    cache_keys: list[str]
    mask: np.ndarray

    @property
    def answered(self) -> list[int]:
        """The frames that the reply was about."""
        return answered_frames(self.reply, len(self.mask))

    @property
    def is_automatic(self) -> bool:
        """Whether it was made without clicks and boxes."""
        return not self.prompts


@dataclass(frozen=True)
class StoredCorrection:
    """A final label. proposal_id: the newest proposal for the image before it, None when there was none.

    shown: ISO time when its image was first shown to this client since the client's last save of it, None where not known.
    first_proposal_id: the automatic proposal that the work began with: the first one since then, else that of the save
    before; None where there was none.
    """

    id: int
    created: str
    image_id: str
    image_hash: str
    proposal_id: int | None
    author: str
    client: str
    info: dict[str, Any]
    mask: np.ndarray
    shown: str | None = None
    first_proposal_id: int | None = None

    @property
    def seconds(self) -> float | None:
        """From first shown to saved; None where not known, or where the clock was set back meanwhile."""
        return seconds_between(self.shown, self.created)


@dataclass(frozen=True)
class StoredPromotion:
    """A model that became the served one. version: as in replies. by: "person", "quick" or "slow". before: name of the one
    that was served until then. report: what the gate said, {} without one."""

    id: int
    created: str
    name: str
    version: str
    by: str
    before: str
    report: dict[str, Any]


def proposal_of(row: tuple) -> StoredProposal:
    return StoredProposal(*(*row[:7], *map(json.loads, row[7:10]), mask_of(row[10], row[11])))


def correction_of(row: tuple) -> StoredCorrection:
    return StoredCorrection(*(*row[:7], json.loads(row[7]), mask_of(row[8], row[9]), *row[10:]))


def promotion_of(row: tuple) -> StoredPromotion:
    return StoredPromotion(*(*row[:6], json.loads(row[6])))


def mask_of(shape: str, blob: bytes) -> np.ndarray:
    return unpack_mask(blob, tuple(json.loads(shape)))


def as_json(value: dict[str, Any] | None) -> str:
    return json.dumps(value or {}, default=str)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def seconds_between(first: str | None, last: str) -> float | None:
    """Of two ISO times; None where one is missing or no time, or the second lies before the first."""
    try:
        seconds = (datetime.fromisoformat(last) - datetime.fromisoformat(first or "")).total_seconds()
    except (ValueError, TypeError):
        return None
    return seconds if seconds >= 0 else None


def new_id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid
