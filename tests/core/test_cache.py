from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ultrarefiner_monai.core.cache import EmbeddingCache, image_key, to_half

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16


class Counter:
    """Computes an array and counts how often it was asked to."""

    def __init__(self, value: float = 1.0, n: int = 100):
        self.calls, self.value, self.n = 0, value, n

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"x": np.full(self.n, self.value, np.float32)}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("it should have been kept")


def test_keys_tell_pixels_shape_and_type_apart() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    other = image.copy()
    other[2, 3] += 1
    keys = {image_key(i) for i in (image, other, image.reshape(4, 3), image.view(np.int32))}
    assert len(keys) == 4 and all(len(k) == 32 and set(k) <= set("0123456789abcdef") for k in keys)
    assert image_key(np.asfortranarray(image)) == image_key(image)


def test_first_and_later_answers_are_the_same_half_precision_arrays(tmp_path: Path) -> None:
    value = np.linspace(0, 1, 37).reshape(1, 37)
    cache = EmbeddingCache(10_000, tmp_path, 10_000)
    first = cache.get_or_compute(A, lambda: {"p": value, "n": np.arange(3)})
    from_ram = cache.get_or_compute(A, never)
    from_disk = EmbeddingCache(10_000, tmp_path, 10_000).get_or_compute(A, never)
    for arrays in (first, from_ram, from_disk):
        assert arrays["p"].dtype == np.float16 and np.array_equal(arrays["p"], value.astype(np.float16))
        assert arrays["n"].dtype.kind == "i" and arrays["n"].tolist() == [0, 1, 2]
        with pytest.raises(ValueError):
            arrays["p"][0, 0] = 7


def test_values_too_large_for_half_precision_stay_single() -> None:
    assert to_half({"x": np.array([1e6])})["x"].dtype == np.float32


def test_ram_is_bounded_and_drops_the_least_recently_used() -> None:
    cache = EmbeddingCache(ram_bytes=400)  # two entries of 200 bytes
    for key in (A, B):
        cache.get_or_compute(key, Counter())
    cache.get_or_compute(A, never)
    cache.get_or_compute(C, Counter())
    assert cache.usage()["ram_bytes"] == 400
    cache.get_or_compute(A, never)
    again = Counter()
    cache.get_or_compute(B, again)
    assert again.calls == 1


def test_entry_larger_than_the_bound_is_answered_and_not_kept(tmp_path: Path) -> None:
    cache = EmbeddingCache(100, tmp_path, 100)
    assert cache.get_or_compute(A, Counter(n=1000))["x"].size == 1000
    assert cache.usage() == {"ram_entries": 0, "ram_bytes": 0, "disk_entries": 0, "disk_bytes": 0}


def test_disk_is_bounded_also_across_restarts(tmp_path: Path) -> None:
    cache = EmbeddingCache(0, tmp_path, 10**6)
    for i, key in enumerate((A, B, C)):
        cache.get_or_compute(key, Counter())
        os.utime(tmp_path / f"{key}.safetensors", (i + 1, i + 1))
    size = (tmp_path / f"{A}.safetensors").stat().st_size
    small = EmbeddingCache(0, tmp_path, 2 * size)
    assert sorted(p.stem for p in tmp_path.iterdir()) == [B, C]
    small.get_or_compute(B, never)  # C is now the one used longest ago
    small.get_or_compute(A, Counter())
    assert sorted(p.stem for p in tmp_path.iterdir()) == [A, B]
    assert small.usage()["disk_bytes"] == 2 * size


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "junk"])
def test_damaged_file_is_computed_again(tmp_path: Path, damage: str) -> None:
    EmbeddingCache(0, tmp_path, 10**6).get_or_compute(A, Counter(3))
    path = tmp_path / f"{A}.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
    path.write_bytes({"empty": b"", "truncated": bytes(data[:-9]), "junk": b"\xff" * 64}.get(damage, bytes(data)))
    counter = Counter(3)
    cache = EmbeddingCache(0, tmp_path, 10**6)
    assert cache.get_or_compute(A, counter)["x"][0] == 3 and counter.calls == 1
    assert EmbeddingCache(0, tmp_path, 10**6).get_or_compute(A, never)["x"][0] == 3


