"""A save is one step: label, index, the label before and the journal, whatever fails in the middle. No server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from clinic import CHANGES, Clinic, change, label_at, mask_of, prepared
from fastapi import UploadFile
from faults import ended, forked, steps
from monailabel.endpoints.user.auth import User

import lib.routes.store
from lib.tasks.leases import Leases
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies import open_saves as opensaves
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.open_saves import Drawn
from ultrarefiner_monai.studies.work_folder import forget


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path / "clinic")


def cases() -> list[Any]:
    quick = {("the same format", "once"), ("another format", "full"), ("removing", "once")}
    pairs = [(what, how) for what in CHANGES for how in ("once", "full")]
    return [pytest.param(*pair, marks=[] if pair in quick else [pytest.mark.slow]) for pair in pairs]


@pytest.mark.parametrize(("what", "how"), cases())
def test_wherever_it_fails_all_is_as_before(tmp_path: Path, what: str, how: str) -> None:
    """Every step on the disk fails once: who is told that it failed finds everything as it was, before and after the next
    start; who is not told finds all of it done."""
    prepared(tmp_path / "0", what)
    ends: dict[bool, list[Any]] = {False: [], True: []}
    for at in range(1, 300):
        one = Clinic(shutil.copytree(tmp_path / "0", tmp_path / str(at)), new=False)
        before = one.state()
        one.store.journal.close()
        with steps(at, how) as count:
            one.store.journal = JournalQueue(one.work.journal)
            try:
                change(one, what)
                refused = False
            except Exception as error:
                assert count.went_wrong, error
                refused = True
        now = one.state()
        one.store.journal.close()
        one.start()
        assert not [i for i in (one.state(), now) if refused and i != before], (at, count.names)
        ends[refused].append({**one.state(), "left": []})
        one.store.journal.close()
        if not count.went_wrong:
            break
    assert len(ends[True]) > 3 and not count.went_wrong and ends[False][-1] != before
    assert all(end == ends[False][-1] for end in ends[False])


# --- several savers ---------------------------------------------------------------------------------------------------


def test_labels_saved_at_once_by_two_stores_are_all_there(clinic: Clinic) -> None:
    """As a server and a batch do: whose label is the newest is the newest in the journal, too."""
    other = Clinic(clinic.folder, new=False)
    labels = [label_at(clinic.folder, value) for value in range(1, 21)]

    def save(one: Clinic, half: int) -> None:
        for value in range(1 + half, 21, 2):
            with one.store.saving:
                drawn = Drawn("hash", mask_of(value))
                one.store.save_label("a", str(labels[value - 1]), "final", {"user": f"dr {value}"}, drawn)

    threads = [threading.Thread(target=save, args=pair) for pair in ((clinic, 0), (other, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clinic.start()
    authors = [c.author for c in clinic.store.journal.ask(lambda journal: journal.corrections("a"))]
    assert sorted(authors) == sorted(f"dr {value}" for value in range(1, 21))
    newest = int(authors[-1][3:])
    assert clinic.store.get_label_info("a", "final")["user"] == f"dr {newest}"
    assert Path(clinic.store.get_label_uri("a", "final")).read_bytes() == labels[newest - 1].read_bytes()
    versions = sorted((clinic.work.versions / "final" / "a").iterdir())
    saved = [labels[int(author[3:]) - 1].read_bytes() for author in authors]
    assert [version.read_bytes() for version in versions] == saved[:-1]


def test_a_save_that_another_process_did_not_finish_is_settled_by_the_next(clinic: Clinic) -> None:
    """A batch that was killed beside a server that goes on."""
    clinic.save(1)
    clinic.store.journal.close()

    def batch() -> None:
        mine = Clinic(clinic.folder, new=False)
        opensaves.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        mine.save(2)

    assert ended(forked(batch)) == -signal.SIGKILL
    clinic.store.journal = JournalQueue(clinic.work.journal)
    ask = clinic.store.journal.ask
    assert [c.author for c in ask(lambda journal: journal.corrections())] == ["dr 1"]
    clinic.save(3)
    assert [c.author for c in ask(lambda journal: journal.corrections())] == ["dr 1", "dr 2", "dr 3"]


def test_twenty_labels_at_once_are_read_a_few_at_a_time(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def read(*_: Any, **__: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return mask_of(1)

    store = clinic.store
    opened = SimpleNamespace(image_file=read_image_file(store.image_path("a")), sha256="hash")
    opened.image_file.warnings.clear()
    engine = SimpleNamespace(open=lambda path: opened)
    learnt: list[str] = []
    content = label_at(clinic.folder, 1).read_bytes()
    monkeypatch.setattr(lib.routes.store, "read_mask", read)

    async def save_all() -> list[Any]:
        app = SimpleNamespace(
            datastore=lambda: store,
            engine=engine,
            exchange=None,
            work=clinic.work,
            savers=anyio.CapacityLimiter(3),
            sampler=SimpleNamespace(leases=Leases(10)),
            learner=SimpleNamespace(saved=learnt.append),
        )
        routes = lib.routes.store.StoreRoutes(app)
        uploads = [UploadFile(io.BytesIO(content), filename="l.nii.gz") for _ in range(20)]
        return await asyncio.gather(
            *(routes.save_label("a", u, '{"client_id": "x"}', "", User(username="x")) for u in uploads)
        )

    assert asyncio.run(save_all()) == [{"image": "a", "label": "a"}] * 20
    assert most == 3 and len(Journal(clinic.work.journal).corrections("a")) == 20


# --- the journal ------------------------------------------------------------------------------------------------------


def test_a_label_is_refused_while_the_journal_cannot_be_written(clinic: Clinic) -> None:
    clinic.save(1)
    before = clinic.state()
    clinic.store.journal.ask(lambda journal: journal.rows("PRAGMA busy_timeout=50"))
    other = sqlite3.connect(clinic.work.journal, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        clinic.save(2)
    other.execute("ROLLBACK")
    assert clinic.state() == before
    clinic.save(2)
    assert clinic.store.get_label_info("a", "final")["user"] == "dr 2"


def test_a_full_journal_refuses_the_label(clinic: Clinic) -> None:
    clinic.save(1)
    before = clinic.state()

    def limit(pages: int) -> None:
        clinic.store.journal.ask(lambda journal: journal.rows(f"PRAGMA max_page_count={pages}"))

    limit(1)  # no more than there are now
    with pytest.raises(sqlite3.OperationalError, match="full"):
        for value in range(2, 100):
            before = clinic.state()
            clinic.save(value)
    assert clinic.state() == before
    limit(1 << 20)
    clinic.save(7)
    assert clinic.store.get_label_info("a", "final")["user"] == "dr 7"


def test_forgetting_an_image_forgets_a_save_that_was_cut_off(clinic: Clinic) -> None:
    clinic.save(1)
    plan = opensaves.Plan("final", ".nii.gz", "0", 0, None, {"info": {"user": "anna"}, "ext": ".nii.gz"})
    clinic.store.journal.ask(lambda journal: opensaves.begin(journal, "a", plan, Drawn("hash", mask_of(2))))
    forget(clinic.studies, "a")
    clinic.store.journal.close()
    assert b"anna" not in b"".join(p.read_bytes() for p in clinic.work.root.glob("journal.sqlite*"))


# --- the labels before ------------------------------------------------------------------------------------------------


def versions_of(clinic: Clinic) -> list[str]:
    return sorted(p.name for p in (clinic.work.versions / "final" / "a").iterdir())


def test_a_clock_that_is_set_back_loses_no_version(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clinic.work.versions / "final" / "a"
    folder.mkdir(parents=True)
    for n in range(25):  # as former versions of the app named them
        (folder / f"{1_700_000_000_000_000_000 + n}.nii.gz").write_bytes(b"%d" % n)
    for value in range(1, 11):
        monkeypatch.setattr(time, "time", lambda: 1_700_000_000 - 86_400.0)
        monkeypatch.setattr(time, "time_ns", lambda: 1_600_000_000_000_000_000)
        clinic.save(value)
    newer = [f"v{n:06d}.nii.gz" for n in range(1, 10)]
    older = [f"{1_700_000_000_000_000_000 + n}.nii.gz" for n in range(14, 25)]
    assert versions_of(clinic) == [*older, *newer]
    saved = [label_at(clinic.folder, value).read_bytes() for value in range(1, 10)]
    assert [(folder / name).read_bytes() for name in newer] == saved


def test_what_full_disks_left_pushes_no_version_out(clinic: Clinic) -> None:
    folder = clinic.work.versions / "final" / "a"
    folder.mkdir(parents=True)
    for n in range(30):
        (folder / f"{1_900_000_000_000_000_000 + n}.nii.gz").write_bytes(b"")
    for value in range(1, 4):
        clinic.save(value)
    assert versions_of(clinic) == ["v000001.nii.gz", "v000002.nii.gz"]


def test_the_newest_twenty_are_kept_in_any_format(clinic: Clinic) -> None:
    for value in range(1, 31):
        clinic.save(value, (".nii.gz", ".png")[value % 2])
    assert [name[:7] for name in versions_of(clinic)] == [f"v{n:06d}" for n in range(10, 30)]
    clinic.store.remove_label("a", "final")
    assert versions_of(clinic)[-1] == "v000030.nii.gz" and not clinic.store.get_labeled_images()


def test_a_label_that_lies_there_by_hand_is_kept_too(clinic: Clinic) -> None:
    final = clinic.studies / "labels" / "final"
    (final / "a.nii.gz").write_bytes(b"by hand")  # and not in the index yet
    clinic.save(1)
    assert [p.read_bytes() for p in (clinic.work.versions / "final" / "a").iterdir()] == [b"by hand"]


# --- the archive ------------------------------------------------------------------------------------------------------


def test_what_goes_away_while_an_archive_is_made_is_named_in_it(clinic: Clinic) -> None:
    clinic.save(1)
    clinic.store.save_label("b", str(label_at(clinic.folder, 2)), "final", {})
    (clinic.studies / "labels" / "final" / "b.nii.gz").unlink()
    with zipfile.ZipFile(clinic.store.get_dataset_archive(None)) as archive:
        assert archive.testzip() is None
        names = {"image/a.png", "label/a.nii.gz", "metadata.json", "left_out.txt"}
        assert set(archive.namelist()) == names and archive.read("left_out.txt") == b"b\n"
        assert json.loads(archive.read("metadata.json"))["objects"]["a"]["labels"]
    (clinic.studies / "a.png").unlink()
    with pytest.raises(InputError, match="nothing to download"):
        clinic.store.get_dataset_archive(None)
    assert len(list(clinic.work.tmp.iterdir())) == 1, "the first one alone"
