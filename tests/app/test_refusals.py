"""Bad input over HTTP: a 4xx with a message, nothing read or written outside the studies, and the server lives on."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import tempfile
import time
import zipfile
from pathlib import Path
from urllib.parse import quote, urlparse

import numpy as np
import pytest
import requests
from app_server import ROOT
from PIL import Image

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def alive_and_untouched(server):
    """After every refusal the server answers, and around the studies nothing is new."""
    before = sorted(p.name for p in server.studies.parent.iterdir())
    yield
    assert requests.get(f"{server.url}/info/").status_code == 200
    assert sorted(p.name for p in server.studies.parent.iterdir()) == before


@pytest.fixture(autouse=True)
def no_path_is_told(server, monkeypatch):
    """Whatever these tests ask: no reply says where the server keeps things. (A next sample does, to this machine.)"""
    send = requests.Session.send
    kept = [str(server.studies.parent), str(ROOT), str(Path.home()) + "/", tempfile.gettempdir() + "/"]
    kept.append(str(Path(requests.__file__).parents[1]))

    def watched(session, request, **options):
        answer = send(session, request, **options)
        if "/activelearning/" not in request.url and "zip" not in answer.headers.get("content-type", ""):
            said = str(answer.headers) + answer.text
            for place in kept:
                assert place not in said, f"{request.method} {request.url} tells {place}"
        return answer

    monkeypatch.setattr(requests.Session, "send", watched)


def refused(answer: requests.Response, *words: str) -> str:
    assert 400 <= answer.status_code < 500, f"{answer.status_code}: {answer.text[:500]}"
    detail = answer.json()["detail"]
    assert isinstance(detail, str) and detail
    for word in words:
        assert word in detail
    return detail


def infer(server, model="ultrarefiner", image="grey", params="{}", **query):
    text = params if isinstance(params, str) else json.dumps(params)
    query = {"image": image, **query}
    return requests.post(f"{server.url}/infer/{model}", params=query, data={"params": text})


@pytest.mark.parametrize("name", ["broken.png", "broken.dcm", "nothing.jpg"])
def test_files_that_cannot_be_read(server, name):
    objects = requests.get(f"{server.url}/datastore/?output=all").json()["objects"]
    (image_id,) = [i for i, o in objects.items() if i + o["image"]["ext"] == name]
    refused(infer(server, image=image_id), name)


def test_unknown_names_are_said_with_the_known_ones(server):
    refused(infer(server, model="nope"), "nope", "ultrarefiner", "sam_refiner")
    refused(infer(server, image="no such image"), "no such image")
    refused(infer(server, image="", session_id="0000-1111"), "0000-1111")
    refused(infer(server, image=""), "image=")
    refused(requests.post(f"{server.url}/activelearning/cleverest", json={}), "cleverest", "random", "first")
    refused(requests.post(f"{server.url}/batch/infer/nope", json={}), "nope")
    refused(requests.post(f"{server.url}/train/nope", json={}))
    refused(requests.post(f"{server.url}/scoring/nope", json={}))
    refused(requests.post(f"{server.url}/infer/wsi/ultrarefiner?image=grey", json={}))
    refused(requests.get(f"{server.url}/session/0000-1111"))


@pytest.mark.parametrize(
    "params", ["{", "[]", "3", '"text"', "[[[", '{"a": ', "[" * 100_000, "null", "{'single': 1}", "\x00"]
)
def test_params_that_are_no_json_object(server, params):
    refused(infer(server, params=params), "params")


@pytest.mark.parametrize(
    "request_",
    [
        {"foreground": "here"},
        {"foreground": {"x": 1}},
        {"foreground": [1, 2, 3]},
        {"foreground": [[1]]},
        {"foreground": [[1, 2, 3, 4]]},
        {"foreground": [["1", "2", 0]]},
        {"foreground": [[True, 2, 0]]},
        {"foreground": [[None, 2, 0]]},
        {"background": [[1, [2], 0]]},
        {"roi": [1, 2, 3]},
        {"roi": [1, 2, 3, 4, 5, "6"]},
        {"roi": "1,2,3,4"},
        {"roi": [500, 600, 10, 20, 0, 0]},
        {"frame": "third"},
        {"frame": 1.5},
        {"frame": [1]},
        {"frame": 7},
        {"frame": True},
        {"frame": "²"},
        {"frame": 10**400},
        {"foreground": [[10**400, 5, 0]]},
        {"result_extension": ".exe"},
        {"result_extension": "../../x.nrrd"},
        {"result_extension": 3},
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_types_and_values(server, request_):
    refused(infer(server, "sam_refiner", params=request_))


@pytest.mark.parametrize("point", ["[NaN, 5, 0]", "[5, Infinity, 0]", "[1e400, 5, 0]"])
def test_points_that_are_not_finite(server, point):
    refused(infer(server, "sam_refiner", params=f'{{"foreground": [{point}]}}'), "finite")


@pytest.mark.parametrize("point", [[-5, 5, 0], [5, 97.5, 0], [131.5, 5, 0], [10, 10, 1], [10, 10, -1], [1e9, 1e9, 0]])
def test_points_outside_are_refused_with_the_size(server, point):
    detail = refused(infer(server, "sam_refiner", params={"background": [point]}))
    assert "130 x 96" in detail or "0..0" in detail


def test_a_cine_wants_to_know_the_frame(server):
    refused(infer(server, "sam_refiner", "cine", {"foreground": [[10, 10]]}), "k in 0..3")
    refused(infer(server, "ultrarefiner", "cine", {"result_extension": ".png"}), "frame=k")
    refused(infer(server, output="dicom_seg"), "not a DICOM file")
    refused(infer(server, output="nonsense"))


PATHS = ["/etc/passwd", "../secret", "..", "a/../../secret", "..\\secret", "/", "a/b", ".hidden", "a\x00b", "~/../x"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("times", [1, 2])
def test_paths_in_names_lead_nowhere(server, name, times):
    encoded = name
    for _ in range(times):
        encoded = quote(encoded, safe="")
    for method, path in [
        ("POST", f"/infer/ultrarefiner?image={encoded}"),
        ("PUT", f"/datastore/image?image={encoded}"),
        ("PUT", f"/datastore/label?image=grey&tag={encoded}"),
        ("PUT", f"/datastore/label?image={encoded}&tag=final"),
        ("GET", f"/datastore/image?image={encoded}"),
        ("GET", f"/datastore/label?label=grey&tag={encoded}"),
        ("GET", f"/datastore/label?label={encoded}&tag=final"),
        ("DELETE", f"/datastore/label?id=grey&tag={encoded}"),
        ("DELETE", f"/datastore/image?id={encoded}"),
        ("POST", f"/infer/ultrarefiner?session_id={encoded}"),
    ]:
        upload = {"file": ("x.png", b"x"), "label": ("x.nii.gz", b"x")} if method == "PUT" else None
        data = {"params": "{}"} if method in ("POST", "PUT") else None
        answer = requests.request(method, server.url + path, files=upload, data=data)
        assert 400 <= answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        assert "root:" not in answer.text


@pytest.mark.parametrize("path", ["/session/..", "/session/%2e%2e", "/ohif/%2e%2e/%2e%2e", "/model/..", "/static/../x"])
def test_paths_in_addresses_lead_nowhere(server, path):
    """Sent as they are: a polite client would resolve the dots itself."""
    for method in ("GET", "DELETE"):
        connection = http.client.HTTPConnection(urlparse(server.url).netloc)
        connection.request(method, path)
        answer = connection.getresponse()
        assert 400 <= answer.status < 500 and b"root:" not in answer.read()


def test_params_cannot_choose_another_image(server):
    for image in ("/etc/passwd", "photo", ["grey"]):
        refused(infer(server, params={"image": image}), "params")
    for name in ("image_id", "model", "image_path", "device", "bundle_path"):
        refused(infer(server, params={name: "x"}), name, "known: foreground")
    assert infer(server, params={"image": "grey"}, output="json").status_code == 200


def test_batches_cannot_write_under_a_path(server):
    url = f"{server.url}/batch/infer/transunet?run_sync=true"
    refused(requests.post(url, json={"images": ["grey"], "label_tag": "../../x"}), "label_tag")
    refused(requests.post(url, json={"images": ["/etc/passwd"]}))
    refused(requests.post(url, json={"images": 5}), "images")
    refused(requests.post(url, json=[1]))


def test_a_zip_in_a_picture_never_becomes_a_module(server, tmp_path):
    """MONAI Label puts ``bundle_path`` on the path of a process that imports: a zip at the end of a PNG is a module."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("sitecustomize.py", code)
    content = (server.studies / "grey.png").read_bytes() + archive.getvalue()
    put = requests.put(f"{server.url}/datastore/image?image=module", files={"file": ("module.png", content)})
    try:
        for extra in (
            {"bundle_path": str(server.studies / "module.png")},
            {"gpus": 5},
            {"gpus": "0"},
            {"max_workers": 9},
        ):
            (name,) = extra
            refused(
                requests.post(f"{server.url}/batch/infer/transunet", json={"images": ["grey"], **extra}), name, "known:"
            )
        assert requests.get(f"{server.url}/batch/infer").status_code == 404  # nothing was begun
        assert not (tmp_path / "ran").exists()
    finally:
        if put.ok:
            requests.delete(f"{server.url}/datastore/image?id=module").raise_for_status()
    refused(requests.post(f"{server.url}/batch/infer/transunet", json={"images": ["nobody"]}), "nobody")


