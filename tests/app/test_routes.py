"""Every route of the server stands in docs/it/security.md; what routes take is known by name and type."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_server import APP, ROOT
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Mount

from lib.routes.parameters import BATCH, INFER, NEXT_SAMPLE, checked
from lib.routes.routing import params_of
from lib.tasks import background
from ultrarefiner_monai.core.types import InputError

TABLE = ROOT / "docs" / "it" / "security.md"
_ROW = re.compile(r"^\| `([A-Z, ]+|any)` \| `(/[^`]*)` \|", re.M)


def routes_of(server: FastAPI) -> set[tuple[str, str]]:
    """(method, path) of all that the app answers, however it was put there."""
    found = set()
    for context in iter_route_contexts(server.routes):
        mounted = isinstance(context.original_route, Mount)
        for method in ["any"] if mounted or not context.methods else context.methods:
            found.add((method, f"{context.path}/{{path:path}}" if mounted else str(context.path)))
    return found


@pytest.fixture
def server() -> Iterator[FastAPI]:
    """MONAI Label's app, and afterwards as it was."""
    from monailabel.app import app

    before = list(app.router.routes), dict(app.exception_handlers), list(app.user_middleware)
    yield app
    app.router.routes[:], app.user_middleware[:] = before[0], before[2]
    app.exception_handlers.clear()
    app.exception_handlers.update(before[1])
    app.middleware_stack = None


def opened(server: FastAPI, studies: str, checkpoint: Path, work: Path) -> set[tuple[str, str]]:
    """The routes with the app's own in place, as ``on_init_complete`` puts them there."""
    from monailabel.interfaces.utils.app import app_instance

    from lib.routes import doors
    from lib.startup import put_routes

    app = app_instance(str(APP), studies, {"weights": str(checkpoint), "work_dir": str(work)})
    put_routes(server, app)
    doors.put_up(server, app, "0.0.0.0", "token", False)
    return routes_of(server)


def test_every_route_stands_in_the_table(server: FastAPI, checkpoint: Path, tmp_path: Path):
    (tmp_path / "studies").mkdir()
    found = opened(server, str(tmp_path / "studies"), checkpoint, tmp_path / "work")
    found |= opened(server, "http://127.0.0.1:9/dicom-web", checkpoint, tmp_path / "pacs")
    listed = {(m.strip(), path) for methods, path in _ROW.findall(TABLE.read_text("utf-8")) for m in methods.split(",")}
    assert found - listed == set(), "write down who may call them, and what they read and write"
    assert listed - found == set(), "these are gone"


# --- what they take ---------------------------------------------------------------------------------------------------

SENT = {
    "3D Slicer": {
        "label": "lesion",
        "foreground": [[1, 2, 0]],
        "background": [],
        "roi": [1, 2, 3, 4, 5, 6],
        "frame": -1,
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "client_id": "user-xyz",
        "session_id": "0-1",
    },
    "OHIF": {
        "foreground": [],
        "background": [[3, 4, 0]],
        "frame": "-1",
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    },
    "a client without a name": {"client_id": None},
}


@pytest.mark.parametrize("client", SENT)
def test_what_clients_send_is_taken(client):
    sent = SENT[client]
    assert checked(sent, INFER, "params") == {k: v for k, v in sent.items() if v is not None}


WITHOUT_END = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from([*INFER, *BATCH, "bundle_path", "gpus", "x"]) | st.text(), WITHOUT_END, max_size=4)
)
def test_only_known_names_of_known_types_pass(params: dict[str, Any]):
    for known in (INFER, BATCH, NEXT_SAMPLE):
        try:
            found = checked(params, known, "params")
        except InputError:
            continue
        assert set(found) <= set(known) and all(known[name].fits(value) for name, value in found.items())
        json.dumps(found).encode("utf-8", "strict")


@pytest.mark.parametrize(
    "name",
    ["bundle_path", "gpus", "multi_gpu", "max_workers", "device", "model", "image", "logging", "save_label", "labels"],
)
def test_a_batch_takes_nothing_that_the_server_decides(name):
    with pytest.raises(InputError, match=f"{name}.*known: images"):
        checked({name: "x"}, BATCH, "a batch")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("client_id", "\ud800"),
        ("client_id", "a\nb"),
        ("client_id", "x" * 201),
        ("client_id", ["x"]),
        ("label", 3),
        ("foreground", "here"),
        ("frame", True),
        ("result_compress", "yes"),
        ("label_info", [["\udfff"]]),
    ],
)
def test_values_of_other_types(name, value):
    with pytest.raises(InputError):
        checked({name: value}, INFER, "params")


@pytest.mark.parametrize("value", [-1, True, "3", 1 << 31, 1.0])
def test_batch_sizes(value):
    with pytest.raises(InputError, match="max_batch_size"):
        checked({"max_batch_size": value}, BATCH, "a batch")


def test_what_is_kept_is_bounded():
    assert params_of('{"x": "%s"}' % ("y" * 1000)) == {"x": "y" * 1000}
    with pytest.raises(InputError, match="256 kB"):
        params_of('{"x": "%s"}' % ("y" * (300 << 10)))
    for text in ('{"x": "\\ud800"}', '{"\\udc00": [1]}', '{"x": [{"y": "\\ud800"}]}'):
        with pytest.raises(InputError, match="half a character"):
            params_of(text)


def test_nothing_of_a_request_reaches_the_environment_of_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Though the route refuses them: MONAI Label would put one into PYTHONPATH, and wait for ever with the other."""
    from monailabel.utils.async_tasks.utils import run_background_task

    started = threading.Event()
    environments: list[dict[str, str]] = []

    def run(command: list[str], env: dict[str, str], **options: Any) -> Any:
        environments.append(env)
        assert str(tmp_path) not in " ".join(command)
        started.set()
        return subprocess.Popen([sys.executable, "-c", ""], env=env, **options)

    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    names = {"Popen": staticmethod(run), "PIPE": subprocess.PIPE, "STDOUT": subprocess.STDOUT}
    monkeypatch.setattr(background, "subprocess", type("Subprocess", (), names))
    tasks = background.Background("doors")
    tasks.install()
    run_background_task({"model": "m", "bundle_path": str(tmp_path), "gpus": "5"}, "doors")
    assert started.wait(20)
    tasks.close()
    assert environments[0]["PYTHONPATH"] == "/nowhere" and environments[0].get("CUDA_VISIBLE_DEVICES") != "5"


def test_a_task_is_read_as_a_whole_while_its_thread_changes_it() -> None:
    """A batch of nothing ends while its first reply is put together: that was answered 500."""
    task: dict[str, Any] = {f"key {k}": k for k in range(200)} | {"details": deque(["a line"] * 20, maxlen=20)}
    ended = threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            task["details"].append("/tmp/studies/a.png is read")
            task["error"] = "none"
            del task["error"]

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        for _ in range(500):
            read = background.settled({"tasks": [task]})["tasks"][0]
            assert len(read["details"]) == 20 and read["key 199"] == 199 and "/tmp" not in str(read)
    finally:
        ended.set()
        thread.join()
