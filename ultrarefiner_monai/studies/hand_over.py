"""The image file that 3D Slicer gets with the next sample, in a folder and under a name where Slicer opens it alone.

Slicer opens a picture as one slice of a volume when other pictures in its folder have names that differ in one number, and
a DICOM file together with its series. Pictures in a studies folder are often numbered, and a Slicer on another machine
saves all that it fetches in one folder. So the path for a Slicer on this machine is a link in a folder of its own, and a
name with digits gets letters that no other image has. The checksum keeps Slicer from taking an older file of the same name
for this one.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.studies.names import split_name
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

_LETTERS = str.maketrans("0123456789abcdef", "ghijklmnopqrstuv")


def hand_out(work: WorkFolder, image_id: str, path: Path, extensions: tuple[str, ...]) -> dict[str, str]:
    """name, path and checksum of the image file ``path`` for the reply to /activelearning/."""
    name = file_name(image_id, path.name, extensions)
    link = work.handed(image_id) / name
    try:
        if not link.exists() or not link.samefile(path):
            work.make(link.parent)
            for old in link.parent.iterdir():
                old.unlink()
            link.symlink_to(path.absolute())
    except OSError as error:  # another request made it meanwhile, or no links here: then as before
        logger.debug("no link to %s: %s", path.name, error)
        link = link if link.exists() else path
    return {"name": name, "path": str(link), "checksum": f"SHA256:{sha256_of(path)}"}


def file_name(image_id: str, name: str, extensions: tuple[str, ...]) -> str:
    """``name``, or with letters of the image's own where it has digits; DICOM files without an extension get one."""
    stem, extension = split_name(name, extensions) or (name, ".dcm")
    if any(c.isdigit() for c in stem):
        stem += "-" + hashlib.sha256(image_id.encode()).hexdigest()[:8].translate(_LETTERS)
    return stem + extension
