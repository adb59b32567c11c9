"""What hosts answer instead of a file, over real connections on the loopback; fetches as a whole: test_pretrained."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ultrarefiner_monai.models.weights.download import FetchError, download

DATA = bytes(range(256)) * 500
PACKED = gzip.compress(DATA)
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def answer(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def packed(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Packs although ``identity`` is asked for, as some caches do; the first connection breaks."""
    start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
    part = {"Content_Range": f"bytes {start}-{len(PACKED) - 1}/{len(PACKED)}"} if start else {}
    body = PACKED[start:]
    sent = body if start else body[: len(body) // 2]
    answer(handler, 206 if start else 200, sent, Content_Encoding="gzip", Content_Length=str(len(body)), **part)


def broken_chunks(handler: http.server.BaseHTTPRequestHandler) -> None:
    """HTTP/1.1 in chunks, and an end in the middle of one; the rest comes when it is asked for."""
    handler.protocol_version, handler.close_connection = "HTTP/1.1", True
    if handler.headers.get("Range"):
        answer(handler, 206, DATA[5:], Content_Range=f"bytes 5-{len(DATA) - 1}/{len(DATA)}", Connection="close")
    else:
        answer(handler, 200, b"5\r\n" + DATA[:5] + b"\r\nFF\r\n", Transfer_Encoding="chunked", Connection="close")


ANSWERS: dict[str, Answer] = {
    "/nothing-new": lambda handler: answer(handler, 304),
    "/nowhere": lambda handler: answer(handler, 302, b"moved"),
    "/partly": lambda handler: answer(handler, 203, b"of a proxy"),
    "/circle": lambda handler: answer(handler, 302, Location="/circle"),
    "/moved": lambda handler: answer(handler, 302, Location="/file"),
    "/file": lambda handler: answer(handler, 200, DATA, Content_Length=str(len(DATA))),
    "/no-number": lambda handler: answer(handler, 200, DATA, Content_Length="many"),
    "/half-a-chunk": lambda handler: answer(handler, 200, b"FF\r\nhalf", Transfer_Encoding="chunked"),
    "/packed": packed,
    "/chunks": broken_chunks,
}


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ANSWERS[self.path](self)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nothing-new", "answered 304 Not Modified"),
        ("/nowhere", "answered 302 Found"),
        ("/partly", "answered 203"),
        ("/circle", "/circle cannot be fetched: its host redirects in a circle"),
    ],
)
def test_what_is_no_file_is_not_taken_for_one(tmp_path: Path, host: str, path: str, words: str) -> None:
    with pytest.raises(FetchError, match=words) as failed:
        download(host + path, tmp_path / "x.part")
    assert "offline" not in str(failed.value) and not (tmp_path / "x.part").exists()


def test_a_redirect_is_followed(tmp_path: Path, host: str) -> None:
    download(f"{host}/moved", tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == DATA


def test_bytes_are_kept_as_they_are_sent(tmp_path: Path, host: str) -> None:
    seen: list[tuple[int, int | None]] = []
    download(f"{host}/packed", tmp_path / "x.part", progress=lambda have, total: seen.append((have, total)))
    assert (tmp_path / "x.part").read_bytes() == PACKED and seen[-1] == (len(PACKED), len(PACKED))


def test_chunks_that_break_off_are_taken_up_again(tmp_path: Path, host: str) -> None:
    download(f"{host}/chunks", tmp_path / "x.part", size=len(DATA))
    assert (tmp_path / "x.part").read_bytes() == DATA


def test_what_is_not_http_is_said_in_words(tmp_path: Path, host: str) -> None:
    download(f"{host}/no-number", tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == DATA
    with pytest.raises(FetchError, match=r"half-a-chunk: the connection ended early\. Is this"):
        download(f"{host}/half-a-chunk", tmp_path / "y.part")


def test_the_login_of_the_netrc_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    seen: list[str | None] = []

    def note(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        ANSWERS["/file"](handler)

    monkeypatch.setitem(ANSWERS, "/noted", note)
    download(f"{host}/noted", tmp_path / "x.part")
    assert seen == [None]
