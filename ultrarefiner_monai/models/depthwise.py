"""Depthwise convolutions whose gradients are quick in mixed precision on a CPU.

oneDNN has no quick kernel for some bfloat16 gradients of depthwise convolutions: those of 5 x 5 weights and of the input
at stride 2 take 5 to 20 times as long as in float32, which was most of a mixed-precision step of the compact preset. Here
they are computed in parts for which there is one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

SAME = "Conv2dSame"  # timm's convolution with TensorFlow's padding; by name, for timm is slow to import


class _MixedDepthwise(torch.autograd.Function):
    """x (B, C, H, W) bfloat16, weight (C, 1, k, k) float32 -> (B, C, H', W') bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x, weight.to(x.dtype), None, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        for_x = for_weight = None
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0]:
                for_x = _for_input(gradient, x, weight.to(x.dtype), ctx.stride, ctx.padding)
            if ctx.needs_input_grad[1]:
                for_weight = _for_weight(gradient, x, weight, ctx.stride, ctx.padding)
        return for_x, for_weight, None, None


def _for_input(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """The convolution's transpose as a convolution: with turned weights, over a gradient with ``stride - 1`` zeros between
    its pixels."""
    size = weight.shape[-1]
    if stride > 1:
        rows, columns = (n + 2 * padding - size + 1 for n in x.shape[-2:])
        spread = gradient.new_zeros(len(x), rows, columns, x.shape[1]).permute(0, 3, 1, 2)
        spread[..., ::stride, ::stride] = gradient
        gradient = spread
    return F.conv2d(gradient, weight.flip(2, 3), None, 1, size - 1 - padding, groups=len(weight))


def _for_weight(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """A 5 x 5 weight's gradient is put together from those of four 3 x 3 ones, over shifted inputs."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    if weight.shape[-1] != 5:
        return _direct(gradient, x.contiguous(memory_format=torch.channels_last), weight, stride, padding)
    if padding:
        x = F.pad(x, (padding,) * 4)
    rows, columns = (stride * (n - 1) + 3 for n in gradient.shape[-2:])
    out = torch.empty_like(weight)
    for i in (0, 2):
        for j in (0, 2):
            part = x[..., i : i + rows, j : j + columns].contiguous(memory_format=torch.channels_last)
            out[..., i : i + 3, j : j + 3] = _direct(gradient, part, weight[..., :3, :3], stride, 0)
    return out


def _direct(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    """oneDNN's own gradient for a weight of this size, in the precision of ``x``, handed over in the weight's."""
    sizes, only_weight = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(weight)), [False, True, False]
    low = weight.to(x.dtype).contiguous()
    return torch.ops.aten.convolution_backward(gradient, x, low, None, *sizes, only_weight)[1].to(weight.dtype)


class DepthwiseConv(nn.Conv2d):
    """Takes the place of a depthwise convolution without bias (and its weight): the same result, quicker gradients.

    same: TensorFlow's padding, as timm's ``Conv2dSame`` has it.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        super().__init__(*sizes, groups=conv.groups, bias=False, device="meta")  # meta: draws no random weights
        self.weight = conv.weight
        self.same = type(conv).__name__ == SAME

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        if self.same:
            x = _padded(x, self.kernel_size[0], self.stride[0])
        mixed = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        if mixed and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            return _MixedDepthwise.apply(x.bfloat16(), self.weight, self.stride[0], int(self.padding[0]))
        return F.conv2d(x, self.weight, None, self.stride, self.padding, groups=self.groups)


def _padded(x: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Zeros around x (B, C, H, W) for ceil(H / stride) rows of results, the odd one below and on the right."""
    down, right = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[-2:])
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))


def quicken_depthwise(network: nn.Module) -> nn.Module:
    """``network`` with its square, undilated depthwise convolutions replaced; state keys stay."""
    for name, child in network.named_children():
        if isinstance(child, nn.Conv2d) and _fits(child):
            setattr(network, name, DepthwiseConv(child))
        else:
            quicken_depthwise(child)
    return network


def _fits(conv: nn.Conv2d) -> bool:
    if type(conv) is not nn.Conv2d and type(conv).__name__ != SAME:
        return False
    (rows, columns), (down, right) = conv.kernel_size, conv.stride
    square = rows == columns and down == right and conv.dilation == (1, 1)
    padding = conv.padding[0] if isinstance(conv.padding, tuple) and len(set(conv.padding)) == 1 else rows
    plain = conv.bias is None and conv.padding_mode == "zeros" and int(padding) < rows
    return square and plain and conv.groups == conv.in_channels == conv.out_channels > 1
