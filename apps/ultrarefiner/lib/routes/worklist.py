"""The page at `/ultrarefiner/worklist`: the images of a studies folder, what is known of each, and the way into the viewer. HTML
without scripts, nothing from elsewhere; made from the index, without opening a file but DICOM headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import quote, urlencode

import anyio
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.app import App
from lib.routes.routing import Route, user_role
from lib.store.instances import Instances, Row
from ultrarefiner_monai.core.types import NOTICE

FINAL, PROPOSED, NEW = "final", "proposed", "new"
STATES = (NEW, PROPOSED, FINAL)
PAGE = 50
VIEWER = "../ohif/ultrarefiner?StudyInstanceUIDs="
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
    """instances: the folder's images by UID; None where the studies are a PACS, whose list is the viewer's own."""

    def __init__(self, app: App, instances: Instances | None):
        self.app, self.instances = app, instances

    def routes(self) -> list[Route]:
        return [("GET", "/ultrarefiner/worklist", self.worklist)]

    async def worklist(self, state: str = "", search: str = "", page: int = 1, user: User = user_role) -> Response:
        """The images of the studies as a page; of a PACS, the viewer's own list."""
        if self.instances is None:
            return RedirectResponse("../ohif/", 307)

        def work() -> str:
            assert self.instances is not None
            states = self._states()
            rows = [r for r in self.instances.rows() if search.lower() in _words(r).lower()]
            found = [(r, states.get(r.image_id, NEW)) for r in rows]
            counts = {name: sum(s == name for _, s in found) for name in STATES}
            return page_of([(r, s) for r, s in found if state in ("", s)], counts, state, search, page)

        return HTMLResponse(await anyio.to_thread.run_sync(work), headers=_HEADERS)

    def _states(self) -> dict[str, str]:
        """image id -> final or proposed; all others are new."""
        proposed = self.app.journal.ask(lambda journal: journal.rows("SELECT DISTINCT image_id FROM proposals", ()))
        found = {str(row[0]): PROPOSED for row in proposed}
        tag = DefaultLabelTag.FINAL.value
        return found | dict.fromkeys(self.app.datastore().get_labeled_images(tag), FINAL)


def page_of(rows: Sequence[tuple[Row, str]], counts: dict[str, int], state: str, search: str, page: int) -> str:
    """HTML of one page. rows: those that are asked for, with their states; counts: of all states."""
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
<form method="get"><label>Show <select name="state">{options}</select></label>
<label>Search <input name="search" value="{escape(search)}"/></label><button>Show</button></form>
{turn}<ul>{items}</ul>{turn or ""}
{"" if items else "<p>No image is like this.</p>"}
</body></html>"""


def _item(row: Row, state: str) -> str:
    place = f"../proxy/dicom/studies/{row.study}/series/{row.series}/instances/{row.instance}/thumbnail"
    name = escape(row.values.get("PatientName", "").replace("^", " ").strip() or row.image_id)
    return (
        f'<li><a href="{VIEWER}{quote(row.study)}"><img loading="lazy" src="{place}" alt=""/>{name}</a>'
        f'<br/><span class="soft">{escape(row.values.get("StudyDate", ""))} {escape(row.image_id)} · <strong>{state}</strong></span></li>'
    )


def _words(row: Row) -> str:
    return " ".join(
        (row.image_id, *(row.values.get(k, "") for k in ("PatientName", "PatientID", "StudyDate", "StudyDescription")))
    )
