"""Final labels as a data folder: what is copied, a split that never moves, what is refused, what is forgotten."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import nrrd
import numpy as np
import pytest
from PIL import Image

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_index, split_fold
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_mask
from ultrarefiner_monai.learning.labelled import prepare_labels
from ultrarefiner_monai.studies.corrections import Labelled, training_parts
from ultrarefiner_monai.studies.training_folder import TrainingFolder


def labelled(folder: Path, count: int, first: int = 0) -> list[Labelled]:
    """Phantom images with their labels, every fifth without a lesion."""
    folder.mkdir(exist_ok=True)
    pairs = []
    for k in range(first, first + count):
        phantom = make_phantom(np.random.default_rng([7, k]), 48, 60 + k, "none" if k % 5 == 4 else "benign")
        image, label = folder / f"image {k:02d}.png", folder / f"image {k:02d}.nrrd"
        Image.fromarray(phantom.image).save(image)
        write_mask(label, phantom.mask.astype(np.uint8)[None], read_image_file(image))
        pairs.append(Labelled(image.stem, image, label))
    return pairs


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    return TrainingFolder(tmp_path / "training")


def parts(folder: TrainingFolder) -> dict[str, str]:
    return {image: row["part"] for image, row in folder.read_split().items()}


def test_copies_are_the_pixels_and_masks_that_were_labelled(tmp_path: Path, folder: TrainingFolder) -> None:
    pairs = labelled(tmp_path / "s", 10)
    prepared = prepare_labels(pairs, folder)
    assert prepared is not None and (prepared.train + prepared.select, prepared.lesions) == (10, 8)
    items = {i.id: i for i in read_index(folder.data)}
    for k, pair in enumerate(pairs):
        item = items[f"{pair.image_id}@0"]
        np.testing.assert_array_equal(np.asarray(Image.open(item.image)), np.asarray(Image.open(pair.image)))
        truth = make_phantom(np.random.default_rng([7, k]), 48, 60 + k, "none" if k % 5 == 4 else "benign").mask
        np.testing.assert_array_equal(np.asarray(Image.open(item.mask)), truth.astype(bool))
        assert item.has_lesion == (k % 5 != 4)
    split = split_fold(list(items.values()), "none")
    assert len(split.select) == prepared.select and any(i.has_lesion for i in split.select)


def test_labels_that_go_or_are_replaced_meanwhile_end_nothing(tmp_path: Path, folder: TrainingFolder) -> None:
    """Saved in another format: what stands now is read. Removed, or the image with it: left out, and named."""
    pairs = labelled(tmp_path / "s", 12)
    saved, removed, moved = pairs[2], pairs[3], pairs[6]
    mask = np.zeros(read_image_file(saved.image).frame(0).shape, np.uint8)
    mask[5:20, 7:30] = 1
    now = Labelled(saved.image_id, saved.image, saved.label.with_name(f"{saved.image_id}.nii.gz"))
    write_mask(now.label, mask[None], read_image_file(saved.image))
    for path in (saved.label, removed.label, moved.image):
        path.unlink()
    standing = {p.image_id: p for p in pairs if p not in (saved, removed, moved)} | {saved.image_id: now}
    prepared = prepare_labels(pairs, folder, lookup=standing.get)
    assert prepared is not None and prepared.left_out == (removed.image_id, moved.image_id)
    assert removed.image_id in str(prepared) and prepared.train + prepared.select == 10
    np.testing.assert_array_equal(np.asarray(Image.open(folder.pair(f"{saved.image_id}@0")[1])), mask.astype(bool))
    without = prepare_labels(pairs, folder)  # nobody can be asked
    assert without is not None and set(without.left_out) == {p.image_id for p in (saved, removed, moved)}


def test_labels_that_are_saved_while_they_are_read(tmp_path: Path, folder: TrainingFolder) -> None:
    """Somebody saves all the time, now in one format and then in another: each call ends well, with whole labels."""
    pairs = labelled(tmp_path / "s", 20)
    busy, studies = pairs[0], {p.image_id: read_image_file(p.image) for p in pairs}
    ends, current = threading.Event(), {p.image_id: p for p in pairs}
    shapes = [np.zeros((1, *studies[busy.image_id].frame(0).shape), np.uint8) for _ in range(2)]
    shapes[0][0, 5:20, 5:20] = shapes[1][0, 20:40, 20:50] = 1
    write_mask(busy.label, shapes[1], studies[busy.image_id])

    def save() -> None:
        for k in itertools.count():
            if ends.is_set():
                return
            path = busy.label.with_name(busy.image_id + (".nii.gz", ".nrrd")[k % 2])
            beside = path.with_name("beside" + path.name[len(busy.image_id) :])
            write_mask(beside, shapes[k % 2], studies[busy.image_id])
            beside.replace(path)
            before, current[busy.image_id] = current[busy.image_id], Labelled(busy.image_id, busy.image, path)
            if before.label != path:
                before.label.unlink()

    saver = threading.Thread(target=save)
    saver.start()
    try:
        for _ in range(40):
            prepared = prepare_labels([*current.values()], folder, lookup=current.get)
            assert prepared is not None and set(prepared.left_out) <= {busy.image_id}
            if not prepared.left_out:
                kept = np.asarray(Image.open(folder.pair(f"{busy.image_id}@0")[1]))
                assert any(np.array_equal(kept, shape[0].astype(bool)) for shape in shapes)
    finally:
        ends.set()
        saver.join()


def test_a_screens_regions_are_trained_on_as_they_are_served(tmp_path: Path, folder: TrainingFolder) -> None:
    """Two B-mode pictures side by side above a spectrum: the one with the lesion is copied, cut out."""
    screen = np.random.default_rng(0).integers(0, 255, (1, 120, 200), dtype=np.uint8)
    boxes = [(0, 0, 89, 79, "tissue"), (100, 10, 199, 79, "tissue"), (0, 90, 199, 119, "spectrum")]
    image, label = tmp_path / "screen.dcm", tmp_path / "screen.nii.gz"
    image.write_bytes(dicom_bytes(screen, 1, 0.1, regions=boxes))
    mask = np.zeros((1, 120, 200), np.uint8)
    mask[0, 30:50, 120:150] = 1
    image_file = read_image_file(image)
    write_mask(label, mask, image_file)
    assert prepare_labels([Labelled("screen", image, label), *labelled(tmp_path, 5)], folder, 0) is not None
    [row] = [row for row in folder.read_rows() if row["image"] == "screen"]
    assert (row["id"], row["width"], row["height"], row["class"]) == ("screen@0.1", "100", "70", "lesion")
    pixels, kept = (np.asarray(Image.open(path)) for path in folder.pair("screen@0.1"))
    assert np.array_equal(pixels, np.rint(image_file.frame(0)[10:80, 100:200] * 255)) and np.array_equal(
        kept, mask[0, 10:80, 100:200]
    )
    mask[:] = 0  # nothing anywhere: both pictures are normal ones
    assert [item for item, _ in training_parts("screen", image_file, 0, mask[0])] == ["screen@0.0", "screen@0.1"]
    assert folder.forget("screen") == 1


def test_new_labels_move_no_image_and_changed_ones_are_copied_again(tmp_path: Path, folder: TrainingFolder) -> None:
    pairs = labelled(tmp_path / "s", 6)
    prepare_labels(pairs, folder)
    before, copy = parts(folder), folder.pair("image 00@0")[1]
    untouched = folder.pair("image 01@0")[1].stat().st_mtime_ns
    empty = np.zeros_like(np.asarray(Image.open(copy)), np.uint8)
    write_mask(pairs[0].label, empty[None], read_image_file(pairs[0].image))
    pairs += labelled(tmp_path / "s", 30, first=6)
    prepare_labels(pairs, folder)
    after = parts(folder)
    assert {k: after[k] for k in before} == before and len(after) == 36
    assert 2 <= sum(p == "select" for p in after.values()) <= 16
    assert not np.asarray(Image.open(copy)).any()
    assert folder.pair("image 01@0")[1].stat().st_mtime_ns == untouched
    prepare_labels(pairs[1:], folder)  # a label was removed: its copy goes, its place in the split stays
    assert not copy.exists() and parts(folder) == after


def test_copies_of_before_a_change_of_meaning_are_made_anew(
    tmp_path: Path, folder: TrainingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A palette that was once copied inverted is not trained on for ever; no image moves in the split."""
    pairs = labelled(tmp_path / "s", 10)
    with monkeypatch.context() as before:
        before.setattr("ultrarefiner_monai.learning.labelled._MEANING", "of before")
        prepare_labels(pairs, folder)
    split, copy = parts(folder), folder.pair(f"{pairs[0].image_id}@0")[1]
    right = np.asarray(Image.open(copy))
    Image.fromarray(~right).save(copy)
    prepare_labels(pairs, folder)
    np.testing.assert_array_equal(np.asarray(Image.open(copy)), right)
    assert parts(folder) == split


