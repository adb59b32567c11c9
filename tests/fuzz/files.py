"""Files that are damaged or hostile, read as the server reads them: an image, a mask, or refused with InputError.

In a process of its own, which may be killed: another exception, too much time or memory, or values out of range are faults.

    python -m tests.fuzz.files --seconds 600          a longer campaign than CI's; prints each fault with how to repeat it
    python -m tests.fuzz.files --kind grey.png --number 17
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "support")]
if __name__ == "__main__":
    sys.path[:0] = PATHS

from mutations import mutate  # noqa: E402
from seeds import images, labels  # noqa: E402

SECONDS, MEGABYTES = 10.0, 700  # of one file of a few kB
PIXELS = 16_000_000  # of all frames: what is meant to be large is refused, and what is read stays small
_ROOM = 3 << 30  # of address space, beside what the process has when it begins


@dataclass
class Fault:
    """One way to fail. repeat: (kind, number) of files that do."""

    what: str
    where: str
    repeat: list[tuple[str, int]] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = Counter(kind for kind, _ in self.repeat)
        return f"{len(self.repeat)} x {self.what} at {self.where}; {dict(kinds)}; first: {self.repeat[:3]}"


class Reader:
    """The process that reads, started anew when it has ended or was killed."""

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def ask(self, path: Path, drawn_on: str) -> dict[str, Any]:
        """What reading ``path`` comes to. drawn_on: "" for an image; of a label, the name of what it is drawn on."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None and self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([str(path), drawn_on]) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], self.seconds)[0]:
            self.close()
            return {"fault": f"more than {self.seconds:g} s", "where": "?"}
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        return {"fault": f"the process ended with {code}", "where": "?"}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        command = [sys.executable, __file__, "--work"]
        path = os.pathsep.join(PATHS)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self._process.stdout
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the process that reads did not start")


def run(
    contents: dict[str, bytes],
    numbers: range,
    seconds: float = float("inf"),
    on_labels: bool = False,
    counts: Counter[str] | None = None,
) -> list[Fault]:
    """Read mutations of every file of ``contents``, number by number, until time is up. counts: what came of them."""
    end, faults, reader = time.monotonic() + seconds, {}, Reader()
    counts = Counter() if counts is None else counts
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number in numbers:
                for kind, content in contents.items():
                    if time.monotonic() > end:
                        return list(faults.values())
                    path = Path(folder, kind)
                    path.write_bytes(mutate(kind, content, number))
                    found = reader.ask(path, f"{kind.partition('.')[0]}.dcm" if on_labels else "")
                    counts[next(iter(found))] += 1
                    if "fault" in found:
                        key = (found["fault"], found["where"])
                        faults.setdefault(key, Fault(*key)).repeat.append((kind, number))
        finally:
            reader.close()
    return list(faults.values())


# --- the process that reads -------------------------------------------------------------------------------------------


def work() -> None:
    """Lines ``[path, name]`` on stdin, lines of JSON on stdout."""
    from seeds import _image_file

    from ultrarefiner_monai.core.image_file import Limits

    image_files = {name: _image_file(name) for name in ("frame.dcm", "cine.dcm")}
    limits = Limits(PIXELS, PIXELS)
    out, sys.stdout = sys.stdout, sys.stderr
    room = _memory("VmSize") * 1024 + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        path, name = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _memory("VmRSS")
        answer = _read(Path(path), image_files.get(name), limits)
        used = (_memory("VmHWM") - before) / 1024
        if "fault" not in answer and used > MEGABYTES:
            answer = {"fault": f"more than {MEGABYTES} MB", "where": answer.get("refused", "it was read")[:200]}
        print(json.dumps(answer), file=out, flush=True)


def _read(path: Path, image_file: Any, limits: Any) -> dict[str, Any]:
    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.imaging.mask_files import read_mask
    from ultrarefiner_monai.imaging.readers import read_image_file

    try:
        if image_file is not None:
            mask = read_mask(path, image_file, limits)
            shape = (image_file.n_frames, image_file.height, image_file.width)
            assert mask.shape == shape and set(np.unique(mask)) <= {0, 1}, f"a mask of {mask.shape}"
            return {"read": list(mask.shape)}
        found = read_image_file(path, limits)
        for k in {0, found.n_frames // 2, found.n_frames - 1}:
            frame = found.frame(k)
            assert frame.shape == (found.height, found.width) and np.isfinite(frame).all(), f"a frame of {frame.shape}"
            assert frame.min() >= 0 and frame.max() <= 1, "values out of range"
            spacing = found.spacing_of(k)
            assert spacing is None or min(spacing) > 0, f"a spacing of {spacing}"
        return {"read": [found.n_frames, found.height, found.width]}
    except InputError as error:
        return {"refused": str(error)}
    except BaseException as error:
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "ultrarefiner_monai" in f.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "the test itself"
        text = str(error) if isinstance(error, AssertionError) else ""
        return {"fault": f"{type(error).__name__} {text}".strip(), "where": where, "text": str(error)[:300]}


def _memory(name: str) -> int:
    """kB, from the system's notes about this process."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--kind", default="")
    parser.add_argument("--number", type=int)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return
    for on_labels, contents in enumerate((images(), labels())):
        chosen = {k: v for k, v in contents.items() if options.kind in k}
        numbers = range(options.first, 1 << 31) if options.number is None else range(options.number, options.number + 1)
        counts: Counter[str] = Counter()
        faults = run(chosen, numbers, options.seconds / 2, bool(on_labels), counts)
        print(f"{'labels' if on_labels else 'images'}: {dict(counts)}; {len(faults)} kinds of fault", flush=True)
        for fault in faults:
            print(f"  {fault}", flush=True)


if __name__ == "__main__":
    main()
