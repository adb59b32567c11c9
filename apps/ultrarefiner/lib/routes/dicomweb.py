"""DICOMweb (PS3.18) of a studies folder, for viewers: QIDO-RS and WADO-RS below /proxy/dicom, where MONAI Label's OHIF asks.

Every image of the folder is there, whatever its file is (``dicomweb.wrapped``). It is for reading: labels are saved with
PUT /datastore/label.
"""

from __future__ import annotations

import io
import re
import threading
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio
from cachetools import LRUCache
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response
from monailabel.endpoints.user.auth import User

from lib.app import App
from lib.routes.routing import Route, name_of, user_role
from lib.store.instances import Instances, Row, grouped
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.series import state_of
from ultrarefiner_monai.dicomweb.wrapped import Instance, as_file, rendered, stored, wrapped

_OPERATIONS = ("wado", "qido")
_JSON = "application/dicom+json"
_STUDY = ("StudyInstanceUID", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
          "StudyDescription", "AccessionNumber")  # fmt: skip
_SERIES = ("SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription")
_INSTANCE = ("SOPInstanceUID", "SOPClassUID", "InstanceNumber", "Rows", "Columns", "NumberOfFrames")
_KEYWORDS = (*_STUDY, *_SERIES, *_INSTANCE)
# What a query may say besides; it changes nothing here.
_OTHERS = ("includefield", "fuzzymatching", "limit", "offset")
_MOST_ROWS = 10_000
_KEPT_BYTES = 256 << 20  # of DICOM files that were opened last: a viewer asks for one frame after the other
_UID = r"([0-9.]+)"
_PATHS = {
    name: re.compile(pattern)
    for name, pattern in {
        "studies": "studies",
        "series": f"(?:studies/{_UID}/)?series",
        "instances": f"(?:studies/{_UID}/)?(?:series/{_UID}/)?instances",
        "metadata": f"studies/{_UID}(?:/series/{_UID})?(?:/instances/{_UID})?/metadata",
        "frames": f"studies/{_UID}/series/{_UID}/instances/{_UID}/frames/([0-9,]+)",
        "rendered": f"studies/{_UID}/series/{_UID}/instances/{_UID}(?:/frames/([0-9]+))?/(rendered|thumbnail)",
        "objects": f"studies/{_UID}(?:/series/{_UID})?(?:/instances/{_UID})?",
    }.items()
}


class DicomWebRoutes:
    """The one route of this file. Whatever reads files runs in a thread."""

    def __init__(self, app: App):
        self.app = app
        self.instances = Instances(app.datastore())
        self._kept: LRUCache[tuple, Instance] = LRUCache(_KEPT_BYTES, lambda instance: min(instance.size, _KEPT_BYTES))
        self._lock = threading.Lock()
        self._answers: dict[str, Callable[..., Response]] = {
            "studies": self._search, "series": self._search, "instances": self._search, "metadata": self._metadata,
            "frames": self._frames, "rendered": self._rendered, "objects": self._objects,
        }  # fmt: skip

    def routes(self) -> list[Route]:
        return [("GET", "/proxy/dicom/{path:path}", self.read)]

    async def read(self, request: Request, path: str, user: User = user_role) -> Response:
        """What a viewer asks for, of the images of the studies folder."""
        first, _, rest = path.partition("/")
        path = (rest if first in _OPERATIONS else path).strip("/")
        for name, pattern in _PATHS.items():
            if found := pattern.fullmatch(path):
                work = partial(
                    self._answers[name], name, [part or "" for part in found.groups()], request, name_of(user)
                )
                return await anyio.to_thread.run_sync(work, limiter=self.app.savers)
        raise HTTPException(404, f"DICOMweb of a folder has studies, series and instances to read, not {path!r:.80}")

    # --- QIDO-RS ------------------------------------------------------------------------------------------------------

    def _search(self, level: str, uids: Sequence[str], request: Request, client: str) -> Response:
        asked = {k: v for k, v in zip(("StudyInstanceUID", "SeriesInstanceUID"), uids) if v}
        for name, value in request.query_params.multi_items():
            keyword = "Modality" if name == "ModalitiesInStudy" else _keyword(name)
            if keyword in _KEYWORDS and value:
                asked[keyword] = value
            elif keyword not in (*_KEYWORDS, *_OTHERS):
                raise InputError(f"a query of DICOMweb here knows {', '.join(_KEYWORDS)}; not {name!r:.60}")
        rows = [row for row in self.instances.rows() if row.matches(asked)]
        limit, offset = (_count(request, name, default) for name, default in (("limit", _MOST_ROWS), ("offset", 0)))
        if level == "instances":
            found = [_told(row, _KEYWORDS) for row in rows[offset : offset + limit]]
        else:
            groups = list(grouped(rows, level))[offset : offset + limit]
            found = [_of_group(first, own, level) for first, own in groups]
        return JSONResponse(found, media_type=_JSON) if found else Response(status_code=204)

    # --- WADO-RS ------------------------------------------------------------------------------------------------------

    def _metadata(self, _: str, uids: Sequence[str], request: Request, client: str) -> Response:
        return JSONResponse([self._opened(row).metadata() for row in self._rows(uids)], media_type=_JSON)

    def _frames(self, _: str, uids: Sequence[str], request: Request, client: str) -> Response:
        (row,), numbers = self._rows(uids[:3]), [int(n) for n in uids[3].split(",") if n]
        instance = self._opened(row)
        if not numbers or not all(1 <= n <= instance.frames for n in numbers):
            raise HTTPException(404, f"the image has frames 1 to {instance.frames}, asked for {uids[3]:.40}")
        if numbers[0] == 1:  # a viewer begins to show the image
            self.app.prepare(row.image_id)
            self.app.note_shown(row.image_id, client)
        kind = f"application/octet-stream; transfer-syntax={instance.transfer_syntax}"
        return _multipart([instance.frame(n - 1) for n in numbers], "application/octet-stream", kind)

    def _rendered(self, _: str, uids: Sequence[str], request: Request, client: str) -> Response:
        from PIL import Image

        (row,), index = self._rows(uids[:3]), int(uids[3] or 1) - 1
        image_file = self.app.engine.open(self.app.datastore().image_path(row.image_id)).image_file
        if not 0 <= index < image_file.n_frames:
            raise HTTPException(404, f"the image has frames 1 to {image_file.n_frames}, asked for {index + 1}")
        picture = Image.fromarray(rendered(image_file, index))
        side = 200 if uids[4] == "thumbnail" else _viewport(request)
        if side:
            picture.thumbnail((side, side))
        form = "PNG" if "image/png" in request.headers.get("accept", "") else "JPEG"
        buffer = io.BytesIO()
        picture.save(buffer, form)
        return Response(buffer.getvalue(), media_type=f"image/{form.lower()}")

    def _objects(self, _: str, uids: Sequence[str], request: Request, client: str) -> Response:
        files = [as_file(self._opened(row)) for row in self._rows(uids)]
        return _multipart(files, "application/dicom", "application/dicom")

    def _rows(self, uids: Sequence[str]) -> list[Row]:
        found = self.instances.find(*uids)
        if not found:
            raise HTTPException(404, "there is no such image in the studies")
        return found

    def _opened(self, row: Row) -> Instance:
        path = self.app.datastore().image_path(row.image_id)
        if row.own:
            key = (str(path), state_of(path))
            with self._lock:
                found = self._kept.get(key)
            found = found or stored(path)
            if found is not None:
                with self._lock:
                    self._kept[key] = found
                return found
        image_file = self.app.engine.open(path).image_file
        header = None
        if image_file.kind == "dicom":
            from ultrarefiner_monai.dicom.file import open_dicom

            header = open_dicom(path, header_only=True)
        return wrapped(image_file, row.image_id, (row.study, row.series, row.instance), header)


