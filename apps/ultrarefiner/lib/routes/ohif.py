"""The files of OHIF, and the mode "UltraRefiner" with its configuration.

OHIF is MONAI Label's own copy (3.10), or the folder ``dist`` of another one (option ``ohif``), such as the npm package
``@ohif/app`` carries. Its files are not changed: what was built for a server's root is handed out with its
addresses below ``/ohif/``.
"""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

import anyio
import monailabel.endpoints as endpoints
from fastapi import HTTPException, Request
from fastapi.responses import FileResponse, Response
from monailabel.endpoints.user.auth import User
from monailabel.utils.others.generic import get_mime_type

from lib.routes.routing import Route, user_role
from ultrarefiner_monai.config.reading import ConfigError

STOCK = Path(endpoints.__file__).resolve().parent / "static" / "ohif"
BUNDLE = Path(__file__).resolve().parents[2] / "viewer" / "built" / "ultrarefiner.js"
# What the viewer's pages may load: this server's files alone. OHIF compiles its decoders, and asks for fonts of elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:; base-uri 'self'"
)
# Where a dist that is built for a server's root names its own files: its page, its styles, webpack's public path.
_ROOTED = {
    ".html": re.compile(rb"""((?:href|src|content|PUBLIC_URL)\s*=\s*["'])/(?!/)"""),
    ".css": re.compile(rb"""(url\(["']?)/(?!/)"""),
    ".js": re.compile(rb"""(\b\w+\.p\s*=\s*["'])/(?=["'])"""),
}
_NAMED_BY_CONTENT = re.compile(r"[.-]?[0-9a-f]{16,}\.\w+$")


class OhifRoutes:
    """The viewer's files. folder: the ``dist`` of an OHIF; empty: MONAI Label's own.

    Raises ConfigError where the folder holds no OHIF.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder).expanduser().resolve() if folder else STOCK
        if folder and not ((self.folder / "index.html").is_file() and any(self.folder.glob("app.bundle*.js"))):
            raise ConfigError(
                f"ohif: {folder} holds no built OHIF (index.html and app.bundle...js): name the folder dist of the npm package "
                "@ohif/app, or leave the option empty for MONAI Label's own"
            )
        # A dist that was built for the place where it is served here (PUBLIC_URL=/ohif/) goes out as it is.
        self.rooted = bool(folder) and b"/ohif/" not in (self.folder / "index.html").read_bytes()
        self._moved: dict[tuple[str, int, int], bytes] = {}  # files with other addresses, by what they are made from
        self._lock = threading.Lock()

    def routes(self) -> list[Route]:
        return [("GET", "/ohif/app-config.js", self.configuration), ("GET", "/ohif/{path:path}", self.file)]

    async def configuration(self, user: User = user_role) -> Response:
        """OHIF's configuration as MONAI Label has it, and behind it the mode. A dist's own would ask servers elsewhere."""

        def work() -> str:
            stock = (STOCK / "app-config.js").read_text(encoding="utf-8")
            return f"{stock}\n{BUNDLE.read_text(encoding='utf-8')}"

        text = await anyio.to_thread.run_sync(work)
        return Response(text, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    async def file(self, path: str, request: Request, user: User = user_role) -> Response:
        """A file of OHIF; for whatever is none, its page, which finds its own way from there."""

        def work() -> Response:
            try:
                file = (self.folder / path).resolve() if path else self.folder
                inside = file.is_relative_to(self.folder) and file.is_file()
            except (OSError, ValueError, RuntimeError):  # a name that no file can have
                inside = False
            shown = file if inside else self.folder / "index.html"
            if not shown.is_file():
                raise HTTPException(404, "OHIF is not installed here")
            kind, headers = get_mime_type(str(shown)), {"Content-Security-Policy": POLICY}
            if moved := self._below_ohif(shown):
                tag = f'"{hashlib.sha256(moved).hexdigest()[:32]}"'
                headers |= {"Cache-Control": "private, no-cache", "ETag": tag}
                if request.headers.get("if-none-match") == tag:
                    return Response(status_code=304, headers=headers)
                return Response(moved, media_type=kind, headers=headers)
            kept = "max-age=31536000, immutable" if _NAMED_BY_CONTENT.search(shown.name) else "no-cache"
            return FileResponse(shown, media_type=kind, headers={**headers, "Cache-Control": f"private, {kept}"})

        return await anyio.to_thread.run_sync(work)

    def _below_ohif(self, file: Path) -> bytes:
        """A page, style or script with the addresses of its dist's files below ``/ohif/``, where this server has them; empty for a file
        that goes out as it is."""
        if not self.rooted or file.suffix not in _ROOTED:
            return b""
        found = file.stat()
        key = str(file), found.st_mtime_ns, found.st_size
        with self._lock:  # some are of 17 MB: one thread at a time, and only what has changed is kept
            if key not in self._moved:
                content = file.read_bytes()
                moved = _ROOTED[file.suffix].sub(rb"\1/ohif/", content)
                self._moved = {k: v for k, v in self._moved.items() if k[0] != key[0]}
                self._moved[key] = b"" if moved == content else moved
            return self._moved[key]
