"""SAM (Kirillov et al. 2023) as a refiner: built from a config, batched, differentiable, leaner.

The modules are ``segment_anything``'s own and keep its state keys, so what is saved here loads there and back.
"""

from __future__ import annotations

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from ultrarefiner_monai.config import SamConfig
from ultrarefiner_monai.core.types import Prompts
from ultrarefiner_monai.models.sam.attention import InPlaceGelu, SdpaAttention
from ultrarefiner_monai.models.sam.decoder import is_plain, predict_masks
from ultrarefiner_monai.models.sam.state import load_into_sam, load_sam_state, save_sam

__all__ = [
    "PIXEL_MEAN",
    "PIXEL_STD",
    "build_sam",
    "decode",
    "encode",
    "load_into_sam",
    "load_sam_state",
    "normalise",
    "save_sam",
]

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
_PATCH = 16  # of SAM's own encoders
_CHANNELS = 256
# arch -> width, depth, heads, blocks with global attention
_VIT = {
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}


def build_sam(config: SamConfig) -> Sam:
    """A SAM with random weights, in eval mode, fp32. ``compact`` takes its encoder's sizes from the config."""
    side = config.image_size // config.patch
    if config.arch == "sam3":
        from ultrarefiner_monai.models.sam.sam3 import build_sam3_encoder

        encoder: nn.Module = build_sam3_encoder(config)
    elif config.arch == "compact" and config.encoder != "vit":
        from ultrarefiner_monai.models.sam.compact import LiteSamEncoder

        encoder = LiteSamEncoder(config.encoder, config.image_size)
    else:
        encoder = _vit(config)
    prompt_encoder = PromptEncoder(
        embed_dim=_CHANNELS,
        image_embedding_size=(side, side),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=16,
    )
    mask_decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=_CHANNELS, mlp_dim=2048, num_heads=8),
        transformer_dim=_CHANNELS,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
    mean, std = pixel_statistics(encoder)
    return Sam(encoder, prompt_encoder, mask_decoder, list(mean), list(std)).eval()


def _vit(config: SamConfig) -> nn.Module:
    """SAM's own image encoder, of a named or (``compact``) given size."""
    if config.arch == "compact":
        width, depth, heads, global_blocks = (
            config.embed_dim,
            config.depth,
            config.num_heads,
            config.global_attn_indexes,
        )
        window = config.window_size
    else:
        width, depth, heads, global_blocks = _VIT[config.arch]
        window = 14
    if width % heads:
        raise ValueError(f"sam.embed_dim ({width}) must be divisible by sam.num_heads ({heads})")
    encoder = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=_PATCH,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=4,
        out_chans=_CHANNELS,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=tuple(global_blocks),
    )
    for block in encoder.blocks:
        block.attn, block.mlp.act = SdpaAttention(block.attn), InPlaceGelu()
    return encoder


def pixel_statistics(encoder: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(pixel_mean, pixel_std) of the image that an encoder reads, in units of 255: its own, or SAM's."""
    return getattr(encoder, "pixel_mean", PIXEL_MEAN), getattr(encoder, "pixel_std", PIXEL_STD)


def normalise(image: torch.Tensor, encoder: nn.Module) -> torch.Tensor:
    """image (B, 1, S, S) in [0, 1] -> (B, 3, S, S) for ``encoder``: three equal channels, (255 x - pixel_mean) / pixel_std."""
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in pixel_statistics(encoder))
    return (255 * image - mean) / std


def encode(sam: Sam, image: torch.Tensor) -> torch.Tensor:
    """image (B, 1, S, S) in [0, 1], sam frame -> image_embedding (B, 256, E, E), E = S / 16 (SAM 3: S / 14).

    No graph is kept when nothing in it can receive a gradient (a frozen encoder), whatever mode the network is in.
    """
    side = sam.image_encoder.img_size
    if image.ndim != 4 or tuple(image.shape[1:]) != (1, side, side):
        raise ValueError(f"this SAM's encoder expects image (B, 1, {side}, {side}), got {tuple(image.shape)}")
    learns = image.requires_grad or any(p.requires_grad for p in sam.image_encoder.parameters())
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        return sam.image_encoder(normalise(image, sam.image_encoder))


