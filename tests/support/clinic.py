"""A studies folder whose labels are saved, removed, and cut off in the middle; all that somebody sees of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from app_server import APP, picture
from PIL import Image

from lib.store.datastore import StudiesFolder
from ultrarefiner_monai.config import ServeConfig, load_yaml
from ultrarefiner_monai.core.image_file import RAS_FROM_LPS
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.open_saves import Drawn
from ultrarefiner_monai.studies.work_folder import WorkFolder


def mask_of(value: int) -> np.ndarray:
    mask = np.zeros((1, 96, 130), np.uint8)
    mask[0, value : value + 9, 20:50] = 1
    return mask


def label_at(folder: Path, value: int, extension: str = ".nii.gz") -> Path:
    path = folder / f"l{value}{extension}"
    if extension == ".png":
        Image.fromarray(mask_of(value)[0] * 255).save(path)
    else:
        # On its image's grid, so that it is kept byte for byte.
        nibabel.save(nibabel.Nifti1Image(mask_of(value).T, RAS_FROM_LPS), path)
    return path


class Clinic:
    """A studies folder with two images, and all that somebody sees of a label."""

    def __init__(self, folder: Path, new: bool = True):
        self.folder, self.studies = folder, folder / "studies"
        if new:
            self.studies.mkdir(parents=True)
            for name in ("a", "b"):
                Image.fromarray(picture(1)).save(self.studies / f"{name}.png")
        self.start()

    def start(self) -> StudiesFolder:
        extensions = load_yaml(ServeConfig, APP / "config.yaml").extensions
        self.work = WorkFolder.of(self.studies)
        self.store = StudiesFolder(str(self.studies), self.work, extensions, read_image_file, auto_reload=False)
        return self.store

    def show(self, value: int, client: str) -> None:
        """Image a is handed out to a client, who is offered an outline, without waiting for the journal."""
        self.store.journal.note(lambda journal: journal.note_shown("a", client))
        self.store.journal.submit(
            lambda journal: journal.record_proposal(
                "a", "hash", mask_of(value), model="ultrarefiner", version="v", client=client
            )
        )

    def save(
        self, value: int, extension: str = ".nii.gz", tag: str = "final", user: str = "", client: str = ""
    ) -> None:
        drawn = Drawn("hash", mask_of(value)) if tag == "final" else None
        label = label_at(self.folder, value, extension)
        info = {"user": user or f"dr {value}"} | ({"client_id": client} if client else {})
        self.store.save_label("a", str(label), tag, info, drawn)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for root in (self.studies / "labels", self.work.versions):
            files = [p for p in root.rglob("*") if p.is_file() and not p.name.endswith(".part")]
            found |= {str(p.relative_to(self.studies)): p.read_bytes() for p in files}
        index = json.loads((self.studies / "datastore_v2.json").read_text())
        assert index["objects"] == json.loads(self.store._datastore.model_dump_json())["objects"]
        found |= {p.name: p.read_bytes() for p in self.studies.glob("*.png")}
        found["index"] = [_without_times(index["objects"])]
        journal = Journal(self.work.journal)
        found["journal"] = [
            (c.id, c.author, c.mask.tobytes(), c.proposal_id, c.first_proposal_id, c.shown)
            for c in journal.corrections()
        ]
        journal.close()
        found["left"] = [p.name for p in self.studies.rglob("*.part")]
        return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(part) for key, part in value.items() if key != "ts"}
    return value


def change(clinic: Clinic, what: str) -> None:
    match what:
        case "the same format" | "the first one":
            clinic.save(5)
        case "another format":
            clinic.save(5, ".png")
        case "the same bytes":
            clinic.save(3, user="another")
        case "a draft":
            clinic.save(5, tag="draft")
        case "removing":
            clinic.store.remove_label("a", "final")
        case "removing the image":
            clinic.store.remove_image("a")
        case "beside":
            label = label_at(clinic.folder, 5).rename(clinic.folder / "a.nii.gz")
            clinic.store.keep_version("a", "final", label, Drawn("hash", mask_of(5)), {"user": "late"})
        case "an upload":
            clinic.store.add_image("c", str(clinic.studies / "b.png"), {})


CHANGES = [
    "the same format",
    "the first one",
    "another format",
    "the same bytes",
    "a draft",
    "removing",
    "removing the image",
    "beside",
    "an upload",
]


def prepared(folder: Path, what: str) -> None:
    """A clinic in which ``what`` can happen, closed."""
    clinic = Clinic(folder)
    clinic.show(1, "")
    if what != "the first one":
        for value in (1, 2, 3):
            clinic.save(value)
            clinic.save(value, tag="draft")
    clinic.store.journal.close()
