"""A real Slurm on loopback: munged, slurmctld and slurmd of Debian's packages, with a configuration, key and state of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
START_SECONDS = 60
_CONF = """
ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={name} NodeAddr=127.0.0.1 CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """A running cluster of one node. environment: in which its commands find it."""

    folder: Path
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    found = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if found:
        return f"Slurm is not installed ({', '.join(found)}): apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "slurmd starts jobs of others: only root can run it"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Skips, saying what is missing; fails in CI, where it may not be left out."""
    if why := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    folder = Path("/tmp") / f"slurm-{os.getpid()}"  # sockets have short names
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True)
    name = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(folder=folder, name=name, controller=free_port(), daemon=free_port()))
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for place in (folder, folder / "munge"):
        place.chmod(0o755)
    environment = {**os.environ, "SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    munge = folder / "munge"
    started = [
        start(folder, environment, "munged", "-F", "-f", f"--key-file={key}", f"--socket={munge}/socket",
              f"--log-file={munge}/log", f"--pid-file={munge}/pid", f"--seed-file={munge}/seed"),
        start(folder, environment, "slurmctld", "-D", "-f", str(conf)),
        start(folder, environment, "slurmd", "-D", "-f", str(conf), "-N", name),
    ]  # fmt: skip
    try:
        cluster = Slurm(folder, environment)
        end = time.monotonic() + START_SECONDS
        while (
            "idle"
            not in subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True).stdout
        ):
            assert time.monotonic() < end, "\n".join(p.read_text()[-2000:] for p in folder.glob("*.log"))
            time.sleep(0.5)
        yield cluster
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, environment: dict[str, str], program: str, *arguments: str) -> subprocess.Popen:
    with (folder / f"{program}.log").open("w") as log:
        process = subprocess.Popen([program, *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT)
    time.sleep(1)
    return process
