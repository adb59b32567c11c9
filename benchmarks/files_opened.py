"""How many files of this repository take part in a click over HTTP: those with a function that runs between the route and
its reply, in the threads that answer. Counted on the second click, so that reading the image and loading the model do
not count; nor do the doors before the route (who may come in) and the journal, which writes in a thread of its own.

A reader opens those that hand the click on, which are marked *: they call into another file. The others answer alone
(a type, a resize, a file header).

    python benchmarks/files_opened.py [--model CHECKPOINT]
"""

from __future__ import annotations

import argparse
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


def files_run(work: Callable[[], Any]) -> dict[str, set[str]]:
    """File -> the files that it calls into, of those of the repository whose functions run in ``work`` and in the threads
    that it starts. Imports do not count."""
    calls: set[tuple[CodeType, CodeType | None]] = set()

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or not _ours(frame.f_code):
            return
        caller = frame.f_back  # the next one of ours: torch's Module calls our forward
        while caller is not None and not _ours(caller.f_code):
            caller = caller.f_back
        calls.add((frame.f_code, None if caller is None else caller.f_code))

    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    found: dict[str, set[str]] = {_name(code): set() for code, _ in calls}
    for code, caller in calls:
        if caller is not None and _name(caller) != _name(code):
            found[_name(caller)].add(_name(code))
    return found


def _ours(code: CodeType) -> bool:
    path = code.co_filename
    return path.startswith(str(ROOT)) and path != __file__ and code.co_name != "<module>"


def _name(code: CodeType) -> str:
    return str(Path(code.co_filename).relative_to(ROOT))


def click_files(model: Path) -> dict[str, set[str]]:
    """Those of a click on an image of sample-data that was clicked on before."""
    sys.path[:0] = [str(APP), str(ROOT)]
    from monailabel.interfaces.utils.app import app_instance

    from lib.routes.infer import _infer

    image = "phantom_01"
    with tempfile.TemporaryDirectory() as name:
        studies = Path(name, "studies")
        studies.mkdir()
        shutil.copy(ROOT / "sample-data" / f"{image}.png", studies)
        app = app_instance(str(APP), str(studies), {"weights": str(model), "work_dir": str(Path(name, "work"))})
        app.served.latest()

        def click(x: int) -> None:
            stored = image, app.datastore().image_path(image)
            answer = _infer(app, "sam_refiner", stored, "", f'{{"foreground": [[{x}, 200, 0]]}}', None, None, "")
            assert answer.status_code == 200, answer.body

        click(200)
        files = files_run(lambda: click(220))
        app.journal.close()
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=APP / "model" / "compact.safetensors")
    files = click_files(parser.parse_args().model)
    for name, others in sorted(files.items()):
        print("*" if others else " ", name)
    print(f"a click over HTTP: {len(files)} files, {sum(map(bool, files.values()))} of them hand it on")


if __name__ == "__main__":
    main()
