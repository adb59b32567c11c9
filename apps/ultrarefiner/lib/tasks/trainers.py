"""Trainings that clients start, or the server by itself (``learner``). The final labels of the datastore become a candidate:
a new model, which serves where it passes the gate.

MONAI Label runs ``__call__`` in a process of its own, one at a time, and kills it when a client says stop. Nothing is
lost by that: the last finished epoch lies in the work folder, and the next start with the same labels and options goes
on from there.
"""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks

from lib.store.datastore import StudiesFolder
from lib.tasks.background import FAILED, NOT_DONE, RUNNING, SHORT_OF_MEMORY, WAITING
from lib.tasks.served import Served, device_of
from ultrarefiner_monai.config import ConfigError, ServeConfig, TrainConfig, load_yaml, to_dict
from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.threads import stand_back
from ultrarefiner_monai.core.types import NOTICE, InputError
from ultrarefiner_monai.learning.labelled import prepare_labels
from ultrarefiner_monai.masks.label_values import is_confirmed
from ultrarefiner_monai.studies.corrections import Labelled
from ultrarefiner_monai.studies.training_folder import memory_advice
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL.value
# A request waits so long for new labels to be looked at; more of them are left to the training's own process.
PATIENCE_SECONDS = 20
# What MONAI Label and its clients send besides.
_OTHERS = ("model", "name", "client_id", "gpus", "multi_gpu", "local_rank", "local", "run_id", "pretrained")
# The trainings in which adapters learn, where ``learning.lora`` asks for them; the refiner of both is retrained.
WITH_ADAPTERS = ("sam_refiner", "ultrarefiner")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class LesionTraining(TrainTask):
    """One entry of /info/'s trainers; ``settings``: its YAML file, a TrainConfig without networks."""

    def __init__(self, name: str, settings: Path, served: Served, config: ServeConfig, work: WorkFolder, about: str):
        super().__init__(f"{about} {NOTICE}")
        self.name, self.settings, self.served, self.work = name, settings, served, work
        self.learning = config.learning
        self.limits = Limits(total_pixels=config.max_pixels)
        # Phases with a refiner ask for one in the configuration; the real networks are those of the served model.
        text = settings.read_text(encoding="utf-8")
        self._networks: dict[str, Any] = {} if "phase1_coarse" in text else {"system.sam": {}}
        if "phase: weak_encoder" in text:
            self._networks["weak.boxes"] = str(work.training.boxes)
        if config.learning.lora is not None and name in WITH_ADAPTERS:
            self._networks |= {"refine.lora": to_dict(config.learning.lora), "refine.cache": "off"}
        plain = load_yaml(TrainConfig, settings, self._networks)
        self._config = {
            "max_epochs": plain.epochs,
            "train_batch_size": plain.batch_size,
            "learning_rate": plain.optimiser.lr,
            "early_stop_patience": plain.early_stop or 0,  # epochs without a better one; 0: never
            "device": ["auto", "cpu", *(["cuda"] if torch.cuda.is_available() else [])],
            "resume": True,
        }

    def config(self) -> dict[str, Any]:
        """What clients show and send along; the first of a list is the default."""
        return self._config

    def defaults(self) -> dict[str, Any]:
        """The request of a training that nobody asked for."""
        return self._options({}, strict=False)

    def stats(self) -> dict[str, Any]:
        found, task = self.work.training.stats(self.name), _last_task(self.name)
        if task is None:
            if found.get("status") == "running":  # it was stopped; another one holds the lock that says that one runs
                found = {**found, "status": "stopped", "total_time": found["current_time"]}
                del found["current_time"]
            return found
        asked = _asked(task)
        if found.get("start_ts", 0) >= asked:
            return found
        epochs = int(task["request"].get("max_epochs") or self._config["max_epochs"])
        begun = {"status": "starting", "epoch": 0, "total_epochs": epochs, "start_ts": int(asked), "best_metric": 0}
        if task["status"] == FAILED:  # before there was a run to note it in
            return {**begun, "status": "failed", "error": task["error"]}
        # Its process has not written anything yet: without this, 3D Slicer shows it as complete.
        return begun

    def failed(self, task: dict[str, Any], reason: str) -> str:
        """Note why the process of a training ended, where it could not note that itself. Returns the reason, with what
        to do."""
        if SHORT_OF_MEMORY in reason:
            reason = memory_advice(reason, task["request"].get("train_batch_size"))
        self.work.training.note_failure(self.name, _asked(task), reason)
        return reason

    def check(self, params: dict[str, Any], datastore: StudiesFolder) -> dict[str, Any]:
        """The request with which to start the training. Raises InputError for what can be known before it begins."""
        # Here: a server that only answers needs none of it.
        from ultrarefiner_monai.learning.retraining import champion, started_from

        options = self._options(params, strict=True)
        settings, folder = self._train_config(options), self.work.training
        labelled = labels_to_learn(datastore)
        started_from(settings, champion(self.served.registry, self.served.files), folder, self.work)
        try:
            with folder.lock().acquire(timeout=0):
                lookup = partial(label_now, datastore)
                if prepare_labels(labelled, folder, self.limits, PATIENCE_SECONDS, lookup=lookup) is None:
                    logger.info("%s: there are many new labels; the training looks at the rest", self.name)
        except Timeout:
            logger.info("%s: another training runs; the labels are looked at when it has ended", self.name)
        return options

    def __call__(self, request: dict[str, Any], datastore: StudiesFolder) -> dict[str, Any]:
        """Train; in MONAI Label's subprocess. An error that a user can mend ends the process with its message."""
        from ultrarefiner_monai.learning.mirror import mirror
        from ultrarefiner_monai.learning.retraining import reason_of, train_on_labels

        stand_back(self.learning.nice, self.learning.threads)  # who is served comes first
        try:
            options = self._options(request, strict=False)
            device = device_of(options["device"])
            outcome = train_on_labels(
                self.name,
                self._train_config(options),
                self.served.files,
                labels_to_learn(datastore),
                self.work,
                self.learning,
                device,
                options["resume"],
                self.limits,
                partial(label_now, datastore),
            )
        except (InputError, ConfigError, RuntimeError, OSError, MemoryError) as error:
            logger.exception("%s failed", self.name)
            reason = " ".join(reason_of(error, request.get("train_batch_size")).split())
            print(f"{self.name} {NOT_DONE}{reason}", flush=True)
            sys.exit(1)
        name = outcome.candidate.name
        if outcome.promoted:
            text = f"{name} passed the gate and is served now; `ultrarefiner models rollback` undoes it"
        else:
            why = "; ".join(outcome.report.reasons) if outcome.report else "another model was chosen again and again"
            text = f"{name} is trained and not served: {why}. By hand: `ultrarefiner models promote {name}`"
        print(text, flush=True)
        mirror(self.work)
        return {**self.stats(), "candidate": name, "version": outcome.candidate.version}

    def _options(self, params: dict[str, Any], strict: bool) -> dict[str, Any]:
        known = self.config()
        unknown = sorted(str(k) for k in params if k not in known and k not in _OTHERS)
        if strict and unknown:
            raise InputError(f"there is no option {', '.join(unknown)[:120]}; known: {', '.join(known)}")
        return {k: _typed(k, params.get(k), default) for k, default in known.items()}

    def _train_config(self, options: dict[str, Any]) -> TrainConfig:
        changes = {
            "epochs": options["max_epochs"],
            "batch_size": options["train_batch_size"],
            "optimiser.lr": options["learning_rate"],
            "early_stop": options["early_stop_patience"] or None,
        }
        try:
            return load_yaml(TrainConfig, self.settings, {**self._networks, **changes})
        except ConfigError as error:
            raise InputError(str(error)) from error


