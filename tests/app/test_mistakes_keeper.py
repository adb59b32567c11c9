"""What the model gets wrong is kept: each image is looked at once, and again after it was saved again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_studies import LABEL

from lib.tasks import mistakes
from lib.tasks.mistakes import MistakesKeeper
from ultrarefiner_monai.dicom.series import sha256_of_image
from ultrarefiner_monai.learning.label_figures import LabelFigures
from ultrarefiner_monai.studies.corrections import Labelled
from ultrarefiner_monai.studies.journal import Journal


def mask(columns: int) -> np.ndarray:
    found = np.zeros((1, 96, 130), np.uint8)
    found[0, 20:60, 30 : 30 + columns] = 1
    return found


class Department:
    """Pictures a and b with labels, and the journal of how these were made."""

    def __init__(self, studies: Path):
        self.studies, self.path = studies, studies / ".ultrarefiner" / "journal.sqlite"
        self.asked: list[str] = []
        for name in ("a", "b"):
            (studies / f"{name}-label.png").write_bytes(LABEL)
        self.keeper = MistakesKeeper(self.path, self.pair_of)

    def pair_of(self, image: str) -> Labelled | None:
        self.asked.append(image)
        path = self.studies / f"{image}.png"
        return Labelled(image, path, self.studies / f"{image}-label.png") if path.exists() else None

    def save(self, image: str, proposed: int, saved: int) -> None:
        journal = Journal(self.path)
        sha256 = sha256_of_image(self.studies / f"{image}.png")
        journal.record_proposal(image, sha256, mask(proposed), model="ultrarefiner", version="v1", client="c")
        journal.record_correction(image, sha256, mask(saved), client="c")
        journal.close()

    def look(self):
        return self.keeper(LabelFigures(self.path).look())


@pytest.fixture
def department(studies: Path) -> Department:
    return Department(studies)


def test_images_are_looked_at_once(department: Department) -> None:
    assert department.look() is None
    department.save("a", 40, 40)
    department.save("b", 80, 40)
    found = department.look()
    assert found.everything.images == 2 and found.everything.shares["identity"] == pytest.approx(0.5)
    assert {"size", "echogenicity", "device"} == set(found.by) and sorted(department.asked) == ["a", "b"]
    assert department.look() == found and len(department.asked) == 2
    department.save("b", 41, 40)
    again = department.look()
    assert department.asked[2:] == ["b"] and again.everything.shares == {"identity": pytest.approx(1.0)}


def test_an_image_that_is_gone_is_left_out(department: Department) -> None:
    department.save("a", 40, 40)
    department.save("b", 80, 40)
    (department.studies / "b.png").unlink()
    assert department.look().everything.images == 1
    (department.studies / "a.png").write_bytes(b"no picture")
    department.save("a", 40, 40)
    assert department.look() is None


def test_only_the_images_saved_last(department: Department, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistakes, "MOST_IMAGES", 1)
    department.save("a", 40, 40)
    department.save("b", 80, 40)
    assert department.look().everything.images == 1 and department.asked == ["b"]
