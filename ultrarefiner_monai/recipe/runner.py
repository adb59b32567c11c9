"""Runs a recipe's jobs, some at a time, each as a process of its own; goes on where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: steps are not locked there
    fcntl = None  # type: ignore[assignment]

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.recipe.steps import Job, Work
from ultrarefiner_monai.training.loop.console import span

_POLL_SECONDS = 0.5
_ENDING_SECONDS = 60  # a training that is asked to stop writes nothing large
_LAST_LINES = 12


def record_of(job: Job) -> Path:
    """The file that says that a job is done, and how; beside what it made."""
    name = f"{job.part}.done.json" if job.part else "done.json"
    return job.out / name


def log_of(job: Job) -> Path:
    return job.out / (f"{job.part}.log" if job.part else "log.txt")


def is_done(job: Job) -> bool:
    """Whether the job was done before. InputError where something else was done in its place."""
    path = record_of(job)
    if not path.is_file():
        return False
    try:
        done = json.loads(path.read_text(encoding="utf-8"))["definition"]
    except (ValueError, KeyError, TypeError):  # damaged: the step looks itself at what is there, and goes on
        return False
    differ = _differences(done, job.definition)
    if differ:
        raise InputError(
            f"{path.parent} was made by another recipe, configuration, scale or choice of data ({', '.join(differ)} "
            "differ): give another --out, or remove that folder and those of the steps after it"
        )
    return True


def _differences(done: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """What two definitions differ in. The order of the data folders changes nothing; records of before lack ``settings``."""
    pairs = {k: (done.get(k), asked.get(k)) for k in {*done, *asked}}
    if "settings" not in done:
        pairs.pop("settings", None)
    for name in ("sets", "left_out"):
        pairs[name] = tuple(sorted(definition.get(name) or []) for definition in (done, asked))  # type: ignore[assignment]
    return sorted(k for k, (was, now) in pairs.items() if was != now)


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    started: float
    lock: IO[str]


def run(work: Work, jobs: Sequence[Job], parallel: int, say: Callable[[str], None]) -> None:
    """Run what is not done yet, at most ``parallel`` jobs at a time. InputError when a job failed, after the others that
    were running have ended, and for one that another recipe is at; KeyboardInterrupt ends them all. The same call goes on."""
    done = {job.id for job in jobs if is_done(job)}
    waiting = [job for job in jobs if job.id not in done]
    running: list[_Running] = []
    failures: list[str] = []
    try:
        while running or (waiting and not failures):
            for job in [j for j in waiting if done.issuperset(j.waits_for)][: parallel - len(running)]:
                if failures:
                    break
                waiting.remove(job)
                try:
                    if is_done(job):  # by another recipe meanwhile
                        done.add(job.id)
                        continue
                    running.append(_start(job, parallel))
                except InputError as error:
                    failures.append(str(error))
                else:
                    say(f"{job.id}: started, log in {log_of(job)}")
            time.sleep(_POLL_SECONDS)
            for one in [r for r in running if r.process.poll() is not None]:
                running.remove(one)
                fault = _ended(one)
                one.lock.close()
                if fault:
                    failures.append(fault)
                else:
                    done.add(one.job.id)
                took = span(time.monotonic() - one.started)
                say(f"{one.job.id}: {'failed' if fault else 'done'} after {took}; {len(done)} of {len(jobs)} done")
    finally:
        _stop(running)
    if failures:
        raise InputError("; ".join(failures))


def _lock_of(job: Job) -> IO[str]:
    """Held by the recipe and by the job's process, whichever lives longer: a recipe that was killed leaves its steps running,
    and two processes in one folder would spoil it. Raises InputError where another holds it.

    By ``fcntl``, not ``filelock``: the process inherits the open file and the lock with it, so that there is no moment in
    which nobody holds it; a lock of ``filelock`` cannot be handed on.
    """
    file = (job.out / f".{job.part or 'step'}.lock").open("w")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"{job.id}: another recipe, or the process of one that was killed, works in {job.out}: wait until it ends, "
            "then give the same command again"
        ) from None
    except OSError:  # a file system without locks
        pass
    return file


def _start(job: Job, parallel: int) -> _Running:
    job.out.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(job)
    command = [sys.executable, "-m", "ultrarefiner_monai.cli", *job.command]
    if job.step.command == "train" and (job.out / "last.pt").is_file():
        command.append("--resume")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if parallel > 1:  # each process would take all cores
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // parallel)))
    if job.away and parallel > 1 and shutil.which("nice"):  # what the shipped file waits for has the cores first
        command = ["nice", *command]
    with log_of(job).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock.fileno(),),
        )
    return _Running(job, process, time.monotonic(), lock)


def _ended(one: _Running) -> str:
    """Keep that the job is done; else why it is not."""
    if one.process.returncode == 0:
        record = {
            "definition": one.job.definition,
            "seconds": round(time.monotonic() - one.started, 1),
            "command": one.job.command,
        }
        with replacing(record_of(one.job), "w") as file:
            json.dump(record, file, indent=1)
        return ""
    lines = log_of(one.job).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_LINES:]
    last = next((line for line in reversed(lines) if line.strip()), "no output")
    return f"{one.job.id} failed ({last.strip()}; log: {log_of(one.job)})"


def _stop(running: Sequence[_Running]) -> None:
    for one in running:
        one.process.terminate()
    for one in running:
        try:
            one.process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
