"""What the one server of a studies folder does when it starts: it is the only one, and clears away what killed ones left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from app_server import APP
from small_studies import everything_below, make_store

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.leftovers import clear
from ultrarefiner_monai.studies.only_server import OnlyServer
from ultrarefiner_monai.studies.work_folder import WorkFolder


def test_a_second_server_ends_with_words(studies, tmp_path):
    code = (
        "import sys, time; sys.path[:0] = sys.argv[2:]\nfrom pathlib import Path\n"
        "from ultrarefiner_monai.studies.only_server import OnlyServer\n"
        "from ultrarefiner_monai.studies.work_folder import WorkFolder\nstudies = Path(sys.argv[1])\n"
        "only = OnlyServer(studies, WorkFolder.of(studies), 8123)\nprint('ready', flush=True)\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(studies), str(APP.parents[1]), str(APP)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline()
        for work in (WorkFolder.of(studies), WorkFolder.of(studies, tmp_path / "work of its own")):
            with pytest.raises(InputError, match=rf"process {first.pid} .*port 8123, since \d"):
                OnlyServer(studies, work, 8124)
        make_store(studies).refresh()  # a batch, a training
    finally:
        first.kill()
        first.wait()
    OnlyServer(studies, WorkFolder.of(studies), 8124).release()  # one that was killed does not count


def test_servers_with_work_folders_of_their_own_see_each_other(studies, tmp_path):
    first = OnlyServer(studies, WorkFolder.of(studies, tmp_path / "one"), 8123)
    with pytest.raises(InputError, match="already runs"):
        OnlyServer(studies, WorkFolder.of(studies, tmp_path / "two"), 8124)
    with pytest.raises(InputError, match="already runs"):
        OnlyServer(studies, WorkFolder.of(studies), 8124)
    first.release()


def test_half_written_files_are_cleared_and_nothing_else(studies, label):
    store = make_store(studies)
    store.save_label("a", label, "final", {})
    store.save_label("a", label, "final", {})
    work, part = store.work, f".{'0123456789abcdef' * 2}.part"
    session = work.sessions / "11-22"
    gone = [
        studies / part,
        studies / "labels" / "final" / part,
        work.root / part,
        work.root / "tmpabcd1234" / "l.nii.gz",
    ]
    gone += [
        work.versions / "final" / "a" / part,
        work.models / "x.safetensorsabcd1234.part",
        work.models / ".tmpQjgsNf",
        work.embeddings / ".tmp-x",
    ]
    gone += [work.mirror / "series" / ".part-x" / "1.dcm", work.training.data / "masks" / part, session / "x.png"]
    gone += [work.exchange / "segs-x" / "1.dcm", work.exchange / "outbox" / part]
    kept = [
        studies / "x.part",
        studies / ".other.part",
        studies / "holiday" / part,
        work.sessions / "33-44" / "meta.info",
    ]
    kept += [work.versions / "final" / "tmpabcd1234" / "1.png", work.root / "forgotten", work.models / "x.safetensors"]
    for path in (*gone, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    young, used = work.root / f".{'1' * 32}.part", work.root / f".{'2' * 32}.part"
    young.write_bytes(b"x")
    used.write_bytes(b"x")
    before = set(everything_below(studies))
    for path in (*studies.rglob("*"), studies / part):
        if path != young:
            os.utime(path, (0, 0), follow_symlinks=False)
    with used.open("rb"):
        clear(studies, studies / "labels", work)
    left = {p for p in before if not (studies / p).exists()}
    assert not any(path.exists() for path in gone) and young.exists() and used.exists()
    assert left <= {str(p.relative_to(studies)) for path in gone for p in (path, path.parent)}
    clear(studies, studies / "labels", work)
    assert not used.exists()
