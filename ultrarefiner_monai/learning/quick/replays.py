"""What a tuned decoder makes of images that it did not learn from, against the champion: the quick way's own gate.

A replay is an image's automatic result and what a robot user's one and three clicks make of it, at the decoder's size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.learning.quick.overlay import overlaid, refiner_of, towards
from ultrarefiner_monai.learning.quick.samples import Sample, batch_of, distinct
from ultrarefiner_monai.learning.quick.tuning import RECIPE, Recipe, tune
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT
from ultrarefiner_monai.models.checkpoints import System
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.training.data.transforms import LABEL
from ultrarefiner_monai.training.phases.clicked import dice_after
from ultrarefiner_monai.training.phases.refiner import valid_hw

CLICKS = (1, 3)
# A label that the champion with three clicks gets no nearer to than this is not learnt from: its image, or the label, is
# not what this model can draw. Of real labels about one in a hundred is; of labels of noise nearly all are.
IMPLAUSIBLE = 0.4
# How far the champion's weights go towards the tuned ones; the left-out replays choose (WiSE-FT, Wortsman et al., CVPR
# 2022). A champion that knows this kind of image gains little and loses less by a part of the way.
SHARES = (1.0, 0.5)
FLOOR = 16  # steps that are made however slow the machine is: fewer spoil more than they teach
# From so many replayed lesions on the mean may be lower by the gate's margin: a bar of exactly 0 refuses every second model
# that is no worse. On fewer, chance alone moves the mean by more than that.
SURE = 6
LEAST = 3  # replayed lesions below which nothing is known, and nothing served


@dataclass(frozen=True)
class Score:
    """One image. automatic, one, three: Dice (of a lesion) without clicks and after 1 and 3; marked: whether a lesion-free
    image is (``metrics.NORMAL_LIMIT``)."""

    lesion: bool
    automatic: float
    one: float
    three: float
    marked: bool

    @property
    def mean(self) -> float:
        return (self.automatic + self.one + self.three) / 3


@torch.no_grad()
def score(refiner: Refiner, sample: Sample) -> Score:
    """Replay one image. The safety net is left out: it is the same for both that are compared."""
    device = next(refiner.parameters()).device
    embedding, coarse_prob, batch = batch_of([sample], refiner.image_size, device)
    valid = valid_hw(batch)
    label = batch[LABEL] >= 0.5
    prob = torch.sigmoid(refiner(embedding, coarse_prob, None, valid_hw=valid).refined_logits)
    small = torch.nn.functional.interpolate(coarse_prob, size=prob.shape[-2:], mode="bilinear", antialias=True)
    final = small if sample.features.doubted else refiner.final_prob(small, prob)
    mask = final >= refiner.config.post.threshold
    if not sample.lesion:
        return Score(False, 0.0, 0.0, 0.0, float(mask.float().mean()) > NORMAL_LIMIT)
    frame = (embedding, coarse_prob, valid)
    automatic = _dice(mask, label)
    one, three = (float(dice_after(refiner, frame, final, label, n)[0]) for n in CLICKS)
    return Score(True, automatic, one, three, False)


def _dice(mask: torch.Tensor, label: torch.Tensor) -> float:
    total = float(mask.sum() + label.sum())
    return 2 * float((mask & label).sum()) / total if total else 1.0


@dataclass(frozen=True)
class Verdict:
    """Champion against tuned, on the same images. automatic, one, three: mean gain in Dice over lesions; alarms: how many
    more lesion-free images are marked; failures: how many more lesions have an automatic Dice below .5.
    share: of the way to the tuned weights. errors: standard errors of the three gains.
    """

    lesions: int
    normals: int
    automatic: float
    one: float
    three: float
    alarms: int
    failures: int
    share: float = 1.0
    errors: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def mean(self) -> float:
        """Mean gain in Dice, without clicks and after one and three."""
        return (self.automatic + self.one + self.three) / 3

    def to_dict(self) -> dict[str, Any]:
        plain = {k: round(v, 4) if isinstance(v, float) else v for k, v in vars(self).items()}
        return {**plain, "errors": [round(e, 4) for e in self.errors]}

    def worse_by(self, margin: float, mean_margin: float) -> str:
        """Why it is worse, in words; empty where it is not: the mean gain is at least -mean_margin, and none of the three is
        below -margin by more than its standard error (few images are replayed, and one bad one must not decide)."""
        if self.mean < -mean_margin:
            return f"mean Dice is {-self.mean:.4f} lower"
        words = ("without clicks", "after one click", "after three clicks")
        for value, error, clicks in zip((self.automatic, self.one, self.three), self.errors, words, strict=True):
            if value < -margin - error:
                return f"mean Dice {clicks} is {-value:.4f} lower"
        if self.alarms > 0:
            return f"{self.alarms} more lesion-free images are marked"
        if self.failures > 0:
            return f"{self.failures} more lesions are missed"
        return ""


def compare(before: Sequence[Score], after: Sequence[Score], share: float = 1.0) -> Verdict:
    """Paired: the i-th of both is the same image."""
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.lesion]
    normal = [(a, b) for a, b in zip(before, after, strict=True) if not a.lesion]

    gains = np.array([[b.automatic - a.automatic, b.one - a.one, b.three - a.three] for a, b in pairs]).reshape(-1, 3)
    means = gains.mean(axis=0) if pairs else np.zeros(3)
    errors = gains.std(axis=0, ddof=1) / len(pairs) ** 0.5 if len(pairs) > 1 else np.zeros(3)
    failures = sum(b.automatic < 0.5 for _, b in pairs) - sum(a.automatic < 0.5 for a, _ in pairs)
    alarms = sum(b.marked for _, b in normal) - sum(a.marked for a, _ in normal)
    return Verdict(
        len(pairs),
        len(normal),
        float(means[0]),
        float(means[1]),
        float(means[2]),
        int(alarms),
        int(failures),
        share,
        (float(errors[0]), float(errors[1]), float(errors[2])),
    )


def folds_of(samples: Sequence[Sample], count: int) -> list[set[str]]:
    """The groups, dealt into ``count`` parts, the newest group first: part 0 is the one to leave out first."""
    groups = list(dict.fromkeys(s.group for s in reversed(samples)))
    count = min(count, len(groups))
    return [set(groups[k::count]) for k in range(count)]


def left_out_replays(
    champion: System,
    samples: Sequence[Sample],
    replay: Sequence[Sample],
    options: LearningConfig,
    before: Callable[[Sample], Score],
    folds: int = 2,
    seconds: float | None = None,
    steps: int | None = None,
    most: int = 12,
    seed: int = 0,
    recipe: Recipe = RECIPE,
) -> Verdict:
    """Tune without a part of the groups, replay what was left out; so for each of ``folds`` parts (cross-fitting). The
    verdict on that one of ``SHARES`` whose mean gain is largest.

    before: the champion's score of a sample. seconds: for all of it; the first part is always replayed, each other one where
    the time suffices. most: of a part so many images are replayed at most, the newest first, near-duplicates once. A single group gives an empty
    verdict: nothing is left out.
    """
    begun = time.monotonic()
    end = None if seconds is None else begun + seconds
    parts = folds_of(samples, folds)
    own = refiner_of(champion)
    old: list[Score] = []
    new: dict[float, list[Score]] = {share: [] for share in SHARES}
    for k, part in enumerate(parts if len(parts) > 1 else []):
        room = None if end is None else end - time.monotonic()
        if k and room is not None and room < (time.monotonic() - begun) / k:
            break
        learnt = [s for s in samples if s.group not in part]
        tuned = tune(
            champion, learnt, replay, options, None if room is None else 0.6 * room, steps, seed, recipe, FLOOR
        )
        refiners = {share: overlaid(own, towards(own, tuned, share)).eval() for share in SHARES}
        left = distinct(s for s in reversed(samples) if s.group in part)[:most]
        for done, sample in enumerate(left):
            if end is not None and done >= LEAST and time.monotonic() > end:
                break
            old.append(before(sample))
            for share, refiner in refiners.items():
                new[share].append(score(refiner, sample))
    return max((compare(old, new[share], share) for share in SHARES), key=lambda verdict: verdict.mean)
