"""The file of scores: what is not one, what is damaged, and what `ultrarefiner forget` leaves of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ultrarefiner_monai.studies.score_store import ScoreStore, StoredScores, StoredVector
from ultrarefiner_monai.studies.work_folder import WorkFolder, forget

SECRET = np.frombuffer(b"a picture of a patient, in bytes", np.float16)


def fill(store: ScoreStore, name: str = "a") -> None:
    vector = StoredVector(name, "s", "e", np.ones(3), SECRET, "p", 0)
    assert store.put(vector, StoredScores(name, "s", "m", 0.5, 0.25, True, None))


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "scores.sqlite")
    fill(store)
    store.close()
    store = ScoreStore(tmp_path / "scores.sqlite")
    (vector,), (scores,) = store.vectors(), store.scores()
    assert (vector.image_id, vector.state, vector.encoder, vector.patient, vector.group) == ("a", "s", "e", "p", 0)
    np.testing.assert_array_equal(vector.thumbnail, SECRET)
    assert scores == StoredScores("a", "s", "m", 0.5, 0.25, True, None)


@pytest.mark.parametrize("content", [b"not a database at all" * 400, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores.sqlite").write_bytes(content)
    store = ScoreStore(tmp_path / "scores.sqlite")
    assert store.vectors() == []
    fill(store)


def test_damage_in_the_middle_is_seen_at_the_start(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "scores.sqlite")
    for n in range(300):
        fill(store, f"i{n}")
    store.close()
    content = bytearray((tmp_path / "scores.sqlite").read_bytes())
    content[len(content) // 4 : len(content) // 2] = b"\x99" * (len(content) // 2 - len(content) // 4)
    (tmp_path / "scores.sqlite").write_bytes(content)
    assert ScoreStore(tmp_path / "scores.sqlite").vectors() == []


def test_another_process_sees_what_changed(tmp_path: Path) -> None:
    one, other = ScoreStore(tmp_path / "scores.sqlite"), ScoreStore(tmp_path / "scores.sqlite")
    before = one.changes()
    fill(one)
    assert one.changes() == before
    fill(other, "b")
    assert one.changes() != before and len(one.vectors()) == 2


def test_forget_leaves_no_trace_of_the_picture(tmp_path: Path) -> None:
    work = WorkFolder.of(tmp_path)
    store = ScoreStore(work.scores)
    fill(store)
    fill(store, "b")
    report = forget(tmp_path, "a")
    assert report.scored and not report.is_empty and "scores" in str(report)
    assert [v.image_id for v in store.vectors()] == ["b"] and [s.image_id for s in store.scores()] == ["b"]
    forget(tmp_path, "b")
    store.close()
    assert all(SECRET.tobytes() not in path.read_bytes() for path in work.root.glob("scores.sqlite*"))
    assert forget(tmp_path, "a").is_empty


def test_forget_makes_no_file_where_there_is_none(tmp_path: Path) -> None:
    work = WorkFolder.of(tmp_path)
    assert forget(tmp_path, "a").is_empty and not work.scores.exists()