def test_names_in_the_address_that_are_not_known(server):
    """A slip of the pen must not save under the tag that is the default."""
    files = {"label": ("l.png", (server.studies / "grey.png").read_bytes())}
    refused(requests.put(f"{server.url}/datastore/label?image=grey&tagg=draft", files=files), "tagg", "tag")
    refused(requests.get(f"{server.url}/info/?x=1"), "x")
    assert requests.get(f"{server.url}/ohif/viewer?StudyInstanceUIDs=1.2").status_code == 200


def test_next_samples_and_sessions_take_what_is_known(server):
    first = f"{server.url}/activelearning/first"
    refused(requests.post(first, json={"path": "/etc"}), "path", "client_id")
    for client in ("\ud800", "a\nb", 7, "x" * 300):
        refused(requests.post(first, data=json.dumps({"client_id": client})))
        refused(infer(server, params={"client_id": client}))
    assert requests.post(first, json={"client_id": None}).status_code == 200


@pytest.mark.parametrize("lines", ["9" * 400, "0", "-1", "10001", "x", "1e9", ""])
def test_the_log_comes_in_pieces(server, lines):
    refused(requests.get(f"{server.url}/logs/?lines={lines}"))
    answer = requests.get(f"{server.url}/logs/?lines=10000&text=true")
    assert answer.status_code == 200 and 0 < len(answer.content) <= 1 << 20
    page = requests.get(f"{server.url}/logs/?lines=5")
    assert page.headers["content-type"].startswith("text/html") and "http" not in page.text.split("<pre>")[0]
    refused(requests.get(f"{server.url}/logs/?refresh={'9' * 400}"))