def test_a_copy_of_a_known_image_goes_where_that_one_went(tmp_path: Path, folder: TrainingFolder) -> None:
    pairs = labelled(tmp_path / "s", 8)
    prepare_labels(pairs, folder)
    twins = []
    for pair in pairs:
        image = pair.image.with_name(f"copy of {pair.image.name}")
        pixels = np.asarray(Image.open(pair.image)).astype(int)
        Image.fromarray((pixels + 3).clip(0, 255).astype(np.uint8)).save(image)
        twins.append(Labelled(image.stem, image, pair.label))
    prepare_labels(pairs + twins, folder)
    split = parts(folder)
    assert all(split[f"copy of {pair.image_id}"] == split[pair.image_id] for pair in pairs)


def test_labels_that_cannot_be_trained_on_are_named(tmp_path: Path, folder: TrainingFolder) -> None:
    with pytest.raises(InputError, match="no final label yet"):
        prepare_labels([], folder)
    with pytest.raises(InputError, match=r"3 final label\(s\) with a lesion.* at least 4"):
        prepare_labels(labelled(tmp_path / "s", 3), folder)
    pairs = labelled(tmp_path / "s", 8)
    values = np.zeros((60, 48, 1), np.uint8)
    values[5:9, 5:9], values[20:30, 20:30] = 1, 2
    nrrd.write(str(pairs[0].label), values)
    write_mask(pairs[1].label, np.ones((1, 48, 62), np.uint8), read_image_file(pairs[2].image))
    pairs[3].image.write_bytes(b"no picture")
    with pytest.raises(InputError, match="3 final label") as error:
        prepare_labels(pairs, folder)
    for words in ("image 00: its label has several values (1, 2)", "image 01: ", "image 03: "):
        assert words in str(error.value)
    assert not any(image in parts(folder) for image in ("image 04", "image 05"))


