"""What is to be stored in the archive: one file per object until the archive has it, through failures and restarts.

``put`` returns as soon as the object is on the disk. A thread sends, oldest first. While the archive cannot be reached
it waits longer and longer; an object that the archive refuses is tried again at the longest pause, behind the others.
Nothing is ever thrown away: what cannot be read any more is kept beside the others as ``.broken``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.dicomweb.client import PacsError, check_uid

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 300.0


class Outbox:
    """The objects in ``folder``, made when missing; ``send`` stores a list of pydicom datasets or raises PacsError.

    Thread-safe. Nothing is sent before ``start``, which one process only may call.
    """

    def __init__(
        self,
        folder: Path,
        send: Callable[[Sequence[Any]], None],
        first_pause: float = FIRST_PAUSE_SECONDS,
        longest_pause: float = LONGEST_PAUSE_SECONDS,
    ):
        self.folder, self._send, self._pauses = Path(folder), send, (first_pause, longest_pause)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock, self._change = threading.Lock(), threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._later: dict[str, float] = {}  # file name -> not before (monotonic)
        self._failures = 0
        # A process that died may have kept an object without writing it down.
        self._ours = set(self._ledger.read_text().split() if self._ledger.is_file() else ()) | set(self.waiting)
        self.problem = ""

    @property
    def _ledger(self) -> Path:
        return self.folder / "sent.txt"

    def put(self, *datasets: Any) -> None:
        """Keep the objects until the archive has them. On return they are on the disk; OSError where it is full."""
        for dataset in datasets:
            uid = check_uid(str(dataset.SOPInstanceUID), "SOPInstanceUID")
            with self._lock:  # the time orders them: no two at once
                with replacing(self.folder / f"{time.time_ns():020d}-{uid}.dcm") as file:
                    dataset.save_as(file, enforce_file_format=True)
                self._ours.add(uid)
                with self._ledger.open("a") as ledger:  # after the file: what is not kept was not sent
                    ledger.write(f"{uid}\n")
        with self._change:
            self._change.notify_all()

    def holds(self, sop_uid: str) -> bool:
        """Whether this object went through here, ever: it is not a message from somebody else."""
        return sop_uid in self._ours

    @property
    def waiting(self) -> list[str]:
        """SOPInstanceUIDs of what the archive does not have yet, oldest first."""
        return [path.stem.partition("-")[2] for path in self._files()]

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.dcm"))

    # --- sending ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()
        if self.waiting:
            logger.info("%d object(s) from before wait to be stored in the archive", len(self.waiting))

    def stop(self) -> None:
        """End the thread; what waits is sent after the next start."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join(60)

    def flush(self, seconds: float) -> bool:
        """Wait until nothing waits; False where that takes longer."""
        end = time.monotonic() + seconds
        with self._change:
            while self._files():
                if not self._change.wait(min(0.5, max(0.0, end - time.monotonic()))) and time.monotonic() >= end:
                    return False
        return True

    def _run(self) -> None:
        while not self._stopped:
            try:
                pause = self._pass()
            except Exception:  # a full disk, a file that vanished: the thread lives on
                logger.exception("the outbox failed")
                pause = self._pauses[1]
            with self._change:
                if not self._stopped:
                    self._change.wait_for(lambda: self._stopped or self._due(), timeout=pause)

    def _due(self) -> bool:
        """A new object came, and the archive is not known to be away."""
        return not self._failures and any(self._later.get(path.name, 0) <= time.monotonic() for path in self._files())

    def _pass(self) -> float:
        """Try all that is due, until the archive is away. Returns seconds to wait."""
        for path in self._files():
            if self._stopped or self._later.get(path.name, 0) > time.monotonic():
                continue
            try:
                self._one(path)
                self._failures = 0
                if not any(other.name in self._later for other in self._files()):  # else that still is one
                    self.problem = ""
            except PacsError as error:
                self.problem = str(error)
                if error.transient:
                    pause = min(self._pauses[0] * 2 ** min(self._failures, 30), self._pauses[1])
                    self._failures += 1
                    logger.warning("%s; %d object(s) wait, next try in %.0f s", error, len(self._files()), pause)
                    return pause
                self._later[path.name] = time.monotonic() + self._pauses[1]
                logger.error("%s was not stored and is kept: %s", path.stem.partition("-")[2], error)
        self._failures = 0
        return self._pauses[1]

    def _one(self, path: Path) -> None:
        import pydicom

        try:
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID  # noqa: B018 (half a file may still be read)
        except FileNotFoundError:  # forgotten meanwhile
            return
        except Exception:
            logger.exception("%s in the outbox cannot be read; it is kept as .broken", path.name)
            path.rename(path.with_suffix(".broken"))
            return
        self._send([dataset])
        path.unlink(missing_ok=True)
        self._later.pop(path.name, None)
        logger.info("stored %s in the archive", dataset.SOPInstanceUID)
        with self._change:
            self._change.notify_all()
