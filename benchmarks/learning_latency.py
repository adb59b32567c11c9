"""How long learning takes and what it costs those who work meanwhile, through the real server:
``python benchmarks/learning_latency.py --data DIR --weights compact --labels 30``.

Images of a prepared folder are the studies; ``--labels`` of them have a final label already. A user clicks on one image, again
and again, all the time. Then:

- idle: clicks before anything is saved;
- quick: a label is saved; until the quick model serves (the pointer names it), or a refusal is told;
- slow: ten more labels are saved at once, with no quiet time; until the trained model is promoted or turned down.

Click latency is told for each part, and as a ratio to idle in the same run. Goals on two cores: quick 30 s, slow 15 min, clicks
twice as slow at most. So that few labels suffice, ``learning.validation_labels`` is lowered; all else is the default, but for
``--conf``. Wall seconds on a machine that does other things too are upper bounds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import requests
from hospital import arrivals, lesion_items, pixels
from served import Forked, infer, shipped_or

from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.learning.registry import Registry
from ultrarefiner_monai.studies.training_folder import read_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

PAUSE = 0.5  # seconds between two clicks


class Clicker(threading.Thread):
    """A user who clicks on one image until ``stop``. times: (begun, seconds) of each click."""

    def __init__(self, url: str, image: str, points: list[list[int]]) -> None:
        super().__init__(daemon=True)
        self.url, self.image, self.points = url, image, points
        self.times: list[tuple[float, float]] = []
        self.stop = threading.Event()

    def run(self) -> None:
        n = 0
        while not self.stop.is_set():
            begun = time.monotonic()
            point = [*self.points[n % len(self.points)], 0]
            infer(self.url, "sam_refiner", self.image, foreground=[point], client_id="clicks")
            self.times.append((begun, time.monotonic() - begun))
            n += 1
            time.sleep(PAUSE)

    def between(self, first: float, last: float) -> list[float]:
        return [seconds for begun, seconds in self.times if first <= begun and begun + seconds <= last]


def save(url: str, item: Item, seconds: float = 60) -> None:
    with item.mask.open("rb") as file:
        answer = requests.put(
            f"{url}/datastore/label?image={item.id}",
            data={"params": '{"client_id": "saver"}'},
            files={"label": ("label.png", file.read())},
            timeout=seconds,
        )
    answer.raise_for_status()


def points_in(item: Item) -> list[list[int]]:
    """All places in the lesion in random order: the server answers the same click again from its memory."""
    rows, columns = np.nonzero(pixels(item)[1])
    chosen = np.random.default_rng(0).permutation(len(rows))
    return [[int(columns[k]), int(rows[k])] for k in chosen]


def until(condition, seconds: float) -> tuple[bool, float]:
    """(whether it came, when)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True, time.monotonic()
        time.sleep(0.1)
    return False, time.monotonic()


def row(name: str, value: float, idle: float | None = None) -> None:
    print(f"| {name} | {value:.3f} |" + (f" {value / idle:.2f} |" if idle else " |"), flush=True)


def measure(args: argparse.Namespace, folder: Path) -> None:
    studies = folder / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    order = arrivals(lesion_items(args.data), args.seed)
    known, new, clicked = order[: args.labels], order[args.labels : args.labels + 11], order[args.labels + 11]
    for item in [*known, *new, clicked]:
        shutil.copyfile(item.image, studies / f"{item.id}.png")
    for item in known:
        shutil.copyfile(item.mask, studies / "labels" / "final" / f"{item.id}.png")
    options = {
        "threads": args.threads,
        "learning.quiet_minutes": 0,
        "learning.validation_labels": 1,
        **dict(args.conf),
    }
    work = WorkFolder(studies / ".ultrarefiner")
    registry = Registry(work)
    server = Forked(studies, shipped_or(args.weights), folder, options)
    try:
        for item in known:  # as they would be after a day's work: computed and kept
            infer(server.url, "ultrarefiner", item.id)
        clicker = Clicker(server.url, clicked.id, points_in(clicked))
        infer(server.url, "ultrarefiner", clicked.id)
        begun = time.monotonic()
        clicker.start()
        time.sleep(args.idle)
        idle = clicker.between(begun, time.monotonic())
        row("click, idle, median s", statistics.median(idle))

        infer(server.url, "ultrarefiner", new[0].id)
        start = time.monotonic()
        save(server.url, new[0])
        came, end = until(lambda: registry.pointer().quick, args.patience_quick)
        row(f"save to a quick model serving ({'served' if came else 'did not come'}), s", end - start)
        print(f"its report: {read_json(work.training.quick / 'last.json')}")
        row("click while quick runs, median s", statistics.median(clicker.between(start, end)), statistics.median(idle))
        row("click while quick runs, 90th percentile s", tenth(clicker.between(start, end)), tenth(idle))

        for item in new[1:]:
            infer(server.url, "ultrarefiner", item.id)
        for item in new[1:]:
            save(server.url, item)
        start = time.monotonic()
        came, began = until(lambda: running(work), args.patience_slow)
        row(f"tenth label to a training ({'begun' if came else 'did not begin'}), s", began - start)
        came, end = until(lambda: registry.pointer().by == "slow" or ended(work), args.patience_slow)
        row(f"tenth label to {verdict(registry, came)}, s", end - start)
        during = clicker.between(began, end)
        row("click while slow runs, median s", statistics.median(during), statistics.median(idle))
        row("click while slow runs, 90th percentile s", tenth(during), tenth(idle))
        for path in sorted(work.training.runs.glob("*/state.json")):
            print(f"{path.parent.name}: {read_json(path)}")
        clicker.stop.set()
        clicker.join(60)
    finally:
        server.kill()
        print(server.log.read_text(errors="replace")[-1500:] if args.log else "")


def tenth(values: list[float]) -> float:
    return sorted(values)[int(0.9 * len(values))]


def running(work: WorkFolder) -> bool:
    return any(read_json(p).get("status") == "running" for p in work.training.runs.glob("*/state.json"))


def ended(work: WorkFolder) -> bool:
    states = [read_json(p).get("status") for p in work.training.runs.glob("*/state.json")]
    return bool(states) and "running" not in states and "starting" not in states


def verdict(registry: Registry, came: bool) -> str:
    if registry.pointer().by == "slow":
        return f"a promoted model ({registry.pointer().name})"
    return "a model that was turned down" if came else "nothing yet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder made by `ultrarefiner prepare`")
    parser.add_argument("--weights", default="compact", help="compact, or the path of a checkpoint")
    parser.add_argument("--labels", type=int, default=30, help="labels that are there before")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--idle", type=float, default=20, help="seconds of clicks before anything is saved")
    parser.add_argument("--patience-quick", type=float, default=180)
    parser.add_argument("--patience-slow", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conf", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--log", action="store_true", help="show the end of the server's log")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


if __name__ == "__main__":
    main()
