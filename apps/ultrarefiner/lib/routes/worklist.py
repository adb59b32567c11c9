"""The page at `/ultrarefiner/worklist`: the images of the studies, what is known of each, and the way into the viewer. HTML without
scripts, nothing from elsewhere; made from the index, without opening a file but DICOM headers. Of a PACS, the names of patients are
asked for when the page is, and not kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from html import escape
from typing import Any
from urllib.parse import urlencode

import anyio
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from lib.app import App
from lib.routes.routing import Route, user_role
from lib.routes.viewer import query_of
from lib.store.instances import Instances, Row
from lib.store.pacs import PacsStudies
from ultrarefiner_monai.core.types import NOTICE

FINAL, PROPOSED, NEW = "final", "proposed", "new"
STATES = (NEW, PROPOSED, FINAL)
PAGE = 50
VIEWER = "../ohif/ultrarefiner?"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; form-action 'self'",
    "Cache-Control": "no-store",
}
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2733; --soft: #5a6875; --rule: #dbe1e7; --line: #0b62a4; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1114; --card: #161b20; --ink: #d4dde6; --soft: #9aa7b4; --rule: #2a323a; --line: #7fb9e6; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--page); color: var(--ink); }
a { color: var(--line); } .soft { color: var(--soft); } form { display: flex; gap: .6rem; flex-wrap: wrap; margin: .8rem 0; align-items: end; }
ul { list-style: none; padding: 0; display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
li { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: .6rem; overflow-wrap: anywhere; }
img { width: 100%; height: 9rem; object-fit: contain; background: #000; border-radius: .3rem; display: block; }
"""


class WorklistRoutes:
    """instances: the folder's images by UID; None where the studies are a PACS."""

    def __init__(
        self, app: App, instances: Instances | None, sample: Callable[..., Any], place_of: Callable[[str], str]
    ):
        """sample: the route of the next sample; place_of: see ``ViewerRoutes``."""
        self.app, self.instances, self.sample, self.place_of = app, instances, sample, place_of

    def routes(self) -> list[Route]:
        return [("GET", "/ultrarefiner/worklist", self.worklist), ("POST", "/ultrarefiner/worklist/next", self.next)]

    async def worklist(
        self, state: str = "", search: str = "", page: int = 1, none: bool = False, user: User = user_role
    ) -> Response:
        """The images of the studies as a page. none: it says that no next image is left."""

        def work() -> str:
            rows, problem = (self.instances.rows(), "") if self.instances is not None else self._rows_of_pacs()
            problem = "No image is left: all have a final label, or cannot be opened." if none else problem
            states = self._states()
            found = [(r, states.get(r.image_id, NEW)) for r in rows if _plain(search) in _plain(_words(r))]
            counts = {name: sum(s == name for _, s in found) for name in STATES}
            shown = [(r, s) for r, s in found if state in ("", s)]
            return page_of(shown, counts, state, search, page, problem)

        return HTMLResponse(await anyio.to_thread.run_sync(work), headers=_HEADERS)

    async def next(self, request: Request, user: User = user_role) -> Response:
        """The way to the image that teaches most, in the viewer; back to the list where none is left."""
        client = f"viewer-{secrets.token_hex(4)}"  # the image is handed to the viewer that opens it
        found = await self.sample("recommended", request, {"client_id": client}, user)
        if "id" not in found:
            return RedirectResponse("../worklist?none=true", 303)
        place = await anyio.to_thread.run_sync(self.place_of, found["id"])
        return RedirectResponse(f"../{VIEWER}{place}&client={client}", 303)

    def _rows_of_pacs(self) -> tuple[list[Row], str]:
        """The images as the PACS listed them last, and why the names are missing, where they are."""
        store = self.app.datastore()
        assert isinstance(store, PacsStudies)
        store.fresh()
        names, problem = store.names()
        rows = []
        for image_id in sorted(store.list_images()):
            with suppress(ImageNotFoundException):
                rows.append(_row_of_pacs(image_id, store.get_image_info(image_id), names))
        return sorted(rows, key=lambda row: row.values["StudyDate"], reverse=True), problem

    def _states(self) -> dict[str, str]:
        """image id -> final or proposed; all others are new."""
        proposed = self.app.journal.ask(lambda journal: journal.rows("SELECT DISTINCT image_id FROM proposals", ()))
        found = {str(row[0]): PROPOSED for row in proposed}
        tag = DefaultLabelTag.FINAL.value
        return found | dict.fromkeys(self.app.datastore().get_labeled_images(tag), FINAL)


