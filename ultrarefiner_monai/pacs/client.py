"""A DICOMweb store: what it lists, what is fetched from it into files, what is stored to it (QIDO, WADO, STOW).

Why not dicomweb-client: it decodes whole series in memory before anything is on the disk, and writes them anew. Here what
the store holds arrives as it is, in files, piece by piece. Nothing goes through a proxy of the environment.
"""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import requests

from ultrarefiner_monai.config import ConfigError, PacsConfig
from ultrarefiner_monai.pacs.credentials import Credentials
from ultrarefiner_monai.pacs.multipart import MultipartError, boundary_of, related, write_parts
from ultrarefiner_monai.types import InputError

logger = logging.getLogger(__name__)
T = TypeVar("T")

JSON = "application/dicom+json"
# Any transfer syntax: as it is stored, or a store decompresses everything before it sends it.
FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
# Numbers with zeros in front are against the standard, and old machines write them.
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_PAGE = 5000
_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_BLOCK = 1 << 18


class PacsError(InputError):
    """The store did not do what was asked: says what failed, where, and what to do.

    transient: whether the same may work later. status: the HTTP status, None where no answer came. pause: seconds that
    the store wants to be left alone for.
    """

    def __init__(self, message: str, transient: bool = True, status: int | None = None, pause: float = 0.0):
        super().__init__(message)
        self.transient, self.status, self.pause = transient, status, pause


@dataclass(frozen=True)
class SeriesInfo:
    """A series as the store lists it; empty texts and 0 where it does not say. No name of a patient."""

    uid: str
    study_uid: str
    modality: str = ""
    instances: int = 0
    description: str = ""
    date: str = ""
    time: str = ""
    number: int = 0


@dataclass(frozen=True)
class InstanceInfo:
    """An instance as the store lists it; rows and columns are 0 where it has no pixels or does not say."""

    uid: str
    sop_class: str = ""
    number: int = 0
    rows: int = 0
    columns: int = 0
    frames: int = 1


def check_uid(value: Any, what: str = "UID") -> str:
    """``value`` when it is a DICOM UID: UIDs become file names and parts of addresses. InputError for anything else."""
    if not isinstance(value, str) or len(value) > 64 or not _UID.fullmatch(value):
        raise InputError(f"{what} must be a DICOM UID (numbers and dots), got {value!r:.80}")
    return value


