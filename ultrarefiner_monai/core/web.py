"""What requests to web servers have in common: which certificates and proxies count, and how a failure is said in words."""

from __future__ import annotations

import os
import ssl
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies


class WebSession(requests.Session):
    """Trusts what this machine trusts, a hospital's own certificates among them, and never sends what is in ~/.netrc.

    Certificates: those of SSL_CERT_FILE and SSL_CERT_DIR or of the system, and those of REQUESTS_CA_BUNDLE besides.
    proxies: whether those of the environment (https_proxy, no_proxy) are used, for redirects too.
    """

    def __init__(self, proxies: bool) -> None:
        super().__init__()
        self.trust_env = False  # no .netrc, no proxy but those below
        self.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        self._uses_proxies = proxies
        self.mount("https://", _MachinesCertificates())

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """As ``requests``, with the proxies for ``url``: no_proxy leaves some addresses out."""
        if self._uses_proxies:
            proxies = {**get_environ_proxies(str(url)), **(proxies or {})}
        return super().merge_environment_settings(url, proxies, stream, verify, cert)

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> Any:
        """The proxies for where a redirect leads to."""
        if self._uses_proxies:
            proxies = get_environ_proxies(str(prepared_request.url))
        return super().rebuild_proxies(prepared_request, proxies)


class _MachinesCertificates(HTTPAdapter):
    """``requests`` alone knows the public certificates only, or one file, or one folder."""

    def __init__(self) -> None:
        self._context = ssl.create_default_context()
        paths = ssl.get_default_verify_paths()
        self._has_some = bool(paths.cafile or paths.capath)
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **options)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **options)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        if verify is True and self._has_some:  # the context has them; those that requests brings are not added
            conn.cert_reqs = "CERT_REQUIRED"
            return
        super().cert_verify(conn, url, verify, cert)


def reason_of(error: BaseException) -> str:
    """Why a request failed, without what ``requests`` and ``urllib3`` wrap around it: addresses and objects."""
    inner: BaseException | None = error
    while inner is not None and type(inner).__module__.split(".")[0] in ("requests", "urllib3"):
        error, inner = inner, inner.__cause__ or inner.__context__
    return str(inner or error)
