"""What a run says while it runs: one line an epoch with the best marked, and the same as a CSV file."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ultrarefiner_monai.config import TrainConfig, to_dict
from ultrarefiner_monai.files import replacing


class EpochTable:
    """Prints a row for each epoch and appends it to ``history.csv``."""

    def __init__(self, path: Path) -> None:
        self.path, self.console, self.started = path, Console(), time.monotonic()
        self.rows: list[dict[str, str]] = []

    def add(self, epoch: int, figures: dict[str, float], is_best: bool) -> None:
        seconds = time.monotonic() - self.started
        self.started = time.monotonic()
        row = {"epoch": str(epoch), **{k: f"{v:.6g}" for k, v in figures.items()}, "seconds": f"{seconds:.1f}"}
        self.rows.append(row)
        self._write()
        parts = [f"{k} {v:.2e}" if k == "lr" else f"{k} [bold]{v:.4f}[/bold]" for k, v in figures.items()]
        mark = "  [green]best[/green]" if is_best else ""
        self.console.print(f"epoch {epoch:4d}  " + "  ".join(parts) + f"  {seconds:.0f} s{mark}", highlight=False)

    def resume(self, epoch: int) -> None:
        """Keep the rows up to ``epoch`` of an earlier part of this run."""
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epoch]

    def _write(self) -> None:
        with replacing(self.path, "w") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[-1]), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)

    def finish(self) -> None:
        """Say which epoch was the best one."""
        if self.rows:
            best = max(self.rows, key=lambda row: float(row["select"]))
            self.console.print(f"best epoch {best['epoch']}: selection figure {best['select']}", highlight=False)


def header(config: TrainConfig, facts: dict[str, str]) -> Table:
    """The experiment's header: where the data is, how it is split, what is trained."""
    table = Table(title=config.phase, show_header=False, title_style="bold")
    for name, value in facts.items():
        table.add_row(name, value)
    plain = to_dict(config)
    for name in ("epochs", "batch_size", "init", "ema", "amp", "seed"):
        table.add_row(name, str(plain[name]))
    table.add_row("network", plain["system"]["coarse"]["arch"])
    table.add_row("optimiser", ", ".join(f"{k} {v}" for k, v in plain["optimiser"].items()))
    return table