class Pacs:
    """One store. Thread-safe. Every method raises PacsError when the store fails, after ``retries`` more tries."""

    def __init__(
        self,
        url: str,
        credentials: Credentials | None = None,
        ca_file: str | Path | None = None,
        timeout: float = 30,
        retries: int = 3,
    ):
        """url: the DICOMweb root. timeout: seconds until an answer begins, and between its pieces.

        Raises ConfigError for an address with a password in it, and a ca_file that is not there.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"expected the DICOMweb address http(s)://HOST/..., got {url!r:.200}")
        if "@" in parts.netloc:
            raise ConfigError(
                "the address of the PACS must not hold a user or password: it stands in logs and replies; use "
                "pacs.user and pacs.password_file (docs/pacs.md)"
            )
        if ca_file and not Path(ca_file).is_file():
            raise ConfigError(f"pacs.ca_file: there is no file {str(ca_file)!r}; expected certificates in PEM format")
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self.host = parts.netloc
        self._credentials, self._ca_file = credentials or Credentials(), str(ca_file or "")
        self._local = threading.local()
        if self._credentials and parts.scheme == "http" and not parts.hostname.startswith(("127.", "localhost", "::1")):
            logger.warning("%s is asked without encryption: passwords and images can be read on the way", self.host)

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
            info = SeriesInfo(
                uid=_text(item, "0020000E"),
                study_uid=_text(item, "0020000D"),
                modality=_text(item, "00080060"),
                instances=_number(item, "00201209"),
                description=_text(item, "0008103E"),
                date=_text(item, "00080020"),
                time=_text(item, "00080030"),
                number=_number(item, "00200011"),
            )
            try:
                check_uid(info.uid), check_uid(info.study_uid)
            except InputError as error:
                logger.warning("%s lists a series that cannot be used: %s", self.host, error)
                continue
            found[info.uid] = info
        return list(found.values())

    def instances(self, study_uid: str, series_uid: str) -> list[InstanceInfo]:
        """The instances of a series; empty when the store has none (any more)."""
        path = f"studies/{check_uid(study_uid)}/series/{check_uid(series_uid)}/instances"
        fields = ("SOPClassUID", "InstanceNumber", "Rows", "Columns", "NumberOfFrames")
        found = {}
        for item in self._search(path, {}, fields, "00080018"):
            info = InstanceInfo(
                uid=check_uid(_text(item, "00080018"), "SOPInstanceUID"),
                sop_class=_text(item, "00080016"),
                number=_number(item, "00200013"),
                rows=_number(item, "00280010"),
                columns=_number(item, "00280011"),
                frames=_number(item, "00280008") or 1,
            )
            found[info.uid] = info
        return list(found.values())

    def segs(self, study_uid: str | None = None) -> list[SeriesInfo]:
        """The series with DICOM SEG objects, of one study or of all."""
        study = {"StudyInstanceUID": check_uid(study_uid)} if study_uid else {}
        return self.series({"Modality": "SEG", **study})

    def metadata(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        """The headers of a series' instances as DICOM JSON, without pixels."""
        path = f"studies/{check_uid(study_uid)}/series/{check_uid(series_uid)}/metadata"
        return self._json(path, {})[0]

    def _search(
        self, path: str, filter: Mapping[str, str], fields: Sequence[str], key: str
    ) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        while True:
            asked = {**filter, "includefield": ",".join(fields), "limit": str(_PAGE), "offset": str(len(seen))}
            page, cut = self._json(path, asked)
            new = [item for item in page if _text(item, key) not in seen]
            seen |= {_text(item, key) for item in new}
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
            dataset.save_as(buffer, write_like_original=False)
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

    # --- requests -----------------------------------------------------------------------------------------------------

    def forward(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> requests.Response:
        """A viewer's request as it is, with our credentials; the answer is streamed and not yet read. Not retried."""
        return self._send(
            method,
            f"{self.url}/{path}{'?' if query else ''}{query}",
            headers=dict(headers),
            data=body,
            stream=True,
            allow_redirects=False,
        )

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = requests.Session()
            session.trust_env = False  # no proxy, no .netrc
            session.auth = self._credentials
            session.verify = self._ca_file or True
            self._local.session = session
        return self._local.session

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return self._session().request(method, url, timeout=(min(self.timeout, 10), self.timeout), **options)
        except ConfigError as error:  # the file with the secret is gone: it may come back
            raise PacsError(str(error)) from error
        except requests.exceptions.SSLError as error:
            raise PacsError(
                f"{self.host}: its certificate cannot be trusted ({_reason(error)}); name the hospital's own "
                "certificate authority in pacs.ca_file",
                transient=False,
            ) from error
        except requests.exceptions.Timeout as error:
            raise PacsError(f"{self.host} does not answer within {self.timeout:g} s; is it overloaded?") from error
        except requests.exceptions.RequestException as error:
            raise PacsError(f"{self.host} cannot be reached ({_reason(error)}); is it running?") from error

    def _request(self, method: str, path: str, accepted: tuple[int, ...] = (), **options: Any) -> requests.Response:
        answer = self._send(method, f"{self.url}/{path}", **options)
        status = answer.status_code
        if 200 <= status < 300 or status in accepted:
            return answer
        answer.close()
        what = f"{self.host} answers {method} {path} with {status}"
        if status in (401, 403):
            advice = (
                "check pacs.user and pacs.password_file, or pacs.token_file" if status == 401 else "it is forbidden"
            )
            raise PacsError(f"{what}: {advice} (docs/pacs.md)", transient=False, status=status)
        if status == 404:
            raise PacsError(f"{what}: it is not there (any more), or this is not the DICOMweb address", False, status)
        pause = answer.headers.get("Retry-After", "")
        transient = status >= 500 or status in (408, 425, 429)
        raise PacsError(what, transient, status, float(pause) if pause.isdigit() else 0.0)

    def _retried(self, what: str, work: Callable[[], T]) -> T:
        for attempt in range(self.retries + 1):
            try:
                try:
                    return work()
                except requests.exceptions.RequestException as error:  # the connection broke within the answer
                    raise PacsError(f"{self.host}: the connection broke ({_reason(error)})") from error
            except PacsError as error:
                if not error.transient or attempt == self.retries:
                    raise
                pause = max(_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1), error.pause)
                logger.info("%s: %s; trying again in %.1f s", what, error, pause)
                time.sleep(min(pause, _LONGEST_PAUSE_SECONDS))
        raise AssertionError("not reached")


# DICOM PS3.18 Table I.2-2: A7xx is "out of resources".
_OUT_OF_RESOURCES = {f"A7{n:02X}" for n in range(256)}


def _failures(content: bytes) -> list[str]:
    """The reasons (hex) in a STOW answer's list of failed instances; empty where it tells of none."""
    try:
        value = json.loads(content) if content else {}
    except ValueError:
        return []
    value = value[0] if isinstance(value, list) and value else value
    items = value.get("00081198", {}).get("Value", []) if isinstance(value, dict) else []
    return [f"{_number(item, '00081197'):04X}" for item in items if isinstance(item, dict)]


def _value(item: Mapping[str, Any], tag: str) -> Any:
    entry = item.get(tag)
    values = entry.get("Value") if isinstance(entry, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _text(item: Mapping[str, Any], tag: str) -> str:
    value = _value(item, tag)
    return value.strip() if isinstance(value, str) else ""


def _number(item: Mapping[str, Any], tag: str) -> int:
    try:
        return int(_value(item, tag) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _sop_uid(path: Path) -> str:
    """Of a file that just came; PacsError when it is no DICOM file."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        return check_uid(str(header.SOPInstanceUID), "SOPInstanceUID")
    except InputError as error:
        raise PacsError(f"the PACS sent a file that cannot be used: {error}", transient=False) from error
    except Exception as error:  # pydicom raises anything for what is no DICOM
        raise PacsError(f"the PACS sent something that is no DICOM file ({type(error).__name__})") from error


def _reason(error: BaseException) -> str:
    """The innermost reason in words: requests' own text repeats the address and its objects."""
    reason: Any = error
    for _ in range(8):
        inner = getattr(reason, "reason", None) or (reason.args[0] if getattr(reason, "args", None) else None)
        if not isinstance(inner, BaseException):
            break
        reason = inner
    text = str(reason).rsplit(": ", 1)[-1] if ">: " in str(reason) else str(reason)
    return f"{text:.160}" or type(error).__name__
