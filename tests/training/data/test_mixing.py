"""CutMix: what may come out, whatever is drawn."""

from __future__ import annotations

import pytest
import torch

from ultrarefiner_monai.config import ConfigError, DataConfig
from ultrarefiner_monai.training.data.mixing import cut_and_mix


def batch(count: int = 6, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image has one value, and its label another that tells which image it is of."""
    image = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, side, side).clone()
    return image, image * 10


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_cut_as_their_images_and_nothing_is_made_up(seed: int) -> None:
    torch.manual_seed(seed)
    image, label = batch()
    mixed, labels = cut_and_mix(image, label, 1.0)
    torch.testing.assert_close(labels, mixed * 10)
    torch.testing.assert_close(image, batch()[0])  # the batch itself stays as it was
    for k in range(len(mixed)):
        foreign = mixed[k, 0] != image[k, 0]
        assert len(mixed[k].unique()) <= 2  # itself and one other
        rows, columns = foreign.any(dim=1), foreign.any(dim=0)
        assert torch.equal(foreign, rows[:, None] & columns[None, :])  # a rectangle


def test_the_share_is_kept_and_the_draws_repeat() -> None:
    image, label = batch()

    def draws() -> list[torch.Tensor]:
        torch.manual_seed(1)
        return [cut_and_mix(image, label, 0.3)[0] for _ in range(400)]

    first, second = draws(), draws()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert 0.2 < sum(not torch.equal(mixed, image) for mixed in first) / 400 < 0.4
    shares = [(mixed != image).float().mean().item() for mixed in first if not torch.equal(mixed, image)]
    assert 0.15 < sum(shares) / len(shares) < 0.45  # the border cuts some of the half that a rectangle has


def test_none_asked_for_or_nothing_to_mix_with() -> None:
    image, label = batch()
    assert cut_and_mix(image, label, 0.0)[0] is image
    assert cut_and_mix(image[:1], label[:1], 1.0)[1].equal(label[:1])


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.cutmix must be in \[0, 1\]"):
        DataConfig(cutmix=1.5)
