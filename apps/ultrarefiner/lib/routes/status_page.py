"""The page at `/ultrarefiner/status`, made of facts: HTML and SVG, no scripts, nothing from elsewhere.

Well-formed as XML too. Whatever somebody could have chosen (names of models, messages) is escaped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from lib.routes.charts import bar, escape, line_chart
from lib.tasks.progress import Summary
from ultrarefiner_monai.core.types import NOTICE
from ultrarefiner_monai.learning.progress import RECENT, WINDOW, Curve, Progress

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1c2733; --soft: #5a6875; --rule: #dbe1e7;
--line: #0b62a4; --mark: #8a5a00; --good: #1d6f42; --bad: #a3301f; --rail: #e4e9ee; --notice: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1114; --card: #161b20; --ink: #b9c3cc; --soft: #84919c;
--rule: #2a323a; --line: #5b9fd0; --mark: #b08a45; --good: #6fae88; --bad: #d0806f; --rail: #262e35; --notice: #2a2416; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--page);
color: var(--ink); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .2rem 0; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; } body > h2 { margin-top: 1.4rem; } h3 { font-size: 1rem; margin: .8rem 0 .2rem; }
p { margin: .3rem 0; } a { color: var(--line); } .soft { color: var(--soft); font-size: .9rem; }
.notice { background: var(--notice); border-radius: .4rem; padding: .5rem .8rem; margin: .6rem 0; }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); margin: .8rem 0; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr)); margin: .8rem 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: .8rem; min-width: 0; }
.big { font-size: 1.8rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; overflow-wrap: normal; } .facts th { width: 9rem; } .bars td { overflow-wrap: normal; } .bars td:nth-child(2) { width: 30%; padding-top: .65rem; } tr:last-child > td, tr:last-child > th { border-bottom: 0; } .wide { overflow-x: auto; overflow-wrap: normal; }
.wide td:last-child { min-width: 14rem; }
svg { display: block; width: 100%; height: auto; } svg.bar { height: .7rem; border-radius: .3rem; min-width: 4rem; }
.grid { stroke: var(--rule); } .line { fill: none; stroke: var(--line); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--line); } .mark { stroke: var(--mark); stroke-dasharray: 3 3; stroke-width: 1.5; }
.tick { fill: var(--soft); font-size: 12px; } .rail { fill: var(--rail); } .full { fill: var(--line); }
.good { color: var(--good); } .bad { color: var(--bad); }
""".replace("\n", " ")

Row = tuple[str, str]  # what it is, and what is to be said of it


@dataclass(frozen=True)
class Step:
    """A change of what is served. when: seconds since 1970. by: in words. says: the gate's report in words."""

    when: float
    name: str
    version: str
    by: str
    says: str = ""


@dataclass(frozen=True)
class Running:
    """A training. share: done so far, 0 to 1. says: how far, and how long still."""

    what: str
    share: float
    says: str


@dataclass(frozen=True)
class Bars:
    """Shares by group: (group, share in 0 to 1, what stands behind the bar)."""

    title: str
    rows: Sequence[tuple[str, float, str]]


@dataclass(frozen=True)
class Facts:
    """What the page shows. total: images in the studies. problems: to be looked at. served, learning, machine: rows of
    their tables. steps: newest first. wrong: what the model gets wrong; wrong_says: what that rests on. errors: newest
    first, (when, what)."""

    name: str
    total: int
    summary: Summary
    problems: Sequence[str] = ()
    served: Sequence[Row] = ()
    learning: Sequence[Row] = ()
    machine: Sequence[Row] = ()
    running: Sequence[Running] = ()
    steps: Sequence[Step] = ()
    wrong: Sequence[Bars] = ()
    wrong_says: str = ""
    errors: Sequence[Row] = ()
    now: float = field(default_factory=time.time)


def status_page(facts: Facts) -> str:
    """The whole page."""
    problems = "".join(f"<li>{escape(text)}</li>" for text in facts.problems)
    notes = f'<div class="notice"><strong>To be looked at:</strong><ul>{problems}</ul></div>' if problems else ""
    if facts.summary.left:
        notes += (
            f'<p class="soft">{facts.summary.left} labels are still being counted: the figures are not complete.</p>'
        )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{escape(facts.name)}: status</title>
