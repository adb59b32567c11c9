"""A training on the final labels of a studies folder: from the model that is served to a candidate in the registry.

What a run leaves in the work folder and how it is resumed: ``studies/training_folder.py``. Nothing is published here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from ultrarefiner_monai.config import TrainConfig, to_dict
from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import NO_FOLD, SELECT_FOLD, Item, read_index
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.learning.labelled import Lookup, Prepared, prepare_labels
from ultrarefiner_monai.learning.registry import Candidate, Registry, Start
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.models.checkpoints import load_system, read_header, save_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.corrections import Labelled
from ultrarefiner_monai.studies.training_folder import TrainingFolder, memory_advice, read_json, write_json
from ultrarefiner_monai.studies.work_folder import WorkFolder
from ultrarefiner_monai.training.run import train

log = logging.getLogger(__name__)

_WAIT_SECONDS = 60  # a request that prepares labels holds the lock for less
_KEPT = ("history.csv", "split.json", "state.json")


def train_on_labels(
    task: str,
    settings: TrainConfig,
    start: Start,
    labelled: Sequence[Labelled],
    work: WorkFolder,
    device: str | None = None,
    resume: bool = True,
    limits: Limits | None = None,
    lookup: Lookup | None = None,
) -> Candidate:
    """Train ``settings`` (whose networks and start weights are taken from ``start``) and keep the result as a candidate.

    resume: go on with this task's last run where it was stopped, if labels and options are still the same.
    lookup: as for ``prepare_labels``. Raises InputError for labels that cannot be trained on, and when a training runs already.
    """
    folder = work.training
    try:
        held = folder.lock().acquire(timeout=_WAIT_SECONDS)
    except Timeout:
        raise InputError("a training runs on these studies already: wait until it ends, or stop it") from None
    with held:
        prepared = prepare_labels(labelled, folder, limits, lookup=lookup)
        assert prepared is not None
        config = started_from(settings, start, folder, work)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        run = _run_folder(task, config, folder, Registry(work), resume)
        state = {
            "task": task,
            "status": "running",
            "epochs": config.epochs,
            "started": time.time(),
            "fingerprint": _fingerprint(config, folder),
            "start": start.name,
            **({"left_out": list(prepared.left_out)} if prepared.left_out else {}),
        }
        write_json(run / "state.json", state)
        log.info("%s: %s; starts from %s", run.name, prepared, start.name)
        try:
            train(config, folder.data, NO_FOLD, run, (run / "last.pt").exists(), device)
            candidate, facts = _keep(run, config, start, prepared, work, device)
        except BaseException as error:
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            write_json(
                run / "state.json",
                {**state, "status": status, "ended": time.time(), "error": reason_of(error, config.batch_size)},
            )
            raise
        state |= {"status": "finished", "ended": time.time(), "version": candidate.version, **facts}
        write_json(run / "state.json", state)
        _clean(run)
    return candidate


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
        return replace(settings, system=replace(system, sam=None), init=str(start.path))
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
    system = replace(system, gate=system.gate.reopened())  # a refiner that was turned down can learn
    return replace(settings, system=system, init=str(path), refine=refine)


def _whole(start: Start, folder: TrainingFolder) -> Path:
    """The served checkpoint and its foreign refiner in one file, made once."""
    system = load_system(start.path, start.refiner)
    path = folder.root / f"start-{system.version.replace('+', '-')}.safetensors"
    if not path.is_file():
        for old in folder.root.glob("start-*.safetensors"):
            old.unlink()
        assert system.refiner is not None
        gate = system.refiner.gate if system.refiner.gate.state_dict() else None  # type: ignore[union-attr, operator]
        save_system(path, system.config, system.coarse, system.refiner.sam, system.meta, False, gate)  # type: ignore
    return path


def _run_folder(task: str, config: TrainConfig, folder: TrainingFolder, registry: Registry, resume: bool) -> Path:
    """The folder of the run to resume, else a new one; runs that can no longer be resumed are removed."""
    own = sorted(folder.runs.glob(f"{task}-*"))
    open_runs = [run for run in own if read_json(run / "state.json").get("status") != "finished"]
    fingerprint = _fingerprint(config, folder)
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


def _fingerprint(config: TrainConfig, folder: TrainingFolder) -> str:
    """A hash of what a run must share with its continuation: options but for the epochs, and labels.

    Options at their defaults do not count, so that a run can be resumed by a version that has a new option.
    """
    options = {k: v for k, v in _changed(to_dict(config), to_dict(TrainConfig())).items() if k != "epochs"}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    digest.update((folder.data / "index.csv").read_bytes())
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


def _keep(
    run: Path, config: TrainConfig, start: Start, prepared: Prepared, work: WorkFolder, device: str
) -> tuple[Candidate, dict[str, Any]]:
    """Add the run's result to the registry, with its figures and those of the model it started from."""
    items = [i for i in read_index(work.training.data) if i.fold == SELECT_FOLD]
    coarse = config.phase == "phase1_coarse"
    facts = {
        "figures": figures_of(run / "model.safetensors", None, items, coarse, device),
        "start_figures": figures_of(start.path, None if coarse else start.refiner, items, coarse, device),
    }
    about = {
        "start": start.name,
        "images": {"train": prepared.train, "select": prepared.select, "lesions": prepared.lesions},
        **facts,
    }
    candidate = Registry(work).add(run.name, run / "model.safetensors", start.path if coarse else None, about)
    return candidate, facts


def figures_of(
    path: Path, refiner: Path | None, items: Sequence[Item], coarse: bool, device: str = "cpu"
) -> dict[str, Any]:
    """dice: mean over the images with a lesion, at their own size; false_alarms of normals: lesion-free ones marked.

    coarse: the coarse network alone, else the automatic result.
    """
    predictor = Predictor(load_system(path, refiner, device), device=device)
    answer = predictor.coarse if coarse else predictor.propose
    dices, marked = [], []
    for item in items:
        mask, label = answer(read_image_file(item.image).frame(0)).mask, read_mask(item.mask)[0]
        if label.any():
            dices.append(dice_of(mask, label))
        else:
            marked.append(float(mask.mean()) > NORMAL_LIMIT)
    dice = round(sum(dices) / len(dices), 4) if dices else None
    return {"dice": dice, "lesions": len(dices), "false_alarms": sum(marked), "normals": len(marked)}


def _clean(run: Path) -> None:
    """Keep the figures of a finished run; remove the weights for resuming and the pictures."""
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in _KEPT:
            path.unlink()
