"""The work folder of one studies folder: everything that the app writes, apart from the labels themselves.

mark             by which the folder is known     server.lock      held by the server; server.json says who it is
journal.sqlite   proposals and corrections        embeddings/      cached image embeddings
scores.sqlite    what the next sample is chosen by
versions/        labels that were replaced        sessions/, tmp/  uploaded images, for a while
headers.json     DICOM headers, as read           nested/          links to DICOM images in folders, by id
training/        prepared labels, split, runs     models/          what the runs made, and which of them is served
handed/          links to images, for 3D Slicer    frames/          NIfTI files of moving pictures, for clients
mirror/          images fetched from a PACS       labels/          of studies that cannot be written, and of a PACS
exchange/        what is sent to a PACS, and what came from it
absent.json      labels whose image is away       studies.txt      which studies they are, where they lie elsewhere
token            what other machines need to come in
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.training_folder import TrainingFolder

logger = logging.getLogger(__name__)

NAME = ".ultrarefiner"
INDEX = "datastore_v2.json"  # MONAI Label's: images and labels; in the studies, or here where they cannot be written


@dataclass(frozen=True)
class WorkFolder:
    """Paths inside the work folder ``root``."""

    root: Path

    @classmethod
    def of(cls, studies: str | Path, work_dir: str | Path | None = None) -> WorkFolder:
        """``work_dir`` where it is given, else `.ultrarefiner` in the studies folder; made when missing.

        That of a DICOMweb address lies in `.ultrarefiner` in the home folder. Raises InputError when the folder cannot
        be written: read-only studies need a ``work_dir``.
        """
        root = cls._root(studies, work_dir)
        if not work_dir and not is_address(studies) and leaves(root, [Path(studies)]):
            raise InputError(
                f"the work folder {root} is a link to a place outside the studies, which is not followed; to keep the work "
                "folder there, remove the link and set work_dir to that place"
            )
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the work folder {root} ({error}); name a folder that can be written: --conf work_dir FOLDER "
                "(make serve: ARGS='--conf work_dir FOLDER')"
            ) from error
        if not os.access(root, os.W_OK):
            raise InputError(f"the work folder {root} is read-only; set work_dir to a folder that can be written")
        return cls(root)

    @staticmethod
    def _root(studies: str | Path, work_dir: str | Path | None) -> Path:
        if work_dir:
            return Path(work_dir).expanduser().absolute()
        if is_address(studies):
            url = str(studies).rstrip("/")
            host = re.sub("[^A-Za-z0-9.-]", "_", urlsplit(url).hostname or "pacs")
            return Path.home() / NAME / f"{host}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        return Path(studies).absolute() / NAME

    @classmethod
    def existing(cls, studies: str | Path, work_dir: str | Path | None = None) -> WorkFolder:
        """As ``of``, but InputError where the studies were never served: a mistyped folder is not made."""
        if not cls._root(studies, work_dir).is_dir():
            raise InputError(
                f"{studies} has no work folder {work_dir or NAME}: it was never served, or another work_dir was configured"
            )
        return cls.of(studies, work_dir)

    def note_studies(self, studies: str | Path) -> None:
        """Remember which folder is served: a work folder that lies elsewhere does not show it."""
        with replacing(self.root / "studies.txt", "w") as file:
            file.write(str(studies) if is_address(studies) else str(Path(studies).absolute()))

    def make(self, folder: Path) -> Path:
        """Make a folder inside the work folder, those above it too, but never the work folder itself: where it is gone
        (a disk that is away), FileNotFoundError."""
        for part in (*reversed([p for p in folder.parents if self.root in p.parents]), folder):
            part.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def journal(self) -> Path:
        return self.root / "journal.sqlite"

    @property
    def scores(self) -> Path:
        """What the next sample is chosen by (``studies.score_store``)."""
        return self.root / "scores.sqlite"

    @property
    def embeddings(self) -> Path:
        return self.root / "embeddings"

    @property
    def versions(self) -> Path:
        return self.root / "versions"

    @property
    def sessions(self) -> Path:
        return self.root / "sessions"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def headers(self) -> Path:
        """What is remembered of the studies' DICOM headers (``studies.dicom_index``)."""
        return self.root / "headers.json"

    @property
    def absent(self) -> Path:
        """What is known of labels whose image is not there just now (a PACS that lists nothing for a moment)."""
        return self.root / "absent.json"

    @property
    def nested(self) -> Path:
        """Links to DICOM images in folders below the studies, called by their ids."""
        return self.root / "nested"

    @property
    def exchange(self) -> Path:
        return self.root / "exchange"

    @property
    def mirror(self) -> Path:
        return self.root / "mirror"

    @property
    def token(self) -> Path:
        return self.root / "token"

    def handed(self, image_id: str) -> Path:
        """Where a link to this image lies, by itself."""
        return self.root / "handed" / hashlib.sha256(image_id.encode()).hexdigest()[:16]

    def frames(self, image_id: str) -> Path:
        """Where the NIfTI of a moving picture lies that clients get."""
        return self.root / "frames" / hashlib.sha256(image_id.encode()).hexdigest()[:16]

    @property
    def training(self) -> TrainingFolder:
        return TrainingFolder(self.root / "training")

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def forgotten(self) -> Path:
        """Written by ``forget``, one image key a line: a running server drops what it holds in memory and empties it."""
        return self.root / "forgotten"


