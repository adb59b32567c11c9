"""setup.cfg names every package that the code imports: what another package happens to bring may go with its next version."""

from __future__ import annotations

import configparser
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from test_imports import imports

ROOT = Path(__file__).resolve().parents[1]
OURS = {"ultrarefiner_monai", "lib", "main"}
BROUGHT_BY = {"pydantic_core": "pydantic"}  # in the one version that fits


def named() -> set[str]:
    """The distributions of setup.cfg, extras included, as pip writes their names."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    names = [re.match(r"[A-Za-z0-9._-]+", line) for line in lines if not line.startswith(("#", "%"))]
    return {plain(name.group()) for name in names if name}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_named_in_setup_cfg() -> None:
    paths = [*(ROOT / "ultrarefiner_monai").rglob("*.py"), *(ROOT / "apps").rglob("*.py")]
    roots = {name.split(".")[0] for path in paths for name in imports(path)} - set(sys.stdlib_module_names) - OURS
    assert {"torch", "yaml", "PIL", "pydantic"} <= roots
    asked, homes = named(), packages_distributions()
    unnamed = {
        root
        for root in roots
        if BROUGHT_BY.get(root) not in asked and not {plain(home) for home in homes.get(root, [root])} & asked
    }
    # Installed without what it asks for, by name and version (Makefile; tests/cli/test_installation.py).
    assert unnamed <= {"monailabel"}
