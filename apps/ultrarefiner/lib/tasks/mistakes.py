"""What the model gets wrong, kept for the status page: of the images that were labelled last, each looked at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.core.messages import public
from ultrarefiner_monai.learning.mistakes import Mistake, mistakes_of
from ultrarefiner_monai.learning.mistakes_picture import Look, Picture, looks_of, picture_of
from ultrarefiner_monai.learning.progress import Save
from ultrarefiner_monai.studies.corrections import Labelled, corrections_of
from ultrarefiner_monai.studies.journal import Journal

logger = logging.getLogger(__name__)

# Older labels tell of older models, and each image is read from its file.
MOST_IMAGES = 200
_REST_SECONDS = 0.02  # after each image


@dataclass(frozen=True)
class _Seen:
    """What one image gave, and the save that it was looked at after."""

    save: int
    mistakes: list[Mistake]
    looks: dict[str, Look]


class MistakesKeeper:
    """Called with all saves, in one thread. pair_of: image id -> the image with its final label, None where one is gone."""

    def __init__(self, path: Path, pair_of: Callable[[str], Labelled | None]):
        self._path, self._pair_of = path, pair_of
        self._seen: dict[str, _Seen] = {}

    def __call__(self, saves: Sequence[Save]) -> Picture | None:
        """The picture of the images saved last; None where nothing was proposed for any of them."""
        newest = dict(_newest(saves))
        self._seen = {image: seen for image, seen in self._seen.items() if newest.get(image) == seen.save}
        fresh = [image for image in newest if image not in self._seen]
        if fresh and self._path.exists():
            with closing(Journal(self._path)) as journal:
                for image in fresh:
                    self._seen[image] = self._look(journal, image, newest[image])
                    time.sleep(_REST_SECONDS)
        found = [seen for seen in self._seen.values() if seen.mistakes]
        if not found:
            return None
        looks = {name: look for seen in found for name, look in seen.looks.items()}
        return picture_of([mistake for seen in found for mistake in seen.mistakes], looks)

    def _look(self, journal: Journal, image: str, save: int) -> _Seen:
        try:
            pair = self._pair_of(image)
            corrections = corrections_of(journal, pair) if pair is not None else []
            return _Seen(save, mistakes_of(corrections), looks_of(corrections))
        except Exception as error:  # the others tell, too
            logger.warning("%s is left out of what the model gets wrong: %s", image, public(str(error)))
            return _Seen(save, [], {})


def _newest(saves: Sequence[Save]) -> Iterator[tuple[str, int]]:
    """(image, its newest save) of the images that were saved last, newest first."""
    given: set[str] = set()
    for save in reversed(saves):
        if len(given) == MOST_IMAGES:
            return
        if save.image_id not in given:
            given.add(save.image_id)
            yield save.image_id, save.id
