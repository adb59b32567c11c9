"""A lock between processes that is taken at once or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ultrarefiner_monai.core.types import InputError


@contextmanager
def locked(path: Path, busy: str, error_type: type[InputError] = InputError) -> Iterator[None]:
    """Hold the lock file ``path``; the lock goes with the process, however that ends.

    Raises ``error_type``: with ``busy`` where another process holds it, with the system's own words where the file cannot
    be locked at all (no permission, a folder in its place, a share without locks).
    """
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise error_type(busy) from error
    except (OSError, NotImplementedError) as error:
        raise error_type(f"cannot lock {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield
    finally:
        lock.release()
