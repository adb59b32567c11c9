"""Real coarse predictions to train a refiner on: for each training image from a network that has not seen it.

A coarse network's predictions on its own training images are too good to learn mending from. So the training part of a
fold is cut into a few parts by whole groups, one network is trained without each, and predicts it. None of them ever saw
the fold that is reported (nor the selection images, which judge the refiner).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ultrarefiner_monai.config import TrainConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import DataDirs, Item, Split, names_of, read_sets, sets_of, split_sets
from ultrarefiner_monai.datasets.seen import digests_of, name_records, named_sets, unpack
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.training.check_data import stored_meta
from ultrarefiner_monai.training.data.predictions import predicted_prob, write_proposal
from ultrarefiner_monai.training.run import check_same_split, train_split

log = logging.getLogger(__name__)


def parts_of(items: Sequence[Item], count: int, seed: int) -> list[list[Item]]:
    """``count`` parts of whole groups; a group's part depends on its name (and its set's) and the seed alone."""
    parts: list[list[Item]] = [[] for _ in range(count)]
    several = len(sets_of(items)) > 1
    for item in items:
        group = f"{item.set}/{item.group}" if several else item.group
        digest = hashlib.sha256(f"{seed}:nested:{group}".encode()).hexdigest()
        parts[int(digest, 16) % count].append(item)
    return parts


def _pieces(items: Sequence[Item], parts: int, seed: int, by_set: bool) -> dict[str, list[Item]]:
    if not by_set:
        return {str(k): piece for k, piece in enumerate(parts_of(items, parts, seed))}
    names = sets_of(items)
    if len(names) < 2:
        raise InputError(
            f"parts by set need at least two data sets that are learnt from, got {', '.join(names) or 'none'}: "
            "give several --data"
        )
    return {name: [i for i in items if i.set == name] for name in names}


def _unseen_start(config: TrainConfig, piece: Sequence[Item]) -> TrainConfig:
    """The configuration for a network that predicts ``piece``: start weights that have seen its hospital or one of its images
    are not used; ImageNet's are, or none, where the stem has no others."""
    meta = stored_meta(config.init)
    if meta is None:
        return config
    seen = any(named_sets(record, name) for record in name_records(meta) for name in sets_of(piece))
    if not seen and not (unpack(meta) or set()) & digests_of(piece):
        return config
    start = "imagenet" if config.system.coarse.arch == "compact" else "none"
    log.info("init: %s has seen images that are to be predicted; starts from %s", config.init, start)
    return replace(config, init=start)


def nested_proposals(
    config: TrainConfig,
    data_dir: DataDirs,
    fold: str | int,
    out: str | Path,
    parts: int = 3,
    device: str | None = None,
    leave_out: Sequence[str] = (),
    by_set: bool = False,
    only: str = "",
) -> int:
    """Train ``parts`` coarse networks with a phase-1 configuration and write the proposals of fold's training images into
    ``out``, as ID.png, or SET/ID.png where there are several sets. Goes on where it stopped. Returns how many there are.

    leave_out: sets that nothing is learnt from, and nothing proposed for. by_set: the parts are the sets, so that what is
    proposed for an image is by a network that has not seen its hospital. only: one part, by its number or set; others may
    be made by other processes at the same time."""
    if config.phase != "phase1_coarse":
        raise InputError(f"proposals are made by a phase1_coarse configuration, got {config.phase}")
    if parts < 2 and not by_set:
        raise InputError(f"expected at least 2 parts, got {parts}: a network must not predict what it was trained on")
    out = Path(out)
    items = read_sets(data_dir)
    names = dict(zip((i.key for i in items), names_of(items)))
    split = split_sets(items, fold, config.data.select_share, config.select_seed, leave_out)
    pieces = _pieces(split.train, parts, config.seed, by_set)
    if only and only not in pieces:
        raise InputError(f"there is no part {only}; there are {', '.join(pieces)}")
    for name, piece in pieces.items():
        if only not in ("", name):
            continue
        todo = [i for i in piece if not (out / f"{names[i.key]}.png").is_file()]
        run = out / f"part{name}" if name.isdigit() else out / f"without_{name}"
        rest = tuple(i for other in pieces.values() if other is not piece for i in other)
        # What is away from a hospital is also selected away from it.
        select = tuple(i for i in split.select if not by_set or i.set != name)
        # A set may have no lesion at all: then nothing can be reported of it, but predicted.
        inner = Split(rest, select, tuple(piece) if any(i.has_lesion for i in piece) else ())
        check_same_split(inner, run / "split.json")  # another fold's networks have seen what is reported
        if not todo:
            continue
        if not (run / "model.safetensors").is_file():  # a run's last word
            if not all(any(i.has_lesion for i in part) for part in (rest, select)):
                raise InputError(f"without part {name} no image with a lesion is left to train on, or to select by")
            train_split(_unseen_start(config, piece), inner, run, device, resume=(run / "last.pt").is_file())
        system = load_system(run / "best.safetensors", device=device or "cpu")
        for item in todo:
            write_proposal(out, names[item.key], predicted_prob(system.coarse, system.config, item))
        log.info("part %s of %s: %d proposals", name, ", ".join(pieces), len(todo))
    return sum((out / f"{names[i.key]}.png").is_file() for i in split.train)
