"""Against servers on this machine, with certificates made here: nothing from outside."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from orthanc import own_certificates

from ultrarefiner_monai.core.web import WebSession, reason_of


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what it was asked and with which password; /to/ADDRESS redirects to ADDRESS."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
        else:
            self.send_response(200)
        body = f"{self.path} {self.headers.get('Authorization')}".encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[str]:
    """The address of a running server. certificate: its own and its key, for https."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def ask(url: str, proxies: bool = True) -> str:
    with WebSession(proxies) as session:
        return session.get(url, timeout=10).text


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["SSL_CERT_DIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_hospitals_own_certificates_count(
    tmp_path: Path, plain_environment: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "trusted").mkdir()
    authority, both = own_certificates(tmp_path)
    trusted = (tmp_path / "trusted" / "ca.pem").absolute()
    trusted.write_bytes(authority.read_bytes())
    subprocess.run(["openssl", "rehash", str(trusted.parent)], check=True, capture_output=True)
    with serving(both) as url:
        with pytest.raises(requests.exceptions.SSLError, match="certificate verify failed"):
            ask(url)
        plain_environment.setenv(variable, str(trusted.parent if variable.endswith("DIR") else trusted))
        assert ask(f"{url}/here") == "/here None"


def test_the_login_of_the_netrc_is_sent_to_nobody(tmp_path: Path, plain_environment: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text(
        "machine 127.0.0.1 login me password s3cret\nmachine localhost login me password s3\n"
    )
    (tmp_path / "netrc").chmod(0o600)
    plain_environment.setenv("NETRC", str(tmp_path / "netrc"))
    with serving() as url:
        assert requests.get(url, timeout=10).text.startswith("/ Basic")  # the file is one that requests reads
        assert ask(url) == "/ None"
        assert ask(f"{url}/to/{url.replace('127.0.0.1', 'localhost')}/there") == "/there None"


def test_proxies_of_the_environment_are_used_for_redirects_too(plain_environment: pytest.MonkeyPatch) -> None:
    with serving() as url:
        plain_environment.setenv("http_proxy", url)  # a proxy sees the whole address
        assert ask("http://pacs.example/x") == "http://pacs.example/x None"
        plain_environment.setenv("no_proxy", "127.0.0.1")
        assert ask(f"{url}/x") == "/x None"
        assert ask(f"{url}/to/http://pacs.example/x") == "http://pacs.example/x None"
        assert ask(f"{url}/x", proxies=False) == "/x None"
        plain_environment.setenv("no_proxy", "")
        assert ask(f"{url}/x") == f"{url}/x None"
        assert ask(f"{url}/x", proxies=False) == "/x None"


def test_a_reason_is_the_systems_own() -> None:
    with pytest.raises(requests.ConnectionError) as failed:
        requests.get("http://127.0.0.1:9/closed", timeout=5)
    assert "Connection refused" in reason_of(failed.value) and "http" not in reason_of(failed.value).lower()
    assert reason_of(requests.HTTPError("HTTP Error 503")) == "HTTP Error 503"
    assert reason_of(ValueError("plain")) == "plain"
