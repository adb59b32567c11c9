"""From a training's result to the served model: kept once, judged, promoted by itself or not, and after a kill as if none was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_server import save_tiny_system
from PIL import Image

from ultrarefiner_monai.config import (
    LearningConfig,
    PpnConfig,
    RefineConfig,
    SamConfig,
    SystemConfig,
    TrainConfig,
)
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Item, Split
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.learning.labelled import Prepared
from ultrarefiner_monai.learning.promotion import POINTS_UNMEASURED, has_refiner, keep, settle, told
from ultrarefiner_monai.learning.registry import CONFIGURED, Registry, Start
from ultrarefiner_monai.learning.retraining import champion, with_replay
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint, write_checkpoint
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import WorkFolder

OPTIONS = LearningConfig(validation_labels=3)
PREPARED = Prepared(8, 4, 10, groups=4)


class Place:
    """A work folder whose server is configured with the model of seed 6, and a finished run with that of seed 7."""

    def __init__(self, folder: Path):
        self.work = WorkFolder.of(folder)
        self.registry = Registry(self.work)
        self.configured = save_tiny_system(folder / "configured.safetensors", 6)
        self.run = folder / "transunet-1"
        self.run.mkdir()
        save_tiny_system(self.run / "model.safetensors", 7)
        Journal(self.work.journal).close()
        self.start = Start(CONFIGURED, self.configured)
        self.folder = folder

    def files(self, name: str) -> Start:
        return self.start if name == CONFIGURED else Start(name, self.registry.get(name).path)

    def labels_of(self, model: Path, count: int = 4) -> list[Item]:
        """Validation labels that are what a model says."""
        predictor, items = Predictor(load_system(model)), []
        for k in range(count):
            image = make_phantom(np.random.default_rng(k), 48, 64, "benign").image
            mask = predictor.propose(image.astype(np.float32) / 255).mask
            paths = [self.folder / f"{model.stem}-{k}-{kind}.png" for kind in ("image", "mask")]
            Image.fromarray(image).save(paths[0])
            Image.fromarray(mask.astype(bool)).save(paths[1])
            items.append(Item(f"i{k}", *paths, f"i{k}", "select", "", bool(mask.any())))
        return items


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_points_that_nobody_measured_serve_by_a_person_alone(place: Place) -> None:
    """The gate compares automatic results and clicks, and a training of the points changes neither."""
    save_tiny_system(place.run / "model.safetensors", 6, points=True)
    run = place.run.rename(place.run.with_name("ppn-1"))
    points = PpnConfig(points=5, width=16, blocks=1)
    system = SystemConfig(sam=SamConfig(), ppn=points)
    config = TrainConfig(phase="ppn", system=system, refine=RefineConfig(train=()))
    candidate = keep(place.registry, run, config, place.start, PREPARED)
    outcome = settle(place.registry, candidate, place.files, place.labels_of(place.configured), OPTIONS)
    assert not outcome.promoted and outcome.report is not None
    assert outcome.report.reasons == (POINTS_UNMEASURED,), "nothing else is worse"
    assert place.registry.promote("ppn-1").name == "ppn-1"


def test_a_network_of_points_that_is_broken_is_no_candidate(place: Place, tmp_path: Path) -> None:
    path = save_tiny_system(tmp_path / "points.safetensors", points=True)
    stored = read_checkpoint(path)
    stored.tensors["ppn.maps.bias"].fill_(float("nan"))
    write_checkpoint(path, stored.tensors, stored.config, stored.meta)
    with pytest.raises(InputError, match="ppn maps.bias holds numbers that are not finite"):
        place.registry.add("broken", path)


def test_a_better_candidate_serves_by_itself_and_a_kill_changes_nothing(place: Place) -> None:
    candidate = keep(place.registry, place.run, TrainConfig(), place.start, PREPARED, 3)
    assert candidate == keep(place.registry, place.run, TrainConfig(), place.start, PREPARED, 3), "kept before a kill"
    assert candidate.facts["images"] == {"train": 8, "select": 4, "lesions": 10, "replayed": 3}
    items = place.labels_of(place.run / "model.safetensors")
    outcome = settle(place.registry, candidate, place.files, items, OPTIONS)
    assert outcome.promoted and outcome.report is not None and outcome.report.passed
    pointer = place.registry.pointer()
    assert (pointer.name, pointer.by, pointer.before) == (candidate.name, "slow", (CONFIGURED,))
    facts = place.registry.get(candidate.name).facts
    assert (
        facts["gate"] == outcome.report.to_dict()
        and facts["figures"]["dice"] == 1
        and facts["compared_with"] == CONFIGURED
    )
    again = settle(place.registry, candidate, place.files, items, OPTIONS)  # a kill between the promotion and its notes
    assert again.promoted and place.registry.pointer() == pointer
    assert told(again)["promoted"] and told(again)["gate"]["passed"] and told(again)["version"] == candidate.version
    journal = Journal(place.work.journal)
    [row] = journal.promotions()
    journal.close()
    assert (row.name, row.version, row.by, row.before) == (candidate.name, candidate.version, "slow", CONFIGURED)
    assert row.report == facts["gate"]


def test_a_worse_one_stays_a_candidate(place: Place) -> None:
    candidate = keep(place.registry, place.run, TrainConfig(), place.start, PREPARED)
    outcome = settle(place.registry, candidate, place.files, place.labels_of(place.configured), OPTIONS)
    assert not outcome.promoted and outcome.report is not None and outcome.report.reasons
    assert place.registry.pointer().name == CONFIGURED and not told(outcome)["promoted"]
    few = replace(OPTIONS, validation_labels=20)
    outcome = settle(place.registry, candidate, place.files, place.labels_of(place.run / "model.safetensors"), few)
    assert not outcome.promoted and "20 are needed" in place.registry.get(candidate.name).facts["gate"]["reasons"][0]
    place.registry.promote(candidate.name)  # by hand it can
    assert place.registry.pointer().by == "person"


def test_somebody_chooses_another_model_meanwhile(place: Place) -> None:
    """The candidate is compared with what is served when it is promoted, not with what was when it was judged."""
    candidate = keep(place.registry, place.run, TrainConfig(), place.start, PREPARED)
    other = place.registry.add("by-hand", save_tiny_system(place.folder / "other.safetensors", 4))
    items, chosen = place.labels_of(place.run / "model.safetensors"), []

    def files(name: str) -> Start:
        if name == candidate.name and not chosen:
            chosen.append(place.registry.promote(other.name))
        return place.files(name)

    outcome = settle(place.registry, candidate, files, items, OPTIONS)
    assert outcome.promoted and outcome.report is not None and outcome.report.champion == other.version
    assert place.registry.pointer().before == (other.name, CONFIGURED)


def test_a_damaged_champion_is_said_and_trains_nothing(place: Place) -> None:
    candidate = keep(place.registry, place.run, TrainConfig(), place.start, PREPARED)
    place.registry.promote(candidate.name)
    candidate.path.write_bytes(candidate.path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"transunet-1, which is damaged.*models rollback"):
        champion(place.registry, place.files)
    place.registry.rollback()
    assert champion(place.registry, place.files) == place.start and has_refiner(place.start)


def test_replay_is_a_share_and_never_what_validates(place: Place, tmp_path: Path) -> None:
    items = place.labels_of(place.configured, 6)
    split = Split(tuple(items[:3]), tuple(items[3:]), ())
    replay = tmp_path / "replay"
    for kind in ("images", "masks"):
        (replay / kind).mkdir(parents=True)
    rows = ["id,group,fold,class,lesion_fraction"]
    for k in range(12):
        image = make_phantom(np.random.default_rng(k), 48, 64, "benign").image  # 3, 4 and 5 are those that validate
        image = image // 2 + 60 if k == 4 else image  # the same image, as another export has it
        Image.fromarray(image).save(replay / "images" / f"r{k:02d}.png")
        Image.fromarray(image > 100).save(replay / "masks" / f"r{k:02d}.png")
        rows.append(f"r{k:02d},g{k},{'test' if k == 11 else k % 5},benign,0.5")
    (replay / "index.csv").write_text("\n".join(rows))
    mixed, chosen = with_replay(split, LearningConfig(replay=str(replay), replay_share=0.5), 0)
    assert len(chosen) == 3 and len(mixed.train) == 6 and mixed.select == split.select
    everything = with_replay(split, LearningConfig(replay=str(replay), replay_share=0.9), 0)[1]
    assert {i.id for i in everything} == {f"r{k:02d}" for k in range(11)} - {"r03", "r04", "r05"}
    assert with_replay(split, LearningConfig(), 0) == (split, [])
    with pytest.raises(InputError, match="learning.replay: no index.csv"):
        with_replay(split, LearningConfig(replay=str(tmp_path / "nowhere")), 0)
