"""What 3D Slicer's MONAI Label module does with the server, without 3D Slicer: its requests, arithmetic and files.

The client is MONAI Label's own, the same code as the module's. Volumes are opened by ITK (SimpleITK), as Slicer does.
Read from MONAILabel.py 0.8.5 and from Slicer's sources; Slicer itself is not run here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import SimpleITK as sitk
from monailabel.client import MONAILabelClient

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Slicer:
    """One running 3D Slicer. folder: its temporary folder and download cache."""

    def __init__(self, url: str, folder: Path, client_id: str = "user-xyz"):
        self.client, self.folder = MONAILabelClient(url, str(folder), client_id), folder
        folder.mkdir(exist_ok=True)
        self.info: dict[str, Any] = {}

    def connect(self) -> None:
        """The button beside the server's address."""
        assert not self.client.auth_enabled()
        self.info = self.client.info()
        assert not self.info.get("config"), "the module asks to upgrade the server"

    def options(self, section: str, name: str) -> dict[str, Any]:
        """The options of a task as they come back from the table in *Options*: everything went through text."""
        if not self.info:
            self.connect()
        found = {}
        for key, default in self.info[section][name]["config"].items():
            text = str(default) if default else ""
            if isinstance(default, list):
                found[key] = default[0]
            elif isinstance(default, bool):
                found[key] = default
            elif isinstance(default, int):
                found[key] = int(text) if text else 0
            else:
                found[key] = float(text) if text else 0.0
        return found

    def next_sample(self, strategy: str = "first", local: bool = True) -> tuple[dict[str, Any], Volume]:
        """*Next Sample*: the file at ``path`` where this machine has it, else what the server sends, kept in a cache."""
        sample = self.client.next_sample(strategy, {})
        path = Path(sample["path"])
        if not local:
            import requests

            answer = requests.get(f"{self.client.get_server_url()}/datastore/image", {"image": sample["id"]})
            answer.raise_for_status()
            path = self.folder / sample["name"]
            path.write_bytes(answer.content)
        return sample, Volume(path)

    def infer(self, model: str, image: str, session: str = "", **prompts: Any) -> tuple[Volume, dict[str, Any]]:
        """*Run*, or a point that was set: every option of the task goes along."""
        params = {**prompts, **self.options("models", model), "result_extension": ".nrrd", "result_dtype": "uint8"}
        path, reply = self.client.infer(model, image, params, session_id=session or None)
        return Volume(Path(path)), reply

    def click(self, image: str, foreground: list, background: list, roi: list | None = None, session: str = ""):
        prompts = {"label": "lesion", "foreground": foreground, "background": background}
        return self.infer("sam_refiner", image, session, **(prompts | ({"roi": roi} if roi else {})))

    def submit(self, image: str, label: Path) -> dict[str, Any]:
        """*Submit Label*."""
        return self.client.save_label(image, str(label), params={"label_info": [{"name": "lesion", "idx": 1}]})

    def progress(self) -> tuple[float, float]:
        """(percent, accuracy) of the two bars; asked for every 5 seconds."""
        stats = self.client.info()["train_stats"]
        found = next(iter(stats.values()))
        current = 0 if found.get("total_time") else found.get("epoch", 1)
        return max(1, 100 * current / found.get("total_epochs", 1)), 100 * found.get("best_metric", 0)


