"""Images that were handed out are computed before the first click: what is there then, and what never gets in the way."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from app_server import APP, Server, picture, save_tiny_system

from ultrarefiner_monai.config import ServeConfig
from ultrarefiner_monai.core.cache import EmbeddingCache, image_key
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.work_folder import WorkFolder, forget

sys.path.insert(0, str(APP))
from lib.tasks.answers import Engine  # noqa: E402
from lib.tasks.infers import LesionTask  # noqa: E402
from lib.tasks.prepare import MOST_IMAGES, Preparer, frame_order  # noqa: E402
from lib.tasks.served import Served  # noqa: E402

FRAMES = 5


@dataclass
class Desk:
    """Studies with cines, an engine and what prepares for it. done: (sha256, frame), as they were computed."""

    studies: Path
    engine: Engine
    preparer: Preparer
    done: list[tuple[str, int]] = field(default_factory=list)
    before: Callable[[], Any] = lambda: None
    after: Callable[[], Any] = lambda: None

    def open(self, name: str) -> str:
        path = self.studies / f"{name}.dcm"
        if not path.exists():
            frames = np.stack([picture(10 * ord(name) + k) for k in range(FRAMES)])
            path.write_bytes(
                dicom_bytes(frames, ord(name), 0.1, regions=[(0, 0, 79, 95, "tissue"), (80, 0, 129, 95, "tissue")])
            )
        self.preparer.open(name, lambda: path)
        return self.engine.open(path).sha256

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while self.preparer.left():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def click(self, name: str, k: int = 1, **request: Any) -> dict[str, Any]:
        task = LesionTask("sam_refiner", "interact", self.engine, "")
        request = {"image": str(self.studies / f"{name}.dcm"), "image_id": name, "foreground": [[40, 40, k]], **request}
        outline = task.outline(request)
        return {**outline.reply, "content": outline.content}

    def frames(self, sha256: str) -> list[int]:
        return [k for s, k in self.done if s == sha256]

    def stored(self, name: str) -> set[str]:
        """Cache files of the image's frames."""
        image_file = self.engine.read(self.studies / f"{name}.dcm")
        keys = {
            image_key(np.ascontiguousarray(image_file.frame(k)[r]))
            for k in range(FRAMES)
            for r in image_file.regions_of(k)
        }
        assert len(keys) == 2 * FRAMES
        return {p.name for p in self.engine.work.embeddings.glob("*") if p.name[:32] in keys}


def make_desk(folder: Path, checkpoint: Path, enabled: bool = True) -> Desk:
    studies = folder / "studies"
    studies.mkdir(parents=True)
    work, config = WorkFolder.of(studies), ServeConfig(weights=str(checkpoint), threads=1, device="cpu")
    engine = Engine(Served(APP, config, work), config, work, JournalQueue(work.journal))
    desk = Desk(studies, engine, Preparer(engine, enabled))
    answer = engine.answer

    def watched(predictor: Any, opened: Any, k: int, *rest: Any) -> Any:
        if threading.current_thread().name.startswith("prepare"):
            desk.before()
            desk.done.append((opened.sha256, k))
            try:
                return answer(predictor, opened, k, *rest)
            finally:
                desk.after()
        return answer(predictor, opened, k, *rest)

    engine.answer = watched  # type: ignore[method-assign]
    return desk


@pytest.fixture
def desk(tmp_path: Path, checkpoint: Path) -> Desk:
    return make_desk(tmp_path, checkpoint)


def test_the_first_click_on_any_frame_of_any_region_is_answered_from_the_cache(
    desk: Desk, tmp_path, checkpoint
) -> None:
    sha256 = desk.open("a")
    desk.wait()
    assert desk.frames(sha256) == [2, 0, 1, 3, 4] == frame_order(FRAMES)
    assert desk.engine.journal.ask(lambda journal: journal.proposals()) == []
    for place in ([40, 40, 1], [100, 40, 4]):
        reply = desk.click("a", foreground=[place])
        assert reply["timings"]["cached"] == 1.0 and reply["timings"]["encode"] == reply["timings"]["coarse"] == 0
    plain = make_desk(tmp_path / "plain", checkpoint, enabled=False)
    plain.open("a")
    assert plain.preparer.left() == 0 and not plain.stored("a")
    unprepared = plain.click("a", foreground=[[100, 40, 4]])
    assert unprepared["timings"]["cached"] == 0.0 and unprepared["content"] == reply["content"]


