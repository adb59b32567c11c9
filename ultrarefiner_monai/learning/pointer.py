"""The pointer file: which model is served. One rename is the truth; all else that tells of it (journal, MLflow) mirrors it.

models/current.json    what is served, what was before, who changed it last and when
models/.last.json      the same, so that it is known that current.json is gone, and what was served
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.studies.training_folder import read_json

log = logging.getLogger(__name__)

CONFIGURED = "configured"  # what the server's option ``weights`` names


@dataclass(frozen=True)
class Pointer:
    """What is served, and what was served before it, newest first.

    quick: a file of tensors tuned on top of ``name`` that serves with it, or empty. by: who changed the pointer last:
    "person", "quick", "slow", or empty where that is not known. at: when (ISO time, UTC). quicks: the highest number that
    a quick model ever had; decisions: how often a person chose. problem: why what is served cannot be known, else empty.
    """

    name: str = CONFIGURED
    before: tuple[str, ...] = ()
    quick: str = ""
    by: str = ""
    at: str = ""
    quicks: int = 0
    decisions: int = 0
    problem: str = ""


class PointerFile:
    """The pointer of one models folder. Reading needs no lock; whoever writes holds the registry's."""

    def __init__(self, folder: Path):
        self.path = folder / "current.json"
        self.last = folder / ".last.json"  # no candidate can be called so

    def read(self) -> Pointer:
        """What the file says; CONFIGURED when there is none, or it cannot be read: then with a problem."""
        found = _pointer(read_json(self.path))
        if found is not None:
            return found
        last = _pointer(read_json(self.last))
        if not self.path.exists() and (last is None or last.name == CONFIGURED):
            return Pointer() if last is None else Pointer(quicks=last.quicks, decisions=last.decisions)
        how = "is damaged" if self.path.exists() else "is gone"
        before = f"; {last.name} was served before" if last is not None else ""
        return Pointer(
            quicks=0 if last is None else last.quicks,
            decisions=0 if last is None else last.decisions,
            problem=f"the file that says which model is served ({self.path.name}) {how}: the model that the server "
            f"is configured with answers{before}. Choose one with `ultrarefiner models promote NAME`",
        )

    def write(self, pointer: Pointer) -> Pointer:
        """Point there, from now on. Raises OSError for a full disk; then nothing has changed."""
        values = {
            "name": pointer.name,
            "before": list(pointer.before),
            "quick": pointer.quick,
            "by": pointer.by,
            "at": pointer.at,
            "quicks": pointer.quicks,
            "decisions": pointer.decisions,
        }
        with replacing(self.path, "w") as file:
            json.dump(values, file, indent=1)
        try:
            with replacing(self.last, "w") as file:
                json.dump(values, file, indent=1)
        except OSError as error:  # it is served: whoever chose it must not read that it failed
            log.warning("%s could not be written: %s", self.last.name, error.strerror)
        return pointer

    def state(self) -> tuple[int, ...]:
        """Changes whenever the file does."""
        try:
            stat = self.path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _pointer(values: dict[str, Any]) -> Pointer | None:
    """From a file's content; one of before there were quick models says ``name`` and ``before`` alone."""
    name, before = values.get("name"), values.get("before", [])
    quick, by, at = (values.get(key, "") for key in ("quick", "by", "at"))
    quicks, decisions = (values.get(key, 0) for key in ("quicks", "decisions"))
    texts = all(isinstance(text, str) for text in (name, quick, by, at))
    if not texts or not isinstance(before, list) or not isinstance(quicks, int) or not isinstance(decisions, int):
        return None
    return Pointer(str(name), tuple(str(n) for n in before), quick, by, at, quicks, decisions)
