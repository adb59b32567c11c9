"""The plan of a recipe: its steps and how long they take on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ultrarefiner_monai.config import GateConfig, SystemConfig, TrainConfig
from ultrarefiner_monai.datasets.datalist import read_sets, split_sets
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import save_system
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.recipe.steps import BY_SETS, Job, Work
from ultrarefiner_monai.training.data.loading import phantom_samples
from ultrarefiner_monai.training.data.refining import CoarseMasks, RefineDataset, RefineSample
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL, preparation
from ultrarefiner_monai.training.loop.console import span
from ultrarefiner_monai.training.loop.steps import Steps
from ultrarefiner_monai.training.phases.build import build_phase
from ultrarefiner_monai.training.phases.phase import Phase
from ultrarefiner_monai.training.phases.refiner import RefinerPhase

_BATCH, _TIMED = 8, 2
# Beside the training steps: a process's start, its look at the data, the selection images after each epoch.
_START_SECONDS = 20.0
_ROBOT_ANSWERS = 20  # what a robot's clicks cost beside one automatic result


@dataclass(frozen=True)
class Estimate:
    """A job, the images that its run passes (0 where it trains nothing), and its seconds when it runs alone (0: not timed)."""

    job: Job
    images: int
    seconds: float


def estimates(work: Work, jobs: Sequence[Job], timing: bool = True) -> list[Estimate]:
    """How long each job takes by a few steps on phantoms, timed on this machine. The augmentation's time is in it where
    one process makes it. Without ``timing`` only what each job does."""
    device = work.device or ("cuda" if torch.cuda.is_available() else "cpu")
    items = read_sets(work.data)
    costs: dict[str, float] = {}
    out = []
    for job in jobs:
        select = 0.1 if job.training is None else job.training.data.select_share
        split = split_sets(items, work.fold, select, 0, job.left_out)
        images = 0
        if job.training is None:
            answers = len(split.report) if job.step.command == "evaluate" else 2 * len(split.select)
            answers *= _ROBOT_ANSWERS if job.step.robot and not job.away else 1
            passed, kind, measure = answers, "answer", partial(_answer_seconds, _largest(jobs), device)
        else:
            images = _trained_on(job, len(split.train), [i.set for i in split.train]) * job.training.epochs
            kind = f"{job.training.phase} {job.training.system} {job.training.refine.train}"
            passed, measure = images, partial(step_seconds, job.training, device)
        seconds = _START_SECONDS + passed * _known(costs, kind, measure) if timing else 0.0
        out.append(Estimate(job, images, seconds))
    return out


def _trained_on(job: Job, count: int, sets: Sequence[str]) -> int:
    """The images of an epoch: ``proposals`` leaves its part out."""
    if job.step.command != "proposals":
        return count
    left = sets.count(job.part) if job.step.by == BY_SETS else count // int(job.step.by)
    return count - left


def _known(costs: dict[str, float], name: str, measure: Any) -> float:
    if name not in costs:
        costs[name] = measure()
    return costs[name]


def _largest(jobs: Sequence[Job]) -> SystemConfig:
    """The networks that the recipe ends with: the last ones that have a refiner, else the last."""
    systems = [job.training.system for job in jobs if job.training is not None]
    return next((s for s in reversed(systems) if s.sam is not None), systems[-1] if systems else SystemConfig())


# --- timing -----------------------------------------------------------------------------------------------------------


def step_seconds(config: TrainConfig, device: str) -> float:
    """Seconds of an image in a step of this run, on phantoms, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "start.safetensors"
        coarse, system = build_coarse(config.system.coarse), config.system
        init = "none"
        if config.phase != "phase1_coarse":
            if config.phase == "ppn" or (
                system.sam is not None and system.sam.arch == "sam3"
            ):  # which begin with a SAM
                assert system.sam is not None
                whole = replace(system, ppn=None, views=(), gate=GateConfig())
                save_system(path, whole, coarse, build_sam(system.sam))
            else:
                save_system(path, replace(system, sam=None, ppn=None, views=()), coarse)
            init = str(path)
        refine = replace(config.refine, sam_init="none")
        config = replace(config, init=init, refine=refine, loss=replace(config.loss, teachers=()))
        phase = build_phase(config)
    steps = Steps(phase, config, 1, torch.device(device))
    batch = steps.to_device(_phantoms(config, phase))
    return _seconds(partial(_one_step, steps, batch), device) / _BATCH


