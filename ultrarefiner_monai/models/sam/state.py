"""SAM checkpoints in and out: official, MedSAM, wrapped, UltraSam, our own -> one dictionary with SAM's plain keys."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import nn

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.strict import misfits, some

log = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model", "model_state_dict", "sam")
_PREFIXES = ("module.", "sam.", "model.")
_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
_CONSTANTS = ("pixel_mean", "pixel_std")  # not persistent in segment_anything; some forks save them
_LABELS = "prompt_encoder.label_encoder.label_embedding.weight"
# The rows of UltraSam's label embedding, in order.
_LABEL_ROWS = (
    ("prompt_encoder.no_mask_embed.weight", 1),
    *((f"prompt_encoder.point_embeddings.{i}.weight", 1) for i in range(4)),
    ("prompt_encoder.not_a_point_embed.weight", 1),
    ("mask_decoder.mask_tokens.weight", 4),
    ("mask_decoder.iou_token.weight", 1),
)
_IN_PROJ = re.compile(r"^(decoder\..+)\.attn\.in_proj_bias$")


def load_sam_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a SAM checkpoint under SAM's plain keys, float32, on the CPU. Nothing is ever unpickled.

    Understood: official and MedSAM files, ``{"model": ...}`` and similar wrappers, ``module.`` and ``sam.`` prefixes,
    our checkpoints (their ``sam.*`` part), UltraSam (mmdetection's keys), and any of these as .safetensors.
    Raises InputError for anything else, with the keys that were not understood.
    """
    path = Path(path)
    state = read_tensors(path)
    if _LABELS in state or any(key.startswith("backbone.") for key in state):
        state = ultrasam_to_sam(state, str(path))
    elif any(key.startswith("coarse.") for key in state):
        # A checkpoint of the whole system: the refiner's part of it.
        state = {k: v for k, v in state.items() if k.startswith("sam.")}
        if not state:
            raise InputError(f"{path} holds a coarse network and no SAM; expected a checkpoint with a refiner")
    while prefix := next((p for p in _PREFIXES if state and all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if k not in _CONSTANTS}
    strange = sorted(k for k in state if not k.startswith(_PARTS))
    if strange or not state:
        raise InputError(
            f"{path} is not a SAM checkpoint: expected keys like image_encoder.*, prompt_encoder.*, mask_decoder.*; "
            f"{len(strange)} of {len(state)} are others: {some(strange)}"
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def load_into_sam(sam: nn.Module, state: Mapping[str, torch.Tensor], source: str = "the checkpoint") -> None:
    """Load plain SAM keys strictly. Raises InputError: which keys do not fit, and which architecture they look like."""
    wanted = sam.state_dict()
    faults = misfits(wanted, state)
    if faults:
        raise InputError(
            f"{source} looks like {describe(state)}, this network is {describe(wanted)}; set sam.arch and "
            f"sam.image_size to match the file. " + "; ".join(faults)
        )
    sam.load_state_dict(state)


def describe(state: Mapping[str, torch.Tensor]) -> str:
    """The architecture a state dictionary looks like, in words: ``vit_b (768 wide, 12 blocks, 1024 px)``."""
    if any(".tower." in key for key in state):
        return "SAM 3's vision tower"
    patch, positions = state.get("image_encoder.patch_embed.proj.weight"), state.get("image_encoder.pos_embed")
    if patch is None:
        return "no SAM image encoder"
    width = int(patch.shape[0])
    blocks = {k.split(".")[2] for k in state if k.startswith("image_encoder.blocks.")}
    name = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}.get((width, len(blocks)), "compact")
    pixels = "" if positions is None else f", {int(positions.shape[1]) * int(patch.shape[-1])} px"
    return f"{name} ({width} wide, {len(blocks)} blocks{pixels})"


def save_sam(sam: Sam, path: str | Path) -> None:
    """Write a .pth that plain ``sam_model_registry[...](checkpoint=path)`` loads: beside, then moved into place.

    Raises ValueError when something (an adapter, say) is still injected, so that the keys would not be SAM's.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in sam.state_dict().items()}
    strange = [k for k in state if not k.startswith(_PARTS) or "lora" in k.lower()]
    if strange:
        raise ValueError(f"not a plain SAM (merge or remove adapters first): {some(strange)}")
    with replacing(path) as file:
        torch.save(state, file)


# --- UltraSam (Meyer et al., IJCARS 2025): mmdetection's names --------------------------------------------------------


def ultrasam_to_sam(state: Mapping[str, torch.Tensor], source: str = "the checkpoint") -> dict[str, torch.Tensor]:
    """UltraSam's keys -> SAM's. Raises InputError when the stacked tensors do not have the rows they must have."""
    out: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if key == _LABELS:
            rows = [n for _, n in _LABEL_ROWS]
            if value.shape[0] != sum(rows):
                raise InputError(f"{source}: {key} has {value.shape[0]} rows, expected {sum(rows)} as in UltraSam")
            out.update({name: part.clone() for (name, _), part in zip(_LABEL_ROWS, value.split(rows))})
        elif match := _IN_PROJ.match(key):
            weights = [f"{match[1]}.attn.{x}_proj_weight" for x in "qkv"]
            if any(name not in state for name in weights):
                raise InputError(f"{source}: {key} is there without {', '.join(weights)}")
            rows = [state[name].shape[0] for name in weights]
            if value.shape[0] != sum(rows):
                raise InputError(
                    f"{source}: {key} has {value.shape[0]} entries, expected {rows[0]} + {rows[1]} + {rows[2]}"
                )
            for x, part in zip("qkv", value.split(rows)):
                out[f"{_decoder_key(match[1])}.{x}_proj.bias"] = part.clone()
        else:
            out[_ultrasam_key(key)] = value
    return out


def _ultrasam_key(key: str) -> str:
    if key.startswith("backbone."):
        key = "image_encoder." + key.removeprefix("backbone.")
        key = key.replace("patch_embed.projection.", "patch_embed.proj.").replace(".channel_reduction.", ".neck.")
        key = key.replace(".ffn.layers.0.0.", ".mlp.lin1.").replace(".ffn.layers.1.", ".mlp.lin2.")
        key = re.sub(r"\.ln(\d)\.", r".norm\1.", key)
        return re.sub(r"^image_encoder\.layers\.", "image_encoder.blocks.", key)
    if key.startswith("decoder."):
        return _decoder_key(key)
    return re.sub(r"^bbox_head\.", "mask_decoder.", key)


def _decoder_key(key: str) -> str:
    key = "mask_decoder.transformer." + key.removeprefix("decoder.")
    key = key.replace(".mlp.layers.0.0.", ".mlp.lin1.").replace(".mlp.layers.1.", ".mlp.lin2.")
    key = key.replace(".post_norm.", ".norm_final_attn.")
    key = re.sub(r"\.attn\.([qkv])_proj_weight$", r".\1_proj.weight", key)
    return key.replace(".attn.out_proj.", ".out_proj.")


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under its own names, on the CPU, out of its wrapper; nothing is unpickled. InputError for others."""
    return _tensors(_read(path), path)


class _Inert:
    """Takes the place of any class or function that a checkpoint names besides tensors, and does nothing.

    Training frameworks put their loggers' and configs' classes beside the weights. None of that is imported or called.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


_inert_lock = threading.Lock()  # torch's list of allowed names is global


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            names = _foreign_names(path)
            if not names:
                raise error
            log.info("%s holds more than tensors; left out: %s", path, ", ".join(names))
            with _inert_lock, torch.serialization.safe_globals([(_Inert, name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint of tensors ({type(error).__name__}: {str(error)[:300]}); "
            "expected a .pth or .safetensors file that is complete"
        ) from error


def _foreign_names(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip, or a torch that lacks this: the first error stands
        return []


def _tensors(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    for name in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
            break
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: expected a state dictionary, got {type(loaded).__name__}")
    others = [str(k) for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if others:
        raise InputError(f"{path}: expected tensors only, these are none: {some(others)}")
    return {str(k): v for k, v in loaded.items()}
