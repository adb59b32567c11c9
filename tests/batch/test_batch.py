"""Batches over folders, in real worker processes with a tiny network; over a PACS in tests/exchange/test_archive.py."""

from __future__ import annotations

import csv
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from ultrarefiner_monai.batch import archive as batch
from ultrarefiner_monai.batch.archive import plan_batch, run_batch
from ultrarefiner_monai.batch.jobs import folder_jobs
from ultrarefiner_monai.batch.pool import Pool
from ultrarefiner_monai.batch.table import COLUMNS, Results
from ultrarefiner_monai.batch.work import Worker
from ultrarefiner_monai.cli import command as cli
from ultrarefiner_monai.config import CoarseConfig, ConfigError, SystemConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.datasets.samples import dicom_bytes, make_cine
from ultrarefiner_monai.dicom.seg_reader import read_seg
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import load_system, save_system
from ultrarefiner_monai.pipeline.predictor import Predictor

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)


def save_tiny(path: Path, seed: int) -> Path:
    """Random weights whose masks are neither empty nor full."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        coarse = build_coarse(COARSE)
    with torch.no_grad():
        coarse.head.weight.mul_(20)
        coarse.presence.bias.fill_(6)
    return save_system(path, SystemConfig(coarse=COARSE), coarse)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("weights") / "tiny.safetensors", 1)


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return make_phantom(np.random.default_rng(seed), height, width, "benign").image


def write_studies(folder: Path) -> Path:
    """Six images in nested folders, two of which cannot be read; and what is no image."""
    (folder / "ward 7" / "deep").mkdir(parents=True)
    (folder / "labels" / "final").mkdir(parents=True)
    Image.fromarray(picture(1)).save(folder / "a.png")
    Image.fromarray(picture(2)).save(folder / "ward 7" / "a.png")
    frames, _ = make_cine(np.random.default_rng(3), 48, 64, 3, "benign")
    (folder / "ward 7" / "deep" / "IM0001").write_bytes(dicom_bytes(frames, 3, 0.2))
    screen = np.hstack([picture(4), np.full((48, 32), 255, np.uint8)])
    boxes = [(0, 0, 63, 47, "tissue"), (64, 0, 95, 47, "spectrum")]
    (folder / "screen.dcm").write_bytes(dicom_bytes(screen[None], 4, 0.2, regions=boxes))
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "empty.dcm").touch()
    Image.fromarray(picture(1)).save(folder / "labels" / "final" / "a.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        return {row["source"]: row for row in csv.DictReader(file)}


def run_cli(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["batch", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Path, Path, int, str]:
    """(studies, out, exit status, what was printed) of a batch of two processes over ``write_studies``."""
    folder = tmp_path_factory.mktemp("batch")
    studies, out = write_studies(folder / "studies"), folder / "studies" / "proposals"
    code, text = run_cli("--studies", studies, "--out", out, "--model", tiny, "--processes", 2)
    return studies, out, code, text


def test_every_image_is_answered_and_what_cannot_be_read_is_listed(finished: tuple[Path, Path, int, str]) -> None:
    _, out, code, text = finished
    rows = rows_of(out)
    assert set(rows) == {"a.png", "ward 7/a.png", "ward 7/deep/IM0001", "screen.dcm", "torn.png", "empty.dcm"}
    assert {source for source, row in rows.items() if row["status"] == "failed"} == {"torn.png", "empty.dcm"}
    assert code == 1 and "4 outlined, 0 already finished, 2 failed" in text
    assert (
        "torn.png: torn.png cannot be read as an image" in text and rows["empty.dcm"]["error"] == "empty.dcm is empty"
    )
    assert rows["ward 7/deep/IM0001"]["frames"] == "3" and rows["a.png"]["unit"] == "px"


def test_masks_are_the_predictors_own_and_lie_on_the_images_grid(
    finished: tuple[Path, Path, int, str], tiny: Path
) -> None:
    studies, out, _, _ = finished
    predictor = Predictor(load_system(tiny))
    marked = 0
    for source in ("a.png", "ward 7/a.png", "ward 7/deep/IM0001"):
        image_file = read_image_file(studies / source)
        mask = read_mask(out / rows_of(out)[source]["mask"], image_file, confirmed=True)  # of random weights
        wanted = np.stack([predictor.propose(image_file.frame(k)).mask for k in range(image_file.n_frames)])
        np.testing.assert_array_equal(mask, wanted)
        marked += int(wanted.sum())
    assert marked > 50
    screen = read_mask(out / rows_of(out)["screen.dcm"]["mask"])
    alone = predictor.propose(np.ascontiguousarray(read_image_file(studies / "screen.dcm").frame(0)[:, :64])).mask
    np.testing.assert_array_equal(screen[0, :, :64], alone)
    assert not screen[0, :, 64:].any()


def test_figures_are_those_of_the_mask(finished: tuple[Path, Path, int, str]) -> None:
    _, out, _, _ = finished
    row = rows_of(out)["ward 7/deep/IM0001"]
    mask = read_mask(out / row["mask"])
    assert row["lesion"] == "yes" and int(row["lesion_frames"]) == int(mask.any(axis=(1, 2)).sum()) > 0
    assert row["unit"] == "mm" and 0 < float(row["area"]) <= mask[int(row["frame"])].sum() * 0.04 * 1.0001
    assert 0 < float(row["short_axis"]) <= float(row["long_axis"]) and 0 <= float(row["uncertainty"]) <= 1


@pytest.mark.slow
def test_a_second_run_does_what_is_left(finished: tuple[Path, Path, int, str], tiny: Path, tmp_path: Path) -> None:
    studies, out, _, _ = finished
    before = rows_of(out)
    Image.fromarray(picture(9)).save(studies / "torn.png")  # mended
    Image.fromarray(picture(8)).save(studies / "a.png")  # changed
    (out / before["screen.dcm"]["mask"]).unlink()
    (studies / "empty.dcm").unlink()
    code, text = run_cli("--studies", studies, "--out", out, "--model", tiny)
    after = rows_of(out)
    assert code == 0 and "3 outlined, 2 already finished, 0 failed" in text
    kept = {"ward 7/a.png", "ward 7/deep/IM0001"}
    assert {s for s in after if after[s]["time"] == before.get(s, {}).get("time")} == kept
    assert set(after) == set(before) - {"empty.dcm"} and len(list((out / "masks").iterdir())) == len(after)
    code, text = run_cli("--studies", studies, "--out", out, "--model", save_tiny(tmp_path / "b.safetensors", 2))
    assert "5 outlined, 0 already finished" in text  # by another model


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tiny: Path, tmp_path: Path) -> None:
    studies, out = tmp_path / "s", tmp_path / "o"
    studies.mkdir()
    for k in range(60):
        Image.fromarray(picture(k % 5)).save(studies / f"{k:03d}.png")
    command = [sys.executable, "-m", "ultrarefiner_monai.cli", "batch", "--model", str(tiny), "--studies", str(studies)]
    command += ["--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if (out / "results.csv").is_file() and (out / "results.csv").read_bytes().count(b"\n") > 10:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait(10)
    done = rows_of(out)
    assert 9 <= len(done) < 60
    code, text = run_cli(*command[4:])
    assert code == 0 and f"{60 - len(done)} outlined, {len(done)} already finished" in text
    rows = rows_of(out)
    assert len(rows) == 60 and all(rows[s]["time"] == row["time"] for s, row in done.items())
    assert sorted(p.name for p in (out / "masks").iterdir()) == [f"{k:03d}.nii.gz" for k in range(60)]


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for k in range(count):
        Image.fromarray(picture(k)).save(folder / f"{k}.png")
    return folder


@pytest.mark.slow
def test_a_process_that_dies_costs_its_image_only(tiny: Path, tmp_path: Path) -> None:
    # One process: it has just answered, so that it is not one that still loads the model.
    jobs, setup = plan_batch(str(pictures(tmp_path / "s", 8)), tmp_path / "o", tiny)

    def kill_it(answered: int, failed: int, total: int) -> None:
        if answered == 2:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    summary = run_batch(jobs, setup, 1, kill_it)
    assert (summary.done, summary.failed) == (7, 1)
    assert "killed by SIGKILL" in summary.failures[0][1]
    assert not multiprocessing.active_children()


def test_a_process_that_cannot_load_the_model_leaves_the_work_to_the_others(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, setup = plan_batch(str(pictures(tmp_path / "s", 3)), tmp_path / "o", tiny, processes=2)
    (setup.out / "masks").mkdir()
    pool, answered = Pool(setup, 2), []
    try:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        pool.run(jobs, lambda job, rows: answered.extend(row["status"] for row in rows))
    finally:
        pool.stop()
    assert answered == ["done"] * 3
    assert "killed by SIGKILL" in caplog.text and "going on with 1" in caplog.text


def test_no_process_that_can_load_the_model_ends_the_batch(tiny: Path, tmp_path: Path) -> None:
    jobs, setup = plan_batch(str(pictures(tmp_path / "s", 3)), tmp_path / "o", tiny, processes=2)
    pool = Pool(setup, 2)
    try:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGKILL)
        with pytest.raises(InputError, match="while it loaded the model .*SIGKILL.*fewer --processes"):
            pool.run(jobs, lambda job, rows: None)
    finally:
        pool.stop()


@pytest.mark.parametrize("kind", ["png", "nrrd", "seg"])
def test_other_formats(kind: str, tiny: Path, tmp_path: Path) -> None:
    frames, _ = make_cine(np.random.default_rng(3), 48, 64, 2, "benign")
    (tmp_path / "cine.dcm").write_bytes(dicom_bytes(frames, 3, 0.2))
    jobs, setup = plan_batch(str(tmp_path), tmp_path / "o", tiny, kind)
    # What a worker does, without starting one.
    (setup.out / "masks").mkdir(parents=True)
    [row], _ = Worker(setup).answer(jobs[0])
    assert row["status"] == "done", row["error"]
    path = setup.out / row["mask"]
    if kind == "seg":
        masks = read_seg(pydicom.dcmread(path), [tmp_path / "cine.dcm"])
    else:
        masks = np.concatenate([read_mask(file) for file in (sorted(path.iterdir()) if kind == "png" else [path])])
    image_file = read_image_file(tmp_path / "cine.dcm")
    wanted = [Predictor(load_system(tiny)).propose(image_file.frame(k)).mask for k in range(2)]
    np.testing.assert_array_equal(masks, np.stack(wanted))


def test_a_seg_of_a_photograph_is_refused(tiny: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    jobs, setup = plan_batch(str(tmp_path), tmp_path / "o", tiny, "seg")
    [row], unreachable = Worker(setup).answer(jobs[0])
    assert (row["status"], unreachable) == ("failed", False)
    assert "a.png: a DICOM SEG needs a DICOM image, this one is png" in row["error"]


WITHOUT_PACS = """
import sys
from pathlib import Path
from ultrarefiner_monai.batch.archive import plan_batch
from ultrarefiner_monai.batch.work import Worker
from ultrarefiner_monai.cli.command import app