def _one_step(steps: Steps, batch: Mapping[str, Any]) -> None:
    with steps.autocast():
        loss = steps.phase.losses(steps.network, dict(batch))["loss"]
    loss.backward()
    steps.optimiser.zero_grad(set_to_none=True)


def _phantoms(config: TrainConfig, phase: Phase) -> dict[str, Any]:
    samples = phantom_samples(_BATCH, 0)
    if not isinstance(phase, RefinerPhase):
        prepare = preparation(config.system.coarse.image_size)
        return torch.utils.data.default_collate([dict(prepare(s)) for s in samples])
    assert config.system.sam is not None
    masks = CoarseMasks(config.refine.corruption, config.system.coarse.image_size)
    own = [RefineSample(s[ID], s[IMAGE], s[LABEL]) for s in samples]
    data = RefineDataset(own, config.system.sam.image_size, 0, coarse_size=phase.coarse_size, coarse_masks=masks)
    return torch.utils.data.default_collate([data[k] for k in range(_BATCH)])


def _answer_seconds(system: SystemConfig, device: str) -> float:
    """Seconds of an automatic result, without post-processing."""
    coarse = build_coarse(system.coarse).eval().to(device)
    image = torch.rand(2, 1, system.coarse.image_size, system.coarse.image_size, device=device)
    sam = None if system.sam is None else build_sam(system.sam).eval().to(device)

    def answer() -> None:
        with torch.inference_mode():
            coarse(image)
            if sam is not None:
                side = sam.image_encoder.img_size
                sam.image_encoder(torch.rand(1, 3, side, side, device=device))

    return 2 * _seconds(answer, device)  # reading, prompts, decoder and mask cost about as much again


def _seconds(work: Any, device: str) -> float:
    """Seconds of one call, after one that warms up."""
    work()
    start = _now(device)
    for _ in range(_TIMED):
        work()
    return (_now(device) - start) / _TIMED


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


# --- what is shown ----------------------------------------------------------------------------------------------------


def plan_table(found: Sequence[Estimate], done: set[str], parallel: int) -> Table:
    """A line for each job with its time, and the whole; without the times where nothing was timed."""
    left = [e for e in found if e.job.id not in done]
    total, longest = sum(e.seconds for e in left), _longest_chain(left)
    expected = max(longest, total / parallel)
    timed = any(e.seconds for e in found)
    title = f"{len(found)} step{'' if len(found) == 1 else 's'}, {len(done)} done"
    if timed:
        title += f"; about {span(expected)}"
        title += f" ({parallel} at a time; one after the other {span(total)})" if parallel > 1 else ""
    table = Table(title=title)
    table.add_column("step", no_wrap=True)
    table.add_column("what", no_wrap=True)
    for name in ("images", "epochs", "time"):
        table.add_column(name, justify="right")
    for one in found:
        if not one.job.away:
            table.add_row(*_row_of(one, one.job.id in done))
    for prefix in dict.fromkeys(e.job.id.split("/")[0] for e in found if e.job.away):
        own = [e for e in found if e.job.id.startswith(f"{prefix}/")]
        left = [e for e in own if e.job.id not in done]
        table.add_row(prefix, f"{len(own)} steps, as above", "", "", _time_left(left))
    return table


def _row_of(one: Estimate, done: bool) -> tuple[str, ...]:
    job, training = one.job, one.job.training
    what = training.phase if training is not None and job.step.command == "train" else job.step.command
    passed = ("", "") if training is None else (f"{one.images // training.epochs}", str(training.epochs))
    return job.id, what, *passed, _time_left([] if done else [one])


def _time_left(left: Sequence[Estimate]) -> str:
    seconds = sum(e.seconds for e in left)
    return "done" if not left else span(seconds) if seconds else ""


def _longest_chain(found: Sequence[Estimate]) -> float:
    ends: dict[str, float] = {}
    for one in found:
        ends[one.job.id] = one.seconds + max((ends.get(name, 0.0) for name in one.job.waits_for), default=0.0)
    return max(ends.values(), default=0.0)
