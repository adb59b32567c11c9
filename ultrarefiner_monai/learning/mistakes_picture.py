"""A picture of what the model gets wrong: which kinds of error, and where they are, by size, echogenicity and device."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import open_dicom
from ultrarefiner_monai.dicom.header import element
from ultrarefiner_monai.dicom.series import dicom_files
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.learning.mistakes import Mistake, newest, shares_of
from ultrarefiner_monai.masks.echo import echo_level
from ultrarefiner_monai.studies.corrections import Correction, item_region

log = logging.getLogger(__name__)

# Upper ends of classes. Diameter of the lesion as a share of the frame's shorter side: thirds of BUS-BRA, about.
SIZES = ((0.2, "small"), (0.4, "medium"), (np.inf, "large"))
# Brightness of the lesion beside that of the tissue around it.
ECHOES = ((0.5, "very dark"), (0.8, "dark"), (1.2, "as its surroundings"), (np.inf, "bright"))
UNKNOWN, FREE = "not known", "no lesion"
MOST_DEVICES = 8
# As the picture and the table name them, in the order in which they are stacked: what is right comes first.
NAMES = {
    "identity": "right",
    "over": "too large",
    "giant": "far too large",
    "bridge": "runs out",
    "islands": "false alarm",
    "under": "too small",
    "chunk": "a part missing",
    "holes": "holes",
    "fragments": "in pieces",
    "empty": "missed",
    "shift": "shifted",
    "noise": "specks",
}
COLOURS = {
    "identity": "#35a36b",
    "over": "#fdd0a2",
    "giant": "#e6550d",
    "bridge": "#fdae6b",
    "islands": "#a63603",
    "under": "#c6dbef",
    "chunk": "#6baed6",
    "holes": "#9e9ac8",
    "fragments": "#54278f",
    "empty": "#08519c",
    "shift": "#969696",
    "noise": "#d9d9d9",
}


@dataclass(frozen=True)
class Group:
    """Outlines of one class. images: how many, the frames of a cine as one. dice: their mean, of lesions only; None without
    one. shares: kind -> share of the outlines, in sum 1."""

    name: str
    images: float
    dice: float | None
    shares: dict[str, float]


@dataclass(frozen=True)
class Picture:
    """What is drawn: all outlines, and for "size", "echogenicity" and "device" a group for each class that occurs."""

    everything: Group
    by: dict[str, list[Group]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """What an image looks like. echo: the lesion's brightness beside its surroundings', None where not known."""

    echo: float | None = None
    device: str = UNKNOWN


def picture_of(mistakes: Sequence[Mistake], looks: Mapping[str, Look] | None = None) -> Picture:
    """looks: by the id of the mistake. Without them there is no echogenicity and no device."""
    found = looks or {}

    def echo(mistake: Mistake) -> str:
        level = found.get(mistake.id, Look()).echo
        return FREE if not mistake.lesion else UNKNOWN if level is None else _class(level, ECHOES)

    by = {"size": _groups(mistakes, lambda m: _class(m.diameter, SIZES) if m.lesion else FREE, SIZES)}
    if looks is not None:
        by["echogenicity"] = _groups(mistakes, echo, ECHOES)
        by["device"] = _groups(mistakes, lambda m: found.get(m.id, Look()).device)[:MOST_DEVICES]
    return Picture(_group("all", mistakes), by)


def looks_of(corrections: Iterable[Correction], devices: Mapping[str, str] | None = None) -> dict[str, Look]:
    """What the images of ``mistakes_of(corrections)`` look like; each file is read.

    devices: image id -> device, for images whose file does not say it. Images that cannot be read any more are left out.
    """
    found: dict[str, Look] = {}
    for correction in newest(corrections):
        assert correction.saved is not None
        try:
            image_file = read_image_file(correction.image)
            pixels = image_file.frame(correction.frame or 0)[
                item_region(correction.id, image_file, correction.frame or 0)
            ]
            device = device_of(correction.image)
        except (InputError, OSError) as error:
            log.warning("%s is left out: %s", correction.id, error)
            continue
        echo = echo_level(pixels, correction.saved.astype(bool))
        named = (devices or {}).get(correction.id.rpartition("@")[0], "")
        found[correction.id] = Look(echo, device or named or UNKNOWN)
    return found


def device_of(path: Path) -> str:
    """Manufacturer and model of the machine, as a DICOM file says them; empty for other files."""
    files = dicom_files(path) if path.is_dir() else [path] if path.suffix.lower() in (".dcm", ".dicom") else []
    if not files:
        return ""
    names = ("Manufacturer", "ManufacturerModelName")
    header = open_dicom(files[0], header_only=True, tags=list(names))
    return " ".join(str(element(header, name, "")) for name in names).strip()[:60]


def read_devices(path: Path) -> dict[str, str]:
    """Image id -> device from a CSV file with the columns ``id`` and ``device``, as ``index.csv`` of a prepared folder."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"id", "device"} <= set(rows.fieldnames or ()):
                raise InputError(f"{path.name} must have the columns id and device, has {rows.fieldnames}")
            return {row["id"]: row["device"] or "" for row in rows}
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path.name} cannot be read as CSV: {error}") from error


