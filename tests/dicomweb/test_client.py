"""The DICOMweb client against a real Orthanc, and against small servers that fail as stores do."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest
from coded_file import card, dicom
from orthanc import PASSWORD, USER, Orthanc, in_front, own_certificates, us_file

from ultrarefiner_monai.config import ConfigError, PacsConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import DEFLATED
from ultrarefiner_monai.dicom.pictures import pictures_of
from ultrarefiner_monai.dicomweb import client, connection
from ultrarefiner_monai.dicomweb.client import Pacs, PacsError, check_uid
from ultrarefiner_monai.dicomweb.credentials import Credentials
from ultrarefiner_monai.dicomweb.multipart import MultipartError, boundary_of, related, write_parts
from ultrarefiner_monai.studies.work_folder import WorkFolder

needs_orthanc = pytest.mark.orthanc


def us(number: int, frames: int = 1, **changes: object) -> bytes:
    """An ultrasound file; ``changes``: DICOM keywords."""
    pixels = np.random.default_rng(number).integers(0, 255, (frames, 24, 32), dtype=np.uint8)
    return us_file(pixels, number, 0.1, **changes)


def series_of(*sops: str, number: int = 1) -> list[bytes]:
    return [us(number, SOPInstanceUID=sop, InstanceNumber=k) for k, sop in enumerate(sops, 1)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_PAUSE_SECONDS", 0.01)


@contextlib.contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A small web server that answers every request with ``answer``; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def handle_one(self) -> None:
            answer(self)

        do_GET = do_POST = handle_one  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
        server.shutdown()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"[]", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Type": "application/dicom+json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def test_headers_of_what_comes_are_read_without_inflating_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may inflate to any size."""
    path = tmp_path / "x.dcm"
    path.write_bytes(dicom(DEFLATED, "RGB", card()))
    monkeypatch.setattr(pydicom.filereader.zlib, "decompress", None)  # as pydicom inflates
    assert client._sop_uid(path) == "1.2.826.0.1.3680043.8.498.1"
    assert pictures_of([path]) == ({path: card().shape[:2]}, {})
    path.write_bytes(b"a page in HTML")
    with pytest.raises(PacsError, match="no DICOM file"):
        client._sop_uid(path)


# --- a real store -----------------------------------------------------------------------------------------------------


@needs_orthanc
def test_lists_series_by_modality_and_fetches_them_byte_for_byte(orthanc: Orthanc, tmp_path: Path) -> None:
    files = [us(1), us(2, frames=3), us(3, Modality="CT", SeriesDescription="not ours")]
    stored = orthanc.add(*files)
    pacs = Pacs(orthanc.url)
    found = sorted(pacs.series({"Modality": "US"}), key=lambda s: s.uid)
    assert sorted(s.uid for s in found) == sorted(
        str(pydicom.dcmread(io.BytesIO(f)).SeriesInstanceUID) for f in files[:2]
    )
    assert {(s.modality, s.instances, s.date) for s in found} == {("US", 1, "20000101")}
    assert [s.description for s in pacs.series({"Modality": "CT"})] == ["not ours"]
    on_disk = {path.read_bytes() for s in found for path in pacs.fetch_series(s.study_uid, s.uid, tmp_path / s.uid)}
    assert on_disk == {orthanc.file(i) for i in stored[:2]}  # RLE and JPEG as they are stored


@needs_orthanc
def test_a_series_follows_the_store_and_only_what_is_missing_is_fetched(orthanc: Orthanc, tmp_path: Path) -> None:
    files = series_of("1.2.3.1", "1.2.3.2", "1.2.3.3")
    first, _ = orthanc.add(*files[:2])
    pacs = Pacs(orthanc.url)
    (info,) = pacs.series()
    folder = tmp_path / "mirror" / info.uid
    assert [p.name for p in pacs.fetch_series(info.study_uid, info.uid, folder)] == ["1.2.3.1.dcm", "1.2.3.2.dcm"]
    kept = (folder / "1.2.3.2.dcm").stat().st_mtime_ns
    orthanc.add(files[2])
    orthanc.rest("DELETE", f"/instances/{first}")
    assert [p.name for p in pacs.fetch_series(info.study_uid, info.uid, folder)] == ["1.2.3.2.dcm", "1.2.3.3.dcm"]
    assert (folder / "1.2.3.2.dcm").stat().st_mtime_ns == kept
    assert [p.name for p in folder.parent.iterdir()] == [info.uid]  # nothing half-made beside
    one = pacs.fetch_instance(info.study_uid, info.uid, "1.2.3.3", tmp_path / "one")
    assert one.read_bytes() == (folder / "1.2.3.3.dcm").read_bytes()
    orthanc.clear()
    with pytest.raises(PacsError, match="has no series") as caught:
        pacs.fetch_series(info.study_uid, info.uid, folder)
    assert caught.value.status == 404 and not caught.value.transient
    assert len(list(folder.iterdir())) == 2  # what is cached stays


