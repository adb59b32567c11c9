"""What is wrong with an outline, told from its geometry: our own corruptions come back under their names, and the corruption
that follows a department moves towards what was seen and no further."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ultrarefiner_monai.config.refine import TWELVE_KINDS, CorruptionConfig
from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.learning.mistake_kinds import kinds_of
from ultrarefiner_monai.learning.mistakes import (
    FLOOR,
    Mistake,
    corruption_for,
    department_corruption,
    mistake_of,
    mistakes_of,
    shares_of,
)
from ultrarefiner_monai.studies.corrections import read_corrections
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.training.data.corruptions import Corruptor

ERRORS = [kind for kind in TWELVE_KINDS if kind != "identity"]
# The least share of a kind that comes back under its own name, and where the rest of it may go. A hole near the edge opens to a
# bite; small ones are no mistake by themselves; what a shift leaves of a strange shape is too large here and too small there.
CLEAR = dict.fromkeys(TWELVE_KINDS, 0.85) | {
    "chunk": 0.75,
    "noise": 0.65,
    "holes": 0.55,
    "fragments": 0.7,
    "shift": 0.65,
}
CONFUSED = {"holes": {"identity", "chunk"}, "fragments": {"identity", "chunk"}, "shift": {"over", "under", "chunk"}}
CONFUSED |= {"chunk": {"identity"}, "noise": {"identity", "holes", "islands"}}


@cache
def labels() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    found = [make_phantom(rng, 160, 192, ("benign", "malignant")[k % 2]).mask > 0 for k in range(24)]
    return tuple(found)


def corrupted(kind: str, roughness: float = 0.0, seed: int = 0) -> list[Mistake]:
    masks = torch.from_numpy(np.stack(labels())).float()[:, None]
    corruptor = Corruptor(CorruptionConfig(roughness_share=roughness), seed)
    made = corruptor.as_kinds(masks, [kind] * len(masks)).corrupted_prob[:, 0].numpy() > 0.5
    return [mistake_of(f"{k}@0", outline, label) for k, (outline, label) in enumerate(zip(made, labels(), strict=True))]


@pytest.mark.parametrize("kind", TWELVE_KINDS)
def test_a_corruption_comes_back_under_its_name(kind: str) -> None:
    shares = shares_of(corrupted(kind))
    assert shares[kind] >= CLEAR[kind]
    others = {k: share for k, share in shares.items() if k != kind and share > 0.1}
    assert set(others) <= CONFUSED.get(kind, set())


@pytest.mark.parametrize("kind", ERRORS)
def test_a_rough_edge_on_top_of_it_does_not_hide_it(kind: str) -> None:
    shares = shares_of(corrupted(kind, roughness=1.0, seed=1))
    assert shares[kind] == max(shares.values()) and shares[kind] > 0.25


@pytest.mark.parametrize("kind", ["sdf_offset", "sdf_field", "sdf_holes", "sdf_attachments"])
def test_what_moves_the_outline_is_too_large_or_too_small(kind: str) -> None:
    shares = shares_of(corrupted(kind))
    assert sum(shares.get(k, 0) for k in ("over", "under", "chunk", "bridge", "identity")) > 0.75
    assert shares.get("giant", 0) + shares.get("empty", 0) < 0.05


@pytest.mark.parametrize(
    ("outline", "label", "expected"), [(0, 0, {}), (1, 0, {"islands": 1.0}), (0, 1, {"empty": 1.0})]
)
def test_empty_masks(outline: int, label: int, expected: dict[str, float]) -> None:
    disc = labels()[0]
    assert kinds_of(outline * disc, label * disc) == expected


def test_an_outline_beside_the_lesion_missed_it_and_is_a_false_alarm() -> None:
    label = np.zeros((60, 60), bool)
    label[5:15, 5:15] = True
    assert kinds_of(label[::-1, ::-1], label) == {"empty": 0.5, "islands": 0.5}


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(bool, (2, 17, 23)), st.sampled_from(["rows", "columns", "turn"]))
def test_any_two_masks_have_shares_that_add_up_and_know_no_direction(pair: np.ndarray, how: str) -> None:
    found = kinds_of(*pair)
    assert set(found) <= set(TWELVE_KINDS) and all(share > 0 for share in found.values())
    assert sum(found.values()) == pytest.approx(1 if pair.any() else 0)
    other = {"rows": pair[:, ::-1], "columns": pair[:, :, ::-1], "turn": pair[:, ::-1, ::-1]}[how]
    assert kinds_of(*other) == pytest.approx(found, abs=0.2)


@pytest.mark.parametrize("kind", ["over", "under", "giant", "islands", "bridge", "empty"])
def test_the_size_of_the_image_does_not_matter(kind: str) -> None:
    masks = torch.from_numpy(np.stack(labels())).float()[:, None]
    made = (
        Corruptor(CorruptionConfig(roughness_share=0), 3).as_kinds(masks, [kind] * len(masks)).corrupted_prob[:, 0]
        > 0.5
    )
    for scale in (1, 2):
        large = [np.kron(m, np.ones((scale, scale), bool)) for m in made.numpy()]
        truth = [np.kron(m, np.ones((scale, scale), bool)) for m in labels()]
        shares = shares_of([mistake_of("a@0", *pair) for pair in zip(large, truth, strict=True)])
        assert shares[kind] > 0.85


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        kinds_of(np.ones((4, 4)), np.ones((4, 5)))


# --- the corruption that follows --------------------------------------------------------------------------------------


def seen(kind: str, count: int, dice: float = 0.7, lesion: bool = True) -> list[Mistake]:
    return [Mistake(f"{kind}{k}@0", {kind: 1.0}, dice, lesion, 0.3) for k in range(count)]


def test_without_corrections_it_is_the_default() -> None:
    assert corruption_for([]) == CorruptionConfig() == department_corruption([])
    base = CorruptionConfig(share_twelve=0.5, kinds={"over": 1.0})
    assert corruption_for([], base=base) == base


@pytest.mark.parametrize("kind", ERRORS)
def test_what_is_seen_more_often_weighs_more(kind: str) -> None:
    default = CorruptionConfig()
    weights = [corruption_for(seen(kind, n)).kinds for n in (0, 5, 40, 400)]
    own = [w[kind] for w in weights]
    assert own == sorted(own) and own[1] > own[0] and own[1] - own[0] < 0.15 * sum(default.kinds.values())
    for found in weights:
        assert sum(found.values()) == pytest.approx(sum(default.kinds.values()))
        assert found["identity"] == default.kinds["identity"]
        assert all(found[k] >= FLOOR * default.kinds[k] - 1e-9 for k in default.kinds)
    assert weights[-1][kind] > 0.6 * sum(weights[-1][k] for k in ERRORS)


def test_strengths_follow_the_dice() -> None:
    default = CorruptionConfig()
    weak, strong = (corruption_for(seen("over", 200, dice=d)).band_weights for d in (0.95, 0.65))
    assert weak[0] > 0.7 and strong[2] > 0.7 and sum(weak) == pytest.approx(1) == sum(strong)
    assert min(weak[k] / default.band_weights[k] for k in range(3)) >= FLOOR - 1e-9
    assert corruption_for(seen("giant", 200, dice=0.2)).band_weights == strong, "what is worse counts for the hardest"
    assert corruption_for(seen("empty", 200, dice=0.0)).band_weights == default.band_weights
    assert corruption_for(seen("identity", 200, dice=0.995)) == default


def test_false_alarms_on_lesion_free_images_are_apart() -> None:
    default = CorruptionConfig()
    alarms = seen("islands", 100, dice=0.0, lesion=False)
    quiet = [replace(m, kinds={}, dice=1.0) for m in alarms]
    assert corruption_for(alarms).empty_islands > 0.6 and corruption_for(alarms).kinds == default.kinds
    assert FLOOR * default.empty_islands <= corruption_for(quiet).empty_islands < 0.2


def test_what_is_switched_off_stays_off() -> None:
    base = CorruptionConfig(kinds={"over": 1.0, "under": 1.0, "noise": 0.0}, empty_islands=0.0)
    found = corruption_for(
        seen("noise", 50) + seen("giant", 50) + seen("under", 10) + seen("islands", 9, 0, False), base=base
    )
    assert found.kinds["noise"] == 0 and "giant" not in found.kinds and found.empty_islands == 0
    assert found.kinds["under"] > found.kinds["over"]


def test_a_department_that_is_drawn_from_a_corruption_is_found_again() -> None:
    """The way round: masks from a department that cuts lesions in pieces and draws them too small."""
    department = CorruptionConfig(share_twelve=1.0, kinds={"fragments": 1.0, "under": 2.0}, roughness_share=0.5)
    masks = torch.from_numpy(np.stack(labels() * 5)).float()[:, None]
    made = Corruptor(department, 2)(masks).corrupted_prob[:, 0].numpy() > 0.5
    found = corruption_for([mistake_of(f"{k}@0", *pair) for k, pair in enumerate(zip(made, labels() * 5, strict=True))])
    default = CorruptionConfig().kinds
    risen = sorted(found.kinds, key=lambda kind: found.kinds[kind] / default[kind])[-2:]
    assert set(risen) == {"fragments", "under"} and found.kinds["under"] > found.kinds["fragments"]
    Corruptor(found, 0)(masks[:4])  # a training takes it


# --- from a studies folder --------------------------------------------------------------------------------------------


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Image a (saved twice), b (a cine of four frames) and c (nothing was offered), as a server leaves them."""
    (tmp_path / "labels" / "final").mkdir(parents=True)
    objects = {}
    for name in "abc":
        Image.new("L", (192, 160), ord(name)).save(tmp_path / f"{name}.png")
        (tmp_path / "labels" / "final" / f"{name}.nrrd").write_bytes(b"label")
        objects[name] = {"image": {"ext": ".png"}, "labels": {"final": {"ext": ".nrrd"}}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    return tmp_path


def offer(
    journal: Journal,
    studies: Path,
    name: str,
    first: list[np.ndarray],
    clicked: list[np.ndarray],
    saved: list[np.ndarray],
) -> None:
    sha256 = sha256_of(studies / f"{name}.png")
    reply = {"frames": [{"frame": k} for k in range(len(first))]} if len(first) > 1 else {"frame": 0}
    clicks = {"0": {"foreground_xy": [[1, 1]], "background_xy": [], "box_xyxy": None}}
    for mask, model, prompts in ((first, "ultrarefiner", None), (clicked, "sam_refiner", clicks)):
        if mask:
            journal.record_proposal(
                name, sha256, np.stack(mask), model=model, version="v", prompts=prompts, reply=reply
            )
    journal.record_correction(name, sha256, np.stack(saved))


def test_the_first_proposal_counts_and_a_save_that_was_superseded_does_not(studies: Path) -> None:
    label, nothing = labels()[0], np.zeros((160, 192), bool)
    journal = Journal(studies / ".ultrarefiner" / "journal.sqlite")
    offer(journal, studies, "a", [nothing], [label], [np.roll(label, 60, 1)])
    offer(journal, studies, "a", [], [label], [label])  # a second thought: no new automatic proposal
    offer(journal, studies, "b", [nothing] * 4, [label] * 4, [label] * 4)
    offer(journal, studies, "c", [], [], [label])
    journal.close()
    corrections = read_corrections(studies / ".ultrarefiner")
    mistakes = mistakes_of(corrections)
    assert [(m.id, dict(m.kinds), m.dice) for m in mistakes if m.id.startswith("a")] == [("a@0", {"empty": 1.0}, 0.0)]
    assert [m.weight for m in mistakes] == [1, 0.25, 0.25, 0.25, 0.25]
    twice = corruption_for([Mistake("a@0", {"empty": 1.0}, 0.0, True)] * 2)
    assert department_corruption(corrections).kinds == pytest.approx(twice.kinds)


def test_of_an_older_journal_the_newest_proposal_counts_where_it_is_automatic(studies: Path) -> None:
    label, nothing = labels()[0], np.zeros((160, 192), bool)
    journal = Journal(studies / ".ultrarefiner" / "journal.sqlite")
    offer(journal, studies, "a", [nothing], [], [label])
    offer(journal, studies, "b", [nothing] * 2, [label] * 2, [label] * 2)
    with journal.transaction() as connection:  # as one of version 2 is read
        connection.execute("UPDATE corrections SET first_proposal_id = NULL")
    journal.close()
    assert [m.id for m in mistakes_of(read_corrections(studies / ".ultrarefiner"))] == ["a@0"]
