from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ultrarefiner_monai.files import replacing, sha256_of


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
