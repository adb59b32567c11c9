"""A server: which weights, limits, caches, the PACS, learning; YAML and MONAI Label's ``--conf`` strings."""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .learning import LearningConfig
from .lora import LoraConfig
from .reading import ConfigError, check_ranges, load_yaml, require


@dataclass(frozen=True)
class PacsConfig:
    """The DICOMweb store that is served (``--studies https://HOST/dicom-web``), see docs/it/pacs.md.

    Who asks: ``user`` with a password (basic), or a token (bearer). Passwords and tokens stand in a file that is named
    here, or in the environment (ULTRAREFINER_PACS_PASSWORD, ULTRAREFINER_PACS_TOKEN); never in this configuration.
    """

    # Which series are studies: one of these modalities, and these further QIDO filters (StudyDate=20240101-).
    modality: tuple[str, ...] = ("US",)
    filter: tuple[str, ...] = ()
    # How often the list and new results of others are looked for when nobody asks.
    poll_seconds: int = 30
    user: str = ""
    password_file: str = ""
    token_file: str = ""
    # Certificates (PEM) that sign the store's own, in place of the public ones.
    ca_file: str = ""
    timeout_seconds: int = 30
    # Tries after the first one, with growing pauses between.
    retries: int = 3
    # Images kept in the work folder; the ones used longest ago go first and are fetched again when they are opened.
    mirror_mb: int = 20_000
    # store: each final label goes to the store as a DICOM SEG (else on demand). sr: its measurements go with it.
    store: bool = False
    sr: bool = False

    def __post_init__(self) -> None:
        check_ranges(
            self, "pacs", not_negative=("retries",), at_least_one=("poll_seconds", "timeout_seconds", "mirror_mb")
        )
        require(bool(self.modality) and all(self.modality), "pacs.modality must name one or more, such as US")
        for entry in self.filter:
            require("=" in entry.strip("="), f"pacs.filter: expected NAME=VALUE, got {entry!r}")
        require(not (self.user and self.token_file), "pacs.user and pacs.token_file: give one of them, not both")

    @property
    def filters(self) -> dict[str, str]:
        """``filter`` as keyword -> value, for a search."""
        return dict(entry.split("=", 1) for entry in self.filter)


@dataclass(frozen=True)
class ServeConfig:
    """How the app serves one studies folder (``apps/ultrarefiner/config.yaml``; ``--conf NAME VALUE`` overrides)."""

    # A name ("compact", or one that `ultrarefiner weights list` knows) or the path of a checkpoint of ours.
    weights: str = "compact"
    # A SAM / MedSAM / UltraSam file (name or path) for the refiner; empty: what the checkpoint itself holds.
    refiner_weights: str = ""
    # Points that propose themselves, where the checkpoint holds a network for them (`ultrarefiner train ppn`): a task that answers
    # from them alone (with a training of that network), and sam_refiner begins with them where nobody has clicked.
    ppn_refiner: bool = False
    start_with_points: bool = False
    # A training of the image encoder from boxes around the final labels (phase weak_encoder).
    weak_encoder: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Empty: `.ultrarefiner` inside the studies folder. Needed when the studies are read-only.
    work_dir: str = ""
    ram_cache_mb: int = 1024
    disk_cache_mb: int = 4096
    # An image that is handed out is computed at once, in the background, so that the first click need not wait.
    prepare: bool = True
    max_upload_mb: int = 512
    # Rows x columns x frames of one file; bigger ones are refused before they fill the memory.
    max_pixels: int = 400_000_000
    extensions: tuple[str, ...] = (
        ".nii.gz",
        ".nii",
        ".nrrd",
        ".dcm",
        ".png",
        ".jpg",
        ".jpeg",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".webp",
        ".mp4",
        ".m4v",
        ".mov",
        ".avi",
        ".mkv",
        ".webm",
        ".wmv",
    )
    # Web pages of other origins that may call the server (https://HOST); none by default. MONAI_LABEL_CORS_ORIGINS has the
    # last word.
    cors_origins: tuple[str, ...] = ()
    # Names of this server besides localhost and its addresses: those of a reverse proxy, this machine's in the network.
    allowed_hosts: tuple[str, ...] = ()
    # Let other machines in without a login and without the token that is printed at the start.
    open_to_network: bool = False
    # The folder `dist` of another OHIF (npm's @ohif/app); empty: the one in MONAI Label's wheel.
    ohif: str = ""
    # Requests that compute at the same time, and CPU threads of each (0: all that the process may use).
    workers: int = 4
    threads: int = 0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    pacs: PacsConfig = field(default_factory=PacsConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            not_negative=("ram_cache_mb", "disk_cache_mb", "threads"),
            at_least_one=("max_upload_mb", "max_pixels", "workers"),
        )
        for origin in self.cors_origins:
            require(
                bool(re.fullmatch(r"https?://[^/\s*@]+", origin)),
                f"cors_origins: expected origins such as https://pacs.example, got {origin!r}",
            )
        for host in self.allowed_hosts:
            require(
                bool(re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-fA-F:]+", host)),
                f"allowed_hosts: expected names or addresses without http:// and without a port, got {host!r}",
            )
        require(bool(self.weights), "weights must name the checkpoint to serve")
        require(
            bool(self.extensions) and all(e.startswith(".") and "/" not in e for e in self.extensions),
            f"extensions must be like .png, got {', '.join(self.extensions)}",
        )


# Options that MONAI Label itself reads from --conf; they are none of ours and are left alone.
_MONAILABEL_CONF = ("server_mode",)


def serve_config(path: str | Path, conf: dict[str, str] | None = None) -> ServeConfig:
    """``config.yaml`` with MONAI Label's ``--conf NAME VALUE`` strings on top. Lists are written a,b,c; ``pacs.user``.

    Raises ConfigError for a name or a value that is none, with the names that are known.
    """
    hints = typing.get_type_hints(ServeConfig)
    for group, kind in (("pacs", PacsConfig), ("learning", LearningConfig), ("learning.lora", LoraConfig)):
        del hints[group]
        hints |= {f"{group}.{name}": hint for name, hint in typing.get_type_hints(kind).items()}
    overrides: dict[str, Any] = {}
    for name, text in (conf or {}).items():
        if name in _MONAILABEL_CONF:
            continue
        if name not in hints:
            raise ConfigError(f"--conf {name}: there is no such option; known: {', '.join(sorted(hints))}")
        overrides[name] = _from_text(hints[name], str(text), f"--conf {name}")
    return load_yaml(ServeConfig, path, overrides)


def _from_text(hint: Any, text: str, where: str) -> Any:
    if hint is int:
        try:
            return int(text.replace("_", ""))
        except ValueError as error:
            raise ConfigError(f"{where}: expected a whole number, got {text!r}") from error
    if hint is float:
        try:
            return float(text)
        except ValueError as error:
            raise ConfigError(f"{where}: expected a number, got {text!r}") from error
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{where}: expected true or false, got {text!r}")
        return text.lower() == "true"
    if typing.get_origin(hint) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text
