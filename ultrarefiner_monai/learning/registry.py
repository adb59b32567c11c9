"""Which model is served: candidates that trainings made, by name, and a pointer that says which one answers.

models/NAME.safetensors, NAME.json   a candidate: its checkpoint, and what it was trained on and reached
models/quick-N.safetensors           tensors tuned on top of what is served (``learning/quick``), nothing without it
models/current.json                  the pointer (``learning/pointer.py``)

Whoever moves the pointer is a person, or a training whose candidate passed the gate (``learning/gate.py``). It is written
beside and renamed, so a running server sees either the old or the new one.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.pointer import CONFIGURED, Pointer, PointerFile
from ultrarefiner_monai.learning.quick_file import number_of, quick_base, remove_others
from ultrarefiner_monai.learning.steps import label_of, last_promotion, note_promotion
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint, write_checkpoint
from ultrarefiner_monai.studies.training_folder import read_json, write_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

__all__ = ["CONFIGURED", "Candidate", "Pointer", "Registry", "Start", "check", "quick_base"]

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ADAPTER_FACT = "adapter"  # of a candidate that an adapter file was merged into
_MOST_BEFORE = 20
_MOST_OTHERS = 10


@dataclass(frozen=True)
class Candidate:
    """A model that can be served. version: as replies report it. facts: plain values, see ``Registry.add``."""

    name: str
    path: Path
    version: str
    created: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """The model that a training begins with. refiner: a foreign SAM file served with it, or None."""

    name: str
    path: Path
    refiner: Path | None = None


class Registry:
    """The models of one work folder. Several processes may use it at the same time."""

    def __init__(self, work: WorkFolder):
        self.folder, self._journal = work.models, work.journal
        self._file = PointerFile(self.folder)
        self._own = (self._file.path, self._file.last)

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
        facts = values.get("facts")
        if path in self._own or not {"version", "created"} <= values.keys() or not isinstance(facts, dict):
            return None
        checkpoint = path.with_name(f"{path.stem}.safetensors")
        return Candidate(path.stem, checkpoint, str(values["version"]), str(values["created"]), facts)

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
        if not _NAME.fullmatch(name) or number_of(name) or name in (CONFIGURED, *(p.stem for p in self._own)):
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

    def note(self, name: str, **facts: Any) -> None:
        """Add to what is known of a candidate, such as the gate's report."""
        found = self.get(name)
        values = {"version": found.version, "created": found.created, "facts": {**found.facts, **facts}}
        write_json(found.path.with_suffix(".json"), values)

    def prune(self, keep: Collection[str] = ()) -> list[str]:
        """Remove candidates that nobody will ask for: all but the newest ones, adapters, those in ``keep``, and what is or was served.
        Returns their names. A model takes some ten megabytes, and a server learns for years."""
        with self._lock():
            pointer = self.pointer()
            if pointer.problem:
                return []
            used = {pointer.name, *pointer.before, *keep}
            made = [c for c in self.candidates() if ADAPTER_FACT not in c.facts]  # what a person added is theirs
            others = [c for c in made if c.name not in used][:-_MOST_OTHERS]
            for candidate in others:
                candidate.path.with_suffix(".json").unlink(missing_ok=True)  # first: without it the rest is nothing
                candidate.path.unlink(missing_ok=True)
            return [c.name for c in others]

    # --- what is served -----------------------------------------------------------------------------------------------

    def pointer(self) -> Pointer:
        """What the pointer file says; CONFIGURED when there is none, or it cannot be read: then with a problem."""
        return self._file.read()

    def state(self) -> tuple[int, ...]:
        """Changes whenever the pointer file does."""
        return self._file.state()

    def promote(self, name: str, by: str = "person", over: Pointer | None = None) -> Pointer:
        """Serve ``name`` from now on, without a quick model on top of it.

        over: what has to be served still (by name); InputError when somebody chose another model meanwhile. by: where
        the pointer is damaged only a person may choose. Raises InputError when ``name`` cannot be served, or is served already; then nothing changes.
        """
        with self._lock():
            now = self.pointer()
            if now.problem and by != "person":
                raise InputError(now.problem)
            if over is not None and over.name != now.name:
                raise InputError(f"{now.name} is served now, no longer {over.name}: {name} was compared with that")
            if name == now.name and not now.quick and not now.problem:
                raise InputError(f"{name} is what is served already")
            self.require_sound(name)
            before = now.before if name == now.name else (now.name, *now.before)[:_MOST_BEFORE]
            return self._point(replace(now, name=name, before=before, quick=""), by, now)

    def rollback(self, by: str = "person") -> Pointer:
        """Undo the last step: the quick model goes first, then the model before is served again.

        Raises InputError when there is nothing to undo, or what was before cannot be served any more.
        """
        with self._lock():
            now = self.pointer()
            if now.quick:
                return self._point(replace(now, quick=""), by, now)
            if not now.before:
                raise InputError(
                    f"{now.name} is served, and nothing was before it: choose one with `ultrarefiner models promote NAME`"
                )
            self.require_sound(now.before[0])
            return self._point(replace(now, name=now.before[0], before=now.before[1:]), by, now)

    def require_sound(self, name: str) -> None:
        """InputError unless ``name`` is CONFIGURED or a candidate whose file is whole and the one that was made."""
        if name == CONFIGURED:
            return
        found = self.get(name)
        if check(found.path) != found.version:
            raise InputError(f"{found.path} is not the file that was made as {name}: it changed since")

    # --- the quick model ----------------------------------------------------------------------------------------------

    def free_quick(self) -> str:
        """The name for a quick model that is about to be written: ``quick-N`` with a number that none ever had."""
        found = [number_of(path.stem) for path in self.folder.glob("quick-*")]
        return f"quick-{max([self.pointer().quicks, *found]) + 1}"

    def quick_path(self, name: str) -> Path:
        """Where a quick model's tensors lie. Raises InputError for what is no quick model's name."""
        if not number_of(name):
            raise InputError(f"a quick model is called quick-N, got {name!r:.80}")
        return self.folder / f"{name}.safetensors"

    def set_quick(
        self, name: str, base_version: str, report: dict[str, Any] | None = None, over: Pointer | None = None
    ) -> Pointer:
        """Serve the quick model ``name`` on top of the champion from now on; older ones are removed.

        base_version: the champion that it was tuned on, as its file's metadata say under ``base``. report: figures for the
        journal, without ids of images. over: the pointer when the run began. Raises InputError when the file cannot be read,
        says another base, when another model became champion meanwhile, and when the pointer is not ``over`` any more: who
        went back while it was tuned shall not find it served.
        """
        path = self.quick_path(name)
        with self._lock():
            now = self.pointer()
            if over is not None and over != now:
                raise InputError(f"another model was chosen while {name} was tuned: the next save tries again")
            served = self.version_of(now.name)
            # Of CONFIGURED the registry knows no version: whoever loads it compares.
            if now.problem or (served and served != base_version.partition("+")[0]):
                raise InputError(f"{name} was tuned on version {base_version}, which is no longer what is served")
            if (base := quick_base(path)) != base_version:
                raise InputError(f"{name} was tuned on version {base or 'unknown'}, not on {base_version}")
            pointer = self._point(
                replace(now, quick=name, quicks=max(now.quicks, number_of(name))), "quick", now, report
            )
            # A running server has read what it serves.
            remove_others(self.folder, pointer)
            return pointer

    def name_of(self, checkpoint: Path) -> str:
        """The name of the model whose file this is: CONFIGURED for one that is no candidate's."""
        own = checkpoint.parent.resolve() == self.folder.resolve()
        return checkpoint.stem if own else CONFIGURED

    def version_of(self, name: str) -> str:
        """The version that a candidate has alone; empty for CONFIGURED, whose file the server's options name."""
        return "" if name == CONFIGURED else self.get(name).version

    def _lock(self) -> FileLock:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(str(self.folder / "lock"))

    def _point(self, pointer: Pointer, by: str, before: Pointer, report: dict[str, Any] | None = None) -> Pointer:
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        decisions = before.decisions + (by == "person")
        found = self._file.write(replace(pointer, by=by, at=at, decisions=decisions, problem=""))
        try:
            self._note(found, label_of(before), report)
        except (sqlite3.Error, OSError, RuntimeError, InputError) as error:  # it is repaired at the next start
            log.warning("the journal could not note what is served now: %s", error)
        return found

    # --- the journal, which mirrors the pointer -----------------------------------------------------------------------

    def repair_journal(self) -> None:
        """Note in the journal what is served, where its last promotion says something else: a kill came between.

        Raises what SQLite raises.
        """
        with self._lock():
            pointer = self.pointer()
            last = last_promotion(self._journal)
            if pointer.at and not pointer.problem and last != label_of(pointer):
                self._note(pointer, last)

    def _note(self, pointer: Pointer, before: str, report: dict[str, Any] | None = None) -> None:
        version = self.version_of(pointer.name)
        if pointer.quick:
            path = self.quick_path(pointer.quick)
            version = f"{quick_base(path)}+{sha256_of(path)[:12]}"
        elif report is None and pointer.name != CONFIGURED:
            report = self.get(pointer.name).facts.get("gate")
        note_promotion(self._journal, pointer, version, before, report)


def check(path: Path) -> str:
    """The version of a checkpoint that can be served: all weights fit their networks and are finite. InputError if not."""
    system = load_system(path)
    for part, network in (("coarse", system.coarse), ("refiner", system.refiner), ("ppn", system.ppn)):
        for name, value in network.state_dict().items() if network is not None else ():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise InputError(f"{path}: {part} {name} holds numbers that are not finite")
    return sha256_of(path)[:12]
