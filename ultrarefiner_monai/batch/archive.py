"""Proposals for a whole archive: several processes, each with its own copy of the model, and a results.csv.

This process hands out jobs and writes the table; the others read, compute and write masks. A file that cannot be read,
or a process that ends (killed, out of memory), costs its own job and nothing else. Given again the same folder, what is
finished is skipped: same image, same model, same kind of mask.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ultrarefiner_monai.batch.jobs import Job, folder_jobs, is_remote, store_jobs
from ultrarefiner_monai.batch.pool import Pool, Unreachable
from ultrarefiner_monai.batch.table import FAILED, Results, Row
from ultrarefiner_monai.batch.work import FORMATS, Setup, mask_path
from ultrarefiner_monai.config import ConfigError, ServeConfig
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.locks import locked
from ultrarefiner_monai.core.types import InputError

LOCK, HEADERS, STUDIES = ".batch.lock", ".headers.json", ".studies"


@dataclass
class Summary:
    """What a batch came to. done, skipped, failed: images; skipped ones were finished by a run before.

    left: files or series that were not tried because the store does not answer, and ``stopped`` why. failures:
    (source, error).
    """

    results: Path
    done: int = 0
    skipped: int = 0
    failed: int = 0
    lesions: int = 0
    stored: int = 0
    left: int = 0
    stopped: str = ""
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def count(self, rows: Iterable[Row], fresh: bool) -> None:
        for row in rows:
            if row["status"] == FAILED:
                self.failed += 1
                self.failures.append((row.get("source") or row["id"], row["error"]))
                continue
            self.done, self.skipped = self.done + fresh, self.skipped + (not fresh)
            self.lesions += row["lesion"] == "yes"
            self.stored += bool(row["stored"])


# (answered now, failed of them, to answer now)
Progress = Callable[[int, int, int], None]


def plan_batch(
    studies: str,
    out: Path,
    model: Path,
    mask_format: str = "nii.gz",
    processes: int = 1,
    store: bool = False,
    filters: Sequence[str] = (),
    config: ServeConfig | None = None,
    device: str | None = None,
) -> tuple[list[Job], Setup]:
    """(what there is to answer, how). studies: a folder or DICOMweb address; filters: QIDO, NAME=VALUE; config: how the
    server reads images and asks the store.

    Raises ConfigError for options that do not go together, InputError when there is nothing to do or no way to it.
    """
    import torch

    config, remote = config or ServeConfig(), is_remote(studies)
    if mask_format not in FORMATS:
        raise ConfigError(f"--format: expected {', '.join(FORMATS)}, got {mask_format!r}")
    if not remote and (store or filters):
        raise ConfigError(f"{'--store' if store else '--filter'} needs a DICOMweb address as --studies, got {studies}")
    _require_same(studies if remote else str(Path(studies).resolve()), out)
    jobs = store_jobs(studies, config.pacs, filters) if remote else folder_jobs(Path(studies), out / HEADERS, [out])
    if not jobs:
        raise InputError(f"there is no image in {studies}" + (" that matches" if remote else ""))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = max(1, torch.get_num_threads() // processes)  # OMP_NUM_THREADS, else the cores
    where = studies if remote else ""
    return jobs, Setup(model, out, mask_format, device, threads, config.max_pixels, where, config.pacs, store)


def _require_same(studies: str, out: Path) -> None:
    """Note whose results ``out`` holds; InputError where they are another archive's, whose rows and masks would go."""
    path = out / STUDIES
    if path.is_file():
        before = path.read_text(encoding="utf-8", errors="surrogateescape")
        if before != studies:
            raise InputError(f"{out} holds the results of {before}: take another --out for {studies}")
    elif is_remote(studies) or Path(studies).is_dir():
        out.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(studies.encode("utf-8", "surrogateescape"))


def run_batch(jobs: Sequence[Job], setup: Setup, processes: int = 1, progress: Progress | None = None) -> Summary:
    """Answer ``jobs`` with ``processes`` workers; masks/ and results.csv come into ``setup.out``.

    Rows of files that are gone leave results.csv; their masks stay. Series of a store keep theirs: a filter may leave
    them out. Raises InputError when the
    model cannot be loaded, when another batch writes to the same folder, and when processes keep dying.
    """
    from ultrarefiner_monai.models.checkpoints import read_checkpoint

    if processes < 1:
        raise InputError(f"--processes: expected 1 or more, got {processes}")
    version = read_checkpoint(setup.model).version
    start = time.monotonic()
    (setup.out / "masks").mkdir(parents=True, exist_ok=True)
    with locked(setup.out / LOCK, f"another batch writes to {setup.out}: wait for it, or take another --out"):
        _tidy(setup.out)
        results = Results(setup.out / "results.csv")
        if not setup.studies:
            results.drop(results.sources() - {job.source for job in jobs})
        results.rewrite()
        try:
            summary = _answer(jobs, setup, version, processes, results, progress or (lambda *_: None))
        finally:
            results.rewrite()
    summary.seconds = time.monotonic() - start
    return summary


def _answer(
    jobs: Sequence[Job], setup: Setup, version: str, processes: int, results: Results, progress: Progress
) -> Summary:
    summary, todo = Summary(results.path), []
    for job in jobs:
        rows = _finished(results, job, setup, version)
        summary.count(rows, fresh=False)
        todo += [] if rows else [job]
    answered = failed = 0

    def take(job: Job, rows: list[Row]) -> None:
        nonlocal answered, failed
        before = {row["mask"] for row in results.of(job.source)}
        results.add(job.source, _state(job, version), rows)
        added = results.of(job.source)
        if all(row["status"] != FAILED for row in added):
            for name in before - {row["mask"] for row in added} - {""}:
                _remove(setup.out / "masks" / Path(name).name)  # of the image as it was, or under another format
        summary.count(added, fresh=True)
        answered, failed = answered + 1, failed + any(row["status"] == FAILED for row in added)
        progress(answered, failed, len(todo))

    pool = Pool(setup, min(processes, len(todo)))
    try:
        pool.run(todo, take)
    except Unreachable as error:
        summary.left, summary.stopped = len(todo) - answered, str(error)
    finally:
        pool.stop()
    return summary


def _state(job: Job, version: str) -> str:
    return f"{job.state} {version}"


def _finished(results: Results, job: Job, setup: Setup, version: str) -> list[Row]:
    """The job's rows where nothing is left to do: image, model and format are the same, the masks are there."""
    rows = results.finished(job.source, _state(job, version))
    for row in rows:
        wanted = mask_path(setup, row["id"]).relative_to(setup.out)
        same = row["mask"] in (str(wanted), str(wanted.with_name(row["id"]))) and (setup.out / row["mask"]).exists()
        if not same or (setup.store and not row["stored"]):
            return []
    return rows


def _tidy(out: Path) -> None:
    """Remove what a killed run left beside its masks."""
    for path in (out / "masks").glob(".*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