@pytest.mark.parametrize(
    "path", [".", "./", "assets", "assets/", "assets/.", "", "%ED%A0%80", "a" * 3000, "%0A", "a/" * 200]
)
def test_the_viewer_opens_no_folder(server, path):
    connection = http.client.HTTPConnection(urlparse(server.url).netloc)
    connection.request("GET", f"/ohif/{path}")
    answer = connection.getresponse()
    assert answer.status < 500 and (answer.status != 200 or b"<!doctype html>" in answer.read()[:40].lower())
    for mounted in ("", ".", "ohif", "ohif/", "a" * 3000, "%ED%A0%80"):
        assert 400 <= requests.get(f"{server.url}/static/{mounted}").status_code < 500


def test_what_is_told_holds_no_paths(server):
    """The fixture looks into each reply."""
    image = {"files": ("a.png", (server.studies / "grey.png").read_bytes())}
    session = requests.put(f"{server.url}/session/", files=image).json()
    assert session["session_info"]["image"] == "a.png"
    requests.post(f"{server.url}/batch/infer/transunet?run_sync=true", json={"images": ["grey"], "label_tag": "told"})
    requests.post(f"{server.url}/batch/infer/transunet", json={"images": ["broken.png"], "label_tag": "told"})
    for path in [
        "/",
        "/info/",
        "/datastore/",
        "/datastore/?output=all",
        "/datastore/image/info?image=grey",
        "/datastore/label/info?label=grey&tag=told",
        f"/session/{session['session_id']}",
        "/batch/infer",
        "/batch/infer?all=true",
        "/train/",
        "/logs/?lines=10000&text=true",
        "/openapi.json",
        "/model/info/transunet",
        "/docs",
    ]:
        assert requests.get(server.url + path).status_code < 500
    requests.delete(f"{server.url}/session/{session['session_id']}").raise_for_status()
    requests.delete(f"{server.url}/batch/infer")


