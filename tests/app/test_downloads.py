"""A file that is replaced while somebody fetches it arrives whole: as it was, or as it is."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import app_server  # noqa: F401 (puts the app on the path)
import pytest
from clinic import Clinic, label_at
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from fastapi.testclient import TestClient
from monailabel.interfaces.exception import LabelNotFoundException

from lib.routes.files import sent, sent_at_once
from ultrarefiner_monai.studies.names import split_name


async def body_of(response) -> bytes:
    return b"".join([chunk async for chunk in response.body_iterator])


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_what_was_opened_is_sent_whatever_happens_to_the_path(tmp_path: Path, size: int) -> None:
    path, content = tmp_path / "l.nii.gz", os.urandom(size)
    for what in ("replaced", "removed", "grown"):
        path.write_bytes(content)
        response = sent(path.open("rb"), path.name)
        if what == "replaced":
            (tmp_path / "new").write_bytes(b"a shorter one")
            os.replace(tmp_path / "new", path)
        elif what == "removed":
            path.unlink()
        else:
            with path.open("ab") as file:
                file.write(b"more")
        assert asyncio.run(body_of(response)) == content, what
        assert response.headers["content-length"] == str(size)


@pytest.mark.parametrize("name", ["l.png", "Läsion 1.nii.gz", "a;b=c.nrrd"])
def test_a_download_has_the_headers_of_the_one_that_it_stands_for(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    server = FastAPI()
    server.add_api_route("/theirs", lambda: FileResponse(tmp_path / name, filename=name), response_model=None)
    server.add_api_route("/ours", lambda: sent((tmp_path / name).open("rb"), name), response_model=None)
    client = TestClient(server)
    theirs, ours = client.get("/theirs"), client.get("/ours")
    assert ours.content == theirs.content == b"content"
    for key in ("content-length", "last-modified", "content-disposition"):
        assert ours.headers[key] == theirs.headers[key]


def test_a_file_that_goes_before_it_is_opened_is_looked_for_again(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"content")
    names = iter(["gone", "there"])
    assert asyncio.run(body_of(sent_at_once(lambda: FileResponse(tmp_path / next(names))))) == b"content"
    with pytest.raises(HTTPException) as caught:
        sent_at_once(lambda: FileResponse(tmp_path / "gone"))
    assert caught.value.status_code == 503


def test_a_label_is_always_there_while_others_are_saved(tmp_path: Path) -> None:
    """Also in the moment in which one of another type has been moved away."""
    clinic = Clinic(tmp_path / "clinic")
    clinic.save(2)
    types = (".nii.gz", ".png")
    whole = {label_at(tmp_path, value, types[value % 2]).read_bytes() for value in range(1, 9)}
    done = threading.Event()

    def save() -> None:
        try:
            for n in range(40):
                value = 1 + n % 8
                clinic.save(value, types[value % 2])
        finally:
            done.set()

    writer = threading.Thread(target=save)
    writer.start()
    read = 0
    while not done.wait(0.001):
        file, name = clinic.store.open_label("a", "final")
        with file:
            content = file.read()
        assert content in whole
        assert split_name(name, types) == ("a", ".png" if content[:4] == b"\x89PNG" else ".nii.gz")
        read += 1
    writer.join()
    assert read > 10
    for image, tag in (("a", "draft"), ("none", "final")):
        with pytest.raises(LabelNotFoundException):
            clinic.store.open_label(image, tag)
