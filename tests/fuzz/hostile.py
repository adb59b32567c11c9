"""Requests that no client sends: values of wrong types, absurd sizes, broken multipart, odd names. A pure function of a number."""

from __future__ import annotations

import http.client
import json
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

Rng = np.random.Generator
_DEEP = "[" * 3000 + "]" * 3000
# As JSON texts: some are not what Python's json would write.
_JSON = [
    *map(json.dumps, [None, True, 0, -1, 1.5, 10**30, "", "x", [], {}, [[]], [1, "a", None], {"a": {"b": []}}, "\ud800", "\x00"]),
    *('{"image":' + _DEEP + "}", _DEEP, "1e999", "-1e999", "NaN", "9" * 5000, '{"a":1,"a":2}', "{", '"', "[1,", "\x00", '"\\ud800"'),
    *('{"\\ud800": 1}', '{"": ""}', '{"__proto__": {}}', '{"foreground": "x"}', "\ufeff{}", "'{}'", "{}" * 50, '{"a":"' + "y" * 70000 + '"}'),
]  # fmt: skip
_TEXTS = [
    "",
    " ",
    "x",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "%00",
    "\x00",
    "a" * 300,
    "a" * 5000,
    "\ud800",
    "é",
    "\u202e",
    "null",
]
_TEXTS += [
    "-1",
    "0",
    "1e999",
    "9" * 400,
    "nan",
    "²",
    "true",
    "[]",
    "{}",
    "grey",
    "frame",
    "cine",
    "final",
    ".",
    "con",
    "a\nb",
    "a\rb",
    "%2e%2e%2f",
]
_PARAMS = [
    "foreground",
    "background",
    "roi",
    "frame",
    "label",
    "result_extension",
    "result_dtype",
    "result_compress",
    "label_tag",
    "device",
]
_PARAMS += [
    "model",
    "image",
    "session_id",
    "client_id",
    "user",
    "label_info",
    "images",
    "gpus",
    "bundle_path",
    "max_epochs",
    "save_label",
    "xyz",
]
# Method, address, names of the query, how the body is sent.
_ROUTES: list[tuple[str, str, tuple[str, ...], str]] = [
    ("POST", "/infer/{}", ("image", "session_id", "output", "frame"), "form"),
    ("POST", "/infer/ultrarefiner", ("image", "session_id", "output", "frame"), "form"),
    ("POST", "/infer/sam_refiner", ("image", "session_id", "output", "frame"), "form"),
    ("POST", "/batch/infer/{}", ("images", "run_sync"), "json"),
    ("GET", "/batch/infer", ("all", "check_if_running"), ""),
    ("POST", "/train/{}", ("run_sync", "enqueue"), "json"),
    ("POST", "/train/transunet", ("run_sync", "enqueue"), "json"),
    ("POST", "/train/", ("run_sync",), "json"),
    ("GET", "/train/", ("all", "check_if_running"), ""),
    ("DELETE", "/train/", (), ""),
    ("POST", "/activelearning/{}", (), "json"),
    ("POST", "/activelearning/first", (), "json"),
    ("POST", "/scoring/{}", ("run_sync",), "json"),
    ("GET", "/datastore/", ("output",), ""),
    ("PUT", "/datastore/", ("image",), "file"),
    ("PUT", "/datastore/image", ("image",), "file"),
    ("GET", "/datastore/image", ("image",), ""),
    ("HEAD", "/datastore/image", ("image", "check_sum"), ""),
    ("GET", "/datastore/image/info", ("image",), ""),
    ("PUT", "/datastore/image/info", ("image",), "form"),
    ("PUT", "/datastore/label", ("image", "tag"), "label"),
    ("GET", "/datastore/label", ("label", "tag"), ""),
    ("HEAD", "/datastore/label", ("image", "tag"), ""),
    ("GET", "/datastore/label/info", ("label", "tag"), ""),
    ("PUT", "/datastore/label/info", ("label", "tag"), "form"),
    ("PUT", "/datastore/updatelabelinfo", ("label", "tag"), "form"),
    ("DELETE", "/datastore/label", ("id", "tag"), ""),
    ("GET", "/datastore/dataset", ("limit_cases",), ""),
    ("PUT", "/session/", ("uncompress", "expiry"), "files"),
    ("GET", "/session/{}", ("update_ts", "image"), ""),
    ("DELETE", "/session/{}", (), ""),
    ("GET", "/logs/", ("lines", "html", "text", "refresh", "logfile"), ""),
    ("GET", "/logs/gpu", (), ""),
    ("GET", "/model/{}", (), ""),
    ("PUT", "/model/{}", (), "file"),
    ("GET", "/ohif/{}", (), ""),
    ("GET", "/static/{}", (), ""),
    ("GET", "/proxy/dicom/{}", (), ""),
    ("GET", "/info/", (), ""),
    ("GET", "/", (), ""),
    ("OPTIONS", "/info/", (), ""),
    ("GET", "/{}", (), ""),
    ("POST", "/token", (), "form"),
    ("PATCH", "/datastore/", (), "json"),
]  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.target[:200]} {dict(self.headers)} {self.body[:300]!r}"[:900]


