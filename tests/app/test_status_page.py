"""The status page: well-formed, needs nothing from elsewhere, shows markup instead of obeying it."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import unescape

import pytest
from app_server import APP  # noqa: F401 (puts lib on the path)
from hypothesis import given
from hypothesis import strategies as st

from lib.routes.charts import bar, line_chart
from lib.routes.learning_words import learning_errors, learning_rows, report_words, wrong_bars, wrong_words
from lib.routes.status_page import Bars, Facts, Running, Step, status_page
from lib.tasks.progress import Summary
from ultrarefiner_monai.config.learning import LearningConfig
from ultrarefiner_monai.learning.gate import Compared, GateReport
from ultrarefiner_monai.learning.mistakes import Mistake
from ultrarefiner_monai.learning.mistakes_picture import Look, picture_of
from ultrarefiner_monai.learning.progress import Save, progress_of

EVIL = "<script>alert(1)</script>\"'&\x00\ud800<img src=http://evil.example/x>"
NOW = 1_790_000_000.0


def summary(count: int) -> Summary:
    rows = [
        Save(k, f"2026-01-{1 + k % 28:02d}T10:00:00+00:00", f"i{k}", k % 4, 0.8 + k % 3 / 10, 20.0, "v1")
        for k in range(count)
    ]
    return Summary(progress_of(rows))


def full(text: str, count: int = 60) -> Facts:
    return Facts(
        text,
        5000,
        replace(summary(count), left=3),
        problems=[text],
        served=[(text, text)],
        learning=[(text, text)],
        machine=[(text, text)],
        running=[Running(text, 0.4, text)],
        steps=[Step(NOW, text, "v1+quick", text, text)],
        wrong=[Bars(text, [(text, 0.3, text)])],
        wrong_says=text,
        errors=[(text, text)],
        now=NOW,
    )


def parsed(page: str) -> ET.Element:
    assert page.startswith("<!doctype html>\n")
    return ET.fromstring(page.removeprefix("<!doctype html>\n"))


@pytest.mark.parametrize(
    "facts", [Facts("x", 0, Summary()), full("plain", 1), full("plain", 300)], ids=["empty", "1", "300"]
)
def test_it_is_well_formed_and_asks_for_nothing(facts: Facts) -> None:
    page = status_page(facts)
    root = parsed(page)
    for element in root.iter():
        assert element.tag not in ("script", "link", "img", "iframe", "object", "form")
        assert not [name for name in element.attrib if name.startswith("on") or name == "src"]
        assert re.fullmatch(r"\.\./(metrics|info/)?|status|worklist", element.get("href", "../")), (
            "links stay on this server"
        )
    assert "url(" not in page and "@import" not in page and "://" not in page


def test_an_empty_server_says_so() -> None:
    text = " ".join(parsed(status_page(Facts("x", 7, Summary()))).itertext())
    assert (
        "of 7" in text and text.count("none yet") == 3 and "nothing was promoted yet" in text and "None since" in text
    )


def test_markup_is_shown_not_obeyed() -> None:
    page = status_page(full(EVIL))
    root = parsed(page)
    assert not list(root.iter("script")) and not list(root.iter("img"))
    assert "<script" not in page and "alert(1)" in unescape(page)
    assert len(list(root.iter())) == len(list(parsed(status_page(full("plain"))).iter()))


@given(st.text(max_size=40))
def test_any_text_leaves_it_well_formed(text: str) -> None:
    parsed(status_page(full(text, 2))).tag.encode()


def test_what_it_says() -> None:
    text = " ".join(parsed(status_page(full("plain"))).itertext())
    assert "3 labels are still being counted" in text and "of 5000" in text
    assert "60 labels, 1.5 clicks, Dice 0.90" in text  # while version v1 answered, its quick models included


def test_five_thousand_labels_are_drawn_at_once() -> None:
    facts = full("plain", 5000)
    begin = time.perf_counter()
    page = status_page(facts)
    assert time.perf_counter() - begin < 0.5 and len(page) < 100_000


POINTS = st.lists(st.tuples(st.floats(0, 1e4), st.floats(-1e3, 1e3)), max_size=30).map(sorted)


@given(POINTS, st.sampled_from([None, (0.0, 1.0)]))
def test_curves_stay_in_their_frame(points: list[tuple[float, float]], span: tuple[float, float] | None) -> None:
    svg = ET.fromstring(line_chart("says", points, ("a", "b"), span, [(3.0, "mark")]))
    for circle in svg.iter("circle"):
        assert 40 <= float(circle.get("cx", "")) <= 350 and 11.9 <= float(circle.get("cy", "")) <= 154.1
    for line in svg.iter("polyline"):
        places = [tuple(map(float, place.split(","))) for place in line.get("points", "").split()]
        assert len(places) == len(points) and all(40 <= x <= 350 and 11.9 <= y <= 154.1 for x, y in places)
    assert 2 <= len(svg.findall("line")) - 1 <= 12


@pytest.mark.parametrize(("share", "width"), [(-1, "0.0"), (0.25, "25.0"), (7, "100.0"), (float("nan"), "0.0")])
def test_bars(share: float, width: str) -> None:
    assert ET.fromstring(bar(share, "x")).findall("rect")[1].get("width") == width


STATE = {
    "slow": {
        "on": True,
        "next": "after 4 more labels",
        "labels": 6,
        "needed": 10,
        "ended": "2026-01-02T03:04:05+00:00",
    },
    "quick": {"on": True, "running": False, "last": {"served": "", "why": "mean Dice is .02 lower", "samples": 7}},
}


def test_what_is_learnt_next() -> None:
    rows = dict(learning_rows(STATE, LearningConfig(), {"scored": 3, "left": 4}))
    assert rows["Next training"] == "after 4 more labels" and rows["New labels"].startswith("6 since")
    assert rows["Quick model"] == "on: after each save" and rows["Last training"].startswith("ended 2026-01-02")
    assert rows["Last quick run"] == "not served: mean Dice is .02 lower (from 7 labels)"
    assert rows["Next sample"] == "3 images have scores, 4 still to do" and "Its result" not in rows
    refused = {
        "name": "sam_refiner-1",
        "promoted": False,
        "gate": {"passed": False, "reasons": ["3 validate", "worse"]},
    }
    rows = dict(learning_rows(STATE, LearningConfig(), {}, refused))
    assert rows["Its result"] == "sam_refiner-1 was not taken over: 3 validate; worse"
    rows = dict(learning_rows(STATE, LearningConfig(), {}, {"name": "sam_refiner-2", "promoted": True}))
    assert rows["Its result"] == "sam_refiner-2 was taken over"
    assert "learning.quick" in dict(learning_rows(STATE, LearningConfig(quick=False), {}))["Quick model"]
    running = {"quick": {"on": True, "running": True, "last": {"served": "quick-3", "why": "not worse"}}}
    rows = dict(learning_rows(running, LearningConfig(), {}))
    assert "learns" in rows["Quick model"] and rows["Last quick run"] == "quick-3 serves: not worse"


def test_errors_by_their_part() -> None:
    assert learning_errors(STATE) == [] == learning_errors({})
    wrong = {"slow": {"error": "the disk is full"}, "quick": {"error": "killed"}}
    assert learning_errors(wrong) == [("Training by itself", "the disk is full"), ("Quick model", "killed")]


def test_the_gate_in_words() -> None:
    """Of what the gate really returns."""
    compared = Compared(0, 24, 25, 3, (0.8421, 0.8611), -0.002, (3, 2), (1, 0))
    both = compared, replace(compared, clicks=3)
    found = GateReport(True, (), "a", "b", 25, 24, both, 0.019, -0.002, 0.71, 0.95, 0.005, 0.9, ("few",))
    words = report_words(found.to_dict())
    assert (
        "25 labels of 24 patients validate; mean change +0.019, at least -0.002; without clicks Dice 0.842 to 0.861, failures 3 to 2; false alarms 1 to 0 of 3"
        in words
    )
    assert "with 3 clicks Dice" in words and "passes with 71%" in words and words.endswith("few")
    assert report_words({}) == "" and report_words({"reasons": ["it is worse"]}) == "it is worse"
    assert report_words({"reasons": ["too few", "worse"], "warnings": ["too few"]}) == "too few; worse"


def test_what_the_model_gets_wrong() -> None:
    mistakes = [
        Mistake("a@0", {"over": 1.0}, 0.7, True, 0.1),
        Mistake("b@0", {"identity": 1.0}, 0.97, True, 0.3),
        Mistake("c@0", {"islands": 1.0}, 0.0, False),
        Mistake("d@0", {}, 1.0, False),
    ]
    bars = {b.title: b.rows for b in wrong_bars(picture_of(mistakes, {"a@0": Look(0.4, "a <device>")}))}
    size = {name: (share, says) for name, share, says in bars["By size"]}
    assert size["small"] == (pytest.approx(0.7), "Dice 0.70, n = 1; mostly too large")
    assert size["no lesion"] == (pytest.approx(0.5), "50% left unmarked, n = 2; mostly false alarm")
    assert {"a <device>"} < {row[0] for row in bars["By device"]} and "By echogenicity" in bars
    assert wrong_bars(None) == [] and wrong_words(None) == "" and "4 images" in wrong_words(picture_of(mistakes))
