"""A real Orthanc, the real server and the batch command: ``python benchmarks/bench_pacs.py``.

What a radiologist waits for: a cine from the PACS until the answer to the first click, at once and after the server has
prepared it (``--no-prepare``: it does not), and a click after that; what the
lists of a full archive take; how many images a batch outlines in a second, with one process and with two. The archive is
filled with phantoms. Orthanc is started by what the tests use (Debian packages orthanc and orthanc-dicomweb).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]

from bench_serving import Client, cpu_seconds, memory_mb, start, weights_path  # noqa: E402
from orthanc import Orthanc, free_port  # noqa: E402

from ultrarefiner_monai.batch.archive import plan_batch, run_batch  # noqa: E402
from ultrarefiner_monai.config import PacsConfig  # noqa: E402
from ultrarefiner_monai.datasets.phantoms import make_phantom  # noqa: E402
from ultrarefiner_monai.datasets.samples import dicom_bytes, make_cine  # noqa: E402
from ultrarefiner_monai.dicomweb.client import Pacs  # noqa: E402

CINES, TINY, IMAGES = 9_000, 10_000, 50_000  # numbers of patients; dates tell the three apart


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fill(archive: Orthanc, series: int) -> None:
    """``series`` tiny series, each of a patient of its own."""
    for k in range(series):
        archive.add(dicom_bytes(np.full((1, 16, 16), k % 256, np.uint8), TINY + k, 0.1))


def add_cine(archive: Orthanc, number: int, frames: int, height: int, width: int) -> tuple[str, float]:
    """(its SeriesInstanceUID, MB as it is stored, with JPEG)."""
    import io

    import pydicom

    images, _ = make_cine(np.random.default_rng(number), height, width, frames, "benign")
    content = dicom_bytes(images, CINES + number, 0.1)
    archive.add(content)
    return str(pydicom.dcmread(io.BytesIO(content)).SeriesInstanceUID), len(content) / 1e6


def listing(archive: Orthanc, server: str, repeats: int) -> dict[str, float]:
    """The list itself, and the server's own replies once it is up."""
    pacs = Pacs.of(archive.url, PacsConfig())
    count = len(pacs.series({"Modality": "US"}))
    direct = statistics.median(timed(lambda: pacs.series({"Modality": "US"})) for _ in range(repeats))
    found = {f"{count} series from Orthanc, median, s": direct}
    for path in ("datastore/?output=all", "info/"):
        times = [timed(lambda path=path: requests.get(f"{server}/{path}").raise_for_status()) for _ in range(repeats)]  # type: ignore[misc]
        found[f"GET /{path} of the server, median, s"] = statistics.median(times)
    return found


