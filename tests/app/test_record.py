"""What the journal of a running server says of a label: since when its image was looked at, what was offered first, what was
clicked. And the notes in the journal that nobody waits for."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from app_server import Server, eventually, picture, start
from PIL import Image
from small_studies import LABEL

from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.journal_table import Row, table_rows


class Seat:
    """One client of a server, under a name of its own."""

    def __init__(self, server: Server, name: str):
        self.server, self.name = server, name

    def post(self, path: str, params: dict[str, Any] | None = None) -> requests.Response:
        values = {"params": json.dumps({"client_id": self.name, **(params or {})})}
        answer = requests.post(f"{self.server.url}{path}", data=values, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer

    def next(self) -> str:
        answer = requests.post(f"{self.server.url}/activelearning/first", json={"client_id": self.name}, timeout=60)
        return answer.json()["id"]

    def save(self, image: str) -> None:
        answer = requests.put(
            f"{self.server.url}/datastore/label?image={image}",
            data={"params": json.dumps({"client_id": self.name})},
            files={"label": ("label.png", LABEL)},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text


def rows_of(server: Server, image: str) -> list[Row]:
    journal = Journal(server.studies / ".ultrarefiner" / "journal.sqlite")
    try:
        return list(table_rows(journal, image))
    finally:
        journal.close()


@pytest.fixture
def server(tmp_path: Path, checkpoint: Path) -> Any:
    (tmp_path / "studies").mkdir()
    for k, name in enumerate("abcd"):
        Image.fromarray(picture(k)).save(tmp_path / "studies" / f"{name}.png")
    running = start(tmp_path / "studies", checkpoint, tmp_path)
    yield running
    running.stop()


@pytest.mark.server
def test_a_label_stands_with_all_that_came_before_it(server: Server) -> None:
    one, two = Seat(server, "one"), Seat(server, "two")

    # As 3D Slicer: the next sample, its outline, clicks, saved. Then once more, with a click more.
    begun = time.monotonic()
    image = one.next()
    time.sleep(1.2)
    one.post(f"/infer/ultrarefiner?image={image}")
    one.post(f"/infer/sam_refiner?image={image}", {"foreground": [[40, 40, 0], [60, 50, 0]], "background": [[5, 5, 0]]})
    one.save(image)
    took = time.monotonic() - begun
    one.post(f"/infer/sam_refiner?image={image}", {"foreground": [[40, 40, 0]], "roi": [20, 80, 20, 70]})
    one.save(image)
    first, again = rows_of(server, image)
    assert 1.2 <= float(first["seconds"]) <= took + 0.1 and float(again["seconds"]) < took
    counts = ("foreground_clicks", "background_clicks", "boxes")
    assert [[row[name] for name in counts] for row in (first, again)] == [["2", "1", "0"], ["1", "0", "1"]]
    assert (first["superseded"], again["superseded"]) == ("1", "0")
    for row in (first, again):
        assert (row["model"], row["first_model"], row["author"]) == ("sam_refiner", "ultrarefiner", "one")
        assert row["version"] == row["first_version"] != "" and 0 <= float(row["dice_first"]) <= 1

    # Fetched without a name, and saved without one.
    other = next(name for name in "abcd" if name != image)
    assert requests.get(f"{server.url}/datastore/image?image={other}", timeout=60).status_code == 200
    assert requests.head(f"{server.url}/datastore/image?image={image}", timeout=60).status_code == 200
    time.sleep(0.3)
    Seat(server, "").save(other)
    (row,) = rows_of(server, other)
    assert float(row["seconds"]) >= 0.3 and row["first_model"] == "" == row["dice_first"] and row["clicks"] == ""

    # A session is noted with the hash of its file, by which it is known should the file join the studies.
    with (server.studies / "c.png").open("rb") as file:
        answer = requests.put(f"{server.url}/session/", files={"files": ("x.png", file)}, timeout=60)
    session = answer.json()["session_id"]
    two.post(f"/infer/ultrarefiner?session_id={session}")
    journal = Journal(server.studies / ".ultrarefiner" / "journal.sqlite")
    try:
        assert eventually(lambda: journal.rows("SELECT 1 FROM shown WHERE image_id = ?", (f"session:{session}",)))
    finally:
        journal.close()
    two.save("c")
    (row,) = rows_of(server, "c")
    assert row["first_model"] == "ultrarefiner" and row["seconds"] != ""
    shown = [
        r[0] for r in Journal(server.studies / ".ultrarefiner" / "journal.sqlite").rows("SELECT image_id FROM shown")
    ]
    assert shown == [image, other, f"session:{session}"], "what is only asked about was not shown"


def test_a_note_waits_for_nobody_and_fails_nobody(tmp_path: Path) -> None:
    queue, free = JournalQueue(tmp_path / "journal.sqlite"), threading.Event()
    queue.submit(lambda journal: free.wait(60))
    begun = time.monotonic()
    for k in range(200):  # more than there is room for
        queue.note(lambda journal, k=k: journal.note_shown(f"a{k}", ""))
    assert time.monotonic() - begun < 5 and queue.problem == ""
    free.set()
    queue.flush()
    count = queue.ask(lambda journal: len(journal.rows("SELECT id FROM shown")))
    assert 10 < count < 200
    queue.note(lambda journal: journal.note_shown("later", ""))  # there is room again
    assert queue.ask(lambda journal: len(journal.rows("SELECT id FROM shown"))) == count + 1
    queue.close()
    queue.note(lambda journal: journal.note_shown("too late", ""))
    assert queue.problem == ""


def test_a_note_of_a_file_that_is_gone_is_left_out(tmp_path: Path) -> None:
    queue = JournalQueue(tmp_path / "journal.sqlite")
    queue.note(lambda journal: journal.note_shown("a", "", (tmp_path / "gone").read_text()))
    queue.flush()
    queue.note(lambda journal: journal.note_shown("b", ""))
    assert queue.ask(lambda journal: journal.rows("SELECT image_id FROM shown")) == [("b",)]
    assert queue.problem == ""
