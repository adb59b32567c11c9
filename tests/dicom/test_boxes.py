"""What goes to the archive and what comes from it, through failures and restarts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pydicom
import pytest
from orthanc import Orthanc
from segs import cine, lesions, stills, viewers_seg

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.seg import make_seg
from ultrarefiner_monai.dicom.seg_reader import SegInfo
from ultrarefiner_monai.dicom.sr import make_sr
from ultrarefiner_monai.dicomweb.client import InstanceInfo, Pacs, PacsError, SeriesInfo
from ultrarefiner_monai.exchange.inbox import Inbox
from ultrarefiner_monai.exchange.outbox import Outbox
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import WorkFolder, forget

AWAY = PacsError("the archive cannot be reached")


@pytest.fixture
def boxes() -> Iterator[Callable[..., Outbox]]:
    running: list[Outbox] = []

    def make(folder: Path, send: Callable[[Any], None], longest: float = 0.2) -> Outbox:
        running.append(Outbox(folder, send, first_pause=0.01, longest_pause=longest))
        return running[-1]

    yield make
    for box in running:
        box.stop()


def segs(folder: Path, count: int) -> list[Any]:
    return [make_seg(lesions(5), cine(folder), "x", str(k)) for k in range(count)]


def test_an_outbox_outlives_failures_and_restarts(tmp_path: Path, boxes: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    objects, stored = segs(tmp_path, 3), []

    def away(datasets: Any) -> None:
        raise AWAY

    first = boxes(tmp_path / "out", away)
    first.start()
    first.put(*objects[:2])
    assert not first.flush(0.3) and "cannot be reached" in first.problem
    first.stop()

    failing = [AWAY, AWAY]

    def recovering(datasets: Any) -> None:
        if failing:
            raise failing.pop()
        stored.extend(str(d.SOPInstanceUID) for d in datasets)

    second = boxes(tmp_path / "out", recovering)
    assert second.waiting == [o.SOPInstanceUID for o in objects[:2]]
    second.start()
    second.put(objects[2])
    assert second.flush(10)
    assert stored == [o.SOPInstanceUID for o in objects] and second.problem == "" and not second.waiting
    assert all(boxes(tmp_path / "out", away).holds(o.SOPInstanceUID) for o in objects)
    assert not second.holds("1.2.3")
    assert "PHANTOM" not in caplog.text and objects[0].SOPInstanceUID in caplog.text


def test_what_is_refused_does_not_stop_the_others(tmp_path: Path, boxes: Any) -> None:
    objects, stored, accept = segs(tmp_path, 2), [], threading.Event()

    def send(datasets: Any) -> None:
        uid = str(datasets[0].SOPInstanceUID)
        if uid == objects[0].SOPInstanceUID and not accept.is_set():
            raise PacsError("refused", transient=False, status=409)
        stored.append(uid)

    box = boxes(tmp_path / "out", send)
    (tmp_path / "out" / "0-9.9.dcm").write_bytes(b"half a file")
    box.put(*objects)
    box.start()
    assert not box.flush(0.4) and stored == [objects[1].SOPInstanceUID] and box.problem == "refused"
    accept.set()
    assert box.flush(10) and len(stored) == 2
    assert (tmp_path / "out" / "0-9.9.broken").is_file()


def test_what_a_dying_process_kept_is_still_known_as_ours(tmp_path: Path, boxes: Any) -> None:
    (kept,) = segs(tmp_path, 1)
    boxes(tmp_path / "out", lambda datasets: None).put(kept)
    (tmp_path / "out" / "sent.txt").unlink()
    assert boxes(tmp_path / "out", lambda datasets: None).holds(kept.SOPInstanceUID)


def test_forgotten_before_it_was_sent(tmp_path: Path, boxes: Any) -> None:
    files = cine(tmp_path)
    seg, other = make_seg(lesions(5), files, "x", "1"), make_seg(lesions(3), stills(tmp_path), "x", "1")
    series = str(pydicom.dcmread(files[0]).SeriesInstanceUID)
    work = WorkFolder.of(tmp_path / "studies", tmp_path / "work")
    box = boxes(work.exchange / "outbox", lambda datasets: None)
    box.put(seg, make_sr(lesions(5), files, seg), other)
    Journal(work.journal).close()
    assert forget(tmp_path / "studies", series[:-1], work.root, labels=True).labels == []
    assert len(forget(tmp_path / "studies", series, work.root, labels=True).labels) == 2
    assert box.waiting == [other.SOPInstanceUID]


# --- inbox ------------------------------------------------------------------------------------------------------------


class Shelf:
    """An archive of SEGs in memory that counts what it is asked."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.fetched: list[str] = []
        self.away = False

    def _check(self) -> None:
        if self.away:
            raise AWAY

    def segs(self, study_uid: str | None = None) -> list[SeriesInfo]:
        self._check()
        series: dict[str, Any] = {}
        for ds in self.held:
            series.setdefault(str(ds.SeriesInstanceUID), []).append(ds)
        return [SeriesInfo(uid, str(held[0].StudyInstanceUID), "SEG", len(held)) for uid, held in series.items()]

    def instances(self, study_uid: str, series_uid: str) -> list[InstanceInfo]:
        return [InstanceInfo(str(ds.SOPInstanceUID)) for ds in self.held if ds.SeriesInstanceUID == series_uid]

    def fetch_instance(self, study_uid: str, series_uid: str, sop_uid: str, folder: Path) -> Path:
        self._check()
        self.fetched.append(sop_uid)
        path = folder / f"{sop_uid}.dcm"
        next(ds for ds in self.held if ds.SOPInstanceUID == sop_uid).save_as(path, enforce_file_format=True)
        return path


