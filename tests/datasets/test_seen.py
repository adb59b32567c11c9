"""Digests tell images by their pixels; a checkpoint's past is kept through any number of starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrarefiner_monai.datasets.datalist import Item, read_index
from ultrarefiner_monai.datasets.seen import (
    BEFORE,
    DIGESTS,
    about_seen,
    count_seen,
    digest_of,
    digests_of,
    pack,
    seen,
    seen_by_name,
    unpack,
)


@pytest.fixture(scope="module")
def items(tmp_path_factory, write_clean_folder) -> list[Item]:
    return read_index(write_clean_folder(tmp_path_factory.mktemp("seen") / "d", 12))


def test_a_digest_is_of_the_pixels_and_the_shape(items: list[Item], tmp_path: Path) -> None:
    assert len(digests_of(items)) == len(items)
    with Image.open(items[0].image) as picture:
        picture.save(tmp_path / "renamed.png", compress_level=1)
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    renamed, mirrored = (replace(items[0], image=tmp_path / f"{n}.png") for n in ("renamed", "mirrored"))
    assert digests_of([renamed]) == digests_of(items[:1]) != digests_of([mirrored])
    assert digest_of(np.zeros((4, 6))) != digest_of(np.zeros((6, 4)))
    assert digest_of(np.full((4, 6), 0.5)) == digest_of(np.full((4, 6), 0.5, np.float32))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "renamed.png")  # a file that changes is read anew
    assert digests_of([renamed]) == {digest_of(np.zeros((5, 5)))}


def test_digests_survive_their_text_and_are_few_bytes() -> None:
    digests = {np.random.default_rng(k).bytes(8) for k in range(1700)}
    text = pack(digests)
    assert unpack({DIGESTS: text}) == digests and len(text) < 30_000 and text == pack(sorted(digests, reverse=True))
    assert unpack({}) is None and unpack({DIGESTS: "no base64!"}) is None and unpack({DIGESTS: pack([])}) == set()


def test_the_past_of_a_start_is_kept(items: list[Item]) -> None:
    own, other = (sorted(digests_of(part)) for part in (items[:6], items[6:]))
    old = {"data": "busi", "fold": "0", "seed": 3}
    first = about_seen(own, [old])
    assert first[BEFORE] == [{"data": "busi", "fold": "0"}] and unpack(first) == set(own)
    second = about_seen(other, [{**first, "data": "d", "fold": "1"}])
    assert unpack(second) == {*own, *other} and second[BEFORE] == first[BEFORE]
    assert BEFORE not in about_seen(own, []) and about_seen(None, [old]) == {BEFORE: first[BEFORE]}
    assert unpack(about_seen(None, [first, {DIGESTS: pack(other)}])) == {*own, *other}


def test_what_is_not_known_is_not_denied(items: list[Item]) -> None:
    images = [next(iter(digests_of([i]))) for i in items]
    known = about_seen(images[:3], [])
    assert count_seen(known, images) == 3 and seen(known, items, images) is True
    assert seen(known, items[3:], images[3:]) is False
    begun = about_seen(images[:3], [{"data": "elsewhere", "fold": "0"}])
    assert seen(begun, items[3:], images[3:]) is None
    named = about_seen(images[:3], [{"data": "a+d", "fold": "0"}])
    for fold, answer in (("0", False), ("1", True)):
        part = [i for i in items[3:] if i.fold == fold]
        assert seen(named, part, []) is answer
    assert seen({}, items, images) is None


def test_sets_and_folds_by_name() -> None:
    meta = {"data": "a+b+c", "fold": "2", "left_out": "c"}
    assert [seen_by_name(meta, name, "1") for name in "abcd"] == [True, True, False, None]
    assert [seen_by_name(meta, "a", fold) for fold in ("2", "test", "0")] == [False, False, True]
    assert seen_by_name({"data": "a+b", "fold": "0"}, "a+b", "1") is True  # one folder of that name
    assert seen_by_name({"data": "a"}, "a", "1") is None


def test_a_folder_in_capitals_is_the_same_set() -> None:
    meta = {"data": "busi+BREAST", "fold": "0", "left_out": "BREAST"}
    assert [seen_by_name(meta, name, "1") for name in ("BUSI", "busi", "breast", "BUS")] == [True, True, False, None]
