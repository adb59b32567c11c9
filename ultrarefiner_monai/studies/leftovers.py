"""Files that killed processes left half written. They can hold images and outlines of patients, so they are removed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

# A file that is written just now is not closed, or was a moment ago.
_YOUNG_SECONDS = 5.0
_YOUNG_FOLDER_SECONDS = 60.0  # what comes from a PACS comes file by file

# The name that ``files.replacing`` gives: the only one of ours among files that are the user's.
_PART = re.compile(r"\.[0-9a-f]{32}\.part")
# In the work folder all is ours: checkpoints (.tmpAb12Cd is safetensors' own name for one, before it gets ours), cached
# embeddings, links, forget notes, session and mirror folders half written.
_OURS = re.compile(
    r"\..*\.part|.*\.safetensors.{8}\.part|\.tmp-.*|\.tmp[A-Za-z0-9]{6}|\.new-.*|forgotten-\d+|meta\.\d+-\d+"
)
# Of folders only hidden ones are known by their names alone: in versions/ they are called as images are.
_OUR_FOLDERS = re.compile(r"\.part-.*")
_IN_ROOT, _IN_EXCHANGE = re.compile("tmp[a-z0-9_]{8}"), re.compile("segs-.*")


def clear(studies: Path | None, labels: Path, work: WorkFolder, starts: bool = True) -> int:
    """Remove files that were never finished: they can hold images and outlines of patients. Never a file of the user's,
    nor one that a process of this machine has open. The number of files and folders removed.

    starts: nothing is served yet, so folders for uploads, sessions and fetched images are nobody's.
    """
    found = [path for path in dict.fromkeys(_left(studies, labels, work, starts)) if not _is_young(path)]
    used = _open_files() if found else set()
    count = 0
    for path in found:
        if any(p == str(path) or p.startswith(f"{path}{os.sep}") for p in used):
            continue
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            count += 1
        except OSError as error:
            logger.warning("%s, left by a process that was killed, cannot be removed: %s", path.name, error.strerror)
    if count:
        logger.info("removed %d files that killed processes had left half written", count)
    return count


def _left(studies: Path | None, labels: Path, work: WorkFolder, starts: bool) -> Iterator[Path]:
    if studies is not None:
        yield from (Path(e.path) for e in os.scandir(studies) if _PART.fullmatch(e.name) and e.is_file())
    for folder, _, files in os.walk(labels):
        yield from (Path(folder, name) for name in files if _PART.fullmatch(name))
    for folder, folders, files in os.walk(work.root):
        inside = Path(folder)
        if starts:
            gone = [name for name in folders if _OUR_FOLDERS.fullmatch(name)]
            known = {work.root: _IN_ROOT, work.exchange: _IN_EXCHANGE}.get(inside)
            gone += [name for name in folders if known is not None and known.fullmatch(name)]
            if inside == work.sessions:
                gone += [name for name in folders if not (inside / name / "meta.info").exists()]
            folders[:] = [name for name in folders if name not in gone]
            yield from (inside / name for name in gone)
        links = [name for name in folders if name.startswith(".new-")]
        yield from (inside / name for name in [*files, *links] if _OURS.fullmatch(name))


def _is_young(path: Path) -> bool:
    """Whether somebody may still write it."""
    try:
        if path.is_dir() and not path.is_symlink():
            newest = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
            return time.time() - newest < _YOUNG_FOLDER_SECONDS
        return time.time() - path.lstat().st_mtime < _YOUNG_SECONDS
    except OSError:
        return True


def _open_files() -> set[str]:
    """What processes of this machine have open, as far as it can be seen."""
    found: set[str] = set()
    for process in psutil.process_iter():
        try:
            found |= {file.path for file in process.open_files()}
        except (psutil.Error, OSError):
            continue
    return found
