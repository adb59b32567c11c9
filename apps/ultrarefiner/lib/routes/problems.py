"""What is wrong just now, in words for `/info/` and the start page."""

from __future__ import annotations

from typing import Any

from ultrarefiner_monai.core.damaged import ASIDE, set_aside_files
from ultrarefiner_monai.studies.work_folder import INDEX

_NAMES = {
    "journal.sqlite": "the record of corrections",
    INDEX: "the index of images and labels",
    "absent.json": "what was known of labels whose image is not there",
}


def problems(app: Any) -> list[str]:
    """What somebody has to know and to do something about, without paths."""
    store, watch = app.datastore(), app.watch
    away = watch.problem if watch is not None else store.presence.problem
    found = [away, app.served.problem, app.journal.begun_anew, app.journal.problem]
    for path in set_aside_files((store.index_file, app.work.journal, app.work.absent)):
        name = path.name.partition(ASIDE)[0]
        found.append(
            f"{_NAMES.get(name, name)} ({name}) was damaged and is kept as {path.name}; a new one was begun. Let somebody "
            "look at it, and remove that file when it is not needed any more"
        )
    return list(dict.fromkeys(text for text in found if text))
