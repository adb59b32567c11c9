"""Two hundred hostile files through the real server: afterwards it is what it was, and ends when it is told to."""

from __future__ import annotations

import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
from app_server import eventually
from mutations import mutate
from seeds import images, labels

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]

FILES, AT_ONCE = 200, 4
MEGABYTES, THREADS = 150, 4  # what may differ


def test_two_hundred_hostile_files_leave_nothing(server):
    process = psutil.Process(server.process.pid)
    assert not through(server, 1000, 60), "the first ones warm it up"
    clicks(server)
    before, threads, took = rss(process), settled_threads(process), clicks(server)
    faults = through(server, 0, FILES)
    assert not faults, "\n".join(faults[:20])
    eventually(lambda: process.num_threads() <= threads + THREADS, 60)
    assert rss(process) - before < MEGABYTES, f"{before:.0f} MB before, {rss(process):.0f} MB after"
    begin = time.monotonic()
    assert requests.get(f"{server.url}/info/", timeout=10).status_code == 200 and time.monotonic() - begin < 3
    assert clicks(server) < 2 * took + 0.3
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) in (0, 143), server.log[-3000:]


def through(server, first: int, count: int) -> list[str]:
    """Send so many files, some at a time, each to one of the three doors; those that it did not answer as it should."""
    pictures, outlines = list(images().items()), list(labels().items())

    def send(k: int) -> str:
        door = k % 3
        files = outlines if door == 2 else pictures
        name, content = files[k // 3 % len(files)]
        file = (name, mutate(name, content, first + k // 3 % 11))  # the first numbers are the worst
        url, field = (
            ("/infer/ultrarefiner", "file"),
            ("/session/", "files"),
            (f"/datastore/label?image={name.partition('.')[0]}", "label"),
        )[door]
        method = requests.post if door == 0 else requests.put
        try:
            answer = method(f"{server.url}{url}", files={field: file}, timeout=60)
        except requests.RequestException as error:
            return f"{k} {name} to {url}: {type(error).__name__}"
        return f"{k} {name} to {url}: {answer.status_code} {answer.text[:200]}" if answer.status_code >= 500 else ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [fault for fault in pool.map(send, range(count)) if fault]


def clicks(server) -> float:
    """The median time of a click, in seconds."""
    took = []
    for k in range(9):
        params = f'{{"foreground": [[{20 + k}, 15, 0]], "result_extension": ".nrrd"}}'
        begin = time.monotonic()
        answer = requests.post(f"{server.url}/infer/sam_refiner?image=grey", data={"params": params}, timeout=60)
        assert answer.status_code == 200, answer.text
        took.append(time.monotonic() - begin)
    return statistics.median(took)


def rss(process: psutil.Process) -> float:
    """MB, once it has come to rest."""
    time.sleep(3)
    return process.memory_info().rss / 2**20


def settled_threads(process: psutil.Process) -> int:
    """Threads that wait for work end after ten seconds."""
    time.sleep(12)
    return process.num_threads()