@needs_orthanc
def test_instances_tell_their_sizes(orthanc: Orthanc) -> None:
    orthanc.add(us(4, frames=3))
    (info,) = Pacs(orthanc.url).series()
    (instance,) = Pacs(orthanc.url).instances(info.study_uid, info.uid)
    assert (instance.rows, instance.columns, instance.frames, instance.number) == (24, 32, 3, 1)


@needs_orthanc
def test_stores_and_stores_again(orthanc: Orthanc) -> None:
    dataset = pydicom.dcmread(io.BytesIO(us(5)))
    dataset.Modality = "SEG"
    pacs = Pacs(orthanc.url)
    pacs.store([dataset])
    pacs.store([dataset])
    assert len(orthanc.instances()) == 1
    assert [s.uid for s in pacs.segs()] == [s.uid for s in pacs.segs(dataset.StudyInstanceUID)]
    assert not pacs.segs("1.2.3")


@needs_orthanc
def test_many_series_come_in_pages(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    orthanc.add(*(us(n) for n in range(5)))
    monkeypatch.setattr(client, "_PAGE", 2)
    assert len({s.uid for s in Pacs(orthanc.url).series()}) == 5


@needs_orthanc
def test_basic_authentication_from_a_file(
    orthanc_login: Orthanc, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    orthanc_login.add(us(1))
    with pytest.raises(PacsError, match="401.*pacs.password_file") as caught:
        Pacs(orthanc_login.url).series()
    assert caught.value.status == 401 and not caught.value.transient
    (tmp_path / "secret").write_text(f"{PASSWORD}\n", encoding="utf-8")
    config = PacsConfig(user=USER, password_file=str(tmp_path / "secret"))
    pacs = Pacs.of(orthanc_login.url, config, {})
    (info,) = pacs.series()
    assert len(pacs.fetch_series(info.study_uid, info.uid, tmp_path / "series")) == 1
    environment = {"ULTRAREFINER_PACS_USER": USER, "ULTRAREFINER_PACS_PASSWORD": PASSWORD}
    assert Pacs.of(orthanc_login.url, PacsConfig(), environment).series() == [info]
    assert PASSWORD not in caplog.text + repr(pacs.__dict__)


@needs_orthanc
def test_own_certificate_authority(orthanc: Orthanc, tmp_path: Path) -> None:
    orthanc.add(us(1))
    ca_file, both = own_certificates(tmp_path)
    with in_front(orthanc, tls=both) as url:
        assert len(Pacs.of(url, PacsConfig(ca_file=str(ca_file)), {}).series()) == 1
        with pytest.raises(PacsError, match="certificate cannot be trusted.*pacs.ca_file") as caught:
            Pacs(url, retries=0).series()
        assert not caught.value.transient


@needs_orthanc
def test_bearer_token_is_read_anew_when_it_changes(orthanc: Orthanc, tmp_path: Path) -> None:
    orthanc.add(us(1))
    token = tmp_path / "token"
    with in_front(orthanc, token=lambda: "second") as url:
        token.write_text("first\n")
        pacs = Pacs.of(url, PacsConfig(token_file=str(token), retries=0), {})
        with pytest.raises(PacsError, match="401"):
            pacs.series()
        token.write_text("second\n")
        assert len(pacs.series()) == 1
        token.unlink()
        with pytest.raises(PacsError, match="token_file"):
            pacs.series()
        assert len(Pacs.of(url, PacsConfig(), {"ULTRAREFINER_PACS_TOKEN": "second"}).series()) == 1


# --- stores that fail -------------------------------------------------------------------------------------------------


def test_tries_again_as_long_as_it_may_help(quick: None) -> None:
    asked: list[str] = []
    answers = [503, 429, 200, 400]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        reply(handler, answers[len(asked) - 1])

    with serving(answer) as url:
        assert Pacs(url, retries=2).series() == []
        assert len(asked) == 3
        with pytest.raises(PacsError, match="400") as caught:
            Pacs(url, retries=2).series()
        assert len(asked) == 4 and not caught.value.transient


def test_a_store_that_is_away_is_said_after_the_last_try(quick: None) -> None:
    with serving(lambda handler: reply(handler, 200)) as url:
        pass
    with pytest.raises(PacsError, match="cannot be reached.*refused") as caught:
        Pacs(url, retries=1).series()
    assert caught.value.transient and caught.value.status is None


def test_a_transfer_that_breaks_is_begun_again_and_leaves_nothing(quick: None, tmp_path: Path) -> None:
    content = us(1)
    sop = str(pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID)
    body, kind = related([content], "application/dicom")
    cuts = [len(body) // 2, len(body) - 3, len(body)]
    listed = json.dumps([{"00080018": {"vr": "UI", "Value": [sop]}}]).encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if "instances" in handler.path:
            reply(handler, 200, listed)
        else:
            reply(handler, 200, body[: cuts.pop(0)], Content_Type=kind)

    with serving(answer) as url:
        with pytest.raises(PacsError, match="ends in the middle"):
            Pacs(url, retries=0).fetch_series("1.2", "1.3", tmp_path / "series")
        assert not list(tmp_path.iterdir())
        (path,) = Pacs(url, retries=1).fetch_series("1.2", "1.3", tmp_path / "series")
    assert path.name == f"{sop}.dcm" and path.read_bytes() == content


def test_a_refused_object_says_the_stores_reason(quick: None) -> None:
    refusal = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA900]}}]}}
    reasons = iter([(409, 0xA900), (202, 0xA700), (200, None)])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        status, reason = next(reasons)
        refusal["00081198"]["Value"][0]["00081197"]["Value"] = [reason]  # type: ignore[index, call-overload]
        reply(handler, status, json.dumps(refusal if reason else {}).encode())

    dataset = pydicom.dcmread(io.BytesIO(us(1)))
    with serving(answer) as url:
        with pytest.raises(PacsError, match="A900") as caught:
            Pacs(url).store([dataset])
        assert not caught.value.transient
        Pacs(url).store([dataset])  # out of resources, then well