def test_files_are_whole_private_and_left_overs_go(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    cache = EmbeddingCache(0, folder, 10**6)
    assert not folder.exists()
    cache.get_or_compute(A, Counter())
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    old, young = folder / ".tmp-old", folder / ".tmp-young"
    for temporary in (old, young):
        temporary.write_bytes(b"half")
    os.utime(old, (1, 1))
    EmbeddingCache(0, folder, 10**6)
    assert not old.exists() and young.exists()


def test_unwritable_folder_costs_the_cache_not_the_answer(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    cache = EmbeddingCache(0, blocker / "cache", 10**6)
    assert cache.get_or_compute(A, Counter(2))["x"][0] == 2


def run_threads(target, n: int) -> None:
    threads = [threading.Thread(target=target) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_requests_for_one_key_compute_once() -> None:
    cache, started, results = EmbeddingCache(0), threading.Barrier(8), []  # nothing is kept: only the flight is shared
    calls = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        time.sleep(0.3)
        return {"x": np.ones(3)}

    def ask() -> None:
        started.wait()
        results.append(cache.get_or_compute(A, compute))

    run_threads(ask, 8)
    assert len(calls) == 1 and len(results) == 8
    assert all(r is results[0] for r in results)


def test_failure_is_raised_in_every_waiter_and_not_kept() -> None:
    cache, started, errors = EmbeddingCache(10**6), threading.Barrier(4), []

    def compute() -> dict[str, np.ndarray]:
        time.sleep(0.3)
        raise RuntimeError("no memory")

    def ask() -> None:
        started.wait()
        try:
            cache.get_or_compute(A, compute)
        except RuntimeError as error:
            errors.append(str(error))

    run_threads(ask, 4)
    assert errors == ["no memory"] * 4
    assert cache.get_or_compute(A, Counter(5))["x"][0] == 5


def test_one_key_does_not_wait_for_another() -> None:
    cache, inside = EmbeddingCache(10**6), threading.Event()

    def compute() -> dict[str, np.ndarray]:
        assert inside.wait(10)
        return {"x": np.zeros(1)}

    thread = threading.Thread(target=lambda: cache.get_or_compute(A, compute))
    thread.start()
    cache.get_or_compute(B, Counter())  # would hang here
    inside.set()
    thread.join(10)
    assert not thread.is_alive()


def test_forget_removes_all_of_an_image_in_ram_on_disk_and_under_way(tmp_path: Path) -> None:
    cache = EmbeddingCache(10**6, tmp_path, 10**6)
    for key in (f"{A}-00", f"{A}-11", f"{B}-00"):
        cache.get_or_compute(key, Counter())

    def compute() -> dict[str, np.ndarray]:
        assert cache.forget(A) == 2
        return {"x": np.zeros(1)}

    cache.get_or_compute(f"{A}-22", compute)
    assert [p.stem for p in tmp_path.iterdir()] == [f"{B}-00"]
    assert cache.usage()["ram_entries"] == 1
    again = Counter()
    cache.get_or_compute(f"{A}-22", again)
    assert again.calls == 1


@pytest.mark.parametrize("key", ["", "../" + A, A + "/x", A.upper(), "xyz", A + "-"])
def test_keys_that_could_leave_the_folder_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        EmbeddingCache(0, tmp_path, 100).get_or_compute(key, never)


def test_held_counts_the_bytes_of_one_image_wherever_they_lie(tmp_path: Path) -> None:
    one, two = "a" * 32, "b" * 32
    cache = EmbeddingCache(500, tmp_path, 10**6)
    for key in (one, f"{one}-0", two, f"{two}-0"):
        cache.get_or_compute(key, lambda: {"a": np.zeros(100, np.float16)})
    assert cache.held(two) >= 400 and cache.held(one) >= 400, "out of RAM, still on disk"
    assert cache.held("c" * 32) == 0
    ram = EmbeddingCache(500)
    ram.get_or_compute(one, lambda: {"a": np.zeros(100, np.float16)})
    assert ram.held(one) == 200


def test_to_ask_what_is_held_is_no_use_of_it() -> None:
    cache = EmbeddingCache(500)
    for key in (A, B, A):
        cache.get_or_compute(key, Counter())
    assert cache.held(C) == 0 and cache.held(A) == 200
    cache.get_or_compute(C, Counter())  # B was used longest ago
    cache.get_or_compute(A, never)
    with pytest.raises(AssertionError, match="kept"):
        cache.get_or_compute(B, never)


def test_forget_without_a_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="forget"):
        EmbeddingCache(100).forget("")


def test_forget_reaches_what_is_on_its_way_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EmbeddingCache(10**6, tmp_path, 10**6)
    write = cache._write

    def late(*args) -> None:
        assert cache.forget(A) == 1  # in RAM already, its file not yet there
        write(*args)

    monkeypatch.setattr(cache, "_write", late)
    cache.get_or_compute(A, Counter())
    assert not list(tmp_path.iterdir()) and cache.usage()["ram_entries"] == cache.usage()["disk_entries"] == 0
    assert not cache._landing
