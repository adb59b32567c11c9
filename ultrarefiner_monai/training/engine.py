"""One training loop for every phase, on MONAI's trainer, evaluator and handlers.

An epoch's end writes ``last.pt`` (everything needed to go on) and, when the selection figure is the best so far,
``best.safetensors`` (what serves); with ``keep: last`` every epoch replaces it. Both are whole files at any moment.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping, EMAHandler
from ignite.handlers.tqdm_logger import ProgressBar
from ignite.metrics import Average
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import TensorBoardStatsHandler, ValidationHandler
from torch.utils.data import DataLoader

from ultrarefiner_monai.config import TrainConfig, to_dict
from ultrarefiner_monai.data.transforms import ID
from ultrarefiner_monai.training.console import EpochTable
from ultrarefiner_monai.training.optim import build_optimiser, build_schedule
from ultrarefiner_monai.training.phases import Batch, Phase
from ultrarefiner_monai.training.state import load_state, save_state
from ultrarefiner_monai.types import InputError

log = logging.getLogger(__name__)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the batch."""


@dataclass
class Best:
    """The best selection figure so far and the epoch that reached it."""

    score: float = float("-inf")
    epoch: int = 0


class ImageMean(Average):
    """The mean over images of a figure that a step returns as (n,); n may be 0 for some batches."""

    def __init__(self, name: str) -> None:
        super().__init__(lambda output: output[name].unsqueeze(1))  # (n, 1): ignite averages over the first axis

    def compute(self) -> float:
        return float(super().compute()) if self.num_examples else float("nan")


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
        self.phase, self.config, self.training, self.out = phase, config, training, out
        self.device, self.meta, self.best = torch.device(device), meta or {}, Best()
        self.network = phase.network.to(self.device)
        if self.device.type == "cpu":
            self.network.to(memory_format=torch.channels_last)  # mkldnn's convolutions are faster so
        self.optimiser = build_optimiser(config.optimiser, phase.parameter_groups())
        steps = max(1, len(training) // config.optimiser.accumulate)
        self.schedule = build_schedule(config.optimiser, self.optimiser, config.epochs, steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=config.epochs,
            train_data_loader=training,
            network=self.network,
            optimizer=self.optimiser,
            loss_function=lambda *_: None,  # the phase's own, in _step
            iteration_update=self._step,
            decollate=False,
        )
        self.ema = EMAHandler(self.network, momentum=config.ema, handle_buffers="update") if config.ema else None
        self.evaluator = SupervisedEvaluator(
            device=self.device,
            val_data_loader=selection,
            network=self.evaluated,
            iteration_update=self._figures,
            key_val_metric={"select": ImageMean("select")},
            decollate=False,
        )
        self._attach()

    @property
    def evaluated(self) -> torch.nn.Module:
        """The network that is validated and saved: the averaged one where there is an average."""
        return self.network if self.ema is None else self.ema.ema_model

    # --- what happens in an iteration ---------------------------------------------------------------------------------

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES.get(self.config.amp)
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _to_device(self, batch: Batch) -> Batch:
        return {k: v.to(self.device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}

    def _step(self, engine: Engine, batch: Batch) -> dict[str, float]:
        # Dropout depends on (seed, iteration) alone, so that a resumed run goes on as if it had never stopped.
        torch.manual_seed(self.config.seed * 1_000_003 + engine.state.iteration)
        self.network.train()
        every = self.config.optimiser.accumulate
        with self._autocast():
            losses = self.phase.losses(self.network, self._to_device(batch))
        if not torch.isfinite(losses["loss"]):
            raise TrainingError(
                f"the loss became {losses['loss'].item()} in epoch {engine.state.epoch} on {', '.join(batch[ID])}; "
                "the last good state is kept; look at these images or lower optimiser.lr"
            )
        self.scaler.scale(losses["loss"] / every).backward()
        if engine.state.iteration % every == 0:
            self.scaler.unscale_(self.optimiser)
            if self.config.optimiser.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimiser.clip_norm)
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self.optimiser.zero_grad(set_to_none=True)
            self.schedule.step()
        return {name: value.item() for name, value in losses.items()}

    @torch.no_grad()
    def _figures(self, engine: Engine, batch: Batch) -> dict[str, torch.Tensor]:
        self.evaluated.eval()
        with self._autocast():
            return self.phase.figures(self.evaluated, self._to_device(batch))

    # --- handlers -----------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        trainer, evaluator = self.trainer, self.evaluator
        trainer.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        if self.ema is not None:
            self.ema.attach(trainer, event=Events.ITERATION_COMPLETED(every=self.config.optimiser.accumulate))
        Average(lambda output: output["loss"]).attach(trainer, "loss")
        for name in self.phase.figure_names:
            ImageMean(name).attach(evaluator, name)
        ProgressBar(desc="epoch", persist=False).attach(trainer, output_transform=lambda o: {"loss": o["loss"]})
        ValidationHandler(1, evaluator).attach(trainer)
        logs = str(self.out / "tensorboard")
        TensorBoardStatsHandler(
            log_dir=logs, output_transform=lambda o: o["loss"], tag_name="loss_step", epoch_log=True
        ).attach(trainer)
        TensorBoardStatsHandler(
            log_dir=logs, iteration_log=False, global_epoch_transform=lambda _: trainer.state.epoch
        ).attach(evaluator)
        if self.config.early_stop is not None:
            stop = EarlyStopping(self.config.early_stop, lambda e: e.state.metrics["select"], trainer)
            evaluator.add_event_handler(Events.EPOCH_COMPLETED, stop)
        self.table = EpochTable(self.out / "history.csv")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)  # after validation: attached last

    def _start_epoch(self, engine: Engine) -> None:
        dataset, sampler = self.training.dataset, self.training.sampler
        dataset.set_epoch(engine.state.epoch)  # type: ignore[attr-defined]
        sampler.set_epoch(engine.state.epoch)  # type: ignore[attr-defined]

    def _finish_epoch(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        figures = {k: float(v) for k, v in self.evaluator.state.metrics.items()}
        is_best = figures["select"] > self.best.score
        if is_best:
            self.best = Best(figures["select"], epoch)
        if is_best or self.config.keep == "last":
            meta = {**self.meta, "phase": self.config.phase, "epoch": epoch, "selection": figures}
            self.phase.save(self.evaluated, self.out / "best.safetensors", meta)
        rate = self.optimiser.param_groups[0]["lr"]
        self.table.add(epoch, {"loss": engine.state.metrics["loss"], **figures, "lr": rate}, is_best)
        save_state(self.out / "last.pt", self._state(epoch))

    # --- state --------------------------------------------------------------------------------------------------------

    def _state(self, epoch: int) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": None if self.ema is None else self.ema.ema_model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "scaler": self.scaler.state_dict(),
            "epoch": epoch,
            "best": {"score": self.best.score, "epoch": self.best.epoch},
            "config": to_dict(self.config),
        }

    def resume(self) -> None:
        """Go on from ``last.pt``. Raises InputError when it belongs to another configuration."""
        state = load_state(self.out / "last.pt")
        own = to_dict(self.config)
        other = [k for k in own if k != "epochs" and own[k] != state["config"].get(k)]
        if other:
            raise InputError(f"{self.out}/last.pt was trained with other options: {', '.join(other)} differ")
        self.network.load_state_dict(state["network"])
        if self.ema is not None:
            self.ema.ema_model.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        for group, rate in zip(self.optimiser.param_groups, self.schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * rate(self.schedule.last_epoch)
        self.scaler.load_state_dict(state["scaler"])
        self.best = Best(**state["best"])
        self.trainer.state.epoch = state["epoch"]
        self.trainer.state.iteration = state["epoch"] * len(self.training)
        self.table.resume(state["epoch"])
        log.info("going on after epoch %d; best so far %.4f in epoch %d", state["epoch"], *vars(self.best).values())

    def fit(self) -> Best:
        """Train to the last epoch, or until early stopping. A second call after ``resume`` goes on where it stood."""
        if self.trainer.state.epoch < self.config.epochs:
            self.trainer.run()
        self.table.finish()
        return self.best
