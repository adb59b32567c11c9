"""Locks that another one holds, and files that cannot be locked."""

from __future__ import annotations

from pathlib import Path

import pytest

from ultrarefiner_monai.core.locks import locked
from ultrarefiner_monai.core.types import InputError


def test_a_second_one_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, "busy"), pytest.raises(InputError, match=r"^busy$"), locked(path, "busy"):
        pass
    with locked(path, "busy"):
        pass


def test_a_file_that_cannot_be_locked_is_not_called_busy(tmp_path: Path) -> None:
    class OwnError(InputError):
        pass

    (tmp_path / "a folder").mkdir()
    with (
        pytest.raises(OwnError, match="cannot lock .*a folder: Is a directory"),
        locked(tmp_path / "a folder", "", OwnError),
    ):
        pass
    (tmp_path / "a file").write_text("")
    with (
        pytest.raises(InputError, match="cannot lock .*lock: (File exists|Not a dir)"),
        locked(tmp_path / "a file" / "lock", ""),
    ):
        pass


def test_errors_of_the_work_itself_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="^of the work$"), locked(tmp_path / "lock", "busy"):
        raise OSError("of the work")
