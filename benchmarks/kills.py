"""SIGKILL at random moments of a server that saves and learns: ``python benchmarks/kills.py --rounds 100``.

The real server runs on a small studies folder with tiny random weights and trainings of one epoch, so that quick and slow
learning take seconds. While users save labels it is killed, with all that it started, at a random moment: of ``saving``; while
``quick`` or ``slow`` learning runs; just after a quick model (``promoting``) or a training's candidate (``slow promoting``) was
written, which the gate then judges and promotes; while ``ultrarefiner models promote`` and ``rollback`` run ``by hand``, which
are killed as well; or, before it, one of its processes alone (``child``). After each kill it starts again, and then

- it answers;
- the label of each image is, byte for byte, the last one that was acknowledged or one that was sent after it, and the
  journal has a correction for each that was acknowledged;
- the pointer file says what is served, and that champion's file is whole;
- the mask of one image is bit for bit that of the version that the reply names, computed here from the files.

A kill is not a power cut: what the system holds for the disk is written all the same. The server is forked off this process,
which has imported what takes seconds; its arguments and all that it runs are the real ones.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import requests
import torch
from PIL import Image
from served import APP, Forked, infer, png, predict_as_served, tests_support

from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.learning.registry import Registry
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.training_folder import read_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

KINDS = ("saving", "quick", "slow", "promoting", "slow promoting", "by hand", "child")
PATIENCE = 30  # seconds to wait for the moment; then it is killed where it stands
SLOW_PATIENCE = 120  # a training has to come to its end
IMAGES = 24
PAUSE = 1.0  # seconds that a user rests at most between two saves


@dataclass
class Sent:
    """What was sent as the label of one image. tried, acknowledged: numbers, rising."""

    tried: list[int] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)


class Studies:
    """The studies folder, what was sent to it, and the server on it."""

    def __init__(self, folder: Path, seed: int, options: dict[str, object]) -> None:
        self.folder, self.chance, self.options = folder, random.Random(seed), options
        self.studies = folder / "studies"
        self.studies.mkdir()
        phantoms = [make_phantom(np.random.default_rng(n), 96, 130, "benign") for n in range(IMAGES)]
        for n, phantom in enumerate(phantoms):
            Image.fromarray(phantom.image).save(self.studies / f"image{n:02d}.png")
        self.weights = tests_support("app_server").save_tiny_system(folder / "tiny.safetensors")
        predictor = Predictor(load_system(self.weights))
        found = [predictor.propose(p.image.astype(np.float32) / 255).mask.astype(bool) for p in phantoms]
        self.outlines = [f if f.mean() > 0.01 else p.mask.astype(bool) for f, p in zip(found, phantoms)]
        self.app = quick_to_train(folder / "app")
        self.work = WorkFolder.of(self.studies)
        for seed in (2, 3):  # models to promote by hand
            other = tests_support("app_server").save_tiny_system(folder / f"tiny-{seed}.safetensors", seed)
            Registry(self.work).add(f"other-{seed}", other)
        self.sent = {f"image{n:02d}": Sent() for n in range(IMAGES)}
        self.number = 0
        self.lock = threading.Lock()
        self.server: Forked | None = None
        self.seen: Counter[str] = Counter()
        self.met = ""

    # --- users --------------------------------------------------------------------------------------------------------

    def label(self, image: str, number: int) -> bytes:
        """What the first model outlines (the phantom's lesion where that is next to nothing), moved by a few pixels, so that it can be learnt; and with its number as bits in a
        corner, so that no two are alike."""
        mask = np.roll(self.outlines[int(image[5:])], (number % 3, number % 2), (0, 1))
        mask[0, :24] = [bool(number >> bit & 1) for bit in range(24)]
        return png(mask)

    def save(self, server: Forked, over: threading.Event) -> None:
        """Look at a random image, save a label of it, again and again."""
        chance = random.Random(self.chance.random())
        while not over.is_set():
            with self.lock:
                image = f"image{chance.randrange(IMAGES):02d}"
                if self.sent[image].tried != self.sent[image].acknowledged:
                    continue  # what stands after a save that was cut off is known when it has been checked
                self.number += 1
                number = self.number
                self.sent[image].tried.append(number)
            try:
                if number % 3 == 0:
                    infer(server.url, "ultrarefiner", image)
                answer = requests.put(
                    f"{server.url}/datastore/label?image={image}",
                    data={"params": f'{{"client_id": "dr {number}"}}'},
                    files={"label": ("label.png", self.label(image, number))},
                    timeout=60,
                )
            except requests.RequestException:
                return
            if answer.status_code != 200:
                raise AssertionError(f"a save was refused: {answer.text[:300]}")
            self.sent[image].acknowledged.append(number)
            time.sleep(chance.random() * PAUSE)

    # --- one round ----------------------------------------------------------------------------------------------------

    def round(self, kind: str) -> None:
        server = self.server or Forked(self.studies, self.weights, self.folder, self.options, self.app)
        self.server = None
        over = threading.Event()
        threads = [threading.Thread(target=self.save, args=(server, over)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            hit = self.wait_for(kind, server)
        finally:
            over.set()
            server.kill()
        for thread in threads:
            thread.join()
        self.met = f"{kind}{'' if hit else ' (not met)'}"
        self.seen[self.met] += 1
        self.server = Forked(self.studies, self.weights, self.folder, self.options, self.app)
        self.check(self.server)

    def wait_for(self, kind: str, server: Forked) -> bool:
        """Return at a random moment of what is to be hit; False where it did not come."""
        moment, begun = self.chance.random(), time.time()
        if kind == "saving":
            time.sleep(moment * 2)
            return True
        if kind == "by hand":
            return self.by_hand(moment)
        if kind == "child":
            if not eventually(lambda: server.children()):
                return False
            time.sleep(moment * 3)
            for child in server.children()[-1:]:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            time.sleep(0.5)
            infer(server.url, "ultrarefiner", "image00")
            return True
        if kind == "quick":
            what, length = (lambda: server.child("quick.worker")), 8.0
        elif kind == "slow":
            what, length = (lambda: self.slow_runs(begun)), 8.0
        else:
            trained = kind == "slow promoting"
            known = self.models(trained)
            # A quick model is served as soon as its file is there; a candidate is compared first.
            what, length = (lambda: self.models(trained) != known), 10.0 if trained else 1.5
        if not eventually(what, SLOW_PATIENCE if "promoting" in kind else PATIENCE):
            return False
        time.sleep(moment * length)
        return True

    def slow_runs(self, since: float) -> str:
        states = [(p.parent.name, read_json(p)) for p in self.work.training.runs.glob("*/state.json")]
        return next((name for name, s in states if s.get("status") == "running" and s.get("started", 0) >= since), "")

    def models(self, trained: bool) -> list[str]:
        """The candidates that trainings made, or the quick models."""
        kinds = ("sam_refiner", "transunet", "ultrarefiner") if trained else ("quick",)
        return sorted(p.name for p in self.work.models.glob("*.safetensors") if p.name.startswith(kinds))

    def promotions(self) -> dict[str, int]:
        """How many promotions there were, by whom."""
        journal = Journal(self.work.journal)
        found = Counter(promotion.by for promotion in journal.promotions())
        journal.close()
        return dict(found)

    def by_hand(self, moment: float) -> bool:
        """Promote and roll back with the command, again and again, until it is killed."""
        names = [c.name for c in Registry(self.work).candidates()]
        pid = os.fork()
        if not pid:
            try:
                promote_and_roll_back(self.studies, names)
            finally:
                os._exit(1)
        time.sleep(0.5 + moment * 8)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return bool(names)

    # --- what has to hold ---------------------------------------------------------------------------------------------

    def check(self, server: Forked) -> None:
        journal = Journal(self.work.journal)
        authors = {c.client or c.author for c in journal.corrections()}
        journal.close()
        for image, sent in self.sent.items():
            missing = [n for n in sent.acknowledged if f"dr {n}" not in authors]
            assert not missing, f"{image}: no correction in the journal for {missing}"
            if not sent.tried:
                continue
            last = sent.acknowledged[-1] if sent.acknowledged else 0
            answer = requests.get(f"{server.url}/datastore/label?label={image}&tag=final", timeout=60)
            possible = {self.label(image, n): n for n in sent.tried if n >= last}
            if answer.status_code == 200:
                assert answer.content in possible, f"{image}: the label is none of {sorted(possible.values())}"
                found = possible[answer.content]
                sent.tried = sent.acknowledged = [*[n for n in sent.acknowledged if n <= found], found]
                sent.tried = list(dict.fromkeys(sent.tried))
                sent.acknowledged = list(sent.tried) if f"dr {found}" in authors else sent.acknowledged
            else:
                assert not last, f"{image}: its label is gone: {answer.status_code} {answer.text[:200]}"
                sent.tried = []
        registry = Registry(self.work)
        pointer = registry.pointer()
        assert not pointer.problem, pointer.problem
        registry.require_sound(pointer.name)
        self.check_mask(server, registry)

    def check_mask(self, server: Forked, registry: Registry) -> None:
        for _ in range(5):
            before = registry.pointer()
            version, mask = infer(server.url, "ultrarefiner", "image00", client_id=f"check {time.time()}")
            if registry.pointer() == before:
                known, expected = predict_as_served(registry, self.weights, self.studies / "image00.png")
                assert version == known, f"{version} answers, but the pointer says {known}"
                assert np.array_equal(mask, expected), f"the mask is not that of version {version}"
                return
        raise AssertionError("the pointer did not rest")


def quick_to_train(folder: Path) -> Path:
    """A copy of the app whose trainings last one epoch."""
    shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("model", "__pycache__"))
    for file in (folder / "train").glob("*.yaml"):
        file.write_text(re.sub(r"(?m)^epochs: .*$", "epochs: 1", file.read_text()))
    return folder


def promote_and_roll_back(studies: Path, names: list[str]) -> None:
    from typer.testing import CliRunner

    from ultrarefiner_monai.cli.command import app
    from ultrarefiner_monai.core.types import InputError

    runner, chance = CliRunner(), random.Random(time.time())
    while True:
        name = chance.choice([*names, "configured"])
        command = ["promote", name] if chance.random() < 0.7 else ["rollback"]
        done = runner.invoke(app, ["models", *command, "--studies", str(studies)])
        if done.exception is not None and not isinstance(
            done.exception, InputError
        ):  # what is served already, nothing before
            print(f"models {' '.join(command)}: {done.output} {done.exception!r}", flush=True)
            os._exit(1)


def eventually(condition, seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder that is kept; by default a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = {
        "threads": 1,
        "learning.quick_seconds": 10,
        "learning.labels": 5,
        "learning.quiet_minutes": 0,
        "learning.validation_labels": 2,
        "learning.margin": 0.2,
        "learning.level": 0.5,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        studies = Studies(folder, args.seed, options)
        begun = time.time()
        try:
            for n in range(args.rounds):
                kind = studies.chance.choice(KINDS)
                studies.round(kind)
                saved = sum(len(s.acknowledged) for s in studies.sent.values())
                told = f"{saved} labels; promotions by {studies.promotions()}; {time.time() - begun:.0f} s"
                print(f"{n + 1}: {studies.met}; {told}", flush=True)
        finally:
            if studies.server:
                studies.server.kill()
        print(
            f"{args.rounds} kills: {dict(studies.seen)}; {studies.number} saves begun; promotions by {studies.promotions()}; "
            "nothing lost, each start answered"
        )


if __name__ == "__main__":
    sys.exit(main())
