"""DICOM SEG objects that others store in the archive for images of ours: each is noticed once, the newest last.

Left alone: what this program sent, proposals that it made anywhere, and what another program made without a person.
What refers to images that are not known (yet) waits until they are. All that is remembered stands in one file, written
beside and renamed, after an object was taken: one that was taken as the process died is taken again, never lost.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import open_dicom
from ultrarefiner_monai.dicom.seg import MODEL_NAME
from ultrarefiner_monai.dicom.seg_reader import SegInfo, seg_info
from ultrarefiner_monai.dicomweb.client import InstanceInfo, PacsError, SeriesInfo

logger = logging.getLogger(__name__)

_TRIES = 3
_MOST_FAILURES = 3  # series in a row, each after all its retries
_LARGEST_BYTES = 1 << 30
# Series whose number of objects stays: so many are listed anew at each look, in turn. One object may have replaced another.
_IN_TURN = 10
# Clocks of a hospital's machines differ, and so may time zones; an object from longer ago was not stored just now.
_WRONG_CLOCK = timedelta(days=1)


class Archive(Protocol):
    """What is asked of ``Pacs``."""

    def segs(self, study_uid: str | None = None) -> list[SeriesInfo]: ...
    def instances(self, study_uid: str, series_uid: str) -> list[InstanceInfo]: ...
    def fetch_instance(self, study_uid: str, series_uid: str, sop_uid: str, folder: Path) -> Path: ...


class Inbox:
    """Looks for new SEGs in ``pacs``.

    state: the file that remembers. known(): the images that there are, as StudyInstanceUIDs, SeriesInstanceUIDs and
    SOPInstanceUIDs together. mine(sop_uid): whether this program sent it. take(dataset, info, when): makes a label of
    it; InputError: it cannot be used, ever. when: not before this moment it was stored.
    """

    def __init__(
        self,
        pacs: Archive,
        state: Path,
        known: Callable[[], Collection[str]],
        take: Callable[[Any, SegInfo, datetime], None],
        mine: Callable[[str], bool] = lambda uid: False,
    ):
        self._pacs, self._path, self._known, self._take, self._mine = pacs, Path(state), known, take, mine
        self._state = _read(self._path)
        self._tries: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._complained = ""
        self._odd: set[str] = set()
        self._looks, self._listed = 0, dict[str, int]()  # series -> the look at which it was listed last

    def start(self, poll_seconds: float, also: Callable[[], Any] = lambda: None) -> None:
        """Look every ``poll_seconds`` in a thread of its own, and call ``also``; a store whose answer takes long is asked
        less often."""

        for left in self._path.parent.glob("segs-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)

        def run() -> None:
            pause = 0.0
            while not self._stop.wait(pause):
                began = time.monotonic()
                try:
                    also()
                    self.look()
                    self._complained = ""
                except PacsError as error:
                    if str(error) != self._complained:  # once, not twice a minute for a night
                        logger.warning("cannot look for segmentations: %s", error)
                    self._complained = str(error)
                except Exception:
                    logger.exception("looking for segmentations failed")
                pause = max(poll_seconds, time.monotonic() - began)

        self._thread = threading.Thread(target=run, name="inbox", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)

    # --- one look -----------------------------------------------------------------------------------------------------

    def look(self) -> int:
        """Take all that is new, oldest first; returns how many were taken. Raises PacsError when the store fails: a
        series that cannot be listed or fetched costs the others nothing, several in a row are the store."""
        began, known = datetime.now(timezone.utc), set(self._known())
        new: list[tuple[datetime, str, Path, SegInfo]] = []
        counts: dict[str, int] = {}
        failures = 0
        with tempfile.TemporaryDirectory(prefix="segs-", dir=self._path.parent) as folder:
            for series in self._due([s for s in self._pacs.segs() if s.study_uid in known], known):
                self._listed[series.uid] = self._looks
                try:
                    counts[series.uid] = self._fetch(series, Path(folder), known, new)
                    failures = 0
                except InputError as error:
                    transient = getattr(error, "transient", False)
                    failures += transient
                    if failures == _MOST_FAILURES:
                        raise
                    if transient or series.uid not in self._odd:  # what will not change is said once
                        logger.warning("the segmentations of series %s are fetched later: %s", series.uid, error)
                    self._odd |= set() if transient else {series.uid}
            taken = 0
            for when, uid, path, info in sorted(new, key=lambda item: item[:2]):
                outcome = self._taken(uid, path, info, when)
                taken += outcome == "taken"
                if not outcome:
                    counts.pop(info.series_uid, None)
        self._state["series"].update(counts)
        self._state["looked"] = began.isoformat()
        self._write()
        return taken

    def _due(self, listed: list[SeriesInfo], known: set[str]) -> list[SeriesInfo]:
        """The series that may hold something new, and a few of those that do not seem to."""
        self._looks += 1
        before = self._state["series"]
        same = [s for s in listed if s.instances and before.get(s.uid) == s.instances]
        same = [s for s in same if not self._awaited(s.uid, known)]
        later = {s.uid for s in sorted(same, key=lambda s: self._listed.get(s.uid, 0))[_IN_TURN:]}
        return [s for s in listed if s.uid not in later]

    def _fetch(
        self, series: SeriesInfo, folder: Path, known: set[str], new: list[tuple[datetime, str, Path, SegInfo]]
    ) -> int:
        """Sort the objects of a series that were never seen; returns how many it has. Of what is new the file stays in
        ``folder``: at the first look there may be thousands."""
        found, failures = 0, []
        for instance in self._pacs.instances(series.study_uid, series.uid):
            found += 1
            waiting = self._state["waiting"].get(instance.uid)
            if instance.uid in self._state["seen"] or (waiting and not known & set(waiting[1:])):
                continue
            try:
                path = self._pacs.fetch_instance(series.study_uid, series.uid, instance.uid, folder)
            except PacsError as error:
                failures.append(error)
                if len(failures) == _MOST_FAILURES:
                    break
                continue
            if not self._sort(instance.uid, path, known, new):
                path.unlink(missing_ok=True)
        if failures:
            raise failures[0]
        return found

    def _awaited(self, series_uid: str, known: set[str]) -> bool:
        """Whether an object of this series refers to an image that was not known when it came, and is now."""
        return any(entry[0] == series_uid and known & set(entry[1:]) for entry in self._state["waiting"].values())

    def _sort(self, uid: str, path: Path, known: set[str], new: list[tuple[datetime, str, Path, SegInfo]]) -> bool:
        """Put an object that was never seen where it belongs; whether that is ``new``: else it waits for its image, or is
        left alone."""
        try:
            if path.stat().st_size > _LARGEST_BYTES:
                raise InputError(f"{path.stat().st_size >> 20} MB are more than a segmentation of ultrasound takes")
            info = seg_info(open_dicom(path))
        except InputError as error:
            self._done(uid, f"refused: {error}")
            return False
        except Exception as error:  # pydicom raises anything
            self._done(uid, f"refused: it cannot be read ({type(error).__name__})")
            return False
        reason = self._left_alone(info)
        if reason:
            self._done(uid, reason)
        elif not known & (names := info.referenced | set(info.referenced_series)):
            self._state["waiting"][uid] = [info.series_uid, *sorted(names)]
        else:
            new.append((self._when(info), uid, path, info))
            return True
        return False

    def _left_alone(self, info: SegInfo) -> str:
        if self._mine(info.sop_uid):
            return "sent from here"
        if info.ours and info.automatic:
            return "a proposal of this program"
        # A viewer that corrects our proposal keeps the segment's origin; with another name it is another machine's.
        if info.automatic and not info.author and MODEL_NAME.lower() not in " ".join(info.algorithms).lower():
            return f"made without a person by {', '.join(info.algorithms) or 'a program'}"
        return ""

    def _when(self, info: SegInfo) -> datetime:
        """When it was stored, as far as can be told: it says a time, and it was not there at the last look."""
        now = datetime.now(timezone.utc)
        last = datetime.fromisoformat(self._state["looked"]) if self._state["looked"] else None
        if info.time is None:
            return last or now
        if last is None or info.time < last - _WRONG_CLOCK:
            return min(info.time, now)
        return min(max(info.time, last), now)

    def _taken(self, uid: str, path: Path, info: SegInfo, when: datetime) -> str:
        """Hand it on; returns "taken", "refused", or "" when it has to be tried again."""
        try:
            self._take(open_dicom(path), info, when)
        except PacsError as error:
            if error.transient:
                logger.warning("segmentation %s is taken later: %s", uid, error)
                return ""
            self._done(uid, f"refused: {error}")
            return "refused"
        except InputError as error:
            self._done(uid, f"refused: {error}")
            return "refused"
        except Exception:
            self._tries[uid] = self._tries.get(uid, 0) + 1
            logger.exception("segmentation %s could not be taken", uid)
            if self._tries[uid] < _TRIES:
                return ""
            self._done(uid, "refused: see the log")
            return "refused"
        self._done(uid, "taken")
        return "taken"

    def _done(self, uid: str, outcome: str) -> None:
        logger.log(
            logging.WARNING if outcome.startswith("refused") else logging.INFO, "segmentation %s: %s", uid, outcome
        )
        self._state["seen"][uid] = outcome
        self._state["waiting"].pop(uid, None)
        self._write()

    @property
    def seen(self) -> dict[str, str]:
        """SOPInstanceUID -> what became of it."""
        return dict(self._state["seen"])

    def _write(self) -> None:
        with replacing(self._path, "w") as file:
            json.dump(self._state, file)


def _read(path: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"looked": "", "seen": {}, "waiting": {}, "series": {}}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if {k: type(v) for k, v in state.items()} != {k: type(v) for k, v in empty.items()}:
            raise ValueError("other contents")
        return state
    except FileNotFoundError:
        return empty
    except ValueError as error:
        aside = path.with_name(f"{path.name}.broken-{int(time.time())}")
        path.rename(aside)
        logger.error("%s was unreadable (%s); it is kept as %s and made anew", path.name, error, aside.name)
        return empty
