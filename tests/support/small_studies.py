"""A studies folder of two pictures without a server; its fixtures ``studies`` and ``label`` stand in conftest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from app_server import APP, encoded, picture
from PIL import Image

from lib.store.datastore import StudiesFolder
from ultrarefiner_monai.config import ServeConfig, load_yaml
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies.work_folder import WorkFolder

EXTENSIONS = load_yaml(ServeConfig, APP / "config.yaml").extensions
PNG = encoded(Image.fromarray(picture(1)), "PNG")
LABEL = encoded(Image.fromarray((np.arange(96 * 130).reshape(96, 130) % 130 < 40).astype(np.uint8) * 255), "PNG")


def make_store(studies: Path, work_dir: Path | None = None) -> StudiesFolder:
    return StudiesFolder(str(studies), WorkFolder.of(studies, work_dir), EXTENSIONS, read_image_file, auto_reload=False)


def everything_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
