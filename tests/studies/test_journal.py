"""The journal: what goes in comes out, several writers at once, forgetting."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.masks.pixels import pack_mask, unpack_mask
from ultrarefiner_monai.studies import journal_queue as journalqueue
from ultrarefiner_monai.studies import open_saves as opensaves
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.work_folder import WorkFolder, forget


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "work" / "journal.sqlite")


def mask_of(seed, shape=(1, 20, 31)):
    return (np.random.default_rng(seed).random(shape) > 0.7).astype(np.uint8)


def propose(journal, image_id="a", seed=0, client="", image_hash="h"):
    return journal.record_proposal(
        image_id, image_hash, mask_of(seed), model="ultrarefiner", version="v1", client=client, cache_keys=[f"k{seed}"]
    )


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=17), elements=st.integers(0, 1)))
def test_masks_come_back_bit_for_bit(mask):
    assert np.array_equal(unpack_mask(pack_mask(mask), mask.shape), mask)


def test_a_proposal_comes_back_as_it_was_kept(journal):
    prompts = {"0": {"foreground_xy": [[1.0, 2.0]]}}
    mask = mask_of(1, (3, 8, 9))
    journal.record_proposal(
        "a", "hash", mask, model="sam_refiner", version="v2", client="c", prompts=prompts, reply={"iou_pred": 0.5}
    )
    (stored,) = journal.proposals("a")
    assert np.array_equal(stored.mask, mask) and stored.mask.dtype == np.uint8
    assert (stored.model, stored.version, stored.client, stored.prompts) == ("sam_refiner", "v2", "c", prompts)
    assert stored.reply == {"iou_pred": 0.5}
    assert journal.proposals("b") == []


def test_a_correction_points_at_the_newest_proposal_the_clients_own_first(journal):
    mine, other = propose(journal, client="mine"), propose(journal, seed=1, client="other")
    journal.record_correction("a", "h", mask_of(2), author="dr", client="mine")
    journal.record_correction("a", "h", mask_of(2), client="somebody")
    assert [c.proposal_id for c in journal.corrections("a")] == [mine, other]
    assert journal.corrections()[0].author == "dr"


def test_a_correction_of_an_image_that_changed_has_no_proposal(journal):
    propose(journal, image_hash="before")
    journal.record_correction("a", "after", mask_of(0))
    assert journal.corrections("a")[0].proposal_id is None


def test_a_proposal_of_a_session_is_that_of_the_image_it_became(journal):
    propose(journal, "session:1")
    propose(journal, "upload:1")
    propose(journal, "b")
    journal.record_correction("a", "h", mask_of(0))
    assert journal.corrections("a")[0].proposal_id == 1


def test_what_was_written_survives_a_restart(journal):
    propose(journal)
    journal.close()
    assert len(Journal(journal.path).proposals("a")) == 1


def test_many_threads_and_two_connections_lose_nothing(journal):
    second = Journal(journal.path)
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: propose(second if n % 2 else journal, seed=n), range(40)))
    assert sorted(ids) == [p.id for p in journal.proposals()] and len(set(ids)) == 40


def test_a_newer_schema_is_left_alone(journal):
    journal._connection.execute("PRAGMA user_version=99")
    journal.close()
    with pytest.raises(RuntimeError, match="newer version"):
        Journal(journal.path)


def test_the_queue_writes_in_order_and_survives_a_damaged_journal(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is no database " * 100)
    queue = JournalQueue(path)
    queue.submit(lambda journal: 1 / 0)
    for seed in range(5):
        queue.submit(lambda journal, seed=seed: propose(journal, seed=seed))
    queue.flush()
    assert [p.cache_keys for p in Journal(path).proposals()] == [[f"k{n}"] for n in range(5)]
    assert len(list(tmp_path.glob("journal.sqlite.broken-*"))) == 1


def test_forget_removes_one_image_and_only_that(tmp_path):
    studies = tmp_path / "with space"
    folder = WorkFolder.of(studies)
    journal = Journal(folder.journal)
    for image_id in ("a", "b"):
        propose(journal, image_id)
        journal.record_correction(image_id, "h", mask_of(0))
    label = studies / "labels" / "final" / "a.nii.gz"
    label.parent.mkdir(parents=True)
    label.write_bytes(b"x")
    report = forget(studies, "a")
    assert (report.proposals, report.corrections, report.labels) == (1, 1, [])
    assert label.exists() and journal.proposals("a") == [] and len(journal.proposals("b")) == 1
    assert forget(studies, "a", labels=True).labels == ["final/a.nii.gz"]
    assert not label.exists()


@pytest.mark.parametrize("image_id", ["", "..", "../a", "a/b", "a\\b"])
def test_forget_refuses_what_is_no_id(tmp_path, image_id):
    with pytest.raises(InputError):
        forget(tmp_path, image_id, work_dir=tmp_path / "w")


def test_forget_says_when_there_is_no_work_folder(tmp_path):
    with pytest.raises(InputError, match="no work folder"):
        forget(tmp_path, "a")


def test_a_write_that_fails_leaves_the_journal_usable(journal):
    mask = np.ones((1, 4, 4), np.uint8)
    with pytest.raises(RuntimeError, match="interrupted"), journal.transaction() as connection:
        connection.execute("ROLLBACK")  # as SQLite does by itself when the disk is full
        raise RuntimeError("interrupted")
    journal.record_proposal("a", "h", mask, model="m", version="v")
    assert len(journal.proposals()) == 1


def test_forgetting_an_image_takes_its_uploads_along(journal):
    propose(journal, "a", image_hash="one")
    propose(journal, "upload:1", image_hash="one")
    propose(journal, "session:2", image_hash="one")
    propose(journal, "upload:3", image_hash="two")
    propose(journal, "b", image_hash="one")  # the same file under another id of the studies is another entry
    assert journal.forget("a") == (3, 0)
    assert [len(journal.proposals(i)) for i in ("a", "upload:1", "session:2", "upload:3", "b")] == [0, 0, 0, 1, 1]


def test_what_was_prepared_is_forgotten_with_the_image(journal):
    propose(journal, "a", image_hash="one")
    for image_id, key in (("a", "p0"), ("a", "p1"), ("a", "p1"), ("session:2", "p1"), ("b", "p1")):
        journal.note_prepared(image_id, "one", [key])
    journal.note_opened("a")
    journal.note_opened("session:3")
    assert journal.cache_keys("a") == {"k0", "p0", "p1"} and len(journal.proposals()) == 1
    journal.drop_prepared("b", ["p0"])
    assert journal.prepared("b") == {"p1"}
    assert journal.forget("a") == (1, 0)
    assert [journal.prepared(i) for i in ("a", "session:2", "b")] == [set(), set(), {"p1"}]
    assert journal.prepared("session:3"), "of another file"


def test_who_asks_the_queue_gets_the_answer_or_the_error(tmp_path):
    queue = JournalQueue(tmp_path / "journal.sqlite")
    queue.submit(lambda journal: propose(journal, "a"))
    assert queue.ask(lambda journal: len(journal.proposals("a"))) == 1
    with pytest.raises(ZeroDivisionError):
        queue.ask(lambda journal: 1 / 0)


def test_a_correction_counts_when_its_save_is_done(journal):
    plan = opensaves.Plan("final", ".png", "0", 0, None, {"info": {"client_id": "c"}, "ext": ".png"})
    done, dropped = (opensaves.begin(journal, "a", plan, opensaves.Drawn("h", mask_of(n))) for n in range(2))
    draft = opensaves.begin(journal, "a", plan, None)
    assert journal.corrections() == [] == journal.corrections("a")
    assert opensaves.found(Journal(journal.path)) == [done, dropped, draft]
    opensaves.finish(journal, done)
    opensaves.drop(journal, dropped)
    opensaves.finish(journal, draft)
    (kept,) = journal.corrections("a")
    assert (kept.id, kept.author, kept.client) == (done.correction_id, "c", "c")
    assert np.array_equal(kept.mask, mask_of(0)) and opensaves.found(journal) == []


def test_the_queue_says_what_fails_until_it_works_again(tmp_path, caplog):
    queue = JournalQueue(tmp_path / "journal.sqlite")
    queue.submit(lambda journal: journal.rows("SELECT colour FROM proposals"))
    queue.flush()
    assert "no such column" in queue.problem and queue.problem in caplog.text
    queue.submit(propose)
    queue.flush()
    assert queue.problem == ""


def test_a_queue_that_is_full_says_so_and_what_is_queued_is_written_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(journalqueue, "_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(journalqueue, "_MOST_QUEUED", 3)
    queue, free = JournalQueue(tmp_path / "journal.sqlite"), threading.Event()
    queue.submit(lambda journal: free.wait())
    for n in range(4):
        queue.submit(lambda journal, n=n: propose(journal, seed=n))
    assert "left out" in queue.problem
    free.set()
    queue.close()
    assert [p.cache_keys for p in Journal(tmp_path / "journal.sqlite").proposals()] == [["k0"], ["k1"]]


def test_a_journal_that_is_damaged_while_it_is_used_is_set_aside(tmp_path):
    path = tmp_path / "journal.sqlite"
    queue = JournalQueue(path)
    for n in range(50):
        queue.submit(lambda journal, n=n: journal.record_correction(f"a{n}", "h", np.ones((1, 40, 40))))
    queue.ask(lambda journal: journal._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    queue = JournalQueue(path)  # one that has no good pages in memory; opening it shows nothing yet
    queue.submit(lambda journal: journal.record_correction("after", "h", np.ones((1, 4, 4))))
    queue.flush()
    assert [c.image_id for c in queue.ask(lambda journal: journal.corrections())] == ["after"]
    aside = [p for p in tmp_path.glob("journal.sqlite.broken-*") if not p.name.endswith(("-wal", "-shm"))]
    assert len(aside) == 1 and aside[0].stat().st_size > 4096


def test_a_journal_that_is_gone_is_begun_anew_and_said(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    queue = JournalQueue(work / "journal.sqlite")
    queue.begin(True)
    queue.flush()
    assert queue.begun_anew == ""
    for path in work.iterdir():
        path.unlink()
    queue.submit(lambda journal: journal.record_correction("a", "h", np.ones((1, 4, 4))))
    queue.flush()
    assert "removed" in queue.begun_anew and len(queue.ask(lambda journal: journal.corrections())) == 1
    for path in work.iterdir():
        path.unlink()
    again = JournalQueue(work / "journal.sqlite")
    again.begin(False)
    again.flush()
    assert "not there at the start" in again.begun_anew

    work.rename(tmp_path / "elsewhere")  # a disk that is away: nothing is begun in its place
    queue.submit(lambda journal: journal.record_correction("b", "h", np.ones((1, 4, 4))))
    queue.flush()
    assert not work.exists()
