"""TransUNet's weights: the public implementation's ``.pth`` files, and Google's ``R50+ViT-B_16.npz`` there and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.coarse.transunet import TransUNet
from ultrarefiner_monai.models.strict import misfits, some


def load_pth(model: nn.Module, path: str | Path) -> None:
    """Load the public implementation's ``.pth`` strictly: plain, ``module.``-prefixed or wrapped; nothing is unpickled.

    Raises InputError that names missing, unexpected and misshapen keys.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint of tensors ({type(error).__name__}: {error}); "
            "expected a .pth with a state dictionary"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: expected a state dictionary, got {type(loaded).__name__}")
    state = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    others = [key for key, value in state.items() if not torch.is_tensor(value)]
    if others:
        raise InputError(f"{path}: expected a state dictionary of tensors, these are none: {some(others)}")
    _check_fits(path, model.state_dict(), state)
    model.load_state_dict(state)


def load_npz(model: TransUNet, path: str | Path) -> None:
    """Load Google's ``R50+ViT-B_16.npz`` (all 353 arrays of it) into stem and encoder; the decoder stays as it is.

    Linear kernels come transposed, convolution kernels as HWIO, the class token's position is dropped, positions are
    resized bilinearly for another grid. Raises InputError that names missing, unexpected and misshapen arrays.
    """
    names = npz_names(model)
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: torch.from_numpy(file[key]) for key in file.files}
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a .npz of plain arrays: {error}") from error
    state = model.state_dict()
    wanted = {npz: _to_npz(npz, state[key], model) for key, npz in names.items()}
    own, theirs = wanted[_NPZ_POSITIONS], found.get(_NPZ_POSITIONS)
    of_any_grid = theirs is not None and theirs.ndim == 3 and theirs.shape[::2] == own.shape[::2]
    _check_fits(path, wanted, {**found, _NPZ_POSITIONS: own} if of_any_grid else found)
    with torch.no_grad():
        for key, npz in names.items():
            state[key].copy_(_from_npz(npz, found[npz].float(), state[key]))


def to_npz_arrays(model: TransUNet) -> dict[str, np.ndarray]:
    """The inverse of ``load_npz``: stem and encoder in Google's names and layouts; the class token's position is 0."""
    state = model.state_dict()
    return {npz: _to_npz(npz, state[key], model).numpy() for key, npz in npz_names(model).items()}


_NPZ_POSITIONS = "Transformer/posembed_input/pos_embedding"
_NPZ_LAYER = {
    "attention_norm.weight": "LayerNorm_0/scale",
    "attention_norm.bias": "LayerNorm_0/bias",
    "ffn_norm.weight": "LayerNorm_2/scale",
    "ffn_norm.bias": "LayerNorm_2/bias",
    **{
        f"ffn.fc{i + 1}.{ours}": f"MlpBlock_3/Dense_{i}/{theirs}"
        for i in (0, 1)
        for ours, theirs in (("weight", "kernel"), ("bias", "bias"))
    },
    **{
        f"attn.{name}.{ours}": f"MultiHeadDotProductAttention_1/{name}/{theirs}"
        for name in ("query", "key", "value", "out")
        for ours, theirs in (("weight", "kernel"), ("bias", "bias"))
    },
}


def npz_names(model: TransUNet) -> dict[str, str]:
    """state key -> array name, for every key outside the decoder and the head."""
    return {key: _npz_name(key) for key in model.state_dict() if key.startswith("transformer.")}


def _npz_name(key: str) -> str:
    head, _, rest = key.removeprefix("transformer.").partition(".")
    if head == "encoder":
        if rest.startswith("layer."):
            _, number, name = rest.split(".", 2)
            return f"Transformer/encoderblock_{number}/{_NPZ_LAYER[name]}"
        return f"Transformer/encoder_norm/{'scale' if rest.endswith('weight') else 'bias'}"
    if rest == "position_embeddings":
        return _NPZ_POSITIONS
    if rest.startswith("patch_embeddings."):
        return "embedding/kernel" if rest.endswith("weight") else "embedding/bias"
    parts = rest.removeprefix("hybrid_model.").split(".")
    layer, kind = parts[-2], parts[-1]
    leaf = "bias" if kind == "bias" else ("scale" if layer.startswith("gn") else "kernel")
    if parts[0] == "root":
        return f"{layer}_root/{leaf}"
    return f"{parts[1]}/{parts[2]}/{'conv_proj' if layer == 'downsample' else layer}/{leaf}"


def _to_npz(npz: str, tensor: torch.Tensor, model: TransUNet) -> torch.Tensor:
    if npz == _NPZ_POSITIONS:
        return F.pad(tensor, (0, 0, 1, 0))
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0).contiguous()
    kernel = tensor.T.contiguous() if tensor.ndim == 2 else tensor
    if "MultiHead" in npz:
        split = {("out", 2): 0, ("out", 1): None}.get((npz.split("/")[-2], tensor.ndim), tensor.ndim - 1)
        return kernel if split is None else kernel.unflatten(split, (model.heads, -1))
    return kernel[None, None, None] if "/gn" in npz or npz.startswith("gn_root") else kernel


def _from_npz(npz: str, array: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if npz == _NPZ_POSITIONS:
        return _resize_positions(array[:, 1:], like.shape[1])
    if array.ndim == 4 and like.ndim == 4:
        return array.permute(3, 2, 0, 1)
    if like.ndim == 2:
        rows, columns = like.shape
        return array.reshape(columns, rows).T
    return array.reshape(like.shape)


def _resize_positions(positions: torch.Tensor, count: int) -> torch.Tensor:
    """(1, n*n, C) -> (1, count, C), corners kept on corners as in the public implementation's zoom."""
    if positions.shape[1] == count:
        return positions
    old, new = round(positions.shape[1] ** 0.5), round(count**0.5)
    if old * old != positions.shape[1]:
        raise InputError(f"{_NPZ_POSITIONS} holds {positions.shape[1]} positions after the class token: not a square")
    grid = positions.transpose(1, 2).unflatten(2, (old, old))
    return F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)


def _check_fits(path: str | Path, own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    faults = misfits(own, state)
    if faults:
        raise InputError(f"{path} does not fit this network ({len(own)} arrays wanted). " + "; ".join(faults))
