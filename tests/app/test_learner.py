"""The learner without a server: what a process that does not serve leaves alone, and a machine that gives no more threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_server import APP, eventually
from served_desk import Desk

from lib.tasks.background import Background
from lib.tasks.learner import Learner
from lib.tasks.prepare import Preparer
from lib.tasks.progress import ProgressKeeper
from lib.tasks.quick import QuickWorker
from lib.tasks.trainers import make_trainers
from ultrarefiner_monai.studies.training_folder import write_json


@pytest.fixture
def desk(tmp_path: Path, checkpoint: Path) -> Desk:
    return Desk(tmp_path, checkpoint, slow=False)


@pytest.fixture
def learner(desk: Desk) -> Iterator[Learner]:
    preparer, background = Preparer(desk.engine), Background("train")
    quick = QuickWorker(desk.config, desk.work, str(desk.studies), desk.served)
    parts = (desk.config.learning, desk.work, desk.engine.journal, desk.served, preparer, background)
    found = Learner(*parts, dict, quick)
    yield found
    found.close()


@pytest.fixture
def no_threads() -> Iterator[None]:
    """No thread can be started: each one asks for more memory than there is."""
    before = threading.stack_size(1 << 46)
    yield
    threading.stack_size(before)


def test_a_batch_that_saves_labels_starts_no_quick_run(learner: Learner) -> None:
    learner.saved("a")
    assert learner.quick is not None and not learner.quick.state()["due"]
    learner.begin()
    learner.saved("a")
    assert eventually(lambda: learner.quick.state()["running"])


def test_a_save_and_a_request_are_answered_where_no_thread_can_be_started(
    desk: Desk, learner: Learner, request: pytest.FixtureRequest
) -> None:
    before = desk.served.latest()
    learner.begin()
    keeper = ProgressKeeper(desk.work.journal)
    desk.set_quick(-2)
    request.getfixturevalue("no_threads")
    learner.saved("a")
    assert desk.served.latest() is before and desk.served.now() is before
    assert keeper.now(1).progress.images == 0
    threading.stack_size(0)
    learner.saved("a")
    assert learner.quick is not None and eventually(lambda: learner.quick.state()["running"])
    assert keeper._done is None
    assert desk.follow() != before.system.version


def test_a_training_that_was_stopped_does_not_run_while_another_one_does(desk: Desk) -> None:
    trainers, folder = make_trainers(APP, desk.served, desk.config, desk.work), desk.work.training
    run = folder.runs / "transunet-1"
    run.mkdir(parents=True)
    write_json(run / "state.json", {"task": "transunet", "status": "running", "started": time.time() - 60, "epochs": 9})
    with folder.lock():  # the refiner is trained
        stats = trainers["transunet"].stats()
    assert stats["status"] == "stopped" and stats["total_time"] and "current_time" not in stats
