"""Which files of this package a phase 2 training step passes: what someone opens who follows it with a debugger.

    python benchmarks/files_of_a_step.py [--steps 20]

A run of configs/phase2_compact.yaml on phantoms, in one process, with random weights. After an epoch that warms up, each
step is watched from fetching its batch to its figures: a file counts where one of its functions runs. Printed: the files
of a step (the median), how many of them make the batch alone (augmentation, corruption), and all that any of the steps
passed, since augmentation and corruption are drawn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ignite.engine import Events

from ultrarefiner_monai.config import SystemConfig, TrainConfig, load_yaml
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import save_system
from ultrarefiner_monai.training.data.acquisition_ranges import ranges
from ultrarefiner_monai.training.data.loaders import coarse_masks
from ultrarefiner_monai.training.data.loading import phantom_samples, plain_loader, training_loader
from ultrarefiner_monai.training.data.refining import RefineDataset, RefineSample
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL, augmentation
from ultrarefiner_monai.training.loop.engine import Run
from ultrarefiner_monai.training.phases.build import build_phase

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = str(ROOT / "ultrarefiner_monai")


class Watch:
    """The files whose functions ran, step by step."""

    def __init__(self) -> None:
        self.steps: list[set[str]] = []
        self.learning: list[set[str]] = []  # those of a step once its batch is there
        self._here: set[str] = set()

    def start(self, _: Any) -> None:
        self._here = set()
        self.steps.append(self._here)
        sys.setprofile(self._seen)

    def got_batch(self, _: Any) -> None:
        self._here = set()
        self.learning.append(self._here)

    def stop(self, _: Any) -> None:
        sys.setprofile(None)
        self.steps[-1] |= self._here

    def _seen(self, frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            self._here.add(name[len(PACKAGE) + 1 :])


def watched(steps: int, folder: Path) -> Watch:
    """Train for two epochs and watch the second one."""
    config = load_yaml(TrainConfig, ROOT / "configs" / "phase2_compact.yaml", {"epochs": 2, "batch_size": 2})
    config = replace(config, tracking="none", overlays=0, refine=replace(config.refine, sam_init="none"))
    start = folder / "start.safetensors"
    save_system(start, SystemConfig(coarse=config.system.coarse), build_coarse(config.system.coarse), half=False)
    config = replace(config, init=str(start))
    phase, data, options = build_phase(config), config.data, config.refine
    assert config.system.sam is not None
    side = config.system.sam.image_size
    samples = [RefineSample(s[ID], s[IMAGE], s[LABEL]) for s in phantom_samples(2 * steps, 0)]
    augment = augmentation(data.augment, side, True, data.echogenicity, ranges(data.machines))
    training = RefineDataset(samples, side, 0, augment, options.variants, coarse_masks=coarse_masks(config))
    selection = RefineDataset(samples[:1], side, 0)
    run = Run(phase, config, training_loader(training, 2, 0), plain_loader(selection, 1), folder)
    watch = Watch()
    second = Events.GET_BATCH_STARTED(event_filter=lambda engine, _: engine.state.epoch == 2)
    run.trainer.add_event_handler(second, watch.start)
    got = Events.GET_BATCH_COMPLETED(event_filter=lambda engine, _: engine.state.epoch == 2)
    run.trainer.add_event_handler(got, watch.got_batch)
    stopped = Events.ITERATION_COMPLETED(event_filter=lambda engine, _: engine.state.epoch == 2)
    run.trainer.add_event_handler(stopped, watch.stop)
    run.fit()
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        watch = watched(options.steps, Path(folder))
    counts = [len(step) for step in watch.steps]
    print(f"files of a step: {statistics.median(counts):g} ({min(counts)} to {max(counts)} in {len(counts)} steps)")
    own = [len(step) for step in watch.learning]
    print(f"once its batch is there: {statistics.median(own):g} ({min(own)} to {max(own)})")
    whole = sorted(set().union(*watch.steps))
    learning = set().union(*watch.learning)
    print(f"files of any step: {len(whole)} (*: only to make its batch)")
    print(*(f"  {name}{'' if name in learning else ' *'}" for name in whole), sep="\n")


if __name__ == "__main__":
    main()