<style>{_STYLE}</style></head><body>
<h1>{escape(facts.name)}: what it learns</h1>
<p class="soft">{clock(facts.now, seconds=True)} (<a href="status">as it is now</a>). {escape(NOTICE)} <a href="../">Start page</a> · <a href="worklist">Worklist</a></p>
{notes}
{_tiles(facts)}
<div class="cards charts">{_charts(facts)}</div>
<div class="cards">
{_card("What answers", _table(facts.served))}
{_card("What it learns next", "".join(map(_running, facts.running)) + _table(facts.learning))}
{_card("Last errors", _table(facts.errors) or '<p class="good">None since the start.</p>')}
</div>
{_card("Models so far", _history(facts))}
{_wrong(facts)}
<div class="cards">{_card("The machine", _table(facts.machine))}</div>
<p class="soft">For programs: <a href="../metrics">/metrics</a> (Prometheus), <a href="../info/">/info/</a>.</p>
</body></html>"""


# --- parts ------------------------------------------------------------------------------------------------------------


def _tiles(facts: Facts) -> str:
    progress = facts.summary.progress
    again = progress.saves - progress.images
    return (
        '<div class="tiles">'
        + _tile(
            "Images labelled here",
            str(progress.images),
            f"of {facts.total}" + (f", {again} saved again" if again else ""),
        )
        + _tile("Clicks per image", *_now_and_then(progress.clicks, 1))
        + _tile("Proposal against label", *_now_and_then(progress.dice, 2), "Dice")
        + _tile("Seconds per image", *_now_and_then(progress.seconds, 0))
        + "</div>"
    )


def _tile(title: str, big: str, small: str, unit: str = "") -> str:
    unit = f' <span class="soft">{unit}</span>' if unit and big != "none yet" else ""
    return (
        f'<div class="card"><p class="soft">{title}</p><p class="big">{big}{unit}</p><p class="soft">{small}</p></div>'
    )


def _now_and_then(curve: Curve, digits: int) -> tuple[str, str]:
    if curve.recent is None or curve.first is None:
        return "none yet", "&#160;"
    if curve.count <= WINDOW:
        return f"{curve.recent:.{digits}f}", f"{curve.count} labels"
    return f"{curve.recent:.{digits}f}", f"last {min(RECENT, curve.count)}; first {WINDOW}: {curve.first:.{digits}f}"


def _charts(facts: Facts) -> str:
    progress, marks = facts.summary.progress, _marks(facts)
    across = (1.0, float(max(progress.images, 2)))
    ends = ("1st label", f"label {progress.images}") if progress.images else ("", "no label yet")
    changes = " Dashed: another model." if marks else ""
    found = [_card("Labels over time", _labels_over_time(progress))]
    for title, curve, span, digits, says in (
        (
            "Clicks per image",
            progress.clicks,
            (0.0, 1.0),
            1,
            "Points and boxes that the label needed; fewer is less work.",
        ),
        (
            "Proposal against label",
            progress.dice,
            (0.8, 1.0),
            2,
            "Dice of the first proposal; 1 is: nothing to correct.",
        ),
        ("Seconds per image", progress.seconds, (0.0, 10.0), 0, "From shown to saved; the middle value."),
    ):
        svg = line_chart(f"{title}, {says}", curve.points, ends, span, marks if curve.points else (), across, digits)
        text = f"{says} Mean of {WINDOW} labels.{changes}" if title != "Seconds per image" else f"{says}{changes}"
        found.append(_card(title, f'{svg}<p class="soft">{text}</p>'))
    return "".join(found)


def _labels_over_time(progress: Progress) -> str:
    times = progress.times
    step = max(1, len(times) // 200)
    points = [(times[k], float(k + 1)) for k in range(0, len(times), step)]
    points += [(times[-1], float(len(times)))] if times else []
    ends = (clock(times[0]), clock(times[-1])) if times else ("", "no label yet")
    svg = line_chart("Images labelled here over time", points, ends, (0.0, 4.0))
    return f'{svg}<p class="soft">Images whose final label was saved through this server. An image that is saved again counts once.</p>'


def _marks(facts: Facts) -> list[tuple[float, str]]:
    """Where another model began to answer, on the axis of the labels."""
    progress = facts.summary.progress
    return [
        (progress.labels_before(step.when) + 0.5, f"{step.name} since {clock(step.when)}")
        for step in facts.steps
        if progress.images and step.when > progress.times[0]
    ]


def _history(facts: Facts) -> str:
    if not facts.steps:
        return "<p>The model that the server was set up with answers; nothing was promoted yet.</p>"
    versions = facts.summary.progress.versions
    rows = []
    for step in facts.steps:
        seen = versions.get(step.version.partition("+")[0])
        figures = (
            ""
            if seen is None
            else ", ".join(
                [f"{seen.labels} labels"]
                + ([f"{seen.clicks:.1f} clicks"] if seen.clicks is not None else [])
                + ([f"Dice {seen.dice:.2f}"] if seen.dice is not None else [])
            )
        )
        cells = (
            clock(step.when),
            f'{escape(step.name)}<br/><span class="soft">{escape(step.version)}</span>',
            escape(step.by),
        )
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in (*cells, figures, escape(step.says))) + "</tr>")
    heads = ("since", "model", "by", "while it answered", "why")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _running(running: Running) -> str:
    return f'<p>{escape(running.what)}</p>{bar(running.share, running.says)}<p class="soft">{escape(running.says)}</p>'


def _wrong(facts: Facts) -> str:
    if not facts.wrong and not facts.wrong_says:
        return ""
    groups = []
    for bars in facts.wrong:
        rows = "".join(
            f"<tr><td>{escape(group)}</td><td>{bar(share, f'{group}: {says}')}</td><td>{escape(says)}</td></tr>"
            for group, share, says in bars.rows
        )
        groups.append(f'<div class="card"><h3>{escape(bars.title)}</h3><table class="bars">{rows}</table></div>')
    says = f'<p class="soft">{escape(facts.wrong_says)}</p>' if facts.wrong_says else ""
    return f'<h2>What the model gets wrong</h2>{says}<div class="cards">{"".join(groups)}</div>'


def _card(title: str, content: str) -> str:
    return f'<section class="card"><h2>{escape(title)}</h2>{content}</section>'


def _table(rows: Iterable[Row]) -> str:
    """Rows of texts; "" without any."""
    found = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<table class="facts">{found}</table>' if found else ""


def clock(moment: float, seconds: bool = False) -> str:
    """A time as the server's clock shows it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M", time.localtime(moment))
    except (OverflowError, ValueError, OSError):
        return "?"


def seconds_of(created: str) -> float:
    """Seconds since 1970 of an ISO 8601 time with its zone; 0 for what is none."""
    try:
        return datetime.fromisoformat(created).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
