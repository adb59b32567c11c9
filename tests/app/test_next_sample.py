"""Next samples of a real server: all strategies for all clients, two users, an empty pool, scores that come by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from app_server import Server, eventually, picture, start
from PIL import Image
from slicer_module import Slicer

from ultrarefiner_monai.learning.sampling.strategies import STRATEGIES
from ultrarefiner_monai.studies.score_store import ScoreStore
from ultrarefiner_monai.studies.work_folder import WorkFolder, forget

NAMES = [f"image{n}" for n in range(6)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pool")
    (folder / "studies").mkdir()
    for n, name in enumerate(NAMES):
        Image.fromarray(picture(n)).save(folder / "studies" / f"{name}.png")
    (folder / "studies" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    running = start(folder / "studies", checkpoint, folder)
    yield running
    running.stop()


def ask(site: Server, strategy: str = "recommended", client: str = "ann") -> dict[str, Any]:
    answer = requests.post(f"{site.url}/activelearning/{strategy}", json={"client_id": client}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def save(site: Server, image: str, tmp_path: Path) -> None:
    mask = Image.new("L", (130, 96))
    mask.paste(255, (30, 30, 60, 50))
    mask.save(tmp_path / "label.png")
    with (tmp_path / "label.png").open("rb") as file:
        files = {"label": ("label.png", file)}
        answer = requests.put(f"{site.url}/datastore/label?image={image}", files=files, timeout=60)
    assert answer.status_code == 200, answer.text


def scores(site: Server) -> dict[str, int]:
    return requests.get(f"{site.url}/info/", timeout=60).json()["serving"]["scores"]


# In the order of the file: the pool becomes smaller.


def test_slicer_finds_the_strategies_the_recommended_one_first(site: Server, tmp_path: Path) -> None:
    slicer = Slicer(site.url, tmp_path / "slicer")
    slicer.connect()
    assert list(slicer.info["strategies"]) == list(STRATEGIES)
    assert list(STRATEGIES)[0] == "recommended" and {"random", "first"} <= set(STRATEGIES)
    for strategy in STRATEGIES:
        sample, volume = slicer.next_sample(strategy)
        assert sample["id"] in NAMES and volume.values.shape == (1, 96, 130), strategy


def test_scores_come_by_themselves_and_go_with_forget(site: Server) -> None:
    eventually(lambda: scores(site) == {"scored": 6, "left": 0}, 120)
    store = ScoreStore(WorkFolder.of(site.studies).scores)
    assert {s.image_id for s in store.scores()} == set(NAMES)
    assert forget(site.studies, "image3").scored
    eventually(lambda: scores(site)["scored"] == 5, 60)
    Image.fromarray(picture(77)).save(site.studies / "image9.png")
    eventually(lambda: scores(site) == {"scored": 6, "left": 0}, 120)
    assert requests.delete(f"{site.url}/datastore/?id=image9", timeout=60).status_code == 200
    eventually(lambda: "image9" not in {v.image_id for v in store.vectors()}, 60)
    assert "image3" not in {v.image_id for v in store.vectors()}


def test_two_users_do_not_get_the_same_image_and_one_alone_gets_all(site: Server) -> None:
    for strategy in STRATEGIES:
        handed = [ask(site, strategy, client)["id"] for client in ("ann", "ben", "cem")]
        assert len(set(handed)) == 3, strategy
    for client in ("ann", "ben", "cem"):  # each gives its own back by asking once more
        assert "warnings" not in ask(site, "first", client)
    # Three images are theirs, one is that of 3D Slicer.
    assert len({ask(site, "first", "dan")["id"] for _ in range(12)}) == 2


def test_where_others_hold_all_the_one_held_longest_is_given_and_it_is_said(site: Server) -> None:
    handed = [ask(site, "first", f"user{n}") for n in range(6)]
    shared = [h for h in handed if "warnings" in h]
    assert shared and "another user" in shared[0]["warnings"][0] and "min ago" in shared[0]["warnings"][0]
    assert {h["id"] for h in handed} <= set(NAMES)


def test_an_empty_pool_is_told_in_words_that_no_client_stumbles_over(site: Server, tmp_path: Path) -> None:
    for name in NAMES:
        save(site, name, tmp_path)
    for strategy in STRATEGIES:
        answer = ask(site, strategy, "zoe")
        assert "id" not in answer  # 3D Slicer then says that there is none
        assert answer["left"] == {"images": 7, "labelled": 6, "unreadable": 1}
        assert answer["message"] == "No image is left: 6 of 7 have a final label, 1 cannot be opened (the log says why)"
        assert answer["PatientID"] == answer["message"]  # what OHIF's window shows
    assert requests.delete(f"{site.url}/datastore/label?id=image2&tag=final", timeout=60).status_code == 200
    assert ask(site, "diverse", "zoe")["id"] == "image2"


def test_an_unknown_strategy_is_refused_with_those_that_are_known(site: Server) -> None:
    answer = requests.post(f"{site.url}/activelearning/cleverest", json={}, timeout=60)
    assert answer.status_code == 404 and all(name in answer.json()["detail"] for name in STRATEGIES)