studies, out, model = sys.argv[1:]
app(["batch", "--studies", studies, "--out", out, "--model", model, "--format", "seg"], standalone_mode=False)
jobs, setup = plan_batch(studies, Path(out), Path(model), "seg")
rows = [row for job in jobs for row in Worker(setup).answer(job)[0]]  # what its processes do, in this one
assert [row["status"] for row in rows] == ["done", "done"], rows
print(*sorted(name for name in sys.modules if name.startswith("ultrarefiner_monai.")))
"""


def test_dicom_is_not_pacs_segs_of_a_folder_need_nothing_of_the_store(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for k in range(2):
        (tmp_path / "s" / f"{k}.dcm").write_bytes(dicom_bytes(picture(k)[None], k, 0.2))
    arguments = [tmp_path / "s", tmp_path / "o", tiny]
    command = [sys.executable, "-c", WITHOUT_PACS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 outlined, 0 already finished, 0 failed" in done.stdout
    loaded = done.stdout.splitlines()[-1].split()
    assert "ultrarefiner_monai.dicom.seg" in loaded and "ultrarefiner_monai.batch.work" in loaded
    assert not [name for name in loaded if name.split(".")[1] in ("dicomweb", "exchange")]
    masks = [
        read_seg(pydicom.dcmread(tmp_path / "o" / "masks" / f"{k}.dcm"), [tmp_path / "s" / f"{k}.dcm"]) for k in (0, 1)
    ]
    assert all(mask.shape == (1, 48, 64) for mask in masks)


def test_what_cannot_work_is_refused_before_anything_is_computed(tiny: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="--store needs a DICOMweb address"):
        plan_batch(str(tmp_path), tmp_path / "o", tiny, store=True)
    with pytest.raises(ConfigError, match="--format: expected nii.gz, nrrd, png, seg, got 'jpg'"):
        plan_batch(str(tmp_path), tmp_path / "o", tiny, "jpg")
    with pytest.raises(InputError, match="expected a folder or the http"):
        plan_batch(str(tmp_path / "missing"), tmp_path / "o", tiny)
    jobs, setup = plan_batch(str(tmp_path), tmp_path / "o", tiny)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="holds the results of .*: take another --out for .*other"):
        plan_batch(str(tmp_path / "other"), tmp_path / "o", tiny)
    with pytest.raises(InputError, match="no checkpoint at"):
        run_batch(jobs, dataclasses.replace(setup, model=tmp_path / "none.safetensors"))
    with FileLock(str(setup.out / batch.LOCK)), pytest.raises(InputError, match="another batch writes to"):
        run_batch(jobs, setup)


# --- jobs and table ---------------------------------------------------------------------------------------------------


def test_ids_are_the_servers_and_plain_names_that_no_two_images_share(tmp_path: Path) -> None:
    studies, memory = tmp_path / "s", tmp_path / "headers.json"
    pictures = ["a.png", "A.jpg", "x/a.png", "x_a.png", "alone.bmp", "Müller^Eva.png", "x/b.nii.gz"]
    for name in [*pictures, ".hidden.png", "labels/final/a.png", "notes.txt", "x/DICOMDIR"]:
        (studies / name).parent.mkdir(parents=True, exist_ok=True)
        (studies / name).write_bytes(b"0" * 200)
    loop = dicom_bytes(picture(1)[None], 1, 0.1)
    for name in ("Müller^Eva/IM1", "Müller^Eva/copy of IM1"):
        (studies / name).parent.mkdir(exist_ok=True)
        (studies / name).write_bytes(loop)
    jobs = {job.source: job.id for job in folder_jobs(studies, memory)}
    assert set(jobs) == {*pictures, "Müller^Eva/IM1"}
    assert jobs["alone.bmp"] == "alone" and jobs["a.png"] == "a.png" and jobs["x_a.png"] == "x_a"
    assert jobs["Müller^Eva/IM1"].replace(".", "").isdigit()  # its UID: no name of a patient
    assert len({job.lower() for job in jobs.values()}) == len(jobs)
    assert all(job.isascii() and "/" not in job and "^" not in job for job in jobs.values())
    before = {job.source: job.state for job in folder_jobs(studies, memory)}
    (studies / "a.png").write_bytes(b"other")
    after = {job.source: job.state for job in folder_jobs(studies, memory)}
    assert {source for source in after if after[source] != before[source]} == {"a.png"}


def test_the_table_survives_being_torn(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    results = Results(path)
    results.rewrite()
    done = {"id": "a", "status": "done", "lesion": "yes"}
    results.add("a", "s1", [done])
    results.add("b", "s1", [{"id": "b", "status": "failed", "error": 'on\ntwo, "lines"'}])
    results.add("c", "s1", [{**done, "id": "c1"}, {**done, "id": "c2"}])
    content = path.read_bytes()
    ends = [k + 1 for k, byte in enumerate(content) if byte == 10]
    path.write_bytes(content[: ends[-2] + 5])  # killed within the second line of c
    found = Results(path)
    assert [row["id"] for row in found.rows()] == ["a", "b", "c1"]
    assert found.of("b")[0]["error"] == 'on two, "lines"'
    assert found.finished("a", "s1") and not found.finished("a", "s2")
    assert not found.finished("b", "s1") and not found.finished("c", "s1")
    found.rewrite()
    found.add("b", "s1", [{**done, "id": "b"}])
    again = Results(path)
    assert again.finished("b", "s1") and len(again.of("b")) == 1 and set(again.rows()[0]) == set(COLUMNS)
