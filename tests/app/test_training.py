"""Trainings that a client starts on the running server: refused, followed, stopped, gone on with, offered, served."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

import nrrd
import numpy as np
import psutil
import pytest
import requests
import torch
from app_server import picture, start
from PIL import Image
from typer.testing import CliRunner

from ultrarefiner_monai.cli.command import app
from ultrarefiner_monai.core.types import NOTICE, Clicks, InputError
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_mask
from ultrarefiner_monai.learning.registry import CONFIGURED, Registry
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.training_folder import read_json
from ultrarefiner_monai.studies.work_folder import WorkFolder, forget

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1200)]

OPTIONS = {"train_batch_size": 4, "early_stop_patience": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def training_server(tmp_path_factory, checkpoint):
    """Ten phantoms in the studies; three of them have a final label with a lesion."""
    folder = tmp_path_factory.mktemp("training")
    studies = folder / "my studies"
    studies.mkdir()
    for n in range(10):
        Image.fromarray(picture(n)).save(studies / f"image{n}.png")
    (studies / "labels" / "final").mkdir(parents=True)
    for n in range(3):
        write_label(studies / "labels" / "final" / f"image{n}.nrrd", studies, n)
    # At full priority, and only when somebody asks: what the tests wait for.
    running = start(studies, checkpoint, folder, **{"learning.nice": 0})
    yield running
    running.stop()


@pytest.fixture
def trainer(training_server, tmp_path):
    from monailabel.client import MONAILabelClient

    return MONAILabelClient(training_server.url, tmpdir=str(tmp_path), client_id="test-client")


def write_label(path: Path, studies: Path, n: int) -> Path:
    mask = make_phantom(np.random.default_rng(n), 96, 130, "benign").mask
    write_mask(path, mask.astype(np.uint8)[None], read_image_file(studies / f"image{n}.png"))
    return path


def post(server, model="transunet", status=400, query="", **params) -> str:
    answer = requests.post(f"{server.url}/train/{model}{query}", json={**OPTIONS, **params})
    assert answer.status_code == status, answer.text
    return str(answer.json().get("detail", ""))


def wait(condition, seconds: float = 400.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)
    return value


def children(server) -> list[psutil.Process]:
    """The server's trainings that run: none that ended, nor one that ends while it is asked."""
    found = []
    for child in psutil.Process(server.process.pid).children(True):
        with suppress(psutil.NoSuchProcess):
            if "train" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def test_info_offers_the_trainings_under_the_names_of_the_tasks(trainer):
    info = trainer.info()
    assert list(info["trainers"]) == ["transunet", "sam_refiner", "ultrarefiner"]
    for found in info["trainers"].values():
        assert NOTICE in found["description"] and {"max_epochs", "learning_rate", "device"} <= found["config"].keys()
    assert info["train_stats"] == {name: {} for name in info["trainers"]}


def test_what_cannot_be_trained_is_refused_before_anything_starts(training_server, trainer, tmp_path):
    server, studies = training_server, training_server.studies
    assert "at least 4 are needed" in post(server)
    assert "known: transunet" in post(server, "nope", 404)
    assert "no option cleverness" in post(server, cleverness=3)
    for name, value in (("max_epochs", 0), ("max_epochs", 2.5), ("learning_rate", "fast"), ("device", "abacus")):
        assert name in post(server, **{name: value})
    assert "run_sync" in post(server, query="?run_sync=true")
    assert "at least 4" in requests.post(f"{server.url}/train/", json={}).json()["detail"]
    values = np.zeros((130, 96, 1), np.uint8)
    values[20:40, 20:40], values[60:80, 60:80] = 1, 2
    nrrd.write(str(tmp_path / "several.nrrd"), values)
    with (tmp_path / "several.nrrd").open("rb") as file:
        refused = requests.put(f"{server.url}/datastore/label?image=image3", files={"label": file})
    assert refused.status_code == 400 and "its label has several values (1, 2)" in refused.json()["detail"]
    trainer.save_label("image3", str(write_label(tmp_path / "other.nrrd", studies, 3)))
    stored = studies / "labels" / "final" / "image3.nrrd"
    content = stored.read_bytes()
    nrrd.write(str(stored), values)  # put there by hand, or kept from before
    assert "image3: its label has several values (1, 2)" in post(server)
    stored.write_bytes(content)
    nrrd.write(str(tmp_path / "size.nrrd"), np.ones((160, 140, 1), np.uint8))
    shutil.copyfile(tmp_path / "size.nrrd", studies / "labels" / "final" / "image4.nrrd")  # saving it is refused
    wait(lambda: "final" in trainer.datastore()["objects"]["image4"]["labels"], 30)
    assert "image4" in post(server) and not children(server)
    for n in range(4, 10):
        trainer.save_label(f"image{n}", str(write_label(tmp_path / f"l{n}.nrrd", studies, n)))


