"""Cross-validation: one job for each dataset and fold, on this machine or on a Slurm cluster, through submitit.

Datasets are cross-validated each by itself, or several as one list (sets), of which each holds out its own fold.

A job trains the given configurations one after the other with its fold held out, evaluates the result on that fold, and keeps its
coarse predictions there: over all folds, one for each image from networks that never saw it. ``result.json`` is written
last, so a job that has one is finished; any other goes on from its last epoch when the same command is given again.
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table

from ultrarefiner_monai.config import ConfigError, TrainConfig
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.locks import locked
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import JOINT, DataDirs, folders, names_of, read_sets, split_sets

Stages = tuple[tuple[str, TrainConfig], ...]
FIGURES = ("dice", "iou", "precision", "recall", "hd95_px", "boundary_f")
# Options of submitit that go to any cluster; the others are Slurm's own and get its prefix.
SHARED_OPTIONS = ("timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "name")
YEAR_MIN = 365 * 24 * 60


@dataclass(frozen=True)
class FoldJob:
    """One dataset, or several as one list, and one fold, as submitit runs it. out: the job's folder,
    ``OUT/DATASET/fold_K``. leave_out: sets that are only reported."""

    data: Path | tuple[Path, ...]
    fold: str
    out: Path
    stages: Stages
    device: str | None = None
    leave_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its data in the table."""
        return name_of(self.data)

    @property
    def result(self) -> Path:
        return self.out / "result.json"

    def __call__(self) -> dict[str, Any]:
        return run_fold(self)

    def checkpoint(self) -> Any:
        """What submitit queues when Slurm takes the machine away: the same job, which goes on from its last epoch."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_fold(job: FoldJob) -> dict[str, Any]:
    """Train, evaluate, predict; returns and keeps the figures. Raises InputError while another process is at it."""
    from ultrarefiner_monai.evaluation.figures import evaluate
    from ultrarefiner_monai.models.checkpoints import load_system
    from ultrarefiner_monai.pipeline.predictor import Predictor
    from ultrarefiner_monai.training.data.predictions import predicted_prob, write_proposal
    from ultrarefiner_monai.training.sequence import train_all

    if job.result.is_file():
        return json.loads(job.result.read_text(encoding="utf-8"))
    device = job.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with _alone(job.out):
        model = train_all(job.stages, job.data, job.fold, job.out, True, device, job.leave_out)
        system = load_system(model, device=device)
        predictor = Predictor(system, device=device)
        figures = evaluate(predictor, job.data, job.fold, job.out / "evaluation", leave_out=job.leave_out)
        items = read_sets(job.data)
        for item, name in zip(items, names_of(items)):
            if item.fold == job.fold:
                write_proposal(job.out.parent / "oof", name, predicted_prob(system.coarse, system.config, item))
        row = _row(job.name, job.fold, figures)
        if "by_set" in figures:
            row["sets"] = [_row(name, job.fold, own) for name, own in figures["by_set"].items()]
        with replacing(job.result, "w") as file:
            json.dump(row, file, indent=1)
    return row


def _row(name: str, fold: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table, from what ``evaluate`` says of all images or of a set."""
    lesions, normals = figures["lesion_images"], figures["normal_images"]
    return {
        "dataset": name,
        "fold": fold,
        "lesion_images": lesions["count"],
        **{figure: lesions[figure]["mean"] if figure in lesions else None for figure in FIGURES},
        "coarse_dice": lesions.get("coarse_dice_mean"),
        "normal_images": normals["count"],
        "false_alarm_rate": normals.get("false_alarm_rate"),
    }


def name_of(data: DataDirs) -> str:
    """The name of a dataset, or the names of several joined by +."""
    return JOINT.join(sorted(path.name for path in folders(data)))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process works in ``folder``; the lock goes with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"another process works in {folder}: wait for it, or give another --out"):
        yield


