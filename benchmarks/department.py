"""A department that corrects and a model that learns, simulated:
``python benchmarks/department.py run --data DIR --start WEIGHTS --out DIR --arm quick --seed 0 --corrections 100``.

Images of a prepared folder arrive patient by patient, in a seeded order, from all folds but the test fold; a robot radiologist
(``hospital.py``) corrects and saves each one. Arms: ``frozen`` (the start model answers throughout), ``quick`` (the decoder is
tuned after ``--quick-at`` so many labels), ``slow`` (a training of its own at ``--slow-at`` so many labels, behind the gate) and
``both``. What is measured: clicks and automatic Dice of each arriving image, before anything is learnt from it; the same on
images of the test fold, at ``--points``. Everything in OUT/ARM-SEED can be gone on with: the same command continues it.

``… table --out DIR`` compares the arms with frozen, paired by image, and draws the curves. ``… few --data DIR --out DIR`` writes
a data folder of some patients' images, to train what a cold start begins with; ``run --without`` names it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from department_learning import Department, Settings
from hospital import Read, Rows, arrivals, disk_cache, lesion_items, read, tested, write_few

from ultrarefiner_monai.datasets.datalist import Item, read_index
from ultrarefiner_monai.interaction.robot import MOST_CLICKS

ARMS = ("frozen", "quick", "slow", "both")


class Simulation:
    """One arm with one seed, in its folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = args.out / f"{args.arm}-{args.seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        items = lesion_items(args.data)
        known = {i.group for i in read_index(args.without)} if args.without else set()
        self.order = [i for i in arrivals(items, args.seed) if i.group not in known][: args.corrections]
        self.test = tested(items, args.test_images)
        self.arrived, self.tests = Rows(self.folder / "arrivals.csv"), Rows(self.folder / "test.csv")
        settings = Settings(
            quick=args.arm in ("quick", "both"),
            slow=args.arm in ("slow", "both"),
            quick_at=tuple(range(1, args.corrections + 1) if args.quick_at is None else args.quick_at),
            steps=args.quick_steps,
            slow_at=tuple(args.slow_at),
            slow_epochs=args.slow_epochs,
            least=args.slow_least,
            slow_from=args.slow_from,
            by_hand=args.by_hand,
            slow_parts=tuple(args.slow_parts),
            seconds=args.quick_seconds,
            seed=args.seed,
        )
        self.department = Department(self.folder, args.start, disk_cache(args.out / "cache"), settings)

    def run(self) -> None:
        done = len(self.arrived.all())
        self.point(0)
        for item in self.order[:done]:
            self.department.remember(item)
        for n, item in enumerate(self.order, 1):
            if n > done:
                found = read(self.department.predictor, item)
                self.department.save(item, found)
                self.arrived.add({"n": n, **found.row(), "version": self.department.version, "time": _now()})
            if n >= done:
                self.department.learn(n)
                self.point(n)

    def point(self, labels: int) -> None:
        """Measure on the test images, where this number of labels is a point of the curve."""
        if labels not in (0, *self.args.points, len(self.order)):
            return
        had = {row["id"] for row in self.tests.all() if row["labels"] == str(labels)}
        for item in self.test:
            if item.id not in had:
                found = self._tested(item, labels)
                self.tests.add({"labels": labels, **found.row(), "version": self.department.version})
        rows = [r for r in self.tests.all() if r["labels"] == str(labels)]
        dice, clicks = (sum(float(r[k]) for r in rows) / len(rows) for k in ("dice", "clicks"))
        print(f"{self.folder.name}: {labels} labels, test Dice {dice:.4f}, clicks {clicks:.3f}", flush=True)

    def _tested(self, item: Item, labels: int) -> Read:
        """A model that has been measured before answers as it did then."""
        version = self.department.version
        for row in self.tests.all():
            if row["id"] == item.id and row["version"] == version:
                return Read(item.id, float(row["dice"]), int(row["clicks"]), row["reached"] == "1", float(row["last"]))
        return read(self.department.predictor, item, MOST_CLICKS)


def _now() -> str:
    return time.strftime("%H:%M:%S")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="simulate one arm with one seed")
    run.add_argument("--data", type=Path, required=True, help="a folder made by `ultrarefiner prepare`")
    run.add_argument("--start", type=Path, required=True, help="the checkpoint that is served first")
    run.add_argument("--arm", choices=ARMS, required=True)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--corrections", type=int, default=100)
    run.add_argument("--without", type=Path, help="a data folder: its patients do not arrive")
    run.add_argument("--points", type=int, nargs="*", default=[20, 40, 60, 80, 100, 150, 200, 250, 300])
    run.add_argument("--test-images", type=int, default=100, help="of the test fold, the same for all; 0: all")
    run.add_argument("--quick-at", type=int, nargs="*", help="numbers of labels with a quick run; default: every one")
    run.add_argument("--quick-steps", type=int, help="of each tuning; default: by quick learning's recipe")
    run.add_argument("--quick-seconds", type=float, default=0, help="0: no limit but its number of steps")
    run.add_argument("--slow-at", type=int, nargs="*", default=[50, 100, 200, 300])
    run.add_argument("--slow-epochs", type=int, default=0, help="0: as the app trains")
    run.add_argument("--slow-least", type=int, default=20, help="so many validating labels suffice for the gate")
    run.add_argument("--slow-parts", nargs="*", default=["refiner", "coarse"], choices=["refiner", "coarse"])
    run.add_argument(
        "--slow-from", type=Path, help="an arm's folder: its candidates are judged instead of training again"
    )
    run.add_argument("--by-hand", action="store_true", help="a person promotes what the gate turned down")
    run.add_argument("--threads", type=int, default=1)
    table = commands.add_parser("table", help="compare the arms")
    few = commands.add_parser("few", help="write a folder of a few images, for a cold start")
    few.add_argument("--data", type=Path, required=True)
    few.add_argument("--images", type=int, default=20)
    for command in (run, table, few):
        command.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "table":
        from department_table import report

        print(report(args.out))
        return
    if args.command == "few":
        write_few(args.data, arrivals(lesion_items(args.data), "few")[: args.images], args.out)
        return
    torch.set_num_threads(args.threads)
    Simulation(args).run()
    (args.out / f"{args.arm}-{args.seed}" / "options.json").write_text(json.dumps(vars(args), default=str, indent=1))


if __name__ == "__main__":
    main()
