"""A training on the final labels of a studies folder: from the model that is served to a candidate that is judged.

What a run leaves in the work folder and how it is resumed: ``studies/training_folder.py``; what becomes of its result:
``promotion.py``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout

from ultrarefiner_monai.config import LearningConfig, SystemConfig, TrainConfig, to_dict
from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.boxes import boxes_of_folder, write_boxes
from ultrarefiner_monai.datasets.datalist import NO_FOLD, Item, Split, read_index, split_fold
from ultrarefiner_monai.datasets.grouping import SIDE, thumbnail_of
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.learning.label_split import unlike
from ultrarefiner_monai.learning.labelled import Lookup, prepare_labels
from ultrarefiner_monai.learning.mistakes import department_corruption
from ultrarefiner_monai.learning.promotion import Files, Outcome, keep, settle, told
from ultrarefiner_monai.learning.registry import Registry, Start
from ultrarefiner_monai.models.checkpoints import load_system, read_header, save_system
from ultrarefiner_monai.studies.corrections import Labelled, read_corrections
from ultrarefiner_monai.studies.training_folder import TrainingFolder, memory_advice, read_json, write_json
from ultrarefiner_monai.studies.work_folder import WorkFolder
from ultrarefiner_monai.training.run import about_data, train_split

log = logging.getLogger(__name__)

_WAIT_SECONDS = 60  # a request that prepares labels holds the lock for less
_KEPT = ("history.csv", "split.json", "state.json")


def train_on_labels(
    task: str,
    settings: TrainConfig,
    files: Files,
    labelled: Sequence[Labelled],
    work: WorkFolder,
    learning: LearningConfig | None = None,
    device: str | None = None,
    resume: bool = True,
    limits: Limits | None = None,
    lookup: Lookup | None = None,
) -> Outcome:
    """Train ``settings``, whose networks and start weights are those of what is served, and let the gate decide whether the
    result takes its place.

    files: the files of a model by its name. resume: go on with this task's last run where it was stopped, if labels and
    options are still the same. lookup: as for ``prepare_labels``. Raises InputError for labels that cannot be trained on,
    for a served model that is damaged, and when a training runs already.
    """
    learning, registry = learning or LearningConfig(), Registry(work)
    folder = work.training
    try:
        held = folder.lock().acquire(timeout=_WAIT_SECONDS)
    except Timeout:
        raise InputError("a training runs on these studies already: wait until it ends, or stop it") from None
    with held:
        start = champion(registry, files)
        prepared = prepare_labels(labelled, folder, limits, lookup=lookup)
        assert prepared is not None
        config = started_from(settings, start, folder, work)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        split, replayed = labels_split(folder), list[Item]()
        if config.phase == "weak_encoder":  # which knows boxes of these labels alone
            write_boxes(folder.boxes, boxes_of_folder(folder.data))
        else:
            split, replayed = with_replay(split, learning, config.seed)
        config = with_mistakes(config, split)
        run = _run_folder(task, config, folder, registry, resume, replayed)
        state = {
            "task": task,
            "status": "running",
            "epochs": config.epochs,
            "started": time.time(),
            "fingerprint": _fingerprint(config, folder, replayed),
            "start": start.name,
            **({"left_out": list(prepared.left_out)} if prepared.left_out else {}),
        }
        write_json(run / "state.json", state)
        log.info("%s: %s; starts from %s", run.name, prepared, start.name)
        try:
            about = about_data([*split.train, *split.select], NO_FOLD)
            train_split(config, split, run, device, (run / "last.pt").exists(), **about)
            candidate = keep(registry, run, config, start, prepared, len(replayed))
            outcome = settle(registry, candidate, files, split.select, learning, device)
        except BaseException as error:
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            _note(run, {**state, "status": status, "ended": time.time(), "error": reason_of(error, config.batch_size)})
            raise
        write_json(run / "state.json", {**state, "status": "finished", "ended": time.time(), **told(outcome)})
        _clean(run)
    return outcome


def champion(registry: Registry, files: Files) -> Start:
    """The files of what is served. Raises InputError where they, or the pointer, are damaged, with what to do."""
    pointer = registry.pointer()
    if pointer.problem:
        raise InputError(f"nothing can be trained: {pointer.problem}")
    name = pointer.name
    try:
        registry.require_sound(name)
        return files(name)
    except InputError as error:
        raise InputError(
            f"nothing can be trained from {name}, which is damaged: {error}. Choose another model: `ultrarefiner models "
            "rollback`, or `models promote NAME`"
        ) from error


def labels_split(folder: TrainingFolder) -> Split:
    """The prepared labels as they were placed: trained on, and validating."""
    return split_fold(read_index(folder.data), NO_FOLD)


def with_replay(split: Split, learning: LearningConfig, seed: int) -> tuple[Split, list[Item]]:
    """``split`` with images of the prepared folder ``learning.replay`` to train on, ``replay_share`` of all; and these.

    Images that validate here, or are like one that does, are never among them, nor those of its test fold. Raises InputError for a folder that cannot
    be used.
    """
    if not learning.replay or not learning.replay_share:
        return split, []
    try:
        items = [i for i in read_index(learning.replay) if i.fold != "test"]
    except InputError as error:
        raise InputError(f"learning.replay: {error}") from error
    share = min(learning.replay_share, 0.9)
    count = math.ceil(share / (1 - share) * len(split.train))
    order = sorted(items, key=lambda i: hashlib.sha256(f"{seed}:{i.id}".encode()).hexdigest())
    validates = np.stack([_thumbnail(item) for item in split.select]) if split.select else np.zeros((0, SIDE**2))
    chosen: list[Item] = []
    for item in order:
        if len(chosen) < count and unlike(_thumbnail(item)[None], validates).all():
            chosen.append(item)
    return Split((*split.train, *chosen), split.select, split.report), chosen


def _thumbnail(item: Item) -> np.ndarray:
    return thumbnail_of(read_image_file(item.image).frame(0))


def with_mistakes(config: TrainConfig, split: Split) -> TrainConfig:
    """The refiner's simulated coarse masks as this department's model errs (``mistakes.py``); what validates says nothing."""
    if config.phase in ("phase1_coarse", "weak_encoder") or not config.refine.corrections:
        return config
    trained = {item.id for item in split.train}
    corrections = [c for c in read_corrections(config.refine.corrections) if c.id in trained]
    corruption = department_corruption(corrections, config.refine.corruption)
    return replace(config, refine=replace(config.refine, corruption=corruption))


def _note(run: Path, state: dict[str, Any]) -> None:
    """Write why a run ended, where the disk still takes it."""
    try:
        write_json(run / "state.json", state)
    except OSError as error:
        log.error("%s could not note why it ended: %s", run.name, error.strerror)


# How torch, its data loader and the system say that memory is short; only a part of it has an exception of its own.
_SHORT = ("not enough memory", "out of memory", "allocate memory", "by signal: killed")


def reason_of(error: BaseException, batch_size: Any = None) -> str:
    """Why a training failed, in words for its user; without paths. batch_size: what it was trained with."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _SHORT):
        return memory_advice("the memory did not suffice", batch_size)
    if isinstance(error, OSError) and error.strerror:
        name = f": {Path(str(error.filename)).name}" if error.filename else ""
        return f"{error.strerror}{name}"
    return text or type(error).__name__


