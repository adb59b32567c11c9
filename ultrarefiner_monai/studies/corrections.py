"""What clinicians made of the proposals, for training: the masks that were offered beside the labels that are final now.

The journal (``studies/journal.py``) knows what was offered and who saved a label over it; the studies folder has the image and
the label as it stands today. Only pairs that still fit together come out.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultrarefiner_monai.core.image_file import ImageFile, Region
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.series import sha256_of_image
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.masks.label_values import is_confirmed
from ultrarefiner_monai.studies.dicom_index import remembered_images
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_rows import BESIDE, StoredCorrection, StoredProposal
from ultrarefiner_monai.studies.work_folder import INDEX, NAME, WorkFolder, is_address

log = logging.getLogger(__name__)

MOST_FRAMES = 8


@dataclass(frozen=True)
class Correction:
    """One frame that was offered with an outline and saved with another, or the same.

    id: IMAGE@FRAME (or IMAGE@FRAME.REGION), as in the prepared folder of a training (``labelled.py``). frame: None where
    the file has a single one. label: the final label's file, on the image's grid (``read_mask`` with its image). proposal:
    (H, W) uint8, 0 or 1, of the frame or of the region.
    model: the task that made the proposal; a ``sam_refiner`` one has seen clicks. time: ISO 8601, UTC.
    first: as ``proposal``, the automatic one that the work began with; None where there was none, or not on this frame.
    saved: likewise, the label that was saved then, which a newer ``label`` may have superseded; None for one that came late,
    when another was in its place already and stayed there.
    """

    id: str
    image: Path
    frame: int | None
    label: Path
    proposal: np.ndarray
    model_version: str
    author: str
    time: str
    model: str
    first: np.ndarray | None = None
    saved: np.ndarray | None = None


@dataclass(frozen=True)
class Labelled:
    """An image of the studies folder with its final label. confirmed: who saved it meant that it marks nearly all of a
    frame (``read_mask``). view: how the probe was held, where something else than the file says so."""

    image_id: str
    image: Path
    label: Path
    confirmed: bool = False
    view: str = ""


def item_id(image_id: str, frame: int, region: int | None = None) -> str:
    """What one frame of an image, or one B-mode region of it, is called in training."""
    return f"{image_id}@{frame}" if region is None else f"{image_id}@{frame}.{region}"


def item_region(item: str, image_file: ImageFile, frame: int) -> Region:
    """Where an item (``item_id``) lies in its frame."""
    number = item.rpartition("@")[2].partition(".")[2]
    regions = image_file.regions_of(frame)
    if number and int(number) < len(regions):
        return regions[int(number)]
    return slice(0, image_file.height), slice(0, image_file.width)


def training_parts(image_id: str, image_file: ImageFile, frame: int, mask: np.ndarray) -> list[tuple[str, Region]]:
    """What of a frame is trained on, as it is served: (item id, region) of each B-mode region, or the whole frame.

    mask: its label (H, W). Where it marks a lesion, the regions without one are left out: a picture beside it may just
    not have been looked at.
    """
    regions = image_file.regions_of(frame)
    if not regions:
        return [(item_id(image_id, frame), (slice(0, image_file.height), slice(0, image_file.width)))]
    found = [(item_id(image_id, frame, r), region) for r, region in enumerate(regions)]
    return [part for part in found if mask[part[1]].any()] or found


def chosen_frames(mask: np.ndarray) -> list[int]:
    """Which frames of a label (T, H, W) are worth training on: those with a lesion, else all; at most MOST_FRAMES, evenly
    spaced. In a cine an unmarked frame beside marked ones may just not have been looked at.
    """
    marked = np.flatnonzero(mask.any(axis=(1, 2)))
    frames = marked if len(marked) else np.arange(len(mask))
    places = np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).round().astype(int)
    return [int(frames[p]) for p in places]


def final_labels(work_dir: str | Path, studies: str | Path | None = None) -> list[Labelled]:
    """Images with a final label whose files are there, by id, from the server's index.

    studies: the folder or the DICOMweb store that is served; may be left out where the work folder lies in it, or the server noted it there.
    Raises InputError when there is no index.
    """
    work = Path(work_dir)
    folder = _studies_of(work) if studies is None else _folder(work, studies)
    # Where the app keeps index and labels of studies that it may not write to.
    homes = [folder, work] if os.access(folder, os.W_OK) else [work, folder]
    home = next((h for h in homes if (h / INDEX).is_file()), None)
    if home is None:
        raise InputError(f"no {INDEX} in {folder} or {work}: expected the work folder of studies that were served")
    try:
        objects = json.loads((home / INDEX).read_text(encoding="utf-8"))["objects"]
        rows = [(i, o["image"]["ext"], (o.get("labels") or {}).get("final")) for i, o in objects.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{home / INDEX} cannot be read as an index of images: {error!r}") from error
    nested, links = remembered_images(WorkFolder(work).headers), WorkFolder(work).nested
    found = []
    for image_id, extension, label in sorted(rows, key=lambda row: row[0]):
        if label is None:
            continue
        image = folder / (nested.get(image_id) or image_id + extension)
        if image_id in nested and (link := links / f"{image_id}.dcm").exists():
            image = link  # the server's: messages repeat file names, and those of exports may hold patients' names
        pair = Labelled(
            image_id,
            image,
            home / "labels" / "final" / f"{image_id}{label['ext']}",
            is_confirmed(label.get("info")),
        )
        if pair.image.exists() and pair.label.is_file():
            found.append(pair)
        else:
            log.warning("%s is left out: its image or label file is gone", image_id)
    return found


def _studies_of(work: Path) -> Path:
    if work.name == NAME:
        return work.parent
    note = work / "studies.txt"  # WorkFolder.note_studies
    if not note.is_file():
        raise InputError(f"{work} does not lie in its studies folder: say which folder was served")
    studies = note.read_text(encoding="utf-8").strip()
    return _folder(work, studies)


def _folder(work: Path, studies: str | Path) -> Path:
    """Where the images lie; of a DICOMweb store what was fetched, a folder for each image."""
    return WorkFolder(work).mirror / "images" if is_address(studies) else Path(studies)


def read_corrections(work_dir: str | Path, studies: str | Path | None = None) -> list[Correction]:
    """All frames with a proposal and a final label, by image, oldest first; arguments as for ``final_labels``.

    A label that was corrected twice gives two proposals beside the same, newest label. What does not fit any more (files
    gone or replaced, proposals forgotten) is left out and logged.
    """
    path = Path(work_dir) / "journal.sqlite"
    if not path.is_file():
        return []
    journal = Journal(path)
    try:
        return [c for pair in final_labels(work_dir, studies) for c in _of_image(journal, pair)]
    finally:
        journal.close()


def _of_image(journal: Journal, pair: Labelled) -> list[Correction]:
    found: list[Correction] = []
    stored = journal.corrections(pair.image_id)
    try:
        sha256 = sha256_of_image(pair.image) if stored else ""
    except OSError as error:  # it went since the list was made
        log.warning("%s is left out: %s", pair.image_id, error.strerror)
        return []
    for correction in stored:
        if correction.proposal_id is None:  # a label that nothing was offered for
            continue
        proposal = journal.proposal(correction.proposal_id)
        if correction.image_hash != sha256:
            log.warning("%s: a correction is left out, its image file was replaced since", pair.image_id)
        elif proposal is None or proposal.mask.shape != correction.mask.shape:
            log.warning("%s: a correction is left out, its proposal is gone or of another size", pair.image_id)
        else:
            try:
                found += _frames(pair, correction, proposal, _first(journal, correction, proposal))
            except InputError as error:
                log.warning("%s: a correction is left out: %s", pair.image_id, error)
    return found


def _first(journal: Journal, correction: StoredCorrection, proposal: StoredProposal) -> StoredProposal | None:
    """The automatic proposal that the work began with; of corrections that older versions kept, which do not say it, the
    newest one where it is automatic."""
    if correction.first_proposal_id is None:
        return proposal if proposal.is_automatic else None
    first = proposal if correction.first_proposal_id == proposal.id else journal.proposal(correction.first_proposal_id)
    return first if first is not None and first.mask.shape == correction.mask.shape else None


def _frames(
    pair: Labelled, correction: StoredCorrection, proposal: StoredProposal, first: StoredProposal | None
) -> list[Correction]:
    single, image_file = len(proposal.mask) == 1, read_image_file(pair.image)
    answered, before = proposal.answered, first.answered if first is not None else []
    return [
        Correction(
            id=item,
            image=pair.image,
            frame=None if single else k,
            label=pair.label,
            proposal=proposal.mask[k][region],
            model_version=proposal.version,
            author=correction.author,
            time=correction.created,
            model=proposal.model,
            first=first.mask[k][region] if first is not None and k in before else None,
            saved=None if correction.info.get(BESIDE) else correction.mask[k][region],
        )
        for k in chosen_frames(correction.mask)
        if k in answered
        for item, region in training_parts(pair.image_id, image_file, k, correction.mask[k])
    ]


def corrections_of(journal: Journal, pair: Labelled) -> list[Correction]:
    """As ``read_corrections``, of one image."""
    return _of_image(journal, pair)
