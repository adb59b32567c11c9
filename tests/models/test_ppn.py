"""The point proposal network: where its points may lie, and that its soft tokens are SAM's own at the ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrarefiner_monai.config import ConfigError, PpnConfig, RefinerConfig, SamConfig, SystemConfig, from_dict
from ultrarefiner_monai.core.types import InputError, Prompts
from ultrarefiner_monai.models.ppn import PointNetwork, ProposedPoints, soft_tokens
from ultrarefiner_monai.models.sam.network import _embed_sparse, build_sam

SAM = SamConfig(arch="compact", image_size=64, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=(0,))
SMALL = PpnConfig(points=5, width=16, blocks=1)


def network(seed: int = 0, grid: int = 4) -> PointNetwork:
    torch.manual_seed(seed)
    return PointNetwork(SMALL, grid)


@given(st.integers(0, 50), st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_no_point_lies_in_the_padding(seed: int, sizes: list[tuple[int, int]]) -> None:
    embedding = 5 * torch.randn(len(sizes), 256, 4, 4, generator=torch.Generator().manual_seed(seed))
    points = network(seed)(embedding, sizes)
    pixels = points.pixels(64)
    assert points.xy.shape == (len(sizes), 5, 2) and points.logits.shape == (len(sizes), 5)
    for (rows, columns), found in zip(sizes, pixels):
        assert (
            (found >= 0).all()
            and (found[:, 0] <= columns - 0.5 + 1e-3).all()
            and (found[:, 1] <= rows - 0.5 + 1e-3).all()
        )


def test_a_point_lies_where_its_map_is_high() -> None:
    net = network()
    with torch.no_grad():
        for row, column in ((0, 0), (1, 3), (3, 2)):
            maps = torch.full((1, 5, 4, 4), -50.0)
            maps[..., row, column] = 50.0
            net.maps.forward = lambda _, m=maps: m  # type: ignore[method-assign]
            xy = net(torch.randn(1, 256, 4, 4)).pixels(64)
            # The centre of a cell of 16 pixels.
            assert torch.allclose(xy, torch.tensor([16.0 * column + 7.5, 16.0 * row + 7.5]).expand(1, 5, 2), atol=1e-3)


def test_gradients_reach_all_of_it_from_places_and_labels() -> None:
    net = network()
    points = net(torch.randn(2, 256, 4, 4), [(64, 40), (30, 64)])
    (points.xy.sum() + points.logits.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_sure_labels_are_sams_own_tokens() -> None:
    torch.manual_seed(0)
    sam = build_sam(SAM)
    xy = torch.rand(2, 5, 2)
    logits = torch.tensor([[-90.0, 90, 90, -90, 90], [90, 90, -90, -90, -90]])
    points = ProposedPoints(xy, logits)
    given = Prompts(points_xy=points.pixels(64), point_labels=(logits > 0).long())
    assert torch.allclose(soft_tokens(sam, points), _embed_sparse(sam, given, 2), atol=1e-5)


def test_the_mask_reaches_the_labels_through_the_mixture() -> None:
    torch.manual_seed(0)
    sam, logits = build_sam(SAM), torch.zeros(1, 5, requires_grad=True)
    xy = torch.rand(1, 5, 2, requires_grad=True)
    soft_tokens(sam, ProposedPoints(xy, logits)).square().sum().backward()
    assert logits.grad is not None and xy.grad is not None
    assert logits.grad.abs().min() > 0 and xy.grad.abs().min() > 0


def test_more_points_than_places_are_refused() -> None:
    with pytest.raises(InputError, match="17 points are asked for, and the image embedding has 4 x 4 places"):
        PointNetwork(PpnConfig(points=17, width=16), 4)
    for values, words in (({"points": 0}, "points"), ({"width": 12}, "multiple of 8"), ({"blocks": 0}, "blocks")):
        with pytest.raises(ConfigError, match=words):
            from_dict(PpnConfig, values)
    with pytest.raises(ConfigError, match="sam must say which"):
        SystemConfig(ppn=SMALL)
    with pytest.raises(ConfigError, match="roi must be off"):
        SystemConfig(sam=SAM, ppn=SMALL, refiner=RefinerConfig(roi=True))
