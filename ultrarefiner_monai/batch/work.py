"""What a batch does with one job: read, outline, measure, write the mask. Runs in the worker processes."""

from __future__ import annotations

import hashlib
import logging
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ultrarefiner_monai.batch.jobs import Job
from ultrarefiner_monai.batch.table import DONE, FAILED, Row
from ultrarefiner_monai.config import PacsConfig
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.series import read_series, sort_instances
from ultrarefiner_monai.imaging.readers import ImageFile, Limits, read_image_file, write_mask
from ultrarefiner_monai.masks.metrics import cell
from ultrarefiner_monai.pipeline.outline import FileOutline, outline, outline_frame
from ultrarefiner_monai.pipeline.predictor import Predictor

if TYPE_CHECKING:
    from ultrarefiner_monai.dicomweb.client import Pacs

Format = Literal["nii.gz", "nrrd", "png", "seg"]
FORMATS: tuple[Format, ...] = ("nii.gz", "nrrd", "png", "seg")


@dataclass(frozen=True)
class Setup:
    """What every worker is told. model: a checkpoint file. threads: torch's, of one worker. max_pixels: of one image.

    store: send each result to the DICOMweb store ``studies`` as a DICOM SEG.
    """

    model: Path
    out: Path
    format: Format = "nii.gz"
    device: str = "cpu"
    threads: int = 1
    max_pixels: int = 400_000_000
    studies: str = ""
    pacs: PacsConfig = field(default_factory=PacsConfig)
    store: bool = False


@dataclass(frozen=True)
class Image:
    """A job is one, or several where a series holds pictures of several sizes. files: its DICOM files, else one file."""

    id: str
    files: tuple[Path, ...]
    sop_uid: str = ""


class Worker:
    """Answers jobs with one model. Raises InputError when the model cannot be loaded."""

    def __init__(self, setup: Setup):
        import torch

        from ultrarefiner_monai.models.checkpoints import load_system

        torch.set_num_threads(setup.threads)
        self.setup = setup
        self.predictor = Predictor(load_system(setup.model, device=setup.device), device=setup.device)
        self._pacs: Pacs | None = None
        if setup.studies:
            from ultrarefiner_monai.dicomweb.client import Pacs

            self._pacs = Pacs.of(setup.studies, setup.pacs)

    def answer(self, job: Job) -> tuple[list[Row], bool]:
        """(the rows of a job, one for each image, with whatever went wrong; whether the store could not be reached)."""
        start = time.perf_counter()
        try:
            with self._images(job) as images:
                rows = []
                for image in images:
                    rows.append(self._row(job, image, start))
                    start = time.perf_counter()
                return rows, False
        except Exception as error:
            return [failure(job, error, time.perf_counter() - start)], bool(getattr(error, "transient", False))

    # --- one image ----------------------------------------------------------------------------------------------------

    def _row(self, job: Job, image: Image, start: float) -> Row:
        try:
            row = self._answer(job, image)
        except Exception as error:  # of a series the others may be sound
            if getattr(error, "transient", False):
                raise
            row = failure(job, error, image_id=image.id)
        uids = {"study_uid": job.study_uid, "series_uid": job.series_uid, "sop_uid": image.sop_uid}
        return {**row, **uids, "seconds": f"{time.perf_counter() - start:.2f}"}

    def _answer(self, job: Job, image: Image) -> Row:
        limits = Limits(total_pixels=self.setup.max_pixels)
        if job.path is None:
            image_file = read_series(image.files, limits, region_spacing=True)
        else:
            image_file = read_image_file(job.path, limits)
        check_format(self.setup.format, image_file)
        found = outline(image_file, partial(outline_frame, self.predictor.seen_as(image_file.view), image_file))
        seg = self._seg(found.mask, image) if self.setup.format == "seg" or self.setup.store else None
        path = self._write(image.id, found.mask, image_file, seg)
        stored = ""
        if self.setup.store and self._pacs is not None and seg is not None:
            self._pacs.store([seg])
            stored = str(seg.SOPInstanceUID)
        return {
            "id": image.id,
            "version": self.predictor.system.version,
            **figures_of(found),
            "warnings": "; ".join(image_file.warnings),
            "mask": path.relative_to(self.setup.out).as_posix(),
            "stored": stored,
            "status": DONE,
        }

    def _write(self, image_id: str, mask: np.ndarray, image_file: ImageFile, seg: Any) -> Path:
        """The mask's file, or the folder with a PNG for each frame."""
        path = mask_path(self.setup, image_id)
        if self.setup.format == "seg":
            with replacing(path) as file:
                seg.save_as(file, enforce_file_format=True)
        elif self.setup.format == "png" and image_file.is_volume:
            path = path.with_name(image_id)
            _write_pngs(path, mask, image_file)
        else:
            write_mask(path, mask, image_file)
        return path

    def _seg(self, mask: np.ndarray, image: Image) -> Any:
        """A DICOM SEG whose UIDs are made of image, model and mask: stored again after a kill, it is the same object."""
        from ultrarefiner_monai.dicom.seg import UID_ROOT, make_seg

        version = self.predictor.system.version
        seg = make_seg(mask, image.files, "ultrarefiner", version)
        digest = hashlib.sha256(f"{seg.StudyInstanceUID} {image.id} {version}".encode() + mask.tobytes()).digest()
        for keyword, part in (("SeriesInstanceUID", digest[:14]), ("SOPInstanceUID", digest[14:28])):
            setattr(seg, keyword, UID_ROOT + str(int.from_bytes(part, "big")))
        seg.file_meta.MediaStorageSOPInstanceUID = seg.SOPInstanceUID
        return seg

    @contextmanager
    def _images(self, job: Job) -> Iterator[list[Image]]:
        """The job's images; what was fetched for them is removed at the end."""
        if job.path is not None:
            yield [Image(job.id, (job.path,))]
            return
        assert self._pacs is not None
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=self.setup.out / "masks") as name:
            most = self.setup.pacs.mirror_mb << 20
            yield images_of(job, self._pacs.fetch_series(job.study_uid, job.series_uid, Path(name, "series"), most))


