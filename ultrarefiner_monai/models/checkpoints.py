"""Checkpoints: one safetensors file holds the weights and, as JSON, the configuration that decides what they compute.

Keys are ``coarse.*`` and ``sam.*`` (``gate.*`` for a learned gate, ``ppn.*`` for a point proposal network, ``views.*`` for view
conditioning). Loading is strict both ways; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ultrarefiner_monai.config import ConfigError, SamConfig, SystemConfig, from_dict, set_option, to_dict
from ultrarefiner_monai.core.files import replacing, sha256_of
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.strict import misfits

if TYPE_CHECKING:
    from ultrarefiner_monai.models.refiner import Refiner

FORMAT = "ultrarefiner-1"
LEARNED = ("learned", "product")  # gate.mode that has weights


@dataclass
class System:
    """What serving and evaluation work with: both networks in eval mode and fp32, and what they were made for.

    version: short hash of weights and configuration. meta: plain values about the training (data, fold, figures).
    refiner: None where there are no weights for one; a foreign SAM file counts as weights, ``version`` then names both.
    ppn: the point proposal network, None where there is none.
    """

    config: SystemConfig
    coarse: nn.Module
    refiner: nn.Module | None
    version: str
    meta: dict[str, Any] = field(default_factory=dict)
    ppn: nn.Module | None = None


def save_system(
    path: str | Path,
    config: SystemConfig,
    coarse: nn.Module,
    sam: nn.Module | None = None,
    meta: dict[str, Any] | None = None,
    half: bool = True,
    gate: nn.Module | None = None,
    ppn: nn.Module | None = None,
    views: nn.Module | None = None,
) -> Path:
    """Write a checkpoint beside its place and rename it there, so that ``path`` always holds a whole file.

    half: floating-point weights are stored as float16 (networks always compute in what they are loaded as, float32).
    gate: the refiner's, where ``config.gate`` is a learned one. ppn: where ``config.ppn`` says that there is one. views: the
    refiner's, where ``config.views`` names some.
    """
    if (ppn is None) != (config.ppn is None):
        raise ValueError("a checkpoint with config.ppn needs the network, and one without must not have it")
    if (sam is None) != (config.sam is None):
        raise ValueError("a checkpoint with config.sam needs the SAM, and one without must not have it")
    parts = {"coarse": coarse, "sam": sam, "gate": gate, "ppn": ppn, "views": views}
    there = ((name, part) for name, part in parts.items() if part is not None)
    tensors = {f"{name}.{k}": v for name, part in there for k, v in part.state_dict().items()}
    if any(k.startswith("views.") for k in tensors) != bool(config.views):
        raise ValueError("a checkpoint needs the vectors of its views if, and only if, config.views names some")
    if (gate is not None and bool(gate.state_dict())) != (sam is not None and config.gate.mode in LEARNED):
        raise ValueError(
            "a checkpoint needs the gate's weights if, and only if, config.gate.mode is learned or product"
        )
    return write_checkpoint(path, {k: _storable(v, half) for k, v in tensors.items()}, config, meta)


def write_checkpoint(
    path: str | Path, tensors: dict[str, torch.Tensor], config: SystemConfig, meta: dict[str, Any] | None = None
) -> Path:
    """Write tensors with their full keys (``coarse.*``, ...) as they are; what ``save_system`` ends in."""
    metadata = {"format": FORMAT, "config": json.dumps(to_dict(config)), "meta": json.dumps(meta or {})}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        # By its name: as bytes it would be in memory twice. safetensors writes a file of its own and renames it to this name,
        # readable by the owner only; ``replacing`` flushes that one.
        save_file(tensors, file.name, metadata)
        os.chmod(file.name, 0o644)
    return path


def in_half_precision(path: str | Path, out: str | Path) -> Path:
    """Write the checkpoint ``path`` again as ``out``, its weights as float16 and all else as it is."""
    stored = read_checkpoint(path)
    tensors = {k: _storable(v, True) for k, v in stored.tensors.items()}
    return write_checkpoint(out, tensors, stored.config, stored.meta)


def _storable(tensor: torch.Tensor, half: bool) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()
    if not half or not tensor.is_floating_point():
        return tensor
    limit = torch.finfo(torch.float16).max
    if tensor.abs().max() > limit:
        raise ValueError(f"a weight exceeds float16's range ({tensor.abs().max():.3g}); save with half=False")
    return tensor.half()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's content: tensors as stored, configuration, meta and version."""

    tensors: dict[str, torch.Tensor]
    config: SystemConfig
    meta: dict[str, Any]
    version: str

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The state dict of one network: ``coarse`` or ``sam``."""
        prefix = f"{name}."
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file that ``save_system`` wrote. Raises InputError for anything else."""
    metadata, tensors = _opened(Path(path), True)
    return Checkpoint(tensors, *_described(Path(path), metadata), _version(Path(path)))


def read_header(path: str | Path) -> tuple[SystemConfig, dict[str, Any]]:
    """Configuration and meta alone, as ``read_checkpoint`` gives them, without reading the weights."""
    return _described(Path(path), _opened(Path(path), False)[0])


