"""A save is one step: label, index, the label before and the journal, whatever fails in the middle. No server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from clinic import CHANGES, Clinic, change, prepared
from faults import steps

from ultrarefiner_monai.journalqueue import JournalQueue


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
