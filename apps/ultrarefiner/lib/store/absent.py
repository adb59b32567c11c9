"""Index entries of images that are not there for a while: a PACS lists nothing for a moment, or a disk is away.

They are kept in a file. When an image is back, it is known again who made its labels and which still have to be sent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from monailabel.datastore.local import ImageLabelModel

from lib.store.index_file import read_entries
from ultrarefiner_monai.core.damaged import set_aside
from ultrarefiner_monai.core.files import replacing

logger = logging.getLogger(__name__)

Entries = dict[str, ImageLabelModel]


class Absent:
    """The file ``path`` with these entries. extensions: of images; has_label(image id, tag, entry): whether the file
    of that label is there. Not thread-safe: the caller holds a lock."""

    def __init__(self, path: Path, extensions: tuple[str, ...], has_label: Callable[[str, str, ImageLabelModel], bool]):
        self._path, self._extensions, self._has_label = path, extensions, has_label

    def read(self) -> Entries:
        """The entries in the file. A damaged file is set aside."""
        try:
            return read_entries(dict(json.loads(self._path.read_text(encoding="utf-8"))), self._extensions)
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, RecursionError) as error:
            aside = set_aside(self._path)
            logger.error("%s was unreadable (%s): kept as %s", self._path.name, type(error).__name__, aside.name)
            return {}

    def keep(self, entries: Entries, before: Entries) -> None:
        """Write those of ``entries`` that have a label, where they differ from what the file holds."""
        if entries == before:
            return
        rows = {i: e.model_dump() for i, e in entries.items() if any(self._has_label(i, t, e) for t in e.labels)}
        if rows:
            with replacing(self._path, "w") as file:
                file.write(json.dumps(rows))
        else:
            self._path.unlink(missing_ok=True)
