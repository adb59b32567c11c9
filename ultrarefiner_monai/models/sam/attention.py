"""SAM's image encoder made leaner: attention that never holds its whole bias, and a GELU in its input's memory."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

# The attention bias is made for so many entries at a time, on the CPU (16 MiB in fp32) and elsewhere. All of a global
# block's at once would be 800 MiB at 1024 px, and slower: fresh memory of that size costs more than the arithmetic on
# it, so the parts also share one buffer, which stays in the processor's cache.
_BIAS_ENTRIES = 2**22
_BIAS_ENTRIES_GPU = 2**26


class InPlaceGelu(nn.Module):
    """GELU; into its input's own memory where no gradient needs that (a quarter of the time on a CPU)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: any shape, a tensor that nobody else reads -> the same shape."""
        return F.gelu(x) if torch.is_grad_enabled() and x.requires_grad else torch.ops.aten.gelu_(x)


class SdpaAttention(nn.Module):
    """The encoder's attention through scaled_dot_product_attention; same parameters, keys and result as the original.

    The decomposed relative positions (MViTv2, arXiv:2112.01526) become ``attn_mask``. They are computed from the
    unscaled queries, while SDPA scales q itself: scaling here as well would be wrong twice.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.num_heads: int = original.num_heads
        self.rel_pos_h: nn.Parameter = original.rel_pos_h
        self.rel_pos_w: nn.Parameter = original.rel_pos_w
        self.qkv = original.qkv
        self.proj = original.proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, H, W, C) tokens of one image or of one window -> the same shape."""
        b, h, w, c = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        grid = q.reshape(b, self.num_heads, h, w, -1)
        # einsum leaves them in the order that suited it; read in any other than this, the sums below take twice as long.
        bias_h = torch.einsum("bnhwc,hkc->bnhwk", grid, _relative(self.rel_pos_h, h)).to(q.dtype).contiguous()
        bias_w = torch.einsum("bnhwc,wkc->bnhwk", grid, _relative(self.rel_pos_w, w)).to(q.dtype).contiguous()
        entries = _BIAS_ENTRIES if x.device.type == "cpu" else _BIAS_ENTRIES_GPU
        attend = _attend_with_graph if q.requires_grad or bias_h.requires_grad else _attend
        out = attend(q, k, v, bias_h[..., :, None], bias_w[..., None, :], entries)
        return self.proj(out.transpose(1, 2).reshape(b, h, w, c))


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias_h: torch.Tensor, bias_w: torch.Tensor, entries: int
) -> torch.Tensor:
    """q, k, v (B, N, H W, D), bias_h (B, N, H, W, H, 1), bias_w (B, N, H, W, 1, W) -> (B, N, H W, D)."""
    b, heads, h, w = bias_h.shape[:4]
    per_row = w * h * w
    # As much at a time as the limit allows: several images (windows), or several heads of one, or rows of one head.
    images = min(b, max(1, entries // (heads * h * per_row)))
    some = min(heads, max(1, entries // (h * per_row)))
    rows = min(h, max(1, entries // per_row))
    out = q.new_empty(b, h * w, heads, q.shape[-1]).transpose(1, 2)  # the order in which the caller joins the heads
    buffer = q.new_empty(images * some * rows * per_row)
    for i, n, y in product(range(0, b, images), range(0, heads, some), range(0, h, rows)):
        group = (slice(i, i + images), slice(n, n + some))
        part = (*group, slice(y, y + rows))
        queries = (*group, slice(y * w, (y + rows) * w))
        shape = torch.broadcast_shapes(bias_h[part].shape, bias_w[part].shape)
        bias = buffer[: math.prod(shape)].view(shape)
        torch.add(bias_h[part], bias_w[part], out=bias)
        mask = bias.flatten(4).flatten(2, 3)
        out[queries] = F.scaled_dot_product_attention(q[queries], k[group], v[group], attn_mask=mask)
    return out


def _attend_with_graph(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias_h: torch.Tensor, bias_w: torch.Tensor, entries: int
) -> torch.Tensor:
    """The same for autograd, which keeps every part's bias: nothing is shared between them."""
    b, heads, h, w = bias_h.shape[:4]
    rows = max(1, min(h, entries // (b * heads * w * h * w)))
    parts = []
    for y in range(0, h, rows):
        mask = (bias_h[:, :, y : y + rows] + bias_w[:, :, y : y + rows]).flatten(4).flatten(2, 3)
        parts.append(F.scaled_dot_product_attention(q[:, :, y * w : (y + rows) * w], k, v, attn_mask=mask))
    return torch.cat(parts, dim=2)


def _relative(table: torch.Tensor, size: int) -> torch.Tensor:
    """(2 n - 1, C) -> (size, size, C): entry (i, j) is the row for the distance i - j; another n is interpolated."""
    if table.shape[0] != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    index = torch.arange(size, device=table.device)
    return table[index[:, None] - index[None, :] + size - 1]
