"""What a run says while it runs: a header, a table an epoch with the best marked, and the same figures as a CSV file."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from ultrarefiner_monai.config import TrainConfig, to_dict
from ultrarefiner_monai.core.files import replacing

# The columns of an epoch's table: the loss, and after a name the others (coarse_dice, refined_dice).
METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "accuracy": "Accuracy",
    "loss": "Loss",
}


class EpochTable:
    """Prints a table for each epoch and appends its figures to ``history.csv``."""

    def __init__(self, path: Path, epochs: int) -> None:
        self.path, self.epochs, self.console = path, epochs, Console()
        self.started, self.seconds = time.monotonic(), 0.0
        self.rows: list[dict[str, str]] = []
        self.resumed = 0

    def add(
        self, epoch: int, train: Mapping[str, float], select: Mapping[str, float], lr: float, is_best: bool
    ) -> None:
        """Write and print an epoch. train, select: figures of the training batches and of the selection images.

        In ``history.csv`` the first are ``loss`` and ``train_*``, the second are named as they are, but ``select_loss``.
        """
        now = time.monotonic()
        seconds, self.started = now - self.started, now
        self.seconds += seconds
        columns = {"loss" if k == "loss" else f"train_{k}": v for k, v in train.items()}
        columns |= {"select_loss" if k == "loss" else k: v for k, v in select.items()}
        numbers = {k: f"{v:.6g}" for k, v in {**columns, "lr": lr}.items()}
        self.rows.append({"epoch": str(epoch), **numbers, "seconds": f"{seconds:.1f}"})
        self._write()
        left = self.seconds / self._here() * (self.epochs - epoch)
        title = f"EPOCH {epoch}/{self.epochs}" + ("  [bold green]★ BEST[/]" if is_best else "")
        self.console.print(Rule(title, style="dim"))
        self.console.print(epoch_table(train, select))
        rest = {f"train {k}": v for k, v in train.items() if _metric(k) is None}
        rest |= {k: v for k, v in select.items() if _metric(k) is None}
        facts = [f"{k} {v:.4f}" for k, v in rest.items()] + [f"lr {lr:.2e}", f"{seconds:.0f} s"]
        facts += [f"about {span(left)} left"] if epoch < self.epochs else []
        self.console.print(" · ".join(facts), highlight=False, markup=False, style="dim")  # select[busi] is no markup

    def resume(self, epoch: int) -> None:
        """Keep the rows up to ``epoch`` of an earlier part of this run."""
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epoch]
        self.resumed = len(self.rows)

    def _here(self) -> int:
        """Epochs of this part of the run: the earlier part's machine may have been another one."""
        return len(self.rows) - self.resumed

    def _write(self) -> None:
        with replacing(self.path, "w") as file:
            names = list(
                dict.fromkeys(name for row in self.rows for name in row)
            )  # epochs without validation have fewer figures
            writer = csv.DictWriter(file, fieldnames=names, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def finish(self) -> None:
        """Say which epoch was the best one."""
        judged = [row for row in self.rows if row.get("select")]
        if judged:
            best = max(judged, key=lambda row: float(row["select"]))
            self.console.print(f"best epoch {best['epoch']}: selection figure {best['select']}", highlight=False)


def epoch_table(train: Mapping[str, float], select: Mapping[str, float]) -> Table:
    """Dice, IoU, precision, recall, accuracy and loss of both parts, a row for each network that has figures."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("")
    for title in METRICS.values():
        table.add_column(title, justify="right")
    for part, figures in (("train", train), ("validation", select)):
        names = {who for who, _ in filter(None, map(_metric, figures))}
        for who in sorted(names - {""}) or [""]:
            cells = [figures.get(f"{who}_{m}" if who else m, figures.get(m, math.nan)) for m in METRICS]
            table.add_row(f"{part} {who}".strip(), *("–" if math.isnan(v) else f"{v:.4f}" for v in cells))
    return table


def _metric(figure: str) -> tuple[str, str] | None:
    """coarse_dice -> (coarse, dice), loss -> ("", loss); None for what has no column: select, or a part of the loss."""
    who, _, metric = figure.rpartition("_")
    if figure == "loss":
        return "", "loss"
    return (who, metric) if who not in ("", "loss") and metric in METRICS and metric != "loss" else None


def span(seconds: float) -> str:
    """Hours and minutes, or seconds where it is short."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def header(config: TrainConfig, facts: dict[str, str]) -> Table:
    """The experiment's header: where the data is, how it is split, what is trained."""
    table = Table(title=f"ULTRAREFINER TRAINING · {config.phase}", show_header=False, title_style="bold")
    for name, value in facts.items():
        table.add_row(name, value)
    plain = to_dict(config)
    for name in ("epochs", "batch_size", "init", "ema", "amp", "seed", "tracking"):
        table.add_row(name, str(plain[name]))
    system = plain["system"]
    table.add_row("networks", " + ".join(n["arch"] for n in (system["coarse"], system["sam"]) if n))
    table.add_row("optimiser", ", ".join(f"{k} {v}" for k, v in plain["optimiser"].items()))
    return table
