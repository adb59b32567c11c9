"""A model over SAM 3's vision tower that knows views, through the running server: from the request, and from DICOM's View Code."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import requests
import torch
from app_server import picture, save_tiny_system, start
from PIL import Image
from pydicom.dataset import Dataset
from test_points_served import ask
from tiny_sam3 import SMALL

from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.models.checkpoints import load_system, save_system
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.models.views import ViewEmbedding
from ultrarefiner_monai.pipeline.outline import predict
from ultrarefiner_monai.pipeline.predictor import Predictor

pytestmark = [pytest.mark.server, pytest.mark.slow]
VIEWS = ("radial", "anti-radial")
CLICK = {"foreground": [[60, 45, 0]], "background": [[20, 20, 0]]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    studies = folder / "studies"
    studies.mkdir()
    Image.fromarray(picture(0)).save(studies / "plain.png")
    coded = Dataset()
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = "1", "99TEST", "Antiradial"
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(picture(0)[None], 1, 0.08)))
    dataset.ViewCodeSequence = [coded]
    dataset.save_as(studies / "coded.dcm")
    tiny = load_system(save_tiny_system(folder / "tiny.safetensors"))
    views = ViewEmbedding(VIEWS)
    torch.manual_seed(4)
    with torch.no_grad():
        views.table.normal_(std=4.0)  # type: ignore[union-attr]
        sam = build_sam(SMALL)
    config = replace(tiny.config, sam=SMALL, views=VIEWS)
    weights = save_system(folder / "sam3.safetensors", config, tiny.coarse, sam, half=False, views=views)
    running = start(studies, weights, folder, **{"learning.nice": 0})
    yield running
    running.stop()
    assert "Traceback" not in running.log


def test_the_server_says_what_it_knows(server) -> None:
    info = requests.get(f"{server.url}/info/", timeout=60).json()
    assert info["models"]["sam_refiner"]["views"] == list(VIEWS) and "views" not in info["models"]["transunet"]
    assert "SAM 3's vision tower" in str(info)


def test_each_view_has_its_answer(server) -> None:
    predictor = Predictor(load_system(server.checkpoint))
    image_file = read_image_file(server.studies / "plain.png")
    from ultrarefiner_monai.core.types import Clicks

    clicks = Clicks(((60.0, 45.0),), ((20.0, 20.0),))
    masks = {}
    for view in ("", "Radial", "arad"):
        params = {"view": view} if view else {}
        reply, masks[view] = ask(server.url, "sam_refiner", "plain", **CLICK, **params)
        own = predictor.seen_as(reply["view"])
        assert np.array_equal(masks[view], predict(own, image_file.frame(0), clicks=clicks).mask)
    assert not np.array_equal(masks["Radial"], masks[""]), "remembered answers are those of their view"
    coded, mask = ask(server.url, "sam_refiner", "coded", **CLICK)
    assert coded["view"] == "anti-radial"
    asked, _ = ask(server.url, "sam_refiner", "coded", view="radial", **CLICK)
    assert asked["view"] == "radial", "the user's word stands"


def test_a_view_that_it_does_not_know_is_refused(server) -> None:
    for view in ("oblique", "( )"):
        url, params = f"{server.url}/infer/ultrarefiner?image=plain", json.dumps({"view": view})
        answer = requests.post(url, data={"params": params}, timeout=60)
        assert answer.status_code == 400 and f"view must be one of radial, anti-radial, got '{view}'" in answer.text