class Desk:
    """What an inbox hands on."""

    def __init__(self, tmp_path: Path) -> None:
        self.files, self.shelf, self.taken = cine(tmp_path), Shelf(), []
        source = pydicom.dcmread(self.files[0])
        self.known = {str(source.StudyInstanceUID), str(source.SeriesInstanceUID)}
        self.state = tmp_path / "inbox.json"
        self.error: Exception | None = None

    def take(self, dataset: Any, info: SegInfo, when: datetime) -> None:
        if self.error:
            raise self.error
        self.taken.append((info.sop_uid, when))

    def inbox(self, **options: Any) -> Inbox:
        return Inbox(self.shelf, self.state, lambda: self.known, self.take, **options)

    def add(self, **changes: Any) -> str:
        self.shelf.held.append(viewers_seg(lesions(5), self.files, **changes))
        return str(self.shelf.held[-1].SOPInstanceUID)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_each_is_taken_once_the_newest_last(desk: Desk) -> None:
    old = {"ContentDate": "20240101", "InstanceCreationDate": "20240101", "SeriesDate": "20240101"}
    newer, older = desk.add(), desk.add(**old)
    inbox = desk.inbox()
    assert inbox.look() == 2 and [uid for uid, _ in desk.taken] == [older, newer]
    assert desk.taken[0][1].year == 2024
    again = desk.inbox()  # after a restart
    third = desk.add(ContentTime="000000", InstanceCreationTime="000000", SeriesTime="000000")
    before = datetime.fromisoformat(inbox._state["looked"])
    assert inbox.look() == again.look() == 1 and again.look() == 0
    # Its machine's clock is slow: it was not there at the last look, so it is newer than that.
    assert desk.taken[-1] == (third, before)
    assert desk.shelf.fetched.count(newer) == 1


def test_what_is_not_taken(desk: Desk, caplog: Any) -> None:
    desk.shelf.held.append(make_seg(lesions(5), desk.files, "sam_refiner", "1"))  # of another server of ours
    mine = desk.add()
    desk.add(made="AUTOMATIC", ContentCreatorName="")
    robot = desk.shelf.held[-1].SegmentSequence[0]
    robot.SegmentAlgorithmName = "CAD 3"
    corrected = desk.add(made="AUTOMATIC", ContentCreatorName="")  # our proposal, changed in a viewer
    elsewhere = desk.add()
    desk.shelf.held[-1].StudyInstanceUID = "1.2.3"
    desk.add(SegmentSequence=[])
    inbox = desk.inbox(mine=lambda uid: uid == mine)
    assert inbox.look() == 1 and [uid for uid, _ in desk.taken] == [corrected]
    reasons = " | ".join(inbox.seen.values())
    for reason in ("a proposal of this program", "sent from here", "without a person by CAD 3", "refused: expected"):
        assert reason in reasons
    assert elsewhere not in desk.shelf.fetched and "PHANTOM" not in caplog.text


