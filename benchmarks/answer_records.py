"""What ``same_answers.py`` keeps of a server's replies, and the differences between two of them.

Nothing of the package is imported here, so that it works on checkouts of any layout.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import zlib
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import requests
from PIL import Image

LEFT_OUT = "(left out)"
VOLATILE = {"timings", "latencies", "ts", "path", "session_id", "expiry", "create_ts", "last_access_ts"}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
SHOWN = 160  # characters of a value in a printed difference


def without_volatile(value: Any, places: dict[str, str]) -> Any:
    """A JSON value as it is recorded: what differs at each run is marked as left out, its key stays.

    places: texts (folders, addresses of the server) and the names that stand for them.
    """
    if isinstance(value, dict):
        return {k: blank(v) if k in VOLATILE else without_volatile(v, places) for k, v in value.items()}
    if isinstance(value, list):
        return [without_volatile(v, places) for v in value]
    if isinstance(value, str):
        for place, name in places.items():
            value = value.replace(place, name)
        return UUID.sub("UUID", value)
    return value


def blank(value: Any) -> Any:
    """The keys of a value that is left out: one that is missing later is a difference."""
    return {k: blank(v) for k, v in value.items()} if isinstance(value, dict) else LEFT_OUT


def pack(mask: np.ndarray) -> dict[str, Any]:
    """A mask for the record: shape, type, a digest of its values, and where it is not 0, packed. ``unpack`` reverses it."""
    values = np.ascontiguousarray(mask)
    bits = base64.b64encode(zlib.compress(np.packbits(values != 0).tobytes(), 9)).decode()
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    return {"shape": list(values.shape), "dtype": str(values.dtype), "sha256": digest, "bits": bits}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """bool, in the shape that it had: where the mask is not 0."""
    flat = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"])), np.uint8))
    return flat[: int(np.prod(packed["shape"]))].reshape(packed["shape"]).astype(bool)


def packed_file(content: bytes) -> dict[str, Any]:
    """A reply's mask file (NRRD, NIfTI, PNG, DICOM SEG): its values and its header. ValueError for another file."""
    if content.startswith(b"NRRD"):
        stream = io.BytesIO(content)
        nrrd_header = nrrd.read_header(stream)
        header = {k: v.tolist() if isinstance(v, np.ndarray) else str(v) for k, v in nrrd_header.items()}
        return {**pack(nrrd.read_data(nrrd_header, stream)), "header": header}
    if content.startswith(b"\x1f\x8b"):
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
        fields = ("pixdim", "xyzt_units", "qform_code", "sform_code")
        header = {"affine": image.affine.tolist(), **{k: image.header[k].tolist() for k in fields}}
        return {**pack(np.asarray(image.dataobj)), "header": header}
    if content.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(content)) as picture:
            header = {"mode": picture.mode, **{str(k): str(v) for k, v in picture.info.items()}}
            return {**pack(np.asarray(picture)), "header": header}
    if content[128:132] == b"DICM":
        dataset = pydicom.dcmread(io.BytesIO(content))
        return {**pack(dataset.pixel_array), "header": dicom_header(dataset, {})}
    raise ValueError(f"a mask was expected, but the file begins with {content[:16]!r}")


def dicom_header(dataset: pydicom.Dataset, uids: dict[str, str]) -> dict[str, Any]:
    """Elements by keyword, without pixels, dates and times. UIDs that are no standard's are numbered as they come (uids)."""
    header: dict[str, Any] = {}
    for element in dataset:
        name = element.keyword or str(element.tag)
        if element.VR == "SQ":
            header[name] = [dicom_header(item, uids) for item in element.value]
        elif element.VR in ("DA", "TM", "DT"):
            header[name] = LEFT_OUT
        elif element.VR == "UI" and not str(element.value).startswith("1.2.840.10008."):
            header[name] = uids.setdefault(str(element.value), f"UID {len(uids) + 1}")
        elif name != "PixelData":
            header[name] = str(element.value)
    return header


