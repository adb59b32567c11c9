"""What a disk or a share does wrong is answered in words, with a status that tells whose fault it is."""

from __future__ import annotations

import errno
import os
import resource

import app_server  # noqa: F401 (puts the app on the path)
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from lib.routes.errors import error_handlers
from lib.routes.saving import SavingDoor, saved_by
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies.availability import StudiesAway
from ultrarefiner_monai.studies.failures import LABEL


def make_server(work, check=lambda: None) -> TestClient:
    server = FastAPI()
    server.exception_handlers.update(error_handlers())
    server.add_middleware(SavingDoor, check=check)
    for path in ("/datastore/label", "/datastore/image", "/auth/token"):
        server.add_api_route(path, work, methods=["GET", "PUT", "POST"])
    return TestClient(server, raise_server_exceptions=False)


def test_a_process_that_may_write_no_more_bytes_answers_507(tmp_path):
    """The error that the kernel gives, not one that we make."""
    target = tmp_path / "label"
    target.write_bytes(b"before")

    def write() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with replacing(target) as file:
                file.write(b"x" * 100_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    answer = make_server(write).put("/datastore/label")
    assert answer.status_code == 507 and "Your outline is not saved" in answer.json()["detail"]
    assert os.listdir(tmp_path) == ["label"] and target.read_bytes() == b"before"


def test_a_good_image_on_a_bad_disk_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(app_server.encoded(app_server.Image.fromarray(app_server.picture(1)), "PNG"))
    damaged = tmp_path / "b.png"
    damaged.write_bytes(path.read_bytes()[:300])
    assert make_server(lambda: read_image_file(damaged).frame(0)).get("/datastore/image").status_code == 400

    def bad(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(app_server.Image, "open", bad)
    answer = make_server(lambda: read_image_file(path)).get("/datastore/image")
    assert answer.status_code == 503 and "damaged" not in answer.text and str(tmp_path) not in answer.text


def test_no_room_for_the_upload_itself_is_not_called_a_bad_body():
    def fail() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise HTTPException(400, "There was an error parsing the body") from error

    assert make_server(fail).put("/datastore/label").status_code == 507
    assert (
        make_server(lambda: (_ for _ in ()).throw(HTTPException(418, "x"))).put("/datastore/label").status_code == 418
    )


def test_the_door_lets_nothing_in_that_could_save_while_the_studies_are_away():
    came: list[int] = []

    def away() -> None:
        raise StudiesAway("the folder with the studies is away (it is not there)")

    server = make_server(lambda: came.append(1), away)
    answer = server.put("/datastore/label", files={"label": b"x" * 3_000_000})
    assert answer.status_code == 503 and "is away" in answer.text and "Keep 3D Slicer open" in answer.text
    assert server.post("/datastore/image", json={}).status_code == 503 and not came
    assert server.get("/datastore/image").status_code == 200 and server.post("/auth/token").status_code == 200


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/datastore/label", LABEL),
        ("/datastore/", "The image"),
        ("/session/", "The image"),
        ("/datastore/label/info", "The information"),
    ],
)
def test_what_was_to_be_saved(path, what):
    assert saved_by("PUT", path) == what and saved_by("GET", path) == ""
