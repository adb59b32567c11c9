"""A quick run on the final labels of a studies folder: what serves, what does not and why, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_champion import champion, pictures

from ultrarefiner_monai.config import LearningConfig, to_dict
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.quick import run as run_module
from ultrarefiner_monai.learning.quick.overlay import load_quick, read_quick, write_quick
from ultrarefiner_monai.learning.quick.run import Job, QuickRun, Result, remember, remembered
from ultrarefiner_monai.learning.quick.worker import ANSWER
from ultrarefiner_monai.learning.registry import Registry
from ultrarefiner_monai.models.checkpoints import load_system, save_system
from ultrarefiner_monai.studies.corrections import final_labels
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import INDEX, WorkFolder, forget

OPTIONS = LearningConfig(quick_seconds=60, margin=1.0)  # tiny networks learn nothing: the margin lets all through


@pytest.fixture
def job(tmp_path: Path) -> Job:
    studies = tmp_path / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    for k, pair in enumerate(pictures(5)):
        save(studies, f"i{k}", *pair)
    system = champion()
    base = save_system(tmp_path / "base.safetensors", system.config, system.coarse, system.refiner.sam, half=False)  # type: ignore[union-attr, arg-type]
    return Job(WorkFolder.of(studies), str(studies), base, None, OPTIONS, steps=2)


def save(studies: Path, name: str, image: np.ndarray, label: np.ndarray) -> None:
    Image.fromarray((image * 255).astype(np.uint8)).save(studies / f"{name}.png")
    Image.fromarray(label * 255).save(studies / "labels" / "final" / f"{name}.png")
    path = studies / INDEX
    rows = json.loads(path.read_text())["objects"] if path.is_file() else {}
    rows[name] = {"image": {"ext": ".png", "info": {}}, "labels": {"final": {"ext": ".png", "info": {}}}}
    path.write_text(json.dumps({"objects": rows}))


def quick(job: Job, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A run in which no label is implausible: to networks with random weights all are."""
    monkeypatch.setattr(run_module, "IMPLAUSIBLE", -1.0)
    run = QuickRun(job)
    monkeypatch.setattr(run, "_refusal", lambda verdict, validating: "")
    return run()