def test_start_follow_stop_go_on_and_serve(training_server, trainer, tmp_path):
    server, studies = training_server, training_server.studies
    work = WorkFolder.of(studies)
    _, first = trainer.infer("ultrarefiner", "image0", {"result_extension": ".nrrd"})
    trainer.train_start("transunet", {**OPTIONS, "max_epochs": 100000})
    wait(lambda: trainer.info()["train_stats"]["transunet"].get("epoch", 0) >= 2)
    stats = trainer.info()["train_stats"]
    assert next(iter(stats)) == "transunet" and stats["transunet"]["total_epochs"] == 100000
    assert 0 <= stats["transunet"]["best_metric"] <= 1 and stats["transunet"]["status"] == "running"
    assert trainer.train_status()["status"] == "RUNNING"
    assert "a training is running" in post(server, status=429)
    with pytest.raises(InputError, match="stop it first"):
        forget(studies, "image0")
    trainer.infer("ultrarefiner", "image1", {"result_extension": ".nrrd"})

    trainer.train_stop()
    wait(lambda: trainer.info()["train_stats"]["transunet"]["status"] == "stopped", 60)
    stopped = trainer.info()["train_stats"]["transunet"]
    wait(lambda: not children(server), 20)  # its process may end a moment after it says so
    assert stopped["epoch"] >= 2
    assert (work.training.runs / stopped["name"] / "last.pt").is_file() and not Registry(work).candidates()

    trainer.train_start("transunet", {**OPTIONS, "max_epochs": stopped["epoch"] + 1})
    wait(lambda: trainer.train_status()["status"] in ("DONE", "ERROR"))
    assert trainer.train_status()["status"] == "DONE", server.log[-3000:]
    done = trainer.info()["train_stats"]["transunet"]
    assert (done["name"], done["epoch"]) == (stopped["name"], stopped["epoch"] + 1)
    assert done["status"] == "finished" and done["total_time"] and done["figures"]["lesions"] >= 1
    left = {p.name for p in (work.training.runs / done["name"]).iterdir()}
    assert left == {"history.csv", "split.json", "state.json"}

    # Nothing is published: replies are as before, until somebody says so.
    _, reply = trainer.infer("ultrarefiner", "image0", {"result_extension": ".nrrd"})
    assert reply["version"] == first["version"]
    candidate = Registry(work).get(done["name"])
    run, place = CliRunner(), ["--studies", str(studies)]
    assert run.invoke(app, ["models", "promote", candidate.name, *place]).exit_code == 0
    path, reply = trainer.infer("ultrarefiner", "image0", {"result_extension": ".nrrd"})
    assert reply["version"] == candidate.version and reply["refiner"] == "trained"
    image_file = read_image_file(studies / "image0.png")
    mine = Predictor(load_system(candidate.path)).propose(image_file.frame(0)).mask
    np.testing.assert_array_equal(read_mask(path, image_file, confirmed=True)[0], mine)
    info = trainer.info()
    assert info["models"]["transunet"]["version"] == candidate.version and info["serving"]["name"] == candidate.name
    assert run.invoke(app, ["models", "rollback", *place]).exit_code == 0
    _, reply = trainer.infer("ultrarefiner", "image0", {"result_extension": ".nrrd"})
    assert reply["version"] == first["version"]

    # A file that was damaged after it was chosen: the model before goes on, and the server says why.
    candidate.path.write_bytes(candidate.path.read_bytes()[:1000])
    assert isinstance(run.invoke(app, ["models", "promote", candidate.name, *place]).exception, InputError)
    (work.models / "current.json").write_text(json.dumps({"name": candidate.name, "before": ["configured"]}))
    _, reply = trainer.infer("ultrarefiner", "image0", {"result_extension": ".nrrd"})
    assert reply["version"] == first["version"]
    assert candidate.name in trainer.info()["serving"]["problem"]

    assert forget(studies, "image5").copies == 1
    assert "image5" not in work.training.read_split()
    assert not [p for p in work.training.root.rglob("*") if p.is_file() and b"image5" in p.name.encode() + _text(p)]
    assert read_json(work.training.runs / done["name"] / "split.json")


