"""What coarse networks say of images, kept as pictures for a refiner to learn from (``refine.proposals``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ultrarefiner_monai.config import SystemConfig
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.geometry import Letterbox
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.pipeline.coarse import coarse_arrays


def predicted_prob(network: nn.Module, system: SystemConfig, item: Item) -> np.ndarray:
    """coarse_prob (h, w) float32 in [0, 1]: the part of the coarse frame that the image covers, with mirror averaging as
    in serving."""
    image = read_image_file(item.image).frame(0)
    letterbox = Letterbox(image.shape[0], image.shape[1], system.coarse.image_size)
    square = letterbox.apply(torch.from_numpy(np.ascontiguousarray(image))[None, None])
    square = square.to(next(network.parameters()).device)
    rows, columns = letterbox.inner_hw
    prob = coarse_arrays(network, square, letterbox, system.flip_tta, system.tta_scales)["coarse_prob"]
    return np.asarray(prob[:rows, :columns], dtype=np.float32)


def write_proposal(folder: Path, item_id: str, prob: np.ndarray) -> None:
    """Keep a coarse_prob (h, w) in [0, 1] as an 8-bit PNG, which anyone can look at. item_id: ID, or SET/ID."""
    path = folder / f"{item_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray((np.clip(prob, 0, 1) * 255).round().astype(np.uint8)).save(file, format="PNG")


def proposal_folders(text: str) -> list[Path]:
    """The folders of ``refine.proposals``: one, or several with commas between them. Raises InputError for one that is not
    there."""
    if not text or Path(text).is_dir():  # its own name may hold a comma
        return [Path(text)] if text else []
    found = [Path(name.strip()) for name in text.split(",") if name.strip()]
    missing = [str(folder) for folder in found if not folder.is_dir()]
    if missing:
        raise InputError(
            f"refine.proposals: {', '.join(missing)} is no folder; `ultrarefiner proposals` makes them (commas stand between "
            "several folders)"
        )
    return found


def read_proposals(folders: Sequence[Path], item: Item, by_id: bool = True) -> tuple[np.ndarray, ...]:
    """Predictions of an image as ``write_proposal`` kept them, (h, w) in [0, 1] each.

    In each folder it lies as SET/ID.png, or as ID.png in a folder for one set. by_id: whether the latter can be meant.
    """
    found = []
    for folder in folders:
        several = bool(item.set) and (folder / item.set).is_dir()
        path = folder / f"{item.key if several else item.id}.png"
        if (several or by_id) and path.is_file():
            with Image.open(path) as image:
                found.append(np.asarray(image.convert("L"), dtype=np.float32) / 255)
    return tuple(found)
