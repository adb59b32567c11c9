"""The validation split: at first sight and for ever, groups whole, never both sides, placed by several processes at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.label_split import SHARE, SplitImage, place, placed, require_apart
from ultrarefiner_monai.studies.training_folder import TrainingFolder


def image(name: str, like: int | None = None, patient: str = "", lesion: bool = True) -> SplitImage:
    """An image of its own kind, or near to all others that are ``like`` the same number."""
    seed = int.from_bytes(name.encode()[-6:], "big") if like is None else like
    values = np.random.default_rng(seed).normal(size=1024).astype(np.float32)
    return SplitImage(name, patient, values / np.linalg.norm(values), lesion)


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    return TrainingFolder(tmp_path / "training")


def parts(split: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: row["part"] for name, row in split.items()}


def test_a_fifth_validates_whatever_the_order(folder: TrainingFolder, tmp_path: Path) -> None:
    images = [image(f"i{k:03d}") for k in range(200)]
    split = placed(folder, images)
    share = list(parts(split).values()).count("select") / 200
    assert abs(share - SHARE) < 0.08
    other = TrainingFolder(tmp_path / "other")
    for n in (50, 120, 200):
        grown = placed(other, images[:n][::-1])
    assert grown == split == TrainingFolder(folder.root).read_split()
    assert placed(folder, images[:20]) == split, "labels that are gone keep their place"


def test_the_fourth_group_with_a_lesion_validates_where_none_does() -> None:
    """For any seed: after four groups with a lesion one of them validates, and the first three only by their hash."""
    for seed in range(40):
        split: dict[str, dict[str, str]] = {}
        for k in range(6):
            name = f"patient {k}"
            split |= place([*split, name], list(range(len(split) + 1)), {*split, name}, split, seed)
        lesions = [split[f"patient {k}"]["part"] for k in range(6)]
        assert "select" in lesions[:4] and "train" in lesions
        first = place(["a", "b", "c", "d"], [0, 1, 2, 3], set(), {}, seed)
        assert first == place(["a", "b", "c", "d"], [0, 1, 2, 3], {"a", "b", "c"}, {}, seed), "nothing but the hash"


def test_patients_and_near_duplicates_stay_together(folder: TrainingFolder) -> None:
    copies = [image(f"copy {k}", like=5) for k in range(100)]
    patients = [image(f"p{k} {n}", patient=f"hash{k}") for k in range(30) for n in range(3)]
    split = placed(folder, copies + patients)
    assert len({tuple(split[i.image].values()) for i in copies}) == 1
    for k in range(30):
        assert (
            len({tuple(split[f"p{k} {n}"].values()) for n in range(3)}) == 1 and split[f"p{k} 0"]["group"] == f"hash{k}"
        )
    grown = placed(folder, [*copies, *patients, image("new", like=5), image("again", patient="hash7")])
    assert grown["new"] == split["copy 0"] and grown["again"] == split["p7 0"]


def test_what_is_like_both_sides_is_left_out(folder: TrainingFolder, caplog: pytest.LogCaptureFixture) -> None:
    split = {"a": {"group": "a", "part": "train"}, "b": {"group": "b", "part": "select"}}
    new = place(["a", "b", "c"], [0, 0, 0], {"a", "b", "c"}, split, 0)
    assert new == {"c": {"group": "a", "part": "test"}}
    assert "c is left out of learning: it is like a and b" in caplog.text
    rng = np.random.default_rng(0)
    base, aside = (np.linalg.qr(rng.normal(size=(1024, 2)))[0]).astype(np.float32).T
    one, two = (
        0.948 * base + 0.318 * aside,
        0.948 * base - 0.318 * aside,
    )  # alike by .8, both by .948 to what is between
    images = [SplitImage(name, "", pixels, True) for name, pixels in (("a", one), ("b", two), ("c", base))]
    folder.write_split(split)
    for _ in range(2):  # it stays left out, and refuses nothing
        assert parts(placed(folder, images)) == {"a": "train", "b": "select", "c": "test"}


def test_a_still_goes_where_the_cine_is_that_it_was_taken_from(folder: TrainingFolder) -> None:
    """Whichever frame it is: the first one is no more like it than any other image."""
    for k in range(40):
        frames = np.concatenate([image(f"c{k:02d} {n}").thumbnails for n in range(3)]).reshape(3, -1)
        cine = SplitImage(f"cine {k:02d}", "", frames, True)
        split = placed(folder, [cine])
        still = SplitImage(f"still {k:02d}", "", frames[1 + k % 2], True)
        split = placed(folder, [cine, still])
        assert split[still.image] == split[cine.image]
    assert set(parts(split).values()) == {"train", "select"}


def test_five_thousand_images_are_placed_in_seconds(folder: TrainingFolder) -> None:
    rng = np.random.default_rng(0)
    thumbnails = rng.normal(size=(5000, 1024)).astype(np.float32)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    thumbnails[:1000] = thumbnails[0]  # one image a thousand times
    images = [SplitImage(f"i{k:04d}", "", small, True) for k, small in enumerate(thumbnails)]
    begun = time.process_time()
    split = placed(folder, images)
    assert len({row["group"] for row in split.values()}) == 4001
    assert time.process_time() - begun < 30


def test_one_group_on_both_sides_is_refused_with_the_names(folder: TrainingFolder) -> None:
    split = {n: {"group": g, "part": p} for n, g, p in (("a", "g", "train"), ("b", "g", "select"), ("c", "c", "train"))}
    with pytest.raises(InputError, match=r"a is trained on and b validates.*ultrarefiner forget"):
        require_apart(split)
    folder.write_split(split)
    with pytest.raises(InputError, match="a is trained on and b validates"):
        placed(folder, [image("c")])
    apart = {"a": {"group": "a", "part": "train"}, "b": {"group": "b", "part": "select"}}
    for same in ({"like": 3}, {"patient": "hash"}):  # a file that was replaced, a patient that was corrected
        folder.write_split(apart)
        with pytest.raises(InputError, match="a is trained on and b validates"):
            placed(folder, [image("a", **same), image("b", **same)])
        folder.forget("b")
        assert placed(folder, [image("a", **same), image("b", **same)])["b"] == apart["a"]


@pytest.mark.slow
def test_several_processes_place_at_once(folder: TrainingFolder) -> None:
    """Quick and slow learning: no place is lost, none is given twice."""
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]; from pathlib import Path; from test_label_split import image;"
        "from ultrarefiner_monai.learning.label_split import placed;"
        "from ultrarefiner_monai.studies.training_folder import TrainingFolder;"
        "[placed(TrainingFolder(Path(sys.argv[1])), [image(f'{sys.argv[2]} {k}'), image('both', like=1)]) for k in range(20)]"
    )
    here = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    running = [subprocess.Popen([sys.executable, "-c", code, str(folder.root), n, *here]) for n in ("x", "y", "z")]
    assert [p.wait(120) for p in running] == [0, 0, 0]
    assert len(folder.read_split()) == 61
