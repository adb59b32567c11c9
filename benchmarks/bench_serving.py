"""Times and memory of the real server, over HTTP: ``python benchmarks/bench_serving.py --weights compact``.

A click is compared with one pass of prompt encoder and mask decoder alone, in this process and with as many threads:
segment_anything's own modules as published, and ``models.sam.network.decode`` as the server computes it. Beside wall seconds
stand CPU-seconds (the server's own process; this process), which a busy machine distorts less.
Where the weights have no refiner yet, ``--sam vit_b`` (or compact) adds one with random weights: as fast as a real one.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import requests
import torch
from PIL import Image

from ultrarefiner_monai.config import SamConfig
from ultrarefiner_monai.core.types import Prompts
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.models.checkpoints import System, load_system, save_system
from ultrarefiner_monai.models.sam.network import build_sam, decode
from ultrarefiner_monai.models.weights.pretrained import shipped_or_resolved

APP = Path(__file__).resolve().parents[1] / "apps" / "ultrarefiner"


def weights_path(name: str) -> Path:
    return shipped_or_resolved(APP / "model", name)


def with_random_sam(system: System, arch: str, folder: Path) -> Path:
    """The same coarse network with a random SAM of ``arch`` as its refiner."""
    from dataclasses import replace

    config = replace(system.config, sam=SamConfig(arch=arch))  # type: ignore[arg-type]
    assert config.sam is not None
    return save_system(folder / f"with-{arch}.safetensors", config, system.coarse, build_sam(config.sam))


def one_pass(system: System, repeats: int) -> dict[str, tuple[float, float]]:
    """Median (wall, CPU) seconds of one pass of prompt encoder and mask decoder: one point, one mask prompt."""
    assert system.refiner is not None and system.config.sam is not None
    sam, side = system.refiner.sam, system.config.sam.image_size // 16
    embedding = torch.randn(1, 256, side, side)
    prompts = Prompts(torch.full((1, 1, 2), 99.0), torch.ones(1, 1), None, torch.randn(1, 1, 4 * side, 4 * side))

    def published() -> None:
        sparse, dense = sam.prompt_encoder((prompts.points_xy, prompts.point_labels), None, prompts.mask_logits)
        sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)

    ways = {"segment_anything's modules": published, "ours": lambda: decode(sam, embedding, prompts)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(repeats + 2):  # turn by turn, so that a busy machine slows both alike
            for name, run in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: medians(taken[2:]) for name, taken in times.items()}


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system, all threads; in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {k: int(v.split()[0]) / 1024 for k, v in (x.split(":", 1) for x in lines) if k in ("VmRSS", "VmHWM")}


class Client:
    """Requests over one kept connection, as a viewer's."""

    def __init__(self, url: str):
        self.url, self.session = url, requests.Session()

    def infer(self, model: str, image: str, **params: object) -> tuple[float, dict]:
        """(wall seconds with the mask fetched, the reply's timings)."""
        start = time.perf_counter()
        data = {"params": json.dumps({"result_extension": ".nrrd", **params})}
        answer = self.session.post(f"{self.url}/infer/{model}?image={image}", data=data)
        seconds = time.perf_counter() - start
        answer.raise_for_status()
        text = answer.text
        return seconds, json.loads(text[text.index("{") : text.index("\r\n--", text.index("{"))])["timings"]

    def info(self) -> float:
        start = time.perf_counter()
        self.session.get(f"{self.url}/info/").raise_for_status()
        return time.perf_counter() - start


def start(
    studies: Path | str, checkpoint: Path, log: Path, threads: int, **conf: object
) -> tuple[subprocess.Popen, Client, float]:
    """(process, client, seconds until it answered). studies: a folder or a DICOMweb address; conf: further options."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--conf", "weights", str(checkpoint), "--conf", "threads", str(threads)]
    for name, value in conf.items():
        command += ["--conf", name, str(value)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=log.parent)
    client = Client(f"http://127.0.0.1:{port}")
    while process.poll() is None:
        try:
            client.info()
            return process, client, time.perf_counter() - began
        except requests.ConnectionError:
            time.sleep(0.05)
    raise SystemExit(log.read_text()[-3000:])


def info_while_computing(client: Client, image: str) -> float:
    """The slowest /info/ while a fresh image is computed, seconds."""
    other, done = Client(client.url), threading.Event()

    def compute() -> None:
        client.infer("ultrarefiner", image)
        done.set()

    thread = threading.Thread(target=compute)
    thread.start()
    slowest = 0.0
    while not done.is_set():
        slowest = max(slowest, other.info())
        time.sleep(0.02)
    thread.join()
    return slowest


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    studies = folder / "studies"
    studies.mkdir()
    for n in range(args.images + 1):
        image = make_phantom(np.random.default_rng(n), args.height, args.width, "benign").image
        Image.fromarray(image).save(studies / f"image{n:03d}.png")
    checkpoint = weights_path(args.weights)
    system = load_system(checkpoint)
    if args.sam:
        checkpoint = with_random_sam(system, args.sam, folder)
        system = load_system(checkpoint)
    process, client, ready = start(studies, checkpoint, folder / "server.log", args.threads)
    try:
        results = {"server ready, s": ready, "memory when ready, MB": memory_mb(process.pid)["VmRSS"]}
        first = [client.infer("ultrarefiner", f"image{n:03d}")[0] for n in range(args.images)]
        results["automatic, first request, s"] = first[0]
        results["automatic, median, s"] = statistics.median(first[1:] or first)
        results["automatic again, median, s"] = statistics.median(
            client.infer("ultrarefiner", f"image{n:03d}")[0] for n in range(args.images)
        )
        points = np.random.default_rng(0).integers(0, min(args.height, args.width), (args.clicks + 1, 2)).tolist()
        client.infer("sam_refiner", "image000", foreground=[[*points[0], 0]])
        before = cpu_seconds(process.pid)
        clicks = [client.infer("sam_refiner", "image000", foreground=[[*p, 0]])[0] for p in points[1:]]
        click_wall, click_cpu = statistics.median(clicks), (cpu_seconds(process.pid) - before) / len(clicks)
        results["click after the first, median, s"] = click_wall
        results["click after the first, mean CPU-s of the server"] = click_cpu
        results["slowest /info/ while an image is computed, s"] = info_while_computing(
            client, f"image{args.images:03d}"
        )
        results["memory at the peak, MB"] = memory_mb(process.pid)["VmHWM"]
    finally:
        process.terminate()
        process.wait(60)
    if system.refiner is not None:
        torch.set_num_threads(args.threads)
        for name, (wall, cpu) in one_pass(system, args.clicks).items():
            results[f"one pass, {name}, median, s"] = wall
            results[f"one pass, {name}, median, CPU-s"] = cpu
            results[f"click / one pass, {name}, wall"] = click_wall / wall
            results[f"click / one pass, {name}, CPU"] = click_cpu / cpu
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="compact", help="a name or the path of a checkpoint")
    parser.add_argument("--sam", choices=["compact", "vit_b"], help="add a random SAM of this kind")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--height", type=int, default=500)
    parser.add_argument("--width", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in measure(args, Path(folder)).items():
            print(f"| {name} | {value:.3f} |")


if __name__ == "__main__":
    main()
