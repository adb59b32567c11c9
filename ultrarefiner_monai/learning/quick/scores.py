"""The champion's scores of the samples: computed once, kept beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import numpy as np

from ultrarefiner_monai import __version__
from ultrarefiner_monai.learning.quick.overlay import refiner_of
from ultrarefiner_monai.learning.quick.replays import Score, score
from ultrarefiner_monai.learning.quick.samples import Sample
from ultrarefiner_monai.models.checkpoints import System
from ultrarefiner_monai.studies.training_folder import read_json, write_json


class Scores:
    """The champion's score of each sample, kept in a file beside it: it stays the same from run to run."""

    def __init__(self, folder: Path, champion: System):
        self.folder, self.champion = folder, champion

    def __call__(self, sample: Sample) -> Score:
        path = self.folder / f"{sample.id}.json"
        of = f"{__version__} {self.champion.version} {_digest(sample)}"
        kept = read_json(path)
        if kept.get("of") == of:
            with suppress(TypeError, KeyError):
                return Score(**kept["score"])
        found = score(refiner_of(self.champion), sample)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, {"of": of, "score": vars(found)})
        return found

    def keep_only(self, items: Collection[str]) -> None:
        """Remove what is kept of others: their labels are gone."""
        for path in self.folder.glob("*.json"):
            if path.stem not in items:
                path.unlink(missing_ok=True)


def _digest(sample: Sample) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(sample.label).data)
    digest.update(np.ascontiguousarray(sample.features.image_embedding).data)
    return digest.hexdigest()[:16]