def leaves(path: str | Path, folders: Iterable[str | Path]) -> bool:
    """Whether ``path``, with all links in it followed, lies in none of ``folders``. Hard links cannot be told apart."""
    real = os.path.realpath(path)
    roots = [os.path.realpath(folder) for folder in folders]
    return not any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots)


def is_address(studies: str | Path) -> bool:
    """Whether the studies are a DICOMweb store, not a folder."""
    return str(studies).startswith(("http://", "https://"))


# What a saved label may end with, in lower case.
LABEL_EXTENSIONS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".png", ".tif", ".tiff", ".bmp")


@dataclass
class Report:
    """What ``forget`` removed."""

    image_id: str
    proposals: int = 0
    corrections: int = 0
    embeddings: int = 0
    labels: list[str] = field(default_factory=list)
    copies: int = 0
    mirrored: int = 0
    scored: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to remove."""
        counts = (self.proposals, self.corrections, self.embeddings, self.copies, self.mirrored, len(self.labels))
        return not any(counts) and not self.scored

    def __str__(self) -> str:
        labels = f", labels: {', '.join(self.labels)}" if self.labels else ""
        labels += f", {self.mirrored} files fetched from the PACS" if self.mirrored else ""
        labels += ", its scores for the next sample" if self.scored else ""
        return (
            f"{self.image_id}: removed {self.proposals} proposals, {self.corrections} corrections, "
            f"{self.embeddings} cached embeddings, {self.copies} frames prepared for training{labels}"
        )


def forget(studies: str | Path, image_id: str, work_dir: str | Path | None = None, labels: bool = False) -> Report:
    """Remove all that derives from one image: proposals and corrections in the journal, cached embeddings, scores, what was
    prepared for trainings, and what was fetched of it from a PACS.

    The image itself and the labels in the studies folder stay, they are the clinician's; with ``labels`` the labels and
    their former versions go too, and what of them waits to be stored in a PACS. A running server is told to drop what it holds in memory.
    Raises InputError when there is no work folder, for an id that is no plain name, and while a training runs.
    """
    if not image_id or "/" in image_id or "\\" in image_id or image_id in (".", ".."):
        raise InputError(f"expected an image id as /datastore/ lists them, got {image_id!r}")
    folder = WorkFolder.existing(studies, work_dir)
    report = Report(image_id)
    report.copies = folder.training.forget(image_id)  # first: it refuses while a training runs
    report.scored = _forget_scores(folder.scores, image_id)  # then: nothing is computed anew beside the rest
    journal = Journal(folder.journal)
    try:
        keys = journal.cache_keys(image_id)
        report.proposals, report.corrections = journal.forget(image_id)
    finally:
        journal.close()
    report.embeddings = _forget_embeddings(folder, keys)
    for place in (folder.handed(image_id), folder.frames(image_id)):
        shutil.rmtree(place, ignore_errors=True)
    report.mirrored = _forget_mirrored(folder.mirror, image_id)
    if labels:
        report.labels = _remove_labels(Path(studies), folder, image_id) + _remove_waiting(folder.exchange, image_id)
        _forget_absent(folder.absent, image_id)
    with folder.forgotten.open("a", encoding="utf-8") as file:
        file.write("".join(f"{key}\n" for key in sorted(keys)) or "\n")
    return report


def listed_images(studies: str | Path, work_dir: str | Path | None = None) -> list[str]:
    """The ids of the images in the index that the server keeps; empty where there is none, or it is unreadable."""
    folder = WorkFolder.existing(studies, work_dir)
    for home in (Path(studies), folder.root):
        try:
            return list(json.loads((home / INDEX).read_text(encoding="utf-8"))["objects"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return []


def _forget_absent(path: Path, image_id: str) -> None:
    if path.is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))
        if rows.pop(image_id, None) is not None:
            with replacing(path, "w") as file:
                json.dump(rows, file)


def _remove_waiting(exchange: Path, image_id: str) -> list[str]:
    """Remove the objects in the outbox (``exchange.outbox``) that refer to this series or instance."""
    whole = re.compile(rb"(?<![0-9.])" + re.escape(image_id.encode()) + rb"(?![0-9.])")
    found = [path for path in sorted((exchange / "outbox").glob("*.dcm")) if whole.search(path.read_bytes())]
    for path in found:
        path.unlink(missing_ok=True)
    return [f"outbox/{path.name}" for path in found]


def _forget_scores(path: Path, image_id: str) -> bool:
    if not path.is_file():
        return False
    from ultrarefiner_monai.studies.score_store import ScoreStore

    store = ScoreStore(path)
    try:
        return store.forget(image_id)
    finally:
        store.close()


def _forget_embeddings(folder: WorkFolder, keys: set[str]) -> int:
    from ultrarefiner_monai.core.cache import EmbeddingCache

    cache = EmbeddingCache(0, folder.embeddings, 1 << 62)
    return sum(cache.forget(key) for key in sorted(keys))


def _forget_mirrored(mirror: Path, image_id: str) -> int:
    """Remove the files of a series, or of one instance, wherever ``pacs.mirror`` keeps them; how many there were."""
    found = [*mirror.glob(f"series/*/{glob.escape(image_id)}.dcm"), mirror / "nifti" / f"{image_id}.nii.gz"]
    for kind in ("series", "images"):
        found += (mirror / kind / image_id).glob("*")
    found = [path for path in found if path.is_file()]
    for path in found:
        path.unlink()
    for kind in ("series", "images"):
        shutil.rmtree(mirror / kind / image_id, ignore_errors=True)
    return len({path.name for path in found})


def _remove_labels(studies: Path, folder: WorkFolder, image_id: str) -> list[str]:
    removed = []
    for labels in (studies / "labels", folder.root / "labels"):
        for tag in sorted(p for p in labels.glob("*") if p.is_dir()):
            for path in sorted(tag.glob("*")):
                if path.name.startswith(image_id) and path.name[len(image_id) :].lower() in LABEL_EXTENSIONS:
                    path.unlink()
                    removed.append(f"{tag.name}/{path.name}")
    for tag in folder.versions.glob("*"):
        shutil.rmtree(tag / image_id, ignore_errors=True)
    return removed
