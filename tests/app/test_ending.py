"""The server's end: in bounded time, with what it started, and with all that it acknowledged."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from app_server import Server, encoded, eventually, picture, start
from PIL import Image

from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_mask
from ultrarefiner_monai.studies.work_folder import WorkFolder

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]

END_SECONDS = 15  # 5 for requests in work, 3 for what is queued, and a busy machine


def labelled_studies(folder: Path) -> Path:
    """Eight images with final labels, and a cine that is computed for long."""
    (folder / "labels" / "final").mkdir(parents=True)
    for n in range(8):
        Image.fromarray(picture(n)).save(folder / f"image{n}.png")
        mask = make_phantom(np.random.default_rng(n), 96, 130, "benign").mask.astype(np.uint8)[None]
        write_mask(folder / "labels" / "final" / f"image{n}.nrrd", mask, read_image_file(folder / f"image{n}.png"))
    frames = np.random.default_rng(0).integers(0, 255, (3000, 48, 64), dtype=np.uint8)
    (folder / "cine.dcm").write_bytes(dicom_bytes(frames, 1, 0.1))
    return folder


def ended(server: Server, number: int = signal.SIGTERM) -> tuple[float, int]:
    """(seconds until the server has ended after a signal, its exit code)."""
    begin = time.monotonic()
    server.process.send_signal(number)
    code = server.process.wait(END_SECONDS + 30)
    return time.monotonic() - begin, code


def family(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it ends while it is asked
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def server(tmp_path, checkpoint):
    running = start(labelled_studies(tmp_path / "st udies"), checkpoint, tmp_path, prepare=False)
    yield running
    running.process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_training_ends_with_the_server(server, number):
    answer = requests.post(f"{server.url}/train/transunet", json={"max_epochs": 9999, "device": "cpu"})
    assert answer.status_code == 200, answer.text
    eventually(lambda: [c for c in family(server) if "train" in c.cmdline()], 30)
    time.sleep(1 if number == signal.SIGKILL else 12)  # killed before it is up, or in its epochs
    processes = family(server)
    seconds, code = ended(server, number)
    assert seconds < END_SECONDS and (number == signal.SIGKILL or code in (0, 143)), server.log[-3000:]
    eventually(lambda: not alive(processes), 2)


def test_sigterm_ends_a_server_that_computes(server):
    """What takes minutes is given up; labels that were acknowledged before are in the journal."""
    url, studies = server.url, server.studies
    stuck = [
        threading.Thread(
            target=lambda: pytest.raises(
                requests.RequestException,
                requests.post,
                f"{url}/infer/ultrarefiner?image=cine",
                data={"params": "{}"},
                timeout=300,
            ),
            daemon=True,
        )
        for _ in range(6)
    ]
    for thread in stuck:
        thread.start()
    time.sleep(2)
    count = 12
    label = studies / "labels" / "final" / "image0.nrrd"
    content = label.read_bytes()
    for _ in range(count):
        answer = requests.put(f"{url}/datastore/label?image=image0", files={"label": ("l.nrrd", content)})
        assert answer.status_code == 200, answer.text
    seconds, code = ended(server)
    assert seconds < END_SECONDS and code in (0, 143), server.log[-3000:]
    with sqlite3.connect(WorkFolder.of(studies).journal) as journal:
        [(kept,)] = journal.execute("select count(*) from corrections").fetchall()
    assert kept == count
    for thread in stuck:
        thread.join(10)


def test_an_idle_server_ends_at_once_and_a_request_in_work_is_answered(server):
    answers = []
    small = encoded(Image.fromarray(picture(3)), "PNG")

    def ask() -> None:
        for _ in range(3):
            answers.append(
                requests.post(f"{server.url}/infer/ultrarefiner", files={"file": ("a.png", small)}, timeout=60)
            )

    asking = threading.Thread(target=ask)
    ask()
    asking.start()
    asking.join()
    assert {a.status_code for a in answers} == {200}
    seconds, code = ended(server)
    assert seconds < 4 and code in (0, 143), server.log[-2000:]
    assert "Traceback" not in server.log.split("Shutting down")[-1]
    assert not os.path.exists(f"/proc/{server.process.pid}/exe")
    assert [p.name for p in (server.studies / ".ultrarefiner").glob("journal*")] == ["journal.sqlite"]


def test_a_batch_that_is_stopped_leaves_nothing_that_runs(server):
    """DELETE ends the batch that computes the long cine; there is one at a time, and the next one runs to its end."""
    url = f"{server.url}/batch/infer"
    first = requests.post(f"{url}/ultrarefiner", json={"images": ["cine"]}).json()
    eventually(lambda: [c for c in family(server) if "batch_infer" in c.cmdline()], 30)
    assert requests.post(f"{url}/ultrarefiner", json={"images": ["cine"]}).status_code == 429
    time.sleep(12)  # in its frames, on a machine that has time
    processes = family(server)
    stopped = requests.delete(url)
    assert stopped.status_code == 200 and stopped.json()["id"] == first["id"] and stopped.json()["result"]
    eventually(lambda: not alive(processes), 5)
    assert [task["status"] for task in requests.get(f"{url}?all=true").json()] == ["STOPPED"]
    assert not list((server.studies / "labels" / "final").glob("cine*"))
    requests.post(f"{url}/ultrarefiner", json={"images": ["image0"], "label_tag": "proposal"})
    eventually(lambda: requests.get(url).json()["status"] == "DONE", 90)
    assert list((server.studies / "labels" / "proposal").glob("image0*"))
