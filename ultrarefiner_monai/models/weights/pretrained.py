"""Pretrained weights by name: list, fetch, add, resolve. Nothing is fetched unless the user asks for it.

Weights lie in ``$ULTRAREFINER_WEIGHTS`` or ``~/.cache/ultrarefiner/weights``, under the names their authors gave them.
Beside each lies ``FILE.json`` with its sha256: the *pin*. Where public sources agree on a sha256, the registry holds it
and a file that differs is refused. Where there is none (UltraSam), the first file that comes is trusted, checked to be
weights and pinned; later ones have to match the pin.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.core.files import copy_in, replacing, sha256_of
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.weights.download import FetchError, Progress, discard, download, only_one
from ultrarefiner_monai.models.weights.known import KNOWN, WeightFile

log = logging.getLogger(__name__)

SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")


@dataclass(frozen=True)
class WeightStatus:
    """A row of ``weights list``. path: where the file lies, None when it is not here. sha256: published or pinned."""

    name: str
    path: Path | None
    size: int | None
    sha256: str | None
    licence: str
    about: str
    published: bool
    url: str = ""


def weights_folder(folder: str | Path | None = None) -> Path:
    """``folder``, else $ULTRAREFINER_WEIGHTS, else ~/.cache/ultrarefiner/weights. Not created here."""
    chosen = folder or os.environ.get("ULTRAREFINER_WEIGHTS") or Path.home() / ".cache" / "ultrarefiner" / "weights"
    return Path(chosen).expanduser()


def list_weights(folder: str | Path | None = None, known: Mapping[str, WeightFile] = KNOWN) -> list[WeightStatus]:
    """The known weights, here or not, then those that the user added under names of their own."""
    place = weights_folder(folder)
    rows = []
    for entry in known.values():
        path = place / entry.file
        present = path.is_file()
        size = path.stat().st_size if present else entry.size
        sha256 = entry.sha256 or _read_pin(path).get("sha256")
        published = entry.sha256 is not None
        rows.append(
            WeightStatus(
                entry.name,
                path if present else None,
                size,
                sha256,
                entry.licence,
                entry.about,
                published,
                entry.url,
            )
        )
    files = {entry.file for entry in known.values()}
    for pin_path in sorted(place.glob("*.json")) if place.is_dir() else []:
        path = pin_path.with_suffix("")
        if path.name not in files and path.is_file():
            pin = _read_pin(path)
            name, about = pin.get("name", path.stem), f"added from {pin.get('source', 'a file')}"
            rows.append(WeightStatus(name, path, path.stat().st_size, pin.get("sha256"), "as its source", about, False))
    return rows


def shipped_or_resolved(folder: Path, name: str) -> Path:
    """The file of shipped weights in ``folder`` (an app's ``model``) where there are some of that name, else as ``resolve``."""
    shipped = folder / f"{name}.safetensors"
    return shipped if shipped.is_file() else resolve(name)


def resolve(
    name_or_path: str | Path, folder: str | Path | None = None, known: Mapping[str, WeightFile] = KNOWN
) -> Path:
    """The file for a known name, a name given with ``add``, or a path. Never fetches.

    A known file that was put into the folder by hand is checked and pinned when it is first used.
    Raises InputError when there is no such file, or when it is not the one that its name promises.
    """
    place, name = weights_folder(folder), str(name_or_path)
    if name in known:
        entry = known[name]
        path = place / entry.file
        if not path.is_file():
            raise InputError(
                f"the weights {name} are not on this machine (looked for {path}). Fetch them with "
                f"'ultrarefiner weights fetch {name}' or bring the file: 'ultrarefiner weights add {entry.file}'"
            )
        pin = _read_pin(path)
        if pin.get("size") != path.stat().st_size:  # new here, or changed since
            _accept(path, entry, path, source="found in the folder")
        return path
    for row in list_weights(place, known):
        if row.name == name and row.path is not None:
            return row.path
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    raise InputError(f"no weights called {name!r} and no such file; known names: {', '.join(sorted(known))}")


def add(
    file: str | Path,
    name: str | None = None,
    folder: str | Path | None = None,
    known: Mapping[str, WeightFile] = KNOWN,
) -> Path:
    """Take a file that the user brought into the folder, under a known name or one of the user's own.

    Without ``name`` the file is recognised by its sha256, else by its file name; otherwise its stem is the name. It is
    opened (never unpickled) before it is taken: InputError for anything that is not SAM weights or a ViT npz.
    """
    source = Path(file).expanduser()
    if not source.is_file():
        raise InputError(f"no such file: {source}")
    digest = sha256_of(source)
    entry = known.get(name) if name else _recognise(source, digest, known)
    if entry is None:
        own = name or source.stem
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", own):
            raise InputError(f"name {own!r}: letters, digits and _ . + - only, 64 at most; give another with --name")
        if source.suffix.lower() not in SUFFIXES:
            raise InputError(f"{source.name}: expected a file ending in {', '.join(SUFFIXES)}")
        target_name = own + source.suffix.lower()
    else:
        own, target_name = entry.name, entry.file
        _check(source, entry, digest, weights_folder(folder) / target_name)
    _check_opens(source, entry.kind if entry else None, source.suffix)
    place = weights_folder(folder)
    place.mkdir(parents=True, exist_ok=True)
    target = place / target_name
    if not (target.exists() and target.samefile(source)):
        copy_in(source, target)
    _write_pin(target, own, digest, target.stat().st_size, f"file {source.name}")
    return target


def fetch(
    name: str,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    known: Mapping[str, WeightFile] = KNOWN,
) -> Path:
    """Download known weights: resumes what an earlier try left, checks them, and only then gives them their name.

    Raises InputError for an unknown name or a file that fails its check (it is not kept), FetchError for the network.
    """
    if name not in known:
        raise InputError(f"unknown weights {name!r}; known: {', '.join(sorted(known))}")
    entry, place = known[name], weights_folder(folder)
    target = place / entry.file
    if target.is_file():
        return resolve(name, place, known)
    place.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with only_one(part):
        _check_room(entry, part, place)
        _bring(entry, part, progress)
        try:
            _accept(part, entry, target, source=entry.url)
        except InputError:
            discard(part)
            raise
        os.replace(part, target)
        discard(part)
    return target


# --- checks -----------------------------------------------------------------------------------------------------------


def _recognise(path: Path, digest: str, known: Mapping[str, WeightFile]) -> WeightFile | None:
    by_sum = [w for w in known.values() if w.sha256 == digest]
    by_name = [w for w in known.values() if w.file == path.name]
    return next(iter(by_sum or by_name), None)


def _check(path: Path, entry: WeightFile, digest: str, target: Path) -> None:
    """Refuse ``path`` unless it is the file that ``entry`` (or the pin of ``target``) describes."""
    size = path.stat().st_size
    expected, origin = entry.sha256, "published"
    if expected is None:
        expected, origin = _read_pin(target).get("sha256"), "pinned on first use"
    if entry.size is not None and size != entry.size:
        raise InputError(f"{entry.name}: expected {entry.size} bytes, got {size}: incomplete or another file; refused")
    if expected is not None and digest != expected:
        hint = "" if entry.sha256 else f"; if the authors changed it and you trust it, remove {_pin_path(target)}"
        raise InputError(f"{entry.name}: sha256 is {digest}, {origin} is {expected}: another file; refused{hint}")


def _accept(path: Path, entry: WeightFile, target: Path, source: str) -> None:
    """Check ``path``, which is or becomes ``target``, and write its pin; InputError when it is refused."""
    digest = sha256_of(path)
    _check(path, entry, digest, target)
    if entry.sha256 is None:
        _check_opens(path, entry.kind, target.suffix)
        log.warning("%s has no published sha256: trusted on first use and pinned as %s", entry.name, digest)
    _write_pin(target, entry.name, digest, path.stat().st_size, source)


def _check_opens(path: Path, kind: str | None, suffix: str) -> None:
    """Open the weights without unpickling anything; InputError for junk. kind: None where only ``suffix`` tells."""
    if kind == "npz" or (kind is None and suffix.lower() == ".npz"):
        import numpy as np

        try:
            with np.load(path, allow_pickle=False) as arrays:
                keys = {key for key in arrays.files if arrays[key] is not None}  # reads each: objects are refused
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path.name}: expected an npz archive of arrays, cannot be opened: {error}") from error
        if "embedding/kernel" not in keys:
            raise InputError(f"{path.name}: expected a ViT (embedding/kernel ...), got {len(keys)} others")
        return
    from ultrarefiner_monai.models.sam.network import load_sam_state

    try:
        state = load_sam_state(path)
    except InputError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for junk; all mean the same here
        raise InputError(f"{path.name}: expected SAM weights, cannot be opened as such: {error}") from error
    if not any(key.startswith("image_encoder.") for key in state):
        raise InputError(f"{path.name}: expected SAM weights (image_encoder....), got {len(state)} other tensors")


def _check_room(entry: WeightFile, part: Path, place: Path) -> None:
    if entry.size is None:
        return
    needed = entry.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(f"{entry.name} needs {needed / 1e6:.0f} MB more, {place} has {free / 1e6:.0f} MB free")


def _bring(entry: WeightFile, part: Path, progress: Progress | None) -> None:
    try:
        download(entry.url, part, entry.size, progress)
    except FetchError as error:
        raise FetchError(f"{error}, or bring the file: 'ultrarefiner weights add {entry.file}'") from error


# --- pins -------------------------------------------------------------------------------------------------------------


def _pin_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_pin(path: Path) -> dict:
    try:
        values = json.loads(_pin_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write_pin(path: Path, name: str, sha256: str, size: int, source: str) -> None:
    values = {"name": name, "sha256": sha256, "size": size, "source": source}
    with replacing(_pin_path(path), "w") as file:
        file.write(json.dumps(values, indent=1) + "\n")
