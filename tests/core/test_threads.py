"""Work by several threads: what comes back, in which order, and which error."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from ultrarefiner_monai.core.threads import in_threads


@pytest.mark.parametrize("count", [0, 1, 32, 33, 200])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    assert in_threads(lambda n: n * n, range(count)) == [n * n for n in range(count)]


def test_few_items_need_no_threads() -> None:
    assert set(in_threads(lambda _: threading.current_thread(), range(32))) == {threading.current_thread()}
    assert threading.current_thread() not in in_threads(lambda _: threading.current_thread(), range(33))


@pytest.mark.parametrize("count", [5, 100])
def test_an_error_is_the_callers(count: int) -> None:
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda n: 1 // (n - 3), range(count))


def test_what_stands_back_is_nice_and_has_few_threads() -> None:
    code = (
        "import os, torch; from ultrarefiner_monai.core.threads import stand_back; before = os.nice(0);"
        "stand_back(7, 1); print(os.nice(0) - before, torch.get_num_threads())"
    )
    # A session of its own, as a training has it: nobody else's share of the time changes.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["7", "1"]
