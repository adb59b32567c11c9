"""One server for one studies folder: a second one ends with words that say where the first one runs."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.availability import STUDIES_MARK
from ultrarefiner_monai.studies.training_folder import read_json
from ultrarefiner_monai.studies.work_folder import NAME, WorkFolder

logger = logging.getLogger(__name__)

LOCK = "server.lock"  # server.json says who holds it


class OnlyServer:
    """The locks of the one server of these studies; held until the process ends, however it ends.

    Batches, trainings and commands do not take them: they may work beside a server. studies: None for a PACS. port: what
    this server listens on; a second one tells it. Raises InputError where another server runs.
    """

    def __init__(self, studies: Path | None, work: WorkFolder, port: int):
        self.locks: list[FileLock] = []
        for path in _lock_files(studies, work):
            self._take(path)
        values = {"pid": os.getpid(), "host": socket.gethostname(), "port": port}
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
