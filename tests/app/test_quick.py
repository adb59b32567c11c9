"""Quick learning on the real server: a save makes a model that serves the next image; the image in hand keeps its answer."""

from __future__ import annotations

import io
import json
import signal
import time
from contextlib import suppress
from pathlib import Path

import nrrd
import numpy as np
import psutil
import pytest
import requests
from app_server import ROOT, eventually, picture, start
from PIL import Image
from requests_toolbelt import MultipartDecoder

from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_mask
from ultrarefiner_monai.learning.quick.overlay import write_quick
from ultrarefiner_monai.learning.registry import Registry
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.studies.training_folder import read_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

SHIPPED = ROOT / "apps" / "ultrarefiner" / "model" / "compact.safetensors"
POINT = {"foreground": [[60, 40]]}


def write_pictures(studies: Path, count: int) -> Path:
    studies.mkdir()
    for n in range(count):
        Image.fromarray(picture(n)).save(studies / f"image{n}.png")
    return studies


def infer(server, image: str, client: str = "", **params) -> tuple[str, np.ndarray]:
    """(version, mask) of a click on an image."""
    data = {"params": json.dumps({"result_extension": ".nrrd", "client_id": client, **POINT, **params})}
    answer = requests.post(f"{server.url}/infer/sam_refiner?image={image}", data=data)
    assert answer.ok, answer.text
    parts = {part.headers[b"content-type"]: part for part in MultipartDecoder.from_response(answer).parts}
    reply = next(json.loads(part.text) for kind, part in parts.items() if b"json" in kind)
    stream = io.BytesIO(next(part.content for kind, part in parts.items() if b"json" not in kind))
    return reply["version"], nrrd.read_data(nrrd.read_header(stream), stream)


def serving(server) -> dict:
    return requests.get(f"{server.url}/info/").json()["serving"]


def other_decoder(work: WorkFolder, checkpoint: Path, scale: float) -> str:
    """A quick model of the checkpoint that answers otherwise: its mask decoder's last layers are scaled."""
    system, registry = load_system(checkpoint), Registry(work)
    state = system.refiner.state_dict()
    tensors = {k: v * scale for k, v in state.items() if k.startswith("sam.mask_decoder.output_hypernetworks")}
    name = registry.free_quick()
    write_quick(registry.quick_path(name), tensors, system.version, {})
    registry.set_quick(name, system.version)
    return name


def test_the_image_in_hand_keeps_its_model_until_the_next_one_or_a_person_decides(tmp_path, checkpoint):
    studies = write_pictures(tmp_path / "studies", 3)
    server = start(studies, checkpoint, tmp_path, **{"learning.quick": "true"})
    try:
        work = WorkFolder.existing(studies)
        assert serving(server)["quick"] == ""
        base, mask = infer(server, "image0", "anna")
        assert infer(server, "image0")[0] == base  # a client that does not say who it is
        name = other_decoder(work, checkpoint, -3.0)
        found = eventually(lambda: (s := serving(server))["quick"] == name and s)
        quick = found["version"]
        assert quick.startswith(f"{base}+") and not found["problem"]
        again, same = infer(server, "image0", "anna")
        assert again == base and np.array_equal(same, mask)
        assert infer(server, "image0")[0] == base
        assert infer(server, "image0", "berta")[0] == quick
        assert infer(server, "image1", "anna")[0] == quick
        assert infer(server, "image0", "anna")[0] == base  # another user under the same name
        version, changed = infer(server, "image0", "carla")
        assert version == quick and not np.array_equal(changed, mask)
        # What a person decides counts for all, at once.
        Registry(work).rollback()
        back, undone = infer(server, "image0", "anna")
        assert back == base and np.array_equal(undone, mask) and infer(server, "image0", "berta")[0] == base
    finally:
        server.stop()


def save(server, n: int, folder: Path) -> None:
    path = folder / f"label{n}.nrrd"
    mask = make_phantom(np.random.default_rng(n), 96, 130, "benign").mask
    write_mask(path, mask.astype(np.uint8)[None], read_image_file(server.studies / f"image{n}.png"))
    with path.open("rb") as file:
        answer = requests.put(f"{server.url}/datastore/label?image=image{n}&tag=final", files={"label": file})
    assert answer.ok, answer.text


def workers(server) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.process.pid).children(True):
        with suppress(psutil.NoSuchProcess):
            if any("quick.worker" in part for part in child.cmdline()):
                found.append(child)
    return found


@pytest.mark.slow
def test_saves_are_learnt_from_and_a_killed_worker_loses_nothing(tmp_path):
    studies = write_pictures(tmp_path / "studies", 9)
    server = start(studies, SHIPPED, tmp_path, **{"learning.quick": "true", "learning.quick_seconds": 20})
    work = WorkFolder.existing(studies)
    last = work.training.quick / "last.json"
    try:
        infer(server, "image0", "anna")
        save(server, 0, tmp_path)
        eventually(lambda: read_json(last), 300)
        assert not read_json(last)["served"] and "too few labels" in read_json(last)["why"]
        assert read_json(last)["at"]  # for the status page, after a restart too
        (worker,) = workers(server)  # it waits for the next save
        for n in range(1, 7):
            save(server, n, tmp_path)
        eventually(lambda: read_json(last).get("samples", 0) >= 4, 600)
        worker.send_signal(signal.SIGKILL)
        before = read_json(last)
        save(server, 7, tmp_path)
        eventually(lambda: (r := read_json(last)) != before and r["samples"] >= 5, 600)
        found = read_json(last)
        assert {f"image{n}" for n in range(8)} == set(read_json(work.training.root / "split.json")["images"])
        pointer = Registry(work).pointer()
        if found["served"]:
            assert pointer.quick and eventually(lambda: serving(server)["quick"] == pointer.quick)
        assert found["left_out"]["lesions"] >= 2 and found["seconds"]["total"] < 90
        (worker,) = workers(server)
    finally:
        server.process.kill()
    end = time.monotonic() + 20
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.2)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