def test_doors_of_the_real_server(server):
    address = f"{server.url}/datastore/image?id=grey"
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            refused(requests.request(method, address, headers=headers))
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "http://evil.example"}
    for path in ("/train/", "/train/transunet", "/batch/infer/transunet", "/activelearning/first", "/reload"):
        refused(requests.post(server.url + path, headers=form, data="x=1"), "cors_origins")
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "eA==",
    }
    assert requests.get(f"{server.url}/nothing", headers=upgrade).status_code in (400, 403, 404)
    assert (server.studies / "grey.png").is_file()


def test_uploads_that_are_no_images(server):
    put = f"{server.url}/datastore/image?image=fresh"
    refused(requests.put(put, files={"file": ("evil.py", b"print()")}), "evil.py")
    refused(requests.put(put, files={"file": ("fresh.png", b"no picture")}), "fresh.png")
    refused(requests.put(put, files={"file": ("fresh.png", b"")}), "empty")
    refused(requests.put(put, data={"params": "{}"}))
    assert not (server.studies / "fresh.png").exists()
    session = f"{server.url}/session/"
    refused(requests.put(session, files={"files": ("evil.zip", b"PK")}))
    refused(requests.put(session, files={"files": ("a.png", b"no picture")}), "a.png")
    refused(requests.put(session + "?uncompress=true", files={"files": ("a.png", b"x")}), "archive")
    refused(requests.post(f"{server.url}/infer/ultrarefiner", files={"file": ("a.dcm", b"x" * 200)}))


def test_labels_that_are_none(server):
    put = f"{server.url}/datastore/label?image=grey&tag=bad"
    for name, content in [("l.nii.gz", b"junk"), ("l.nrrd", b""), ("l.jpg", b"\xff\xd8"), ("l.txt", b"1")]:
        refused(requests.put(put, files={"label": (name, content)}))
    refused(requests.put(put, files={"label": ("l.nrrd", b"x")}, data={"params": "[1]"}), "params")
    missing = put.replace("grey", "nobody")
    refused(requests.put(missing, files={"label": ("l.nrrd", b"x")}), "nobody")
    assert not (server.studies / "labels" / "bad").exists()
    info = f"{server.url}/datastore/label/info?label=grey&tag=nothing"
    refused(requests.put(info, data={"info": "{}"}), "nothing")
    refused(requests.put(f"{server.url}/datastore/image/info?image=grey", data={"info": "[1"}), "info")


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"', "[" * 300 + "]" * 300, "1" * 400])
def test_info_that_would_spoil_the_index(server, value):
    for address, field in [
        ("datastore/image/info?image=grey", "info"),
        ("datastore/updatelabelinfo?label=grey&tag=final", "params"),
    ]:
        refused(requests.put(f"{server.url}/{address}", data={field: f'{{"x": {value}}}'}))
    files = {"label": ("l.png", (server.studies / "grey.png").read_bytes())}
    put = f"{server.url}/datastore/label?image=grey&tag=odd"
    refused(requests.put(put, files=files, data={"params": f'{{"x": {value}}}'}))
    assert requests.get(f"{server.url}/datastore/?output=all").status_code == 200


