from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.pipeline.outline import predict
from ultrarefiner_monai.pipeline.proposal import Proposal

LEFT, RIGHT = (slice(10, 50), slice(5, 45)), (slice(10, 60), slice(50, 100))


class Bright:
    """Takes what is brighter than .5 for lesion, and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], Clicks | None]] = []

    def propose(self, image: np.ndarray, clicks: Clicks | None = None) -> Proposal:
        self.seen.append((image.shape, clicks))
        mask = (image > 0.5).astype(np.uint8)
        area = int(mask.sum())
        return Proposal(mask, image, image, 1 / (1 + area), area / 1e4, None, "off", "v", {"total": 1.0, "cached": 0.0})

    def interact(self, image: np.ndarray, clicks: Clicks) -> Proposal:
        return self.propose(image, clicks)


def ask(image: np.ndarray, **options: Any) -> tuple[Proposal, Bright]:
    predictor = Bright()
    return predict(predictor, image, **options), predictor  # type: ignore[arg-type]


def screen() -> np.ndarray:
    """A small lesion on the left, a large one on the right, a bright logo outside of both."""
    image = np.zeros((70, 110), np.float32)
    image[20:23, 10:14] = image[30:40, 60:70] = image[:8] = 0.9
    return image


def test_nothing_outside_the_regions_is_lesion_and_masks_lie_where_they_were() -> None:
    image = screen()
    proposal, predictor = ask(image, regions=(LEFT, RIGHT))
    wanted = image > 0.5
    wanted[:8] = False
    np.testing.assert_array_equal(proposal.mask > 0, wanted)
    assert proposal.final_prob[:8].max() == 0 and proposal.final_prob.shape == image.shape
    assert [shape for shape, _ in predictor.seen] == [(40, 40), (50, 50)]
    assert proposal.iou_pred == 1 / 101  # the larger lesion's
    assert proposal.timings == {"total": 2.0, "cached": 0.0}


def test_without_regions_the_whole_frame_is_asked() -> None:
    proposal, predictor = ask(screen())
    assert proposal.mask[:8].all() and predictor.seen == [((70, 110), Clicks())]


def test_clicks_reach_the_region_they_lie_in_in_its_own_frame() -> None:
    clicks = Clicks(((12.0, 21.0),), ((99.25, 59.25),), (40.0, 12.0, 58.0, 70.0))  # the box's middle is at x = 49
    with pytest.raises(InputError, match="middle of the box"):
        ask(screen(), regions=(LEFT, RIGHT), clicks=clicks)
    clicks = Clicks(clicks.foreground_xy, clicks.background_xy, (44.0, 12.0, 70.0, 70.0))
    _, predictor = ask(screen(), regions=(LEFT, RIGHT), clicks=clicks)
    assert [c for _, c in predictor.seen] == [
        Clicks(((7.0, 11.0),)),
        Clicks((), ((49.25, 49.25),), (0.0, 2.0, 20.0, 49.0)),
    ]


def test_with_clicks_the_figures_are_those_of_the_region_that_was_clicked() -> None:
    proposal, _ = ask(screen(), regions=(LEFT, RIGHT), clicks=Clicks(((12.0, 21.0),)))
    assert proposal.iou_pred == 1 / 13 and int(proposal.mask.sum()) == 112


def test_a_click_outside_every_region_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(47, 30\) lies outside .*x 5 to 44, y 10 to 49; x 50 to 99, y 10 to 59"):
        ask(screen(), regions=(LEFT, RIGHT), clicks=Clicks(((47.0, 30.0),)))
