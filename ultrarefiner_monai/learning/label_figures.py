"""The figures of all saved labels, from the journal, without holding up whoever writes it.

Masks are compared once for each label; what is kept of it are numbers. A label that was forgotten, or taken back, is gone
with the next look.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.learning.progress import Save
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.masks.pixels import unpack_mask
from ultrarefiner_monai.studies.journal_rows import StoredPromotion, answered_frames, promotion_of, seconds_between

_FIRST_TOLD = 200  # labels after which those that are known are told first; then at twice as many, and so on
_REST_SECONDS = 0.0005  # after each label: whoever answers requests wants the interpreter, too

_ROWS = """
SELECT c.id, c.created, c.image_id, {shown}, n.prompts, n.version, {first}, n.id
FROM corrections c LEFT JOIN proposals n ON n.id = c.proposal_id
WHERE c.id NOT IN (SELECT correction_id FROM saves WHERE correction_id IS NOT NULL) ORDER BY c.id
"""
_MASKS = """
SELECT c.id, c.shape, c.mask, f.shape, f.mask, f.reply FROM corrections c JOIN proposals f ON f.id = ?
WHERE c.id = ?
"""


@dataclass(frozen=True)
class _Columns:
    """What this journal calls the first time an image was shown, and the first proposal for it: none in older ones."""

    shown: str
    first: str

    @classmethod
    def of(cls, connection: sqlite3.Connection) -> _Columns:
        names = {row[1] for row in connection.execute("PRAGMA table_info(corrections)")}
        has_first = "first_proposal_id" in names
        return cls("c.shown" if "shown" in names else "''", "c.first_proposal_id" if has_first else "NULL")


class LabelFigures:
    """The saves in the journal at ``path``. One thread at a time.

    left: labels whose masks are still to be compared. promotions: all that the journal held at the last look.
    """

    def __init__(self, path: Path):
        self.path, self.left = path, 0
        self.promotions: tuple[StoredPromotion, ...] = ()
        self._known: dict[int, Save] = {}

    def look(self, seen: Callable[[list[Save]], None] = lambda _: None) -> list[Save]:
        """All saves, in order. seen: called with those that are known so far, while there are more to come.

        Raises sqlite3.Error for a journal that cannot be read; one that is not there has none.
        """
        if not self.path.exists():
            self._known.clear()
            self.promotions = ()
            return []
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            columns = _Columns.of(connection)
            self.promotions = _promotions(connection)
            rows = connection.execute(_ROWS.format(shown=columns.shown, first=columns.first)).fetchall()
            there = {row[0]: row[1] for row in rows}
            # Another journal in its place may give the same number to another label.
            self._known = {key: save for key, save in self._known.items() if there.get(key) == save.created}
            fresh, told = [row for row in rows if row[0] not in self._known], _FIRST_TOLD
            for k, row in enumerate(fresh):
                self.left = len(fresh) - k
                if k == told:
                    seen(self._in_order())
                    told *= 2
                self._known[row[0]] = self._save(connection, row)
                time.sleep(_REST_SECONDS)
        self.left = 0
        return self._in_order()

    def _in_order(self) -> list[Save]:
        return [self._known[key] for key in sorted(self._known)]

    def _save(self, connection: sqlite3.Connection, row: tuple) -> Save:
        number, created, image_id, shown, prompts, version = row[:6]
        clicks = None if prompts is None else clicks_in(_json(prompts))
        dice = self._dice(connection, row)
        return Save(number, created, image_id, clicks, dice, seconds_between(shown, created), version or "")

    def _dice(self, connection: sqlite3.Connection, of: tuple) -> float | None:
        """Dice of the first proposal against the label; None where it was forgotten, or is of another size. The newest
        one stands for it where it had no clicks."""
        correction, prompts, first, newest = of[0], of[4], of[6], of[7]
        if first is None and newest is not None and not clicks_in(_json(prompts)):
            first = newest
        if first is None:
            return None
        row = connection.execute(_MASKS, (first, correction)).fetchone()
        if row is None or row[1] != row[3]:
            return None
        return packed_dice(row[2], row[4], tuple(json.loads(row[1])), _json(row[5]))


def packed_dice(label: bytes, proposal: bytes, shape: tuple[int, ...], reply: dict[str, Any]) -> float | None:
    """Dice of two packed masks (T, H, W), on the frames that the reply was about; None for none of them."""
    frames = answered_frames(reply, shape[0])
    if len(frames) == shape[0]:
        a, b = (np.frombuffer(zlib.decompress(bits), np.uint8) for bits in (label, proposal))
        total = _ones(a) + _ones(b)
        return 1.0 if not total else 2 * _ones(a & b) / total
    if not frames:
        return None
    return float(dice_of(unpack_mask(label, shape)[frames], unpack_mask(proposal, shape)[frames]))


def _ones(packed: np.ndarray) -> int:
    return int(np.count_nonzero(np.unpackbits(packed).view(bool)))


def clicks_in(prompts: dict[str, Any]) -> int:
    """Points and boxes of a proposal's prompts (frame -> ``Clicks.to_dict``)."""
    given = [value for value in prompts.values() if isinstance(value, dict)]
    points = sum(len(value.get(name) or []) for value in given for name in ("foreground_xy", "background_xy"))
    return points + sum(value.get("box_xyxy") is not None for value in given)


def _promotions(connection: sqlite3.Connection) -> tuple[StoredPromotion, ...]:
    """All of them, oldest first; none in a journal of before there were any."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'promotions'").fetchone():
        return ()
    return tuple(promotion_of(row) for row in connection.execute("SELECT * FROM promotions ORDER BY id"))


def _json(text: str) -> dict[str, Any]:
    value = json.loads(text)
    return value if isinstance(value, dict) else {}
