"""The samples of quick learning on disk: kept features, label and what places them in the split, one file a frame.

training/quick/ITEM.safetensors, readable by the owner only: it derives from patients' pixels. Only what is new or changed
is read; coarse network and image encoder run where the server's cache does not hold their results.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.grouping import thumbnail
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.learning.label_split import SplitImage
from ultrarefiner_monai.learning.labelled import pair_state, patient_hash
from ultrarefiner_monai.learning.quick.samples import Sample, sample_of
from ultrarefiner_monai.pipeline.predictor import Features, Predictor
from ultrarefiner_monai.studies.corrections import Labelled, chosen_frames, training_parts

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Stored:
    """What is known of one frame without its features. state: of image and label file. saved: when the label was, in
    nanoseconds since 1970."""

    item: str
    image: str
    state: str
    patient: str
    lesion: bool
    saved: int


class SampleStore:
    """The folder of one studies folder. One process writes; ``forget`` may remove files at any moment."""

    def __init__(self, folder: Path, predictor: Predictor, limits: Limits | None = None):
        self.folder, self.predictor, self.limits = folder, predictor, limits or Limits()
        self.key = "-".join(predictor.part_keys)  # features of another coarse network or encoder are made anew

    def update(self, labelled: Sequence[Labelled], until: float | None = None) -> tuple[list[Stored], dict[str, str]]:
        """Bring the folder in line with the final labels. Returns what it holds, and for each image whose label cannot be
        used why not; such a label stops nobody else's. until: after this time (time.monotonic) only what is known is used.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: list[Stored] = []
        problems: dict[str, str] = {}
        known: dict[str, list[Stored]] = {}
        for stored in filter(None, (self._header(path) for path in sorted(self.folder.glob(f"*{SUFFIX}")))):
            known.setdefault(stored.image, []).append(stored)
        for pair in labelled:
            try:
                state = pair_state(pair)
                if not state:
                    problems[pair.image_id] = "its image or label is gone"
                    continue
                own = [s for s in known.get(pair.image_id, []) if s.state == state]
                if not own and until is not None and time.monotonic() > until:
                    continue
                found += own or self._read(pair, state)
            except InputError as error:
                problems[pair.image_id] = str(error)
                log.warning("%s is left out of quick learning: %s", pair.image_id, error)
        kept = {stored.item for stored in found}
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)
        return found, problems

    def split_images(self, stored: Iterable[Stored]) -> list[SplitImage]:
        """What the split needs to know of each image, from its first frame."""
        found: dict[str, SplitImage] = {}
        lesions = {s.image for s in stored if s.lesion}
        for s in stored:
            if s.image not in found:
                with safe_open(str(self._path(s.item)), framework="np") as file:
                    small = file.get_tensor("thumbnail")
                found[s.image] = SplitImage(s.image, s.patient, small, s.image in lesions)
        return list(found.values())

    def load(self, stored: Stored, group: str) -> Sample | None:
        """One sample; None when it was forgotten meanwhile, or its file is damaged."""
        try:
            with safe_open(str(self._path(stored.item)), framework="np") as file:
                about = json.loads(file.metadata()["about"])
                arrays = {name: file.get_tensor(name) for name in ("image_embedding", "coarse_prob", "label")}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        shape = (int(about["shape"][0]), int(about["shape"][1]))
        features = Features(arrays["image_embedding"], arrays["coarse_prob"], shape, bool(about["doubted"]))
        return Sample(stored.item, group, features, arrays["label"])

    def _path(self, item: str) -> Path:
        return self.folder / f"{item}{SUFFIX}"

    def _header(self, path: Path) -> Stored | None:
        """None for a file that is damaged or of other networks."""
        try:
            with safe_open(str(path), framework="np") as file:
                about = json.loads(file.metadata()["about"])
            if about["key"] != self.key:
                return None
            return Stored(
                path.stem,
                str(about["image"]),
                str(about["state"]),
                str(about["patient"]),
                bool(about["lesion"]),
                int(about["saved"]),
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def _read(self, pair: Labelled, state: str) -> list[Stored]:
        """The frames of one image and its label, written. InputError for what cannot be read, and for files that change."""
        saved = pair.label.stat().st_mtime_ns
        image_file = read_image_file(pair.image, self.limits)
        mask = read_mask(pair.label, image_file, self.limits, pair.confirmed)
        if pair_state(pair) != state:
            raise InputError("image or label changed while it was read; the next save tries again")
        patient, found = patient_hash(image_file), []
        for k in chosen_frames(mask):
            frame = image_file.frame(k)
            for item, region in training_parts(pair.image_id, image_file, k, mask[k]):
                pixels = np.ascontiguousarray(frame[region])
                sample = sample_of(self.predictor, item, "", pixels, mask[k][region])
                stored = Stored(item, pair.image_id, state, patient, sample.lesion, saved)
                self._write(stored, sample, thumbnail(np.rint(pixels * 255).astype(np.uint8)))
                found.append(stored)
        return found

    def _write(self, stored: Stored, sample: Sample, small: np.ndarray) -> None:
        features = sample.features
        about = {**vars(stored), "key": self.key, "shape": list(features.shape), "doubted": features.doubted}
        arrays = {
            "image_embedding": np.array(features.image_embedding),
            "coarse_prob": np.array(features.coarse_prob),
            "label": sample.label,
            "thumbnail": small,
        }
        with replacing(self._path(stored.item)) as file:
            save_file(arrays, file.name, {"about": json.dumps(about)})