def cross_validate(
    stages: Sequence[tuple[str, TrainConfig]],
    datasets: Sequence[Path | Sequence[Path]],
    folds: Sequence[str],
    out: str | Path,
    executor: Literal["local", "slurm"] = "local",
    options: Mapping[str, Any] | None = None,
    parallel: int = 1,
    wait: bool = True,
    device: str | None = None,
    say: Callable[[str], None] = print,
    leave_out: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Run every dataset x fold that has no result yet; write ``results.csv`` and ``results.json``; return the rows.

    datasets: folders made by ``prepare``, with different names, each cross-validated by itself; several in one tuple are one
    list, with a row for all and one for each set. leave_out: sets of such a list that are only reported. options: for submitit (``timeout_min``, ``mem_gb``,
    ``gpus_per_node``, …; others are Slurm's own: ``partition``, ``account``). parallel: how many jobs at a time.
    wait: False submits to Slurm and returns what is finished already.

    All folds of all datasets are looked at before the first job starts. Raises InputError when jobs failed, after the
    others are done, with where their logs lie.
    """
    from ultrarefiner_monai.training.check_data import check_data

    out = Path(out).absolute()
    names = [name_of(d) for d in datasets]
    if len(set(names)) != len(names):
        raise InputError(f"the datasets' folders need different names, got {', '.join(names)}")
    jobs = []
    for data in datasets:
        items = read_sets(data)
        paths = tuple(path.absolute() for path in folders(data))
        for fold in folds:
            first = stages[0][1]
            check_data(split_sets(items, fold, first.data.select_share, first.select_seed, leave_out))
            folder = out / name_of(data) / f"fold_{fold}"
            uri = stages[0][1].mlflow_uri or f"sqlite:///{out / 'mlflow.db'}"
            own = tuple((name, replace(config, mlflow_uri=uri)) for name, config in stages)
            jobs.append(
                FoldJob(paths[0] if len(paths) == 1 else paths, str(fold), folder, own, device, tuple(leave_out))
            )
    todo = [job for job in jobs if not job.result.is_file()]
    say(f"{len(jobs)} jobs, {len(jobs) - len(todo)} of them finished before")
    failures: list[str] = []
    if todo:
        chosen = _executor(executor, out / "jobs", dict(options or {}), parallel)
        if executor == "slurm":
            failures = _run_array(chosen, todo, wait, say)
        else:
            failures = _run_here(chosen, todo, parallel, say)
    rows = _rows([json.loads(job.result.read_text(encoding="utf-8")) for job in jobs if job.result.is_file()])
    if rows:
        _write(rows, out)
    if failures:
        raise InputError(f"{len(failures)} of {len(jobs)} jobs failed: {'; '.join(failures)}")
    return rows


# --- jobs -------------------------------------------------------------------------------------------------------------


def _executor(kind: str, logs: Path, options: dict[str, Any], parallel: int) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("cross-validation needs submitit: pip install 'ultrarefiner-monai[train]'") from error
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=kind)
    except RuntimeError as error:  # submitit found no srun
        raise InputError(f"Slurm is not on this machine ({error}): use --executor local") from error
    known = {k if k in SHARED_OPTIONS else f"slurm_{k}": v for k, v in options.items()}
    defaults: dict[str, Any] = {"timeout_min": YEAR_MIN if kind == "local" else 24 * 60, "name": "ultrarefiner"}
    if kind == "slurm":
        defaults["slurm_array_parallelism"] = parallel
    else:  # without it submitit hides the GPUs from local jobs
        defaults["gpus_per_node"] = min(1, torch.cuda.device_count())
    try:
        executor.update_parameters(**{**defaults, **known})
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(f"--slurm: {error}") from error
    return executor


def _run_array(executor: Any, todo: Sequence[FoldJob], wait: bool, say: Callable[[str], None]) -> list[str]:
    with executor.batch():
        running = [executor.submit(job) for job in todo]
    say(f"submitted as {running[0].job_id} … {running[-1].job_id}; give the same command again for the table")
    if not wait:
        return []
    return [fault for job, handle in zip(todo, running) if (fault := _outcome(job, handle))]


def _run_here(executor: Any, todo: Sequence[FoldJob], parallel: int, say: Callable[[str], None]) -> list[str]:
    """A few at a time: submitit itself would start them all at once. An interrupt ends those that run."""
    waiting, failures = list(todo), []
    running: list[tuple[FoldJob, Any]] = []
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                running.append((job, executor.submit(job)))
                say(f"{job.name}, fold {job.fold}: started, log in {running[-1][1].paths.stdout}")
            time.sleep(0.5)
            for pair in [pair for pair in running if pair[1].done()]:
                running.remove(pair)
                fault = _outcome(*pair)
                failures += [fault] if fault else []
                say(f"{pair[0].name}, fold {pair[0].fold}: {'failed' if fault else 'finished'}")
    except BaseException:
        for _, handle in running:
            handle.cancel()
        raise
    return failures


def _outcome(job: FoldJob, handle: Any) -> str | None:
    error = handle.exception()
    if error is None:
        return None
    # submitit's message frames the job's traceback with dashed lines; its last line is what went wrong.
    parts = re.split(r"^-{5,}$", str(error), flags=re.MULTILINE)
    lines = [line.strip() for line in parts[min(1, len(parts) - 1)].splitlines() if line.strip()]
    what = lines[-1] if lines else type(error).__name__
    return f"{job.name}, fold {job.fold} ({what}; log: {handle.paths.stderr})"


# --- results ----------------------------------------------------------------------------------------------------------


def _rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The jobs' results as lines of the table: the sets of a joint job behind its own line."""
    lines: list[dict[str, Any]] = []
    for result in results:
        lines += [{k: v for k, v in result.items() if k != "sets"}, *result.get("sets", [])]
    return lines


def _write(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    with replacing(out / "results.csv", "w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with replacing(out / "results.json", "w") as file:
        json.dump({"folds": rows, "datasets": summary(rows)}, file, indent=1)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """{dataset: {figure: {mean, sd, folds}}} over the folds' means; sd with n - 1, 0 for one fold."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        out[dataset] = {}
        for name in (*FIGURES, "coarse_dice", "false_alarm_rate"):
            values = [float(row[name]) for row in own if row[name] is not None]
            if values:
                sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                out[dataset][name] = {"mean": float(np.mean(values)), "sd": sd, "folds": len(values)}
    return out


def results_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each fold, and for each dataset the mean ± standard deviation over its folds."""
    names = (*FIGURES, "coarse_dice", "false_alarm_rate")
    table = Table(title="Cross-validation: lesion images of the fold held out; false alarms on its normal ones")
    for column in ("dataset", "fold", *names):
        table.add_column(column.replace("_", " "), justify="left" if column == "dataset" else "right")
    for dataset, figures in summary(rows).items():
        for row in (r for r in rows if r["dataset"] == dataset):
            table.add_row(dataset, row["fold"], *(_short(name, row[name]) for name in names))
        ends = [figures.get(name) for name in names]
        cells = ["–" if e is None else f"{_short(n, e['mean'])} ± {_short(n, e['sd'])}" for n, e in zip(names, ends)]
        table.add_row(dataset, "mean ± sd", *cells, style="bold", end_section=True)
    return table


def _short(name: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if name == "hd95_px" else f"{value:.3f}"
