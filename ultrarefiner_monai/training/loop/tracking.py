"""Where a run's figures and pictures go besides its own folder: TensorBoard and MLflow, both on this machine only.

A tracker that fails (a full disk, a locked database) is reported once and left out: it never ends a training.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ultrarefiner_monai.config import ConfigError, TrainConfig, to_dict

log = logging.getLogger(__name__)
# The label first; then whatever a phase draws, in its order.
COLOURS = ((53, 208, 127), (255, 176, 0), (90, 170, 255), (255, 90, 160))


class Tracker(Protocol):
    """One place that keeps a run's history."""

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """Figures by name, such as ``train/loss``, at a step (an iteration for ``step/*``, else an epoch)."""

    def picture(self, path: Path, image: np.ndarray, epoch: int) -> None:
        """An RGB picture (H, W, 3) uint8 that lies at ``path`` as a file."""

    def close(self, finished: bool) -> None: ...


class TensorBoard:
    """Event files in the run's ``tensorboard/``."""

    def __init__(self, out: Path, first_epoch: int, first_iteration: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(_lacking("tensorboard", "TensorBoard")) from error
        # What an interrupted part wrote after its last checkpoint is hidden: it is computed again.
        self._epochs = SummaryWriter(str(out / "tensorboard"), purge_step=first_epoch)
        self._steps = SummaryWriter(str(out / "tensorboard" / "steps"), purge_step=first_iteration)

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            (self._steps if name.startswith("step/") else self._epochs).add_scalar(name, value, step)

    def picture(self, path: Path, image: np.ndarray, epoch: int) -> None:
        self._epochs.add_image("overlays", image, epoch, dataformats="HWC")

    def close(self, finished: bool) -> None:
        self._epochs.close()
        self._steps.close()


class MLflow:
    """A run in an MLflow store, by default an SQLite file. Its telemetry is switched off; nothing leaves the machine."""

    def __init__(self, out: Path, config: TrainConfig, tags: Mapping[str, str], run_id: str | None) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ConfigError(_lacking(config.tracking, "MLflow")) from error
        self._metric = Metric
        folder = out.absolute().parent
        self.client: Any = MlflowClient(config.mlflow_uri or f"sqlite:///{folder / 'mlflow.db'}")
        found = self.client.get_experiment_by_name(config.phase)
        if found is None:
            # With a server the server decides; with a file, artefacts lie beside it, not where the command was given.
            place = None if config.mlflow_uri.startswith("http") else (folder / "mlartifacts").as_uri()
            experiment = self.client.create_experiment(config.phase, artifact_location=place)
        else:
            experiment = found.experiment_id
        self.run_id = self._found(run_id) or self._begin(experiment, out.name, config, tags)
        self.client.update_run(self.run_id, status="RUNNING")

    def _found(self, run_id: str | None) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            return run_id and self.client.get_run(run_id).info.run_id
        except MlflowException:  # the store is another one, or was emptied
            return None

    def _begin(self, experiment: str, name: str, config: TrainConfig, tags: Mapping[str, str]) -> str:
        run_id = self.client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id
        for key, value in flat(to_dict(config)).items():
            self.client.log_param(run_id, key, str(value)[:500])
        return run_id

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        if any(name.startswith("step/") for name in figures):
            return  # a row of a database each: too many
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in figures.items() if np.isfinite(value)]
        self.client.log_batch(self.run_id, metrics=metrics)

    def picture(self, path: Path, image: np.ndarray, epoch: int) -> None:
        self.client.log_artifact(self.run_id, str(path), "overlays")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


class Trackers:
    """All trackers of a run as one. state: what ``state()`` of the interrupted run gave, so that MLflow's run goes on."""

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        tags: Mapping[str, str],
        state: Mapping[str, Any] | None = None,
        first_epoch: int = 1,
        first_iteration: int = 1,
    ) -> None:
        self._all: list[Tracker] = []
        self._run_id: str | None = (state or {}).get("mlflow_run")
        if config.tracking in ("tensorboard", "both"):
            self._all.append(TensorBoard(out, first_epoch, first_iteration))
        if config.tracking in ("mlflow", "both"):
            mlflow = MLflow(out, config, tags, self._run_id)
            self._run_id = mlflow.run_id
            self._all.append(mlflow)

    def state(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {"mlflow_run": self._run_id}

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        self._each("scalars", figures, step)

    def picture(self, path: Path, image: np.ndarray, epoch: int) -> None:
        self._each("picture", path, image, epoch)

    def close(self, finished: bool) -> None:
        self._each("close", finished)
        self._all = []

    def _each(self, method: str, *args: Any) -> None:
        for tracker in list(self._all):
            try:
                getattr(tracker, method)(*args)
            except Exception as error:  # a database's, a disk's, a server's
                log.warning("%s failed and is left out from now on: %s", type(tracker).__name__, error)
                self._all.remove(tracker)


def _lacking(tracking: str, name: str) -> str:
    return f"tracking: {tracking} needs {name}: pip install 'ultrarefiner-monai[train]', or set tracking: none"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values -> one level with dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out


def overlay_sheet(pictures: Mapping[str, torch.Tensor]) -> np.ndarray:
    """``image`` (B, 1, S, S) in [0, 1] and masks (B, 1, S, S) by name -> one RGB row (S, B * S, 3) uint8 with outlines."""
    image = pictures["image"].float().clamp(0, 1)
    canvas = (image.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8).cpu()
    masks = [mask for name, mask in pictures.items() if name != "image"]
    for mask, colour in zip(masks, COLOURS):
        inside = (mask > 0.5).float().cpu()
        edge = (inside - (1 - F.max_pool2d(1 - inside, 3, stride=1, padding=1))) > 0
        paint = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None]
        canvas = torch.where(edge.expand(-1, 3, -1, -1), paint, canvas)
    return torch.cat(list(canvas), dim=-1).permute(1, 2, 0).contiguous().numpy()