def test_what_fails_is_tried_again(desk: Desk) -> None:
    uid, inbox = desk.add(), desk.inbox()
    desk.shelf.away = True
    with pytest.raises(PacsError):
        inbox.look()
    desk.shelf.away, desk.error = False, AWAY  # its images cannot be fetched
    assert inbox.look() == 0 and inbox.seen == {}
    desk.error = None
    assert inbox.look() == 1 and inbox.seen == {uid: "taken"}
    bad = desk.add()
    desk.error = InputError("drawn on frames that no longer exist")
    assert inbox.look() == 0 and "no longer exist" in inbox.seen[bad]
    desk.error = None
    assert inbox.look() == 0


def test_one_series_that_fails_costs_the_others_nothing(desk: Desk, monkeypatch: Any, caplog: Any) -> None:
    bad, good = desk.add(), desk.add()
    broken, whole, error = str(desk.shelf.held[0].SeriesInstanceUID), desk.shelf.instances, InputError("no UID")

    def instances(study_uid: str, series_uid: str) -> list[InstanceInfo]:
        if series_uid == broken:
            raise error
        return whole(study_uid, series_uid)

    monkeypatch.setattr(desk.shelf, "instances", instances)
    inbox = desk.inbox()
    assert inbox.look() == 1 and inbox.look() == 0 and list(inbox.seen) == [good]
    assert caplog.text.count("no UID") == 1
    error = PacsError("500")  # it may work later
    assert inbox.look() == 0
    broken = ""
    assert inbox.look() == 1 and bad in inbox.seen and desk.shelf.fetched == [good, bad]
    assert not list(desk.state.parent.glob("segs-*"))


def test_one_that_replaces_another_is_noticed_in_turn(desk: Desk, monkeypatch: Any) -> None:
    monkeypatch.setattr("ultrarefiner_monai.exchange.inbox._IN_TURN", 1)
    desk.add(), desk.add()
    inbox = desk.inbox()
    assert inbox.look() == 2
    place = str(desk.shelf.held.pop().SeriesInstanceUID)
    new = desk.add(SeriesInstanceUID=place)
    assert inbox.look() + inbox.look() == 1 and desk.taken[-1][0] == new


def test_a_seg_may_come_before_its_image(desk: Desk, tmp_path: Path) -> None:
    source = pydicom.dcmread(desk.files[0])
    desk.known = {str(source.StudyInstanceUID)}
    uid, inbox = desk.add(), desk.inbox()
    assert inbox.look() == inbox.look() == 0 and desk.shelf.fetched == [uid]
    desk.known.add(str(source.SOPInstanceUID))
    assert desk.inbox().look() == 1


def test_a_damaged_state_is_kept_aside(desk: Desk) -> None:
    desk.state.write_text('{"seen": 3}')
    desk.add()
    assert desk.inbox().look() == 1
    assert list(desk.state.parent.glob("inbox.json.broken-*")) and desk.inbox().seen


# --- with a real archive ----------------------------------------------------------------------------------------------


@pytest.mark.orthanc
def test_through_orthanc(tmp_path: Path, orthanc: Orthanc, boxes: Any) -> None:
    files = stills(tmp_path)
    pacs = Pacs(orthanc.url, retries=0, timeout=10)
    pacs.store([pydicom.dcmread(path) for path in files])
    source = pydicom.dcmread(files[0])
    known = {str(source.StudyInstanceUID), str(source.SeriesInstanceUID)}
    taken: list[SegInfo] = []
    outbox = boxes(tmp_path / "out", pacs.store)
    inbox = Inbox(pacs, tmp_path / "in.json", lambda: known, lambda d, i, w: taken.append(i), outbox.holds)
    outbox.put(make_seg(lesions(3), files, "x", "1", made="MANUAL"), make_seg(lesions(3) * 0, files, "x", "2"))
    orthanc.stop()
    outbox.start()
    assert not outbox.flush(0.5) and len(outbox.waiting) == 2
    orthanc.start()
    assert outbox.flush(20) and len(pacs.segs()) == 2
    viewer = viewers_seg(lesions(3), files)
    pacs.store([viewer])
    assert inbox.look() == 1 and inbox.look() == 0
    assert taken[0].author == "Roe Jane" and taken[0].sop_uid == viewer.SOPInstanceUID
    assert taken[0].time and abs(taken[0].time - datetime.now(timezone.utc)) < timedelta(minutes=5)
