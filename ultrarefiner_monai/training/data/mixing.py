"""Mixing the images of a batch: what lies around a lesion then tells less about where it is, and few images go further."""

from __future__ import annotations

import torch


def cut_and_mix(image: torch.Tensor, label: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """With probability ``share``, a rectangle of each image is that of another image of the batch, and so is its label's.

    image, label: (B, 1, S, S), one frame; returned as new tensors or as they are. CutMix (Yun et al., ICCV 2019: the
    rectangle's area is uniform in [0, 1], its centre anywhere) with the label cut like the image (French et al., BMVC
    2020). Draws from torch's global generator, which the loop seeds for each iteration: a resumed run mixes as one that
    was never stopped. (MONAI's CutMix has one corner for the whole batch, always the upper left one, and indexes in a way
    that torch has deprecated.)
    """
    count, side = len(image), image.shape[-1]
    if count < 2 or share == 0 or torch.rand(()).item() >= share:
        return image, label
    other = torch.randperm(count)
    half = torch.rand(count, 1).sqrt() * side / 2
    pixels = torch.arange(side)
    rows, columns = ((pixels - centre).abs() <= half for centre in (torch.rand(2, count, 1) * side).unbind())
    inside = (rows[:, None, :, None] & columns[:, None, None, :]).to(image.device)
    return torch.where(inside, image[other], image), torch.where(inside, label[other], label)
