"""What mirrors the pointer: the journal and MLflow, made and mended from what is there."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from app_server import save_tiny_system

from ultrarefiner_monai.learning.mirror import MODEL, is_due, mirror, mlflow_uri
from ultrarefiner_monai.learning.pointer import CONFIGURED
from ultrarefiner_monai.learning.registry import Registry
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import WorkFolder

GATE = {
    "passed": True,
    "groups": 21,
    "power_equal": 0.5,
    "power_better": 0.9,
    "compared": [{"clicks": 0, "dice": [0.8, 0.85], "failures": [1, 0], "false_alarms": [0, 0], "low": 0.01}],
}


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    work = WorkFolder.of(tmp_path)
    Journal(work.journal).close()
    registry = Registry(work)
    for n in (1, 2):
        registry.add(f"transunet-{n}", save_tiny_system(tmp_path / "run.safetensors", n), facts={"start": CONFIGURED})
    registry.note("transunet-2", gate=GATE, options={"epochs": 6})
    return work


def promotions(work: WorkFolder) -> list[tuple[str, str, str]]:
    journal = Journal(work.journal)
    try:
        return [(p.name, p.by, p.before) for p in journal.promotions()]
    finally:
        journal.close()


def test_the_journal_is_mended(work: WorkFolder) -> None:
    """A kill between the pointer and the journal; a journal that was locked; one that was begun anew."""
    registry = Registry(work)
    registry.repair_journal()
    assert promotions(work) == [], "nobody chose"
    registry.promote("transunet-1")
    registry.promote("transunet-2", by="slow")
    registry.rollback()
    expected = [
        ("transunet-1", "person", CONFIGURED),
        ("transunet-2", "slow", "transunet-1"),
        ("transunet-1", "person", "transunet-2"),
    ]
    assert promotions(work) == expected
    with sqlite3.connect(work.journal) as connection:
        connection.execute("DELETE FROM promotions WHERE id > 1")
    registry.repair_journal()
    assert promotions(work) == expected[:1], "the last entry says what is served: all is well"
    registry.promote("transunet-2", by="slow")
    with sqlite3.connect(work.journal) as connection:
        connection.execute("DELETE FROM promotions WHERE id > 1")
    for _ in range(2):
        registry.repair_journal()
        assert promotions(work) == [expected[0], expected[1]]
    for part in ("transunet-2.json", "transunet-2.safetensors"):
        (registry.folder / part).rename(registry.folder / f"{part}.gone")
    with sqlite3.connect(work.journal) as connection:
        connection.execute("DELETE FROM promotions WHERE id > 1")
    mirror(work)  # what is served is gone: it says so, and ends
    for part in ("transunet-2.json", "transunet-2.safetensors"):
        (registry.folder / f"{part}.gone").rename(registry.folder / part)
    work.journal.unlink()
    registry.promote("transunet-1")
    assert not work.journal.exists() and registry.pointer().name == "transunet-1"


@pytest.mark.slow
def test_mlflow_has_runs_figures_versions_and_aliases(work: WorkFolder) -> None:
    mlflow = pytest.importorskip("mlflow.tracking")
    registry = Registry(work)
    assert is_due(work) and mirror(work) and not is_due(work)
    client = mlflow.MlflowClient(mlflow_uri(work.training))
    assert client.get_registered_model(MODEL).aliases == {}
    registry.promote("transunet-1")
    registry.promote("transunet-2")
    assert is_due(work)
    for _ in range(2):  # a second time changes nothing
        (work.training.root / "mirror.json").unlink()
        assert mirror(work)
    for alias, name in (("champion", "transunet-2"), ("previous", "transunet-1")):
        version = client.get_model_version_by_alias(MODEL, alias)
        assert version.tags["name"] == name and version.tags["version"] == registry.get(name).version
    assert len(client.search_model_versions(f"name='{MODEL}'")) == 2
    [run] = client.search_runs(["1"], "tags.candidate = 'transunet-2'")
    assert run.data.metrics["candidate.dice.clicks_0"] == 0.85 and run.data.params["epochs"] == "6"
    report = client.download_artifacts(run.info.run_id, "report.json")
    assert json.loads(Path(report).read_text())["gate"] == GATE
    registry.rollback()
    registry.rollback()
    assert mirror(work) and client.get_registered_model(MODEL).aliases == {}
