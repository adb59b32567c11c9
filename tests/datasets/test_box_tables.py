"""Boxes from masks, their table there and back, and what a user's table may have wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ultrarefiner_monai.cli.command import app
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.boxes import COLUMNS, BoxPair, derived, read_boxes, write_boxes
from ultrarefiner_monai.datasets.datalist import read_index

SIZES = {"a": (40, 60), "b": (40, 60), "c.d": (40, 60)}
GOOD = BoxPair((5, 4, 40, 30), (10, 9, 30, 20))


@given(st.integers(0, 999), st.floats(0.01, 1), st.floats(0.05, 1), st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_the_small_box_lies_in_the_big_one_and_both_in_the_image(
    seed: int, slack: float, inner: float, jitter: float
) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, 2)
    mask = np.zeros((height, width), bool)
    y, x = rng.integers(0, height), rng.integers(0, width)
    mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = True
    pair = derived(mask, slack, inner, jitter, seed)
    assert pair is not None and pair == derived(mask, slack, inner, jitter, seed)
    (bx1, by1, bx2, by2), (sx1, sy1, sx2, sy2) = pair.big, pair.small
    assert 0 <= bx1 <= sx1 <= sx2 <= bx2 <= width - 1 and 0 <= by1 <= sy1 <= sy2 <= by2 <= height - 1
    if not jitter:
        ys, xs = np.nonzero(mask)
        assert bx1 <= xs.min() and by1 <= ys.min() and bx2 >= xs.max() and by2 >= ys.max()


def test_of_several_lesions_the_largest_is_boxed() -> None:
    mask = np.zeros((50, 50), bool)
    mask[2:5, 2:5] = True
    mask[20:40, 10:40] = True
    pair = derived(mask, 0.1, 0.5)
    assert pair == BoxPair((7, 18, 42, 41), (18, 25, 32, 34))
    assert derived(np.zeros((9, 9), bool)) is None


def test_a_table_there_and_back(tmp_path: Path) -> None:
    boxes = {"a": GOOD, "c.d": BoxPair((0, 0, 59, 39), (1.5, 2, 3, 4))}
    write_boxes(tmp_path / "x" / "boxes.csv", boxes)
    assert read_boxes(tmp_path / "x" / "boxes.csv", SIZES) == boxes


def row(image: str, *values: object) -> str:
    return ",".join(map(str, (image, *values)))


def table(path: Path, *rows: str, columns: tuple[str, ...] = COLUMNS) -> Path:
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (row("x", *range(8)), "line 3, image 'x': there is no such image"),
        (row("a", 5, 4, 40, 30, 10, 9, 30, 20), "line 3, image 'a': it has a row already"),
        (row("b", 5, 4, 40, 30, 10, 9, 41, 20), "not within the big one"),
        (row("b", 5, 4, 40, 30, 5, 4, 40, 30), "nothing between the boxes"),
        (row("b", 40, 4, 5, 30, 10, 9, 30, 20), "big box is turned round"),
        (row("b", 5, 4, 40, 30, 10, 20, 30, 9), "small box is turned round"),
        (row("b", 70, 4, 90, 30, 72, 9, 80, 20), "lies outside the image of 60 x 40"),
        (row("b", "left", 4, 40, 30, 10, 9, 30, 20), "expected eight numbers"),
        (row("b", 5, 4, 40, 30, 10, 9, 30), "expected eight numbers"),
        (row("b", "nan", 4, 40, 30, 10, 9, 30, 20), "not finite"),
    ],
)
def test_what_is_wrong_is_named_with_line_and_image(tmp_path: Path, line: str, words: str) -> None:
    path = table(tmp_path / "boxes.csv", row("a.png", *GOOD.big, *GOOD.small), line)
    with pytest.raises(InputError, match=words):
        read_boxes(path, SIZES)


def test_what_sticks_out_is_cut_off_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = table(tmp_path / "boxes.csv", row("a", -5, -3, 70, 30, 10, 9, 30, 20))
    assert read_boxes(path, SIZES)["a"] == BoxPair((0, 0, 59, 30), (10, 9, 30, 20))
    assert "boxes of 1 image(s) stick out" in caplog.text


def test_other_columns_and_no_table(tmp_path: Path) -> None:
    path = table(tmp_path / "boxes.csv", columns=("image", *COLUMNS[2:]))
    with pytest.raises(InputError, match="lacks the column.s. big_x1"):
        read_boxes(path, SIZES)
    with pytest.raises(InputError, match="`ultrarefiner boxes"):
        read_boxes(tmp_path / "none.csv", SIZES)


def test_the_command(tmp_path: Path, write_clean_folder) -> None:
    folder = write_clean_folder(tmp_path / "d", 6)
    out = tmp_path / "boxes.csv"
    run = CliRunner().invoke(app, ["boxes", "--data", str(folder), "--out", str(out)], catch_exceptions=False)
    lesions = [i.id for i in read_index(folder) if i.has_lesion]
    assert run.exit_code == 0 and f"{len(lesions)} images with a lesion" in run.output
    assert len(out.read_text().splitlines()) == len(lesions) + 1
    again = CliRunner().invoke(app, ["boxes", "--data", str(folder), "--out", str(out)])
    assert isinstance(again.exception, InputError) and "exists already" in str(again.exception)