def _of_group(first: Row, own: Sequence[Row], level: str) -> dict[str, Any]:
    series = {row.series for row in own}
    if level == "series":
        found = _told(first, (*_STUDY, *_SERIES))
    else:
        found = _told(first, _STUDY)
        kinds = sorted({row.values.get("Modality", "") for row in own} - {""})
        found["00080061"] = {"vr": "CS", "Value": kinds}  # ModalitiesInStudy
        found["00201206"] = {"vr": "IS", "Value": [len(series)]}
    found["00201209" if level == "series" else "00201208"] = {"vr": "IS", "Value": [len(own)]}
    return found


def _told(row: Row, keywords: Sequence[str]) -> dict[str, Any]:
    """The elements that are known, as DICOM JSON."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    found: dict[str, Any] = {}
    for keyword in keywords:
        value = row.values.get(keyword, "")
        vr = dictionary_VR(keyword)
        element: dict[str, Any] = {"vr": vr}
        if value:
            shown: Any = {"Alphabetic": value} if vr == "PN" else value
            element["Value"] = [_number(value) if vr in ("IS", "US") else shown]
        found[f"{tag_for_keyword(keyword):08X}"] = element
    return found


def _number(value: str) -> int | str:
    return int(value) if re.fullmatch(r"-?\d{1,10}", value) else value


def _keyword(name: str) -> str:
    """A query names an element by keyword or by its eight hexadecimal digits."""
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(int(name, 16)) if re.fullmatch(r"[0-9A-Fa-f]{8}", name) else name


def _count(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if text and not re.fullmatch(r"\d{1,6}", text):
        raise InputError(f"{name} must be a whole number from 0, got {text!r:.40}")
    return int(text) if text else default


def _viewport(request: Request) -> int:
    """The longer side of PS3.18's ``viewport=width,height``; 0 where it is not asked for."""
    found = re.fullmatch(r"(\d{1,4}),(\d{1,4})", request.query_params.get("viewport", ""))
    return max(map(int, found.groups())) if found else 0


def _multipart(parts: Sequence[bytes], kind: str, each: str) -> Response:
    boundary = uuid.uuid4().hex
    body = b"".join(f"--{boundary}\r\nContent-Type: {each}\r\n\r\n".encode() + part + b"\r\n" for part in parts)
    content = f'multipart/related; type="{kind}"; boundary={boundary}'
    return Response(body + f"--{boundary}--\r\n".encode(), headers={"content-type": content})
