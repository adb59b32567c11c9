"""The next image to label. A skipped image goes to the end of the queue; files that cannot be read are never offered; two
users do not get the same image. How the strategies choose: ``ultrarefiner_monai.learning.sampling.strategies``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.strategy import Strategy

from lib.store.datastore import StudiesFolder
from lib.store.pacs import PacsStudies
from lib.tasks.leases import Leases
from lib.tasks.scoring import Scorer
from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.learning.sampling.strategies import STRATEGIES, Options, by_spread, draws
from ultrarefiner_monai.learning.sampling.strategies import choose as choose_rows

DEFAULT = next(iter(STRATEGIES))


class Sampler:
    """What the strategies share. Thread-safe."""

    def __init__(self, scorer: Scorer, config: LearningConfig):
        self.scorer, self.leases = scorer, Leases(config.lease_minutes)
        self.options = Options(diverse_until=config.diverse_until)
        self._questions = itertools.count()

    def order(self, strategy: str, datastore: StudiesFolder, busy: Mapping[str, float]) -> list[str]:
        """Images without a label that nobody else works on, best first."""
        labelled, offered = datastore.pool()
        ids = sorted({*labelled, *offered})
        row = {image_id: k for k, image_id in enumerate(ids)}
        table = self.scorer.table(ids)
        covered = {row[i] for i in labelled}
        taken = {row[i] for i in busy if i in row}
        again = sorted((i for i, time in offered.items() if time), key=lambda i: (offered[i], i))
        nearest = None
        if by_spread(strategy, len(labelled), self.options):
            nearest = self.scorer.distances(table, covered, taken)
        rng = draws(len(labelled), next(self._questions))
        rows = choose_rows(strategy, table, covered, [row[i] for i in again], rng, self.options, taken, nearest)
        return [ids[k] for k in rows]

    def sample(self, strategy: str, holder: str, datastore: StudiesFolder, skip: str = "") -> dict[str, Any]:
        """{"id": ...}, with "warnings" where another user may be at work on it; without an "id", but with a "message" and
        what is "left", when no image can be offered.

        The image is leased to ``holder``. skip: an image that is not meant, since it is open. Where others hold all that is left, the one held longest is handed out again.
        """
        busy = self.leases.of_others(holder)
        for image_id in self.order(strategy, datastore, busy):
            if image_id != skip and datastore.is_readable(image_id) and self.leases.take(image_id, holder):
                return {"id": image_id}
        _, offered = datastore.pool()
        for image_id, seconds in self.leases.of_others(holder).items():
            if image_id in offered and image_id != skip and datastore.is_readable(image_id):
                self.leases.take(image_id, holder, anyway=True)
                since = f"{max(1, round(seconds / 60))} min ago"
                text = f"another user was given this image {since}, and no image without a label is left besides such"
                return {"id": image_id, "warnings": [text]}
        if skip in offered:
            return {"message": "No other image is left without a final label", "PatientID": "no other image"}
        return self._nothing(datastore)

    def _nothing(self, datastore: StudiesFolder) -> dict[str, Any]:
        labelled, offered = datastore.pool()
        left = {"images": len(labelled) + len(offered), "labelled": len(labelled), "unreadable": len(offered)}
        away = isinstance(datastore, PacsStudies) and datastore.contact()["problem"]
        if away and (offered or not labelled):
            message = f"The PACS does not answer, and no image that is here is left ({away}). Try again in a while"
        elif not left["images"]:
            message = "There is no image in the studies"
        else:
            message = f"No image is left: {left['labelled']} of {left['images']} have a final label"
            if offered:
                message += f", {left['unreadable']} cannot be opened (the log says why)"
        # OHIF's window for a next sample shows a few fields only, 3D Slicer a text of its own.
        return {"message": message, "left": left, "PatientID": message}


class NextSample(Strategy):
    """One strategy as MONAI Label knows it."""

    def __init__(self, name: str, sampler: Sampler):
        super().__init__(STRATEGIES[name])
        self.name, self.sampler = name, sampler

    def __call__(self, request: dict[str, Any], datastore: StudiesFolder) -> dict[str, Any]:
        """``Sampler.sample`` for who asks: ``holder`` of the request, else its ``client_id``."""
        holder = str(request.get("holder") or request.get("client_id") or "")
        return self.sampler.sample(self.name, holder, datastore, str(request.get("skip") or ""))


def make_strategies(sampler: Sampler) -> dict[str, NextSample]:
    """The strategies by name. 3D Slicer chooses the first one where nobody chose another before."""
    return {name: NextSample(name, sampler) for name in STRATEGIES}


def choose(known: Mapping[str, Strategy], request: dict[str, Any], datastore: StudiesFolder) -> dict[str, Any]:
    """What the strategy that the request names (or DEFAULT) offers; MONAILabelException where there is no such one."""
    name = request.get("strategy") or DEFAULT
    if name not in known:
        names = ", ".join(known)
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"no strategy {name!r:.80}; known: {names}")
    return known[name](request, datastore)