def started_from(settings: TrainConfig, start: Start, folder: TrainingFolder, work: WorkFolder) -> TrainConfig:
    """``settings`` with the networks and weights of ``start``. Raises InputError where it lacks what is to be trained."""
    system = read_header(start.path)[0]
    if settings.phase == "phase1_coarse":
        return replace(settings, system=replace(system, sam=None, ppn=None, views=()), init=str(start.path))
    path = start.path
    if start.refiner is not None:
        path = _whole(start, folder)
        system = read_header(path)[0]
    if system.sam is None:
        raise InputError(
            f"the model that is served ({start.name}) has no refiner to train: train one with `ultrarefiner train "
            "phase2_refiner`, or name SAM weights in the server's option refiner_weights"
        )
    refine = replace(settings.refine, sam_init=str(path), corrections=str(work.root))
    if settings.phase == "ppn":
        return _with_points(settings, system, path)
    if settings.phase == "weak_encoder":
        return replace(settings, system=replace(system, ppn=None), init=str(path))
    system = replace(system, gate=system.gate.reopened())  # a refiner that was turned down can learn
    return replace(settings, system=system, init=str(path), refine=refine)


def _with_points(settings: TrainConfig, system: SystemConfig, path: Path) -> TrainConfig:
    """A training of the point proposal network: the system's own where it has one. All else is the system's."""
    if system.refiner.roi:
        raise InputError("the model that is served encodes crops (refiner.roi): no points can be proposed to it")
    ppn = system.ppn or settings.system.ppn
    assert ppn is not None
    points = replace(settings.points, inside=min(settings.points.inside, ppn.points))
    return replace(settings, system=replace(system, ppn=ppn), init=str(path), points=points)


def _whole(start: Start, folder: TrainingFolder) -> Path:
    """The served checkpoint and its foreign refiner in one file, made once."""
    system = load_system(start.path, start.refiner)
    path = folder.root / f"start-{system.version.replace('+', '-')}.safetensors"
    if not path.is_file():
        for old in folder.root.glob("start-*.safetensors"):
            old.unlink()
        assert system.refiner is not None
        # A foreign refiner knows no views.
        gate = system.refiner.gate if system.refiner.gate.state_dict() else None  # type: ignore[union-attr, operator]
        save_system(path, system.config, system.coarse, system.refiner.sam, system.meta, False, gate)  # type: ignore
    return path


def _run_folder(
    task: str, config: TrainConfig, folder: TrainingFolder, registry: Registry, resume: bool, replayed: Sequence[Item]
) -> Path:
    """The folder of the run to resume, else a new one; runs that can no longer be resumed are removed."""
    own = sorted(folder.runs.glob(f"{task}-*"))
    open_runs = [run for run in own if read_json(run / "state.json").get("status") != "finished"]
    fingerprint = _fingerprint(config, folder, replayed)
    for run in open_runs:
        same = read_json(run / "state.json").get("fingerprint") == fingerprint
        if resume and same and (run / "last.pt").is_file() and (run / "split.json").is_file():
            log.info("going on with %s", run.name)
            return run
    name = registry.free_name(task, [run.name for run in own])
    for run in open_runs:
        shutil.rmtree(run, ignore_errors=True)
    path = folder.runs / name
    path.mkdir(parents=True)
    return path


def _fingerprint(config: TrainConfig, folder: TrainingFolder, replayed: Sequence[Item] = ()) -> str:
    """A hash of what a run must share with its continuation: options but for the epochs, and labels.

    Options at their defaults do not count, so that a run can be resumed by a version that has a new option.
    """
    options = {k: v for k, v in _changed(to_dict(config), to_dict(TrainConfig())).items() if k != "epochs"}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    digest.update((folder.data / "index.csv").read_bytes())
    digest.update("".join(i.key for i in replayed).encode())
    return digest.hexdigest()[:16]


def _changed(options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The options that differ from their defaults, nested as in the configuration."""
    out = {}
    for name, value in options.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            value, default = _changed(value, default), {}
        if value != default:
            out[name] = value
    return out


def _clean(run: Path) -> None:
    """Keep the figures of a finished run; remove the weights for resuming and the pictures."""
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in _KEPT:
            path.unlink()