def at_least_single(x: torch.Tensor) -> torch.Tensor:
    """``x`` in float32, or in float64 where it is that already: what mixed precision made is widened, nothing is rounded."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def decode(
    sam: Sam, image_embedding: torch.Tensor, prompts: Prompts, tokens: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """image_embedding (B, 256, E, E) and prompts in the sam frame -> mask_logits (B, 3, 4E, 4E), iou_pred (B, 3), in
    single precision also where the networks compute in a lower one.

    Batched and differentiable in embedding, points, boxes and mask. One embedding may serve several prompts (B = 1
    against N). An item of the batch lacks a prompt where its labels are -1, its box has x1 < x0, or its mask_logits are
    0 everywhere (which says "probability .5 all over", that is nothing). tokens: (B, T, 256) in place of what the prompt
    encoder makes of points and boxes.
    """
    # Places are phases of up to some tens of radians: a lower precision would move every click and every pixel.
    with torch.autocast(image_embedding.device.type, enabled=False):
        sparse = _embed_sparse(sam, prompts, len(image_embedding)) if tokens is None else tokens
    dense = _embed_dense(sam, prompts.mask_logits, image_embedding)
    sparse = sparse.expand(max(len(sparse), len(dense)), -1, -1)
    if is_plain(sam.mask_decoder):
        masks, iou_pred = predict_masks(sam.mask_decoder, image_embedding + dense, _dense_pe(sam), sparse)
        return at_least_single(masks), at_least_single(iou_pred)
    # With adapters in it, segment_anything's own way. The decoder repeats its image embedding once per prompt, for many
    # prompts on one image. It only ever adds it to the dense prompt, so the batch of embeddings goes in through there, and
    # a single zero in the embedding's place.
    masks, iou_pred = sam.mask_decoder(
        image_embeddings=torch.zeros_like(image_embedding[:1]),
        image_pe=_dense_pe(sam),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=image_embedding + dense,
        multimask_output=True,
    )
    return at_least_single(masks), at_least_single(iou_pred)


def _dense_pe(sam: Sam) -> torch.Tensor:
    """The places of the embedding's pixels (1, 256, E, E), pixel after pixel as the attention reads them.

    Kept while the matrix that they are made of stays the same; it is a buffer, which nothing learns.
    """
    layer = sam.prompt_encoder.pe_layer
    matrix = layer.positional_encoding_gaussian_matrix
    state = (matrix.data_ptr(), None if matrix.is_inference() else matrix._version, matrix.device)
    kept = getattr(layer, "_kept_dense_pe", None)
    if kept is None or kept[0] != state:
        # Whoever asks first, without a graph or in mixed precision: what is kept has to serve all.
        with torch.inference_mode(False), torch.autocast(matrix.device.type, enabled=False):
            places = sam.prompt_encoder.get_dense_pe().contiguous(memory_format=torch.channels_last)
        kept = layer._kept_dense_pe = (state, places)
    return kept[1]


def box_is_given(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """(B, 4) -> (B,) bool. An inverted box stands for "no box" within a batch."""
    return (boxes_xyxy[:, 2:] >= boxes_xyxy[:, :2]).all(dim=1)


def mask_is_given(mask_logits: torch.Tensor) -> torch.Tensor:
    """(B, 1, M, M) -> (B,) bool. Logits of 0 everywhere stand for "no mask" within a batch."""
    return (mask_logits.detach() != 0).flatten(1).any(dim=1)


def _embed_sparse(sam: Sam, prompts: Prompts, batch: int) -> torch.Tensor:
    """Points and box corners -> (B, N, 256), token by token what SAM's prompt encoder gives, but per item of the batch.

    SAM knows no "this item has no box": here a box is its two corners with labels 2 and 3, or -1 where it is absent.
    """
    encoder = sam.prompt_encoder
    points, labels, boxes = prompts.points_xy, prompts.point_labels, prompts.boxes_xyxy
    if labels is not None and not bool((labels != -1).any()):
        points = labels = None
    if boxes is not None and not bool(box_is_given(boxes).any()):
        boxes = None
    xy: list[torch.Tensor] = []
    kinds: list[torch.Tensor] = []
    if points is not None and labels is not None:
        xy, kinds = [points], [labels.long()]
    if boxes is not None:
        xy.append(boxes.reshape(-1, 2, 2))
        corners = torch.tensor([2, 3], device=boxes.device)
        kinds.append(torch.where(box_is_given(boxes)[:, None], corners, -1))
    elif points is not None:
        # SAM was trained with a padding point wherever points came without a box.
        xy.append(torch.zeros_like(points[:, :1]))
        kinds.append(torch.full_like(kinds[0][:, :1], -1))
    table = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])
    if not xy:
        return table.new_zeros(batch, 0, table.shape[1])
    kind = torch.cat(kinds, dim=1)
    place = encoder.pe_layer.forward_with_coords(torch.cat(xy, dim=1) + 0.5, encoder.input_image_size)
    return place.masked_fill((kind == -1)[..., None], 0.0) + table[kind + 1]


def _embed_dense(sam: Sam, mask_logits: torch.Tensor | None, image_embedding: torch.Tensor) -> torch.Tensor:
    """mask_logits (B, 1, 4E, 4E) -> (B, 256, E, E); the learned "no mask" where there is none."""
    encoder = sam.prompt_encoder
    none = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    if mask_logits is None:
        return none.expand(len(image_embedding), -1, *image_embedding.shape[-2:])
    want = tuple(encoder.mask_input_size)
    if tuple(mask_logits.shape[1:]) != (1, *want):
        raise ValueError(f"this SAM expects mask_logits (B, 1, {want[0]}, {want[1]}), got {tuple(mask_logits.shape)}")
    given, embedded = mask_is_given(mask_logits), encoder.mask_downscaling(mask_logits)
    if not embedded.requires_grad and bool(given.all()):
        return embedded
    return torch.where(given[:, None, None, None], embedded, none)
