"""The journal as a table for research: a row for each label that was saved, with what was offered before it.

One label at a time is read: a department's years have thousands, and cines are large.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_rows import StoredCorrection, StoredProposal

Row = dict[str, str]
COLUMNS = (
    *("label", "image", "image_sha256", "saved", "author", "client", "superseded", "shown", "seconds"),
    *("model", "version", "first_model", "first_version", "foreground_clicks", "background_clicks", "boxes", "clicks"),
    *("dice_first", "dice_last", "area_first", "area_last", "area_label", "frames", "frames_marked", "frames_compared"),
)


def table_rows(journal: Journal, image_id: str | None = None) -> Iterator[Row]:
    """The rows of all saved labels, or of one image's, oldest first; the keys are COLUMNS.

    label: the correction's id. superseded: 1 where a later save took its place. model, version: of the newest proposal before
    the save, whose clicks are counted over all frames; ``clicks`` has them as JSON, frame -> ``Clicks.to_dict``, in pixels.
    first_*: the automatic proposal that the work began with. dice_*, area_* (pixels): over the frames compared, those that
    the label marks (all, where it marks none) and that both proposals answered. seconds: from first shown to saved. Empty:
    not known. Labels that are forgotten meanwhile are left out.
    """
    standing = journal.standing()
    for number, _ in journal.correction_ids(image_id):
        correction = journal.correction(number)
        if correction is None:
            continue
        newest = _proposal(journal, correction, correction.proposal_id)
        same = correction.first_proposal_id == correction.proposal_id
        first = newest if same else _proposal(journal, correction, correction.first_proposal_id)
        yield {
            "label": str(number),
            "image": _plain(correction.image_id),
            "image_sha256": correction.image_hash,
            "saved": correction.created,
            "author": _plain(correction.author),
            "client": _plain(correction.client),
            "superseded": str(int(number not in standing)),
            "shown": correction.shown or "",
            "seconds": "" if correction.seconds is None else f"{correction.seconds:.1f}",
            **_offered(newest, first),
            **_compared(correction.mask, newest, first),
        }


def write_table(journal: Journal, file: IO[str]) -> int:
    """Write COLUMNS and all rows as CSV; how many rows there are."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    count = 0
    for row in table_rows(journal):
        writer.writerow(row)
        count += 1
    return count


def _proposal(journal: Journal, correction: StoredCorrection, number: int | None) -> StoredProposal | None:
    """One of another size is of no use: the file was replaced by one of the same bytes that is read otherwise."""
    found = None if number is None else journal.proposal(number)
    return found if found is not None and found.mask.shape == correction.mask.shape else None


def _offered(newest: StoredProposal | None, first: StoredProposal | None) -> Row:
    prompts: dict[str, Any] = newest.prompts if newest is not None else {}

    def count(name: str) -> str:
        return "" if newest is None else str(sum(len(clicks.get(name) or ()) for clicks in prompts.values()))

    boxes = sum(clicks.get("box_xyxy") is not None for clicks in prompts.values())
    return {
        "model": newest.model if newest is not None else "",
        "version": newest.version if newest is not None else "",
        "first_model": first.model if first is not None else "",
        "first_version": first.version if first is not None else "",
        "foreground_clicks": count("foreground_xy"),
        "background_clicks": count("background_xy"),
        "boxes": "" if newest is None else str(boxes),
        "clicks": json.dumps(prompts) if prompts else "",
    }


def _compared(label: np.ndarray, newest: StoredProposal | None, first: StoredProposal | None) -> Row:
    marked = np.flatnonzero(label.any(axis=(1, 2)))
    frames = set(marked.tolist() or range(len(label)))
    for proposal in (newest, first):
        frames &= frames if proposal is None else set(proposal.answered)
    chosen = sorted(frames)
    row = {"frames": str(len(label)), "frames_marked": str(len(marked)), "frames_compared": str(len(chosen))}
    row["area_label"] = str(np.count_nonzero(label[chosen])) if chosen else ""
    for name, proposal in (("first", first), ("last", newest)):
        mask = proposal.mask[chosen] if proposal is not None and chosen else None
        row[f"area_{name}"] = "" if mask is None else str(np.count_nonzero(mask))
        row[f"dice_{name}"] = "" if mask is None else f"{dice_of(mask, label[chosen]):.5f}"
    return row


def _plain(text: str) -> str:
    """On one line, UTF-8, and no formula to a spreadsheet: clients choose their names."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
