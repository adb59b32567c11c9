"""Names that clients may give, and values that may be kept."""

from __future__ import annotations

from typing import Any

import pytest

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.names import check_info, check_name, is_name, split_name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", " a", "a ", "a\n", "\ud800", "é" * 111, 5])
def test_what_is_no_plain_name_is_refused(name: Any) -> None:
    assert not is_name(name)
    with pytest.raises(InputError, match="tag must be a plain name"):
        check_name(name, "tag")


@pytest.mark.parametrize("name", ["a", "a b", "a..b", "Läsion 1", "é" * 110])
def test_plain_names_pass(name: str) -> None:
    assert check_name(name, "tag") == name


@pytest.mark.parametrize(
    "value", [float("nan"), [float("inf")], {"a": {"b": 1 << 64}}, {"\ud800": 1}, [[[[[[[]]]]]]] * 2]
)
def test_only_what_json_can_hold_is_kept(value: Any) -> None:
    deep: Any = value
    for _ in range(12):
        deep = [deep]
    with pytest.raises(InputError, match="info"):
        check_info(deep, "info")


def test_the_longest_extension_counts_in_any_case() -> None:
    known = (".gz", ".nii.gz", ".png")
    assert split_name("a.NII.gz", known) == ("a", ".NII.gz")
    assert split_name("a.b.PNG", known) == ("a.b", ".PNG")
    assert split_name(".png", known) is None and split_name("a.txt", known) is None
