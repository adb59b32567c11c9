"""The networks of a phase with a refiner: what they begin with, which of their parts learn, and how they are written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultrarefiner_monai.config import LoraConfig, SystemConfig, TrainConfig, to_dict
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.adapter_file import ADAPTER, merged_sam, write_adapter
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import (
    Checkpoint,
    build_points,
    load_strictly,
    read_checkpoint,
    save_system,
)
from ultrarefiner_monai.models.lora import lora_parameters
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam.compact import LiteSamEncoder
from ultrarefiner_monai.models.sam.network import build_sam, load_into_sam, load_sam_state
from ultrarefiner_monai.models.sam.sam3 import Sam3Encoder, load_tower
from ultrarefiner_monai.training.check_data import stored_meta

log = logging.getLogger(__name__)


def start_system(config: TrainConfig) -> tuple[SystemConfig, nn.Module, Checkpoint]:
    """The system that a refiner is trained for: phase 1's coarse network and its post-processing, from ``init``."""
    if config.init in ("none", "imagenet") or not config.init.endswith(".safetensors"):
        raise InputError(
            f"{config.phase} starts from a trained coarse network: init must be the .safetensors of phase1_coarse (or of a "
            f"whole system), got {config.init!r}"
        )
    stored = read_checkpoint(config.init)
    if stored.config.coarse != config.system.coarse:
        own, other = vars(config.system.coarse), vars(stored.config.coarse)
        differ = ", ".join(f"{k}: {other[k]!r} there, {own[k]!r} here" for k in own if own[k] != other[k])
        raise InputError(f"init: {config.init} has another coarse network than system.coarse ({differ})")
    system = replace(config.system, post=stored.config.post, flip_tta=stored.config.flip_tta)
    coarse = build_coarse(system.coarse)
    load_strictly(coarse, stored.part("coarse"), f"{config.init} (coarse)")
    return system, coarse.float().eval().requires_grad_(False), stored


def build_refiner(config: TrainConfig, system: SystemConfig, coarse: nn.Module, stored: Checkpoint) -> Refiner:
    """The refiner with its start weights (``refine.sam_init``; ``none`` takes ``init``'s own where it has one)."""
    assert system.sam is not None
    sam, start = build_sam(system.sam), config.refine.sam_init
    encoder = sam.image_encoder
    if start == "stem":
        if not isinstance(encoder, LiteSamEncoder) or getattr(system.coarse, "stem", None) != encoder.stem_name:
            raise InputError("refine.sam_init: stem needs a compact coarse network and a sam.encoder of the same stem")
        encoder.copy_stem(coarse)
    elif system.sam.arch == "sam3" and (start != "none" or stored.config.sam is None):
        _begin_with_sam3(sam, config)
    elif start != "none":
        load_into_sam(sam, load_sam_state(start), start)
    elif stored.config.sam is not None:
        load_into_sam(sam, stored.part("sam"), f"{config.init} (sam)")
    refiner = Refiner(sam, system)
    if start == "none" and stored.part("gate") and refiner.gate.state_dict():
        load_strictly(refiner.gate, stored.part("gate"), f"{config.init} (gate)")
    if start in ("none", config.init):
        _copy_views(refiner, stored)
    elif refiner.views.names and stored_meta(start) is not None:
        _copy_views(refiner, read_checkpoint(start))
    return refiner


def _copy_views(refiner: Refiner, stored: Checkpoint) -> None:
    """The vectors of the views that ``stored`` knows too; new ones start at zero."""
    known = stored.part("views").get("table")
    if lost := [name for name in stored.config.views if name not in refiner.views.names]:
        log.warning("system.views does not name %s, which the start weights know: they are lost", ", ".join(lost))
    if known is None or refiner.views.table is None:
        return
    with torch.no_grad():
        for row, name in enumerate(refiner.views.names):
            if name in stored.config.views:
                refiner.views.table[row] = known[stored.config.views.index(name)].float()


def _begin_with_sam3(sam: nn.Module, config: TrainConfig) -> None:
    """SAM 3's weights in the vision tower, and a SAM's in prompt encoder and mask decoder (``refine.decoder_init``)."""
    start, decoder = config.refine.sam_init, config.refine.decoder_init
    if start == "none":
        raise InputError(
            "sam.arch sam3 needs SAM 3's weights, which are Meta's to give: ask for facebook/sam3 at huggingface.co and set "
            "refine.sam_init to sam3.pt or model.safetensors"
        )
    if stored_meta(start) is not None:  # a checkpoint of ours
        load_into_sam(sam, load_sam_state(start), start)
        return
    load_tower(sam.image_encoder, start)  # type: ignore[arg-type]
    if decoder == "none":
        log.warning("prompt encoder and mask decoder start from random weights: refine.decoder_init names no SAM")
        return
    state = load_sam_state(decoder)
    for part in ("prompt_encoder", "mask_decoder"):
        values = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        load_strictly(getattr(sam, part), values, f"refine.decoder_init: {decoder} ({part})")


