"""Where the app, its weights and the sample images lie: in the checkout, or in what a wheel installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent


def is_checkout() -> bool:
    """Whether the package runs from a checkout of the repository."""
    return (CHECKOUT / "apps" / "ultrarefiner" / "main.py").is_file()


def app_folder() -> Path:
    """The folder of the MONAI Label app; InputError where there is none."""
    folder = CHECKOUT / "apps" / "ultrarefiner" if is_checkout() else PACKAGE / "_app"
    if not (folder / "main.py").is_file():
        from ultrarefiner_monai.core.types import InputError

        raise InputError(f"{folder} holds no app: install the package from the repository or from its wheel")
    return folder


def sample_data() -> Path:
    """The folder of the sample images."""
    return CHECKOUT / "sample-data" if is_checkout() else PACKAGE / "_samples"


def home() -> Path:
    """Where a server that is started without a folder keeps its studies and logs: .work of the checkout, or .ultrarefiner in the
    user's home."""
    return CHECKOUT / ".work" if is_checkout() else Path.home() / ".ultrarefiner"