def make(number: int) -> Hostile:
    """The request of a number; every address comes in its turn."""
    rng = np.random.default_rng([number, 77])
    method, path, names, body = _ROUTES[number % len(_ROUTES)]
    path = path.replace("{}", _quoted(_text(rng), rng))
    query = [(name, _text(rng)) for name in names if rng.random() < 0.6]
    if rng.random() < 0.15:
        query += [(_text(rng), _text(rng))]
    if query and rng.random() < 0.1:
        query.append(query[0])
    target = path + ("?" + "&".join(f"{_quoted(k, rng)}={_quoted(v, rng)}" for k, v in query) if query else "")
    headers, content = _body(rng, body)
    if rng.random() < 0.1:
        odd = [
            ("Range", "bytes=5-2"),
            ("Accept", "\x7f" * 50),
            ("Cookie", "a" * 6000),
            ("Content-Encoding", "gzip"),
            ("Expect", "x"),
        ]
        odd += [
            ("If-Modified-Since", "never"),
            ("Authorization", "Bearer \x01"),
            ("X-Forwarded-For", "1.1.1.1"),
            ("Content-Type", "text/\xe9"),
        ]
        headers.append(odd[int(rng.integers(len(odd)))])
    return Hostile(method, target, tuple(headers), content)


def send(url: str, request: Hostile, seconds: float = 60) -> int:
    """The status of the answer; 0 where the server hangs up, as it may on what is no HTTP."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.putrequest(request.method, request.target, skip_accept_encoding=True)
        for name, value in request.headers:
            connection.putheader(name, value.encode("latin-1", "replace"))
        connection.putheader("Content-Length", str(len(request.body)))
        connection.endheaders(request.body or None)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (ConnectionError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _text(rng: Rng) -> str:
    return _TEXTS[int(rng.integers(len(_TEXTS)))]


def _json(rng: Rng) -> str:
    """JSON that is well-formed in what it says of known options, or not JSON at all."""
    if rng.random() < 0.4:
        return _JSON[int(rng.integers(len(_JSON)))]
    names = [_PARAMS[int(rng.integers(len(_PARAMS)))] for _ in range(int(rng.integers(1, 4)))]
    return "{" + ",".join(f'"{name}": {_JSON[int(rng.integers(15))]}' for name in names) + "}"


def _quoted(text: str, rng: Rng) -> str:
    raw = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:  # not escaped as it should be
        return "".join(chr(b) for b in raw if 33 <= b < 127 and chr(b) not in "#?&") or "%zz"
    return quote(raw, safe="/" if rng.random() < 0.3 else "")


def _body(rng: Rng, kind: str) -> tuple[list[tuple[str, str]], bytes]:
    if not kind or rng.random() < 0.05:
        return [], b""
    if kind == "json":
        types = ["application/json"] * 6 + ["text/plain", "application/json; charset=utf-16", ""]
        return [("Content-Type", types[int(rng.integers(len(types)))])], _json(rng).encode("utf-8", "surrogatepass")
    if kind == "form" and rng.random() < 0.5:
        fields = [("params", _json(rng)), ("info", _json(rng)), ("wsi", _text(rng))][: int(rng.integers(1, 4))]
        fields *= int(rng.choice([1, 1, 1, 2, 1200]))
        text = "&".join(f"{name}={_quoted(value, rng)}" for name, value in fields)
        return [("Content-Type", "application/x-www-form-urlencoded")], text.encode()
    return _multipart(rng, {"label": "label", "files": "files"}.get(kind, "file"))


def _multipart(rng: Rng, field: str) -> tuple[list[tuple[str, str]], bytes]:
    names: list[Any] = [
        "a.png",
        "l.nrrd",
        "x.dcm",
        "",
        "../../x.png",
        "a" * 280 + ".png",
        "a\x00.png",
        "\u202egnp.png",
        ".png",
        "x.PNG",
        "a.png.exe",
    ]
    names += [
        "c:\\x\\a.png",
        "a\nb.png",
        "é" * 140 + ".png",
        ".seg.nrrd",
        "a.nii.gz",
        "con.png",
        'a".png',
        "\ud800.png",
    ]
    mark = b"----b%d" % rng.integers(1 << 30)
    parts = []
    for _ in range(int(rng.choice([1, 1, 2, 40]))):
        name = str(names[int(rng.integers(len(names)))]).encode("utf-8", "surrogatepass")
        which = field if rng.random() < 0.85 else _text(rng)
        extra = (
            (b"\r\nContent-Type: " + bytes(rng.choice([b"image/png", b"x", b"application/dicom"])))
            if rng.random() < 0.5
            else b""
        )
        content = (b"", b"x", b"\x89PNG\r\n\x1a\n" + rng.bytes(60), b"NRRD0004\n" + rng.bytes(40), rng.bytes(3000))[
            int(rng.integers(5))
        ]
        head = b'Content-Disposition: form-data; name="%s"; filename="%s"' % (
            which.encode("utf-8", "surrogatepass"),
            name,
        )
        parts.append(b"--%s\r\n%s%s\r\n\r\n%s\r\n" % (mark, head, extra, content))
    if rng.random() < 0.6:
        text = _json(rng).encode("utf-8", "surrogatepass")
        parts.append(b'--%s\r\nContent-Disposition: form-data; name="params"\r\n\r\n%s\r\n' % (mark, text))
    body = b"".join(parts) + (b"--%s--\r\n" % mark if rng.random() < 0.85 else b"")
    told = mark.decode() if rng.random() < 0.9 else _text(rng)
    told = "".join(c for c in told if 32 <= ord(c) < 127)
    return [("Content-Type", f"multipart/form-data; boundary={told}")], body


def main() -> None:
    """python -m tests.fuzz.hostile URL FIRST COUNT: a longer campaign against a running server that may be spoilt."""
    url, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for number in range(first, first + count):
        request = make(number)
        try:
            status = send(url, request)
        except TimeoutError:
            status = 599
        if status >= 500:
            print(f"{number}: {status} for {request}", flush=True)


if __name__ == "__main__":
    main()
