"""``ultrarefiner journal``: the table in a file or printed, one image's labels, and what a mistyped name says."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ultrarefiner_monai.cli.command import app
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.journal import Journal

MASK = np.ones((1, 4, 5), np.uint8)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    (tmp_path / "studies").mkdir()
    journal = Journal(tmp_path / "studies" / ".ultrarefiner" / "journal.sqlite")
    for image in ("a", "b", "a"):
        journal.record_proposal(image, "h", MASK, model="ultrarefiner", version="v1")
        journal.record_correction(image, "h", MASK, author="dr one")
    journal.close()
    return tmp_path / "studies"


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(
        app, [str(word) for word in ("journal", *words)], catch_exceptions=False, env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_the_table_is_printed_or_written(studies: Path, tmp_path: Path) -> None:
    printed = run("export", "--studies", studies)
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [(row["image"], row["superseded"]) for row in rows] == [("a", "1"), ("b", "0"), ("a", "0")]
    out = tmp_path / "table.csv"
    assert "3 saved labels" in run("export", "--studies", studies, "--out", out)
    assert out.read_text(encoding="utf-8") == printed and not list(tmp_path.glob("*.part"))


def test_a_table_that_cannot_be_written_leaves_the_former_one(studies: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    out.write_text("mine")
    damaged = Journal(studies / ".ultrarefiner" / "journal.sqlite")
    with damaged.transaction() as connection:
        connection.execute("UPDATE corrections SET mask = x'00' WHERE id = 3")
    damaged.close()
    with pytest.raises(InputError, match="journal.sqlite cannot be read: .*decompress"):
        run("export", "--studies", studies, "--out", out)
    assert out.read_text() == "mine" and not list(tmp_path.glob("*.part"))


def test_one_images_labels_are_shown(studies: Path) -> None:
    text = run("show", "--studies", studies, "--image", "a")
    stars = [line for line in text.splitlines() if line.strip().startswith("*") and "1.000" in line]
    assert text.count("1.000") == 4 and len(stars) == 1


def test_what_is_not_there_is_said(studies: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no label was saved for 'c'"):
        run("show", "--studies", studies, "--image", "c")
    with pytest.raises(InputError, match="never served"):
        run("export", "--studies", tmp_path / "elsewhere")
    with pytest.raises(InputError, match="there is no folder"):
        run("export", "--studies", studies, "--out", tmp_path / "nowhere" / "t.csv")
    (studies / ".ultrarefiner" / "journal.sqlite").unlink()
    with pytest.raises(InputError, match="no journal"):
        run("export", "--studies", studies)
    assert not (studies / ".ultrarefiner" / "journal.sqlite").exists()
