"""The phase that a configuration names."""

from __future__ import annotations

from collections.abc import Callable

from ultrarefiner_monai.config import TrainConfig
from ultrarefiner_monai.training.phases.coarse import CoarsePhase
from ultrarefiner_monai.training.phases.joint import JointPhase
from ultrarefiner_monai.training.phases.phase import Phase
from ultrarefiner_monai.training.phases.ppn import PpnPhase
from ultrarefiner_monai.training.phases.refiner import RefinerPhase
from ultrarefiner_monai.training.phases.weak import WeakPhase

PHASES: dict[str, Callable[[TrainConfig], Phase]] = {
    "phase1_coarse": CoarsePhase,
    "phase2_refiner": RefinerPhase,
    "phase3_joint": JointPhase,
    "ppn": PpnPhase,
    "weak_encoder": WeakPhase,
}


def build_phase(config: TrainConfig) -> Phase:
    """The phase that a configuration names, with its networks at their start weights.

    Raises InputError where ``init`` or another start is not what the phase begins from.
    """
    return PHASES[config.phase](config)
