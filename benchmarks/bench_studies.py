"""What a big studies folder costs at each request: ``python benchmarks/bench_studies.py --images 3000``.

The real server with the shipped weights on that many pictures, all of them with (random) scores for the next sample;
medians over HTTP, in milliseconds. To compare two checkouts, run each one's in turn on the same machine.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from bench_serving import Client, start, weights_path
from PIL import Image

from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.learning.sampling.scores import encoder_key
from ultrarefiner_monai.learning.sampling.strategies import STRATEGIES
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.score_store import ScoreStore, StoredScores, StoredVector
from ultrarefiner_monai.studies.work_folder import WorkFolder

SIDE = 256
GRID = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS of a picture as ITK places it


def write_pictures(folder: Path, count: int) -> None:
    """``count`` different pictures: one phantom, a row moved in each."""
    image = make_phantom(np.random.default_rng(0), SIDE, SIDE, "benign").image
    for number in range(count):
        changed = image.copy()
        changed[number % SIDE] = np.roll(changed[number % SIDE], 1 + number // SIDE)
        Image.fromarray(changed).save(folder / f"image_{number:05}.png")


def write_scores(folder: Path, count: int, weights: Path) -> None:
    """Scores of all pictures, as if the server had computed them: no two images are alike, a fifth shows nothing."""
    predictor, rng = Predictor(load_system(weights)), np.random.default_rng(0)
    encoder, model = encoder_key(predictor), predictor.system.version
    store = ScoreStore(WorkFolder.of(folder).scores)
    for number in range(count):
        name = f"image_{number:05}"
        vector = StoredVector(name, "", encoder, rng.normal(size=256), rng.normal(size=1024), "", number)
        store.put(vector, StoredScores(name, "", model, rng.random(), rng.random(), bool(rng.random() < 0.8), 0.5))
    store.close()


def label() -> bytes:
    mask = np.zeros((SIDE, SIDE, 1), np.uint8)
    mask[60:120, 80:150] = 1
    buffer = io.BytesIO()
    image: Any = nibabel.Nifti1Image(mask, GRID)
    image.to_stream(buffer)
    return buffer.getvalue()


def median_ms(work: Callable[[int], object], repeats: int) -> float:
    times = []
    for number in range(repeats + 2):
        began = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[2:])


def measured(client: Client, repeats: int) -> dict[str, float]:
    """What each request takes (ms). A click: on an image that was seen before."""
    session, url, outline = client.session, client.url, label()

    def ask(method: str, path: str, **options: Any) -> None:
        session.request(method, url + path, **options).raise_for_status()

    client.infer("sam_refiner", "image_00000", foreground=[[100, 100, 0]])
    return {
        "a click": median_ms(
            lambda n: client.infer("sam_refiner", "image_00000", foreground=[[90 + n % 40, 100, 0]]), repeats
        ),
        "/info/": median_ms(lambda n: client.info(), repeats),
        "an image": median_ms(lambda n: ask("GET", f"/datastore/image?image=image_{n:05}"), repeats),
        **{
            f"next: {name}": median_ms(lambda n, name=name: ask("POST", f"/activelearning/{name}", json={}), repeats)  # type: ignore[misc]
            for name in STRATEGIES
        },
        "saving a label": median_ms(
            lambda n: ask(
                "PUT",
                f"/datastore/label?image=image_{n:05}",
                data={"params": "{}"},
                files={"label": ("l.nii", outline)},
            ),
            repeats,
        ),
        "recommended, then": median_ms(lambda n: ask("POST", "/activelearning/recommended", json={}), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "studies").mkdir()
        write_pictures(folder / "studies", options.images)
        write_scores(folder / "studies", options.images, weights_path("compact"))
        process, client, seconds = start(
            folder / "studies", weights_path("compact"), folder / "log", options.threads, prepare="false"
        )
        try:
            print(f"{options.images} images, ready after {seconds:.1f} s")
            for what, milliseconds in measured(client, options.repeats).items():
                print(f"{what:24} {milliseconds:7.1f} ms")
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
