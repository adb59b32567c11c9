"""What learns when, in words for the status page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib.routes.status_page import Bars, Row, clock, seconds_of
from ultrarefiner_monai.config.learning import LearningConfig
from ultrarefiner_monai.learning.mistake_kinds import GOOD_DICE
from ultrarefiner_monai.learning.mistakes import RIGHT
from ultrarefiner_monai.learning.mistakes_picture import NAMES, Group, Picture


def learning_rows(
    state: dict[str, Any], config: LearningConfig, scoring: dict[str, int], last: dict[str, Any] | None = None
) -> list[Row]:
    """Rows of the card "what it learns next". state: as ``Learner.state``; scoring: as ``Scorer.state``; {} without one.
    last: the training that finished last (``TrainingFolder.stats``), whoever began it."""
    slow, quick = state.get("slow", {}), state.get("quick", {})
    rows = [("Next training", str(slow.get("next") or "only when somebody starts one"))]
    if slow.get("on"):
        rows.append(("New labels", f"{slow['labels']} since the last training; {slow['needed']} begin one"))
    if slow.get("ended"):
        rows.append(("Last training", f"ended {clock(seconds_of(slow['ended']))}"))
    if last:
        rows.append(("Its result", _result_of(last)))
    rows.append(("Quick model", quick_words(quick, config)))
    if why := _last_quick(quick):
        rows.append(("Last quick run", why))
    if scoring:
        left = f", {scoring['left']} still to do" if scoring.get("left") else ""
        rows.append(("Next sample", f"{scoring['scored']} images have scores{left}"))
    return rows


def quick_words(quick: dict[str, Any], config: LearningConfig) -> str:
    """Whether there is a quick model after a save, and what it does just now."""
    if not config.quick:
        return "off (learning.quick is false)"
    if not quick.get("on", False):
        return "off"
    return "learns from the last save" if quick.get("running") else "on: after each save"


def _result_of(last: dict[str, Any]) -> str:
    """Whether the result of a training was taken over, and if not, why."""
    if last.get("promoted"):
        return f"{last['name']} was taken over"
    reasons = "; ".join((last.get("gate") or {}).get("reasons") or ()) or "it was not compared"
    return f"{last['name']} was not taken over: {reasons}"


def _last_quick(quick: dict[str, Any]) -> str:
    """What came of the last quick run; "" where there was none."""
    last = quick.get("last") or {}
    if not last:
        return ""
    what = f"{last['served']} serves" if last.get("served") else "not served"
    samples = f" (from {last['samples']} label{'s' if last['samples'] != 1 else ''})" if last.get("samples") else ""
    at = f", {clock(seconds_of(last['at']))}" if last.get("at") else ""
    return f"{what}: {last.get('why') or 'no reason given'}{samples}{at}"


def learning_errors(state: dict[str, Any]) -> list[Row]:
    """What went wrong last, by its part."""
    slow, quick = state.get("slow", {}), state.get("quick", {})
    found = [("Training by itself", slow.get("error")), ("Quick model", quick.get("error"))]
    return [(name, str(error)) for name, error in found if error]


def report_words(report: dict[str, Any]) -> str:
    """What the gate said of a model (``GateReport.to_dict``); "" without a report."""
    said = []
    if groups := report.get("groups"):
        labels = f"{report['labels']} labels of " if "labels" in report else ""
        said.append(f"{labels}{groups} patients validate")
    if groups and "change" in report:
        said.append(f"mean change {report['change']:+.3f}, at least {report['low']:+.3f}")
    for found in report.get("compared") or ():
        after = {0: "without clicks", 1: "with one click"}.get(found["clicks"], f"with {found['clicks']} clicks")
        if found["lesions"]:
            said.append(f"{after} Dice {_change(found['dice'], '.3f')}, failures {_change(found['failures'])}")
        if found["normals"] and not found["clicks"]:
            said.append(f"false alarms {_change(found['false_alarms'])} of {found['normals']}")
    if groups:
        said.append(f"power: a model that is as good passes with {report.get('power_equal', 0):.0%}")
    said += [str(reason) for reason in [*(report.get("reasons") or ()), *(report.get("warnings") or ())]]
    return "; ".join(dict.fromkeys(said))  # what is a reason can be a warning, too


def wrong_bars(picture: Picture | None) -> list[Bars]:
    """Kinds of error, and the mean Dice by size, echogenicity and device; none without a picture."""
    if picture is None:
        return []
    kinds = {kind: share for kind, share in picture.everything.shares.items() if kind != RIGHT}
    found = [
        Bars(
            "Kinds of error, share of the proposals",
            [(NAMES.get(kind, kind), share, f"{share:.0%}") for kind, share in kinds.items()],
        )
    ]
    found += [Bars(f"By {name}", [_wrong_row(g) for g in groups]) for name, groups in picture.by.items()]
    return [bars for bars in found if bars.rows]


def wrong_words(picture: Picture | None) -> str:
    """What the bars rest on."""
    if picture is None:
        return ""
    dice = "" if picture.everything.dice is None else f", mean Dice {picture.everything.dice:.2f}"
    return (
        f"The first proposal, without clicks, against the label: {picture.everything.images:.0f} images that were labelled "
        f"last{dice}. An error is a Dice below {GOOD_DICE:g}."
    )


def _wrong_row(group: Group) -> tuple[str, float, str]:
    """The bar is the mean Dice; of images without a lesion the share that was left unmarked."""
    wrong = {kind: share for kind, share in group.shares.items() if kind != RIGHT}
    right = 1 - sum(wrong.values()) if group.dice is None else group.dice
    figure = f"{right:.0%} left unmarked" if group.dice is None else f"Dice {group.dice:.2f}"
    most = max(wrong, key=lambda kind: wrong[kind], default="")
    mostly = f"; mostly {NAMES.get(most, most)}" if most else ""
    return group.name, right, f"{figure}, n = {group.images:.0f}{mostly}"


def _change(pair: Sequence[float], form: str = "") -> str:
    before, after = pair
    return f"{before:{form}} to {after:{form}}"
