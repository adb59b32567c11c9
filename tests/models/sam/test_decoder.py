from __future__ import annotations

import copy

import pytest
import torch
from segment_anything.modeling import Sam
from torch import nn

from ultrarefiner_monai.config import SamConfig
from ultrarefiner_monai.core.types import Prompts
from ultrarefiner_monai.models.sam.decoder import is_plain
from ultrarefiner_monai.models.sam.network import build_sam, decode

TINY = SamConfig(
    arch="compact", image_size=64, embed_dim=32, depth=1, num_heads=2, window_size=3, global_attn_indexes=(0,)
)
EMBEDDING = torch.randn(2, 256, 4, 4, generator=torch.Generator().manual_seed(1))
PROMPTS = Prompts(
    torch.tensor([[[10.0, 20.0], [30.5, 40.0]], [[5.0, 6.0], [0.0, 0.0]]]),
    torch.tensor([[1, 0], [1, -1]]),
    torch.tensor([[3.0, 4.0, 40.0, 50.0], [0.0, 0.0, 63.0, 63.0]]),
    torch.linspace(-5, 5, 512).reshape(2, 1, 16, 16),
)


@pytest.fixture()
def sam() -> Sam:
    """No parameter is left at a value (a bias of 0, a norm of 1) at which a mistake would not show."""
    torch.manual_seed(0)
    sam = build_sam(TINY)
    with torch.no_grad():
        for parameter in (*sam.mask_decoder.parameters(), *sam.prompt_encoder.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return sam


def published(sam: Sam, image_embedding: torch.Tensor = EMBEDDING) -> tuple[torch.Tensor, torch.Tensor]:
    """segment_anything's own modules, one image at a time."""
    masks, scores = [], []
    for i, embedding in enumerate(image_embedding):
        points = (PROMPTS.points_xy[i : i + 1], PROMPTS.point_labels[i : i + 1])
        sparse, dense = sam.prompt_encoder(points, PROMPTS.boxes_xyxy[i : i + 1], PROMPTS.mask_logits[i : i + 1])
        found = sam.mask_decoder(embedding[None], sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
        masks.append(found[0])
        scores.append(found[1])
    return torch.cat(masks), torch.cat(scores)


def both(sam: Sam) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """(segment_anything's own way; ours without a graph)."""
    with torch.inference_mode():
        return published(sam), decode(sam, EMBEDDING, PROMPTS)


def test_it_is_the_same_function(sam: Sam) -> None:
    theirs, ours = both(sam)
    assert theirs[0].std() > 0.1 and theirs[1].std() > 0.01  # something to tell apart
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)
    with torch.enable_grad():
        learnt = decode(sam, EMBEDDING, PROMPTS)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(learnt, ours, strict=True))


def test_its_gradients_are_the_same(sam: Sam) -> None:
    found = []
    for way in (lambda x: decode(sam, x, PROMPTS), lambda x: published(sam, x)):
        sam.zero_grad()
        embedding = EMBEDDING.clone().requires_grad_(True)
        masks, scores = way(embedding)
        (masks * torch.linspace(-1, 1, masks.numel()).view_as(masks)).sum().add(10 * scores.sum()).backward()
        assert embedding.grad is not None
        learnt = {k: p.grad.clone() for k, p in sam.named_parameters() if p.grad is not None and bool(p.grad.any())}
        found.append({"embedding": embedding.grad, **learnt})
    ours, theirs = found
    # A bias that adds the same to all logits of a softmax: its gradient is noise around 0.
    silent = {k for k in theirs if k.endswith("k_proj.bias")}
    assert ours.keys() - silent == theirs.keys() - silent and len(ours) > 50
    for key in ours.keys() - silent:
        assert (ours[key] - theirs[key]).norm() <= 1e-3 * theirs[key].norm() + 1e-5, key


def test_places_follow_the_weights(sam: Sam) -> None:
    before = both(sam)[1][0]
    with torch.no_grad():
        sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(2)
    theirs, lean = both(sam)
    assert (lean[0] - before).abs().max() > 1e-2
    assert torch.allclose(lean[0], theirs[0], atol=1e-4)
    assert torch.equal(both(copy.deepcopy(sam))[1][0], lean[0])


def test_an_adapter_in_the_decoder_is_not_passed_over(sam: Sam) -> None:
    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    attention = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    plain = attention.v_proj
    attention.v_proj = Adapted(plain.in_features, plain.out_features)
    attention.v_proj.load_state_dict(plain.state_dict())
    assert not is_plain(sam.mask_decoder)
    theirs, answered = both(sam)
    assert torch.allclose(answered[0], theirs[0], atol=1e-4)


def test_mixed_precision_rounds_products_only(sam: Sam) -> None:
    """Places stay exact, whoever asks for them first, and so does the stream of the pixels."""
    exact = both(sam)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, theirs = decode(copy.deepcopy(sam), EMBEDDING, PROMPTS), published(sam)
    for a, b, other in zip(mixed, exact, theirs, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < max(0.05 * b.norm(), 1.2 * (other.float() - b).norm())
    fresh = build_sam(TINY)
    fresh.load_state_dict(sam.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decode(fresh, EMBEDDING, PROMPTS)
    assert torch.allclose(decode(fresh, EMBEDDING, PROMPTS)[0], exact[0], atol=1e-4, rtol=1e-4)
