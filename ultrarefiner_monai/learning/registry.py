"""Which model is served: candidates that trainings made, by name, and a pointer file that says which one answers.

models/NAME.safetensors, NAME.json   a candidate: its checkpoint, and what it was trained on and reached
models/current.json                  {"name": ..., "before": [...]}: what is served, and what was before, newest first
models/.last.json                    the same, so that it is known that current.json is gone, and what was served

A training adds candidates and never moves the pointer; a person does. The pointer is written beside and renamed, so a
running server sees either the old or the new one. ``CONFIGURED`` is what the server's option ``weights`` names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ultrarefiner_monai.core.files import replacing, sha256_of
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint, write_checkpoint
from ultrarefiner_monai.studies.training_folder import read_json, write_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

CONFIGURED = "configured"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MOST_BEFORE = 20


@dataclass(frozen=True)
class Candidate:
    """A model that can be served. version: as replies report it. facts: plain values, see ``Registry.add``."""

    name: str
    path: Path
    version: str
    created: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pointer:
    """What is served, and what was served before it, newest first. problem: why that cannot be known, else empty."""

    name: str = CONFIGURED
    before: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Start:
    """The model that a training begins with. refiner: a foreign SAM file served with it, or None."""

    name: str
    path: Path
    refiner: Path | None = None


class Registry:
    """The models of one work folder. Several processes may use it at the same time."""

    def __init__(self, work: WorkFolder):
        self.folder = work.models
        self.pointer_file = self.folder / "current.json"
        self.last_file = self.folder / ".last.json"  # no candidate can be called so
        self._own = (self.pointer_file, self.last_file)

    # --- candidates ---------------------------------------------------------------------------------------------------

    def candidates(self) -> list[Candidate]:
        """All candidates, oldest first."""
        found = [self._candidate(path) for path in self.folder.glob("*.json") if path not in self._own]
        return sorted((c for c in found if c is not None), key=lambda c: (c.created, c.name))

    def get(self, name: str) -> Candidate:
        """One candidate; InputError when there is none of that name."""
        found = self._candidate(self.folder / f"{name}.json") if _NAME.fullmatch(name) else None
        if found is None:
            known = ", ".join([CONFIGURED, *(c.name for c in self.candidates())])
            raise InputError(f"there is no model {name!r:.80}; known: {known}")
        return found

    def _candidate(self, path: Path) -> Candidate | None:
        values = read_json(path)
        if path in self._own or not {"version", "created", "facts"} <= values.keys():
            return None
        checkpoint = path.with_name(f"{path.stem}.safetensors")
        return Candidate(path.stem, checkpoint, str(values["version"]), str(values["created"]), dict(values["facts"]))

    def free_name(self, task: str, taken: Iterable[str] = ()) -> str:
        """``task-N`` with a number that no candidate, and none of ``taken``, ever had."""
        names = {c.name for c in self.candidates()} | set(taken)
        numbers = [int(n.removeprefix(f"{task}-")) for n in names if re.fullmatch(rf"{task}-\d+", n)]
        return f"{task}-{max(numbers, default=0) + 1}"

    def add(
        self, name: str, checkpoint: Path, base: Path | None = None, facts: dict[str, Any] | None = None
    ) -> Candidate:
        """Take a checkpoint as candidate ``name``; nothing that is served changes.

        base: a checkpoint whose refiner is taken along where ``checkpoint`` holds a coarse network alone.
        facts: task, start (name and version it started from), images, figures. Raises InputError for a file that cannot
        be served.
        """
        if not _NAME.fullmatch(name) or name in (CONFIGURED, *(path.stem for path in self._own)):
            raise InputError(f"a model's name is letters, digits, dots, dashes and underscores, got {name!r:.80}")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{name}.safetensors"
        if path.with_suffix(".json").exists():
            raise InputError(f"there is a model {name!r} already")
        stored = read_checkpoint(checkpoint)
        tensors, config = stored.tensors, stored.config
        if base is not None and config.sam is None:
            whole = read_checkpoint(base)
            tensors = tensors | {k: v for k, v in whole.tensors.items() if not k.startswith("coarse.")}
            config = replace(whole.config, coarse=config.coarse, post=config.post)
        write_checkpoint(path, tensors, config, stored.meta)
        try:
            version = check(path)
        except InputError:
            path.unlink()
            raise
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(path.with_suffix(".json"), {"version": version, "created": created, "facts": facts or {}})
        return self.get(name)

    # --- what is served -----------------------------------------------------------------------------------------------

    def pointer(self) -> Pointer:
        """What the pointer file says; CONFIGURED when there is none, or it cannot be read: then with a problem."""
        found = _pointer(read_json(self.pointer_file))
        if found is not None:
            return found
        last = _pointer(read_json(self.last_file))
        if not self.pointer_file.exists() and (last is None or last.name == CONFIGURED):
            return Pointer()
        how = "is damaged" if self.pointer_file.exists() else "is gone"
        before = f"; {last.name} was served before" if last is not None else ""
        return Pointer(
            problem=f"the file that says which model is served ({self.pointer_file.name}) {how}: the model that the server "
            f"is configured with answers{before}. Choose one with `ultrarefiner models use NAME`"
        )

    def state(self) -> tuple[int, ...]:
        """Changes whenever the pointer file does."""
        try:
            stat = self.pointer_file.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def use(self, name: str) -> Pointer:
        """Serve ``name`` from now on. Raises InputError when it cannot be served; then nothing changes."""
        with self._lock():
            now = self.pointer()
            if name == now.name and not now.problem:
                raise InputError(f"{name} is what is served already")
            self.require_sound(name)
            return self._point(Pointer(name, (now.name, *now.before)[:_MOST_BEFORE]))

    def back(self) -> Pointer:
        """Serve what was served before. Raises InputError when there is none, or it cannot be served any more."""
        with self._lock():
            now = self.pointer()
            if not now.before:
                raise InputError(f"{now.name} is served, and nothing was before it: choose one with `models use NAME`")
            self.require_sound(now.before[0])
            return self._point(Pointer(now.before[0], now.before[1:]))

    def require_sound(self, name: str) -> None:
        """InputError unless ``name`` is CONFIGURED or a candidate whose file is whole and the one that was made."""
        if name == CONFIGURED:
            return
        found = self.get(name)
        if check(found.path) != found.version:
            raise InputError(f"{found.path} is not the file that was made as {name}: it changed since")

    def _lock(self) -> FileLock:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(str(self.folder / "lock"))

    def _point(self, pointer: Pointer) -> Pointer:
        for path in (self.pointer_file, self.last_file):
            with replacing(path, "w") as file:
                json.dump({"name": pointer.name, "before": list(pointer.before)}, file, indent=1)
        return pointer


def _pointer(values: dict[str, Any]) -> Pointer | None:
    name, before = values.get("name"), values.get("before", [])
    if not isinstance(name, str) or not isinstance(before, list):
        return None
    return Pointer(name, tuple(str(n) for n in before))


def check(path: Path) -> str:
    """The version of a checkpoint that can be served: all weights fit their networks and are finite. InputError if not."""
    system = load_system(path)
    for part, network in (("coarse", system.coarse), ("refiner", system.refiner)):
        for name, value in network.state_dict().items() if network is not None else ():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise InputError(f"{path}: {part} {name} holds numbers that are not finite")
    return sha256_of(path)[:12]
