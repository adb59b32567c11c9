"""One way to outline an image file: which frames are asked, what is kept of them, and whose figures stand for all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ultrarefiner_monai.core.cache import image_key
from ultrarefiner_monai.core.image_file import ImageFile, Spacing, flat_geometry
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.pipeline.outline import FrameOutline, outline, outline_frame
from ultrarefiner_monai.pipeline.proposal import Proposal

H, W = 40, 60


class Bright:
    """Takes what is brighter than .5 for lesion, clicked pixels too; the coarse network sees what is brighter than .8."""

    def propose(self, image: np.ndarray) -> Proposal:
        mask = (image > 0.5).astype(np.uint8)
        times = {"decode": 1.0, "total": 2.0, "cached": 0.0}
        return Proposal(mask, image, image, 0.5, 0.25, None, "off", "v1", times)

    def interact(self, image: np.ndarray, clicks: Clicks) -> Proposal:
        proposal = self.propose(image)
        for x, y in clicks.foreground_xy:
            proposal.mask[int(y), int(x)] = 1
        return proposal

    def coarse(self, image: np.ndarray) -> Proposal:
        return self.propose(np.where(image > 0.8, image, 0))


def cine(sizes: list[int], spacings: list[Spacing] | None = None) -> ImageFile:
    """Frame k holds a square of ``sizes[k]`` pixels' side, brightness .7."""

    def load(k: int) -> np.ndarray:
        image = np.full((H, W), 0.1, np.float32)
        image[5 : 5 + sizes[k], 5 : 5 + sizes[k]] = 0.7
        return image

    geometry = flat_geometry(H, W, len(sizes))
    return ImageFile(Path("x.dcm"), "dicom", H, W, len(sizes), geometry, load, frame_spacings_mm=tuple(spacings or ()))


def outlined(
    image_file: ImageFile, frames: list[int] | None = None, clicks: dict[int, Clicks] | None = None, **options: bool
):
    answer = partial(outline_frame, Bright(), image_file, **options)  # type: ignore[arg-type]
    return outline(image_file, answer, frames, clicks)


def test_all_frames_are_outlined_measured_and_the_largest_lesion_is_shown() -> None:
    image_file = cine([4, 9, 9, 0], [(0.1, 0.1)] * 4)
    found = outlined(image_file)
    assert found.mask.shape == (4, H, W) and found.mask.dtype == np.uint8
    assert [int(m.sum()) for m in found.mask] == [16, 81, 81, 0] and list(found.frames) == [0, 1, 2, 3]
    assert found.shown == 1  # the first of equals
    frame = found.frames[1]
    assert frame.size.unit == "mm" and frame.size.area == pytest.approx(0.81) and frame.version == "v1"
    assert np.shares_memory(frame.mask, found.mask)  # a long cine's masks are kept once
    assert frame.keys == (image_key(image_file.frame(1)),)
    assert found.timings()["decode"] == 4.0 and found.timings()["cached"] == 0.0 and "total" not in found.timings()


def test_a_lesion_in_mm_comes_before_a_larger_number_of_px() -> None:
    """Where a series' files differ in whether they say how large a pixel is: areas in mm2 and px2 cannot be compared."""
    assert outlined(cine([20, 6, 8, 5], [None, (0.1, 0.1), (0.1, 0.1), None])).shown == 2
    assert outlined(cine([20, 0, 0, 5], [None, (0.1, 0.1), (0.1, 0.1), None])).shown == 0  # but any before none at all
    assert outlined(cine([3, 20])).shown == 1


def test_the_frame_that_was_clicked_is_shown_and_only_what_was_asked_is_answered() -> None:
    image_file = cine([4, 9, 9, 0])
    found = outlined(image_file, [0, 3], {3: Clicks(((50, 30),))})
    assert list(found.frames) == [0, 3] and found.shown == 3
    assert found.mask[3, 30, 50] == 1 and not found.mask[1:3].any() and int(found.mask.sum()) == 17
    with pytest.raises(InputError, match="frames 0 to 3"):
        outlined(image_file, [4])


def test_the_coarse_network_alone_does_not_look_at_clicks() -> None:
    found = outlined(cine([9]), clicks={0: Clicks(((50, 30),))}, coarse_only=True)
    assert not found.mask.any()


def test_what_was_remembered_took_no_time() -> None:
    image_file = cine([4, 9])
    known: FrameOutline = outline_frame(Bright(), image_file, 0)  # type: ignore[arg-type]
    remembered = FrameOutline(**{**vars(known), "timings": {}})
    found = outline(image_file, lambda k, clicks: remembered)
    assert found.timings() == {"cached": 1.0}
