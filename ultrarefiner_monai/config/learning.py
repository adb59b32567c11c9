"""How a server learns from what is saved: the next sample, quick and slow retraining, the gate before a promotion."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .lora import LoraConfig
from .reading import check_ranges, require


@dataclass(frozen=True)
class LearningConfig:
    """What a server does with final labels (docs/it/learning.md); ``--conf learning.quick false``.

    Quick: seconds after a save the mask decoder of the champion is tuned on all corrections so far. Slow: after many new
    labels a training of its own makes a candidate, and the gate decides whether it becomes the champion.
    """

    # After each save, for so many seconds of work on two cores. false: the champion alone answers.
    quick: bool = True
    quick_seconds: int = 30
    # A training begins by itself after so many new labels and so many minutes without a request; or, where an hour is given
    # (HH:MM, the server's time), at that hour when there is a new label. false: only the button Train begins one.
    slow: bool = True
    labels: int = 10
    quiet_minutes: int = 5
    hour: str = ""
    # The refiner is trained first. The coarse network is trained besides from so many labels with a lesion on, both together
    # (phase 3) from so many on.
    coarse_labels: int = 60
    joint_labels: int = 200
    # Low-rank adapters in the image encoder learn with the refiner, and are merged into the candidate: for scanners whose images
    # look unlike what the encoder knows. Each step then costs a pass through it. null: it stays as it is.
    lora: LoraConfig | None = None
    # CPU threads of what learns in the background, and how far it stands back (0 to 19, as nice does).
    threads: int = 1
    nice: int = 15
    # A prepared data folder (`ultrarefiner prepare`) whose images are mixed in, as a share of what is learnt from, so that
    # what the champion knew before is not lost. Empty: older labels of this department alone are.
    replay: str = ""
    replay_share: float = 0.25
    # The gate: a candidate is promoted when its mean Dice is, at this one-sided level of a paired bootstrap, at most
    # ``margin`` below the champion's on the validation labels. Below so many of them nothing is promoted by itself.
    margin: float = 0.005
    level: float = 0.9
    validation_labels: int = 20
    # Next sample: ``recommended`` covers the kinds of images first, up to so many labels, and then asks for what the model is
    # unsure of. An image that was handed out is not handed to another user for so many minutes.
    diverse_until: int = 20
    lease_minutes: int = 10

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "learning",
            shares=("replay_share",),
            not_negative=("quiet_minutes", "coarse_labels", "joint_labels", "margin", "diverse_until", "lease_minutes"),
            at_least_one=("quick_seconds", "labels", "threads", "validation_labels"),
        )
        require(0 <= self.nice <= 19, f"learning.nice must be in [0, 19], got {self.nice}")
        require(0.5 <= self.level < 1, f"learning.level must be in [0.5, 1), got {self.level}")
        require(
            not self.hour or bool(re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", self.hour)),
            f"learning.hour must be a time such as 02:30, or empty, got {self.hour!r:.40}",
        )