def parts_of(answer: requests.Response) -> list[tuple[str, bytes]]:
    """(headers, content) of each part of a multipart reply."""
    boundary = answer.headers["content-type"].split("boundary=")[1].strip('"').encode()
    pieces = (b"\r\n" + answer.content).split(b"\r\n--" + boundary)[1:-1]
    split = (piece.split(b"\r\n\r\n", 1) for piece in pieces)
    return [(head.decode().strip().lower(), content) for head, content in split]


def kept(answer: requests.Response, places: dict[str, str], masks: bool) -> dict[str, Any]:
    """A reply as it is recorded. masks: a file in it is a mask; else of a file only its digest is kept."""
    kind = answer.headers.get("content-type", "").split(";")[0]
    reply: dict[str, Any] = {"status": answer.status_code, "type": kind}

    def keep_file(content: bytes) -> None:
        if masks:
            try:
                reply["mask"] = packed_file(content)
            except (ValueError, OSError, EOFError, zlib.error, nrrd.NRRDError) as error:
                reply["mask"] = {"unreadable": f"{type(error).__name__}: {error}"}
        else:
            reply["sha256"] = hashlib.sha256(content).hexdigest()

    if kind == "multipart/form-data":
        for head, content in parts_of(answer):
            if "application/json" in head:
                reply["json"] = without_volatile(json.loads(content), places)
            else:
                keep_file(content)
    elif kind == "application/json":
        reply["json"] = without_volatile(answer.json(), places)
    elif kind.startswith("text/"):
        reply["text"] = without_volatile(answer.text, places)
    elif answer.content:
        keep_file(answer.content)
    return reply


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """What differs between two recorded values, a line each; empty: nothing. Masks are compared pixel by pixel."""
    if isinstance(a, dict) and isinstance(b, dict):
        if "bits" in a and "bits" in b:
            rest_a, rest_b = ({k: v for k, v in d.items() if k not in ("bits", "sha256")} for d in (a, b))
            return mask_difference(a, b, where) + differences(rest_a, rest_b, where)
        lines = []
        for key in sorted({*a, *b}):
            inner = f"{where}.{key}" if where else key
            if key in a and key in b:
                lines += differences(a[key], b[key], inner)
            else:
                only, value = ("A", a[key]) if key in a else ("B", b[key])
                lines.append(f"{inner}: only in {only}: {shown(value)}")
        return lines
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for k, (x, y) in enumerate(zip(a, b)) for line in differences(x, y, f"{where}[{k}]")]
    return [] if json.dumps(a) == json.dumps(b) else [f"{where}: {shown(a)} -> {shown(b)}"]


def mask_difference(a: dict[str, Any], b: dict[str, Any], where: str) -> list[str]:
    """One line where two packed masks differ in their values. A difference in shape is said by its caller."""
    if a["shape"] != b["shape"] or a["sha256"] == b["sha256"]:
        return []
    one, other = unpack(a), unpack(b)
    total = int(one.sum() + other.sum())
    if not (one != other).any():
        return [f"{where}: the same pixels, with other values or another type"]
    dice = 2 * int((one & other).sum()) / total
    return [
        f"{where}: {int((one != other).sum())} pixels differ ({int(one.sum())} -> {int(other.sum())}), Dice {dice:.4f}"
    ]


def shown(value: Any) -> str:
    """A value in a line: the beginning of a long one."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[str]]:
    """The differences between two records, by the question's name; empty: all replies are the same."""
    found: dict[str, list[str]] = {}
    for name in sorted({*a["replies"], *b["replies"]}):
        if name not in a["replies"] or name not in b["replies"]:
            found[name] = [f"asked in {'A' if name in a['replies'] else 'B'} only"]
        elif lines := differences(a["replies"][name], b["replies"][name]):
            found[name] = lines
    return found
