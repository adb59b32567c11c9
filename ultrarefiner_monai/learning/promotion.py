"""After a training: its result becomes a candidate, the gate compares it with what is served, and it takes that one's place
by itself where the gate lets it.

Every step can be done again: a run that was killed here and is gone on with finds what was done and ends the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ultrarefiner_monai import __version__
from ultrarefiner_monai.config import LearningConfig, TrainConfig
from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.learning.gate import GateReport, judge
from ultrarefiner_monai.learning.labelled import Prepared
from ultrarefiner_monai.learning.registry import Candidate, Registry, Start
from ultrarefiner_monai.models.checkpoints import load_system, read_header
from ultrarefiner_monai.pipeline.predictor import Predictor

log = logging.getLogger(__name__)

# The files of a model by its name: of ``CONFIGURED`` they are those that the server's options name.
Files = Callable[[str], Start]
_CACHE_BYTES = 64 * 2**20  # one image's embedding is asked for again with each click
_TRIES = 3
# The gate compares automatic results and clicks, which a training of the proposed points does not change.
UNMEASURED = "ppn"
POINTS_UNMEASURED = (
    "the gate does not measure proposed points: look at them, then `ultrarefiner models promote` serves it"
)


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate. report: None where it was served already when it was to be judged."""

    candidate: Candidate
    promoted: bool
    report: GateReport | None = None


def keep(
    registry: Registry, run: Path, config: TrainConfig, start: Start, prepared: Prepared, replayed: int = 0
) -> Candidate:
    """Take a run's result into the registry, or find it there. Raises InputError for one that cannot be served."""
    if run.name in {c.name for c in registry.candidates()}:
        return registry.get(run.name)
    coarse = config.phase == "phase1_coarse"
    about = {
        "task": run.name.rpartition("-")[0],
        "start": start.name,
        "images": {
            "train": prepared.train,
            "select": prepared.select,
            "lesions": prepared.lesions,
            "replayed": replayed,
        },
        "options": {
            "phase": config.phase,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "lr": config.optimiser.lr,
            "package": __version__,
        },
    }
    return registry.add(run.name, run / "model.safetensors", start.path if coarse else None, about)


def settle(
    registry: Registry,
    candidate: Candidate,
    files: Files,
    items: Sequence[Item],
    options: LearningConfig,
    device: str = "cpu",
) -> Outcome:
    """Judge a candidate on the validation labels ``items`` and promote it where it passes; its facts get the report.

    When somebody chooses another model meanwhile, it is compared with that one. Raises InputError where what is served
    cannot be loaded.
    """
    for _ in range(_TRIES):
        now = registry.pointer()
        if now.name == candidate.name:
            return Outcome(registry.get(candidate.name), True)
        champion = _predictor(files(now.name), device)
        report = judge(champion, _predictor(files(candidate.name), device), items, options)
        if candidate.facts.get("options", {}).get("phase") == UNMEASURED:
            report = replace(report, passed=False, reasons=(*report.reasons, POINTS_UNMEASURED))
        registry.note(
            candidate.name,
            gate=report.to_dict(),
            compared_with=now.name,
            figures=report.figures(1),
            start_figures=report.figures(0),
        )
        candidate = registry.get(candidate.name)
        registry.prune([candidate.name])
        if not report.passed:
            return Outcome(candidate, False, report)
        try:
            registry.promote(candidate.name, by="slow", over=now)
        except InputError:
            if registry.pointer().name == now.name:
                raise
            log.info("another model than %s was chosen meanwhile: %s is compared with that", now.name, candidate.name)
            continue
        return Outcome(candidate, True, report)
    return Outcome(candidate, False, report)


def _predictor(files: Start, device: str) -> Predictor:
    return Predictor(load_system(files.path, files.refiner, device), EmbeddingCache(_CACHE_BYTES), device)


def told(outcome: Outcome) -> dict[str, Any]:
    """What the run's state, and so the clients, get to know of it."""
    facts = outcome.candidate.facts
    found: dict[str, Any] = {k: facts[k] for k in ("figures", "start_figures", "gate") if k in facts}
    return {**found, "version": outcome.candidate.version, "promoted": outcome.promoted}


def has_refiner(start: Start) -> bool:
    """Whether a model has a refiner that can be trained."""
    return start.refiner is not None or read_header(start.path)[0].sam is not None
