"""Screens with several pictures, and series of files, through the tasks: no server, a stand-in for the networks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nrrd
import numpy as np
import pytest

from ultrarefiner_monai.config import ServeConfig
from ultrarefiner_monai.core.cache import image_key
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.pipeline.proposal import Proposal
from ultrarefiner_monai.studies.work_folder import WorkFolder

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "apps" / "ultrarefiner"))
from lib.tasks.answers import Engine  # noqa: E402
from lib.tasks.infers import LesionTask  # noqa: E402

H, W = 80, 120
REGIONS = [(0, 8, 55, 71, "tissue"), (60, 8, 115, 39, "spectrum"), (60, 44, 115, 71, "tissue")]


class Bright:
    """Takes what is brighter than .5 for lesion."""

    system = SimpleNamespace(version="bright", refiner=None, config=SimpleNamespace(views=()))
    view = ""

    def seen_as(self, view: str) -> Bright:
        return self

    def propose(self, image: np.ndarray) -> Proposal:
        mask = (image > 0.5).astype(np.uint8)
        return Proposal(mask, image, image, 0.5, 0.5, None, "off", "bright", {"total": 0.0, "cached": 0.0})

    def interact(self, image: np.ndarray, clicks: Clicks) -> Proposal:
        proposal = self.propose(image)
        for x, y in clicks.foreground_xy:
            proposal.mask[int(y), int(x)] = 1
        return proposal


class Notes:
    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def submit(self, write: Any) -> None:
        write(self)

    def record_proposal(self, image_id: str, sha256: str, mask: np.ndarray, **fields: Any) -> None:
        self.kept.append({"sha256": sha256, **fields})


def screen() -> np.ndarray:
    image = np.full((H, W), 20, np.uint8)
    image[:5] = 250  # the maker's logo
    image[20:40, 70:100] = 250  # the spectrum
    image[30:41, 10:31] = image[50:55, 65:75] = 250
    return image


@pytest.fixture
def task(tmp_path: Path) -> LesionTask:
    served = SimpleNamespace(latest=Bright, now=Bright, cache=None, of_image=lambda client, image: Bright())
    engine = Engine(served, ServeConfig(), WorkFolder.of(tmp_path / "studies", tmp_path / "work"), Notes())
    return LesionTask("sam_refiner", "interact", engine, "")


def asked(task: LesionTask, path: Path, tmp_path: Path, **request: Any) -> tuple[np.ndarray, dict[str, Any]]:
    outline = task.outline({"image": str(path), "image_id": "x", **request})
    (tmp_path / "out.nrrd").write_bytes(outline.content)
    return nrrd.read(str(tmp_path / "out.nrrd"))[0].transpose(2, 1, 0), outline.reply


def test_masks_figures_and_clicks_on_a_split_screen(task: LesionTask, tmp_path: Path) -> None:
    path = tmp_path / "split.dcm"
    path.write_bytes(dicom_bytes(screen()[None], 1, 0.1, regions=REGIONS))
    mask, reply = asked(task, path, tmp_path)
    wanted = (screen() > 127).astype(np.uint8)
    wanted[:5] = wanted[20:40, 70:100] = 0
    np.testing.assert_array_equal(mask[0], wanted)
    assert reply["regions"] == [[0, 8, 55, 71], [60, 44, 115, 71]]
    assert reply["unit"] == "mm" and reply["long_axis"] == pytest.approx(2.1, abs=0.3)
    (x0, y0), (x1, y1) = reply["long_axis_xy"]
    assert all(9 <= x <= 31 and 29 <= y <= 41 for x, y in ((x0, y0), (x1, y1)))  # of the screen, not of the crop

    clicked, reply = asked(task, path, tmp_path, foreground=[[90, 60, 0]])
    assert clicked[0, 60, 90] == 1 and int((clicked != mask).sum()) == 1  # the other region keeps its result
    for outside in ([80, 30, 0], [57, 60, 0], [10, 2, 0]):
        with pytest.raises(InputError, match="lies outside the B-mode picture"):
            asked(task, path, tmp_path, foreground=[outside])


def test_the_journal_knows_the_keys_of_what_was_cached(task: LesionTask, tmp_path: Path) -> None:
    path = tmp_path / "split.dcm"
    path.write_bytes(dicom_bytes(screen()[None], 1, 0.1, regions=REGIONS))
    asked(task, path, tmp_path)
    image = np.float32(screen()) / np.float32(255)
    crops = [image[8:72, 0:56], image[44:72, 60:116]]
    assert task.engine.journal.kept[0]["cache_keys"] == sorted(image_key(np.ascontiguousarray(c)) for c in crops)


def test_a_series_of_files_is_one_image(task: LesionTask, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "b").write_bytes(dicom_bytes(screen()[None], 1, 0.1, instance=1))
    (folder / "a").write_bytes(dicom_bytes(screen()[None], 1, 0.2, instance=2, regions=REGIONS))
    mask, reply = asked(task, folder, tmp_path)
    assert mask.shape == (2, H, W) and reply["n_frames"] == 2
    assert mask[0, :5].all() and not mask[1, :5].any()
    before = task.engine.open(folder)
    assert task.engine.open(folder) is before and task.engine.journal.kept[0]["sha256"] == before.sha256
    (folder / "c").write_bytes(dicom_bytes(screen()[None], 1, 0.2, instance=3))
    after = task.engine.open(folder)
    assert after.image_file.n_frames == 3 and after.sha256 != before.sha256


def test_a_remembered_frame_is_the_same_and_took_no_time(task: LesionTask, tmp_path: Path) -> None:
    path = tmp_path / "split.dcm"
    path.write_bytes(dicom_bytes(screen()[None], 1, 0.1, regions=REGIONS))
    opened, clicks = task.engine.open(path), Clicks(((20, 60),))
    first, again = (task.engine.answer(Bright(), opened, 0, clicks) for _ in range(2))  # type: ignore[arg-type]
    assert "measure" in first.timings and again.timings == {}
    np.testing.assert_array_equal(first.mask, again.mask)
    assert (first.size, first.keys) == (again.size, again.keys) and first.mask[60, 20] == 1
    # Another frame, other clicks, none: each is a question of its own.
    plain = task.engine.answer(Bright(), opened, 0)  # type: ignore[arg-type]
    assert plain.timings and plain.mask[60, 20] == 0


def test_whoever_goes_on_with_the_mask_gets_it_without_a_file(task: LesionTask, tmp_path: Path) -> None:
    path = tmp_path / "split.dcm"
    path.write_bytes(dicom_bytes(screen()[None], 1, 0.1, regions=REGIONS))
    request = {"image": str(path), "image_id": "x"}
    array, file = task.outline(request, as_file=False), task.outline(request)
    assert array.content == b"" and file.content and array.mask.any()
    np.testing.assert_array_equal(array.mask, file.mask)
    np.testing.assert_array_equal(asked(task, path, tmp_path)[0], file.mask)
    assert len(task.engine.journal.kept) == 3  # a proposal all the same
