"""What is installed, and what runs without make: the declared ranges, the wheel, the commands, other systems."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
from app_server import ROOT, save_tiny_system
from packaging.requirements import Requirement
from ports import free_port

from ultrarefiner_monai.cli import stock

MONAILABEL = re.search(r"monailabel==[0-9.]+", (ROOT / "Makefile").read_text())[0]  # type: ignore[index]
SAMPLES = "/".join(("ultrarefiner_monai", "_samples"))  # inside the wheel
# Linux is where the tests run; what only POSIX systems have is taken away as it is missing on Windows.
BLOCKED = """
    import os, sys, psutil  # psutil: for this system
    for name in ("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog"):
        sys.modules[name] = None
    for name in ("killpg", "nice", "getuid", "geteuid", "statvfs", "setsid", "getpgid"):
        delattr(os, name)
    sys.argv = ["monailabel", *sys.argv[1:]]
    import runpy
    runpy.run_module("monailabel.main", run_name="__main__", alter_sys=True)
"""


def test_what_is_installed_is_what_is_declared() -> None:
    wanted = [Requirement(text) for text in importlib.metadata.requires("ultrarefiner_monai") or []]
    assert len(wanted) > 50
    wrong = [
        f"{one}: {importlib.metadata.version(one.name)}"
        for one in [*wanted, Requirement(MONAILABEL)]
        if one.marker is None or one.marker.evaluate({"extra": "test"})
        if not one.specifier.contains(importlib.metadata.version(one.name), prereleases=True)
    ]
    assert not wrong


def test_one_monailabel_is_named_everywhere() -> None:
    for name in ("setup.cfg", "README.md", "ultrarefiner_monai/cli/launch.py", "docs/it/serving.md"):
        assert set(re.findall(r"monailabel==[0-9.]+", (ROOT / name).read_text())) == {MONAILABEL}, name


def test_what_stands_in_says_so_when_it_is_used() -> None:
    import pydicom_seg

    with pytest.raises(ImportError, match="ultrarefiner_monai.dicom"):
        pydicom_seg.MultiClassReader  # noqa: B018
    code = "import importlib.util, sys; f = importlib.util.find_spec; "
    code += "importlib.util.find_spec = lambda n, *a: None if n in ('itk', 'SimpleITK') else f(n, *a); "
    code += "import pydicom_seg, itk, SimpleITK, monai.data.image_reader as r; print(r.has_itk); itk.imread"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "ITK is not installed" in done.stderr
    assert done.stdout.strip() == "False", "MONAI reads no file with what stands in"


def test_start_server_without_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "choose_studies", lambda given, place: "COPY")
    app = str(ROOT / "apps" / "ultrarefiner")
    for given in (["--app", app], [f"--app={app}"], ["-a", app, "--port", "1"], [f"-a{app}"]):
        assert stock.completed(["start_server", *given]) == ["start_server", *given, "--studies", "COPY"]
    for given in (
        ["--app", app, "--studies", "x"],
        ["--app", app, "-s", "x"],
        [f"-a{app}", "-sx"],
        ["--app", app, "--stud=x"],
        ["--app", "/other"],
    ):
        assert stock.completed(["start_server", *given]) == ["start_server", *given]
    assert stock.completed(["apps", "--app", app]) == ["apps", "--app", app]


# --- real servers -----------------------------------------------------------------------------------------------------


def answers(url: str, process: subprocess.Popen, log: Path, seconds: float = 180) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with direct.open(f"{url}/info/", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text(errors="replace")[-4000:])


def ended(process: subprocess.Popen) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_serves_by_itself(tmp_path: Path) -> None:
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in filter(None, names.stdout.splitlines()):
        if name.startswith(("ultrarefiner_monai/", "apps/", "sample-data/")) or "/" not in name:
            if (ROOT / name).is_file():
                (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tmp_path / "source" / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=tmp_path / "source", check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        inside = file.namelist()
        file.extractall(tmp_path / "site")
    for name in (
        "main.py",
        "config.yaml",
        "lib/routes/viewer.py",
        "model/compact.safetensors",
        "viewer/built/ultrarefiner.js",
    ):
        assert f"ultrarefiner_monai/_app/{name}" in inside
    assert "pydicom_seg/__init__.py" in inside and f"{SAMPLES}/phantom_08.png" in inside
    assert not [n for n in inside if "/logs/" in n or n.startswith(("tests", "benchmarks")) or "/viewer/src/" in n]

    port, log = free_port(), tmp_path / "log"
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(tmp_path / "site"),
        "OMP_NUM_THREADS": "1",
    }
    (tmp_path / "home").mkdir()
    code = "import ultrarefiner_monai, sys; assert '/site/' in ultrarefiner_monai.__file__; "
    code += "from ultrarefiner_monai.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "serve",
        "--port",
        str(port),
        "--conf",
        "threads=1",
        "--conf",
        "learning.slow=false",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        assert answers(f"http://127.0.0.1:{port}", process, log)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ultrarefiner/worklist", timeout=60) as page:
            assert page.read().decode().count("<li>") >= 10
    finally:
        assert ended(process) == 0, log.read_text()
    home = tmp_path / "home" / ".ultrarefiner"
    assert (home / "studies" / "phantom_08.png").is_file() and len(list(home.glob("app-*/main.py"))) == 1


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_serves_without_what_only_posix_systems_have(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    shutil.copytree(ROOT / "sample-data", studies)
    port, log = free_port(), tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "USERNAME": "anna"}  # as on Windows
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(BLOCKED),
        "start_server",
        "--app",
        str(ROOT / "apps" / "ultrarefiner"),
    ]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), "--conf", "threads", "1"]
    command += ["--conf", "weights", str(save_tiny_system(tmp_path / "tiny.safetensors"))]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        assert answers(url, process, log)
        request = urllib.request.Request(f"{url}/infer/ultrarefiner?image=phantom_08&output=json", method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200
    finally:
        process.terminate()
        process.wait(60)
    assert "Traceback" not in log.read_text()
