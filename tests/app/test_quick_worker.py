"""The process of quick runs hangs, is killed, or talks nonsense: it is said, and the next save starts another one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from app_server import eventually
from served_desk import Desk

from lib.tasks.quick import QuickWorker


@pytest.fixture
def desk(tmp_path: Path, checkpoint: Path) -> Desk:
    return Desk(tmp_path, checkpoint)


@pytest.fixture
def worker(desk: Desk) -> Iterator[QuickWorker]:
    found = QuickWorker(desk.config, desk.work, str(desk.studies), desk.served, late=1.0)
    yield found
    found.close()
    eventually(lambda: not _processes())


def _processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and "learning.quick.worker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_one_that_hangs_is_ended_and_the_next_save_starts_another(worker: QuickWorker) -> None:
    for failed in (1, 2):
        worker.saved()
        (process,) = eventually(_processes)
        process.send_signal(signal.SIGSTOP)
        eventually(lambda count=failed: worker.state()["counts"]["failed"] == count)
        assert worker.state()["error"] == "its process was ended, for it took longer than 1 s"
        assert not process.is_running()


def test_one_that_is_killed_says_so(worker: QuickWorker) -> None:
    worker.saved()
    (process,) = eventually(_processes)
    process.kill()
    assert "memory" in eventually(lambda: worker.state()["error"])


def test_what_is_no_answer_is_none(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('noise' * 400_000); print('quick-run: [1]')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = QuickWorker(desk.config, desk.work, str(desk.studies), desk.served)
    worker.saved()
    assert "no answer: '[1]" in eventually(lambda: worker.state()["error"])
    assert worker.state()["counts"]["failed"] == 1
    eventually(lambda: not _processes())
    worker.close()


def test_it_learns_on_top_of_what_was_promoted_whether_that_is_loaded_or_not(desk: Desk) -> None:
    before = desk.served.latest()
    desk.registry.add("sam_refiner-1", desk.checkpoint)
    desk.registry.promote("sam_refiner-1", by="slow")
    worker = QuickWorker(desk.config, desk.work, str(desk.studies), desk.served)
    assert Path(worker._job()["base"]) == desk.registry.get("sam_refiner-1").path
    assert desk.served._serving.predictor is before
