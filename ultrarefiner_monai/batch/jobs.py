"""What a batch has to answer: one job for each file of a folder, or for each series of a DICOMweb store."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.config import ConfigError, PacsConfig
from ultrarefiner_monai.data.readers import IMAGE_EXTENSIONS
from ultrarefiner_monai.data.series import has_mark
from ultrarefiner_monai.types import InputError

# What the app itself keeps in a studies folder beside the images.
OWN_FOLDERS = ("labels", ".ultrarefiner")
_ODD = re.compile(r"[^\w.-]+", re.ASCII)
_NAME_BYTES = 120


@dataclass(frozen=True)
class Job:
    """One file or one series. id: of its image, and its mask's name. source: how results.csv names it. state: changes
    when the file or the series does. path: the file; else study_uid and series_uid."""

    id: str
    source: str
    state: str
    path: Path | None = None
    study_uid: str = ""
    series_uid: str = ""


def is_remote(studies: str) -> bool:
    return studies.startswith(("http://", "https://"))


def folder_jobs(folder: Path, leave_out: Sequence[Path] = ()) -> list[Job]:
    """The images of a folder and of those below it, by path: known extensions, and DICOM files of any name.

    Hidden files and folders, the app's own ``labels`` and DICOMDIRs are no images, nor is what lies in ``leave_out``.
    An image's id is its path without the extension, in plain letters; a digest is added where two would be called the
    same. Raises InputError when there is no folder.
    """
    if not folder.is_dir():
        raise InputError(f"--studies: expected a folder or the http(s) address of a DICOMweb store, got {folder}")
    found = [(path, os.path.relpath(path, folder)) for path in _files(folder, {p.resolve() for p in leave_out})]
    names = [_plain(_stem(relative)) for _, relative in found]
    count = Counter(name.lower() for name in names)  # some file systems know no case
    jobs = []
    for (path, relative), name in zip(found, names):
        if count[name.lower()] > 1 or name != _stem(relative):
            name = f"{name}-{_digest([relative])[:8]}"
        stat = path.stat()
        jobs.append(Job(name, relative, _digest([stat.st_size, stat.st_mtime_ns]), path))
    return jobs


def store_jobs(studies: str, config: PacsConfig, filters: Sequence[str] = ()) -> list[Job]:
    """The series of a DICOMweb store, newest study first: those of ``config`` (modality, filter) that also match
    ``filters`` (QIDO, "StudyDate=20240101-20241231"; "Modality=..." stands in place of config's). Raises PacsError."""
    from ultrarefiner_monai.pacs.client import Pacs

    wanted = dict(_pair(text) for text in (*config.filter, *filters))
    modalities = [wanted.pop("Modality")] if "Modality" in wanted else list(config.modality)
    pacs = Pacs.of(studies, config)
    series = {info.uid: info for modality in modalities for info in pacs.series({**wanted, "Modality": modality})}
    return [
        Job(info.uid, info.uid, _digest([info.instances]), None, info.study_uid, info.uid)
        for info in sorted(series.values(), key=lambda info: (info.date, info.time, info.uid), reverse=True)
    ]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise ConfigError(f"--filter expects NAME=VALUE, as StudyDate=20240101-20241231, got {text!r}")
    return name.strip(), value.strip()


def _files(folder: Path, leave_out: set[Path]) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in OWN_FOLDERS and Path(root, name).resolve() not in leave_out
        )
        for name in sorted(files):
            path = Path(root, name)
            if name.startswith(".") or name.upper() == "DICOMDIR" or not path.is_file():
                continue
            if name.lower().endswith(IMAGE_EXTENSIONS) or has_mark(path):
                yield path


def _stem(relative: str) -> str:
    known = [e for e in IMAGE_EXTENSIONS if relative.lower().endswith(e)]
    return relative[: -len(max(known, key=len))] if known else relative


def _plain(name: str) -> str:
    """Letters, digits, dot, dash and underscore only, not too long; folders are joined by an underscore."""
    return _ODD.sub("_", name).strip("._")[:_NAME_BYTES] or "image"


def _digest(values: Iterable[object]) -> str:
    text = "\0".join(str(value) for value in values)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
