"""Files of a studies folder that were damaged, in words for `/info/` and the start page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ultrarefiner_monai.core.damaged import ASIDE, set_aside_files
from ultrarefiner_monai.studies.work_folder import INDEX

_NAMES = {
    "journal.sqlite": "the record of corrections",
    INDEX: "the index of images and labels",
    "absent.json": "what was known of labels whose image is not there",
}


def damaged(files: Iterable[Path]) -> Iterator[str]:
    """What somebody has to know of each of ``files`` that was set aside, without paths."""
    for path in set_aside_files(files):
        name = path.name.partition(ASIDE)[0]
        yield (
            f"{_NAMES.get(name, name)} ({name}) was damaged and is kept as {path.name}; a new one was begun. Let somebody "
            "look at it, and remove that file when it is not needed any more"
        )
