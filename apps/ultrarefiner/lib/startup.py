"""What only the process that serves does when it starts: it is the only one, it clears away what killed ones left half
written, and it notices when the studies go and come back.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from lib.commandline import listens_on
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.availability import STUDIES_MARK, Presence
from ultrarefiner_monai.studies.training_folder import read_json
from ultrarefiner_monai.studies.work_folder import NAME, WorkFolder

logger = logging.getLogger(__name__)

LOCK = "server.lock"  # server.json says who holds it
_WATCH_SECONDS = 1.0
# A file that is written just now is not closed, or was a moment ago.
_YOUNG_SECONDS = 5.0
_YOUNG_FOLDER_SECONDS = 60.0  # what comes from a PACS comes file by file
_AGAIN_SECONDS = 120.0

# The name that ``files.replacing`` gives: the only one of ours among files that are the user's.
_PART = re.compile(r"\.[0-9a-f]{32}\.part")
# In the work folder all is ours: checkpoints, cached embeddings, links, forget notes, session and mirror folders half written.
_OURS = re.compile(r"\..*\.part|.*\.safetensors.{8}\.part|\.tmp-.*|\.new-.*|forgotten-\d+|meta\.\d+-\d+")
# Of folders only hidden ones are known by their names alone: in versions/ they are called as images are.
_OUR_FOLDERS = re.compile(r"\.part-.*")
_IN_ROOT, _IN_EXCHANGE = re.compile("tmp[a-z0-9_]{8}"), re.compile("segs-.*")


# --- one server -------------------------------------------------------------------------------------------------------


class OnlyServer:
    """The locks of the one server of these studies; held until the process ends, however it ends.

    Batches, trainings and commands do not take them: they may work beside a server.
    """

    def __init__(self, studies: Path | None, work: WorkFolder):
        self.locks: list[FileLock] = []
        for path in _lock_files(studies, work):
            self._take(path)
        values = {"pid": os.getpid(), "host": socket.gethostname(), "port": listens_on(sys.argv)[1]}
        for lock in self.locks:
            with replacing(Path(lock.lock_file).with_suffix(".json"), "w") as file:
                json.dump({**values, "since": datetime.now().isoformat(" ", "seconds")}, file)

    def _take(self, path: Path) -> None:
        lock = FileLock(str(path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.release()
            raise InputError(_other(read_json(path.with_suffix(".json")))) from None
        except (OSError, NotImplementedError) as error:  # a share without locks
            logger.warning("%s cannot be locked (%s): make sure that no second server runs", path.name, error)
            return
        self.locks.append(lock)

    def release(self) -> None:
        for lock in self.locks:
            lock.release()
        self.locks.clear()


def _lock_files(studies: Path | None, work: WorkFolder) -> Iterator[Path]:
    """One in the work folder; where that lies elsewhere also in the studies, so that servers with different ``work_dir``
    see each other."""
    yield work.root / LOCK
    if studies is None or not os.access(studies, os.W_OK):
        return
    default, beside = studies / NAME, studies / f"{STUDIES_MARK}.lock"
    if default != work.root:
        yield default / LOCK if default.is_dir() else beside
    elif beside.exists():
        yield beside


def _other(who: dict[str, Any]) -> str:
    since, port = who.get("since"), who.get("port")
    known = f" (process {who['pid']} on {who.get('host')}" if who.get("pid") else ""
    known += f", port {port}" if known and port else ""
    known += f", since {since})" if known and since else ")" if known else ""
    return (
        f"a server already runs on these studies{known}. Two would write into each other's index: use that one, or "
        "stop it first"
    )


# --- what killed processes left ---------------------------------------------------------------------------------------


def clear(studies: Path | None, labels: Path, work: WorkFolder, starts: bool = True) -> int:
    """Remove files that were never finished: they can hold images and outlines of patients. Never a file of the user's,
    nor one that a process of this machine has open. The number of files and folders removed.

    starts: nothing is served yet, so folders for uploads, sessions and fetched images are nobody's.
    """
    found = [path for path in dict.fromkeys(_left(studies, labels, work, starts)) if not _is_young(path)]
    used = _open_files() if found else set()
    count = 0
    for path in found:
        if any(p == str(path) or p.startswith(f"{path}{os.sep}") for p in used):
            continue
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            count += 1
        except OSError as error:
            logger.warning("%s, left by a process that was killed, cannot be removed: %s", path.name, error.strerror)
    if count:
        logger.info("removed %d files that killed processes had left half written", count)
    return count


def _left(studies: Path | None, labels: Path, work: WorkFolder, starts: bool) -> Iterator[Path]:
    if studies is not None:
        yield from (Path(e.path) for e in os.scandir(studies) if _PART.fullmatch(e.name) and e.is_file())
    for folder, _, files in os.walk(labels):
        yield from (Path(folder, name) for name in files if _PART.fullmatch(name))
    for folder, folders, files in os.walk(work.root):
        inside = Path(folder)
        if starts:
            gone = [name for name in folders if _OUR_FOLDERS.fullmatch(name)]
            known = {work.root: _IN_ROOT, work.exchange: _IN_EXCHANGE}.get(inside)
            gone += [name for name in folders if known is not None and known.fullmatch(name)]
            if inside == work.sessions:
                gone += [name for name in folders if not (inside / name / "meta.info").exists()]
            folders[:] = [name for name in folders if name not in gone]
            yield from (inside / name for name in gone)
        links = [name for name in folders if name.startswith(".new-")]
        yield from (inside / name for name in [*files, *links] if _OURS.fullmatch(name))


def _is_young(path: Path) -> bool:
    """Whether somebody may still write it."""
    try:
        if path.is_dir() and not path.is_symlink():
            newest = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
            return time.time() - newest < _YOUNG_FOLDER_SECONDS
        return time.time() - path.lstat().st_mtime < _YOUNG_SECONDS
    except OSError:
        return True


def _open_files() -> set[str]:
    """What processes of this machine have open, as far as it can be seen."""
    found: set[str] = set()
    for process in psutil.process_iter():
        try:
            found |= {file.path for file in process.open_files()}
        except (psutil.Error, OSError):
            continue
    return found


# --- while it runs ----------------------------------------------------------------------------------------------------


class Watch:
    """Looks now and then whether the studies are there; ``back`` is called when they are again, ``later`` once, after a
    while, for what was too young at the start. Thread-safe; ``problem`` for /info/."""

    def __init__(self, presence: Presence, back: Callable[[], Any], later: Callable[[], Any]):
        self.presence, self.back, self.later = presence, back, later
        self.problem = ""
        threading.Thread(target=self._run, name="presence", daemon=True).start()

    def _run(self) -> None:
        begun = time.monotonic()
        cleared = False
        while True:
            time.sleep(_WATCH_SECONDS)
            try:
                self._look()
                if not cleared and not self.problem and time.monotonic() - begun > _AGAIN_SECONDS:
                    cleared = True
                    self.later()
            except Exception:  # it goes on: nobody else would notice
                logger.exception("the look at the studies failed")

    def _look(self) -> None:
        before, self.problem = self.problem, self.presence.problem
        if self.problem and not before:
            logger.error("%s", self.problem)
        elif before and not self.problem:
            logger.warning("the studies are back")
            self.back()
