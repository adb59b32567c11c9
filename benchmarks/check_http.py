"""The same figures through HTTP: is the mask that the running server sends the one that ``evaluate`` scores?

``python benchmarks/check_http.py --data DIR --fold 0 --count 20`` starts the real server on copies of the first lesion
images of the fold, asks for ``ultrarefiner`` and compares each mask with the predictor's, bit for bit.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import requests
from bench_serving import start, weights_path
from PIL import Image

from ultrarefiner_monai.datasets.datalist import Item, read_index
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.masks.metrics import score
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor


def served_mask(url: str, image_id: str) -> np.ndarray:
    """(H, W) uint8: what POST /infer/ultrarefiner answers as .png."""
    params = {"params": '{"result_extension": ".png"}'}
    answer = requests.post(f"{url}/infer/ultrarefiner?image={image_id}&output=image", data=params, timeout=120)
    answer.raise_for_status()
    return (np.asarray(Image.open(io.BytesIO(answer.content))) > 0).astype(np.uint8)


def compare(items: list[Item], weights: str, threads: int, folder: Path) -> None:
    studies = folder / "studies"
    studies.mkdir()
    for item in items:
        shutil.copy(item.image, studies / item.image.name)
    checkpoint = weights_path(weights)
    predictor = Predictor(load_system(checkpoint))
    process, client, _ = start(studies, checkpoint, folder / "server.log", threads)
    try:
        identical, here, there = 0, [], []
        for item in items:
            label = read_mask(item.mask)[0]
            own = predictor.propose(read_image_file(item.image).frame(0)).mask
            served = served_mask(client.url, item.id)
            identical += int(np.array_equal(own, served))
            here.append(score(own, label).dice)
            there.append(score(served, label).dice)
    finally:
        process.terminate()
        process.wait(60)
    print(
        f"{identical} of {len(items)} masks identical; mean Dice {np.mean(here):.4f} here, {np.mean(there):.4f} served"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder made by `ultrarefiner prepare`")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    items = [i for i in read_index(args.data) if i.fold == args.fold and i.has_lesion][: args.count]
    with tempfile.TemporaryDirectory() as folder:
        compare(items, args.weights, args.threads, Path(folder))


if __name__ == "__main__":
    main()