def write_picture(picture: Picture, path: Path) -> Path:
    """Draw it as PNG, PDF or SVG, by the name. Raises InputError where matplotlib is not installed, or the name says nothing
    that it can write."""
    figure_class, canvas_class = drawing()
    rows = {"all": [picture.everything], **{f"by {name}": groups for name, groups in picture.by.items()}}
    heights = [len(groups) + 0.8 for groups in rows.values()]
    figure = figure_class(figsize=(9.5, 0.42 * sum(heights) + 1.4), layout="constrained")
    canvas = canvas_class(figure)
    if path.suffix.lower().lstrip(".") not in canvas.get_supported_filetypes():
        raise InputError(f"expected a name ending in .png, .pdf or .svg, got {path.name}")
    parts = figure.subplots(len(rows), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    kinds = [kind for kind in NAMES if any(kind in g.shares for groups in rows.values() for g in groups)]
    for axes, (title, groups) in zip(parts[:, 0], rows.items(), strict=True):
        _bars(axes, title, groups, kinds)
    parts[-1, 0].set_xlabel("share of the outlines that were offered (%)")
    handles, labels = parts[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    _save(figure, path)
    return path


def drawing() -> tuple[Any, Any]:
    """matplotlib's Figure and canvas; InputError where it is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "the picture needs matplotlib, which is not installed: pip install 'ultrarefiner_monai[train]'"
        ) from error
    return Figure, FigureCanvasAgg


def _save(figure: Any, path: Path) -> None:
    from ultrarefiner_monai.core.files import replacing

    with replacing(path) as file:
        figure.savefig(file, format=path.suffix.lower().lstrip("."), dpi=130)


def _bars(axes: Any, title: str, groups: Sequence[Group], kinds: Sequence[str]) -> None:
    left = np.zeros(len(groups))
    for kind in kinds:
        width = 100 * np.array([group.shares.get(kind, 0.0) for group in groups])
        axes.barh(range(len(groups)), width, left=left, color=COLOURS[kind], label=NAMES[kind], height=0.75)
        left += width
    axes.set_yticks(range(len(groups)), [_label(group) for group in groups], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)


def _label(group: Group) -> str:
    dice = "" if group.dice is None else f", Dice {group.dice:.2f}"
    return f"{group.name} (n = {group.images:.0f}{dice})"


def _group(name: str, mistakes: Sequence[Mistake]) -> Group:
    lesions = [m for m in mistakes if m.lesion]
    weight = sum(m.weight for m in lesions)
    dice = sum(m.weight * m.dice for m in lesions) / weight if weight else None
    # Nothing on a lesion-free image is right, too.
    shown = [m if m.kinds else Mistake(m.id, {"identity": 1.0}, m.dice, m.lesion, weight=m.weight) for m in mistakes]
    return Group(name, sum(m.weight for m in mistakes), dice, shares_of(shown))


def _groups(
    mistakes: Sequence[Mistake], name: Callable[[Mistake], str], order: Sequence[tuple[float, str]] = ()
) -> list[Group]:
    """In the order of the classes, then by the number of images."""
    found: dict[str, list[Mistake]] = {}
    for mistake in mistakes:
        found.setdefault(name(mistake), []).append(mistake)
    places = {word: k for k, (_, word) in enumerate(order)}
    groups = [_group(word, members) for word, members in found.items()]
    return sorted(groups, key=lambda g: (places.get(g.name, len(places)), -g.images, g.name))


def _class(value: float, classes: Sequence[tuple[float, str]]) -> str:
    return next(word for end, word in classes if value < end)
