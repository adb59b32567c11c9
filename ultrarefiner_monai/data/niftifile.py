"""NIfTI files, opened: one place for images and labels, where the header is checked before anything is unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_nifti(path: Path) -> Any:
    """The file as a nibabel image, its voxels not yet read."""
    import nibabel

    return nibabel.load(path)  # type: ignore[attr-defined]