def make_trainers(app_dir: Path, served: Served, config: ServeConfig, work: WorkFolder) -> dict[str, LesionTraining]:
    """The trainings by name. Each has the name of the task whose network it trains."""
    texts = {
        "transunet": "Trains the coarse network on the final labels.",
        "sam_refiner": "Trains the refiner on the final labels and on what was corrected.",
        "ultrarefiner": "Trains coarse network and refiner together on the final labels.",
    }
    if config.ppn_refiner:
        texts["ppn"] = "Trains the network that proposes points on the final labels; all else stays as it is."
    if config.weak_encoder:
        texts["weak_encoder"] = "Trains the image encoder from boxes around the final labels, without their outlines."
    return {
        name: LesionTraining(name, app_dir / "train" / f"{name}.yaml", served, config, work, text)
        for name, text in texts.items()
    }


def _last_task(name: str) -> dict[str, Any] | None:
    """The last training of a name that runs, waits or failed, as MONAI Label keeps it."""
    own = [task for task in tasks("train") if task["request"].get("model") == name]
    return own[-1] if own and own[-1]["status"] in (WAITING, RUNNING, FAILED) else None


def _asked(task: dict[str, Any]) -> float:
    """When a training was asked for, in seconds since 1970."""
    return datetime.strptime(task["start_ts"], "%Y-%m-%d %H:%M:%S").timestamp()


def labels_to_learn(datastore: StudiesFolder) -> list[Labelled]:
    """Images with a final label, by id; without those that a PACS cannot give at the moment. Those of a PACS as the
    DICOM files that the journal knows, not as clients get them."""
    return [p for i in sorted(datastore.get_labeled_images(FINAL)) if (p := _labelled(datastore, i)) is not None]


def label_now(datastore: StudiesFolder, image_id: str) -> Labelled | None:
    """An image and its final label as they stand in the studies at this moment; None when one of them is gone."""
    datastore.refresh()
    return _labelled(datastore, image_id)


def _labelled(datastore: StudiesFolder, image_id: str) -> Labelled | None:
    try:
        image = datastore.image_path(image_id)
        label = datastore.get_label_uri(image_id, FINAL)  # after: a label follows the frames of its image
        confirmed = bool(label) and is_confirmed(datastore.get_label_info(image_id, FINAL))
    except (InputError, MONAILabelException) as error:  # the image may be gone since it was listed
        logger.warning("%s is left out: %s", image_id, getattr(error, "msg", None) or error)
        return None
    return Labelled(image_id, image, Path(label), confirmed) if label else None


def _typed(name: str, value: Any, default: Any) -> Any:
    """``value`` as the type of ``default`` (clients send text as well); InputError for anything else."""
    if isinstance(default, list):
        value = default[0] if value in (None, "", default) else value
        if value not in default:
            raise InputError(f"{name} must be one of {', '.join(default)}, got {value!r:.80}")
        return value
    if value is None or value == "":
        return default
    if isinstance(default, bool):
        text = str(value).lower()
        if text not in (*_TRUE, *_FALSE):
            raise InputError(f"{name} must be true or false, got {value!r:.80}")
        return text in _TRUE
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    fits = 0 <= number < 1e9 and (number > 0 or name == "early_stop_patience")
    if not fits or (isinstance(default, int) and number != int(number)):
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise InputError(f"{name} must be {kind} above 0, got {value!r:.80}")
    return type(default)(number)
