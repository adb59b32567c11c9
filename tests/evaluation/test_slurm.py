"""Cross-validation and data-parallel training on a real Slurm of one node."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from app_server import ROOT
from ports import free_port
from slurm import Slurm, slurm  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CONFIG = """
    phase: phase1_coarse
    system:
      flip_tta: false
      coarse: {arch: compact, image_size: 32, hidden_size: 16, num_layers: 1, num_heads: 2, mlp_dim: 32, decoder_channels: [16, 8, 8]}
    data: {select_share: 0.3, workers: 0}
    optimiser: {name: adamw, lr: 0.01}
    epochs: 15
    batch_size: 4
    tracking: none
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_clean_folder) -> Path:
    place = tmp_path_factory.mktemp("slurm")
    for name in ("one", "two"):
        write_clean_folder(place / name, 24)
    (place / "small.yaml").write_text(textwrap.dedent(CONFIG))
    return place


def environment_of(cluster: Slurm) -> dict[str, str]:
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**cluster.environment, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_job_is_queued_again_and_goes_on(slurm: Slurm, folder: Path) -> None:  # noqa: F811
    out = folder / "cv"
    command = [sys.executable, "-m", "ultrarefiner_monai.cli", "cv", "--data", str(folder), "--datasets", "one,two"]
    command += ["--config", str(folder / "small.yaml"), "--folds", "0,1", "--out", str(out), "--device", "cpu"]
    command += ["--executor", "slurm", "--parallel", "2", "--slurm", "partition=main", "--slurm", "mem_gb=0.4"]
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(command, env=environment_of(slurm), stdout=log, stderr=subprocess.STDOUT)
    history = out / "one" / "fold_0" / "small" / "history.csv"

    def epochs() -> int:
        return len(rows(history)) if history.is_file() else 0

    end = time.monotonic() + 200
    while epochs() < 3:
        assert running.poll() is None and time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.1)
    listed = slurm.ask("squeue", "-h", "-r", "-o", "%i %T").split("\n")
    first = next(line.split()[0] for line in listed if "RUNNING" in line and line.split()[0].endswith("_0"))
    assert first.split("_")[0] in "".join(listed) and len([line for line in listed if line]) == 4, "one array of four"
    slurm.ask("scontrol", "requeue", first)
    kept = rows(history)
    assert 3 <= len(kept) < 15, "it was killed on the way"
    assert running.wait(400) == 0, (folder / "log").read_text()
    assert "Restarts=1" in slurm.ask("scontrol", "show", "job", first)
    after = rows(history)
    assert [int(row["epoch"]) for row in after] == list(range(1, 16))
    last_whole = [row for row in kept if row in after]
    assert len(last_whole) >= len(kept) - 1, "what was trained before is not trained again"
    table = rows(out / "results.csv")
    assert [(row["dataset"], row["fold"]) for row in table] == [(d, f) for d in ("one", "two") for f in "01"]
    assert "one" in (folder / "log").read_text() and "±" in (folder / "log").read_text()


def test_two_tasks_of_one_job_train_together(slurm: Slurm, folder: Path) -> None:  # noqa: F811
    script = folder / "two.sh"
    out = folder / "ddp"
    train = f"{sys.executable} -m ultrarefiner_monai.cli train phase1_coarse --config {folder}/small.yaml --data {folder}/one"
    train += f" --fold 0 --out {out} --device cpu --set epochs=2 --set batch_size=2"
    script.write_text(
        f"""#!/bin/bash
#SBATCH --ntasks=2
#SBATCH --mem=800M
#SBATCH --output={folder}/ddp.log
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT={free_port()}
srun bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
exec {train}'
"""
    )
    done = subprocess.run(
        ["sbatch", "--wait", "--parsable", str(script)], env=environment_of(slurm), capture_output=True, text=True
    )
    assert done.returncode == 0, (folder / "ddp.log").read_text() + done.stderr
    assert (out / "model.safetensors").is_file() and len(rows(out / "history.csv")) == 2
    assert "of 2 processes" in " ".join((folder / "ddp.log").read_text().replace("│", " ").split())
