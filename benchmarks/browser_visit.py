"""Seconds that a radiologist waits in the browser, on a running server whose studies are a folder: ``python
benchmarks/browser_visit.py --url http://127.0.0.1:8000 --images 20``. Needs Chromium and playwright.

The worklist until its last picture is there; an image until its outline is; a click; a label until it is saved; the next image. The labels
are real: take a copy of the studies.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

_FLAGS = "--no-sandbox --use-gl=swiftshader --enable-unsafe-swiftshader --disable-background-networking".split()
_STATUS = "document.querySelector('.ultrarefiner [role=status]')?.textContent"
_PATIENCE = 120_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--images", type=int, default=20)
    args = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=_FLAGS)
        page = browser.new_page(
            viewport={"width": 1280, "height": 4000}
        )  # all pictures of a page: they are loaded when they are seen
        page.on("dialog", lambda dialog: dialog.accept())
        # "networkidle" is half a second without a request: it is taken off.
        for row in ("first time", "again"):
            took = _seconds(lambda: page.goto(f"{args.url}/ultrarefiner/worklist", wait_until="networkidle")) - 0.5
            print(f"worklist with {page.locator('li img').count()} pictures, {row}: {took:.2f} s")
        page.set_viewport_size({"width": 1280, "height": 800})
        waits: dict[str, list[float]] = {name: [] for name in ("click", "accept", "next")}
        took = _seconds(lambda: (page.locator("li a").first.click(), _until(page, "Proposed", "Final label")))
        print(f"first image until its outline is drawn: {took:.2f} s")
        for _ in range(args.images):
            box = page.locator(".cornerstone-viewport-element").first.bounding_box()
            assert box is not None
            middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            waits["click"].append(_seconds(lambda at=middle: (page.mouse.click(*at), _until(page, "Proposed"))))
            waits["accept"].append(_seconds(lambda: (page.keyboard.press("a"), _until(page, "Saved"))))
            here = page.evaluate("location.search")
            waits["next"].append(_seconds(lambda old=here: _next(page, old)))
        browser.close()
    for name, seconds in waits.items():
        if seconds:
            print(f"{name}: median {np.median(seconds):.2f} s, 95 % within {np.quantile(seconds, 0.95):.2f} s")


def _seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _until(page: Any, *words: str) -> None:
    page.wait_for_function(f"words => words.includes({_STATUS})", arg=list(words), timeout=_PATIENCE)


def _next(page: Any, old: str) -> None:
    page.keyboard.press("n")
    page.wait_for_function("old => location.search !== old", arg=old, timeout=_PATIENCE)
    _until(page, "Proposed", "Final label")


if __name__ == "__main__":
    main()
