"""What a batch has to answer: one job for each file of a folder, or for each series of a DICOMweb store."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.config import ConfigError, PacsConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.readers import IMAGE_EXTENSIONS
from ultrarefiner_monai.studies.dicom_index import DAMAGED, FOREIGN, IMAGE, DicomIndex

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


def folder_jobs(folder: Path, remembered: Path, leave_out: Sequence[Path] = ()) -> list[Job]:
    """The images of a folder and of those below it: known extensions, and DICOM files of any name.

    Hidden files and folders and the app's own ``labels`` are passed over, as is what lies in ``leave_out``, DICOM that is
    no image, and a second copy of a DICOM image. remembered: the file for DICOM headers, so that they are read once.
    Ids are the server's: the name without its extension, the SOPInstanceUID of DICOM files in folders below (their
    names often are patients'); odd characters are replaced and a digest is added. Raises InputError without a folder.
    """
    if not folder.is_dir():
        raise InputError(f"--studies: expected a folder or the http(s) address of a DICOMweb store, got {folder}")
    remembered.parent.mkdir(parents=True, exist_ok=True)
    found = {
        path: header
        for path, header in DicomIndex(folder, remembered).scan([folder / "labels", *leave_out]).items()
        if header.kind in (IMAGE, DAMAGED) or (header.kind == FOREIGN and path.lower().endswith(IMAGE_EXTENSIONS))
    }
    stems = Counter(_stem(path).lower() for path in found if "/" not in path)  # some file systems know no case
    jobs: dict[str, Job] = {}
    copies: set[str] = set()
    for path, header in sorted(found.items(), key=lambda item: ("/" in item[0], item[0])):
        if "/" not in path:
            name = _stem(path) if stems[_stem(path).lower()] == 1 else path
        elif header.kind == IMAGE and (not header.id or header.id in copies):
            continue
        else:
            name = header.id if header.uid else path
        copies |= {header.id} - {""}
        if (plain := _plain(name)) != name or plain.lower() in jobs:
            name = f"{plain}-{_digest([path])[:8]}"
        jobs[name.lower()] = Job(name, path, _digest([header.size, header.time_ns]), folder / path)
    return list(jobs.values())


def store_jobs(studies: str, config: PacsConfig, filters: Sequence[str] = ()) -> list[Job]:
    """The series of a DICOMweb store, newest study first: those of ``config`` (modality, filter) that also match
    ``filters`` (QIDO, "StudyDate=20240101-20241231"; "Modality=..." stands in place of config's). Raises PacsError."""
    from ultrarefiner_monai.dicomweb.client import Pacs

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


def _stem(relative: str) -> str:
    known = [e for e in IMAGE_EXTENSIONS if relative.lower().endswith(e)]
    return relative[: -len(max(known, key=len))] if known else relative


def _plain(name: str) -> str:
    """Letters, digits, dot, dash and underscore only, not too long; folders are joined by an underscore."""
    return _ODD.sub("_", name).strip("._")[:_NAME_BYTES] or "image"


def _digest(values: Iterable[object]) -> str:
    text = "\0".join(str(value) for value in values)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
