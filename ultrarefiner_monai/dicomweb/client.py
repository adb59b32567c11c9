"""A DICOMweb store: what it lists, what is fetched from it into files, what is stored to it (QIDO, WADO, STOW).

Why not dicomweb-client: it decodes whole series in memory before anything is on the disk, and writes them anew. Here what
the store holds arrives as it is, in files, piece by piece.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

from ultrarefiner_monai.config import PacsConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import open_dicom
from ultrarefiner_monai.dicomweb.connection import Connection, PacsError
from ultrarefiner_monai.dicomweb.credentials import Credentials
from ultrarefiner_monai.dicomweb.multipart import MultipartError, boundary_of, related, write_parts
from ultrarefiner_monai.dicomweb.records import InstanceInfo, SeriesInfo, check_uid, number, person, text, values

logger = logging.getLogger(__name__)

JSON = "application/dicom+json"
# Any transfer syntax: as it is stored, or a store decompresses everything before it sends it.
FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PAGE = 5000
_BLOCK = 1 << 18


class Pacs(Connection):
    """One store. Thread-safe. Every method raises PacsError when the store fails, after ``retries`` more tries."""

    @classmethod
    def of(cls, url: str, config: PacsConfig, environment: Mapping[str, str] = os.environ) -> Pacs:
        """The store at ``url`` as configured; ConfigError for a password or certificate that is not there."""
        credentials = Credentials.of(config, environment)
        ca_file = str(Path(config.ca_file).expanduser()) if config.ca_file else None
        return cls(url, credentials, ca_file, config.timeout_seconds, config.retries)

    # --- what there is ------------------------------------------------------------------------------------------------

    def series(self, filter: Mapping[str, str] | None = None) -> list[SeriesInfo]:
        """The series that match all of ``filter`` (QIDO: keyword -> value), in pages, each once."""
        fields = ("StudyInstanceUID", "Modality", "SeriesDescription", "SeriesNumber", "StudyDate", "StudyTime")
        wanted = (*fields, "NumberOfSeriesRelatedInstances")
        found = {}
        for item in self._search("series", filter or {}, wanted, "0020000E"):
            try:
                info = SeriesInfo.of(item)
            except InputError as error:
                logger.warning("%s lists a series that cannot be used: %s", self.host, error)
                continue
            found[info.uid] = info
        return list(found.values())

    def studies(self, filter: Mapping[str, str] | None = None) -> dict[str, dict[str, str]]:
        """StudyInstanceUID -> what the store says of the study (PatientName, PatientID, StudyDescription), for a list that is shown
        and not kept."""
        fields = ("PatientName", "PatientID", "StudyDescription")
        found = {}
        for row in self._search("studies", filter or {}, fields, "0020000D"):
            told = (person(row, "00100010"), text(row, "00100020"), text(row, "00081030"))
            found[text(row, "0020000D")] = dict(zip(fields, told))
        return found

    def instances(self, study_uid: str, series_uid: str) -> list[InstanceInfo]:
        """The instances of a series; empty when the store has none (any more)."""
        path = f"studies/{check_uid(study_uid)}/series/{check_uid(series_uid)}/instances"
        fields = ("SOPClassUID", "InstanceNumber", "Rows", "Columns", "NumberOfFrames")
        found = map(InstanceInfo.of, self._search(path, {}, fields, "00080018"))
        return list({info.uid: info for info in found}.values())

    def segs(self, study_uid: str | None = None) -> list[SeriesInfo]:
        """The series with DICOM SEG objects, of one study or of all."""
        study = {"StudyInstanceUID": check_uid(study_uid)} if study_uid else {}
        return self.series({"Modality": "SEG", **study})

    def _search(
        self, path: str, filter: Mapping[str, str], fields: Sequence[str], key: str
    ) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        while True:
            asked = {**filter, "includefield": ",".join(fields), "limit": str(_PAGE), "offset": str(len(seen))}
            page, cut = self._json(path, asked)
            new = [item for item in page if text(item, key) not in seen]
            seen |= {text(item, key) for item in new}
            yield from new
            # Some stores send less than they are asked for, some know no offset: until nothing new comes.
            if not new or (len(page) < _PAGE and not cut):
                return

    def _json(self, path: str, params: Mapping[str, str]) -> tuple[list[dict[str, Any]], bool]:
        """(the answer's items, whether the store says that it left some out)."""

        def ask() -> tuple[list[dict[str, Any]], bool]:
            with self._request("GET", path, params=dict(params), headers={"Accept": JSON}) as answer:
                if answer.status_code == 204 or not answer.content:
                    return [], False
                try:
                    value = json.loads(answer.content)
                except ValueError as error:
                    kind = answer.headers.get("Content-Type", "none")
                    raise PacsError(
                        f"{self.url} answers {path} with {kind:.60}, not with DICOM JSON: is this the DICOMweb address "
                        "(Orthanc: http://HOST:8042/dicom-web)?",
                        transient=False,
                    ) from error
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                raise PacsError(f"{self.url} answers {path} with something else than a list", transient=False)
            return value, "299" in answer.headers.get("Warning", "")

        return self._retried(f"list {path.split('/')[-1]}", ask)

    # --- fetching -----------------------------------------------------------------------------------------------------

    def fetch_series(self, study_uid: str, series_uid: str, folder: Path, most_bytes: int | None = None) -> list[Path]:
        """All instances of a series as ``folder/SOPInstanceUID.dcm``; those that are there already are not fetched again.

        Afterwards the folder holds what the store holds, neither more nor less. Nobody ever sees half a series in a new
        folder, or half a file. Returns the files by name. Raises PacsError with status 404 when the series is gone, and
        when one answer is more than ``most_bytes``.
        """
        wanted = {i.uid for i in self.instances(study_uid, series_uid)}
        if not wanted:
            raise PacsError(
                f"{self.host} has no series {series_uid} (any more); reload the list", transient=False, status=404
            )
        have = {p.stem for p in folder.glob("*.dcm")} if folder.is_dir() else set()
        series = f"studies/{study_uid}/series/{series_uid}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(None, ".part-", folder.parent, ignore_cleanup_errors=True) as name:
            part = Path(name)
            if wanted - have:
                addresses = [f"{series}/instances/{uid}" for uid in sorted(wanted - have)] if have else [series]
                for address in addresses:
                    self._retried(f"fetch series {series_uid}", partial(self._receive, address, part, most_bytes))
            missing = wanted - have - {p.stem for p in part.glob("*.dcm")}
            if missing:
                raise PacsError(
                    f"{self.host} sent {len(wanted - missing)} of the {len(wanted)} instances of {series_uid}"
                )
            if folder.is_dir():
                for path in part.glob("*.dcm"):
                    os.replace(path, folder / path.name)
                for uid in have - wanted:
                    (folder / f"{uid}.dcm").unlink(missing_ok=True)
            else:
                for uid in {p.stem for p in part.glob("*.dcm")} - wanted:
                    (part / f"{uid}.dcm").unlink()
                os.rename(part, folder)
        return sorted(folder.glob("*.dcm"))

    def fetch_instance(self, study_uid: str, series_uid: str, sop_uid: str, folder: Path) -> Path:
        """One instance as ``folder/SOPInstanceUID.dcm``; not fetched when it is there."""
        path = folder / f"{check_uid(sop_uid, 'SOPInstanceUID')}.dcm"
        if not path.is_file():
            address = f"studies/{check_uid(study_uid)}/series/{check_uid(series_uid)}/instances/{sop_uid}"
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as name:
                self._retried(f"fetch instance {sop_uid}", lambda: self._receive(address, Path(name)))
                if not (Path(name) / path.name).is_file():
                    raise PacsError(f"{self.host} sent something else than instance {sop_uid}")
                os.replace(Path(name) / path.name, path)
        return path

    def _receive(self, address: str, folder: Path, most_bytes: int | None = None) -> None:
        """The DICOM files that ``address`` answers with, named by their SOPInstanceUIDs."""
        raw = folder / "raw"
        shutil.rmtree(raw, ignore_errors=True)
        raw.mkdir()
        with self._request("GET", address, headers={"Accept": FILES}, stream=True) as answer, ExitStack() as opened:

            def files() -> Iterator[IO[bytes]]:
                for number in range(1 << 30):
                    opened.close()  # the one before
                    yield opened.enter_context((raw / f"{number}").open("wb"))

            def bounded() -> Iterator[bytes]:
                taken = 0
                for block in answer.iter_content(_BLOCK):
                    taken += len(block)
                    if most_bytes is not None and taken > most_bytes:
                        raise PacsError(
                            f"{self.host}: {address} is larger than the {most_bytes >> 20} MB that may be kept here "
                            "(pacs.mirror_mb)",
                            transient=False,
                        )
                    yield block

            blocks = bounded()
            try:
                boundary = boundary_of(answer.headers.get("Content-Type", ""))
                if boundary is None:
                    file = next(files())
                    for block in blocks:
                        file.write(block)
                else:
                    write_parts(blocks, boundary, files())
            except MultipartError as error:
                raise PacsError(f"{self.host}: {error}") from error
        for path in sorted(raw.iterdir()):
            os.replace(path, folder / f"{_sop_uid(path)}.dcm")
        raw.rmdir()

    # --- storing ------------------------------------------------------------------------------------------------------

    def store(self, datasets: Sequence[Any]) -> None:
        """Store pydicom datasets (STOW-RS). Storing the same instance again is no error.

        Raises PacsError: transient when the store may take it later, else with the reason that the store gives.
        """
        bodies = []
        for dataset in datasets:
            buffer = io.BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            bodies.append(buffer.getvalue())
        body, kind = related(bodies, "application/dicom")

        def send() -> None:
            headers = {"Content-Type": kind, "Accept": JSON}
            with self._request("POST", "studies", data=body, headers=headers, accepted=(409,)) as answer:
                failed = _failures(answer.content)
                if failed or answer.status_code == 409:
                    reasons = ", ".join(failed) or "no reason given"
                    raise PacsError(
                        f"{self.host} did not store {len(failed) or len(bodies)} of {len(bodies)} object(s): failure "
                        f"{reasons}; the store's log says why",
                        transient=any(reason in _OUT_OF_RESOURCES for reason in failed),
                        status=answer.status_code,
                    )

        self._retried("store", send)


# DICOM PS3.18 Table I.2-2: A7xx is "out of resources".
_OUT_OF_RESOURCES = {f"A7{n:02X}" for n in range(256)}


def _failures(content: bytes) -> list[str]:
    """The reasons (hex) in a STOW answer's list of failed instances; empty where it tells of none."""
    try:
        value = json.loads(content) if content else {}
    except ValueError:
        return []
    answer = value[0] if isinstance(value, list) and value else value
    return [f"{number(item, '00081197'):04X}" for item in values(answer, "00081198") if isinstance(item, dict)]


def _sop_uid(path: Path) -> str:
    """Of a file that just came; PacsError when it is no DICOM file."""
    try:
        uid = str(open_dicom(path, header_only=True, tags=["SOPInstanceUID"]).SOPInstanceUID)
    except Exception as error:  # pydicom raises anything for what is no DICOM
        raise PacsError(f"the PACS sent something that is no DICOM file ({type(error).__name__})") from error
    try:
        return check_uid(uid, "SOPInstanceUID")
    except InputError as error:
        raise PacsError(f"the PACS sent a file that cannot be used: {error}", transient=False) from error
