"""The next image to label. A skipped image goes to the end of the queue; files that cannot be read are never
offered."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.strategy import Strategy

from lib.store.datastore import StudiesFolder


class NextSample(Strategy):
    """Offers unlabelled images in rounds: those never offered before, then those whose offer is longest ago.

    shuffled: any image of the current round, else the first by name.
    """

    def __init__(self, shuffled: bool):
        super().__init__("A random image without a label" if shuffled else "The first image without a label, by name")
        self.shuffled = shuffled

    def __call__(self, request: dict[str, Any], datastore: StudiesFolder) -> dict[str, str] | None:
        """{"id": ...}, or None when every readable image has a label."""
        offered = {i: _last_offer(datastore.get_image_info(i)) for i in datastore.get_unlabeled_images()}
        names = sorted(offered)
        if self.shuffled:
            random.shuffle(names)
        never = [i for i in names if not offered[i]]
        # Older half first: at random among them, so that what was just skipped stays away for a while.
        again = sorted((i for i in names if offered[i]), key=lambda i: offered[i])
        older, newer = again[: (len(again) + 1) // 2], again[(len(again) + 1) // 2 :]
        if self.shuffled:
            random.shuffle(older)
        for image_id in (*never, *older, *newer):
            if datastore.is_readable(image_id):
                return {"id": image_id}
        return None


def make_strategies() -> dict[str, NextSample]:
    """The strategies by name."""
    return {"random": NextSample(shuffled=True), "first": NextSample(shuffled=False)}


def choose(known: Mapping[str, Strategy], request: dict[str, Any], datastore: StudiesFolder) -> dict[str, str] | None:
    """What the strategy that the request names (or "random") offers; MONAILabelException where there is no such one."""
    name = request.get("strategy") or "random"
    if name not in known:
        names = ", ".join(known)
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"no strategy {name!r:.80}; known: {names}")
    return known[name](request, datastore)


def _last_offer(info: dict[str, Any]) -> float:
    """When any strategy offered the image last (MONAI Label keeps that with the image), 0 for never."""
    offers = info.get("strategy")
    times = [o.get("ts", 0) for o in offers.values() if isinstance(o, dict)] if isinstance(offers, dict) else []
    return max((t for t in times if isinstance(t, (int, float))), default=0)
