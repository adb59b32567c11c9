"""The part of the work folder that trainings write: prepared copies, the fixed validation split, one folder a run.

labels/      images/, masks/ and index.csv as `ultrarefiner prepare` makes them, of the final labels
split.json   which image validates and which is trained on: written when an image comes first, never changed again
boxes.csv    boxes around the labels, where weak_encoder has trained
quick/       features of labelled images that quick learning keeps, and what it came to last
runs/NAME/   what a run leaves; state.json says how far it came
lock         held while a training runs; split.lock: while an image is given its place in the split
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError

# image: its id in the studies. state: of image and label file when they were copied. patient: a hash, or empty.
COLUMNS = "id image state patient class group fold width height lesion_fraction view".split()
Row = dict[str, str]


@dataclass(frozen=True)
class TrainingFolder:
    """Paths and small files below ``root``; the work folder's ``training``."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "labels"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def quick(self) -> Path:
        """Kept features of quick learning: ITEM.safetensors, scores/ITEM.json, and replay/ of an older data folder."""
        return self.root / "quick"

    @property
    def boxes(self) -> Path:
        """Boxes around the labels, which the training weak_encoder learns from."""
        return self.root / "boxes.csv"

    @property
    def split_file(self) -> Path:
        return self.root / "split.json"

    def lock(self) -> FileLock:
        """Held by a running training; given up by itself when its process ends, however it ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(str(self.root / "lock"))

    def split_lock(self) -> FileLock:
        """Held while split.json is read and written again: quick and slow learning both place new labels."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(str(self.root / "split.lock"))

    def is_busy(self) -> bool:
        """Whether a training runs."""
        if not (self.root / "lock").exists():
            return False
        try:
            with self.lock().acquire(timeout=0):
                return False
        except Timeout:
            return True

    def read_rows(self) -> list[Row]:
        """The rows of index.csv; none when there is no index, or one that cannot be read."""
        try:
            with (self.data / "index.csv").open(newline="", encoding="utf-8") as file:
                rows = [{"view": "", **row} for row in csv.DictReader(file)]  # a version before had no views
                return [r for r in rows if None not in r.values() and set(COLUMNS) <= r.keys()]
        except (OSError, ValueError):
            return []

    def write_rows(self, rows: list[Row]) -> None:
        with replacing(self.data / "index.csv", "w") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: row["id"]))

    def pair(self, item: str) -> tuple[Path, Path]:
        """(image, mask) of one prepared frame."""
        return self.data / "images" / f"{item}.png", self.data / "masks" / f"{item}.png"

    def read_split(self) -> dict[str, dict[str, str]]:
        """Image id -> {"group": ..., "part": "train", "select" or "test"}. Raises InputError for a damaged file: a split that
        is drawn anew would train on what it validated on.
        """
        if not self.split_file.is_file():
            return {}
        try:
            images = json.loads(self.split_file.read_text(encoding="utf-8"))["images"]
            return {str(k): {"group": str(v["group"]), "part": str(v["part"])} for k, v in images.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.split_file} is damaged ({error!r}): bring it back from a backup; or remove it and the candidates "
                "made so far, whose figures a new split makes worthless"
            ) from error

    def write_split(self, images: dict[str, dict[str, str]]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.split_file, {"images": dict(sorted(images.items()))})

    def learnt(self, run: str) -> tuple[set[str], float]:
        """Ids of the frames that a run was trained on, and when it began (seconds since 1970); none and 0 where there is no
        such run any more."""
        kept = read_json(self.runs / run / "split.json").get("train")
        ids = {str(item) for item in kept} if isinstance(kept, list) else set()
        return ids, float(read_json(self.runs / run / "state.json").get("started", 0.0))

    def latest_run(self, task: str) -> Path | None:
        """The folder of the run of a task that was begun, or gone on with, last."""
        found = [p.parent for p in self.runs.glob("*/state.json") if read_json(p).get("task") == task]
        return max(found, key=lambda p: read_json(p / "state.json").get("started", 0), default=None)

    def stats(self, task: str) -> dict[str, Any]:
        """How far a task's latest run is, under the names that MONAI Label's clients read; {} when there was none.

        epoch, total_epochs, best_metric (the best selection figure), start_ts, current_time while it runs and total_time
        when it is over, eval and train with the last epoch's figures; and status (running, stopped, finished, failed), name
        and, where there is one, error; left_out: ids of images that changed while it began. promoted, gate:
        whether its result serves, and the gate's report.
        """
        run = self.latest_run(task)
        if run is None:
            return {}
        state, rows = read_json(run / "state.json"), _history(run / "history.csv")
        status = state.get("status", "stopped")
        if status == "running" and not self.is_busy():
            status = "stopped"
        best = max(rows, key=lambda row: row.get("select", 0), default={})
        last = rows[-1] if rows else {}
        found: dict[str, Any] = {
            "name": run.name,
            "status": status,
            "epoch": int(last.get("epoch", 0)),
            "total_epochs": state.get("epochs", 0),
            "start_ts": int(state.get("started", 0)),
            "best_metric": best.get("select", 0),
        }
        spent = state.get("ended", time.time()) - state.get("started", 0)
        found["current_time" if status == "running" else "total_time"] = str(timedelta(seconds=int(spent)))
        apart = ("epoch", "loss", "lr", "seconds")
        found["train"] = {"metrics": {k: v for k, v in last.items() if k in apart or k.startswith("train_")}}
        found["eval"] = {
            "metrics": {k: v for k, v in last.items() if k not in apart and not k.startswith("train_")},
            "key_metric_name": "select",
            "best_metric": found["best_metric"],
            "best_metric_epoch": int(best.get("epoch", 0)),
        }
        return found | {
            k: state[k] for k in ("error", "left_out", "figures", "start_figures", "gate", "promoted") if k in state
        }

    def note_failure(self, task: str, since: float, reason: str) -> None:
        """Write into a task's run that was begun, or gone on with, after ``since`` why it ended, where it still calls itself
        running: its process could not say it."""
        run = self.latest_run(task)
        state = read_json(run / "state.json") if run is not None else {}
        if run is None or state.get("status") != "running" or state.get("started", 0) < since or self.is_busy():
            return
        write_json(run / "state.json", {**state, "status": "failed", "ended": time.time(), "error": reason})

    def forget(self, image_id: str) -> int:
        """Remove the copies of one image, its place in the split, and runs that were to go on with it; how many copies.

        Raises InputError while a training runs: it holds the image in memory.
        """
        if self.is_busy():
            raise InputError(f"a training runs on these studies and may hold {image_id}: stop it first, then forget")
        if not self.root.is_dir():
            return 0
        rows = self.read_rows()
        own = {row["id"] for row in rows if row["image"] == image_id}
        for folder in ("images", "masks"):  # also what an index that was lost does not name
            own |= {p.stem for p in (self.data / folder).glob("*.png") if p.stem.rpartition("@")[0] == image_id}
        if own:
            self.write_rows([row for row in rows if row["id"] not in own])
        for item in own:
            for path in self.pair(item):
                path.unlink(missing_ok=True)
        self.boxes.unlink(missing_ok=True)  # the next training that needs it makes it anew
        with self.split_lock():
            split = self.read_split()
            if split.pop(image_id, None):
                self.write_split(split)
        for path in (*self.quick.glob("*.safetensors"), *(self.quick / "scores").glob("*.json")):
            if path.stem.rpartition("@")[0] == image_id:
                path.unlink(missing_ok=True)
        last = read_json(self.quick / "last.json")
        problems = last.get("problems")
        if isinstance(problems, dict) and any(image_id in (name, name.rpartition("@")[0]) for name in problems):
            kept = {k: v for k, v in problems.items() if image_id not in (k, k.rpartition("@")[0])}
            write_json(self.quick / "last.json", {**last, "problems": kept})
        for run in sorted(self.runs.glob("*")):
            self._forget_in_run(run, image_id)
        return len(own)

    def _image_of(self, item: str) -> str:
        """The image of a frame as a run names it: with the folder before it, where others were replayed."""
        return item.removeprefix(f"{self.data.name}/").rpartition("@")[0]

    def _forget_in_run(self, run: Path, image_id: str) -> None:
        path = run / "split.json"
        parts = read_json(path)
        kept = {part: [i for i in ids if self._image_of(i) != image_id] for part, ids in parts.items()}
        if kept == parts:
            return
        if read_json(run / "state.json").get("status") == "finished":
            write_json(path, kept)
        else:  # its last.pt can only go on with the very same images
            shutil.rmtree(run, ignore_errors=True)


def _history(path: Path) -> list[dict[str, float]]:
    """The rows of a run's history.csv, numbers that are finite."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError):
        return []
    return [{k: v for k, v in row.items() if math.isfinite(v)} for row in rows]


def memory_advice(reason: str, batch_size: Any = None) -> str:
    """A sentence for users whose training was short of memory: what happened, and what to do."""
    now = f" (it was {batch_size})" if batch_size else ""
    return f"{reason}; choose a smaller train_batch_size{now}, or close other programs, and start it again: it goes on"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is none, or it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """The other way round; written beside and renamed."""
    with replacing(path, "w") as file:
        json.dump(value, file, indent=1)
