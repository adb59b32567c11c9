"""Recipe files, and the jobs that they mean: each one command line of ``ultrarefiner``, with the jobs it waits for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ultrarefiner_monai.config import ConfigError, TrainConfig, load_yaml, read_yaml, to_dict

BY_SETS = "sets"
AWAY = "without_"  # begins the names of the rows that leave a set out
_PLACE = re.compile(r"\{([\w-]+)\}")


@dataclass(frozen=True)
class StepConfig:
    """One step of a recipe file.

    ``{NAME}`` in an option or a path stands for the folder of the step NAME, which then comes first. train: ``config``
    with ``options``; ``away_options`` come on top where a set is left out that the start weights may have seen.
    proposals: networks of ``config`` that each leave a part out and predict it; by: how many parts, or ``sets``: each part
    is a whole data set, so that what is predicted comes from a hospital never seen. join: the means of ``coarse`` and of
    ``sam``, calibrated where asked. evaluate: figures of ``model``.
    """

    name: str
    command: Literal["train", "proposals", "join", "evaluate"]
    config: str = ""
    options: dict[str, object] = field(default_factory=dict)
    away_options: dict[str, object] = field(default_factory=dict)
    by: str = BY_SETS
    coarse: tuple[str, ...] = ()
    sam: tuple[str, ...] = ()
    calibrate: bool = True
    model: str = ""
    robot: bool = False

    def __post_init__(self) -> None:
        needed = {"train": "config", "proposals": "config", "join": "coarse", "evaluate": "model"}[self.command]
        if not getattr(self, needed):
            raise ConfigError(f"step {self.name}: {self.command} needs {needed}")
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ConfigError(f"a step's name is made of letters, digits, - and _, got {self.name!r}")
        if self.by != BY_SETS and not (self.by.isdigit() and int(self.by) >= 2):
            raise ConfigError(f"step {self.name}: by must be {BY_SETS} or a number of parts from 2 on, got {self.by!r}")

    @property
    def waits_for(self) -> set[str]:
        """Names of the steps whose folders it reads when no set is left out."""
        texts = [json.dumps(self.options), *self.coarse, *self.sam, self.model]
        return {name for text in texts for name in _PLACE.findall(text)}

    def in_row(self, left_out: Sequence[str]) -> StepConfig:
        """The step as it is when these sets are left out."""
        more = self.away_options if left_out else {}
        return replace(self, options={**self.options, **more}, away_options={})


@dataclass(frozen=True)
class RecipeConfig:
    """A recipe file. result: the step whose model is what the recipe is for."""

    steps: tuple[StepConfig, ...]
    result: str

    def __post_init__(self) -> None:
        names: list[str] = []
        for step in self.steps:
            unknown = sorted((step.waits_for | step.in_row(["any"]).waits_for) - set(names))
            if unknown:
                raise ConfigError(f"step {step.name} reads {', '.join(unknown)}: no step before it has that name")
            if step.name in names:
                raise ConfigError(f"two steps are called {step.name}")
            names.append(step.name)
        if self.result not in names:
            raise ConfigError(f"result: no step is called {self.result!r}; there are {', '.join(names)}")


@dataclass(frozen=True)
class Job:
    """One process of a recipe. id: STEP, STEP/PART or without_SET/STEP. definition: what it does, whatever the machine and
    the folders; a job that was done by another one is not done. training: the options of its run, where it trains."""

    id: str
    step: StepConfig
    out: Path
    waits_for: tuple[str, ...]
    definition: dict[str, Any]
    command: tuple[str, ...]
    training: TrainConfig | None = None
    left_out: tuple[str, ...] = ()
    part: str = ""
    selected: tuple[float, int] | None = None  # data.select_share and select_seed of its run, or of those that it joins

    @property
    def away(self) -> bool:
        """Whether the job belongs to a recipe that leaves a set out."""
        return self.id.startswith(AWAY)


@dataclass(frozen=True)
class Work:
    """A recipe on some data. leave_out: sets that nothing is learnt from. away_scale: above 0, besides, the whole recipe at
    that share of its epochs without each set in turn, reported on all of it."""

    recipe: RecipeConfig
    folder: Path  # of the recipe file: its configurations lie there
    data: tuple[Path, ...]
    fold: str
    out: Path
    scale: float = 1.0
    leave_out: tuple[str, ...] = ()
    away_scale: float = 0.0
    device: str | None = None
    workers: int = 0

    @property
    def sets(self) -> list[str]:
        return [d.resolve().name for d in self.data]


def jobs_of(work: Work) -> list[Job]:
    """All processes, each after those that it waits for."""
    jobs = list(_row(work, work.leave_out, work.scale, ""))
    if work.away_scale:
        for name in work.sets:
            if name not in work.leave_out:
                row = _row(work, (*work.leave_out, name), work.scale * work.away_scale, f"{AWAY}{name}/")
                jobs += row
    return jobs


def up_to(jobs: Sequence[Job], steps: Sequence[str]) -> list[Job]:
    """The jobs of ``steps`` and all that they need. ConfigError for a step that there is not."""
    names = list(dict.fromkeys(job.step.name for job in jobs))
    unknown = sorted(set(steps) - set(names))
    if unknown:
        raise ConfigError(f"there is no step {', '.join(unknown)}; there are {', '.join(names)}")
    wanted = {job.id for job in jobs if job.step.name in steps}
    for job in reversed(jobs):
        if job.id in wanted:
            wanted |= set(job.waits_for)
    return [job for job in jobs if job.id in wanted]


def _row(work: Work, left_out: tuple[str, ...], scale: float, prefix: str) -> Iterator[Job]:
    made: dict[str, list[Job]] = {}
    for config in work.recipe.steps:
        step = config.in_row(left_out)
        waits = [job for name in sorted(step.waits_for) for job in made[name]]
        jobs = list(_jobs(work, step, left_out, scale, prefix, waits))
        made[step.name] = jobs
        yield from jobs


def _jobs(
    work: Work, step: StepConfig, left_out: tuple[str, ...], scale: float, prefix: str, waits: Sequence[Job]
) -> Iterator[Job]:
    root = work.out / prefix
    out = root / step.name
    if "," in str(root) and "," in str(step.options.get("refine.proposals", "")):
        raise ConfigError(
            f"step {step.name} reads proposals of several folders: --out must not hold a comma, got {root}"
        )
    about: dict[str, Any] = {"sets": work.sets, "fold": work.fold, "left_out": list(left_out), **to_dict(step)}
    step = _placed(step, root)
    training = None
    if step.config:
        path = work.folder / step.config
        if not path.is_file():
            raise ConfigError(f"step {step.name}: no configuration at {path}")
        training = scaled(load_yaml(TrainConfig, path, dict(step.options)), scale)
        about |= {"epochs": training.epochs, "settings": read_yaml(path)}
    base = Job(prefix + step.name, step, out, tuple(job.id for job in waits), about, (), training, left_out)
    if training is not None:
        base = replace(base, selected=(training.data.select_share, training.select_seed))
    if step.command == "train":
        yield replace(base, command=tuple(_train(work, base)))
    elif step.command == "proposals":
        left = [s for s in work.sets if s not in left_out]
        if step.by == BY_SETS and len(left) < 2:
            raise ConfigError(
                f"step {base.id}: proposals by sets need two sets to learn from, there is {left[0] if left else 'none'}: "
                'give more --data, or say by: "2" in the recipe'
            )
        for part in left if step.by == BY_SETS else [str(k) for k in range(int(step.by))]:
            one = replace(base, id=f"{base.id}/{part}", part=part, definition={**about, "part": part})
            yield replace(one, command=tuple(_proposals(work, one)))
    elif step.command == "join":
        base = replace(base, selected=_selected(base.id, waits))
        yield replace(base, command=tuple(_join(work, base)))
    else:
        yield replace(base, command=tuple(_evaluate(work, base)))


def _selected(name: str, waits: Sequence[Job]) -> tuple[float, int] | None:
    """(share, seed) that draw the selection images of the runs that the join ``name`` reads. With any other it would
    calibrate on images that the runs were trained on."""
    found = {job.selected for job in waits if job.selected is not None}
    if len(found) > 1:
        said = "; ".join(f"{share:g} and {seed}" for share, seed in sorted(found))
        raise ConfigError(
            f"step {name} joins runs of other selection images (data.select_share and select_seed: {said})"
        )
    return found.pop() if found else None


def scaled(config: TrainConfig, scale: float) -> TrainConfig:
    """The same with ``scale`` times as many epochs, one at least."""
    return replace(config, epochs=max(1, round(config.epochs * scale)))


def _placed(step: StepConfig, root: Path) -> StepConfig:
    """``{NAME}`` replaced by the step's folder."""

    def put(value: Any) -> Any:
        if isinstance(value, str):
            return _PLACE.sub(lambda found: str(root / found[1]), value)
        if isinstance(value, (list, tuple)):
            return [put(v) for v in value]
        return value

    return replace(
        step,
        options={k: put(v) for k, v in step.options.items()},
        coarse=tuple(put(step.coarse)),
        sam=tuple(put(step.sam)),
        model=put(step.model),
    )


