"""SAM's mask decoder: the same function of the same parameters, in half the time on a CPU, its gradients too.

Few tokens (5 and the prompts) attend to many pixels (E x E) and back. The original projects every pixel for it, head
by head; here the projections of the pixels are multiplied into the few tokens first, so that each attention is two
products with the pixels as they lie. The two transposed convolutions do not overlap: they are products as well, and
the pixels are put in order at the end, in the three masks, not in the 64 and 32 channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import nn

_PLAIN = {MaskDecoder, TwoWayTransformer, TwoWayAttentionBlock, Attention, MLPBlock, MLP, nn.Sequential, nn.ModuleList}
_PLAIN |= {nn.Linear, nn.LayerNorm, nn.ConvTranspose2d, nn.Embedding, nn.GELU, nn.ReLU, LayerNorm2d}


def is_plain(decoder: MaskDecoder) -> bool:
    """Whether every module is what SAM has there: an adapter in its place has more than the weights that are read here."""
    return all(type(module) in _PLAIN for module in decoder.modules())


def predict_masks(
    decoder: MaskDecoder, pixels: torch.Tensor, image_pe: torch.Tensor, sparse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``decoder`` gives with multimask_output.

    pixels: (B, 256, E, E), image embedding and dense prompt added up. image_pe: (1, 256, E, E). sparse: (B, N, 256).
    Returns mask_logits (B, 3, 4E, 4E) and iou_pred (B, 3).
    """
    batch, side = len(sparse), pixels.shape[-1]
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(batch, -1, -1), sparse], dim=1)
    queries, keys = _two_way(
        decoder.transformer,
        pixels.expand(batch, -1, -1, -1).flatten(2).transpose(1, 2).contiguous(),
        image_pe.flatten(2).transpose(1, 2).contiguous(),
        tokens,
    )
    # Of the four masks the first is for a single answer, which is never asked for.
    networks = list(enumerate(decoder.output_hypernetworks_mlps))[1:]
    mixing = torch.stack([network(queries[:, 1 + i]) for i, network in networks], dim=1)
    masks = mixing @ _upscaled(decoder.output_upscaling, keys).transpose(1, 2)
    # (row, column, and twice: lower or upper half, right or left half) -> rows, columns
    masks = masks.view(batch, -1, side, side, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
    return masks.reshape(batch, -1, 4 * side, 4 * side), decoder.iou_prediction_head(queries[:, 0])[:, 1:]


def _two_way(
    transformer: nn.Module, keys: torch.Tensor, key_pe: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """keys (B, P, 256), key_pe (1, P, 256), tokens (B, T, 256) -> tokens and keys after all layers."""
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            placed_tokens = queries + tokens
            queries = queries + layer.self_attn(q=placed_tokens, k=placed_tokens, v=queries)
        queries = layer.norm1(queries)
        placed = keys + key_pe
        queries = layer.norm2(queries + _from_pixels(layer.cross_attn_token_to_image, queries + tokens, placed, keys))
        queries = layer.norm3(queries + layer.mlp(queries))
        keys = layer.norm4(_to_pixels(layer.cross_attn_image_to_token, keys, placed, queries + tokens, queries))
    attended = _from_pixels(transformer.final_attn_token_to_image, queries + tokens, keys + key_pe, keys)
    return transformer.norm_final_attn(queries + attended), keys


def _from_pixels(attention: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``attention(q, k, v)`` for few q (B, T, 256) and many k, v (B, P, 256)."""
    heads, (batch, count, _) = attention.num_heads, q.shape
    k_weight, v_weight = (x.weight.unflatten(0, (heads, -1)) for x in (attention.k_proj, attention.v_proj))
    queries = attention.q_proj(q).unflatten(2, (heads, -1)) / math.sqrt(k_weight.shape[1])
    # The bias of the keys adds the same to all of a token's logits, which softmax does not see.
    logits = torch.einsum("bthd,hdc->bhtc", queries, k_weight).flatten(1, 2) @ k.transpose(1, 2)
    pooled = (torch.softmax(logits, dim=-1) @ v).view(batch, heads, count, -1)
    return attention.out_proj(torch.einsum("bhtc,hdc->bthd", pooled, v_weight).flatten(2) + attention.v_proj.bias)


def _to_pixels(
    attention: Attention, pixels: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """``pixels + attention(q, k, v)`` for many pixels, q (B, P, 256) and few k, v (B, T, 256)."""
    heads, (batch, count, _) = attention.num_heads, k.shape
    q_weight = attention.q_proj.weight.unflatten(0, (heads, -1))
    q_bias = attention.q_proj.bias.view(heads, -1)
    keys = attention.k_proj(k).unflatten(2, (heads, -1)) / math.sqrt(q_weight.shape[1])
    values = attention.v_proj(v).unflatten(2, (heads, -1))
    weight = torch.einsum("bthd,hdc->bhtc", keys, q_weight).flatten(1, 2)
    bias = torch.einsum("bthd,hd->bht", keys, q_bias).flatten(1, 2)
    # Tokens before pixels: softmax over the few tokens then runs along the pixels, sixteen at a time.
    logits = torch.baddbmm(bias[..., None], weight, q.transpose(1, 2)).view(batch, heads, count, -1)
    shares = torch.softmax(logits, dim=2).flatten(1, 2)
    # Each head's shares add up to 1, so the output's bias can go in with the values, a part per head.
    out_weight = attention.out_proj.weight.unflatten(1, (heads, -1))
    values = torch.einsum("bthd,chd->bhtc", values, out_weight).flatten(1, 2) + attention.out_proj.bias / heads
    if torch.is_autocast_enabled(pixels.device.type):  # which would round the pixels to the products' precision
        return pixels + shares.transpose(1, 2) @ values
    return torch.baddbmm(pixels, shares.transpose(1, 2), values)


def _upscaled(upscaling: nn.Sequential, keys: torch.Tensor) -> torch.Tensor:
    """keys (B, E E, 256) -> (B, 16 E E, 32), each pixel's 2 x 2 x 2 x 2 parts in a row."""
    first, norm, _, second, _ = upscaling
    x = _spread(first, keys)
    gelu = F.gelu if torch.is_grad_enabled() else torch.ops.aten.gelu_
    return gelu(_spread(second, gelu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))))


def _spread(convolution: nn.ConvTranspose2d, x: torch.Tensor) -> torch.Tensor:
    """A transposed convolution of kernel and stride 2: x (B, P, C) -> (B, 4 P, C')."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(x, weight, convolution.bias.repeat(4)).view(len(x), -1, convolution.out_channels)
