"""Debian's Chromium, driven through Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

# Without these it looks for hosts of its maker at every start.
_QUIET = (
    "--disable-background-networking --disable-component-update --disable-sync --no-first-run --disable-quic".split()
)
_DRAWS = ["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    """A running browser. Skips, saying what is missing; fails in CI, where it may not be left out."""
    place = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        place = None
    if place is None:
        said = "the viewer's tests need Chromium and playwright (apt-get install chromium; pip install '.[test]')"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=place, args=[*_QUIET, *_DRAWS])
        yield browser
        browser.close()
