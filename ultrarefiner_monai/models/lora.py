"""LoRA in a frozen image encoder (Hu et al., Low-rank adaptation of large language models, ICLR 2022).

W x becomes W x + (alpha / rank) B A x. B starts at zero, so an untrained adapter changes nothing; merged, B A is added to
W, and the encoder is a plain one again. Which layers a target means:

=======  ==============================  =============================================  ==============================
target   SAM's ViT encoders              SAM 3's vision tower                           the compact preset's CNN
=======  ==============================  =============================================  ==============================
qkv      ``attn.qkv``                    ``attn.qkv``; ``attention.{q,k,v}_proj``       (has no attention)
proj     ``attn.proj``                   ``attn.proj``; ``attention.o_proj``            the neck's 1 x 1 convolutions
mlp      ``mlp.lin1``, ``mlp.lin2``      ``mlp.fc1``, ``mlp.fc2``                       the stem's 1 x 1 convolutions
=======  ==============================  =============================================  ==============================

The 1 x 1 convolutions of a mobile CNN mix channels at each place, as an MLP does with tokens.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ultrarefiner_monai.config import LoraConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.strict import misfits

# The end of a layer's name, for each target.
_LAYERS = {
    "qkv": r"attn\.qkv|attention\.[qkv]_proj",
    "proj": r"attn\.proj|attention\.o_proj|^(fine|middle|join)|^mixers\.\d+\.out",
    "mlp": r"mlp\.(lin1|lin2|fc1|fc2)|\.conv_pwl?",
}
_OWN = ("lora_a", "lora_b")


class _Adapted(nn.Module):
    """What both kinds of layers share. ``lora_a``, ``lora_b``: the factors; ``weight``, ``bias``: those of the layer before."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    lora_a: nn.Parameter
    lora_b: nn.Parameter

    def _adapt(self, base: nn.Module, shape_a: tuple[int, ...], shape_b: tuple[int, ...], config: LoraConfig) -> None:
        self.weight, self.bias = base.weight, base.bias  # type: ignore[assignment]
        self.scale, self.dropout = config.scale, config.dropout
        self.lora_a = nn.Parameter(self.weight.new_empty(shape_a))
        self.lora_b = nn.Parameter(self.weight.new_zeros(shape_b))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as linear layers start

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def plain(self, merged: bool) -> nn.Module:
        """The layer that it was, with its factors merged into the weight, or without them."""
        raise NotImplementedError


class LoraLinear(_Adapted, nn.Linear):
    """A linear layer with an adapter: (..., in) -> (..., out)."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        nn.Linear.__init__(self, base.in_features, base.out_features, base.bias is not None, device="meta")
        self._adapt(base, (config.rank, base.in_features), (base.out_features, config.rank), config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(
            F.linear(self._dropped(x), self.lora_a), self.lora_b
        )

    def plain(self, merged: bool) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        delta = self.scale * self.lora_b.detach() @ self.lora_a.detach()
        return _filled(layer, self, delta if merged else None)


class LoraConv2d(_Adapted, nn.Conv2d):
    """A convolution with an adapter: A has its window, B is 1 x 1."""

    def __init__(self, base: nn.Conv2d, config: LoraConfig) -> None:
        nn.Conv2d.__init__(self, **_sizes(base))
        window = (config.rank, base.in_channels, *base.kernel_size)
        self._adapt(base, window, (base.out_channels, config.rank, 1, 1), config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.conv2d(self._dropped(x), self.lora_a, None, self.stride, self.padding, self.dilation)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation) + self.scale * F.conv2d(
            low, self.lora_b
        )

    def plain(self, merged: bool) -> nn.Conv2d:
        delta = self.scale * torch.einsum("or,rikl->oikl", self.lora_b.detach()[:, :, 0, 0], self.lora_a.detach())
        return _filled(nn.Conv2d(**_sizes(self)), self, delta if merged else None)


def _sizes(layer: nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None, "device": "meta"}


def _filled(layer: Any, adapted: _Adapted, delta: torch.Tensor | None) -> Any:
    layer.weight, layer.bias = adapted.weight, adapted.bias
    if delta is not None:
        layer.weight = nn.Parameter(adapted.weight.detach() + delta, requires_grad=adapted.weight.requires_grad)
    return layer.train(adapted.training)


# --- an encoder -------------------------------------------------------------------------------------------------------


def inject(encoder: nn.Module, config: LoraConfig) -> None:
    """Freeze ``encoder`` and give each of its layers that ``config.targets`` mean an adapter, in place.

    Raises InputError where it has no such layer, or has adapters already.
    """
    if any(True for _ in lora_parameters(encoder)):
        raise InputError("this image encoder has LoRA adapters already: merge them first")
    pattern = re.compile("|".join(f"(?:{_LAYERS[target]})$" for target in config.targets))
    encoder.requires_grad_(False)
    found = 0
    for name, layer in list(encoder.named_modules()):
        if not pattern.search(name):
            continue
        adapted: nn.Module
        if type(layer) is nn.Linear:
            adapted = LoraLinear(layer, config)
        elif type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
            adapted = LoraConv2d(layer, config)
        else:
            continue
        _replace(encoder, name, adapted.train(layer.training))
        found += 1
    if not found:
        raise InputError(
            f"lora.targets: this image encoder has no layer for {', '.join(config.targets)} (the compact preset's CNN has no "
            "attention: proj and mlp are its 1 x 1 convolutions)"
        )


def lora_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The factors A and B, by their names in ``module``."""
    return ((name, p) for name, p in module.named_parameters() if name.rpartition(".")[2] in _OWN)


def adapter_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter alone, as tensors on the CPU."""
    return {name: p.detach().cpu().contiguous() for name, p in lora_parameters(encoder)}


def load_adapter(encoder: nn.Module, state: Mapping[str, torch.Tensor], what: str = "the adapter") -> None:
    """Put ``state`` into the adapters of ``encoder``. Raises InputError where it does not fit: another rank, other targets,
    another encoder."""
    own = dict(lora_parameters(encoder))
    faults = misfits(own, state)
    if faults:
        raise InputError(f"{what} does not fit this image encoder; " + "; ".join(faults))
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def merge(encoder: nn.Module) -> None:
    """Add each adapter to its layer's weight, in place; the layers are plain ones again. Exact to rounding."""
    _make_plain(encoder, merged=True)


def remove(encoder: nn.Module) -> None:
    """Take the adapters away, in place: the encoder as it was before ``inject``."""
    _make_plain(encoder, merged=False)


def merged_copy(encoder: nn.Module) -> nn.Module:
    """A copy of ``encoder`` with its adapters merged; itself where it has none."""
    if not any(True for _ in lora_parameters(encoder)):
        return encoder
    own = copy.deepcopy(encoder)
    merge(own)
    return own


def _make_plain(encoder: nn.Module, merged: bool) -> None:
    for name, layer in list(encoder.named_modules()):
        if isinstance(layer, _Adapted):
            _replace(encoder, name, layer.plain(merged))


def _replace(root: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent) if parent else root, last, layer)
