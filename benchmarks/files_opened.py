"""How many files of this repository a click passes, and a training step: those with a function that runs.

    python benchmarks/files_opened.py click [--model CHECKPOINT]
    python benchmarks/files_opened.py step [--steps 20]

click: over HTTP, between the route and its reply, in the threads that answer. Counted on the second click, so that reading
the image and loading the model do not count; nor do the doors before the route and the journal, which writes in a thread of
its own. step: of phase 2, from fetching its batch to its figures, in one process; a run of configs/phase2_compact.yaml on
phantoms with random weights. Augmentation and corruption are drawn, so steps differ: all that any of them passed is listed.

A reader opens the files marked *: they call into another file. The others answer alone (a type, a resize, a file header).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "apps" / "ultrarefiner"
Files = Mapping[str, set[str]]  # file -> the files that it calls into


class Watch:
    """The files of the repository whose functions run between ``start`` and ``stop``, in threads begun meanwhile too.
    Imports do not count."""

    def __init__(self) -> None:
        self._calls: set[tuple[CodeType, CodeType | None]] = set()

    def start(self) -> None:
        self._calls = set()
        threading.setprofile(self._seen)
        sys.setprofile(self._seen)

    def stop(self) -> Files:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        found: dict[str, set[str]] = {_name(code): set() for code, _ in self._calls}
        for code, caller in self._calls:
            if caller is not None and _name(caller) != _name(code):
                found[_name(caller)].add(_name(code))
        return found

    def _seen(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not _ours(frame.f_code):
            return
        caller = frame.f_back  # the next one of ours: torch's Module calls our forward
        while caller is not None and not _ours(caller.f_code):
            caller = caller.f_back
        self._calls.add((frame.f_code, None if caller is None else caller.f_code))


def _ours(code: CodeType) -> bool:
    path = code.co_filename
    return path.startswith(str(ROOT)) and path != __file__ and code.co_name != "<module>"


def _name(code: CodeType) -> str:
    return str(Path(code.co_filename).relative_to(ROOT))


def files_of_a_click(model: Path) -> Files:
    """Those of a click on an image of sample-data that was clicked on before."""
    sys.path[:0] = [str(APP), str(ROOT)]
    from monailabel.interfaces.utils.app import app_instance

    from lib.routes.infer import _infer

    image, watch = "phantom_01", Watch()
    with tempfile.TemporaryDirectory() as name:
        studies = Path(name, "studies")
        studies.mkdir()
        shutil.copy(ROOT / "sample-data" / f"{image}.png", studies)
        app = app_instance(str(APP), str(studies), {"weights": str(model), "work_dir": str(Path(name, "work"))})
        app.served.latest()

        def click(x: int) -> None:
            stored = image, app.datastore().image_path(image)
            answer = _infer(app, "sam_refiner", stored, "", f'{{"foreground": [[{x}, 200, 0]]}}', None, None, "")
            assert answer.status_code == 200, answer.body

        click(200)
        watch.start()
        try:
            click(220)
        finally:
            files = watch.stop()
        app.journal.close()
    return files


def files_of_steps(steps: int) -> list[Files]:
    """Those of each step of an epoch, after one that warms up."""
    from ignite.engine import Events

    with tempfile.TemporaryDirectory() as folder:
        run = _small_run(steps, Path(folder))
        watch, found = Watch(), []

        def second(engine: Any, _: int) -> bool:
            return engine.state.epoch == 2

        run.trainer.add_event_handler(Events.GET_BATCH_STARTED(event_filter=second), lambda _: watch.start())
        ended = Events.ITERATION_COMPLETED(event_filter=second)
        run.trainer.add_event_handler(ended, lambda _: found.append(watch.stop()))
        run.fit()
    return found


def _small_run(steps: int, folder: Path) -> Any:
    """Two epochs of phase 2 on phantoms."""
    import torch

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

    torch.manual_seed(0)
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
    return Run(phase, config, training_loader(training, 2, 0), plain_loader(selection, 1), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("click", "step"))
    parser.add_argument("--model", type=Path, default=APP / "model" / "compact.safetensors")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    found = [files_of_a_click(options.model)] if options.what == "click" else files_of_steps(options.steps)
    for name in sorted(set().union(*found)):
        print("*" if any(files.get(name) for files in found) else " ", name)
    counts = [len(files) for files in found]
    handing = [sum(map(bool, files.values())) for files in found]
    print(f"a {options.what}: {statistics.median(counts):g} files, {statistics.median(handing):g} of them hand it on")


if __name__ == "__main__":
    main()
