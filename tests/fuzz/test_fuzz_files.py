"""Damaged and hostile files of every kind: each is read or refused with words, in bounded time and memory."""

from __future__ import annotations

from collections import Counter

import pytest
from files import run
from mutations import mutate
from seeds import images, labels

MUTATIONS = 28  # of each file; `python -m tests.fuzz.files` runs for as long as it is told


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("on_labels", [False, True], ids=["images", "labels"])
def test_mutated_files(on_labels):
    counts: Counter[str] = Counter()
    faults = run(labels() if on_labels else images(), range(MUTATIONS), on_labels=on_labels, counts=counts)
    assert not faults, "\n".join(map(str, faults))
    assert min(counts["read"], counts["refused"]) > 50, counts


def test_the_seeds_are_sound(tmp_path):
    """Else nothing is mutated that a reader would get far with."""
    from seeds import _image_file

    from ultrarefiner_monai.imaging.mask_files import read_mask
    from ultrarefiner_monai.imaging.readers import read_image_file

    optional = (".gif", ".mp4", ".avi")
    for name, content in images().items():
        if not name.endswith(optional):
            (tmp_path / name).write_bytes(content)
            assert read_image_file(tmp_path / name).n_frames >= 1
    for name, content in labels().items():
        (tmp_path / name).write_bytes(content)
        assert read_mask(tmp_path / name, _image_file(f"{name.partition('.')[0]}.dcm")).any()


def test_mutations_are_repeatable_and_differ():
    for name, content in {**images(), **labels()}.items():
        made = [mutate(name, content, n) for n in range(40)]
        assert made == [mutate(name, content, n) for n in range(40)]
        assert len(set(made)) > 25, name