def test_info_under_the_servers_own_key(server):
    requests.put(f"{server.url}/datastore/image/info?image=grey", data={"info": '{"strategy": "x"}'}).raise_for_status()
    for _ in range(3):
        assert requests.post(f"{server.url}/activelearning/first", json={}).status_code == 200


def test_long_names_in_many_bytes(server):
    name = "ä" * 200
    content = (server.studies / "grey.png").read_bytes()
    refused(requests.put(f"{server.url}/datastore/image?image={name}", files={"file": ("x.png", content)}), "name")
    answer = requests.post(
        f"{server.url}/infer/transunet?output=json", files={"file": (name + ".png", content, "image/png")}
    )
    assert answer.status_code == 200  # the name of an upload that is not kept does not matter


def test_check_sums_and_archives(server):
    head = f"{server.url}/datastore/image?image=grey&check_sum="
    digest = hashlib.sha256((server.studies / "grey.png").read_bytes()).hexdigest()
    assert [requests.head(head + s).status_code for s in ("", digest, f"SHA256:{digest}")] == [200] * 3
    assert [requests.head(head + s).status_code for s in ("0" + digest[1:], "CRC:12")] == [404, 400]
    archive = requests.get(f"{server.url}/datastore/dataset")
    assert archive.status_code in (200, 400)
    assert not list((server.studies / ".ultrarefiner" / "tmp").glob("*.zip"))


def test_text_beyond_the_limit(server):
    text = json.dumps({"x": "y" * (5 << 20)})
    assert requests.post(f"{server.url}/activelearning/first", data=text).status_code == 413
    assert infer(server, params=text).status_code == 413


def test_an_upload_beyond_the_limit_is_refused_and_not_kept(server, tmp_path):
    big = tmp_path / "big.png"
    with big.open("wb") as file:
        file.truncate(30 << 20)
    for _ in range(2):
        with big.open("rb") as file:
            answer = requests.put(f"{server.url}/datastore/image?image=big", files={"file": ("big.png", file)})
        assert answer.status_code == 413
        refused(answer, "8 MB")

    def pieces():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.png"\r\n\r\n'
        for _ in range(20):
            yield bytes(1 << 20)
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = requests.put(f"{server.url}/datastore/image?image=big", data=pieces(), headers=headers)
    assert answer.status_code == 413
    assert not (server.studies / "big.png").exists()
    assert not list((server.studies / ".ultrarefiner" / "tmp").glob("*"))


def test_an_image_beyond_the_pixel_limit(server):
    """64 million pixels a frame at most: 100 kB of file would become gigabytes."""
    image = Image.fromarray(np.zeros((1, 1), np.uint8)).resize((9000, 8000))
    path = server.studies / "huge.png"
    try:
        image.save(path)
        for _ in range(200):
            if "huge" in requests.get(f"{server.url}/datastore/?output=all").json()["objects"]:
                break
            time.sleep(0.1)
        refused(infer(server, image="huge"), "9000 x 8000")
    finally:
        path.unlink()


def test_weights_and_logs_are_not_for_clients(server):
    refused(requests.put(f"{server.url}/model/ultrarefiner", files={"file": ("m.pt", b"x")}))
    refused(requests.delete(f"{server.url}/model/ultrarefiner"))
    refused(requests.post(f"{server.url}/reload"))
    refused(requests.post(f"{server.url}/proxy/dicom/studies", data=b"x"), "folder")


def test_other_origins_are_not_allowed(server):
    answer = requests.get(f"{server.url}/info/", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
