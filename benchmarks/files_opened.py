"""How many files of this repository take part in a click over HTTP: those with a function that runs between the route and
its reply, in the threads that answer. Counted on the second click, so that reading the image and loading the model do
not count; nor do the doors before the route (who may come in) and the journal, which writes in a thread of its own.

    python benchmarks/files_opened.py [--model CHECKPOINT]
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "apps" / "ultrarefiner"


def files_run(work: Callable[[], Any]) -> list[str]:
    """The files of the repository whose functions run in ``work`` and in the threads that it starts; imports do not count."""
    codes: set[CodeType] = set()

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            codes.add(frame.f_code)

    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    ours = {Path(c.co_filename) for c in codes if c.co_name != "<module>" and c.co_filename.startswith(str(ROOT))}
    return sorted(str(path.relative_to(ROOT)) for path in ours if path != Path(__file__).resolve())


def click_files(model: Path) -> list[str]:
    """Those of a click on an image of sample-data that was clicked on before."""
    sys.path[:0] = [str(APP), str(ROOT)]
    from monailabel.config import settings
    from monailabel.interfaces.utils.app import app_instance

    from lib.routes.infer import infer

    with tempfile.TemporaryDirectory() as name:
        studies = Path(name, "studies")
        studies.mkdir()
        shutil.copy(ROOT / "sample-data" / "phantom_01.png", studies)
        settings.MONAI_LABEL_APP_DIR, settings.MONAI_LABEL_STUDIES = str(APP), str(studies)
        settings.MONAI_LABEL_APP_CONF = {"weights": str(model), "work_dir": str(Path(name, "work"))}
        app = app_instance()
        app.served.latest()

        def click(x: int) -> None:
            params = f'{{"foreground": [[{x}, 200, 0]]}}'
            answer = asyncio.run(infer("sam_refiner", image="phantom_01", params=params, output=None, frame=""))
            assert answer.status_code == 200, answer.body

        click(200)
        files = files_run(lambda: click(220))
        app.journal.close()
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=APP / "model" / "compact.safetensors")
    files = click_files(parser.parse_args().model)
    print("\n".join(files))
    print(f"a click over HTTP: {len(files)} files")


if __name__ == "__main__":
    main()