def test_the_image_opened_last_comes_first_and_few_wait(desk: Desk) -> None:
    begun, hold = threading.Event(), threading.Event()
    desk.before = lambda: (begun.set(), hold.wait(30))
    names = "abcdef"[: MOST_IMAGES + 2]
    first = desk.open(names[0])
    begun.wait(30)
    hashes = [first, *(desk.open(name) for name in names[1:])]
    desk.open(names[2])  # again: to the front
    hold.set()
    desk.wait()
    assert desk.done[0] == (first, 2)
    order = list(dict.fromkeys(s for s, _ in desk.done[1:]))
    assert order == [hashes[2], *reversed(hashes[3:])]
    assert len(desk.done) == 1 + MOST_IMAGES * FRAMES, "the two oldest ones were given up"


def test_an_older_image_goes_on_afterwards_and_no_frame_is_computed_twice(desk: Desk) -> None:
    begun, hold = threading.Event(), threading.Event()
    desk.before = lambda: (begun.set(), hold.wait(30))
    one = desk.open("a")
    begun.wait(30)
    two = desk.open("b")
    hold.set()
    desk.wait()
    order = frame_order(FRAMES)
    assert desk.done == [(one, order[0]), *((two, k) for k in order), *((one, k) for k in order[1:])]


def test_no_frame_begins_while_a_request_computes(desk: Desk) -> None:
    with desk.preparer.request():
        with desk.preparer.request():
            desk.open("a")
        time.sleep(0.2)
        assert desk.done == [] and desk.preparer.left()
    desk.wait()
    assert len(desk.done) == FRAMES
    begun, hold = threading.Event(), threading.Event()
    desk.before = lambda: (begun.set(), hold.wait(30))
    other = desk.open("b")
    begun.wait(30)
    with desk.preparer.request():
        hold.set()
        time.sleep(0.3)
        assert len(desk.frames(other)) == 1, "the frame in work is finished, the next one waits"
    desk.wait()


