"""Requests to a DICOMweb store: with credentials, without a proxy, retried where that may help."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from ultrarefiner_monai.config import ConfigError
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicomweb.credentials import Credentials

logger = logging.getLogger(__name__)
T = TypeVar("T")

_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


class PacsError(InputError):
    """The store did not do what was asked: says what failed, where, and what to do.

    transient: whether the same may work later. status: the HTTP status, None where no answer came. pause: seconds that
    the store wants to be left alone for.
    """

    def __init__(self, message: str, transient: bool = True, status: int | None = None, pause: float = 0.0):
        super().__init__(message)
        self.transient, self.status, self.pause = transient, status, pause


class Connection:
    """The way to one store. Thread-safe."""

    def __init__(
        self,
        url: str,
        credentials: Credentials | None = None,
        ca_file: str | Path | None = None,
        timeout: float = 30,
        retries: int = 3,
    ):
        """url: the DICOMweb root. timeout: seconds until an answer begins, and between its pieces.

        Raises ConfigError for an address with a password in it, and a ca_file that is not there.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"expected the DICOMweb address http(s)://HOST/..., got {url!r:.200}")
        if "@" in parts.netloc:
            raise ConfigError(
                "the address of the PACS must not hold a user or password: it stands in logs and replies; use "
                "pacs.user and pacs.password_file (docs/it/pacs.md)"
            )
        if ca_file and not Path(ca_file).is_file():
            raise ConfigError(f"pacs.ca_file: there is no file {str(ca_file)!r}; expected certificates in PEM format")
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self.host = parts.netloc
        self._credentials, self._ca_file = credentials or Credentials(), str(ca_file or "")
        self._local = threading.local()
        if self._credentials and parts.scheme == "http" and not parts.hostname.startswith(("127.", "localhost", "::1")):
            logger.warning("%s is asked without encryption: passwords and images can be read on the way", self.host)

    def forward(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> requests.Response:
        """A viewer's request as it is, with our credentials; the answer is streamed and not yet read. Not retried."""
        return self._send(
            method,
            f"{self.url}/{path}{'?' if query else ''}{query}",
            headers=dict(headers),
            data=body,
            stream=True,
            allow_redirects=False,
        )

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = requests.Session()
            session.trust_env = False  # no proxy, no .netrc
            session.auth = self._credentials
            session.verify = self._ca_file or True
            self._local.session = session
        return self._local.session

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return self._session().request(method, url, timeout=(min(self.timeout, 10), self.timeout), **options)
        except ConfigError as error:  # the file with the secret is gone: it may come back
            raise PacsError(str(error)) from error
        except requests.exceptions.SSLError as error:
            raise PacsError(
                f"{self.host}: its certificate cannot be trusted ({_reason(error)}); name the hospital's own "
                "certificate authority in pacs.ca_file",
                transient=False,
            ) from error
        except requests.exceptions.Timeout as error:
            raise PacsError(f"{self.host} does not answer within {self.timeout:g} s; is it overloaded?") from error
        except requests.exceptions.RequestException as error:
            raise PacsError(f"{self.host} cannot be reached ({_reason(error)}); is it running?") from error

    def _request(self, method: str, path: str, accepted: tuple[int, ...] = (), **options: Any) -> requests.Response:
        answer = self._send(method, f"{self.url}/{path}", **options)
        status = answer.status_code
        if 200 <= status < 300 or status in accepted:
            return answer
        answer.close()
        what = f"{self.host} answers {method} {path} with {status}"
        if status in (401, 403):
            advice = (
                "check pacs.user and pacs.password_file, or pacs.token_file" if status == 401 else "it is forbidden"
            )
            raise PacsError(f"{what}: {advice} (docs/it/pacs.md)", transient=False, status=status)
        if status == 404:
            raise PacsError(f"{what}: it is not there (any more), or this is not the DICOMweb address", False, status)
        pause = answer.headers.get("Retry-After", "")
        transient = status >= 500 or status in (408, 425, 429)
        raise PacsError(what, transient, status, float(pause) if pause.isdigit() else 0.0)

    def _retried(self, what: str, work: Callable[[], T]) -> T:
        for attempt in range(self.retries + 1):
            try:
                try:
                    return work()
                except requests.exceptions.RequestException as error:  # the connection broke within the answer
                    raise PacsError(f"{self.host}: the connection broke ({_reason(error)})") from error
            except PacsError as error:
                if not error.transient or attempt == self.retries:
                    raise
                pause = max(_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1), error.pause)
                logger.info("%s: %s; trying again in %.1f s", what, error, pause)
                time.sleep(min(pause, _LONGEST_PAUSE_SECONDS))
        raise AssertionError("not reached")


def _reason(error: BaseException) -> str:
    """The innermost reason in words: requests' own text repeats the address and its objects."""
    reason: Any = error
    for _ in range(8):
        inner = getattr(reason, "reason", None) or (reason.args[0] if getattr(reason, "args", None) else None)
        if not isinstance(inner, BaseException):
            break
        reason = inner
    text = str(reason).rsplit(": ", 1)[-1] if ">: " in str(reason) else str(reason)
    return f"{text:.160}" or type(error).__name__