def clicks(
    client: Client, pid: int, cines: list[str], height: int, width: int, repeats: int, prepare: bool
) -> dict[str, float]:
    """A new cine for each first click: nothing of it is cached anywhere, unless it is prepared. pid: the server's."""
    session = client.session

    def open_image(uid: str) -> None:
        session.get(f"{client.url}/datastore/image?image={uid}").raise_for_status()

    def click(uid: str, x: int, **options: int) -> float:
        return client.infer("sam_refiner", uid, foreground=[[x, height // 2, 3]], **options)[0]

    results = {}
    for uid, which, options in ((cines[0], "this frame only", {"frame": 3}), (cines[1], "all frames", {})):
        before = cpu_seconds(pid)
        opened = timed(lambda uid=uid: open_image(uid))  # type: ignore[misc]
        results[f"cine: at the client (NIfTI), {which}, s"] = opened
        results[f"cine: opening until the first click's answer, {which}, s"] = opened + click(
            uid, width // 2, **options
        )
        results[f"cine: the same, {which}, CPU-s of the server"] = cpu_seconds(pid) - before
        before = cpu_seconds(pid)
        later = [click(uid, width // 2 + k, **options) for k in range(1, repeats + 1)]
        results[f"click after that, {which}, median, s"] = statistics.median(later)
        results[f"click after that, {which}, mean CPU-s of the server"] = (cpu_seconds(pid) - before) / repeats
    if not prepare:
        return results
    settle(client)  # the rest of the cine of which one frame was asked for
    before, began = cpu_seconds(pid), time.perf_counter()
    open_image(cines[2])
    settle(client)
    results["cine: opening until all frames are prepared, s"] = time.perf_counter() - began
    results["cine: the same, CPU-s of the server"] = cpu_seconds(pid) - before
    before = cpu_seconds(pid)
    results["prepared: the first click's answer, all frames, s"] = click(cines[2], width // 2)
    results["prepared: the same, CPU-s of the server"] = cpu_seconds(pid) - before
    return results


def settle(client: Client) -> None:
    """Wait until nothing is being prepared."""
    while client.session.get(f"{client.url}/info/").json()["serving"]["preparing"]:
        time.sleep(0.5)


def throughput(archive: Orthanc, checkpoint: Path, folder: Path, processes: list[int], images: int) -> dict[str, float]:
    """Images a second of a batch from the archive; workers' start and loading the model apart."""
    results = {}
    for count in processes:
        jobs, setup = plan_batch(archive.url, folder / f"batch{count}", checkpoint, "seg", count, True)
        ends: list[float] = []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = run_batch(jobs, setup, count, lambda *_, ends=ends: ends.append(time.perf_counter()))  # type: ignore[misc]
        assert summary.done == images and not summary.failed, summary
        steady = (len(ends) - count) / (ends[-1] - ends[count - 1])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        name = f"batch, {count} process(es), {setup.threads} thread(s) each"
        results[f"{name}, images/s"] = steady
        results[f"{name}, whole run of {images} images, s"] = summary.seconds
        results[f"{name}, whole run, CPU-s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="compact", help="a name or the path of a checkpoint")
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--images", type=int, default=40, help="for the batch, single frames")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--height", type=int, default=500)
    parser.add_argument("--width", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--prepare", action=argparse.BooleanOptionalAction, default=True, help="the server's option")
    args = parser.parse_args()
    checkpoint = weights_path(args.weights)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "orthanc").mkdir()
        archive = Orthanc(folder / "orthanc", free_port()).start()
        try:
            for title, value in measure(args, archive, checkpoint, folder).items():
                print(f"| {title} | {value:.3f} |", flush=True)
        finally:
            archive.stop()


def measure(args: argparse.Namespace, archive: Orthanc, checkpoint: Path, folder: Path) -> dict[str, float]:
    results = {"filling the archive, s": timed(lambda: fill(archive, args.series))}
    cines = [add_cine(archive, k, args.frames, args.height, args.width) for k in range(3)]
    results[f"a cine of {args.frames} frames, MB"] = cines[0][1]
    process, client, ready = start(
        archive.url, checkpoint, folder / "server.log", args.threads, work_dir=folder / "work", prepare=args.prepare
    )
    try:
        results["server ready, s"] = ready
        results |= listing(archive, client.url, args.repeats)
        results |= clicks(
            client, process.pid, [uid for uid, _ in cines], args.height, args.width, args.repeats, args.prepare
        )
        results["memory of the server at the peak, MB"] = memory_mb(process.pid)["VmHWM"]
    except requests.HTTPError as error:
        raise SystemExit(f"{error}: {error.response.text}\n{(folder / 'server.log').read_text()[-3000:]}") from error
    finally:
        process.terminate()
        process.wait(60)
    archive.clear()
    for k in range(args.images):
        image = make_phantom(np.random.default_rng(k), args.height, args.width, "benign").image
        archive.add(dicom_bytes(image[None], IMAGES + k, 0.1))
    processes = [int(text) for text in args.processes.split(",")]
    return results | throughput(archive, checkpoint, folder, processes, args.images)


if __name__ == "__main__":
    main()