class Volume:
    """A file as ITK opens it, always with three axes."""

    def __init__(self, path: Path):
        self.path = path
        image = sitk.ReadImage(str(path))
        self.image = sitk.JoinSeries([image]) if image.GetDimension() == 2 else image

    @property
    def values(self) -> np.ndarray:
        """(K, J, I), or (K, J, I, 3)."""
        return sitk.GetArrayFromImage(self.image)

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) RAS from [i, j, k]."""
        matrix = np.eye(4)
        directions = np.array(self.image.GetDirection()).reshape(3, 3)
        matrix[:3, :3], matrix[:3, 3] = directions * self.image.GetSpacing(), self.image.GetOrigin()
        return LPS @ matrix

    def ras(self, ijk: tuple[float, ...]) -> np.ndarray:
        return (self.affine @ [*ijk, 1])[:3]

    def ijk(self, ras: np.ndarray) -> list[int]:
        """As the module turns a point into a voxel."""
        return [round(v) for v in (np.linalg.inv(self.affine) @ [*ras, 1])[:3]]

    def roi(self, one: tuple[float, ...], other: tuple[float, ...]) -> list[int]:
        """A ROI from corner to corner, as the module sends it: upright in RAS, so that flipped axes swap its ends."""
        corners = np.array([self.ras(one), self.ras(other)])
        ends = zip(self.ijk(corners.min(axis=0)), self.ijk(corners.max(axis=0)))
        return [value for pair in ends for value in pair]

    def at(self, ras: np.ndarray) -> int:
        """The value where a point of the world lies."""
        return int(self.image[self.image.TransformPhysicalPointToIndex((-ras[0], -ras[1], ras[2]))])

    def labelmap(self, mask: np.ndarray) -> sitk.Image:
        """A label map on this grid, as Slicer exports a segment: 16 bits. mask: (K, J, I)."""
        label = sitk.GetImageFromArray(mask.astype(np.int16))
        label.CopyInformation(self.image)
        return label


def opened_with(path: Path) -> list[str]:
    """Names of the pictures that ITK's archetype reader takes for slices of one volume with ``path``."""
    for digits in reversed(list(re.finditer("[0-9]+", path.name))):
        pattern = re.escape(path.name[: digits.start()]) + "[0-9]+" + re.escape(path.name[digits.end() :])
        names = [p.name for p in path.parent.iterdir() if re.fullmatch(pattern, p.name)]
        if len(names) > 1:
            return names
    return [path.name]


FORMS = ["label.nii.gz", "label.nrrd", "label.seg.nrrd", "flipped.nii.gz", "ras.nrrd", "cropped.seg.nrrd"]
FORMS += ["layers.seg.nrrd", "plane.nii.gz", "plane.nrrd"]


def write_label(path: Path, volume: Volume, mask: np.ndarray) -> Path:
    """``mask`` (K, J, I) as Slicer writes it under the name ``path``, one of FORMS.

    label: the label map (.seg.nrrd: what is saved under that extension without overlapping segments). flipped: axes
    reversed. cropped, layers: a segmentation node. plane: two axes only.
    """
    form, label = path.name, volume.labelmap(mask)
    grid = np.ascontiguousarray(mask.transpose(2, 1, 0))
    local = LPS @ volume.affine
    if form in ("label.nii.gz", "label.nrrd"):
        sitk.WriteImage(label, str(path), form.endswith("nrrd"))
    elif form == "label.seg.nrrd":
        sitk.WriteImage(label, str(path.with_name("beside.nrrd")), True)
        path.with_name("beside.nrrd").rename(path)
    elif form == "flipped.nii.gz":
        whole = nibabel.Nifti1Image(grid.astype(np.int16), volume.affine)
        nibabel.save(whole.as_reoriented(np.array([[0, -1], [1, -1], [2, -1]])), path)
    elif form == "ras.nrrd":
        space = {"space": "right-anterior-superior", "space directions": volume.affine[:3, :3].T}
        nrrd.write(str(path), grid, space | {"space origin": volume.affine[:3, 3]})
    elif form in ("cropped.seg.nrrd", "layers.seg.nrrd"):
        low = np.argwhere(grid).min(axis=0)
        part = grid[tuple(slice(a, b + 1) for a, b in zip(low, np.argwhere(grid).max(axis=0)))].astype(np.uint8)
        directions, kinds = local[:3, :3].T, ["domain"] * 3
        if form.startswith("layers"):
            first = np.zeros_like(part)
            first[0] = part[0]  # what overlaps nothing lies in the first layer, the rest in the second
            part = np.stack([first, part - first])
            directions, kinds = np.vstack([[np.nan] * 3, directions]), ["list", *kinds]
        header = {"space": "left-posterior-superior", "space directions": directions, "kinds": kinds}
        header |= {"space origin": (local @ [*low, 1])[:3], "Segmentation_MasterRepresentation": "Binary labelmap"}
        header |= {
            "Segment0_ID": "lesion",
            "Segment0_Name": "lesion",
            "Segment0_LabelValue": "1",
            "Segment0_Layer": "0",
        }
        nrrd.write(str(path), part, header)
    elif form == "plane.nii.gz":
        nibabel.save(nibabel.Nifti1Image(grid[..., 0].astype(np.int16), volume.affine), path)
    elif form == "plane.nrrd":
        sitk.WriteImage(label[:, :, 0], str(path), True)
    return path