def test_what_is_no_dicomweb_says_so(quick: None) -> None:
    with serving(lambda h: reply(h, 200, b"<html>", Content_Type="text/html")) as url:
        with pytest.raises(PacsError, match="DICOMweb address"):
            Pacs(url).series()
    bad = json.dumps([{"0020000E": {"Value": ["../../etc"]}, "0020000D": {"Value": ["1.2"]}}]).encode()
    with serving(lambda h: reply(h, 200, bad)) as url:
        assert Pacs(url).series() == []  # and not a file name


def test_a_store_without_offsets_ends_the_pages(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PAGE", 1)
    one = json.dumps([{"0020000E": {"Value": ["1.2.3"]}, "0020000D": {"Value": ["1.2"]}}]).encode()
    with serving(lambda h: reply(h, 200, one)) as url:
        assert len(Pacs(url).series()) == 1


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "config", "match"),
    [
        ("http://user:secret@host/dicom-web", {}, "must not hold a user or password"),
        ("ftp://host", {}, "expected the DICOMweb address"),
        ("https://host", {"ca_file": "/nowhere.pem"}, "pacs.ca_file"),
        ("https://host", {"user": "me"}, "there is no password"),
        ("https://host", {"user": "me", "password_file": "/nowhere"}, "pacs.password_file"),
        ("https://host", {"password_file": __file__}, "needs pacs.user"),
    ],
)
def test_unusable_configurations_say_what_is_wrong(url: str, config: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        Pacs.of(url, PacsConfig(**config), {})
    assert "secret" not in str(caught.value)


def test_a_stores_work_folder_lies_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="never served"):
        WorkFolder.existing("https://pacs.example/dicom-web")
    assert not list(tmp_path.iterdir())
    root = WorkFolder.of("https://pacs.example/dicom-web").root
    assert root.parent == tmp_path / ".ultrarefiner" and root.name.startswith("pacs.example-")
    assert root.stat().st_mode & 0o77 == 0
    assert WorkFolder.existing("https://pacs.example/dicom-web/").root == root
    assert WorkFolder.of("https://pacs.example/other").root != root


def test_a_secret_is_never_shown() -> None:
    assert "geheim" not in repr(Credentials(user="me", password="geheim"))
    assert "geheim" not in repr(Credentials(token="geheim"))


@pytest.mark.parametrize("value", ["", "1", "..", "1..2", "1.2/3", "1.2\n", "1." + "2" * 63, None, "1.\u0661"])
def test_only_uids_are_uids(value: object) -> None:
    with pytest.raises(InputError):
        check_uid(value)


# --- multipart --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_parts_come_whole_from_blocks_of_any_size(size: int) -> None:
    parts = [b"\r\n--", b"", bytes(range(256)) * 3 + b"\r\n--almost", b"\r\n\r\n"]
    body, kind = related(parts, "application/dicom")
    body = b"preamble\r\n" + body
    files = [io.BytesIO() for _ in parts]
    boundary = boundary_of(kind)
    assert boundary is not None
    blocks = [body[i : i + size] for i in range(0, len(body), size)]
    assert write_parts(blocks, boundary, iter(files)) == len(parts)
    assert [f.getvalue() for f in files] == parts
    with pytest.raises(MultipartError):
        write_parts([body[:-4]], boundary, iter([io.BytesIO() for _ in parts]))


def test_boundaries() -> None:
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == b"a b"
    assert boundary_of("Multipart/Related;boundary=xyz;type=a") == b"xyz"
    assert boundary_of("application/dicom") is None
    with pytest.raises(MultipartError):
        boundary_of("multipart/related")
