"""Which files of a studies folder are not offered, and why: named in the log once, counted by reason."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping

logger = logging.getLogger(__name__)

FORMAT = "a format that is not read: export it as DICOM, PNG or another known format"
FOLDER = "in a folder below: there only DICOM files are offered; serve that folder itself as the studies"
NAME = "its name has odd characters or is too long: rename it"
LINK = "a link that leaves the studies, leads nowhere or leads to a folder: it is not followed; copy the file itself"
NO_PICTURE = "DICOM without a picture (a report, a document, an index)"
COPY = "a copy of a DICOM image that is offered already"
EMPTY = "empty: nothing is in it; export it again"
DAMAGED = "it cannot be read: damaged, or not what its name says; export it again"
_MOST_LINES = 50


class NotOffered:
    """What was found not to be offered. Thread-safe.

    Of files in folders below only their own names are logged: those of folders often are patients'.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, str] = {}  # path below the studies -> reason
        self._unreadable: set[str] = set()  # paths of images that are listed
        self._lines = 0

    def listed(self, found: Mapping[str, str], images: Iterable[str] = ()) -> None:
        """The folder was looked through: path -> reason of all that is not offered; images: paths of those listed."""
        with self._lock:
            new = {path: reason for path, reason in found.items() if self._found.get(path) != reason}
            self._unreadable &= set(images)
            self._found = dict(found)
            room = max(0, _MOST_LINES - self._lines)
            self._lines += min(len(new), room)
        for path in sorted(new)[:room]:
            logger.warning("%s is not offered: %s", _shown(path), new[path])
        if len(new) > room:
            reasons = Counter(new[path] for path in sorted(new)[room:])
            counts = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
            logger.warning("%d more files are not offered: %s", len(new) - room, counts)

    def opened(self, path: str, readable: bool) -> None:
        """Somebody wanted to read an image that is listed."""
        with self._lock:
            (self._unreadable.discard if readable else self._unreadable.add)(path)

    def holds(self, path: str) -> bool:
        """Whether the file at ``path`` was not offered when the folder was looked through last."""
        with self._lock:
            return path in self._found

    def counts(self) -> dict[str, int]:
        """How many files are not offered, by reason, the most frequent first."""
        with self._lock:
            unread = self._unreadable - self._found.keys()
            found = Counter(self._found.values()) + Counter({DAMAGED: len(unread)})
        return dict(found.most_common())


def _shown(path: str) -> str:
    """For the log: no control characters, and folders left out."""
    folder, _, name = path.rpartition("/")
    return ascii(f".../{name}" if folder else name)
