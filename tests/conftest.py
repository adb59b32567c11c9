from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from orthanc import _archives, orthanc, orthanc_login, run_orthanc  # noqa: F401 (fixtures)
from PIL import Image

from ultrarefiner_monai.datasets.phantoms import make_phantom


def pytest_configure() -> None:
    """One thread: on networks this small several only wait for each other, for minutes where the machine is busy."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def write_clean_folder() -> Callable[..., Path]:
    """Writes a clean data folder of phantoms: three of four images hold a lesion, folds 0 to 2, groups of two."""

    def write(out: Path, count: int = 18, seed: int = 0) -> Path:
        for sub in ("images", "masks"):
            (out / sub).mkdir(parents=True)
        rows = []
        for k in range(count):
            rng = np.random.default_rng([seed, k])
            phantom = make_phantom(rng, 48, 64 + k, "none" if k % 4 == 3 else "benign")
            Image.fromarray(phantom.image).save(out / "images" / f"p{k:02d}.png")
            Image.fromarray(phantom.mask.astype(bool)).save(out / "masks" / f"p{k:02d}.png")
            category, fraction = ("normal", 0.0) if k % 4 == 3 else ("benign", float(phantom.mask.mean()))
            rows.append(
                {
                    "id": f"p{k:02d}",
                    "class": category,
                    "group": f"g{k // 2}",
                    "fold": k // 2 % 3,
                    "lesion_fraction": fraction,
                }
            )
        with (out / "index.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return out

    return write


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse networks of two convolutions, whatever the configuration says: those of ``launched.py``."""
    import launched

    from ultrarefiner_monai.models import checkpoints
    from ultrarefiner_monai.training.phases import coarse, networks

    for module in (coarse, checkpoints, networks):
        monkeypatch.setattr(module, "build_coarse", launched.small)
