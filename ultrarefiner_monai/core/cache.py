"""What was computed for an image is kept: a bounded cache in RAM and on disk, each value computed once.

Keys are ``image_key(image)-version``, both hexadecimal, so that ``forget(image_key)`` removes all of an image, whatever
model made it. Embeddings derive from patients' pixels: files are readable by their owner only.

In RAM it is cachetools' ``LRUCache``. The disk is ours: diskcache keeps pickles in SQLite; here files of arrays carry a
checksum, are never unpickled, and are forgotten by the beginning of their key.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cachetools import Cache, LRUCache
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
SUFFIX = ".safetensors"
_KEY = re.compile(r"[0-9a-f]{8,128}(-[0-9a-f]{1,64})*")
_STALE_SECONDS = 3600.0


def image_key(image: np.ndarray) -> str:
    """32 hexadecimal digits that stand for shape, type and pixels of an image."""
    digest = hashlib.sha256(f"{image.shape}{image.dtype.str}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()[:32]


@dataclass(eq=False)
class _Flight:
    """A computation that others wait for."""

    done: threading.Event = field(default_factory=threading.Event)
    arrays: Arrays | None = None
    error: BaseException | None = None
    forgotten: bool = False


class EmbeddingCache:
    """Least recently used arrays in RAM, and below it on disk.

    ram_bytes, disk_bytes: upper bounds of what is kept at rest (0 keeps nothing there). disk_dir: made when first
    written to, not the folder that it lies in; None: RAM only. Floating-point arrays are kept, and handed out, as fp16:
    the answer to a request does not depend on whether it was the first. Thread-safe. A disk folder shared by two processes is safe too (files are
    whole or not there), but each bounds only what it knows of.
    """

    def __init__(self, ram_bytes: int = 256 * 2**20, disk_dir: str | Path | None = None, disk_bytes: int = 2 * 2**30):
        if ram_bytes < 0 or disk_bytes < 0:
            raise ValueError(f"cache bounds must not be negative, got {ram_bytes} and {disk_bytes} bytes")
        self.ram_bytes, self.disk_bytes = ram_bytes, disk_bytes
        self.disk_dir = Path(disk_dir) if disk_dir is not None and disk_bytes > 0 else None
        self.forgets = 0  # how often ``forget`` was called: who keeps what derives from the arrays drops it then
        self._lock = threading.Lock()
        self._ram: LRUCache[str, Arrays] = LRUCache(ram_bytes, getsizeof=_size)
        self._disk: OrderedDict[str, int] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._landing: list[tuple[str, _Flight]] = []  # over for those who waited, on the way to the disk
        self._scan()

    # --- public -------------------------------------------------------------------------------------------------------

    def get_or_compute(self, key: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of ``key``; ``compute`` is called when they are nowhere, by one thread while the others wait.

        The arrays are read-only. An exception of ``compute`` is raised in every thread that waited; nothing is kept.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"a cache key is hexadecimal digits and dashes, got {key!r}")
        with self._lock:
            arrays = self._from_ram(key)
            if arrays is not None:
                return arrays
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
        if not leads:
            flight.done.wait()
            if flight.error is not None:
                raise flight.error
            assert flight.arrays is not None
            return flight.arrays
        fresh = False
        try:
            arrays = self._read(key)
            if arrays is None:
                fresh = True
                arrays = to_half(compute())
            flight.arrays = arrays
        except BaseException as error:
            flight.error = error
            raise
        finally:
            # Into RAM before the flight ends, or a thread that comes in between would compute again.
            with self._lock:
                if flight.arrays is not None and not flight.forgotten:
                    self._into_ram(key, flight.arrays)
                del self._flights[key]
                if fresh and flight.arrays is not None:
                    self._landing.append((key, flight))
            flight.done.set()
        if fresh:
            try:
                self._write(key, arrays, flight)
            finally:
                with self._lock:
                    self._landing.remove((key, flight))
        return arrays

    def forget(self, prefix: str) -> int:
        """Remove every entry whose key begins with ``prefix``, in RAM, on disk and under way; the number removed."""
        if not prefix:
            raise ValueError("forget needs a key or the beginning of one")
        with self._lock:
            self.forgets += 1
            for key, flight in [*self._flights.items(), *self._landing]:
                flight.forgotten |= key.startswith(prefix)
            gone = {key for key in self._ram if key.startswith(prefix)}
            for key in gone:
                del self._ram[key]
            if self.disk_dir is not None and self.disk_dir.is_dir():
                for path in self.disk_dir.glob(f"*{SUFFIX}"):  # also what another process wrote
                    if path.name.startswith(prefix):
                        path.unlink(missing_ok=True)
                        self._disk.pop(path.stem, None)
                        gone.add(path.stem)
        return len(gone)

    def held(self, prefix: str) -> int:
        """Bytes at rest, in RAM or on disk, of the entries whose key begins with ``prefix``."""
        with self._lock:
            # Not by ``items()``: to LRUCache that is a use of every entry, and nobody uses one here.
            keys = [key for key in self._ram if key.startswith(prefix)]
            ram = sum(_size(Cache.__getitem__(self._ram, key)) for key in keys)
            return max(ram, sum(size for key, size in self._disk.items() if key.startswith(prefix)))

    def usage(self) -> dict[str, int]:
        """Entries and bytes at rest: ram_entries, ram_bytes, disk_entries, disk_bytes."""
        with self._lock:
            return {
                "ram_entries": len(self._ram),
                "ram_bytes": int(self._ram.currsize),
                "disk_entries": len(self._disk),
                "disk_bytes": sum(self._disk.values()),
            }

    # --- RAM (the lock is held) ---------------------------------------------------------------------------------------

    def _from_ram(self, key: str) -> Arrays | None:
        return self._ram.get(key)

    def _into_ram(self, key: str, arrays: Arrays) -> None:
        if _size(arrays) <= self.ram_bytes and key not in self._ram:
            self._ram[key] = arrays

    # --- disk ---------------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        """Learn what earlier runs left, oldest first; clear away what a killed one left half written."""
        if self.disk_dir is None or not self.disk_dir.is_dir():
            return
        found = []
        for entry in os.scandir(self.disk_dir):
            try:
                stat = entry.stat()
                if entry.name.startswith(".tmp-") and stat.st_mtime < time.time() - _STALE_SECONDS:
                    os.unlink(entry.path)
                elif entry.name.endswith(SUFFIX) and _KEY.fullmatch(entry.name[: -len(SUFFIX)]):
                    found.append((stat.st_mtime_ns, entry.name[: -len(SUFFIX)], stat.st_size))
            except OSError:  # another process was faster
                continue
        self._disk = OrderedDict((key, size) for _, key, size in sorted(found))
        self._evict()

    def _read(self, key: str) -> Arrays | None:
        if self.disk_dir is None:
            return None
        path = self.disk_dir / f"{key}{SUFFIX}"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("cannot read the cache file %s: %s", path, error)
            return None
        try:
            arrays = _decode(data)
        except Exception as error:  # whatever a damaged file makes the parser say
            logger.warning("cache file %s is damaged (%s); it is computed again", path, error)
            self._drop(key)
            return None
        with self._lock:
            self._disk[key] = len(data)
            self._disk.move_to_end(key)
        try:
            os.utime(path)
        except OSError:  # the order of use is lost, nothing else
            logger.debug("cannot touch %s", path)
        return arrays

    def _write(self, key: str, arrays: Arrays, flight: _Flight) -> None:
        if self.disk_dir is None or _size(arrays) > self.disk_bytes:
            return
        data = _encode(arrays)
        temporary = None
        try:
            self.disk_dir.mkdir(exist_ok=True, mode=0o700)  # never the work folder, which may be away
            handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=self.disk_dir)  # mode 0600
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            with self._lock:
                if flight.forgotten:
                    os.unlink(temporary)
                    return
                os.replace(temporary, self.disk_dir / f"{key}{SUFFIX}")
                self._disk[key] = len(data)
                self._disk.move_to_end(key)
                self._evict()
        except OSError as error:
            logger.warning("cannot write to the cache folder %s: %s", self.disk_dir, error)
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def _evict(self) -> None:
        assert self.disk_dir is not None
        used = sum(self._disk.values())
        while used > self.disk_bytes:
            key, size = self._disk.popitem(last=False)
            used -= size
            (self.disk_dir / f"{key}{SUFFIX}").unlink(missing_ok=True)

    def _drop(self, key: str) -> None:
        assert self.disk_dir is not None
        with self._lock:
            self._disk.pop(key, None)
        try:
            (self.disk_dir / f"{key}{SUFFIX}").unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot remove a damaged cache file: %s", error)


class ReadingCache(EmbeddingCache):
    """What another process keeps on disk is used and left as it is: nothing is written, removed or evicted."""

    def __init__(self, disk_dir: str | Path):
        super().__init__(0, disk_dir, 1 << 62)

    def _scan(self) -> None:
        pass

    def _write(self, key: str, arrays: Arrays, flight: _Flight) -> None:
        pass

    def _drop(self, key: str) -> None:
        pass


def to_half(arrays: Arrays) -> Arrays:
    """Floating-point arrays as fp16 (fp32 where a value is too large for it), all contiguous and read-only."""
    out = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and array.dtype != np.float16:
            fits = not array.size or float(np.abs(array).max()) <= np.finfo(np.float16).max
            array = array.astype(np.float16 if fits else np.float32)
        array = np.array(array, order="C")  # a copy: the caller may go on writing into its own
        array.setflags(write=False)
        out[name] = array
    return out


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _checksum(arrays: Arrays) -> str:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(f"{name}{arrays[name].shape}{arrays[name].dtype.str}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).data, crc)
    return f"{crc:08x}"


def _encode(arrays: Arrays) -> bytes:
    return save_safetensors(arrays, metadata={"crc32": _checksum(arrays)})


def _decode(data: bytes) -> Arrays:
    arrays = dict(load_safetensors(data))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if header.get("__metadata__", {}).get("crc32") != _checksum(arrays):
        raise ValueError("checksum does not fit")
    for array in arrays.values():
        array.setflags(write=False)
    return arrays
