"""The server learns by itself: labels are saved, a training begins, the gate decides, and a kill in between loses nothing."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from app_server import Server, eventually, picture, start
from PIL import Image
from typer.testing import CliRunner

from ultrarefiner_monai.cli.command import app
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_mask
from ultrarefiner_monai.learning.registry import CONFIGURED, Registry
from ultrarefiner_monai.learning.schedule import Learnt, Memory
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import WorkFolder

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

LABELS = 7
CLICK = {"foreground": [[60, 40, 0]], "background": [[5, 5, 0]], "result_extension": ".nrrd"}


def learning(**changes: object) -> dict[str, object]:
    """Options of a server that learns slowly from the seventh label on, at once, with priority."""
    options = {"slow": "true", "labels": LABELS, "quiet_minutes": 0, "margin": 1, "nice": 0, **changes}
    return {f"learning.{name}": value for name, value in options.items()}


def client_of(server: Server, folder: Path):
    from monailabel.client import MONAILabelClient

    return MONAILabelClient(server.url, tmpdir=str(folder), client_id="test-client")


def save(client, studies: Path, folder: Path, n: int) -> None:
    mask = make_phantom(np.random.default_rng(n), 96, 130, "benign").mask
    path = folder / f"label{n}.nrrd"
    write_mask(path, mask.astype(np.uint8)[None], read_image_file(studies / f"image{n}.png"))
    client.save_label(f"image{n}", str(path))


def mask_of(client) -> tuple[bytes, str]:
    path, reply = client.infer("sam_refiner", "image9", dict(CLICK))
    return Path(path).read_bytes(), reply["version"]


def memory(work: WorkFolder) -> Learnt:
    return Memory.of(work.training.root / "learning.json").value


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learning") / "my studies"
    folder.mkdir()
    for n in range(10):
        Image.fromarray(picture(n)).save(folder / f"image{n}.png")
    return folder


def test_refused_killed_gone_on_with_promoted_rolled_back_and_damaged(
    studies: Path, checkpoint: Path, tmp_path: Path
) -> None:
    work = WorkFolder.of(studies)
    registry = Registry(work)

    # The gate refuses: too few labels validate. Nothing of what is served has changed.
    server = start(studies, checkpoint, tmp_path, **learning(validation_labels=1000))
    try:
        client = client_of(server, tmp_path)
        before = mask_of(client)
        for n in range(LABELS - 1):
            save(client, studies, tmp_path, n)
        time.sleep(5)
        assert memory(work) == Learnt() and not client.info()["train_stats"]["sam_refiner"], "one is missing"
        save(client, studies, tmp_path, LABELS - 1)
        eventually(lambda: memory(work).round, 30)
        eventually(lambda: memory(work).ended, 400)
        known = memory(work)
        assert known.round is None and known.error == "" and known.learnt == known.tried == LABELS, server.log[-3000:]
        stats = client.info()["train_stats"]["sam_refiner"]
        assert stats["status"] == "finished" and stats["promoted"] is False
        assert "1000 are needed" in stats["gate"]["reasons"][0] and registry.pointer().name == CONFIGURED
        assert [c.name for c in registry.candidates()] == ["sam_refiner-1"] and mask_of(client) == before

        # Killed in the next round.
        save(client, studies, tmp_path, 7)
    finally:
        server.stop()
    server = start(studies, checkpoint, tmp_path, **learning(validation_labels=1, labels=1))
    try:
        eventually(lambda: memory(work).round, 60)
        eventually(lambda: (work.training.runs / "sam_refiner-2" / "state.json").is_file(), 120)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
    finally:
        server.stop()
    begun = memory(work)
    assert begun.round is not None and begun.round.begins == 1

    # Gone on with after the next start: it passes, and serves from the next request on.
    server = start(studies, checkpoint, tmp_path, **learning(validation_labels=1, labels=1))
    try:
        client = client_of(server, tmp_path)
        eventually(lambda: memory(work).round is None, 400)
        known = memory(work)
        assert known.error == "" and known.learnt == begun.tried, (known, server.log[-3000:])
        pointer = registry.pointer()
        assert (pointer.by, pointer.before) == ("slow", (CONFIGURED,)), server.log[-3000:]
        assert client.info()["train_stats"]["sam_refiner"]["promoted"] is True
        # It is loaded behind the requests: an image that is asked for meanwhile keeps the model before.
        eventually(lambda: client.info()["serving"]["name"] == pointer.name, 60)
        after = mask_of(client)
        assert after[1] == registry.get(pointer.name).version != before[1]
        journal = Journal(work.journal)
        assert [(p.name, p.by) for p in journal.promotions()] == [(pointer.name, "slow")]
        journal.close()

        run, place = CliRunner(), ["--studies", str(studies)]
        assert run.invoke(app, ["models", "rollback", *place]).exit_code == 0
        assert mask_of(client) == before, "bit for bit what it was"
        assert run.invoke(app, ["models", "promote", pointer.name, *place]).exit_code == 0
        assert mask_of(client) == after

        # Its file is damaged: the model in memory goes on; the training says why it cannot begin, and what to do.
        path = registry.get(pointer.name).path
        path.write_bytes(path.read_bytes()[:1000])
        save(client, studies, tmp_path, 8)
        eventually(lambda: memory(work).error, 200)
        assert "is damaged" in memory(work).error and "models rollback" in memory(work).error
        assert mask_of(client) == after
    finally:
        server.stop()