@pytest.mark.parametrize(("kept", "computed"), [(0, 1), (2, 2), (100, FRAMES)])
def test_no_more_frames_are_computed_than_the_cache_holds(desk: Desk, kept: int, computed: int) -> None:
    desk.open("x")
    desk.wait()
    frame = desk.engine.served.cache.usage()["ram_bytes"] // FRAMES
    desk.done.clear()
    served = desk.engine.served
    served.cache = EmbeddingCache(kept * frame + frame // 2)
    served.now().cache = served.cache
    sha256 = desk.open("a")
    desk.wait()
    assert len(desk.frames(sha256)) == computed
    if kept == 2:  # what the newest image took is not the older one's
        assert desk.click("a", frame_order(FRAMES)[0])["timings"]["cached"] == 0.0  # the other frames were asked for
        begun, hold = threading.Event(), threading.Event()
        desk.before = lambda: (begun.set(), hold.wait(30))
        old = desk.open("b")
        begun.wait(30)
        new = desk.open("c")
        hold.set()
        desk.wait()
        assert len(desk.frames(old)) == 1 and len(desk.frames(new)) == 2


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("frame", [0, FRAMES - 1])
def test_an_image_that_is_forgotten_meanwhile_leaves_nothing_behind(desk: Desk, moment: str, frame: int) -> None:
    desk.open("b")
    desk.wait()
    others, count = desk.stored("b"), iter(range(100))
    assert len(others) == 2 * 2 * FRAMES

    def now() -> None:
        if next(count) == frame:
            forget(desk.studies, "a")

    setattr(desk, moment, now)
    sha256 = desk.open("a")
    desk.wait()
    assert len(desk.frames(sha256)) == frame + 1
    assert desk.stored("a") == set() and desk.stored("b") == others
    cache = desk.engine.served.cache
    assert cache.usage()["ram_entries"] == len(others)
    assert desk.engine.journal.ask(lambda journal: journal.prepared("a")) == set()
    assert not any(key[1] == sha256 for key in desk.engine._results)
    assert desk.click("a")["timings"]["cached"] == 0.0


def test_an_image_that_is_forgotten_while_it_waits_is_not_begun(desk: Desk) -> None:
    begun, hold = threading.Event(), threading.Event()
    desk.before = lambda: (begun.set(), hold.wait(30))
    desk.open("a")
    begun.wait(30)
    waiting = desk.open("b")
    desk.engine.journal.flush()
    forget(desk.studies, "b")
    hold.set()
    desk.wait()
    assert len(desk.done) == FRAMES and desk.frames(waiting) == []
    assert desk.engine.journal.ask(lambda journal: journal.prepared("b")) == set()
    desk.open("b")
    desk.wait()
    assert len(desk.frames(waiting)) == FRAMES, "opened again"


def test_what_is_prepared_is_forgotten_although_nobody_ever_asked(desk: Desk) -> None:
    desk.open("a")
    desk.wait()
    assert forget(desk.studies, "a").embeddings == len(desk.engine.served.cache._ram) == 4 * FRAMES
    assert desk.stored("a") == set() and desk.click("a")["timings"]["cached"] == 0.0


def test_another_model_in_between_is_prepared_for_anew(desk: Desk, tmp_path: Path) -> None:
    served, other = desk.engine.served, save_tiny_system(tmp_path / "other.safetensors", seed=2)
    new = Served(APP, ServeConfig(weights=str(other), threads=1, device="cpu"), desk.engine.work)
    new.cache = served.cache
    predictor = new.latest()

    def switch() -> None:
        if len(desk.done) == 3:
            assert served._serving is not None
            served._serving = replace(served._serving, champion=predictor, predictor=predictor)

    desk.after = switch
    sha256 = desk.open("a")
    desk.wait()
    assert desk.frames(sha256) == [*frame_order(FRAMES)[:3], *frame_order(FRAMES)]
    reply = desk.click("a")
    assert reply["version"] == predictor.system.version and reply["timings"]["cached"] == 1.0


def test_what_cannot_be_prepared_is_logged_once_and_stops_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        desk.preparer.open("gone", lambda: desk.studies / "gone.dcm")
        desk.wait()
    sha256 = desk.open("a")
    desk.wait()
    assert len(desk.frames(sha256)) == FRAMES
    assert [r.message[:20] for r in caplog.records if "prepared" in r.message] == ["gone is not prepared"]


def test_the_end_of_the_process_is_silent(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    begun, hold = threading.Event(), threading.Event()
    desk.before = lambda: (begun.set(), hold.wait(30))
    desk.open("a")
    begun.wait(30)
    for pool in (desk.preparer._pool, desk.engine.journal._pool):  # as the interpreter does
        pool.shutdown(wait=False)
    hold.set()
    desk.preparer._pool.shutdown(wait=True)
    assert len(desk.done) == 1 and not [r for r in caplog.records if r.levelno > logging.INFO]
    desk.open("b")
    assert len(desk.done) == 1


@pytest.mark.server
def test_the_server_prepares_what_it_hands_out(server: Server) -> None:
    def settle() -> None:
        deadline = time.monotonic() + 120
        while requests.get(f"{server.url}/info/").json()["serving"]["preparing"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def first_click(target: str) -> float:
        settle()
        data = {"params": '{"foreground": [[20, 20, 0]]}'}
        answer = requests.post(f"{server.url}/infer/sam_refiner?{target}&output=json", data=data)
        assert answer.status_code == 200, answer.text
        return answer.json()["timings"]["cached"]

    # Pixels that no other test shows to this server.
    for number, name in enumerate(("prepare1", "prepare2", "prepare3")):
        frames = np.stack([picture(900 + 10 * number + k) for k in range(3)])
        (server.studies / f"{name}.dcm").write_bytes(dicom_bytes(frames, 90 + number, 0.1))
    try:
        deadline = time.monotonic() + 30
        while "prepare3" not in requests.get(f"{server.url}/datastore/?output=all").json()["objects"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert first_click("image=prepare3") == 0.0, "nothing is prepared that was not handed out"
        fetched = requests.get(f"{server.url}/datastore/image?image=prepare1")
        assert fetched.content == (server.studies / "prepare1.dcm").read_bytes()
        assert first_click("image=prepare1") == 1.0
        for _ in range(60):
            if requests.post(f"{server.url}/activelearning/first").json()["id"] == "prepare2":
                break
        assert first_click("image=prepare2") == 1.0
        with (server.studies / "cine.dcm").open("rb") as file:
            session = requests.put(f"{server.url}/session/", files={"files": ("one.dcm", file)}).json()["session_id"]
        assert first_click(f"session_id={session}") == 1.0
        assert requests.get(f"{server.url}/datastore/image?image=nobody").status_code == 404
    finally:
        for number in (1, 2, 3):
            (server.studies / f"prepare{number}.dcm").unlink()
