"""Files of frames that are made for clients: bounded in size, and each image in its own time."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies import client_frames
from ultrarefiner_monai.studies.client_frames import ClientFrames
from ultrarefiner_monai.studies.work_folder import WorkFolder


def animation() -> bytes:
    """A GIF of three frames."""
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(np.full((40, 60), 60 * k + 30, np.uint8)) for k in range(3))
    first.save(buffer, "GIF", save_all=True, append_images=others)
    return buffer.getvalue()


def test_files_for_clients_stay_within_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = ClientFrames(WorkFolder.of(tmp_path), read_image_file)
    (tmp_path / "clip.gif").write_bytes(animation())
    one = frames.path("a", tmp_path / "clip.gif")
    monkeypatch.setattr(client_frames, "_KEPT_BYTES", 2 * one.stat().st_size)
    made = [one, *(frames.path(name, tmp_path / "clip.gif") for name in "bcd")]
    assert [p.is_file() for p in made] == [False, False, True, True]
    with pytest.raises(InputError, match=r"gone\.gif"):
        frames.path("e", tmp_path / "gone.gif")


def test_a_long_video_keeps_nobody_waiting_for_another_image(tmp_path: Path) -> None:
    reading, go = threading.Event(), threading.Event()

    def read(path: Path) -> Any:
        if path.name == "long.gif":
            reading.set()
            assert go.wait(60)
        return read_image_file(path)

    frames = ClientFrames(WorkFolder.of(tmp_path), read)
    for name in ("long.gif", "short.gif"):
        (tmp_path / name).write_bytes(animation())
    with ThreadPoolExecutor(3) as pool:
        try:
            long = [pool.submit(frames.path, "long", tmp_path / "long.gif") for _ in range(2)]
            assert reading.wait(30)
            assert pool.submit(frames.path, "short", tmp_path / "short.gif").result(20).is_file()
        finally:
            go.set()
        assert long[0].result(20) == long[1].result(20)
