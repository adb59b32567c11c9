import subprocess
import sys

import pytest
import torch

from ultrarefiner_monai.training.loop.cpu import no_denormals

FAULTS = """
import resource, torch
from ultrarefiner_monai.training.loop.cpu import keep_memory
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(8 * 2**20).add_(1)  # 32 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
assert keep_memory()
faults()
print(before, faults())
"""


def test_denormals_are_zero_within_only() -> None:
    small = torch.tensor([1e-30])
    with no_denormals():
        assert (small * 1e-10).item() == 0
    assert (small * 1e-10).item() > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_memory_that_is_freed_is_taken_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = (int(n) for n in done.stdout.split())
    assert after < before / 10
