from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from ultrarefiner_monai.core.files import all_or_nothing, replacing, sha256_of, sync_folder


def test_what_a_library_puts_at_the_name_is_what_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, fsync = [], os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        flushed.append(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", noting)
    with replacing(tmp_path / "f") as file:
        (tmp_path / "own").write_bytes(b"new")
        os.replace(tmp_path / "own", file.name)
    assert (tmp_path / "f").read_bytes() == b"new" and flushed[-1] == (tmp_path / "f").stat().st_ino
    with replacing(tmp_path / "f") as file:
        file.write(b"newer")
    assert flushed[-1] == (tmp_path / "f").stat().st_ino and len(flushed) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_written_file_takes_its_place_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for mode, content in (("wb", b"\x00\r\n\xff"), ("w", "grün\r\n")):
        with replacing(tmp_path / "f", mode) as file:
            file.write(content)
        assert (tmp_path / "f").read_bytes() == (content if isinstance(content, bytes) else content.encode())
        assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert sha256_of(tmp_path / "f") == hashlib.sha256("grün\r\n".encode()).hexdigest()


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    with replacing(tmp_path / ("n" * 255), "w") as file:
        file.write("new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_an_error_keeps_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "f", "w") as file:
        file.write("half of the new")
        raise OSError("disk full")
    assert (tmp_path / "f").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("links", [True, False])
def test_steps_that_belong_together_are_taken_back(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links on this stick")

    if not links:
        monkeypatch.setattr(os, "link", none)
    for name in "abc":
        (tmp_path / name).write_text(f"old {name}")
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}
    with pytest.raises(RuntimeError), all_or_nothing() as undo:
        for name in "ax":
            path = tmp_path / name
            undo.keep(path, undo.part(path))
            with replacing(path, "w") as file:
                file.write("new")
        undo.set_aside(tmp_path / "b", undo.part(tmp_path / "b"))
        undo.copy(tmp_path / "c", tmp_path / "d")
        undo.sync()
        assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["a", "c", "d", "x"]
        raise RuntimeError
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_flushed_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        def sync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", sync)

    fail(errno.EINVAL)
    sync_folder(tmp_path)
    fail(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)