def with_points(config: TrainConfig, system: SystemConfig, stored: Checkpoint) -> tuple[SystemConfig, nn.Module | None]:
    """The point proposal network of ``init``, as the result has it: kept while what it reads (the image embedding, with what
    views add) stands still, else left out."""
    refine = config.refine
    still = refine.lora is None and not system.views and not {"encoder", "neck", "deep"} & set(refine.train)
    if stored.config.ppn is None:
        return replace(system, ppn=None), None
    if config.phase == "ppn":  # which keeps it, and says what it does not keep
        return replace(system, ppn=None), None
    if refine.sam_init not in ("none", config.init) or not still:
        log.warning("the point proposal network of %s would read another embedding: it is left out", config.init)
        return replace(system, ppn=None), None
    system = replace(system, ppn=stored.config.ppn)
    ppn = build_points(system)
    load_strictly(ppn, stored.part("ppn"), f"{config.init} (ppn)")
    return system, ppn.float().eval().requires_grad_(False)


def refiner_parts(refiner: Refiner) -> dict[str, list[nn.Parameter]]:
    """The parameters of each part that ``refine.train`` may name, and of adapters, gate and views, which always learn."""
    sam, encoder_module = refiner.sam, refiner.sam.image_encoder
    adapters = [p for _, p in lora_parameters(sam.image_encoder)]
    encoder = list(sam.image_encoder.parameters())
    neck: list[nn.Parameter] = []
    deep: list[nn.Parameter] = []
    if isinstance(sam.image_encoder, LiteSamEncoder):
        stem = {id(p) for p in sam.image_encoder.stem.parameters()}
        neck = [p for p in encoder if id(p) not in stem]
        deep = list(sam.image_encoder.deep_modules.parameters())
        encoder = [p for module in sam.image_encoder.shallow_modules for p in module.parameters()]
    apart = {id(p) for p in adapters}
    if isinstance(encoder_module, Sam3Encoder):
        apart |= {id(p) for p in encoder_module.project.parameters()}
    encoder, deep, neck = ([p for p in part if id(p) not in apart] for part in (encoder, deep, neck))
    return {
        "encoder": encoder,
        "deep": deep,
        "neck": neck,
        "lora": adapters,
        "prompt_encoder": list(sam.prompt_encoder.parameters()),
        "mask_decoder": list(sam.mask_decoder.parameters()),
        "gate": list(refiner.gate.parameters()),
        "views": list(refiner.views.parameters()),
        "project": list(encoder_module.project.parameters()) if isinstance(encoder_module, Sam3Encoder) else [],
    }


def set_trainable(network: nn.Module, train: tuple[str, ...]) -> None:
    """Only the named parts, adapters, views and the gate receive gradients; these two not where adapters alone shall learn. Raises
    InputError for neck or deep where there are none."""
    parts = refiner_parts(as_refiner(network))
    if "neck" in train and not parts["neck"]:  # as with deep, which needs neck
        raise InputError("refine.train: neck and deep are the compact preset's CNN encoder's; this sam has none")
    whole = ("encoder", "neck", "deep") if "encoder" in train else ()
    for name, parameters in parts.items():
        for parameter in parameters:
            always = name in ("lora", "project") or (name in ("gate", "views") and (bool(train) or not parts["lora"]))
            parameter.requires_grad_(name in train or always or name in whole)


def refiner_groups(network: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Optimiser groups: the image encoder's pretrained part with its own learning rate, then all that learns fully."""
    parts, lr = refiner_parts(as_refiner(network)), config.optimiser.lr
    pretrained = ("encoder", "deep")
    full = [p for name, group in parts.items() if name not in pretrained for p in group if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": full, "lr": lr}]
    slow = [p for name in pretrained for p in parts[name] if p.requires_grad]
    if slow:
        groups.append({"params": slow, "lr": lr * config.optimiser.pretrained_lr_factor})
    return groups


def as_refiner(network: nn.Module) -> Refiner:
    assert isinstance(network, Refiner), type(network)
    return network


def save_refiner(
    path: Path,
    system: SystemConfig,
    coarse: nn.Module,
    refiner: Refiner,
    meta: dict[str, Any],
    lora: LoraConfig | None = None,
    ppn: nn.Module | None = None,
    adapter: bool = True,
) -> None:
    """Write the checkpoint; adapters (``lora``) are merged in it, and lie beside it in a file of their own (adapter: whether they
    do). ppn: the point proposal network that goes into it."""
    parts = {"gate": refiner.gate if refiner.gate.state_dict() else None, "ppn": ppn, "views": refiner.views}
    if lora is None:
        save_system(path, system, coarse, refiner.sam, meta, half=False, **parts)
        return
    if adapter:
        facts = {"data": meta.get("data", ""), "fold": meta.get("fold", "")}
        write_adapter(path.with_name(ADAPTER), refiner.sam, lora, facts)
    about = {**meta, "lora": to_dict(lora)}
    save_system(path, system, coarse, merged_sam(refiner.sam), about, half=False, **parts)
