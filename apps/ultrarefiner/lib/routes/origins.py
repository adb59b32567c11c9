"""The first door: the name by which the server is called, and the web page that a request comes from.

A web page can let its own name point to this server (DNS rebinding), and then reads and writes as the user; the Host
header shows that. A page can also send forms and simple requests to any address; Origin and Sec-Fetch-Site show that.
Programs that are no browsers send neither of these two.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"(https?)://(.+)")
_PORTS = {"http": 80, "https": 443}


class Origins:
    """ASGI middleware. hosts: names that are allowed besides this machine's own. origins: foreign web pages that are
    allowed, as ``scheme://host[:port]``. machine: names by which other machines may call this one."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], origins: Iterable[str], machine: Iterable[str] = ()):
        self.app = app
        self.origins = {normal_origin(o) for o in origins}
        self.hosts = {normal_name(h) for h in hosts} | {host for _, host, _ in filter(None, self.origins)}
        self.machine = {normal_name(h) for h in machine}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "there are no websockets here"})
            return
        refusal = self.refusal(scope) if scope["type"] == "http" else None
        if refusal is not None:
            status, message = refusal
            log_refusal(scope, status, message)
            await JSONResponse({"detail": message}, status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """(status, words) for a request that is not answered."""
        hosts = header(scope, b"host")
        host = split_host(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return (
                400,
                f"expected one Host header (name or address, and a port), got {', '.join(hosts)[:120] or 'none'}",
            )
        if not self._is_ours(host[0], scope):
            return 421, (
                f"this server is not called {host[0]!r:.120}: use its address, or name this one in the option "
                "allowed_hosts of the server's config"
            )
        origins = header(scope, b"origin")
        if origins:
            if len(origins) == 1 and self._is_allowed(origins[0], host):
                return None
            return 403, (
                f"a page of {', '.join(origins)[:120]} may not use this server: name its origin in the option "
                "cors_origins of the server's config if it is meant to"
            )
        return self._fetched_from_elsewhere(scope)

    def _is_ours(self, name: str, scope: Scope) -> bool:
        reached = (scope.get("server") or ("",))[0] or ""
        if name in self.hosts or is_loopback(name) or (is_address(name) and name == normal_name(reached)):
            return True
        # In a network the machine's name can be forged; who comes from there needs the token, or may do all anyway.
        return name in self.machine and not is_loopback(reached)

    def _is_allowed(self, origin: str, host: tuple[str, int | None]) -> bool:
        found = normal_origin(origin)
        if found is None:
            return False
        scheme, name, port = found
        return found in self.origins or (name, port) == (host[0], host[1] or _PORTS[scheme])

    @staticmethod
    def _fetched_from_elsewhere(scope: Scope) -> tuple[int, str] | None:
        """Browsers send no Origin where a page shows an image or the user follows a link: only the link is what the
        user wants."""
        if not set(header(scope, b"sec-fetch-site")) & {"cross-site", "same-site"}:
            return None
        link = header(scope, b"sec-fetch-mode") == ["navigate"] and header(scope, b"sec-fetch-dest") == ["document"]
        if link and scope["method"] in ("GET", "HEAD"):
            return None
        return 403, "a page of another site may not use this server: open its address in the browser yourself"


def log_refusal(scope: Scope, status: int, why: str) -> None:
    """Log a refusal, for those who look for an attack or for the reason why a colleague is refused."""
    peer = (scope.get("client") or ("an unknown address",))[0]
    logger.warning("%d for %s: %s %r: %s", status, peer, scope["method"], scope["path"][:120], why)


def route_path(scope: Scope) -> str:
    """The path as routes know it: without ``--root_path``, below which a proxy may show the server."""
    root = scope.get("root_path", "").rstrip("/")
    path: str = scope["path"]
    return path[len(root) :] if root and path.startswith(root + "/") else path


def header(scope: Scope, name: bytes) -> list[str]:
    """All values of a header (``name`` in small letters)."""
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]


def split_host(text: str) -> tuple[str, int | None] | None:
    """(name, port) of a Host header, None for one that is not well formed."""
    found = _HOST.fullmatch(text)
    if found is None or not 0 < int(found[2] or 80) < 65536:
        return None
    return normal_name(found[1]), int(found[2]) if found[2] else None


def normal_origin(text: str) -> tuple[str, str, int] | None:
    """(scheme, name, port) of an origin; None for other texts ("null", another scheme, a path)."""
    found = _ORIGIN.fullmatch(text.strip().rstrip("/").lower())
    host = split_host(found[2]) if found else None
    return (found[1], host[0], host[1] or _PORTS[found[1]]) if found and host else None


def normal_name(text: str) -> str:
    """A host's name in lower case without a dot at its end; an address in its canonical form."""
    name = text.strip().strip("[]").lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a name or an address is loopback: this machine as it calls itself."""
    name = normal_name(host)
    return ipaddress.ip_address(name).is_loopback if is_address(name) else name == "localhost"
