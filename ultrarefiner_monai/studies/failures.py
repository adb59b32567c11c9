"""What a disk, a share or the journal does wrong, in words for clinicians.

The words hold no path: who needs the path finds it in the server's log.
"""

from __future__ import annotations

import errno
import sqlite3

from filelock import Timeout

from ultrarefiner_monai.studies.availability import StudiesAway

FULL, AWAY = 507, 503
LABEL = "Your outline"
_FULL = "The disk of the server is full."
_READ_ONLY = "The server cannot write to its disk: it is read-only."
_FORBIDDEN = "The server is not allowed to use a file or folder of its disk (a permission is missing)."
_BROKEN = "The disk or network share of the server does not answer as it should."
_BUSY = "Another program holds the server's files just now."
_MANY = "The server has too many files open just now."
_JOURNAL = "The server's record of corrections (the journal) is damaged."
_IN_THE_WAY = "Something else lies where the server keeps its files."
_GONE = "A file of the server that was there a moment ago is gone."

_BY_ERRNO: dict[int, tuple[int, str]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (FULL, _FULL)),
    errno.EROFS: (AWAY, _READ_ONLY),
    **dict.fromkeys((errno.EACCES, errno.EPERM), (AWAY, _FORBIDDEN)),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT)
        + (errno.EREMOTEIO, errno.ENODEV, errno.ENXIO),
        (AWAY, _BROKEN),
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), (AWAY, _MANY)),
    **dict.fromkeys((errno.EBUSY, errno.EDEADLK, errno.ENOLCK, errno.ETXTBSY), (AWAY, _BUSY)),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), (AWAY, _GONE)),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP), (AWAY, _IN_THE_WAY)),
}
_BY_TEXT = (  # SQLite's own words; its codes are known from Python 3.11 on only
    ("full", FULL, _FULL),
    ("readonly", AWAY, _READ_ONLY),
    ("unable to open", AWAY, _FORBIDDEN),
    ("locked", AWAY, _BUSY),
    ("malformed", AWAY, _JOURNAL),
    ("not a database", AWAY, _JOURNAL),
    ("i/o error", AWAY, _BROKEN),
)


def explain(error: BaseException | None, saving: str = "") -> tuple[int, str] | None:
    """(status, words) for an OSError or an error of SQLite; None where it is neither, or tells nothing of a disk.

    saving: what is not saved now ("Your outline"), empty where the request did not save.
    """
    found: tuple[int, str] | None = None
    if isinstance(error, StudiesAway):
        found = AWAY, f"{str(error)[:1].upper()}{str(error)[1:]}."
    elif isinstance(error, Timeout):
        found = AWAY, _BUSY
    elif isinstance(error, OSError) and error.errno is not None:
        found = _BY_ERRNO.get(error.errno)
    elif isinstance(error, sqlite3.Error):
        text = str(error).lower()
        found = next(((status, words) for part, status, words in _BY_TEXT if part in text), (AWAY, _JOURNAL))
    if found is None:
        return None
    status, words = found
    if saving == LABEL:
        tell = "" if "Tell your IT" in words else ", tell your IT"
        return status, f"{words} {LABEL} is not saved. Keep 3D Slicer open{tell}, then press Submit Label again."
    if saving:
        return status, f"{words} {saving} is not saved. Tell your IT, then try again."
    return status, words if "IT" in words else f"{words} Tell your IT, then try again."
