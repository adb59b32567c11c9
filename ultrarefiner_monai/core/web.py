"""What requests to web servers have in common: which certificates are trusted, and how a failure is said in words."""

from __future__ import annotations

import ssl


def certificates() -> str | bool:
    """For ``verify``: the certificates that this machine trusts, a hospital's own among them. ``requests`` alone knows the
    public ones only. True where the machine has none."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def reason_of(error: BaseException) -> str:
    """Why a request failed, without what ``requests`` and ``urllib3`` wrap around it: addresses and objects."""
    inner: BaseException | None = error
    while inner is not None and type(inner).__module__.split(".")[0] in ("requests", "urllib3"):
        error, inner = inner, inner.__cause__ or inner.__context__
    return str(inner or error)
