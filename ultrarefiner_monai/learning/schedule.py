"""When the slow learning begins, and which trainings a round of it consists of. Plain decisions: no thread, no clock of its own.

What survives a restart stands in ``learning.json`` beside the trainings: up to which save (a row of the journal's corrections) was
learnt, the round that runs, how often it was begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.studies.training_folder import read_json, write_json

REFINER, COARSE, JOINT = "sam_refiner", "transunet", "ultrarefiner"
_ORDER = (REFINER, COARSE, JOINT)
MOST_BEGINS = 3  # a training that ends its server, or this machine, each time is not begun for ever
WINDOW_MINUTES = 60  # a round that is to begin at an hour begins within so many minutes of it, or the next day
APART_SECONDS = 12 * 3600.0  # and none so soon after another one, whatever the clock says


@dataclass(frozen=True)
class Round:
    """A round that was begun. saves: the newest save that it learns from. task: the training that runs or is due; begins:
    how often it was started; done: those that ended."""

    saves: int
    task: str
    begins: int = 0
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class Learnt:
    """What is kept between two starts of the server.

    learnt: the newest save in a round that ended well; tried: in one that was begun at all. day: the last one on which a
    round began at its hour. ended: when the last round ended (ISO time); error: why, where it did not end well.
    """

    learnt: int = 0
    tried: int = 0
    day: str = ""
    round: Round | None = None
    ended: str = ""
    error: str = ""


@dataclass(frozen=True)
class Saves:
    """The journal's word. newest: the id of the newest save; images: how many images were saved since ``Learnt.learnt``; all:
    how many ever."""

    newest: int = 0
    images: int = 0
    all: int = 0


@dataclass
class Memory:
    """``Learnt`` in its file."""

    path: Path
    value: Learnt = field(default_factory=Learnt)

    @classmethod
    def of(cls, path: Path) -> Memory:
        """From the file; anew where there is none, or one that cannot be read: then all labels count as new."""
        values = read_json(path)
        try:
            begun = values.pop("round", None)
            begun = None if begun is None else Round(**{**begun, "done": tuple(begun["done"])})
            found = Learnt(**values, round=begun)
            numbers = [found.learnt, found.tried, *((begun.saves, begun.begins) if begun is not None else ())]
            sound = all(isinstance(n, int) for n in numbers) and (begun is None or begun.task in _ORDER)
        except (TypeError, KeyError):
            sound = False
        return cls(path, found if sound else Learnt())

    def keep(self, **changes: Any) -> Learnt:
        """Change and write. Raises OSError where it cannot be written; then nothing has changed."""
        value = replace(self.value, **changes)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, asdict(value))
        self.value = value
        return value


def is_due(
    known: Learnt, saves: Saves, options: LearningConfig, quiet: float, now: datetime, since_last: float | None
) -> bool:
    """Whether a round begins now. quiet: seconds without a request; since_last: seconds since one began at its hour in this
    process, None for never: both by a clock that never jumps. now: what the clock on the wall says."""
    if not options.slow or known.round is not None or not saves.images or saves.newest <= known.tried:
        return False
    if not options.hour:
        return saves.images >= options.labels and quiet >= 60 * options.quiet_minutes
    hour, minute = map(int, options.hour.split(":"))
    late = (60 * now.hour + now.minute - 60 * hour - minute) % (24 * 60)
    again = known.day == str(now.date()) or (since_last is not None and since_last < APART_SECONDS)
    return late < WINDOW_MINUTES and not again


def trainings(refiner: bool, lesions: int, options: LearningConfig) -> list[str]:
    """The trainings of a round, in their order. refiner: whether the champion has one; lesions: training images with one."""
    found = [REFINER] if refiner else []
    found += [COARSE] if lesions >= options.coarse_labels else []
    return found + ([JOINT] if refiner and lesions >= options.joint_labels else [])


def following(task: str, all_of: Sequence[str]) -> str:
    """The training after ``task``; empty when it was the last, or is none of them any more."""
    return next((t for t in all_of if task in _ORDER and _ORDER.index(t) > _ORDER.index(task)), "")


def next_trigger(known: Learnt, saves: Saves, options: LearningConfig) -> str:
    """When the slow learning begins next, in words."""
    if not options.slow:
        return "only when somebody starts a training (learning.slow is off)"
    if known.round is not None:
        return f"it runs: {known.round.task}"
    if saves.images and saves.newest <= known.tried:
        return "with the next label" if saves.images >= options.labels or options.hour else _after(saves, options)
    if options.hour:
        return f"at {options.hour}" + ("" if saves.images else ", when there is a new label")
    return _after(saves, options)


def _after(saves: Saves, options: LearningConfig) -> str:
    left = max(options.labels - saves.images, 0)
    quiet = f"{options.quiet_minutes} minutes without a request"
    return f"after {left} more labels and {quiet}" if left else f"after {quiet}"