@pytest.mark.parametrize("task", ["sam_refiner", "ultrarefiner"])
def test_the_refiner_and_both_together(training_server, trainer, task):
    """Phases 2 and 3 as the client starts them: followed, stopped, gone on with, offered by name, served when chosen."""
    server, studies = training_server, training_server.studies
    registry, work = Registry(WorkFolder.of(studies)), WorkFolder.of(studies)
    if registry.pointer().name != CONFIGURED:  # the test before leaves a damaged one
        registry.promote(CONFIGURED)
    click = {"foreground": [[60, 40, 0]], "background": [[5, 5, 0]], "result_extension": ".nrrd"}
    _, first = trainer.infer("sam_refiner", "image0", dict(click))

    options = {**OPTIONS, "learning_rate": 0.003}
    trainer.train_start(task, {**options, "max_epochs": 1000})
    time.sleep(1)
    assert next(iter(trainer.info()["train_stats"])) == task, "Slicer shows the first"
    wait(lambda: trainer.info()["train_stats"][task].get("epoch", 0) >= 1 or not trainer.train_status(True))
    stats = trainer.info()["train_stats"][task]
    assert stats["status"] == "running" and stats["total_epochs"] == 1000, server.log[-3000:]
    assert 0 <= stats["best_metric"] <= 1
    trainer.infer("sam_refiner", "image1", dict(click))  # answers go on meanwhile
    trainer.train_stop()
    wait(lambda: trainer.info()["train_stats"][task]["status"] == "stopped", 60)
    stopped = trainer.info()["train_stats"][task]
    wait(lambda: not children(server), 20)
    assert not [c for c in registry.candidates() if c.name.startswith(task)]

    trainer.train_start(task, {**options, "max_epochs": stopped["epoch"] + 1})
    wait(lambda: trainer.train_status()["status"] in ("DONE", "ERROR"))
    assert trainer.train_status()["status"] == "DONE", server.log[-3000:]
    done = trainer.info()["train_stats"][task]
    assert (done["name"], done["epoch"], done["status"]) == (stopped["name"], stopped["epoch"] + 1, "finished")
    assert done["figures"]["lesions"] >= 1 and done["start_figures"]["lesions"] == done["figures"]["lesions"]
    left = {p.name for p in (work.training.runs / done["name"]).iterdir()}
    assert left == {"history.csv", "split.json", "state.json"}
    _, reply = trainer.infer("sam_refiner", "image0", dict(click))
    assert reply["version"] == first["version"], "nothing is published on its own"

    run, place = CliRunner(), ["--studies", str(studies)]
    assert done["name"] in run.invoke(app, ["models", "list", *place]).output
    assert run.invoke(app, ["models", "promote", done["name"], *place]).exit_code == 0
    candidate = registry.get(done["name"])
    path, reply = trainer.infer("sam_refiner", "image0", dict(click))
    assert reply["version"] == candidate.version and reply["refiner"] == "trained"
    system, image_file = load_system(candidate.path), read_image_file(studies / "image0.png")
    clicks = Clicks(((60.0, 40.0),), ((5.0, 5.0),))
    np.testing.assert_array_equal(
        read_mask(path, image_file, confirmed=True)[0], Predictor(system).interact(image_file.frame(0), clicks).mask
    )
    start = load_system(server.checkpoint)
    assert changed(start.refiner, system.refiner), "the refiner learned nothing"
    assert changed(start.coarse, system.coarse) == (task == "ultrarefiner")
    assert run.invoke(app, ["models", "rollback", *place]).exit_code == 0
    _, reply = trainer.infer("sam_refiner", "image0", dict(click))
    assert reply["version"] == first["version"]


# --- what ends a training ---------------------------------------------------------------------------------------------


