from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ultrarefiner_monai import checkpoints
from ultrarefiner_monai.training import phases, refine


@pytest.fixture
def small_network(monkeypatch) -> None:
    """Coarse networks of two convolutions, whatever the configuration says: those of ``launched.py``."""
    spec = importlib.util.spec_from_file_location("launched", Path(__file__).with_name("launched.py"))
    assert spec is not None and spec.loader is not None
    launched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launched)
    for module in (phases, checkpoints, refine):
        monkeypatch.setattr(module, "build_coarse", launched.small)
