"""SIGKILL in the middle of a save: what was acknowledged is there, whole, with author and correction; nothing half is."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from app_server import start
from clinic import CHANGES, Clinic, change, label_at, mask_of, prepared
from faults import ended, forked, steps

from ultrarefiner_monai.studies.journal import Journal

ROUNDS = 20
# What is removed may lie with the versions and where it was, too, until it is removed again.
KEEPS_TWICE = {"removing": ("versions",), "removing the image": ("versions", "labels"), "beside": ("versions",)}


def _below(folders: tuple[str, ...], state: dict[str, Any]) -> dict[str, bytes]:
    return {name: content for name, content in state.items() if set(Path(name).parts[:-1]) & set(folders)}


def cases() -> list[Any]:
    quick = ("another format", "removing")
    return [pytest.param(what, marks=[] if what in quick else [pytest.mark.slow]) for what in CHANGES]


@pytest.mark.parametrize("what", cases())
def test_killed_at_any_step_the_next_start_finds_the_old_or_the_new(tmp_path: Path, what: str) -> None:
    prepared(tmp_path / "0", what)
    found: list[Any] = []
    for at in range(1, 300):
        one = Clinic(shutil.copytree(tmp_path / "0", tmp_path / str(at)), new=False)
        before = one.state()
        one.store.journal.close()

        def work(folder: Path = one.folder, at: int = at) -> None:
            mine = Clinic(folder, new=False)
            mine.store.journal.close()
            with steps(at, "kill"):
                mine.store.journal = type(mine.store.journal)(mine.work.journal)
                change(mine, what)

        status = ended(forked(work))
        assert status in (0, -signal.SIGKILL)
        one.start()
        one.store.journal.close()
        found.append({**one.state(), "left": []})
        kept, had = (_below(KEEPS_TWICE.get(what, ()), state) for state in (found[-1], before))
        assert set(had.values()) <= set(_below(("versions", "labels"), found[-1]).values()) and all(kept.values())
        found[-1], before = ({k: v for k, v in s.items() if k not in {*kept, *had}} for s in (found[-1], before))
        if status == 0:
            break
    new = found[-1]
    assert len(found) > 4 and new != before
    done = [state == new for state in found]
    assert all(state in (before, new) for state in found)
    assert done == sorted(done), "once it is done it stays done"


@pytest.mark.slow
def test_what_was_acknowledged_before_a_kill_is_there(tmp_path: Path) -> None:
    """A saver that writes label after label, killed at random moments, started again on what it left."""
    clinic, chance = Clinic(tmp_path), random.Random(4)
    clinic.store.journal.close()
    acknowledged: list[int] = []
    number = 0
    for _ in range(ROUNDS):
        reader, writer = os.pipe()

        def work(first: int = number + 1, writer: int = writer) -> None:
            mine = Clinic(tmp_path, new=False)
            for n in range(first, first + 10_000):
                mine.show(n % 60 + 1, f"seat {n}")
                mine.save(n % 60 + 1, (".nii.gz", ".png")[n % 2], user=f"dr {n}", client=f"seat {n}")
                os.write(writer, f"{n}\n".encode())

        process = forked(work)
        os.close(writer)
        select.select([reader], [], [], 60)  # the first one is acknowledged
        time.sleep(chance.random() * 0.3)
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        with os.fdopen(reader) as said:
            acknowledged += map(int, said.read().split())
        clinic.start()
        check_labels(clinic, acknowledged)
        clinic.store.journal.close()
        journal = Journal(clinic.work.journal)
        number = max((int(c.author[3:]) for c in journal.corrections()), default=number)
        journal.close()
    assert len(acknowledged) > ROUNDS


def check_labels(clinic: Clinic, acknowledged: list[int]) -> None:
    """Each acknowledged label has its correction; the newest label is one that was acknowledged, or begun after it."""
    journal = Journal(clinic.work.journal)
    corrections = journal.corrections()
    assert not journal.rows("SELECT id FROM saves")
    for correction in corrections:  # what it came from is there, too
        for proposal in map(journal.proposal, (correction.first_proposal_id or 0, correction.proposal_id or 0)):
            assert proposal is not None and proposal.client == correction.client
            assert (proposal.mask == correction.mask).all() and correction.seconds is not None
    journal.close()
    authors = [correction.author for correction in corrections]
    assert len(set(authors)) == len(authors) and {f"dr {n}" for n in acknowledged} <= set(authors)
    assert all((c.mask == mask_of(int(c.author[3:]) % 60 + 1)).all() for c in corrections)
    if not corrections:
        return
    newest = int(corrections[-1].author[3:])
    assert newest >= max(acknowledged, default=0)
    (file,) = [p for p in (clinic.studies / "labels" / "final").iterdir() if not p.name.endswith(".part")]
    label = label_at(clinic.folder, newest % 60 + 1, (".nii.gz", ".png")[newest % 2])
    assert file.read_bytes() == label.read_bytes()
    info = clinic.store.get_label_info("a", "final")
    assert (info["user"], info["name"]) == (f"dr {newest}", file.name)
    versions = list((clinic.work.versions / "final" / "a").glob("v*"))
    assert all(version.stat().st_size for version in versions)
    assert len(versions) - min(len(corrections) - 1, 20) in (0, 1)  # killed before the oldest one went


@pytest.mark.slow
@pytest.mark.server
def test_a_killed_server_has_all_that_it_acknowledged(tmp_path: Path, checkpoint: Path) -> None:
    clinic = Clinic(tmp_path)
    clinic.store.journal.close()
    acknowledged: list[int] = []
    labels = {n: label_at(tmp_path, n).read_bytes() for n in range(1, 61)}
    for round_ in range(2):
        server = start(clinic.studies, checkpoint, tmp_path)
        over = threading.Event()

        def save(thread: int, url: str = server.url, round_: int = round_, over: threading.Event = over) -> None:
            for n in range(60):
                number = (round_ * 4 + thread) * 60 + n
                try:
                    answer = requests.put(
                        f"{url}/datastore/label?image={'ab'[thread % 2]}",
                        data={"params": f'{{"client_id": "dr {number}"}}'},
                        files={"label": ("label.nii.gz", labels[number % 60 + 1])},
                        timeout=30,
                    )
                except requests.RequestException:
                    assert over.is_set()
                    return
                assert answer.status_code == 200, answer.text
                acknowledged.append(number)

        threads = [threading.Thread(target=save, args=(t,)) for t in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        over.set()
        server.process.kill()
        server.process.wait()
        for thread in threads:
            thread.join()
        clinic.start()
        clinic.store.journal.close()
        journal = Journal(clinic.work.journal)
        for image in "ab":
            corrections = journal.corrections(image)
            authors = [c.author for c in corrections]
            assert len(set(authors)) == len(authors)
            mine = {f"dr {n}" for n in acknowledged if "ab"[n // 60 % 2] == image}
            assert mine and mine <= set(authors) and len(authors) <= len(acknowledged) + 8
            newest = clinic.store.get_label_info(image, "final")["client_id"]
            assert newest == authors[-1]
            assert Path(clinic.store.get_label_uri(image, "final")).read_bytes() == labels[int(newest[3:]) % 60 + 1]
        journal.close()
