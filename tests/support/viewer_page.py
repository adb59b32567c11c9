"""The mode "UltraRefiner" in a page of a real browser, as its user sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

PATIENCE = 60_000  # milliseconds
_STATUS = "document.querySelector('.ultrarefiner [role=status]')?.textContent"
_VIEWPORT = "window.cornerstone.getRenderingEngines()[0].getViewports()[0]"


class ViewerPage:
    """One tab. Whatever it asks is confirmed; ``errors`` and ``answered`` (addresses) are what happened in it."""

    def __init__(self, browser: Any, url: str, **options: Any):
        self.url = url
        self.page = browser.new_page(viewport={"width": 1280, "height": 800}, **options)
        self.errors: list[str] = []
        self.answered: list[str] = []
        self.dialogs: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", lambda response: self.answered.append(response.url))
        self.page.on("dialog", self._confirm)

    def _confirm(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.accept()

    def open_study(self, study: str) -> None:
        self.page.goto(f"{self.url}/ohif/ultrarefiner?StudyInstanceUIDs={study}")
        self.wait("Proposed", "Final label")

    def open_from_worklist(self, name: str) -> None:
        self.page.goto(f"{self.url}/ultrarefiner/worklist?search={name}")
        self.page.locator("li a").click()  # there is one
        self.wait("Proposed", "Final label")

    def wait(self, *words: str) -> None:
        """Until the panel's status is one of these."""
        self.page.wait_for_function(f"words => words.includes({_STATUS})", arg=list(words), timeout=PATIENCE)

    @property
    def frame(self) -> int:
        return self.page.evaluate(f"{_VIEWPORT}.getCurrentImageIdIndex()")

    @property
    def image(self) -> str:
        return self.page.locator(".ultrarefiner h2").text_content()

    def shown(self, frame: int = 0) -> np.ndarray:
        """The mask on the screen, flat, 0 or 1, as the viewer holds it."""
        text = self.page.evaluate(
            """frame => { const ct = window.cornerstoneTools, c = window.cornerstone;
            const s = ct.segmentation.state.getSegmentations().at(-1);
            const id = s.representationData.Labelmap.imageIds[frame];
            return JSON.stringify(Array.from(c.cache.getImage(id).voxelManager.getScalarData())) }""",
            frame,
        )
        return np.array(json.loads(text), np.uint8)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where on the screen a pixel of the frame is."""
        found = self.page.evaluate(
            f"""([x, y]) => {{ const v = {_VIEWPORT}, b = v.element.getBoundingClientRect();
            const p = v.worldToCanvas(v.getImageData().imageData.indexToWorld([x, y, 0]));
            return [p[0] + b.left, p[1] + b.top] }}""",
            [x, y],
        )
        return found[0], found[1]

    def asked(self, act: Callable[[], Any], hint: bool = False) -> dict[str, Any]:
        """What the page asks the server for an outline when this is done; returns when the answer is drawn."""

        def fits(response: Any) -> bool:
            return response.url.endswith("/outline") and response.ok and response.request.post_data_json["hint"] is hint

        with self.page.expect_response(fits, timeout=PATIENCE) as answer:
            act()
        if not hint:
            self.wait("Proposed")
        return answer.value.request.post_data_json

    def click(self, x: float, y: float) -> dict[str, Any]:
        return self.asked(lambda: self.page.mouse.click(*self.at(x, y)))

    def drag(self, *points: tuple[float, float]) -> None:
        """Press the left button at the first pixel, go along the others, let go at the last."""
        self.page.mouse.move(*self.at(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(*point), steps=5)
        self.page.mouse.up()

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def accept(self) -> None:
        self.press("a")
        self.wait("Saved")

    def close(self) -> None:
        assert not self.errors
        elsewhere = [url for url in self.answered if not url.startswith((self.url, "blob:", "data:"))]
        assert not elsewhere, "nothing is loaded from elsewhere"
        self.page.close()