def images_of(job: Job, files: Sequence[Path]) -> list[Image]:
    """The images of a fetched series, as the server has them (``pacs.mirror``): one, or each picture by itself where
    their sizes differ. Reports and documents are left out; InputError when there is nothing else."""
    from ultrarefiner_monai.dicom.pictures import no_picture_message, pictures_of

    sizes, others = pictures_of(files)
    if not sizes:
        raise InputError(no_picture_message(job.series_uid, others))
    ordered = sort_instances(list(sizes))
    if len(set(sizes.values())) == 1:
        return [Image(job.id, tuple(ordered))]
    return [
        Image(path.stem, (path,), path.stem) for path in ordered
    ]  # fetched files are called by their SOPInstanceUID


def figures_of(found: FileOutline) -> Row:
    """The figures of the frame with the largest lesion as text; ``seconds`` apart."""
    frame = found.frames[found.shown]
    marked = int(found.mask.any(axis=(1, 2)).sum())
    return {
        "frames": str(len(found.mask)),
        "frame": str(found.shown),
        "lesion": "yes" if marked else "no",
        "lesion_frames": str(marked),
        "long_axis": cell(frame.size.long_axis) if marked else "",
        "short_axis": cell(frame.size.short_axis) if marked else "",
        "area": cell(frame.size.area) if marked else "",
        "unit": frame.size.unit if marked else "",
        "iou_pred": cell(frame.iou_pred),
        "uncertainty": cell(frame.uncertainty),
        "presence": cell(frame.presence),
        "safety_rule": frame.safety_rule or "",
    }


def mask_path(setup: Setup, image_id: str) -> Path:
    return setup.out / "masks" / f"{image_id}.{'dcm' if setup.format == 'seg' else setup.format}"


def check_format(wanted: Format, image_file: ImageFile) -> None:
    """InputError where the masks cannot be written in this format, before anything is computed."""
    if wanted == "seg" and image_file.kind != "dicom":
        raise InputError(
            f"{image_file.path.name}: a DICOM SEG needs a DICOM image, this one is {image_file.kind}; take nii.gz"
        )


def failure(job: Job, error: BaseException | str, seconds: float = 0.0, image_id: str = "") -> Row:
    """The row of a job, or of one image of it, that could not be answered."""
    text = str(error)
    if not isinstance(error, (str, InputError)):
        text = f"{type(error).__name__}: {error}" if text else type(error).__name__
    row = {"id": image_id or job.id, "study_uid": job.study_uid, "series_uid": job.series_uid}
    return {**row, "status": FAILED, "error": text, "seconds": f"{seconds:.2f}"}


def serve(connection: Connection, setup: Setup) -> None:
    """A worker process: sends its version, or why there is none, then rows for each job until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    logging.disable(logging.WARNING)  # what images lack stands in results.csv, not across the progress bar
    warnings.simplefilter("ignore")
    try:
        worker = Worker(setup)
    except Exception as error:
        connection.send(("broken", str(error) or type(error).__name__))
        return
    try:
        connection.send(("ready", worker.predictor.system.version))
        while (job := connection.recv()) is not None:
            connection.send(("answer", worker.answer(job)))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone


def _write_pngs(folder: Path, mask: np.ndarray, image_file: ImageFile) -> None:
    """frame_0000.png and so on, all of them or none."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        single = replace(image_file, n_frames=1)
        for k in range(image_file.n_frames):
            write_mask(beside / f"frame_{k:04d}.png", mask[k], single)
        shutil.rmtree(folder, ignore_errors=True)
        beside.chmod(0o755)
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
