"""What tells of the models besides the pointer: the journal's promotions, and an MLflow store on this machine.

Both mirror the pointer and the registry, which are the truth, and are brought in line again at each start: a step that a
kill left out is added. MLflow is for those who have it (the extra ``train``); its import takes seconds, so that the server
never does it: ``python -m ultrarefiner_monai.learning.mirror WORKFOLDER`` runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.pointer import CONFIGURED, Pointer
from ultrarefiner_monai.learning.registry import Candidate, Registry
from ultrarefiner_monai.studies.training_folder import TrainingFolder, read_json, write_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

log = logging.getLogger(__name__)

MODEL = EXPERIMENT = "ultrarefiner"
CHAMPION, PREVIOUS = "champion", "previous"  # aliases of MLflow's model versions
_WAIT_SECONDS, _NICE = 60, 19


def mlflow_uri(folder: TrainingFolder) -> str:
    """The store, an SQLite file: ``mlflow ui --backend-store-uri URI`` shows it."""
    return f"sqlite:///{folder.root / 'mlflow.db'}"


def is_due(work: WorkFolder) -> bool:
    """Whether MLflow is installed and its store lacks something that the registry has."""
    if importlib.util.find_spec("mlflow") is None:
        return False
    now = _state(Registry(work))
    return bool(now["candidates"]) and read_json(_stamp(work.training)) != now


def mirror(work: WorkFolder) -> bool:
    """Bring journal and MLflow store in line; whether that worked. What fails is logged, and nothing else depends on it."""
    registry, done = Registry(work), True
    try:
        registry.repair_journal()
    except (sqlite3.Error, OSError, RuntimeError, InputError) as error:  # InputError: what is served is gone
        log.warning("the journal's promotions could not be brought in line: %s", error)
        done = False
    if not is_due(work):
        return done
    work.training.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(work.training.root / "mirror.lock")).acquire(timeout=_WAIT_SECONDS):
            state = _state(registry)
            _mirror_mlflow(registry, work.training)
            write_json(_stamp(work.training), state)
    except Timeout:
        return False
    except Exception as error:  # MLflow's own, a database's, a disk's
        log.warning("MLflow's store could not be brought in line: %s", error)
        return False
    return done


def _stamp(folder: TrainingFolder) -> Path:
    return folder.root / "mirror.json"


def _state(registry: Registry) -> dict[str, Any]:
    pointer = registry.pointer()
    return {"candidates": [c.name for c in registry.candidates()], "served": pointer.name, "at": pointer.at}


def _mirror_mlflow(registry: Registry, folder: TrainingFolder) -> None:
    """A run and a model version for each candidate, and the aliases of what is served and what was before."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client: Any = MlflowClient(mlflow_uri(folder))
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        place = (folder.root / "mlartifacts").as_uri()
        experiment = client.create_experiment(EXPERIMENT, artifact_location=place)
    else:
        experiment = found.experiment_id
    try:
        client.get_registered_model(MODEL)
    except MlflowException:
        client.create_registered_model(MODEL)
    versions = {v.tags.get("name"): v.version for v in client.search_model_versions(f"name='{MODEL}'")}
    for candidate in registry.candidates():
        run_id = _run(client, experiment, candidate)
        if candidate.name not in versions:
            made = client.create_model_version(
                MODEL, str(candidate.path), run_id, tags={"name": candidate.name, "version": candidate.version}
            )
            versions[candidate.name] = made.version
    _set_aliases(client, registry.pointer(), versions)


def _run(client: Any, experiment: str, candidate: Candidate) -> str:
    """The id of a candidate's run, made where there is none or one that was cut off."""
    for run in client.search_runs([experiment], f"tags.candidate = '{candidate.name}'"):
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
        client.delete_run(run.info.run_id)
    tags = {"candidate": candidate.name, "version": candidate.version}
    run_id = str(client.create_run(experiment, run_name=candidate.name, tags=tags).info.run_id)
    for key, value in _params(candidate.facts).items():
        client.log_param(run_id, key, str(value)[:500])
    for key, value in _metrics(candidate.facts).items():
        client.log_metric(run_id, key, value)
    client.log_dict(run_id, dict(candidate.facts), "report.json")
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _params(facts: Mapping[str, Any]) -> dict[str, Any]:
    images = facts.get("images", {})
    options = facts.get("options", {})
    return {"start": facts.get("start", ""), **{f"images.{k}": v for k, v in images.items()}, **options}


def _metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """Figures by name, champion's and candidate's."""
    found: dict[str, float] = {}
    gate = facts.get("gate", {})
    for row in gate.get("compared", []):
        for k, side in enumerate(("champion", "candidate")):
            for name in ("dice", "failures", "false_alarms"):
                found[f"{side}.{name}.clicks_{row['clicks']}"] = float(row[name][k])
        found[f"bound.clicks_{row['clicks']}"] = float(row["low"])
    found |= {k: float(gate[k]) for k in ("power_equal", "power_better", "labels", "groups") if k in gate}
    return found | ({"passed": float(gate["passed"])} if "passed" in gate else {})


def _set_aliases(client: Any, pointer: Pointer, versions: Mapping[str | None, Any]) -> None:
    previous = pointer.before[0] if pointer.before else ""
    for alias, name in ((CHAMPION, pointer.name), (PREVIOUS, previous)):
        if name in versions and name != CONFIGURED:
            client.set_registered_model_alias(MODEL, alias, versions[name])
        elif alias in (client.get_registered_model(MODEL).aliases or {}):
            client.delete_registered_model_alias(MODEL, alias)


def main() -> int:
    """For the process that brings the mirrors in line: its argument is the work folder."""
    logging.basicConfig(level=logging.INFO)
    if hasattr(os, "nice"):
        os.nice(_NICE)
    return 0 if mirror(WorkFolder(Path(sys.argv[1]))) else 1


if __name__ == "__main__":
    sys.exit(main())
