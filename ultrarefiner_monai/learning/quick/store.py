"""The samples of quick learning on disk: kept features, label and what places them in the split, one file a frame.

training/quick/ITEM.safetensors, readable by the owner only: it derives from patients' pixels. Only what is new or changed
is read. Label and features (half a megabyte and more) are made for those that are learnt from, and dropped when newer ones
are; coarse network and image encoder run where the server's cache does not hold their results.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ultrarefiner_monai.config import to_dict
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.grouping import thumbnail_of
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.learning.label_split import SplitImage
from ultrarefiner_monai.learning.labelled import pair_state, patient_hash
from ultrarefiner_monai.learning.quick.samples import Sample, sample_of
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.pipeline.proposal import Features
from ultrarefiner_monai.studies.corrections import Labelled, chosen_frames, training_parts

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Stored:
    """What is known of one frame without its features. state: of image and label file. saved: when the label was, in
    nanoseconds since 1970. has_features: whether its file holds some, those of other networks among them."""

    item: str
    image: str
    state: str
    patient: str
    lesion: bool
    saved: int
    has_features: bool = False


class SampleStore:
    """The folder of one studies folder. One process writes; ``forget`` may remove files at any moment."""

    def __init__(self, folder: Path, predictor: Predictor, limits: Limits | None = None):
        self.folder, self.predictor, self.limits = folder, predictor, limits or Limits()
        # Features of another coarse network or encoder are made anew, and so are those that are settled otherwise.
        post = json.dumps(to_dict(predictor.system.config.post), sort_keys=True)
        parts = (*predictor.part_keys, hashlib.sha256(post.encode()).hexdigest()[:8], *_of_views(predictor))
        self.key = "-".join(parts)
        self._pairs: dict[str, Labelled] = {}
        self.waiting = 0  # images whose label was not read yet, for want of time

    def update(self, labelled: Sequence[Labelled], until: float | None = None) -> tuple[list[Stored], dict[str, str]]:
        """Bring the folder in line with the final labels. Returns what it holds, and for each image whose label cannot be
        used why not; such a label stops nobody else's. The newest labels are read first. until: after this time
        (time.monotonic) only what is known is used, ``waiting`` says how much is not, and the next call goes on.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: list[Stored] = []
        problems: dict[str, str] = {}
        known: dict[str, list[Stored]] = {}
        self.waiting, self._pairs = 0, {pair.image_id: pair for pair in labelled}
        for stored in filter(None, (self._header(path) for path in sorted(self.folder.glob(f"*{SUFFIX}")))):
            known.setdefault(stored.image, []).append(stored)
        for pair in sorted(labelled, key=_saved, reverse=True):
            try:
                state = pair_state(pair)
                if not state:
                    problems[pair.image_id] = "its image or label is gone"
                    continue
                own = [s for s in known.get(pair.image_id, []) if s.state == state]
                if not own and until is not None and time.monotonic() > until:
                    self.waiting += 1
                    continue
                found += own or self._read(pair, state)
            except FileNotFoundError:
                problems[pair.image_id] = "its image or label is gone"
            except InputError as error:
                problems[pair.image_id] = str(error)
                log.warning("%s is left out of quick learning: %s", pair.image_id, error)
        kept = {stored.item for stored in found}
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)
        return found, problems

    def split_images(self, stored: Iterable[Stored]) -> list[SplitImage]:
        """What the split needs to know of each image, from all its frames; without those that were forgotten meanwhile."""
        frames: dict[str, list[Stored]] = {}
        for s in stored:
            frames.setdefault(s.image, []).append(s)
        found = []
        for image, own in frames.items():
            small = [kept for s in own if (kept := self._thumbnail(s)) is not None]
            if len(small) == len(own):
                found.append(SplitImage(image, own[0].patient, np.stack(small), any(s.lesion for s in own)))
        return found

    def _thumbnail(self, stored: Stored) -> np.ndarray | None:
        """None when it was forgotten meanwhile."""
        try:
            with safe_open(str(self._path(stored.item)), framework="np") as file:
                return np.asarray(file.get_tensor("thumbnail"))
        except (OSError, SafetensorError):
            return None

    def load(self, stored: Stored, group: str, likeness: str = "", until: float | None = None) -> Sample | None:
        """One sample; its features are computed where they are not there. None when it was forgotten or changed meanwhile, for
        a file that is damaged, and where something is to be computed after ``until`` (time.monotonic)."""
        found = self._loaded(stored, group, likeness)
        if found is not None or not self._path(stored.item).exists():
            return found
        if until is not None and time.monotonic() > until:
            return None
        try:
            return self._loaded(stored, group, likeness) if self._fill(stored) else None
        except (InputError, FileNotFoundError) as error:
            log.warning("%s is left out of quick learning: %s", stored.image, error)
            return None

    def _loaded(self, stored: Stored, group: str, likeness: str) -> Sample | None:
        """None where there are no features of these networks."""
        try:
            with safe_open(str(self._path(stored.item)), framework="np") as file:
                about = json.loads(file.metadata()["about"])
                if about["key"] != self.key:
                    return None
                arrays = {name: file.get_tensor(name) for name in ("image_embedding", "coarse_prob", "label")}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        shape = (int(about["shape"][0]), int(about["shape"][1]))
        features = Features(arrays["image_embedding"], arrays["coarse_prob"], shape, bool(about["doubted"]))
        return Sample(stored.item, group, features, arrays["label"], likeness)

    def drop_features(self, stored: Iterable[Stored], keep: Collection[str], most: int = 50) -> None:
        """Of items that are not among ``keep`` only what places them stays; ``most`` of them at once."""
        for s in [s for s in stored if s.has_features and s.item not in keep][:most]:
            if (small := self._thumbnail(s)) is not None:
                self._write(s, small)

    def _path(self, item: str) -> Path:
        return self.folder / f"{item}{SUFFIX}"

    def _header(self, path: Path) -> Stored | None:
        """None for a file that is damaged."""
        try:
            with safe_open(str(path), framework="np") as file:
                about = json.loads(file.metadata()["about"])
            return Stored(
                path.stem,
                str(about["image"]),
                str(about["state"]),
                str(about["patient"]),
                bool(about["lesion"]),
                int(about["saved"]),
                bool(about["key"]),
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def _read(self, pair: Labelled, state: str) -> list[Stored]:
        """The frames of one image, written without features. InputError for what cannot be read, and for files that change."""
        saved, found = pair.label.stat().st_mtime_ns, []
        for item, patient, _, pixels, label in self._frames(pair, state):
            stored = Stored(item, pair.image_id, state, patient, bool(label.any()), saved)
            self._write(stored, thumbnail_of(pixels))
            found.append(stored)
        return found

    def _fill(self, stored: Stored) -> bool:
        """Write one item's features; False where its image has another state by now. Raises as ``_read``."""
        pair = self._pairs.get(stored.image)
        if pair is None or pair_state(pair) != stored.state:
            return False
        for item, _, view, pixels, label in self._frames(pair, stored.state):
            if item == stored.item:
                sample = sample_of(self.predictor.seen_as(view), item, "", pixels, label)
                self._write(stored, thumbnail_of(pixels), sample)
        return True

    def _frames(self, pair: Labelled, state: str) -> Iterator[tuple[str, str, str, np.ndarray, np.ndarray]]:
        """(item, patient, view, pixels (H, W) in [0, 1], label (H, W)) of each frame and region that is learnt from."""
        image_file = read_image_file(pair.image, self.limits)
        mask = read_mask(pair.label, image_file, self.limits, pair.confirmed)
        if pair_state(pair) != state:
            raise InputError("image or label changed while it was read; the next save tries again")
        for k in chosen_frames(mask):
            frame = image_file.frame(k)
            for item, region in training_parts(pair.image_id, image_file, k, mask[k]):
                yield (
                    item,
                    patient_hash(image_file),
                    pair.view or image_file.view,
                    np.ascontiguousarray(frame[region]),
                    mask[k][region],
                )

    def _write(self, stored: Stored, small: np.ndarray, sample: Sample | None = None) -> None:
        about: dict[str, Any] = {k: v for k, v in vars(stored).items() if k != "has_features"}
        arrays, about["key"] = {"thumbnail": small}, ""
        if sample is not None:
            features = sample.features
            about |= {"key": self.key, "shape": list(features.shape), "doubted": features.doubted}
            arrays["image_embedding"] = np.array(features.image_embedding)
            arrays["coarse_prob"], arrays["label"] = np.array(features.coarse_prob), sample.label
        with replacing(self._path(stored.item)) as file:
            save_file(arrays, file.name, {"about": json.dumps(about)})


def _saved(pair: Labelled) -> float:
    """When its label was written; the oldest where that is gone."""
    try:
        return pair.label.stat().st_mtime
    except OSError:
        return 0.0


def _of_views(predictor: Predictor) -> list[str]:
    """A digest of the views' vectors, which kept features hold; nothing without views."""
    refiner = predictor.system.refiner
    table = None if refiner is None else refiner.views.table  # type: ignore[union-attr]
    return [] if table is None else [hashlib.sha256(table.detach().cpu().numpy().tobytes()).hexdigest()[:8]]  # type: ignore[operator]
