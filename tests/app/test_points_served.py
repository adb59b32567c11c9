"""Points that propose themselves, through the running server: a task of their own, and where sam_refiner begins."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import requests
import torch
from app_server import eventually, picture, save_tiny_system, start
from PIL import Image
from requests_toolbelt import MultipartDecoder

from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_mask
from ultrarefiner_monai.learning.registry import Registry
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import WorkFolder

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    studies = folder / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    for n in range(4):
        Image.fromarray(picture(n, 96, 130)).save(studies / f"image{n}.png")
        mask = np.zeros((1, 96, 130), np.uint8)
        mask[0, 30:60, 40 + n : 80] = 1
        write_mask(studies / "labels" / "final" / f"image{n}.nrrd", mask, read_image_file(studies / f"image{n}.png"))
    write_cine(studies / "cine.nii.gz")
    weights = save_tiny_system(folder / "points.safetensors", points=True)
    options = {"ppn_refiner": "true", "start_with_points": "true", "weak_encoder": "true"}
    running = start(studies, weights, folder, **options, **{"learning.nice": 0, "learning.lora.rank": 2})
    yield running
    running.stop()
    assert "Traceback" not in running.log


def write_cine(path: Path, frames: int = 5) -> None:
    stack = np.stack([picture(20 + k, 64, 90) for k in range(frames)])
    nibabel.save(nibabel.Nifti1Image(stack.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1])), path)


def ask(url: str, model: str, image: str = "image0", **params: Any) -> tuple[dict[str, Any], np.ndarray]:
    answer = requests.post(f"{url}/infer/{model}?image={image}", data={"params": json.dumps(params)}, timeout=60)
    assert answer.status_code == 200, answer.text
    parts = MultipartDecoder.from_response(answer).parts
    reply = next(json.loads(p.text) for p in parts if b"json" in p.headers.get(b"content-type", b""))
    file = io.BytesIO(next(p.content for p in parts if b"json" not in p.headers.get(b"content-type", b"")))
    return reply, np.squeeze(nrrd.read_data(nrrd.read_header(file), file)).T


def test_the_task_is_offered_and_answers_from_its_points_alone(server) -> None:
    info = requests.get(f"{server.url}/info/", timeout=60).json()["models"]
    assert list(info) == ["ultrarefiner", "transunet", "sam_refiner", "ppn_refiner"]
    assert info["ppn_refiner"]["type"] == "segmentation" and info["ppn_refiner"]["points"] == "trained"
    reply, mask = ask(server.url, "ppn_refiner")
    predictor = Predictor(load_system(server.checkpoint))
    frame = read_image_file(server.studies / "image0.png").frame(0)
    points, _ = predictor.points(frame)
    assert reply["points"] == {
        "foreground": [[x, y, 0.0] for x, y in points.foreground_xy],
        "background": [[x, y, 0.0] for x, y in points.background_xy],
    }
    assert np.array_equal(mask, predictor.interact(frame, points, blind=True).mask) and mask.any()


def test_a_view_that_the_model_cannot_know_changes_nothing_and_is_said(server) -> None:
    plain, mask = ask(server.url, "ppn_refiner")
    reply, same = ask(server.url, "ppn_refiner", view="radial")
    assert np.array_equal(mask, same) and "view" not in reply
    assert [w for w in reply["warnings"] if "knows no views: 'radial' changes nothing" in w] and not plain["warnings"]


def test_points_that_come_back_as_clicks_give_the_same(server) -> None:
    """A client that shows the points, and moves or removes one, goes on from what it sees."""
    reply, mask = ask(server.url, "sam_refiner", client_id="a")
    sent = reply["points"]
    again, same = ask(server.url, "sam_refiner", client_id="a", **sent)
    assert "points" not in again and np.array_equal(mask, same)
    fewer, _ = ask(server.url, "sam_refiner", client_id="a", foreground=sent["foreground"][:1])
    assert "points" not in fewer
    journal = Journal(server.studies / ".ultrarefiner" / "journal.sqlite")
    try:
        own = eventually(
            lambda: len(found := [p for p in journal.proposals("image0") if p.client == "a"]) == 3 and found
        )
    finally:
        journal.close()
    assert [p.is_automatic for p in own] == [True, False, False], "what nobody clicked is automatic"
    assert own[0].reply["points"] == sent


def test_a_cine_has_points_on_each_frame_and_its_own_leading_frame(server) -> None:
    reply, mask = ask(server.url, "sam_refiner", "cine", result_extension=".nrrd")
    frames = sorted({int(k) for _, _, k in reply["points"]["foreground"]})
    assert frames == list(range(5)), "each frame has its own"
    sizes = {row["frame"]: row["area"] for row in reply["frames"]}
    assert reply["frame"] == max(sizes, key=lambda k: sizes[k]), "the largest lesion's, as without points"
    again, same = ask(server.url, "sam_refiner", "cine", result_extension=".nrrd", **reply["points"])
    assert np.array_equal(mask, same) and "points" not in again
    # A click on one frame leaves the others as they are.
    one = [p for p in reply["points"]["foreground"] if p[2] == 2][:1]
    clicked, other = ask(server.url, "sam_refiner", "cine", result_extension=".nrrd", foreground=one)
    assert clicked["frame"] == 2
    assert {int(k) for _, _, k in clicked["points"]["foreground"]} == {0, 1, 3, 4}
    assert all(np.array_equal(mask[k], other[k]) for k in (0, 1, 3, 4))


def test_points_are_remembered(server) -> None:
    first, _ = ask(server.url, "ppn_refiner", "image3")
    again, _ = ask(server.url, "ppn_refiner", "image3")
    assert first["timings"]["decode"] > again["timings"].get("decode", 0)
    assert again["timings"]["cached"] == 1 and again["timings"].get("encode", 0) == 0
    assert first["points"] == again["points"]


def test_other_tasks_are_what_they_were(server) -> None:
    frame = read_image_file(server.studies / "image1.png").frame(0)
    predictor = Predictor(load_system(server.checkpoint))
    for model, expected in (("ultrarefiner", predictor.propose(frame)), ("transunet", predictor.coarse(frame))):
        reply, mask = ask(server.url, model, "image1")
        assert "points" not in reply and np.array_equal(mask, expected.mask)


def trained(server, task: str, **options: Any):
    """(the new candidate of a training, the checkpoint that is served, the candidate's)."""
    registry = Registry(WorkFolder.of(server.studies))
    before = {c.name for c in registry.candidates()}
    params = {"max_epochs": 1, "train_batch_size": 2, "device": "cpu", **options}
    url = f"{server.url}/train/{task}?run_sync=false"
    # 429: the one before has its candidate, and has not quite ended.
    answer = eventually(lambda: (r := requests.post(url, json=params, timeout=60)).status_code != 429 and r, 60)
    assert answer.status_code == 200, answer.text
    new = eventually(lambda: [c for c in registry.candidates() if c.name not in before], 240)
    return new[0], read_checkpoint(server.checkpoint), read_checkpoint(new[0].path)


def test_the_network_learns_from_the_final_labels_and_nothing_else_changes(server) -> None:
    trainers = requests.get(f"{server.url}/info/", timeout=60).json()["trainers"]
    assert "ppn" in trainers and "weak_encoder" in trainers
    _, before, after = trained(server, "ppn")
    assert after.config.ppn == before.config.ppn
    changed = {k for k, v in before.tensors.items() if not (v.float() == after.tensors[k].float()).all()}
    assert changed and all(key.startswith("ppn.") for key in changed)


def test_the_encoder_learns_from_boxes_around_the_labels(server) -> None:
    """The network that proposes points read the encoder as it was: it is left out."""
    candidate, before, after = trained(server, "weak_encoder", learning_rate=1e-3)
    changed = {k for k, v in after.tensors.items() if not torch.equal(v.float(), before.tensors[k].float())}
    assert changed and all(k.startswith("sam.image_encoder.") for k in changed)
    assert not [k for k in after.tensors if k.startswith("ppn.")] and after.config.ppn is None
    table = WorkFolder.of(server.studies).training.boxes.read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("image,big_x1") and len(table) == 5
    assert candidate.facts["task"] == "weak_encoder"


def test_adapters_learn_with_the_refiner_and_are_merged(server) -> None:
    _, before, after = trained(server, "sam_refiner", learning_rate=1e-2)
    changed = {
        k
        for k, v in before.tensors.items()
        if k in after.tensors and not torch.equal(v.float(), after.tensors[k].float())
    }
    encoder = {k for k in changed if k.startswith("sam.image_encoder.")}
    assert encoder and all(".attn.qkv.weight" in k or ".attn.proj.weight" in k or ".mlp.lin" in k for k in encoder)
    assert changed - encoder and all(
        k.startswith(("sam.mask_decoder.", "sam.prompt_encoder.")) for k in changed - encoder
    )
    assert after.meta["lora"]["rank"] == 2


def test_a_model_without_such_a_network(server, tmp_path: Path) -> None:
    """Promoted over it: the task says what is lacking, and sam_refiner begins without points."""
    registry = Registry(WorkFolder.of(server.studies))
    registry.add("plain", save_tiny_system(tmp_path / "plain.safetensors"))
    registry.promote("plain")
    try:
        answer = requests.post(f"{server.url}/infer/ppn_refiner?image=image0", timeout=60)
        assert answer.status_code == 400 and "proposes no points" in answer.text
        reply, _ = ask(server.url, "sam_refiner", client_id="b")
        assert "points" not in reply
        models = requests.get(f"{server.url}/info/", timeout=60).json()["models"]
        assert models["ppn_refiner"]["points"] == "none"
    finally:
        registry.rollback()
    assert ask(server.url, "ppn_refiner")[0]["points"]