def test_it_serves_and_leaves_features_scores_and_one_file(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    result = quick(job, monkeypatch)
    registry = Registry(job.work)
    assert result.served == registry.pointer().quick == "quick-1" and registry.pointer().by == "quick"
    assert result.left_out is not None and result.validation is not None
    path = registry.quick_path("quick-1")
    tensors, base, facts = read_quick(path)
    assert all(name.startswith("sam.mask_decoder.") for name in tensors)
    system = load_system(job.base)
    assert base == system.version and facts["samples"] == result.samples
    served = load_quick(system, path)
    assert served.version.startswith(f"{base}+") and served.coarse is system.coarse
    split = json.loads((job.work.training.root / "split.json").read_text())["images"]
    assert set(split) == {f"i{k}" for k in range(5)}
    kept = {p.stem for p in job.work.training.quick.glob("*.safetensors")}
    assert kept == {f"i{k}@0" for k in range(5)}
    again = quick(job, monkeypatch)
    assert again.served == "quick-2" and not path.exists()
    same = read_quick(registry.quick_path("quick-2"))[0]
    assert all(torch.equal(same[name], value) for name, value in tensors.items()), (
        "it starts from the champion each time"
    )


def test_forget_removes_what_is_kept_of_an_image(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    result = quick(job, monkeypatch)
    remember(job.work, result.to_dict() | {"problems": {"i2": "noise", "i3": "noise"}})
    forget(job.studies, "i2")
    assert not list(job.work.training.quick.rglob("i2@*"))
    assert list(job.work.training.quick.rglob("i3@*"))
    assert set(remembered(job.work)["problems"]) == {"i3"}
    assert b"i2@" not in Registry(job.work).quick_path(result.served).read_bytes()


def test_forget_finds_no_name_in_the_journal_nor_in_the_last_result(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(job.work.journal).close()
    Path(job.studies, "labels", "final", "i2.png").write_bytes(b"no picture")
    remember(job.work, quick(job, monkeypatch).to_dict())
    assert remembered(job.work)["problems"].keys() == {"i2"}
    journal = Journal(job.work.journal)
    reports = json.dumps([p.report for p in journal.promotions()])
    journal.close()
    assert "left_out" in reports and not any(f"i{k}" in reports for k in range(5))
    forget(job.studies, "i2")
    assert remembered(job.work)["problems"] == {} and remembered(job.work)["served"] == "quick-1"
    assert "i3" not in json.dumps(read_quick(Registry(job.work).quick_path("quick-1"))[2])


def test_who_goes_back_while_it_is_tuned_does_not_find_it_served(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on the same champion nor, where that is the configured model, on one that it was not tuned on."""
    registry = Registry(job.work)
    monkeypatch.setattr(run_module, "IMPLAUSIBLE", -1.0)
    monkeypatch.setattr(QuickRun, "_refusal", lambda *_: "")
    assert QuickRun(job)().served == "quick-1"
    running = QuickRun(job)
    registry.rollback()
    with pytest.raises(InputError, match="was chosen while quick-2 was tuned"):
        running()
    candidate = registry.add("transunet-1", job.base)
    with pytest.raises(InputError, match="not what is served any more"):
        QuickRun(replace(job, base=candidate.path))
    registry.promote("transunet-1")
    running = QuickRun(replace(job, base=candidate.path))
    registry.rollback()
    with pytest.raises(InputError, match="was chosen while"):
        running()
    assert not registry.pointer().quick and not list(registry.folder.glob("quick-[2-9]*"))
    with pytest.raises(InputError, match="not what is served any more"):
        QuickRun(replace(job, base=candidate.path))
    (registry.folder / "current.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        QuickRun(job)


def test_what_the_champion_was_trained_on_is_replayed_and_tests_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, runs = Registry(job.work), job.work.training.runs
    candidate = registry.add("sam_refiner-1", job.base)
    registry.promote("sam_refiner-1")
    after = replace(job, base=candidate.path)
    (runs / "sam_refiner-1").mkdir(parents=True)
    (runs / "sam_refiner-1" / "split.json").write_text(json.dumps({"train": ["i0@0", "i1@0", "i2@0", "i3@0", "i4@0"]}))
    (runs / "sam_refiner-1" / "state.json").write_text(json.dumps({"started": time.time() + 30}))
    result = quick(after, monkeypatch)
    assert not result.served and "learnt from all these labels itself" in result.why
    late = time.time() + 60
    for k in (0, 1):  # saved anew
        os.utime(Path(job.studies, "labels", "final", f"i{k}.png"), (late, late))
    new = quick(after, monkeypatch).samples
    (runs / "sam_refiner-1" / "split.json").write_text("{}")
    assert 0 < new <= 2 < quick(after, monkeypatch).samples


def test_nothing_replayed_is_like_a_label_or_of_a_test_fold(job: Job, tmp_path: Path) -> None:
    """What validates, or is left out, is not learnt from by way of an older folder that holds it, too."""
    older, rows = tmp_path / "older", ["id,class,group,fold,width,height"]
    for name in ("images", "masks"):
        (older / name).mkdir(parents=True)
    for k, (image, label) in enumerate(pictures(8)):
        pixels = (image * 200 + 20).astype(np.uint8)  # brighter: no copy to the byte
        Image.fromarray(pixels).save(older / "images" / f"o{k}.png")
        Image.fromarray(label * 255).save(older / "masks" / f"o{k}.png")
        rows.append(f"o{k},lesion,o{k},{'test' if k == 7 else k % 5},56,40")
    (older / "index.csv").write_text("\n".join(rows) + "\n")
    run = QuickRun(replace(job, options=replace(OPTIONS, replay=str(older))))
    stored, _ = run._read()
    found = {s.id for s in run._replay(run.store.split_images(stored))}
    assert found == {"o5@0", "o6@0"}, "o0 to o4 are labelled here"


def test_features_that_are_settled_otherwise_are_made_anew(job: Job, tmp_path: Path) -> None:
    """A champion with the same weights and another calibration: what the refiner reads is not the same."""
    system = load_system(job.base)
    config = replace(system.config, post=replace(system.config.post, threshold=0.3, min_presence=0.99))
    other = save_system(tmp_path / "other.safetensors", config, system.coarse, system.refiner.sam, half=False)  # type: ignore[union-attr, arg-type]
    first = QuickRun(job)
    stored = first._read()[0]
    old = first.store.load(stored[0], "")
    second = QuickRun(replace(job, base=other))
    stored, _ = second.store.update(final_labels(job.work.root, job.studies), until=0.0)
    assert len(second.store.split_images(stored)) == 5 and not second.store.waiting
    assert second.store.load(stored[0], "", until=0.0) is None
    new = second.store.load(stored[0], "")
    assert (
        old is not None and new is not None and not np.array_equal(new.features.coarse_prob, old.features.coarse_prob)
    )
    assert (old.features.doubted, new.features.doubted) == (False, True)


def test_features_of_what_is_not_learnt_from_any_more_leave_the_disk(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(job, monkeypatch)
    run = QuickRun(job)
    stored, _ = run._read()
    full = {s.item for s in stored if s.has_features}
    run.store.drop_features(stored, {"i3@0"})
    stored, _ = run._read()
    assert full == {f"i{k}@0" for k in range(5)} and {s.item for s in stored if s.has_features} == {"i3@0"}
    assert len(run.store.split_images(stored)) == 5
    (job.work.training.quick / "i4@0.safetensors").unlink()  # forgotten meanwhile: it is not made anew
    assert [run.store.load(s, "g") is not None for s in sorted(stored, key=lambda s: s.item)] == [True] * 4 + [False]
    assert not list(job.work.training.quick.glob("i4*"))


def test_labels_that_were_not_read_yet_wait_for_their_place(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years of labels at once: the newest are read first, the next run goes on, and nothing is placed before all are known."""
    monkeypatch.setattr(run_module, "_READING", -1.0)
    run = QuickRun(replace(job, seconds=60.0))
    assert "no correction" in run().why and run.store.waiting == 5 and not job.work.training.read_split()
    monkeypatch.setattr(run_module, "_READING", 0.3)
    run = QuickRun(replace(job, seconds=60.0))
    run()
    assert not run.store.waiting and len(job.work.training.read_split()) == 5


def test_labels_of_another_grid_and_damaged_ones_stop_nobody_else(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Path(job.studies, "labels", "final")
    Image.fromarray(np.ones((7, 9), np.uint8) * 255).save(labels / "i1.png")
    (labels / "i2.png").write_bytes(b"no picture")
    result = quick(job, monkeypatch)
    assert result.served and result.problems is not None and set(result.problems) == {"i1", "i2"}


def test_noise_and_copies_of_one_image_and_empty_labels_are_not_served(job: Job) -> None:
    """Each alone: noise is implausible; copies are one group, so nothing can be left out; without a lesion nothing is known."""
    rng, (image, label) = np.random.default_rng(3), pictures(1)[0]
    for kind in ("noise", "copies", "empty"):
        studies = Path(job.studies).with_name(kind)
        (studies / "labels" / "final").mkdir(parents=True)
        for k, pair in enumerate(pictures(6)):
            given = {
                "noise": (pair[0], (rng.random(label.shape) < 0.5).astype(np.uint8)),
                "copies": (image, label),
                "empty": (pair[0], np.zeros_like(label)),
            }[kind]
            save(studies, f"{kind}{k}", *given)
        own = replace(job, work=WorkFolder.of(studies), studies=str(studies))
        result = QuickRun(own)()
        assert not result.served and result.why, kind
        assert kind != "noise" or "do they belong to these images?" in result.why
        assert not Registry(own.work).pointer().quick


def test_a_wrong_base_damage_and_numbers_that_are_not_finite_are_refused(job: Job, tmp_path: Path) -> None:
    system = load_system(job.base)
    name = "sam.mask_decoder.iou_token.weight"
    value = system.refiner.state_dict()[name]  # type: ignore[union-attr]
    other = write_quick(tmp_path / "quick-7.safetensors", {name: value}, "another", {})
    with pytest.raises(InputError, match="tuned on version another"):
        load_quick(system, other)
    broken = write_quick(tmp_path / "quick-8.safetensors", {name: value * torch.nan}, system.version, {})
    with pytest.raises(InputError, match="not finite"):
        load_quick(system, broken)
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(InputError, match="damaged"):
        load_quick(system, broken)


def test_the_worker_answers_each_job_with_one_line(job: Job) -> None:
    values = {
        "work": str(job.work.root),
        "studies": job.studies,
        "base": str(job.base),
        "options": to_dict(OPTIONS),
        "max_pixels": 10**6,
        "steps": 1,
    }
    bad = {**values, "base": "/nowhere.safetensors"}
    lines = "".join(f"{json.dumps(v)}\n" for v in (values, bad))
    command = [sys.executable, "-m", "ultrarefiner_monai.learning.quick.worker"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    said = [json.loads(t.removeprefix(ANSWER)) for t in done.stdout.splitlines() if t.startswith(ANSWER)]
    assert done.returncode == 0 and len(said) == 2
    assert not said[0]["served"] and said[0]["why"] and remembered(job.work)["why"] == said[0]["why"]
    assert "no checkpoint" in said[1]["error"]
