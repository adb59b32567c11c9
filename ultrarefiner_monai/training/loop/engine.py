"""One training loop for every phase, on MONAI's trainer, evaluator and handlers.

An epoch's end (each ``validate_every``-th and the last one's) writes ``last.pt`` (all that is needed to go on) and, when
the selection figure is the best so far, ``best.safetensors`` (what serves); with ``keep: last`` it is replaced each time.
Both are whole files at any moment.
Under ``torchrun`` every process runs this loop on its share; process 0 writes (``ddp``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from ignite.handlers.tqdm_logger import ProgressBar
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, default_collate

from ultrarefiner_monai.config import TrainConfig, to_dict
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.training.data.transforms import ID
from ultrarefiner_monai.training.loop import ddp
from ultrarefiner_monai.training.loop.average import Average
from ultrarefiner_monai.training.loop.console import EpochTable
from ultrarefiner_monai.training.loop.epoch_means import Means, over_sets, with_set
from ultrarefiner_monai.training.loop.state import check_same_options, load_state, save_state
from ultrarefiner_monai.training.loop.steps import Steps, TrainingError
from ultrarefiner_monai.training.loop.tracking import Trackers, overlay_sheet
from ultrarefiner_monai.training.phases.phase import Batch, Phase

log = logging.getLogger(__name__)
OVERLAY_EVERY = 5  # epochs; and after the last one


@dataclass
class Best:
    """The best selection figure so far and the epoch that reached it."""

    score: float = float("-inf")
    epoch: int = 0


class Run:
    """One run of one phase: builds the engines, wires the handlers, trains."""

    def __init__(
        self,
        phase: Phase,
        config: TrainConfig,
        training: DataLoader,
        selection: DataLoader,
        out: Path,
        device: str = "cpu",
        meta: dict[str, Any] | None = None,
    ) -> None:
        if len(training) == 0:
            raise InputError("there is nothing to train on: the training part of this fold is empty")
        if len(selection) == 0:
            raise InputError("there are fewer selection images than processes: start fewer, or raise data.select_share")
        self.phase, self.config, self.training, self.selection = phase, config, training, selection
        self.out, self.device, self.meta, self.best = out, torch.device(device), meta or {}, Best()
        self.steps = Steps(phase, config, len(training), self.device)
        self.network = self.steps.network
        self.trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=config.epochs,
            train_data_loader=training,
            network=self.network,
            optimizer=self.steps.optimiser,
            loss_function=lambda *_: None,  # the phase's own, in Steps
            iteration_update=self.steps,
            decollate=False,
        )
        self.ema = Average(self.network, momentum=config.ema) if config.ema else None
        self.evaluator = SupervisedEvaluator(
            device=self.device,
            val_data_loader=selection,
            network=self.evaluated,
            iteration_update=self._figures,
            decollate=False,
        )
        self.table = EpochTable(out / "history.csv", config.epochs)
        self.early_stop: EarlyStopping | None = None
        self._kept_trackers: dict[str, Any] | None = None
        self._trackers: Trackers | None = None
        self._attach()

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and saved: the averaged one where there is an average."""
        return self.network if self.ema is None else self.ema.ema_model

    @torch.no_grad()
    def _figures(self, engine: Engine, batch: Batch) -> dict[str, torch.Tensor]:
        self.evaluated.eval()
        with self.steps.autocast():
            figures = self.phase.figures(self.evaluated, self.steps.to_device(batch))
        # ``plain_loader`` makes lists of batches where there are several sets.
        return with_set(figures, batch[ID]) if isinstance(self.selection.batch_sampler, list) else figures

    # --- handlers -----------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        trainer, evaluator = self.trainer, self.evaluator
        for engine in (trainer, evaluator):  # what ends a run is said once, by the one who called it
            engine.logger.setLevel(logging.CRITICAL)
        trainer.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        if self.ema is not None:
            stepped = Events.ITERATION_COMPLETED(event_filter=lambda _, k: self.steps.accumulation.at(k)[0])
            self.ema.attach(trainer, event=stepped)
        self._train_means, self._select_means = Means(self.device), Means(self.device)
        self._train_means.attach(trainer)
        self._select_means.attach(evaluator)
        if ddp.is_main():  # without a terminal (a job's log) tqdm is silent
            bar = {"persist": False, "disable": None}
            ProgressBar(desc="training", **bar).attach(trainer, output_transform=lambda o: {"loss": o["loss"]})
            ProgressBar(desc="validation", **bar).attach(evaluator)
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self._track_step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: ddp.same_buffers(self.evaluated))
        due = Events.EPOCH_COMPLETED(event_filter=lambda _, epoch: self._is_due(epoch))
        trainer.add_event_handler(due, ValidationHandler(1, evaluator))
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._gather_figures)
        if self.config.early_stop is not None:
            self.early_stop = EarlyStopping(self.config.early_stop, lambda e: e.state.metrics["select"], trainer)
            evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.early_stop)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)  # after validation: attached last

    def _start_epoch(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        dataset, sampler = self.training.dataset, self.training.sampler
        dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        self.steps.start_epoch(epoch)

    def _is_due(self, epoch: int) -> bool:
        """Whether this epoch ends with a look at the selection images."""
        return epoch % self.config.validate_every == 0 or epoch == self.config.epochs

    def _gather_figures(self, engine: Engine) -> None:
        engine.state.metrics.update(over_sets(self._select_means.compute()))

    def _track_step(self, engine: Engine) -> None:
        assert self._trackers is not None
        self._trackers.scalars({f"step/{k}": v for k, v in engine.state.output.items()}, engine.state.iteration)

    def _finish_epoch(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        losses = self._train_means.compute()
        if not self._is_due(epoch):
            if ddp.is_main():
                self.table.add(epoch, losses, {}, self.steps.optimiser.param_groups[0]["lr"], False)
                self._track_epoch(epoch, losses, {})
            return
        figures = {k: float(v) for k, v in self.evaluator.state.metrics.items()}
        is_best = figures["select"] > self.best.score
        if is_best:
            self.best = Best(figures["select"], epoch)
        if not ddp.is_main():
            return
        self.phase.judge(epoch, figures)
        try:
            if is_best or self.config.keep == "last":
                meta = {**self.meta, "phase": self.config.phase, "epoch": epoch, "selection": figures}
                self.phase.save(self.evaluated, self.out / "best.safetensors", meta)
            self.table.add(epoch, losses, figures, self.steps.optimiser.param_groups[0]["lr"], is_best)
            self._save_state(epoch)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own for a full disk
            raise TrainingError(
                f"epoch {epoch} could not be written to {self.out} ({error}); the state of the last epoch that could is "
                "still there: make room, then go on with --resume"
            ) from error
        self._track_epoch(epoch, losses, figures)

    def _track_epoch(self, epoch: int, losses: Mapping[str, float], figures: Mapping[str, float]) -> None:
        assert self._trackers is not None
        rates = {f"lr/{name}": rate for name, rate in self.steps.rates().items()}
        train, select = ({f"{p}/{k}": v for k, v in d.items()} for p, d in (("train", losses), ("select", figures)))
        self._trackers.scalars({**train, **select, **rates}, epoch)
        if self.config.overlays and (epoch % OVERLAY_EVERY == 0 or epoch == self.config.epochs):
            try:
                self._draw(epoch)
            except OSError as error:
                log.warning("the overlays of epoch %d could not be written: %s", epoch, error)

    @torch.no_grad()
    def _draw(self, epoch: int) -> None:
        """Outlines on the same few selection images each time, where the phase draws (``Phase.pictures``)."""
        dataset = self.selection.dataset
        number = min(self.config.overlays, len(dataset))  # type: ignore[arg-type]
        chosen = np.linspace(0, len(dataset) - 1, number).round().astype(int)  # type: ignore[arg-type]
        batch = (self.selection.collate_fn or default_collate)([dataset[int(k)] for k in chosen])
        self.evaluated.eval()
        with self.steps.autocast():
            pictures = self.phase.pictures(self.evaluated, self.steps.to_device(batch))
        if pictures is None:
            return
        sheet = overlay_sheet(pictures)
        path = self.out / "overlays" / f"epoch_{epoch:04d}.png"
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            Image.fromarray(sheet).save(file, "PNG")
        assert self._trackers is not None
        self._trackers.picture(path, sheet, epoch)

    # --- state --------------------------------------------------------------------------------------------------------

    def _save_state(self, epoch: int) -> None:
        state = {
            **self.steps.state(),
            "average": None if self.ema is None else self.ema.ema_model.state_dict(),
            "early_stop": None if self.early_stop is None else dict(self.early_stop.state_dict()),
            "trackers": None if self._trackers is None else self._trackers.state(),
            "epoch": epoch,
            "best": {"score": self.best.score, "epoch": self.best.epoch},
            "config": to_dict(self.config),
        }
        save_state(self.out / "last.pt", state)

    def resume(self) -> None:
        """Go on from ``last.pt``. Raises InputError when it belongs to another configuration."""
        state = load_state(self.out / "last.pt")
        check_same_options(self.out / "last.pt", state["config"], self.config)
        self.steps.load(state)
        if self.ema is not None:
            self.ema.ema_model.load_state_dict(state["average"])
        if self.early_stop is not None and state.get("early_stop") is not None:
            self.early_stop.load_state_dict(state["early_stop"])
        self._kept_trackers = state.get("trackers")
        self.best = Best(**state["best"])
        self.trainer.state.epoch = state["epoch"]
        self.trainer.state.iteration = state["epoch"] * len(self.training)
        self.table.resume(state["epoch"])
        log.info("going on after epoch %d; best so far %.4f in epoch %d", state["epoch"], *vars(self.best).values())

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train: the last epoch is done, or early stopping has spoken."""
        stop = self.early_stop
        return self.trainer.state.epoch >= self.config.epochs or (stop is not None and stop.counter >= stop.patience)

    def fit(self) -> Best:
        """Train to the last epoch, or until early stopping. A second call after ``resume`` goes on where it stood.

        Raises TrainingError, and lets KeyboardInterrupt through; ``last.pt`` then holds the last finished epoch.
        """
        if self.finished:
            return self.best
        done = False
        if ddp.is_main():
            state = self.trainer.state
            self._trackers = Trackers(
                self.out, self.config, self._tags(), self._kept_trackers, state.epoch + 1, state.iteration + 1
            )
        try:
            if ddp.is_main() and not (self.out / "last.pt").exists():
                # So that a run can be interrupted in its first epoch, and a full disk shows at once.
                self._save_state(0)
            self.trainer.run()
            done = True
        finally:
            if self._trackers is not None:
                self._trackers.close(done)
        if ddp.is_main():
            self.table.finish()
        return self.best

    def _tags(self) -> dict[str, str]:
        return {k: str(self.meta[k]) for k in ("data", "fold", "package", "seed") if k in self.meta}
