"""The index of a studies folder: edited, half written, read while it is replaced."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monailabel.interfaces.exception import ImageNotFoundException
from small_studies import LABEL, make_store

from ultrarefiner_monai.studies.names import is_name

NAMES = st.sampled_from(
    ["a", "b", "../a", "/etc/passwd", "..", "", "passwd", ".ultrarefiner", "notes", "a/b", "a\\b", "\0"]
)
ENDS = st.sampled_from([".png", "", "/../../etc/passwd", ".txt", "/passwd", ".PNG", ".nii.gz", "\0"])
DATA = st.one_of(
    st.fixed_dictionaries({"ext": ENDS, "info": st.dictionaries(NAMES, NAMES | st.floats(), max_size=2)}),
    st.sampled_from([None, 5, [], {"ext": 5}]),
)
ENTRY = st.one_of(
    st.fixed_dictionaries({"image": DATA, "labels": st.dictionaries(NAMES, DATA, max_size=2)}),
    st.sampled_from([None, 1]),
)
PLACES = st.sampled_from(["/etc", "..", "", ".", "labels", "/"])
INDEX = st.one_of(
    st.fixed_dictionaries(
        {"images_dir": PLACES, "labels_dir": PLACES, "base_path": PLACES, "objects": st.dictionaries(NAMES, ENTRY)}
    ),
    st.sampled_from([[], None, {"objects": []}, {}, "x"]),
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(INDEX)
def test_an_edited_index_shows_nothing_else(studies, label, index):
    """Whatever stands in it: places are ours, and what is opened is an image of the studies or one of their labels."""
    (studies / "notes").write_text("nobody's")
    store = make_store(studies)
    (studies / "datastore_v2.json").write_text(json.dumps(index))
    for look in (lambda: store.update_image_info("a", {"x": 1}), store.refresh, lambda: make_store(studies).refresh()):
        try:
            look()
        except ImageNotFoundException:
            pass
        model = store._datastore
        assert (model.base_path, model.images_dir, model.labels_dir) == (str(studies), ".", "labels")
        for image_id, entry in model.objects.items():
            assert is_name(image_id)
            json.dumps(store.get_image_info(image_id), allow_nan=False)
            try:
                assert store.image_path(image_id) in (studies / "a.png", studies / "b.png")
            except ImageNotFoundException:
                pass
            for tag in entry.labels:
                assert Path(store.get_label_uri(image_id, tag)).parent.parent == studies / "labels"
    offered = {store.image_path(image_id).name: image_id for image_id in store.list_images()}
    assert offered.keys() == {"a.png", "b.png"} and len(store.list_images()) == 2
    store.save_label(offered["a.png"], label, "final", {})
    assert (studies / "labels" / "final" / f"{offered['a.png']}.png").read_bytes() == LABEL
    for aside in studies.glob("datastore_v2.json.broken-*"):
        aside.unlink()


def test_what_an_edited_index_says_of_people_stays(studies, label, caplog):
    make_store(studies).save_label("a", label, "final", {"user": "rose"})
    path = studies / "datastore_v2.json"
    values = json.loads(path.read_text())
    values |= {"images_dir": "/etc", "labels_dir": "/etc"}
    values["objects"]["../../x"] = values["objects"]["a"]
    path.write_text(json.dumps(values))
    again = make_store(studies)
    assert again.get_label_info("a", "final")["user"] == "rose" and again.list_images() == ["a", "b"]
    assert "no plain names" in caplog.text and again.get_label_uri("a", "final").startswith(str(studies))


def test_readers_never_see_half_of_a_new_index(studies, label):
    """Another server rewrites the index all the time, this one reads it in as often: paths stay in the studies."""
    one, other = make_store(studies), make_store(studies)
    seen: set[str] = set()
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            other.update_image_info("b", {"t": time.monotonic()})

    def look() -> None:
        while not stop.is_set():
            seen.add(str(one.label_file("a", "final", ".png")))
            seen.add(one.get_image_uri("a"))

    threads = [threading.Thread(target=work) for work in (write, look)]
    for thread in threads:
        thread.start()
    try:
        for n in range(60):
            one._init_from_datastore_file()
            if n % 10 == 0:
                one.save_label("a", label, "final", {"n": n})
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen == {str(studies / "labels" / "final" / "a.png"), str(studies / "a.png")}
    other.refresh()
    assert other.get_label_info("a", "final")["n"] == 50