def _row_of_pacs(image_id: str, info: Mapping[str, Any], names: Mapping[str, Mapping[str, str]]) -> Row:
    study, series = str(info["StudyInstanceUID"]), str(info["SeriesInstanceUID"])
    values = {k: str(info.get(k) or "") for k in ("StudyDate", "SeriesDescription", "Modality")}
    return Row(
        image_id, study, series, image_id if image_id != series else "", {**values, **names.get(study, {})}, True
    )


def page_of(
    rows: Sequence[tuple[Row, str]], counts: dict[str, int], state: str, search: str, page: int, problem: str = ""
) -> str:
    """HTML of one page. rows: those that are asked for, with their states; counts: of all states; problem: what the reader should
    know of the list."""
    pages = max(1, -(-len(rows) // PAGE))
    page = min(max(1, page), pages)
    options = "".join(
        f'<option value="{name}"{" selected" if name == state else ""}>{words} ({count})</option>'
        for name, words, count in (("", "all", sum(counts.values())), *((s, s, counts[s]) for s in STATES))
    )
    items = "".join(_item(row, own) for row, own in rows[(page - 1) * PAGE : page * PAGE])
    links = [
        f'<a href="?{escape(urlencode({"state": state, "search": search, "page": to}))}">{words}</a>'
        for to, words in ((page - 1, "Back"), (page + 1, "Next"))
        if 1 <= to <= pages
    ]
    turn = f"<nav>Page {page} of {pages} {' '.join(links)}</nav>" if pages > 1 else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Worklist</title><meta name="viewport" content="width=device-width"/><style>{_STYLE}</style></head><body>
<p><a href="../">Start page</a> · <a href="status">What it learns</a></p>
<h1>Worklist</h1>
<p class="soft">{escape(NOTICE)}</p>
{f'<p role="alert">{escape(problem)}</p>' if problem else ""}
<form method="post" action="worklist/next"><button>Next image</button> <span class="soft">opens the one from whose outline the model learns most</span></form>
<form method="get"><label>Show <select name="state">{options}</select></label>
<label>Search <input name="search" value="{escape(search)}"/></label><button>Show</button></form>
{turn}<ul>{items}</ul>{turn or ""}
{"" if items else "<p>No image is like this.</p>"}
</body></html>"""


def _item(row: Row, state: str) -> str:
    place = f"../proxy/dicom/studies/{row.study}/series/{row.series}"
    place += f"/instances/{row.instance}/rendered?viewport=200,200" if row.instance else "/rendered?viewport=200,200"
    name = escape(row.values.get("PatientName", "").replace("^", " ").strip() or row.image_id)
    date = row.values.get("StudyDate", "")
    date = f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdecimal() else date
    shown = row.image_id if row.image_id not in (row.series, row.instance) else row.values.get("PatientID", "")
    told = " ".join(t for t in (date, row.values.get("SeriesDescription", ""), shown) if t and escape(t) != name)
    return (
        f'<li><a href="{VIEWER}{escape(query_of(row.study, row.series, row.instance))}"><img loading="lazy" src="{escape(place)}" alt=""/>{name}</a>'
        f'<br/><span class="soft">{f"{escape(told)} · " if told else ""}<strong>{state}</strong></span></li>'
    )


def _plain(text: str) -> str:
    """Names are shown with spaces, and stand in DICOM with ^."""
    return text.lower().replace("^", " ")


def _words(row: Row) -> str:
    return " ".join(
        (
            row.image_id,
            *(
                row.values.get(k, "")
                for k in ("PatientName", "PatientID", "StudyDate", "StudyDescription", "SeriesDescription")
            ),
        )
    )
