"""What a click does, in serving and in training: the coarse mask is mended, then the refiner runs twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ultrarefiner_monai.config import PostConfig, PromptConfig, RefinerConfig, SamConfig, SystemConfig
from ultrarefiner_monai.core.types import Clicks, Prompts
from ultrarefiner_monai.interaction.clicks import DOUBTED, SURE, UNLIKELY, check_clicks, mend
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.pipeline.refine import mended, refine

SIDE, SIZE = 32, 128
POST = PostConfig(min_area=0.0)
CONFIG = SystemConfig(post=POST)


def disc(x: float, y: float, radius: float, side: int = SIDE) -> np.ndarray:
    rows, columns = np.ogrid[:side, :side]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.float32)


def test_a_denied_component_is_doubted_a_begun_one_sure_and_the_rest_unlikely() -> None:
    prob = 0.9 * disc(8, 8, 4) + 0.3 * disc(24, 24, 3)
    only_denied = mend(prob, check_clicks(Clicks(background_xy=((8, 8),)), (SIDE, SIDE)), POST)
    assert np.allclose(only_denied[disc(8, 8, 4) > 0], DOUBTED) and only_denied.max() < 0.5
    both = mend(prob, check_clicks(Clicks(foreground_xy=((24, 24),), background_xy=((8, 8),)), (SIDE, SIDE)), POST)
    assert both[24, 24] >= SURE and np.isclose(both[8, 8], DOUBTED) and both[0, 0] <= UNLIKELY


def test_mending_happens_at_a_quarter_of_the_frame_for_items_that_have_clicks() -> None:
    prob = 0.9 * disc(8, 8, 4) + 0.3 * disc(24, 24, 3)
    places = torch.tensor([[8.0, 8.0], [24.0, 24.0]]) * 4 + 1.5
    prompts = Prompts(places.expand(2, 2, 2), torch.tensor([[0, 1], [-1, -1]]))
    coarse = torch.from_numpy(np.stack([prob, prob]))[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    out = mended(coarse, prompts, CONFIG)
    served = mend(prob, check_clicks(Clicks(foreground_xy=((24, 24),), background_xy=((8, 8),)), (SIDE, SIDE)), POST)
    # But for the blur of two resizings at outlines:
    assert np.abs(out[0, 0, 2::4, 2::4].numpy() - served).mean() < 0.02
    assert (out[0, 0, 32:36, 32:36] < 0.5).all() and (out[0, 0, 96:100, 96:100] > 0.5).all()
    assert torch.equal(out[1], coarse[1]) and coarse[0, 0, 33, 33] > 0.8
    without = replace(CONFIG, prompts=PromptConfig(mend=False))
    assert mended(coarse, prompts, without) is coarse


def test_careless_prompts_never_stop_a_training() -> None:
    """A negative click on a positive one's pixel, one at the border, a box beyond it and padding."""
    points = torch.tensor([[[20.0, 20.0], [20.2, 20.1], [127.9, -0.4], [0.0, 0.0]]])
    prompts = Prompts(points, torch.tensor([[1, 0, 1, -1]]), torch.tensor([[-400.0, -400.0, -300.0, -300.0]]))
    out = mended(torch.full((1, 1, SIZE, SIZE), 0.1), prompts, CONFIG)
    assert out.shape == (1, 1, SIZE, SIZE) and torch.isfinite(out).all()


# --- refine -----------------------------------------------------------------------------------------------------------

SAM = SamConfig(
    arch="compact", image_size=64, embed_dim=32, depth=1, num_heads=2, window_size=3, global_attn_indexes=(0,)
)
CLICKED = Prompts(torch.tensor([[[18.0, 20.0], [50.0, 50.0]]]), torch.tensor([[1, 0]]))


def refiner_of(config: SystemConfig) -> Refiner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Refiner(build_sam(SAM), config).eval()


def shown() -> tuple[torch.Tensor, torch.Tensor]:
    """An image and a coarse result with a false alarm at the second click, (1, 1, 64, 64)."""
    coarse = torch.zeros(1, 1, 64, 64)
    coarse[..., 40:60, 40:60] = 0.9
    return torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(3)), coarse


@pytest.mark.parametrize("mend_first", [True, False])
def test_refine_is_two_passes_from_the_mended_start_with_discs_on_the_clicks(mend_first: bool) -> None:
    config = replace(SystemConfig(sam=SAM), prompts=PromptConfig(mend=mend_first, click_disc=0.1))
    refiner, (image, coarse) = refiner_of(config), shown()
    with torch.no_grad():
        embedding = refiner.embed(image)
        out = refine(refiner, config, embedding, coarse, CLICKED)
        start = mended(coarse, CLICKED, config)
        first = refiner(embedding, start, CLICKED)
        second = refiner(embedding, start, replace(CLICKED, mask_logits=first.refined_logits))
        once = refine(refiner, config, embedding, coarse, CLICKED, passes=1)
    assert torch.equal(start, coarse) != mend_first
    assert torch.equal(out.refined_prob, second.refined_prob) and torch.equal(out.iou_pred, second.iou_pred)
    assert out.first_logits is not None and torch.equal(out.first_logits, first.refined_logits)
    assert torch.equal(once.refined_prob, first.refined_prob) and once.first_logits is None
    assert out.prompts.mask_logits is not None and (out.prompts.mask_logits == 15).any()  # the discs, in the second too


def test_both_passes_teach_the_refiner() -> None:
    config = SystemConfig(sam=SAM)
    refiner, (image, coarse) = refiner_of(config), shown()
    decoder = refiner.sam.mask_decoder.output_hypernetworks_mlps[1].layers[0].weight  # type: ignore[union-attr, index]
    for name in ("first_logits", "refined_logits"):
        refiner.zero_grad()
        out = refine(refiner, config, refiner.embed(image), coarse, CLICKED)
        getattr(out, name).sum().backward()
        assert decoder.grad is not None and decoder.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_a_region_is_encoded_once_for_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SystemConfig(sam=SAM), refiner=RefinerConfig(roi=True))
    refiner, (image, coarse) = refiner_of(config), shown()
    seen: list[torch.Size] = []
    embed = refiner.embed
    monkeypatch.setattr(refiner, "embed", lambda x: (seen.append(x.shape), embed(x))[1])
    with torch.no_grad():
        out = refine(refiner, config, None, coarse, CLICKED, image)
    assert len(seen) == 1 and out.first_logits is not None
    assert out.first_logits.shape == out.refined_logits.shape and out.refined_prob.shape == coarse.shape