def test_a_stop_ends_what_waits_too(training_server, trainer):
    server = training_server
    trainer.train_start("transunet", {**OPTIONS, "max_epochs": 100000})
    post(server, "sam_refiner", 200, "?enqueue=true", max_epochs=1)
    asked = requests.post(f"{server.url}/train/", json=dict.fromkeys(trainer.info()["trainers"], OPTIONS)).json()
    assert all(found["result"] for found in asked.values())
    for _ in range(8):
        full = requests.post(f"{server.url}/train/transunet?enqueue=true", json=OPTIONS)
    assert full.status_code == 429 and "run or wait" in full.json()["detail"]
    wait(lambda: children(server))
    stopped = trainer.train_stop()
    assert stopped["status"] == "STOPPED" and stopped["result"]

    wait(lambda: not children(server), 20)  # the system takes a moment to end what is killed
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert not children(server)
        time.sleep(0.1)
    statuses = {task["status"] for task in requests.get(f"{server.url}/train/?all=true").json()}
    assert statuses <= {"STOPPED", "DONE", "ERROR"} and trainer.train_stop() is None
    post(server, status=200, max_epochs=100000)
    assert trainer.train_status()["status"] in ("SUBMITTED", "RUNNING"), "it can be started again"
    trainer.train_stop()


@pytest.mark.parametrize("begun", [False, True], ids=["before its first word", "in its epochs"])
def test_a_training_that_the_system_killed_says_why(training_server, trainer, begun):
    """SIGKILL is what the kernel does where memory is short."""
    server = training_server
    trainer.train_start("transunet", {**OPTIONS, "max_epochs": 100000, "resume": False})
    [child] = wait(lambda: children(server))
    if begun:
        wait(lambda: trainer.info()["train_stats"]["transunet"].get("epoch", 0) >= 1)
        epoch = trainer.info()["train_stats"]["transunet"]["epoch"]
    child.kill()
    wait(lambda: trainer.train_status()["status"] == "ERROR", 20)
    task, stats = trainer.train_status(), trainer.info()["train_stats"]["transunet"]
    for words in (task["error"], task["details"][-1], task["result"], stats["error"]):
        assert "memory" in words and "smaller train_batch_size (it was 4)" in words
    assert stats["status"] == "failed" and (not begun or stats["epoch"] >= epoch)
    if begun:
        trainer.train_start("transunet", {**OPTIONS, "max_epochs": stats["epoch"] + 1})
        wait(lambda: trainer.train_status()["status"] in ("DONE", "ERROR"))
        assert trainer.info()["train_stats"]["transunet"]["name"] == stats["name"], "it goes on"


def test_a_training_that_gets_no_memory_says_why(training_server, trainer):
    server = training_server
    trainer.train_start("transunet", {**OPTIONS, "max_epochs": 100000, "resume": False})
    [child] = wait(lambda: children(server))
    wait(lambda: trainer.info()["train_stats"]["transunet"].get("epoch", 0) >= 1)
    child.rlimit(psutil.RLIMIT_AS, (1 << 20, 1 << 20))
    wait(lambda: trainer.train_status()["status"] == "ERROR", 60)
    task, stats = trainer.train_status(), trainer.info()["train_stats"]["transunet"]
    for words in (task["error"], stats["error"]):
        assert "memory" in words and "smaller train_batch_size (it was 4)" in words, (words, server.log[-3000:])
    assert "/" not in task["error"]


def test_labels_saved_while_a_training_begins(training_server, trainer, tmp_path):
    """Again and again, in one format and then in another, as *Submit Label* does beside "auto-update"."""
    server, studies = training_server, training_server.studies
    read_image_file(studies / "image6.png")
    files = [write_label(tmp_path / f"again{suffix}", studies, 6) for suffix in (".nrrd", ".nii.gz")]
    trainer.train_start("transunet", {**OPTIONS, "max_epochs": 1, "resume": False})
    for k in itertools.count():
        if trainer.train_status()["status"] not in ("SUBMITTED", "RUNNING"):
            break
        trainer.save_label("image6", str(files[k % 2]))
    assert k > 5 and trainer.train_status()["status"] == "DONE", server.log[-3000:]


def changed(one, other) -> bool:
    """Whether any weight of two networks differs."""
    other = other.state_dict()
    return any(not torch.equal(value, other[name]) for name, value in one.state_dict().items() if name in other)


def _text(path: Path) -> bytes:
    return path.read_bytes() if path.suffix in (".csv", ".json") else b""