def test_what_the_door_refuses_is_refused_in_training_too(tmp_path: Path, folder: TrainingFolder) -> None:
    """Labels that lie in the studies from before, or were put there by hand; one that is confirmed is taken."""
    pairs = labelled(tmp_path / "s", 8)
    nearly = np.ones((1, 48, 60), np.uint8)
    write_mask(pairs[0].label, nearly, read_image_file(pairs[0].image))
    probabilities = np.full((61, 48, 1), 0.2, np.float32)
    nrrd.write(str(pairs[1].label), probabilities)
    with pytest.raises(InputError, match="2 final label") as error:
        prepare_labels(pairs, folder)
    assert "image 00: its label marks 100 % of the picture: is it inverted?" in str(error.value)
    assert "image 01: its label has values that are not whole (0.2)" in str(error.value)
    write_mask(pairs[1].label, np.zeros((1, 48, 61), np.uint8), read_image_file(pairs[1].image))
    assert prepare_labels([replace(pairs[0], confirmed=True), *pairs[1:]], folder) is not None
    assert np.asarray(Image.open(folder.pair("image 00@0")[1])).all()


def test_one_patient_cannot_validate_itself(tmp_path: Path, folder: TrainingFolder) -> None:
    pair = labelled(tmp_path / "s", 1)[0]
    with pytest.raises(InputError, match=r"belong to 1 patient\(s\) or are alike"):
        prepare_labels([Labelled(f"i{k}", pair.image, pair.label) for k in range(5)], folder)


def test_a_call_that_ran_out_of_time_is_gone_on_with(tmp_path: Path, folder: TrainingFolder) -> None:
    pairs = labelled(tmp_path / "s", 8)
    assert prepare_labels(pairs, folder, seconds=0) is None
    prepare_labels(pairs[:6], folder)
    assert prepare_labels(pairs, folder, seconds=0) is None
    assert len(folder.read_rows()) == 6 and len(list((folder.data / "images").iterdir())) == 6
    prepared = prepare_labels(pairs, folder, seconds=60)
    assert prepared is not None and len(folder.read_rows()) == 8


def test_a_validation_list_whose_images_were_forgotten(tmp_path: Path, folder: TrainingFolder) -> None:
    """Its labels are gone with them: it is said, and the next patient validates; figures are of what is left."""
    pairs = labelled(tmp_path / "s", 16)
    prepared = prepare_labels(pairs, folder)
    assert prepared is not None and prepared.groups >= 1
    validate = [p for p in pairs if parts(folder)[p.image_id] == "select"]
    for pair in validate:
        assert folder.forget(pair.image_id) == 1
    left = [p for p in pairs if p not in validate]
    with pytest.raises(InputError, match="left to validate, since images keep their place and some were forgotten"):
        prepare_labels(left, folder)
    again = prepare_labels(left + labelled(tmp_path / "s", 1, first=20), folder)
    assert again is not None and parts(folder)["image 20"] == "select" and again.groups == 1


def test_forget_takes_copies_split_and_open_runs(tmp_path: Path, folder: TrainingFolder) -> None:
    prepare_labels(labelled(tmp_path / "s", 6), folder)
    for name, status, of in (("open", "running", ""), ("done", "finished", ""), ("replayed", "finished", "labels/")):
        (folder.runs / name).mkdir(parents=True)
        (folder.runs / name / "split.json").write_text(f'{{"train": ["{of}image 02@0", "{of}image 03@0", "busi/x"]}}')
        (folder.runs / name / "state.json").write_text(f'{{"status": "{status}"}}')
    with folder.lock().acquire(timeout=0), pytest.raises(InputError, match="stop it first"):
        TrainingFolder(folder.root).forget("image 02")
    assert folder.forget("image 02") == 1 and folder.forget("image 02") == 0
    traces = [p for p in folder.root.rglob("*") if "image 02" in p.name]
    traces += [p for p in folder.root.rglob("*") if p.suffix in (".csv", ".json") and "image 02" in p.read_text()]
    assert not traces and not (folder.runs / "open").exists()
    for name in ("done", "replayed"):
        assert "image 03@0" in (folder.runs / name / "split.json").read_text()
