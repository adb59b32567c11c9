"""Seconds from a click in the browser to the answer that is drawn, on a running server: ``python benchmarks/browser_latency.py --url
http://127.0.0.1:8000 --patient phantom_08``. Needs Chromium and playwright; each click is at another place.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time

import numpy as np
import requests
from playwright.sync_api import sync_playwright

_FLAGS = "--no-sandbox --use-gl=swiftshader --enable-unsafe-swiftshader --disable-background-networking".split()
_STATUS = "document.querySelector('.ultrarefiner [role=status]')?.textContent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--patient", default="phantom_08")
    parser.add_argument("--clicks", type=int, default=40)
    args = parser.parse_args()
    (study,) = requests.get(f"{args.url}/proxy/dicom/studies?PatientID={args.patient}", timeout=60).json()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=_FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{args.url}/ohif/ultrarefiner?StudyInstanceUIDs={study['0020000D']['Value'][0]}")
        page.wait_for_function(f"['Proposed', 'Final label'].includes({_STATUS})", timeout=120_000)
        page.wait_for_timeout(3000)
        box = page.locator(".cornerstone-viewport-element").first.bounding_box()
        assert box is not None
        rng, seconds = random.Random(0), []
        for _ in range(args.clicks):
            page.keyboard.press("c")  # one click at a time
            page.wait_for_function(f"{_STATUS} === 'Cleared'")
            x, y = (box[k] + box[s] * rng.uniform(0.3, 0.7) for k, s in (("x", "width"), ("y", "height")))
            start = time.perf_counter()
            page.mouse.click(x, y)
            # Two frames: the one in which the mask is set, and the one that shows it.
            page.evaluate(
                f"""() => new Promise(done => {{ const look = () => {_STATUS} === 'Proposed' ?
                requestAnimationFrame(() => requestAnimationFrame(done)) : requestAnimationFrame(look); look() }})"""
            )
            seconds.append(time.perf_counter() - start)
        browser.close()
    print(f"{len(seconds)} clicks: median {np.median(seconds):.3f} s, 95 % within {np.quantile(seconds, 0.95):.3f} s")


if __name__ == "__main__":
    main()