# --- command lines ----------------------------------------------------------------------------------------------------


def _data(work: Work, left_out: Sequence[str]) -> Iterator[str]:
    for folder in work.data:
        yield from ("--data", str(folder))
    yield from ("--fold", work.fold)
    for name in left_out:
        yield from ("--leave-out", name)


def _device(work: Work) -> list[str]:
    return ["--device", work.device] if work.device else []


def _options(work: Work, job: Job) -> Iterator[str]:
    assert job.training is not None
    options: dict[str, Any] = {**job.step.options, "epochs": job.training.epochs}
    if work.workers:
        options["data.workers"] = work.workers
    for name, value in options.items():
        yield from ("--set", f"{name}={json.dumps(value)}")


def _train(work: Work, job: Job) -> Iterator[str]:
    assert job.training is not None
    yield from ("train", job.training.phase, "--config", str(work.folder / job.step.config))
    yield from (*_data(work, job.left_out), "--out", str(job.out), *_device(work), *_options(work, job))


def _proposals(work: Work, job: Job) -> Iterator[str]:
    yield from ("proposals", "--config", str(work.folder / job.step.config), *_data(work, job.left_out))
    yield from ("--out", str(job.out), *(("--by-set",) if job.step.by == BY_SETS else ("--parts", job.step.by)))
    yield from ("--only", job.part, *_device(work), *_options(work, job))


def _join(work: Work, job: Job) -> Iterator[str]:
    yield from ("weights", "join", str(job.out / "model.safetensors"), *_data(work, job.left_out))
    if job.selected is not None:
        yield from ("--select-share", str(job.selected[0]), "--select-seed", str(job.selected[1]))
    for name in ("coarse", "sam"):
        for path in getattr(job.step, name):
            yield from (f"--{name}", path)
    yield from (*_device(work), *(() if job.step.calibrate else ("--no-calibrate",)))


def _evaluate(work: Work, job: Job) -> Iterator[str]:
    yield from ("evaluate", "--model", job.step.model, "--out", str(job.out), "--tissue", *_device(work))
    yield from _data(work, job.left_out)
    if job.step.robot and not job.away:  # a set as a whole would take a robot hours
        yield "--robot"
