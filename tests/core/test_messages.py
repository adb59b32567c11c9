"""What clients are told holds no path of the server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultrarefiner_monai.core.messages import hide, public, public_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /home/anna/studies/a.png: no such file", "cannot read a.png: no such file"),
        ("[Errno 2] No such file or directory: '/data set/x/a b.png'", None),
        ("in (/tmp/x/y.nii.gz)", "in (y.nii.gz)"),
        ("ask GET /train/ or /datastore/image, not /infer/x", "ask GET /train/ or /datastore/image, not /infer/x"),
        ("http://pacs.example/home/x", "http://pacs.example/home/x"),
        (r"C:\Users\anna\a.png is damaged", "a.png is damaged"),
        ("1/2 and a/b", "1/2 and a/b"),
    ],
)
def test_paths_are_cut_to_their_last_part(text, shown):
    hide("/data set/x")
    assert public(text) == (shown or "[Errno 2] No such file or directory: 'a b.png'")


@given(st.lists(st.text("ab é,", min_size=1, max_size=5).map(str.strip).filter(bool), min_size=1, max_size=4))
def test_a_known_folder_is_never_shown(parts):
    root = "/" + "/".join(parts) + "/studies"
    hide(root)
    found = public_values({"a": [f"see {root}/x.png", f"'{root}'", {"b": f"{root}: gone"}]})
    assert root not in str(found) and "x.png" in found["a"][0]
