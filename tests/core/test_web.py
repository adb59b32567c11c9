"""Against this machine's own certificates and real failures: nothing from outside."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import requests

from ultrarefiner_monai.core.web import certificates, reason_of


def test_the_certificates_are_those_that_python_itself_trusts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = certificates()
    paths = ssl.get_default_verify_paths()
    assert found is True if not (paths.cafile or paths.capath) else os.path.exists(str(found))
    own = tmp_path / "own.pem"
    own.write_text("a hospital's own")
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    assert certificates() == str(own)


def test_a_reason_is_the_systems_own() -> None:
    with pytest.raises(requests.ConnectionError) as failed:
        requests.get("http://127.0.0.1:9/closed", timeout=5)
    assert "Connection refused" in reason_of(failed.value) and "http" not in reason_of(failed.value).lower()
    assert reason_of(requests.HTTPError("HTTP Error 503")) == "HTTP Error 503"
    assert reason_of(ValueError("plain")) == "plain"