def _opened(path: Path, weights: bool) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            names = file.keys() if weights else ()
            return file.metadata() or {}, {k: file.get_tensor(k) for k in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def _described(path: Path, metadata: dict[str, str]) -> tuple[SystemConfig, dict[str, Any]]:
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} is not an ultrarefiner checkpoint (format {metadata.get('format')!r}, expected {FORMAT!r})"
        )
    try:
        return from_dict(SystemConfig, json.loads(metadata["config"])), json.loads(metadata.get("meta", "{}"))
    except (ConfigError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: its configuration cannot be read by this version: {error}") from error


def _version(path: Path) -> str:
    return sha256_of(path)[:12]


def load_strictly(module: nn.Module, state: dict[str, torch.Tensor], what: str) -> None:
    """Load ``state``, naming what is missing, unexpected or of another shape. Floating point becomes the module's type."""
    faults = misfits(module.state_dict(), state)
    if faults:
        raise InputError(f"{what} does not fit this network; " + "; ".join(faults))
    module.load_state_dict(state, strict=True)


def load_system(
    path: str | Path,
    refiner_weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    refiner_arch: str | None = None,
) -> System:
    """Build the networks that a checkpoint describes and load them, in eval mode and float32.

    refiner_weights: a SAM file (official, MedSAM, UltraSam, or our own export) that is used as the refiner instead of
    what the checkpoint holds. Such a SAM was not trained as a refiner, so it gets blurred mask prompts and the gate.
    """
    checkpoint = read_checkpoint(path)
    config, version = checkpoint.config, checkpoint.version
    coarse = build_coarse(config.coarse)
    load_strictly(coarse, checkpoint.part("coarse"), f"{path} (coarse)")
    refiner: nn.Module | None = None
    if refiner_weights is not None:
        config, sam = _foreign_sam(replace(config, ppn=None, views=()), Path(refiner_weights), refiner_arch)
        version = f"{version}+{_version(Path(refiner_weights))[:8]}"
        refiner = _refiner(sam, config)
    elif config.sam is not None:
        from ultrarefiner_monai.models.sam.network import build_sam, load_into_sam

        sam = build_sam(config.sam)
        load_into_sam(sam, checkpoint.part("sam"), f"{path} (sam)")
        refiner = _refiner(sam, config)
        load_strictly(refiner.gate, checkpoint.part("gate"), f"{path} (gate)")
        load_strictly(refiner.views, checkpoint.part("views"), f"{path} (views)")
    ppn = build_points(config) if config.ppn is not None else None
    if ppn is not None:
        load_strictly(ppn, checkpoint.part("ppn"), f"{path} (ppn)")
    for module in (coarse, refiner, ppn):
        if module is not None:
            module.float().eval().requires_grad_(False).to(device)
    return System(config, coarse, refiner, version, checkpoint.meta, ppn)


def build_points(config: SystemConfig) -> nn.Module:
    """The point proposal network of ``config.ppn``, with random weights."""
    from ultrarefiner_monai.models.ppn import PointNetwork

    assert config.ppn is not None and config.sam is not None
    return PointNetwork(config.ppn, config.sam.image_size // config.sam.patch, config.sam.patch)


def with_options(system: System, options: dict[str, Any]) -> System:
    """The same weights with other settings: dotted names -> values, as in ``safety.enabled`` or ``gate.mode``.

    They are noted in ``meta["options"]``; ``version`` stays that of the file. ConfigError for what the weights were
    built for (coarse, sam) and for a learned gate that the file holds no weights for.
    """
    if not options:
        return system
    values = to_dict(system.config)
    for name, value in options.items():
        set_option(values, name, value)
    config = from_dict(SystemConfig, values)
    if any(getattr(config, part) != getattr(system.config, part) for part in ("coarse", "sam", "ppn", "views")):
        raise ConfigError(
            "the weights fix coarse.*, sam.*, ppn.* and views; only the other options can be set: " + ", ".join(options)
        )
    refiner = system.refiner
    if refiner is not None:
        old, refiner = refiner, _refiner(refiner.sam, config)  # type: ignore[arg-type]
        try:
            refiner.gate.load_state_dict(old.gate.state_dict() if config.gate.mode in LEARNED else {})  # type: ignore
        except RuntimeError as error:
            raise ConfigError(f"gate.mode {config.gate.mode}: the checkpoint holds no weights for it") from error
        refiner.views.load_state_dict(old.views.state_dict())  # type: ignore[union-attr]
        refiner.eval().requires_grad_(False).to(next(old.parameters()).device)
    return replace(system, config=config, refiner=refiner, meta={**system.meta, "options": dict(options)})


def _refiner(sam: nn.Module, config: SystemConfig) -> Refiner:
    from ultrarefiner_monai.models.refiner import Refiner

    return Refiner(sam, config)


def _foreign_sam(config: SystemConfig, path: Path, arch: str | None) -> tuple[SystemConfig, nn.Module]:
    from ultrarefiner_monai.models.sam.network import build_sam, load_into_sam, load_sam_state

    if not path.is_file():
        raise InputError(f"no SAM weights at {path}")
    state = load_sam_state(path)
    arch = arch or sam_arch(state)
    config = replace(
        config,
        sam=SamConfig(arch=arch),  # type: ignore[arg-type]
        prompts=replace(config.prompts, mask="gaussian"),
        gate=replace(config.gate.reopened(), mode="confidence"),
    )
    assert config.sam is not None
    sam = build_sam(config.sam)
    load_into_sam(sam, state, str(path))
    return config, sam


def sam_arch(state: dict[str, torch.Tensor]) -> str:
    """vit_b, vit_l or vit_h, read off the patch embedding's width. Raises InputError for anything else."""
    key = "image_encoder.patch_embed.proj.weight"
    width = int(state[key].shape[0]) if key in state else None
    names = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
    if width not in names:
        raise InputError(f"expected SAM weights of vit_b, vit_l or vit_h; {key} is {width or 'missing'}")
    return names[width]
