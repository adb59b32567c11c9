"""What a training step costs: phase 2 with and without kept embeddings, and each phase with the full networks.

    python benchmarks/bench_training.py --repeats 3 [--device cuda]
    python benchmarks/bench_training.py --compact           # the compact preset, in single and in mixed precision

Random weights (the arithmetic is the same), computer-made phantoms, CPU-seconds over all threads (on a GPU: wall seconds and
the largest memory). The two phase 2 steps are alternated, so that a busy machine is equally busy for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ultrarefiner_monai.config import SystemConfig, TrainConfig, load_yaml
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import save_system
from ultrarefiner_monai.training.data.features import FeatureKeeper
from ultrarefiner_monai.training.data.loading import phantom_samples
from ultrarefiner_monai.training.data.refining import CoarseMasks, RefineDataset, RefineSample
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL, preparation
from ultrarefiner_monai.training.loop.cpu import keep_memory, no_denormals
from ultrarefiner_monai.training.loop.steps import build_optimiser
from ultrarefiner_monai.training.phases.build import build_phase
from ultrarefiner_monai.training.phases.phase import Phase
from ultrarefiner_monai.training.phases.refiner import RefinerPhase

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def seconds(action: Callable[[], None], device: str) -> float:
    """CPU-seconds of ``action``, or wall seconds on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    action()
    return time.process_time() - start


def stepper(phase: Phase, batch: dict, device: str, mixed: bool = False) -> Callable[[], None]:
    """One step: losses (mixed: in bf16), gradients, update."""
    phase.network.to(device).train()
    if device == "cpu":
        phase.network.to(memory_format=torch.channels_last)  # as a training does
    optimiser = build_optimiser(phase.config.optimiser, phase.parameter_groups())
    batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}

    def step() -> None:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=mixed):
            losses = phase.losses(phase.network, batch)
        losses["loss"].backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def refiner_batch(phase: RefinerPhase, size: int, kept: bool, count: int) -> dict:
    """Phantoms as phases 2 and 3 see them."""
    assert phase.config.system.sam is not None
    samples = [RefineSample(s[ID], s[IMAGE], s[LABEL]) for s in phantom_samples(count, 0)]
    keeper = FeatureKeeper(phase.refiner.sam.image_encoder, phase.config.refine.train, 2**31) if kept else None
    masks = CoarseMasks(phase.config.refine.corruption, phase.system.coarse.image_size)
    dataset = RefineDataset(samples, size, 0, embed=keeper, coarse_size=phase.coarse_size, coarse_masks=masks)
    return torch.utils.data.default_collate([dataset[k] for k in range(count)])


def coarse_batch(size: int, count: int) -> dict:
    prepare = preparation(size)
    return torch.utils.data.default_collate([dict(prepare(s)) for s in phantom_samples(count, 0)])


def with_and_without_cache(init: str, clicks: float, options: argparse.Namespace, unit: str) -> None:
    """Print what keeping embeddings saves. clicks: share of the images that are refined with clicks."""
    config = load_yaml(TrainConfig, CONFIGS / "phase2_full.yaml", {"init": init, "refine.click_share": clicks})
    phase = build_phase(config)
    assert isinstance(phase, RefinerPhase) and config.system.sam is not None
    side = config.system.sam.image_size
    both = [stepper(phase, refiner_batch(phase, side, kept, options.batch), options.device) for kept in (True, False)]
    times: list[list[float]] = [[], []]
    for step in both:
        step()  # a first step makes the optimiser's state
    for _ in range(options.repeats):
        for row, step in zip(times, both, strict=True):
            row.append(seconds(step, options.device))
    kept, each = (statistics.median(row) for row in times)
    played = "with clicks" if clicks else "without clicks"
    print(f"phase 2 step {played}, TransUNet + ViT-B, batch {options.batch}: {kept:.2f} {unit} with embeddings kept, ")
    print(f"  {each:.2f} {unit} with the encoder in each step: {each / kept:.1f} times as much")


def compact(options: argparse.Namespace, unit: str, folder: Path) -> None:
    """Print what a step of the compact preset takes, batch 8, in both precisions, turn by turn."""
    first = load_yaml(TrainConfig, CONFIGS / "phase1_compact.yaml", {"init": "none"})
    start = folder / "compact.safetensors"
    save_system(start, SystemConfig(coarse=first.system.coarse), build_coarse(first.system.coarse), half=False)
    second = load_yaml(TrainConfig, CONFIGS / "phase2_compact.yaml", {"init": str(start)})
    assert second.system.sam is not None
    for name, config in (("phase 1", first), ("phase 2", second)):
        phase = build_phase(config)
        if isinstance(phase, RefinerPhase):
            batch = refiner_batch(phase, second.system.sam.image_size, True, 8)
        else:
            batch = coarse_batch(first.system.coarse.image_size, 8)
        steps = [stepper(phase, batch, options.device, mixed) for mixed in (False, True)]
        times: list[list[float]] = [[], []]
        for _ in range(options.repeats + 1):  # the first makes the optimiser's state
            for row, step in zip(times, steps, strict=True):
                torch.manual_seed(0)  # the same clicks for both
                row.append(seconds(step, options.device))
        single, mixed = (statistics.median(row[1:]) for row in times)
        print(
            f"{name} step, compact preset, batch 8: {single:.2f} {unit}, in bf16 {mixed:.2f}: {mixed / single:.2f} of it"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compact", action="store_true", help="the compact preset instead")
    options = parser.parse_args()
    device = options.device
    torch.manual_seed(0)
    if device == "cpu":
        keep_memory()
    with no_denormals(), tempfile.TemporaryDirectory() as folder:
        if options.compact:
            compact(options, "s" if device.startswith("cuda") else "CPU-s", Path(folder))
            return
        first = load_yaml(TrainConfig, CONFIGS / "phase1_transunet.yaml", {"init": "none"})
        start = Path(folder) / "coarse.safetensors"
        save_system(start, SystemConfig(coarse=first.system.coarse), build_coarse(first.system.coarse), half=False)
        unit = "s" if device.startswith("cuda") else "CPU-s"
        for clicks in (0.0, 1.0):
            with_and_without_cache(str(start), clicks, options, unit)
        rows = [("phase 1", build_phase(first), coarse_batch(first.system.coarse.image_size, options.batch))]
        third = load_yaml(TrainConfig, CONFIGS / "phase3_joint_full.yaml", {"init": str(start)})
        joint = build_phase(replace(third, init=str(start)))
        assert isinstance(joint, RefinerPhase) and third.system.sam is not None
        side = third.system.sam.image_size
        rows.append(("phase 3", joint, refiner_batch(joint, side, True, options.batch)))
        for name, other, batch in rows:
            step = stepper(other, batch, device)
            figure = statistics.median(seconds(step, device) for _ in range(options.repeats))
            print(f"{name} step, full networks, batch {options.batch}: {figure:.2f} {unit}")
        if device.startswith("cuda"):
            print(f"largest memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
