"""One name for each view, however it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultrarefiner_monai.core.views import canonical_view, coded_view


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Radial", "radial"), ("RAD", "radial"), ("Anti Radial", "anti-radial"), ("antiradial view", "anti-radial"),
        ("ARAD", "anti-radial"), ("Trans.", "transverse"), ("sagittal plane", "longitudinal"), ("long", "longitudinal"),
        ("Oblique  45°", "oblique-45"),
        ("Radial view scan", "radial"), ("", ""), (" ", ""),
    ],
)  # fmt: skip
def test_spellings(text: str, name: str) -> None:
    assert canonical_view(text) == name


@given(st.text(max_size=80))
def test_a_name_is_its_own_name(text: str) -> None:
    name = canonical_view(text)
    assert canonical_view(name) == name


def test_a_code_that_is_known_decides() -> None:
    assert coded_view([("62824007", "Querschnitt")]) == "transverse"
    assert coded_view([("XYZ", "Antiradial")]) == "anti-radial" and coded_view([("", "")]) == "" == coded_view([])


def test_a_known_view_comes_before_other_words() -> None:
    assert coded_view([("7771000", "Left"), ("62824007", "Transverse")]) == "transverse"
    assert coded_view([("1", "Upper outer quadrant"), ("2", "Radial")]) == "radial"
    assert coded_view([("1", "Oblique"), ("2", "Left")]) == "oblique"
