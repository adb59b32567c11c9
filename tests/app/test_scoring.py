"""Scores come behind all else, are kept, follow the model, and leave with the image."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_server import APP, eventually, picture, save_tiny_system
from PIL import Image

from ultrarefiner_monai.config import LearningConfig, ServeConfig
from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.learning.sampling.pool import ScorePool
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.score_store import ScoreStore
from ultrarefiner_monai.studies.work_folder import WorkFolder, forget

sys.path.insert(0, str(APP))
from lib.store.datastore import StudiesFolder  # noqa: E402
from lib.tasks.answers import Engine  # noqa: E402
from lib.tasks.infers import LesionTask  # noqa: E402
from lib.tasks.prepare import Preparer  # noqa: E402
from lib.tasks.scoring import Scorer  # noqa: E402
from lib.tasks.served import Served  # noqa: E402
from lib.tasks.strategies import Sampler  # noqa: E402

IMAGES = [f"p{n}" for n in range(6)]


@dataclass
class Desk:
    """Studies of six pictures and a cine, served without a server; ``look`` in place of the thread that looks."""

    studies: Path
    engine: Engine
    preparer: Preparer
    store: StudiesFolder
    scorer: Scorer

    @property
    def ids(self) -> list[str]:
        return sorted(self.store.list_images())

    def look(self, files: bool = False) -> None:
        self.scorer.look(files)

    def wait(self) -> None:
        eventually(lambda: not self.scorer.state()["left"], 120)

    def known(self) -> list[str]:
        table = self.scorer.table(self.ids)
        return [i for i, found in zip(table.ids, table.found) if not np.isnan(found)]

    def click(self, name: str) -> dict[str, Any]:
        task = LesionTask("sam_refiner", "interact", self.engine, "")
        return task.outline(
            {"image": str(self.studies / f"{name}.png"), "image_id": name, "foreground": [[40, 40, 0]]}
        ).reply


def make_desk(folder: Path, checkpoint: Path, enabled: bool = True, **options: Any) -> Desk:
    studies = folder / "studies"
    if not studies.exists():
        studies.mkdir(parents=True)
        for n, name in enumerate(IMAGES):
            Image.fromarray(picture(n)).save(studies / f"{name}.png")
        cine = np.stack([picture(50 + k) for k in range(9)])
        (studies / "cine.dcm").write_bytes(dicom_bytes(cine, 1, 0.1))
        (studies / "broken.png").write_bytes((studies / "p0.png").read_bytes()[:300])
    work, config = WorkFolder.of(studies), ServeConfig(weights=str(checkpoint), threads=1, device="cpu", **options)
    journal = JournalQueue(work.journal)
    engine = Engine(Served(APP, config, work), config, work, journal)
    store = StudiesFolder(str(studies), work, config.extensions, engine.read, False, journal=journal)
    preparer = Preparer(engine, enabled)
    scorer = Scorer(engine, preparer, lambda: store, enabled)
    scorer._pool = ScorePool(ScoreStore(work.scores))
    return Desk(studies, engine, preparer, store, scorer)


@pytest.fixture
def desk(tmp_path: Path, checkpoint: Path) -> Iterator[Desk]:
    found = make_desk(tmp_path, checkpoint)
    yield found
    found.scorer.close()


def slowly(desk: Desk, hook: Callable[[], Any]) -> None:
    """Call ``hook`` before each image is read for its scores."""
    read = desk.engine.read

    def watched(path: Path) -> Any:
        if threading.current_thread().name.startswith("prepare"):
            hook()
        return read(path)

    desk.engine.read = watched  # type: ignore[method-assign]


def test_all_readable_images_are_scored_and_prepared_by_it(desk: Desk) -> None:
    desk.look()
    desk.wait()
    assert desk.known() == ["cine", *IMAGES]
    assert desk.scorer.state() == {"scored": 7, "left": 0}
    assert all(desk.click(name)["timings"]["cached"] == 1.0 for name in IMAGES)
    table = desk.scorer.table(desk.ids)
    assert table.vectors.shape[1] == 256 and np.isnan(table.vectors[0]).all(), "the broken one comes first by name"
    desk.look()
    assert desk.scorer.state()["left"] == 0, "what cannot be read is not tried again"


def test_they_are_there_after_a_restart(desk: Desk, tmp_path: Path, checkpoint: Path) -> None:
    desk.look()
    desk.wait()
    again = make_desk(tmp_path, checkpoint)
    slowly(again, lambda: pytest.fail("nothing is computed again"))
    again.look()
    assert again.known() == ["cine", *IMAGES]
    np.testing.assert_array_equal(again.scorer.table(IMAGES).vectors, desk.scorer.table(IMAGES).vectors)


def test_nothing_is_scored_while_a_request_computes_or_an_image_is_prepared(desk: Desk) -> None:
    with desk.preparer.request():
        desk.look()
        time.sleep(0.3)
        assert desk.known() == []
        desk.preparer.open("p5", lambda: desk.studies / "p5.png")
        time.sleep(0.2)
    order: list[int] = []
    slowly(desk, lambda: order.append(desk.preparer.left()))
    desk.wait()
    assert desk.known() == ["cine", *IMAGES]
    assert order and order[0] == 0, "the image that somebody opened came first"


def test_an_answer_does_not_wait_for_scores(desk: Desk) -> None:
    hold = threading.Event()
    slowly(desk, lambda: hold.wait(60))
    desk.look()
    sampler = Sampler(desk.scorer, LearningConfig())
    began = time.monotonic()
    assert sampler.sample("recommended", "ann", desk.store)["id"] in desk.ids
    assert time.monotonic() - began < 5 and desk.known() == []
    hold.set()
    desk.wait()


def test_a_promotion_renews_what_the_model_changes(desk: Desk, tmp_path: Path) -> None:
    desk.look()
    desk.wait()
    before = desk.scorer.table(IMAGES)
    other = save_tiny_system(tmp_path / "other.safetensors", seed=3)
    promoted = make_desk(tmp_path, other).engine.served
    promoted.latest()
    desk.engine.served._serving = promoted._serving
    desk.look()
    desk.wait()
    after = desk.scorer.table(IMAGES)
    assert not np.isnan(after.found).any()
    assert (before.boundary_entropy != after.boundary_entropy).any() and (before.vectors != after.vectors).any()


def test_what_was_forgotten_is_not_computed_again_until_somebody_opens_it(desk: Desk) -> None:
    desk.look()
    desk.wait()
    assert forget(desk.studies, "p2").scored
    desk.look()
    desk.wait()
    assert desk.known() == ["cine", "p0", "p1", "p3", "p4", "p5"]
    desk.scorer.opened("p2")
    desk.look()
    desk.wait()
    assert "p2" in desk.known()


def test_an_image_that_is_forgotten_while_it_is_scored_leaves_nothing(desk: Desk) -> None:
    begun, hold = threading.Event(), threading.Event()
    slowly(desk, lambda: (begun.set(), hold.wait(60)))
    desk.scorer._todo = ["p3"]
    desk.preparer.behind(desk.scorer._step)
    begun.wait(60)
    forget(desk.studies, "p3")
    hold.set()
    desk.wait()
    assert not ScoreStore(desk.engine.work.scores).vectors()
    assert not list(desk.engine.work.embeddings.glob("*.safetensors"))
    assert desk.engine.journal.ask(lambda journal: journal.prepared("p3")) == set()


def test_removed_and_replaced_images(desk: Desk) -> None:
    desk.look()
    desk.wait()
    desk.store.remove_image("p1")
    Image.fromarray(picture(99)).save(desk.studies / "p4.png")
    Image.fromarray(picture(98)).save(desk.studies / "broken.png")
    before = desk.scorer.table(["p4"]).vectors
    desk.look(files=True)
    desk.wait()
    assert desk.known() == ["broken", "cine", "p0", "p2", "p3", "p4", "p5"]
    assert (desk.scorer.table(["p4"]).vectors != before).any()
    stored = {v.image_id for v in ScoreStore(desk.engine.work.scores).vectors()}
    assert stored == set(desk.known())


def test_switched_off_it_computes_nothing_and_uses_what_there_is(desk: Desk, tmp_path: Path, checkpoint: Path) -> None:
    desk.look()
    desk.wait()
    off = make_desk(tmp_path, checkpoint, enabled=False)
    Image.fromarray(picture(97)).save(off.studies / "new.png")
    off.store.refresh()
    off.look()
    time.sleep(0.3)
    assert off.known() == ["cine", *IMAGES] and off.scorer.state()["left"] == 0


def test_a_full_cache_keeps_what_users_opened(desk: Desk) -> None:
    served = desk.engine.served
    served.cache = EmbeddingCache(0, desk.engine.work.embeddings, 1000)
    served.now().cache = served.cache
    served.cache.get_or_compute("ab" * 16, lambda: {"x": np.zeros(400, np.float16)})
    assert 800 < served.cache.usage()["disk_bytes"] < 1000
    desk.look()
    desk.wait()
    assert len(desk.known()) == 7
    assert served.cache.held("ab" * 16) and len(list(desk.engine.work.embeddings.glob("*.safetensors"))) == 1


def test_a_lost_file_of_scores_does_not_stop_next_sample(desk: Desk) -> None:
    desk.scorer._pool = None
    assert Sampler(desk.scorer, LearningConfig()).sample("diverse", "ann", desk.store)["id"] in desk.ids
    assert desk.scorer.state() == {"scored": 0, "left": 0}
